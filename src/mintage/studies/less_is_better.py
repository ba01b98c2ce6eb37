"""Less-is-Better's claim: fewer tokens at equal vocabulary size, on text with spaces, without, and of scripts without.

The paper compares with words and BPE. The rival that may do what LiB does, cross words, is BPE and Unigram without word
boundaries: they are in the same run, and have claims of their own.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mintage.data import data_file
from mintage.errors import missing_extra
from mintage.files import read_jsonl
from mintage.measure import Figure, Interval, Result, bootstrap, bootstrap_ratio, paired_time
from mintage.measure.environment import environment
from mintage.segment.baselines import BPE, SuperwordBPE, Unigram
from mintage.segment.contract import Segmenter
from mintage.segment.core.unigram import UNKNOWN
from mintage.segment.less_is_better import LiB, LiBSegmenter

__all__ = ["check"]

LIB, WORDS, ACROSS = "lib", "bpe", "superword-bpe"
UNIGRAM, UNIGRAM_ACROSS = "unigram", "unigram across words (sentencepiece)"
_SIZES = (2000, 4000, 8000)
_LENGTH = "characters per token"


@dataclass(frozen=True)
class Text:
    """Lines to learn from and others to be measured on."""

    name: str
    data: str
    train: list[str]
    held_out: list[str]
    vocab_size: int = 4000
    words: list[str] | None = None
    """The held-out lines with their spaces, where these were removed."""


def check(
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = lambda done, of, what: None,
) -> list[Result | Figure]:
    """Train all rivals on the same lines and measure them on others.

    Parameters
    ----------
    seed
        Of LiB's training.
    limit
        Thousands of characters to train on and to measure on, per text; None takes all.
    command
        What the rows say repeats them.
    progress
        Told the steps done, of how many, and the one at work.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the speeds are of one thread
    texts = [_shortened(text, limit) for text in (_wikitext(), _without_spaces(_wikitext()), _speeches(), *_scripts())]
    of, done = 5 * len(texts) + 2, 0
    work = Path(".mintage") / f"lib-claim-{seed}-{limit}"
    context: dict[str, Any] = {"method": LIB, "job": "segment", "seed": seed, "command": command}
    context["environment"] = environment()
    rows: list[Result | Figure] = []
    for text in texts:
        arms: dict[str, Arm] = {}
        for name in (LIB, WORDS, ACROSS, UNIGRAM, UNIGRAM_ACROSS):
            progress(done, of, f"{text.name}: {name}")
            arms[name] = _trained(name, text, text.vocab_size, seed, work)
            done += 1
        rows += _rows(text, arms, context)
        if text is texts[0]:
            progress(done, of, "vocabulary sizes")
            rows.append(_sizes_figure(text, seed, work, context))
            progress(done + 1, of, "speed")
            rows.append(_speed(text, arms, context))
            rows.append(_token_map(text, arms[LIB], context))
            done += 2
    progress(of, of, "done")
    shutil.rmtree(work, ignore_errors=True)
    return rows


# -- text ---------------------------------------------------------------------------------------------------------


def _wikitext() -> Text:
    train, held_out = (
        _lines(gzip.decompress(data_file(name).read_bytes()).decode())
        for name in ("wikitext2_valid.txt.gz", "wikitext2_test_head.txt.gz")
    )
    return Text("WikiText-2", "WikiText-2: learned from valid, measured on the head of test", train, held_out)


def _without_spaces(text: Text) -> Text:
    train, held_out = ([line.replace(" ", "") for line in lines] for lines in (text.train, text.held_out))
    return Text(f"{text.name}, spaces removed", f"{text.data}; spaces removed", train, held_out, words=text.held_out)


def _speeches() -> Text:
    """Presidents' speeches: every fifth is held out."""
    rows = read_jsonl(data_file("long_docs.jsonl.gz"))
    speeches = [row["text"] for row in rows if row["corpus"] in ("state_union", "inaugural")]
    train = [line for k, speech in enumerate(speeches) if k % 5 for line in _lines(speech)]
    held_out = [line for speech in speeches[::5] for line in _lines(speech)]
    data = "State of the Union and inaugural addresses, every fifth held out"
    return Text("presidents' speeches", data, train, held_out)


def _scripts() -> list[Text]:
    """Chinese and Thai, which write no spaces between words: every fifth XQuAD paragraph is held out."""
    rows = read_jsonl(data_file("xquad.jsonl.gz"))
    declarations = read_jsonl(data_file("udhr.jsonl.gz"))
    found = []
    for lang, name, udhr in (("zh", "Chinese", ("cmn_hans",)), ("th", "Thai", ("tha",))):
        paragraphs = [row["context"] for row in rows if row["lang"] == lang]
        more = [row["text"] for row in declarations if str(row["lang"]).lower().startswith(udhr)]
        train = [line for k, text in enumerate(paragraphs) if k % 5 for line in _lines(text)]
        train += [line for text in more for line in _lines(text)]
        held_out = [line for text in paragraphs[::5] for line in _lines(text)]
        found.append(Text(name, f"XQuAD {lang}, every fifth paragraph held out; UDHR added to learn", train, held_out))
    return found


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _shortened(text: Text, limit: int | None) -> Text:
    if limit is None:
        return text

    def head(lines: list[str]) -> list[str]:
        ends = np.cumsum([len(line) for line in lines])
        return lines[: int(np.searchsorted(ends, 1000 * limit)) + 1]

    words = None if text.words is None else text.words[: len(head(text.held_out))]
    return Text(text.name, text.data, head(text.train), head(text.held_out), text.vocab_size, words)


# -- arms ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A trained tokenizer: its entries, and how it cuts lines."""

    tokens: list[bytes]
    cut: Callable[[list[str]], list[list[int]]]
    segmenter: Segmenter | None


def _trained(name: str, text: Text, vocab_size: int, seed: int, work: Path) -> Arm:
    if name == UNIGRAM_ACROSS:
        return _sentencepiece(text.train, vocab_size)
    trainers = {
        LIB: LiB(vocab_size=vocab_size, seed=seed),
        WORDS: BPE(vocab_size=vocab_size),
        ACROSS: SuperwordBPE(vocab_size=vocab_size),
        UNIGRAM: Unigram(vocab_size=vocab_size),
    }
    segmenter = trainers[name].train(text.train, work=work / text.name.replace(" ", "-") if name == LIB else None)
    return Arm(segmenter.tokens() or [], segmenter.encode_batch, segmenter)


def _sentencepiece(lines: list[str], vocab_size: int) -> Arm:
    """Unigram whose pieces may hold spaces; sentencepiece's, with byte fallback."""
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise missing_extra("sentencepiece", "segment") from None
    library: Any = sentencepiece
    model = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size + 1,  # <unk>, which nothing needs
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        # no boundary at all, as LiB has none
        split_by_whitespace=False,
        split_by_unicode_script=False,
        split_by_number=False,
        max_sentence_length=1 << 20,
        unk_piece=UNKNOWN,
        bos_id=-1,
        eos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    learned = library.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [learned.id_to_piece(i) for i in range(learned.get_piece_size())]
    tokens = [
        bytes([int(piece[3:5], 16)]) if learned.is_byte(i) else piece.replace("\u2581", " ").encode()
        for i, piece in enumerate(pieces)
    ]
    return Arm(tokens, lambda texts: learned.encode(texts, num_threads=1), None)


# -- measures -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """Held-out lines in an arm's tokens."""

    arm: Arm
    ids: list[list[int]]

    @property
    def per_line(self) -> list[int]:
        return [len(line) for line in self.ids]

    @property
    def counts(self) -> np.ndarray:
        return np.bincount(np.concatenate([np.asarray(line, np.int64) for line in self.ids]), minlength=self.size)

    @property
    def size(self) -> int:
        return len(self.arm.tokens)

    @property
    def used(self) -> float:
        """Share of the vocabulary that occurs."""
        return float((self.counts > 0).mean())

    @property
    def description(self) -> float:
        """Bits of the vocabulary, each entry's bytes and an end mark of 257 values, and of the text by its unigrams."""
        counts = self.counts[self.counts > 0]
        text = -(counts * np.log2(counts / counts.sum())).sum()
        return float(sum(len(token) + 1 for token in self.arm.tokens) * np.log2(257) + text)

    @property
    def many_words(self) -> float:
        """Share of the text's tokens that hold a space between other characters."""
        inside = np.array([b" " in token.strip(b" ") for token in self.arm.tokens])
        return float(self.counts[inside].sum() / self.counts.sum())


def _rows(text: Text, arms: dict[str, Arm], context: dict[str, Any]) -> list[Result]:
    cuts = {name: Cut(arm, arm.cut(text.held_out)) for name, arm in arms.items()}
    lengths = [len(line) for line in text.held_out]
    settings: dict[str, Any] = {"vocab_size": text.vocab_size, "text": text.name}
    sizes = ", ".join(f"{name} {cut.size}" for name, cut in cuts.items())
    shared: dict[str, Any] = {**context, "data": text.data, "settings": settings, "n": len(lengths)}
    note = f"{sum(map(len, text.train))} characters learned from, {sum(lengths)} measured on; entries: {sizes}"

    def row(metric: str, unit: str, of: Callable[[Cut], float], higher: bool, **more: Any) -> Result:
        values = {name: of(cut) for name, cut in cuts.items()}
        mine, baseline = values.pop(LIB), {WORDS: values.pop(WORDS)}
        told = {"baseline": baseline, "peers": values, "note": note, **more}
        return Result(metric=metric, value=mine, unit=unit, higher_is_better=higher, **shared, **told)

    length = bootstrap_ratio(lengths, cuts[LIB].per_line)
    rows = [
        row(
            _LENGTH,
            "characters",
            lambda cut: sum(lengths) / sum(cut.per_line),
            True,
            interval=length.bounds,
            claim="the fewest tokens of the five on held-out text",
            verdict=_verdict(min(cuts, key=lambda name: sum(cuts[name].per_line)) == LIB),
        ),
        row("vocabulary used on held-out text", "share", lambda cut: cut.used, True),
        row(
            "description length per character",
            "bits",
            lambda cut: cut.description / sum(lengths),
            False,
            claim="the shortest description (vocabulary and held-out text) of the five",
            verdict=_verdict(min(cuts, key=lambda name: cuts[name].description) == LIB),
        ),
    ]
    if any(" " in line for line in text.held_out):
        rows.append(row("tokens that span words", "share", lambda cut: cut.many_words, True))
    for rival, who in ((WORDS, "BPE within words"), (ACROSS, "BPE across words")):
        ratio = bootstrap_ratio(cuts[LIB].per_line, cuts[rival].per_line)
        others = {f"{name} over {rival}": sum(cuts[name].per_line) / sum(cuts[rival].per_line) for name in cuts}
        others.pop(f"{LIB} over {rival}")
        others.pop(f"{rival} over {rival}")
        rows.append(
            Result(
                metric=f"tokens over those of {rival}",
                value=ratio.value,
                interval=ratio.bounds,
                unit="x",
                higher_is_better=False,
                baseline={rival: 1.0},
                peers=others,
                claim=f"fewer tokens than {who} at equal vocabulary size, on held-out text (interval below 1)",
                verdict=_verdict(ratio.high < 1),
                note=note,
                **shared,
            )
        )
    if text.words is not None:
        rows.append(_boundaries(text, cuts, shared, note))
    return rows


def _verdict(holds: bool) -> Any:
    return "holds" if holds else "does not hold"


def _boundaries(text: Text, cuts: dict[str, Cut], shared: dict[str, Any], note: str) -> Result:
    """Compare where lines without spaces are cut with where the words were."""
    gold = [_ends([word.encode() for word in line.split(" ")]) for line in text.words or []]
    lib = cuts[LIB].arm.segmenter
    assert isinstance(lib, LiBSegmenter)
    parts: dict[int, list[bytes]] = {}
    for i, token in enumerate(lib.tokens()):
        whole = token.decode(errors="replace")
        parts[i] = [p.encode() for p in lib.decompose(whole)] if whole in lib.units else [token]
    predicted = {name: [_ends([cut.arm.tokens[i] for i in ids]) for ids in cut.ids] for name, cut in cuts.items()}
    predicted[f"{LIB} sub-units"] = [_ends([part for i in ids for part in parts[i]]) for ids in cuts[LIB].ids]
    scores = {name: _f1(ends, gold) for name, ends in predicted.items()}
    mine = scores.pop(f"{LIB} sub-units")
    best = max(scores[name].value for name in cuts if name != LIB)
    return Result(
        metric="F1 of word boundaries, sub-units",
        value=mine.value,
        interval=mine.bounds,
        unit="F1",
        higher_is_better=True,
        baseline={WORDS: scores.pop(WORDS).value},
        peers={name: score.value for name, score in scores.items()},
        claim="its sub-units find words better than the pieces of the four rivals",
        verdict=_verdict(mine.low > best),
        note=f"{note}; words are what stood between spaces, boundaries inside lines, micro-averaged",
        **shared,
    )


def _ends(parts: Sequence[bytes]) -> set[int]:
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return set(ends[:-1])


def _f1(predicted: list[set[int]], gold: list[set[int]]) -> Interval:
    pairs = [(2 * len(p & g), len(p) + len(g)) for p, g in zip(predicted, gold, strict=True) if p or g]
    return bootstrap_ratio([top for top, _ in pairs], [bottom for _, bottom in pairs])


def _speed(text: Text, arms: dict[str, Arm], context: dict[str, Any]) -> Result:
    """Time encoding of the held-out lines, one thread, in rotating order."""
    lib, bpe = arms[LIB].segmenter, arms[WORDS].segmenter
    assert lib is not None
    assert bpe is not None
    lines = text.held_out
    calls: dict[str, Callable[[], Any]] = {
        LIB: lambda: lib.encode_batch(lines),
        "bpe (tokenizers)": lambda: bpe.encode_batch(lines),
        "unigram (tokenizers)": lambda: arms[UNIGRAM].cut(lines),
        "unigram (sentencepiece)": lambda: arms[UNIGRAM_ACROSS].cut(lines),
    }
    exported = lib.to_hf().backend_tokenizer
    calls["lib, exported (tokenizers)"] = lambda: exported.encode_batch_fast(lines)
    try:
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(bpe.tokens() or [])}
        pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        fast = tiktoken.Encoding("bpe", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        calls["bpe (tiktoken)"] = lambda: [fast.encode_ordinary(line) for line in lines]
    except ModuleNotFoundError:
        pass  # the row then has one peer less
    timings = paired_time(calls, repeats=7)
    size = sum(len(line.encode()) for line in lines) / 1e6
    speeds = {name: size / timings.median(name) for name in calls}
    speed = bootstrap(size / timings.pairs.values(LIB), np.median)
    baseline = {"bpe (tokenizers)": speeds.pop("bpe (tokenizers)")}
    return Result(
        metric="encoding speed",
        value=speeds.pop(LIB),
        interval=(min(speed.low, speed.value), max(speed.high, speed.value)),
        unit="MB/s",
        higher_is_better=True,
        baseline=baseline,
        peers=speeds,
        n=7,
        data=text.data,
        settings={"vocab_size": text.vocab_size, "threads": 1},
        claim="cuts at least 1 MB/s on one core",
        verdict=_verdict(speed.low >= 1),
        note=f"{size:.2f} MB in {len(lines)} lines; medians of 7 interleaved rounds",
        **context,
    )


# -- figures ------------------------------------------------------------------------------------------------------


def _sizes_figure(text: Text, seed: int, work: Path, context: dict[str, Any]) -> Figure:
    characters = sum(map(len, text.held_out))
    series = []
    for name in (LIB, WORDS, ACROSS, UNIGRAM, UNIGRAM_ACROSS):
        arms = [_trained(name, text, size, seed, work) for size in _SIZES]
        lengths = [characters / sum(map(len, arm.cut(text.held_out))) for arm in arms]
        series.append({"name": name, "x": [len(arm.tokens) for arm in arms], "y": lengths})
    return Figure(
        job="segment",
        method=LIB,
        name="lib-characters-per-token",
        title="Characters per token against vocabulary size",
        caption=f"Held-out lines of {text.name}; every arm learned from the same lines.",
        kind="curve",
        data={"x_label": "vocabulary", "y_label": _LENGTH, "series": series},
        environment=context["environment"],
    )


def _token_map(text: Text, arm: Arm, context: dict[str, Any]) -> Figure:
    line = next((line for line in text.held_out if len(line) > 300), text.held_out[0])
    ids = arm.cut([line[:600]])[0]
    pieces = [arm.tokens[i].decode(errors="replace") for i in ids]
    tokens = [
        {
            "text": piece,
            "value": min(1.0, len(piece) / 12),
            "group": "several words" if " " in piece.strip(" ") else "one word or less",
        }
        for piece in pieces
    ]
    return Figure(
        job="segment",
        method=LIB,
        name="lib-units",
        title="How LiB reads a held-out line",
        caption="Shading is the length of the unit; groups tell units that span words.",
        kind="token-map",
        data={"tokens": tokens},
        environment=context["environment"],
    )

"""Tokenizers that learn from the same lines and are measured on others: what Less-is-Better's study compares."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from mintage.data import texts
from mintage.errors import UserError, missing_extra
from mintage.measure import Figure, Interval, bootstrap_ratio, paired_time
from mintage.measure.figure import curve
from mintage.measure.study import Run
from mintage.segment import LiBSegmenter, Segmenter, Trainer
from mintage.segment.core.unigram import UNKNOWN
from mintage.tokenizer_files import PATTERNS

__all__ = [
    "LENGTH",
    "CutLines",
    "Learner",
    "LineSubject",
    "TextLines",
    "TrainedUnits",
    "boundary_f1",
    "columns_of",
    "encoding_seconds",
    "learned_units",
    "read_lines",
    "sentencepiece_units",
    "sizes_figure",
    "units_figure",
    "word_ends",
]

LENGTH = "characters per token"


@dataclass(frozen=True)
class TextLines:
    """TextLines to learn from and others to be measured on.

    Parameters
    ----------
    name, data
        What rows call them.
    train, held_out
        The lines.
    words
        The held-out lines with their spaces, where these were removed.
    """

    name: str
    data: str
    train: list[str]
    held_out: list[str]
    words: list[str] | None = None

    def head(self, characters: int | None) -> TextLines:
        """Return the first lines of both parts that hold so many characters; None keeps all."""
        if characters is None:
            return self
        held_out = _head(self.held_out, characters)
        words = None if self.words is None else self.words[: len(held_out)]
        return replace(self, train=_head(self.train, characters), held_out=held_out, words=words)


def _head(lines: list[str], characters: int) -> list[str]:
    return lines[: int(np.searchsorted(np.cumsum([len(line) for line in lines]), characters)) + 1]


def read_lines() -> list[TextLines]:
    """Read WikiText-2 with and without spaces, presidents' speeches, and Chinese and Thai, which write no spaces."""
    train, held_out = (_lines(texts("wikitext2", split)) for split in ("train", "held-out"))
    data = "WikiText-2: learned from valid, measured on the head of test"
    bare, bare_held_out = ([line.replace(" ", "") for line in part] for part in (train, held_out))
    wikitext = TextLines("WikiText-2", data, train, held_out)
    without = TextLines("WikiText-2, spaces removed", f"{data}; spaces removed", bare, bare_held_out, held_out)
    scripts = [_script("zh", "Chinese", "cmn_hans"), _script("th", "Thai", "tha")]
    return [wikitext, without, _speeches(), *scripts]


def _speeches() -> TextLines:
    train, held_out = _fifths(texts("speeches", "all"))
    data = "State of the Union and inaugural addresses, every fifth held out"
    return TextLines("presidents' speeches", data, train, held_out)


def _script(lang: str, name: str, declared: str) -> TextLines:
    train, held_out = _fifths(texts("xquad", "all", domain=lang))
    declarations = texts("udhr", "train").documents()
    train += _lines(one.text for one in declarations if one.domain.lower().startswith(declared))
    return TextLines(name, f"XQuAD {lang}, every fifth paragraph held out; UDHR added to learn", train, held_out)


def _fifths(documents: Any) -> tuple[list[str], list[str]]:
    """Hold out every fifth document."""
    held = list(documents)
    return _lines(text for k, text in enumerate(held) if k % 5), _lines(held[::5])


def _lines(documents: Any) -> list[str]:
    return [line for text in documents for line in text.split("\n") if line.strip()]


# -- arms ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedUnits:
    """A trained tokenizer: its entries, how it cuts lines, and the segmenter where it is one of mintage's."""

    tokens: list[bytes]
    cut: Callable[[list[str]], list[list[int]]]
    segmenter: Segmenter | None = None


Learner = Trainer | Callable[[list[str], int], TrainedUnits]
"""A trainer of mintage, or a function of lines and a vocabulary size."""


def learned_units(learner: Learner, lines: list[str], vocab_size: int, work: Path) -> TrainedUnits:
    """Learn a vocabulary from lines; `work` keeps what a trainer has done."""
    if not isinstance(learner, Trainer):
        return learner(lines, vocab_size)
    sized: Any = replace(learner, vocab_size=vocab_size)  # type: ignore[call-arg]
    segmenter = sized.train(lines, work=work)
    return TrainedUnits(segmenter.tokens() or [], segmenter.encode_batch, segmenter)


def sentencepiece_units(lines: list[str], vocab_size: int) -> TrainedUnits:
    """Learn sentencepiece's Unigram whose pieces may hold spaces: no boundary at all, with byte fallback.

    Raises
    ------
    UserError
        The vocabulary has no room for all bytes and characters, or sentencepiece is missing.
    """
    needed = 257 + len({character for line in lines for character in line})  # and <s>, where a space stands
    if vocab_size < needed:
        raise UserError(f"vocab_size={vocab_size} has no room for all bytes and characters; pass at least {needed}")
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
    return TrainedUnits(tokens, lambda texts: learned.encode(texts, num_threads=1))


# -- measures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CutLines:
    """Held-out lines in an arm's tokens."""

    arm: TrainedUnits
    ids: list[list[int]]

    @property
    def per_line(self) -> list[int]:
        """Tokens of every line."""
        return [len(line) for line in self.ids]

    @property
    def counts(self) -> Int[np.ndarray, " entries"]:
        """How often every entry occurs."""
        ids = np.concatenate([np.asarray(line, np.int64) for line in self.ids])
        return np.bincount(ids, minlength=len(self.arm.tokens))

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

    def columns(self, lines: TextLines) -> dict[str, Any]:
        """Return all that is compared: numbers per line, and some of the whole.

        Where spaces were removed also ``hits`` and ``ends``, by which F1 against the words' ends is a ratio of sums;
        and for LiB the same of its sub-units.
        """
        found: dict[str, Any] = {"characters": [len(line) for line in lines.held_out], "tokens": self.per_line}
        found |= {"entries": len(self.arm.tokens), "used": self.used, "bits": self.description}
        found["spanning"] = self.many_words
        if lines.words is not None:
            gold = [word_ends([word.encode() for word in line.split(" ")]) for line in lines.words]
            cuts = [word_ends([self.arm.tokens[i] for i in ids]) for ids in self.ids]
            found |= _agreement("", cuts, gold)
            if isinstance(self.arm.segmenter, LiBSegmenter):
                parts = _sub_units(self.arm.segmenter)
                cuts = [word_ends([part for i in ids for part in parts[i]]) for ids in self.ids]
                found |= _agreement("sub-unit ", cuts, gold)
        return found


def _sub_units(lib: LiBSegmenter) -> list[list[bytes]]:
    """Return the sub-units of every token."""
    words, units = [token.decode(errors="replace") for token in lib.tokens()], set(lib.units)
    return [
        [part.encode() for part in lib.decompose(word)] if word in units else [token]
        for word, token in zip(words, lib.tokens(), strict=True)
    ]


def word_ends(parts: Sequence[bytes]) -> set[int]:
    """Return where parts end, in bytes from the beginning of a line; the end of the line is none."""
    return set(np.cumsum([len(part) for part in parts]).tolist()[:-1])


def _agreement(prefix: str, cuts: list[set[int]], gold: list[set[int]]) -> dict[str, list[int]]:
    pairs = list(zip(cuts, gold, strict=True))
    return {f"{prefix}hits": [2 * len(p & g) for p, g in pairs], f"{prefix}ends": [len(p) + len(g) for p, g in pairs]}


def boundary_f1(columns: Mapping[str, Any], prefix: str) -> Interval:
    """Return F1 of boundaries inside lines, micro-averaged; lines without any are left out."""
    hits, ends = columns[f"{prefix}hits"], columns[f"{prefix}ends"]
    return bootstrap_ratio(hits[ends > 0], ends[ends > 0])


def encoding_seconds(
    lib: TrainedUnits, bpe: TrainedUnits, unigram: TrainedUnits, sentencepiece: TrainedUnits, *, lines: list[str]
) -> dict[str, list[float]]:
    """Time encoding of lines as one batch, one thread, in rotating order: LiB, its export, and its rivals."""
    assert lib.segmenter is not None
    exported = lib.segmenter.to_hf().backend_tokenizer
    calls: dict[str, Callable[[], Any]] = {
        "lib": lambda: lib.cut(lines),
        "bpe (tokenizers)": lambda: bpe.cut(lines),
        "unigram (tokenizers)": lambda: unigram.cut(lines),
        "unigram (sentencepiece)": lambda: sentencepiece.cut(lines),
        "lib, exported (tokenizers)": lambda: exported.encode_batch_fast(lines),
    }
    try:
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(bpe.tokens)}
        fast = tiktoken.Encoding("bpe", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
        calls["bpe (tiktoken)"] = lambda: [fast.encode_ordinary(line) for line in lines]
    except ModuleNotFoundError:
        pass  # the row then has one peer less
    timings = paired_time(calls, repeats=7)
    return {name: seconds.tolist() for name, seconds in timings.seconds.items()}


# -- a run's columns and figures -----------------------------------------------------------------------------------


class LineSubject(NamedTuple):
    """TextLines by text, and what was learned from them in this process."""

    lines: list[TextLines]
    made: dict[Any, TrainedUnits]


def columns_of(run: Run, arm: str, prefix: str) -> dict[str, Any]:
    """Return the columns of an arm whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): c for name, c in run.columns[arm].items() if name.startswith(prefix)}


def sizes_figure(run: Run, lines: TextLines) -> Figure:
    """Draw characters per token of every arm against its vocabulary."""
    series = {
        arm: zip(run.column(arm, "entries").astype(int).tolist(), run.column(arm, LENGTH).tolist(), strict=True)
        for arm in run.arms
    }
    return run.figure(
        name="lib-characters-per-token",
        title="Characters per token against vocabulary size",
        caption=f"Held-out lines of {lines.name}; every arm learned from the same lines.",
        **curve("vocabulary", LENGTH, series),
    )


def units_figure(run: Run, learned: Callable[[], TrainedUnits], lines: TextLines) -> Figure:
    """Draw the first long line as it is cut."""
    line = next((line for line in lines.held_out if len(line) > 300), lines.held_out[0])[:600]
    pieces = run.memo("units", lambda: _pieces(learned(), line))
    kinds = ["several words" if " " in piece.strip(" ") else "one word or less" for piece in pieces]
    values = [min(1.0, len(piece) / 12) for piece in pieces]
    return run.figure(
        name="lib-units",
        title="How LiB reads a held-out line",
        caption="Shading is the length of the unit; groups tell units that span words.",
        kind="token-map",
        data={"tokens": [{"text": p, "value": v, "group": k} for p, v, k in zip(pieces, values, kinds, strict=True)]},
    )


def _pieces(arm: TrainedUnits, line: str) -> list[str]:
    return [arm.tokens[i].decode(errors="replace") for i in arm.cut([line])[0]]

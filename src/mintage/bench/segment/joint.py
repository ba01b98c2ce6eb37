"""Measure tokenizers: all of them on the same text, trained on the same text to the same size, beside given rivals.

The job alone (``mintage bench segment``) trains every ready method and baseline on one mix of languages and compares
them on held-out text; a method alone runs its paper's claim check, `mintage.studies`. `compare` is the table by
itself, for tokenizers that are there already (``mintage segment compare``).
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mintage import catalog
from mintage.data import texts
from mintage.data.corpora import Split
from mintage.errors import UserError, missing_extra
from mintage.files import append_line, read_jsonl
from mintage.measure import Figure, Interval, Result, timed
from mintage.measure.environment import environment
from mintage.measure.memo import fingerprint
from mintage.segment.baselines import ByLanguage
from mintage.segment.contract import Segmenter, load
from mintage.segment.core.adapters import GPT2_PATTERN, Foreign, SentencePiece, Tiktoken, open_segmenter
from mintage.segment.core.hf import HFSegmenter
from mintage.segment.core.metrics import (
    Parallel,
    Parity,
    continued_share,
    description_length,
    encode_corpus,
    gold_words,
    morphology,
    parity,
    renyi_efficiency,
    speed,
    word_spans,
)
from mintage.segment.core.unigram import UNKNOWN

__all__ = ["Mix", "compare", "open_mix", "run", "train_arms"]

Report = Callable[[int, int, str], None]
"""``progress(done, total, label)``, as the command line draws it."""

BASELINE = "bpe"
VOCAB_SIZE = 8000
MIN_COUNT = 1
"""Of methods that leave rare words out: the mix is so small that their defaults would not fill a vocabulary."""
TIMED = 300_000
"""Characters on which speed is measured."""

SENTENCE = "The lighthouse keepers weren't unbelievably careful in 2019; Wasserstraßen und 潮汐 по-русски."
"""What the token maps show."""


def silent(done: int, total: int, label: str) -> None:
    """Report nothing."""


# -- one table over tokenizers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Number:
    """One cell: metric, unit, direction, value."""

    metric: str
    unit: str
    higher: bool
    value: float
    interval: tuple[float, float] | None = None
    n: int = 1
    note: str = ""


@dataclass
class _Measured:
    """All cells of one tokenizer, and what its pictures need."""

    numbers: list[_Number] = field(default_factory=list)
    parities: dict[str, Parity] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        return next((n.value for n in self.numbers if n.metric == metric), None)

    def add(self, metric: str, unit: str, higher: bool, value: Any, *, n: int = 1, note: str = "") -> None:
        """Add a number, or an `Interval` with its bounds."""
        known = isinstance(value, Interval)
        number, bounds = (value.value, value.bounds) if known else (float(value), None)
        self.numbers.append(_Number(metric, unit, higher, number, bounds, n, note))


def compare(
    segmenters: Mapping[str, Segmenter],
    texts: Sequence[str],
    *,
    parallel: Mapping[str, Parallel] | None = None,
    reference: str = "en",
    gold: Mapping[str, Sequence[str]] | None = None,
    baseline: str = "",
    repeats: int = 5,
    data: str = "",
    seed: int = 0,
    command: str = "",
    settings: Mapping[str, Any] | None = None,
    training_seconds: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
    sentence: str = SENTENCE,
    progress: Report = silent,
) -> list[Result | Figure]:
    """Measure tokenizers on the same text.

    Parameters
    ----------
    segmenters
        Name to tokenizer, at least one.
    texts
        Held-out documents.
    parallel
        Name of a parallel text to the text, see `mintage.segment.core.metrics.parity`.
    reference
        Language whose premium is 1.
    gold
        Word to its morphemes, which join to it.
    baseline
        The tokenizer that others stand beside; default the first.
    repeats
        Rounds of timing; 0 measures no speed.
    data, seed, command, settings
        Written into the rows.
    training_seconds
        Name to seconds, where known.
    notes
        Name to what all its rows say.
    sentence
        What the token maps show.
    progress
        Told tokenizers done, in all, and which one.

    Raises
    ------
    UserError
        There is no tokenizer or no text.
    """
    if not segmenters:
        raise UserError("no tokenizer to compare; name at least one")
    baseline = baseline or next(iter(segmenters))
    parallel, described = dict(parallel or {}), environment()
    kept = [text for text in texts if text]
    words = [word_spans(text) for text in kept]
    measured: dict[str, _Measured] = {}
    steps = len(segmenters) + (1 if repeats else 0)
    for place, (name, segmenter) in enumerate(segmenters.items()):
        progress(place, steps, name)
        measured[name] = _measure(segmenter, kept, words, parallel, reference, gold)
        if training_seconds and name in training_seconds:
            measured[name].add("training time", "s", False, training_seconds[name])
    if repeats:
        progress(len(segmenters), steps, "speed")
        _add_speeds(segmenters, measured, kept, repeats)
    progress(steps, steps, "done")
    rows: list[Result | Figure] = []
    for name, own in measured.items():
        for number in own.numbers:
            others = {n: v for n, m in measured.items() if n != name and (v := m.value(number.metric)) is not None}
            rows.append(
                Result(
                    method=name,
                    job="segment",
                    metric=number.metric,
                    value=number.value,
                    unit=number.unit,
                    higher_is_better=number.higher,
                    baseline={baseline: others.pop(baseline)} if baseline in others else {},
                    peers=others if name in _papers() else {},
                    interval=number.interval,
                    n=number.n,
                    data=data,
                    seed=seed,
                    settings=dict(settings or {}),
                    command=command,
                    environment=described,
                    note="; ".join(filter(None, [number.note, (notes or {}).get(name)])),
                )
            )
    return rows + _figures(segmenters, measured, sentence, data, described)


def _papers() -> set[str]:
    return {method.name for method in catalog.methods("segment", role="paper")}


def _measure(
    segmenter: Segmenter,
    texts: Sequence[str],
    words: Sequence[Any],
    parallel: Mapping[str, Parallel],
    reference: str,
    gold: Mapping[str, Sequence[str]] | None,
) -> _Measured:
    encoded = encode_corpus(segmenter, texts)
    counts, documents = encoded.counts, len(encoded.size)
    total_words = sum(map(len, words))
    own = _Measured()
    own.add("bytes per token", "B", True, encoded.bytes_per_token, n=documents)
    if total_words:
        own.add("tokens per word", "tokens", False, len(encoded.ids) / total_words, n=total_words)
        if encoded.ends is not None:
            own.add("words cut", "share", False, continued_share(encoded.ends, encoded.tokens, words), n=total_words)
    own.add("Renyi efficiency (a=2.5)", "share", True, renyi_efficiency(counts), n=len(encoded.ids))
    own.add("Shannon efficiency", "share", True, renyi_efficiency(counts, alpha=1), n=len(encoded.ids))
    own.add("vocabulary size", "entries", False, encoded.vocab_size)
    own.add("vocabulary used", "share", True, encoded.used / encoded.vocab_size, n=encoded.vocab_size)
    own.add("dead entries", "entries", False, encoded.vocab_size - encoded.used, n=encoded.vocab_size)
    bits = description_length(counts, encoded.lengths)
    if bits is not None:
        own.add("description length", "bits/B", False, bits / int(encoded.size.sum()), n=documents)
    loss = segmenter.loss if isinstance(segmenter, Foreign) else ""
    note = f"lossy: {loss}" if loss else ""
    own.add("documents that come back", "share", True, float(encoded.exact.mean()), n=documents, note=note)
    for name, pairs in parallel.items():
        found = own.parities[name] = parity(segmenter, pairs, reference)
        label = f", {name}" if len(parallel) > 1 or name else ""
        own.add(f"premium, mean{label}", "x", False, found.mean, n=len(pairs))
        own.add(f"premium, worst{label}", "x", False, found.worst, n=len(pairs))
        own.add(f"premium, Gini{label}", "share", False, found.gini, n=len(pairs))
    scored = morphology(segmenter, gold) if gold else None
    if scored is not None:
        own.add("morphology F1", "share", True, scored.f1_interval, n=scored.words)
        own.add("morphology precision", "share", True, scored.precision, n=scored.words)
        own.add("morphology recall", "share", True, scored.recall, n=scored.words)
        own.add("words cut as gold", "share", True, scored.exact, n=scored.words)
    return own


def _add_speeds(
    segmenters: Mapping[str, Segmenter], measured: Mapping[str, _Measured], texts: Sequence[str], repeats: int
) -> None:
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= TIMED:
            break
    note = f"one thread, caches warm, {size} characters, interleaved"
    for name, rate in speed(segmenters, held, repeats=repeats).items():
        measured[name].add("encode", "MB/s", True, rate.encode, n=repeats, note=note)
        measured[name].add("decode", "MB/s", True, rate.decode, n=repeats, note=note)


# -- figures -------------------------------------------------------------------------------------------------------


def _figures(
    segmenters: Mapping[str, Segmenter],
    measured: Mapping[str, _Measured],
    sentence: str,
    data: str,
    described: dict[str, Any],
) -> list[Result | Figure]:
    figures: list[Result | Figure] = [
        Figure(
            job="segment",
            name="length-and-spread",
            title="Bytes per token against Renyi efficiency",
            caption=f"Longer tokens shorten text, an even spread uses the vocabulary; up and right is better. {data}",
            kind="curve",
            data={
                "x_label": "bytes per token",
                "y_label": "Renyi efficiency (a=2.5)",
                "series": [
                    {"name": n, "x": [m.value("bytes per token")], "y": [m.value("Renyi efficiency (a=2.5)")]}
                    for n, m in measured.items()
                ],
            },
            environment=described,
        )
    ]
    for name in next(iter(measured.values())).parities:
        languages = list(next(iter(measured.values())).parities[name].premium)
        figures.append(
            Figure(
                job="segment",
                name=f"premium-{_slug(name)}",
                title=f"Token premium per language{', ' + name if name else ''}",
                caption="Tokens over those of the reference language for the same content; 1 is parity.",
                kind="bars",
                data={
                    "y_label": "tokens, reference = 1",
                    "categories": languages,
                    "series": [
                        {"name": n, "y": [m.parities[name].premium[language] for language in languages]}
                        for n, m in measured.items()
                    ],
                },
                environment=described,
            )
        )
    for name, segmenter in segmenters.items():
        if tokens := _token_map(segmenter, sentence):
            figures.append(
                Figure(
                    job="segment",
                    name=f"token-map-{_slug(name)}",
                    title=f"Tokens of {name}",
                    caption=f"{len(tokens)} tokens. A dot stands for a byte that is only a part of a character.",
                    kind="token-map",
                    data={"tokens": tokens},
                    method=name if name in _papers() else "",
                    environment=described,
                )
            )
    return figures


def _slug(name: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in name.lower()).strip("-") or "all"


def _token_map(segmenter: Segmenter, sentence: str) -> list[dict[str, Any]]:
    encoded = encode_corpus(segmenter, [sentence])
    if encoded.ends is None:
        return []
    raw, ends = sentence.encode(), encoded.ends.tolist()
    begins = {begin for begin, _ in word_spans(sentence).tolist()}
    tokens = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        inside = sum(begin <= place < end for place in begins)
        group = "several words" if inside > 1 else "begins a word" if inside else "goes on"
        text = raw[begin:end].decode("utf-8", errors="replace").replace("\ufffd", "·")
        tokens.append({"text": text, "value": None, "group": group})
    return tokens


# -- the job's data --------------------------------------------------------------------------------------------------

ISO = {
    "ara": "ar",
    "deu": "de",
    "ell": "el",
    "spa": "es",
    "hin": "hi",
    "ron": "ro",
    "rus": "ru",
    "tha": "th",
    "tur": "tr",
    "vie": "vi",
    "cmn": "zh",
}
"""XQuAD's languages in Tatoeba."""


@dataclass(frozen=True)
class Mix:
    """Text to train on and held-out text, in twelve languages.

    Parameters
    ----------
    train
        WikiText-2 valid (English), the first half of XQuAD's paragraphs, half of the Tatoeba sentences of the same
        languages; parallel ``dev`` text is in it.
    held
        The head of WikiText-2 test, and the other half of the paragraphs.
    parallel
        The other half of the paragraphs, and the Tatoeba sentences of languages that were not trained on.
    gold
        Morphemes of English and Spanish words, which were trained on.
    """

    train: ByLanguage
    held: list[str]
    parallel: dict[str, Parallel]
    gold: dict[str, list[str]]
    name: str = "WikiText-2 + XQuAD + Tatoeba, held out"


def open_mix(limit: int | None = None) -> Mix:
    """Read the job's texts.

    Parameters
    ----------
    limit
        Lines of WikiText, and a fraction of the rest in proportion; None reads all.

    Raises
    ------
    UserError
        `limit` is not positive, or a file is not there.
    """
    if limit is not None and limit < 100:
        raise UserError(f"limit={limit}; train on at least 100 lines")
    valid, test = (_lines(part, limit) for part in ("train", "held-out"))
    share = 1.0 if limit is None else min(1.0, limit / 3000)
    paragraphs = [paragraph.fields for paragraph in texts("xquad", "all").documents()]
    numbers = sorted({row["par"] for row in paragraphs})
    half = len(numbers) // 2
    seen, unseen = (set(part[: max(4, int(half * share))]) for part in (numbers[:half], numbers[half:]))
    dev_numbers = set(sorted(seen)[:24])
    train: dict[str, list[str]] = {"en": list(valid)}
    dev: dict[str, list[str]] = {}
    new: dict[str, list[str]] = {}
    for row in sorted(paragraphs, key=lambda row: (row["lang"] != "en", row["lang"], row["par"])):
        if row["par"] in seen:
            train.setdefault(row["lang"], []).append(row["context"])
            if row["par"] in dev_numbers:
                dev.setdefault(row["lang"], []).append(row["context"])
        elif row["par"] in unseen:
            new.setdefault(row["lang"], []).append(row["context"])
    foreign: dict[str, tuple[list[str], list[str]]] = {}
    for row in (sentence.fields for sentence in texts("tatoeba", "all").documents()):
        if row["lang"] in ISO:
            if row["i"] % 2 == 0 and row["i"] < 1000 * share:
                train[ISO[row["lang"]]].append(row["text"])
        elif row["i"] < 1000 * share:
            own, same = foreign.setdefault(row["lang"], ([], []))
            own.append(row["text"])
            same.append(row["eng"])
    return Mix(
        train=ByLanguage(train, dev=dev),
        held=test + [text for own in new.values() for text in own],
        parallel={
            "XQuAD": {lang: (own, new["en"]) for lang, own in new.items() if lang != "en"},
            "languages not trained on": foreign,
        },
        gold=gold_words(word.fields for word in texts("morph-segmentation", "all", domain=("eng", "spa")).documents()),
    )


def _lines(split: Split, limit: int | None) -> list[str]:
    return list(islice((line for line in texts("wikitext2", split) if line.strip()), limit))


# -- training the arms -----------------------------------------------------------------------------------------------


def train_arms(
    specs: Sequence[str], mix: Mix, vocab_size: int, work: Path, progress: Report = silent
) -> tuple[dict[str, Segmenter], dict[str, float]]:
    """Train every spec on the same text; `work` keeps those that are done, so that a killed run goes on.

    Returns
    -------
    tuple
        Name to segmenter, and name to seconds of training.
    """
    trainers = {spec: _trainer(spec, vocab_size) for spec in specs}
    made: dict[str, Segmenter] = {}
    seconds: dict[str, float] = {}
    log = work / "seconds.jsonl"
    known = {row["spec"]: row["seconds"] for row in read_jsonl(log)} if log.exists() else {}
    for place, (spec, trainer) in enumerate(trainers.items()):
        progress(place, len(trainers), f"train {spec}")
        folder = work / _slug(spec)
        if spec in known and folder.exists():
            made[spec], seconds[spec] = load(folder), known[spec]
            continue
        made[spec], seconds[spec] = timed(_training(trainer, mix.train, work / f"{_slug(spec)}-work"))
        made[spec].save(folder)
        append_line(log, json.dumps({"spec": spec, "seconds": seconds[spec]}))
    return made, seconds


def _trainer(spec: str, vocab_size: int) -> Any:
    return catalog.build(spec, "segment", vocab_size=vocab_size, min_count=MIN_COUNT)


def _training(trainer: Any, texts: ByLanguage, work: Path) -> Callable[[], Segmenter]:
    return lambda: trainer.train(texts, work=work)


def _rivals(bpe: Segmenter | None, mix: Mix, vocab_size: int) -> tuple[dict[str, Segmenter], dict[str, float]]:
    """Make what stands beside: tiktoken with BPE's merges, sentencepiece as it comes, the embedded tokenizer."""
    found: dict[str, Segmenter] = {}
    seconds: dict[str, float] = {}
    if isinstance(bpe, HFSegmenter):
        found["tiktoken (bpe's merges)"] = _as_tiktoken(bpe)
    for kind in ("bpe", "unigram"):
        name = f"sentencepiece {kind}"
        made, spent = timed(lambda kind=kind: _train_sentencepiece(kind, mix.train, vocab_size))
        if made is not None:
            found[name], seconds[name] = made, spent
    with suppress(UserError):  # the embedded model is an extra of its own
        found["smollm2 (given)"] = open_segmenter("smollm2")
    return found, seconds


def _as_tiktoken(bpe: HFSegmenter) -> Tiktoken:
    try:
        import tiktoken
    except ModuleNotFoundError:
        raise missing_extra("tiktoken", "segment") from None
    ranks = {token: number for number, token in enumerate(bpe.tokens())}
    return Tiktoken(tiktoken.Encoding("bpe", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={}))


def _train_sentencepiece(kind: str, texts: ByLanguage, vocab_size: int) -> SentencePiece | None:
    """Train with the library's settings and byte fallback; None where its alphabet does not fit into `vocab_size`."""
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise missing_extra("sentencepiece", "segment") from None
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=0.9995,
            unk_piece=UNKNOWN,
            max_sentence_length=1 << 24,  # it would pass over longer ones, which some scripts have and others not
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if "Vocabulary size is smaller than required_chars" in str(error):
            return None
        raise
    return SentencePiece(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()))


def _sentences(texts: ByLanguage) -> Iterator[str]:
    for text in texts:
        yield from (line for line in text.splitlines() if line.strip())


# -- the front of the bench ------------------------------------------------------------------------------------------


def run(
    methods: Sequence[str] = (),
    *,
    seed: int = 0,
    limit: int | None = None,
    vocab_size: int | None = None,
    command: str = "mintage bench segment",
    progress: Report = silent,
) -> list[Result | Figure]:
    """Compare all tokenizers, or run methods' claim checks.

    Parameters
    ----------
    methods
        Nothing: every ready method and baseline. Names of papers: their claim checks. Names or specs of baselines, or
        specs with settings: these beside `BASELINE`.
    seed
        Of trainers that have one, and of the claim checks.
    limit
        Lines of English text trained and measured on, the rest in proportion; in claim checks what they say.
    vocab_size
        Entries of every trained tokenizer, default `VOCAB_SIZE`; claim checks have their own.
    command
        Written into the rows.
    progress
        Told how far it is.

    Raises
    ------
    UserError
        Unknown methods, settings out of range, or data that is not there.
    """
    papers = _papers()
    if methods and all(name in papers for name in methods):
        if vocab_size is not None:
            raise UserError("--vocab-size is for comparing (mintage bench segment); a claim check has its own sizes")
        checks = [_check(name) for name in methods]
        return [row for check in checks for row in check(seed=seed, limit=limit, command=command, progress=progress)]
    ready = [m.name for m in catalog.methods("segment") if m.status == "ready"]
    specs = list(dict.fromkeys([BASELINE, *(methods or ready)]))
    size = VOCAB_SIZE if vocab_size is None else vocab_size
    trainers = {spec: _trainer(spec, size) for spec in specs}  # a bad one is told before anything is read
    mix = open_mix(limit)
    work = _work_folder(specs, size, limit)
    segmenters, seconds = train_arms(specs, mix, size, work, progress)
    if not methods:
        progress(0, 1, "train the rivals")
        others, theirs = _rivals(segmenters.get(BASELINE), mix, size)
        segmenters, seconds = {**segmenters, **others}, {**seconds, **theirs}
    rows = compare(
        segmenters,
        mix.held,
        parallel=mix.parallel,
        gold=mix.gold,
        baseline=BASELINE,
        data=mix.name,
        seed=seed,
        command=command,
        settings={"vocab_size": size, **({"limit": limit} if limit else {})},
        training_seconds=seconds,
        notes={spec: f"min_count={t.min_count}" for spec, t in trainers.items() if hasattr(t, "min_count")},
        progress=progress,
    )
    shutil.rmtree(work, ignore_errors=True)
    return rows


def _check(name: str) -> Callable[..., list[Result | Figure]]:
    module = f"mintage.studies.{name.replace('-', '_')}"
    catalog.find(name, "segment").load()  # a method that is not built yet says so
    try:
        return importlib.import_module(module).check
    except ModuleNotFoundError as error:
        if error.name not in (module, "mintage.studies"):
            raise
        raise UserError(f"{name} has no claim check yet; compare it with: mintage bench segment {name}:") from None


def _work_folder(specs: Sequence[str], vocab_size: int, limit: int | None) -> Path:
    """Return where a killed run keeps its tokenizers: another one for other arms, sizes or code."""
    key = json.dumps([list(specs), vocab_size, limit, fingerprint()])
    return Path(".mintage") / f"bench-segment-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

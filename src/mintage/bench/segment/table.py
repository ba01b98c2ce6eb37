"""One table over tokenizers of any make on the same text: length, spread, parity, morphology, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mintage import catalog
from mintage.errors import UserError
from mintage.measure import Figure, Interval, Result
from mintage.measure.environment import environment
from mintage.measure.figure import bars, curve
from mintage.progress import Progress, silent
from mintage.segment.contract import Segmenter
from mintage.segment.core.adapters import Foreign
from mintage.segment.core.metrics import (
    Parallel,
    Parity,
    continued_share,
    description_length,
    encode_corpus,
    encoding_speed,
    morphology,
    parity,
    renyi_efficiency,
    word_spans,
)

__all__ = ["SENTENCE", "TokenizerTable"]

TIMED = 300_000
"""Characters on which speed is measured."""

SENTENCE = "The lighthouse keepers weren't unbelievably careful in 2019; Wasserstraßen und 潮汐 по-русски."
"""What the token maps show."""


@dataclass(frozen=True, kw_only=True)
class TokenizerTable:
    """Tokenizers to measure on the same text.

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
    training_seconds
        Name to seconds, where known.
    notes
        Name to what all its rows say.
    said
        What all rows say: data, seed, settings, command.

    Raises
    ------
    UserError
        There is no tokenizer, or no text.
    """

    segmenters: Mapping[str, Segmenter]
    texts: Sequence[str]
    parallel: Mapping[str, Parallel] = field(default_factory=dict)
    reference: str = "en"
    gold: Mapping[str, Sequence[str]] | None = None
    baseline: str = ""
    repeats: int = 5
    training_seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.segmenters:
            raise UserError("no tokenizer to compare; name at least one")
        if not any(self.texts):
            raise UserError("the text is empty; pass some to measure on")

    def rows(self, progress: Progress = silent) -> list[Result | Figure]:
        """Measure.

        Parameters
        ----------
        progress
            ``progress(stage, done, of)``.

        Raises
        ------
        UserError
            A tokenizer cannot be measured on the texts.
        """
        baseline, papers = self.baseline or next(iter(self.segmenters)), _papers()
        described, measured = environment(), self._measured(progress)
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
                        peers=others if name in papers else {},
                        interval=number.interval,
                        n=number.n,
                        environment=described,
                        note="; ".join(filter(None, [number.note, self.notes.get(name)])),
                        **self.said,
                    )
                )
        return rows + _figures(self.segmenters, measured, self.said.get("data", ""), described)

    def _measured(self, progress: Progress) -> dict[str, _Measured]:
        texts = [text for text in self.texts if text]
        words = [word_spans(text) for text in texts]
        measured: dict[str, _Measured] = {}
        for done, (name, segmenter) in enumerate(self.segmenters.items()):
            progress("measure", done, len(self.segmenters))
            measured[name] = _measure(segmenter, texts, words, self.parallel, self.reference, self.gold)
            if name in self.training_seconds:
                measured[name].add("training time", "s", False, self.training_seconds[name])
        progress("measure", len(self.segmenters), len(self.segmenters))
        if self.repeats:
            progress("time", 0, 1)
            _add_speeds(self.segmenters, measured, texts, self.repeats)
            progress("time", 1, 1)
        return measured


# -- the numbers of one tokenizer ----------------------------------------------------------------------------------


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
    for name, rate in encoding_speed(segmenters, held, repeats=repeats).items():
        measured[name].add("encode", "MB/s", True, rate.encode, n=repeats, note=note)
        measured[name].add("decode", "MB/s", True, rate.decode, n=repeats, note=note)


# -- figures -------------------------------------------------------------------------------------------------------


def _figures(
    segmenters: Mapping[str, Segmenter], measured: Mapping[str, _Measured], data: str, described: dict[str, Any]
) -> list[Result | Figure]:
    figures: list[Result | Figure] = [
        Figure(
            job="segment",
            name="length-and-spread",
            title="Bytes per token against Renyi efficiency",
            caption=f"Longer tokens shorten text, an even spread uses the vocabulary; up and right is better. {data}",
            **curve(
                "bytes per token",
                "Renyi efficiency (a=2.5)",
                {n: [(m.value("bytes per token"), m.value("Renyi efficiency (a=2.5)"))] for n, m in measured.items()},
            ),
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
                **bars(
                    "tokens, reference = 1",
                    languages,
                    {n: [m.parities[name].premium[one] for one in languages] for n, m in measured.items()},
                ),
                environment=described,
            )
        )
    for name, segmenter in segmenters.items():
        if tokens := _token_map(segmenter, SENTENCE):
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

"""Texts read in merged tokens: nats per word in the original vocabulary, and seconds to read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mintage.bench.retrofit.measures import documents
from mintage.data import Document, texts
from mintage.errors import UserError
from mintage.measure import Interval, bootstrap, paired_time, timed
from mintage.measure.study import Column, Finding, Measure, Run, Statistic, below
from mintage.models import CausalLM
from mintage.retrofit.core.dynamic_tokenizer import DynamicBatch, DynamicTokenizer
from mintage.retrofit.core.embeddings import Parts, PartsTransfer, Provider
from mintage.retrofit.core.merging import Merging
from mintage.retrofit.core.providers import make_provider
from mintage.retrofit.core.words import composed_rows, word_nll
from mintage.retrofit.dynamic_tokens import DynamicTokens

__all__ = [
    "NATS_PER_WORD",
    "SHARES",
    "TOKENS_GONE",
    "Reader",
    "Readers",
    "measured_reading",
    "measured_words",
    "over_texts",
    "per_text",
    "random_merges",
    "ratio_of_sums",
    "row_of_reading",
]

SHARES = (0.25, 0.5, 0.75, 1.0)


class Reader(NamedTuple):
    """Who makes embeddings, the share of the possible merges, and whether they are drawn at random."""

    provider: str
    share: float
    at_random: bool = False


class Readers:
    """The model, its merger, and who may make embeddings."""

    def __init__(self, lm: CausalLM) -> None:
        self.lm, self.merger = lm, DynamicTokenizer(lm.tokenizer)
        self.source = Parts(lm.model, self.merger.vocabulary)
        self.providers: dict[str, Provider] = {rule: PartsTransfer(rule=rule) for rule in ("mean", "sum", "last")}
        for name in ("composer", "zett"):
            try:
                self.providers[name] = make_provider(name, self.source)
            except UserError:  # none was trained for this model
                continue

    @cached_property
    def trained(self) -> str:
        """The best provider that is there: the composer, if one is."""
        return next((name for name in ("composer", "zett") if name in self.providers), "mean")

    @property
    def whole(self) -> str:
        """The arm of the best provider that reads every word in one token."""
        return f"{self.trained}, 1"

    def arms(self) -> dict[str, Reader]:
        """Return the original tokens, every provider by share of the merges, and merges drawn at random."""
        arms = {"original": Reader("mean", 0.0)}
        for name in self.providers:
            shares = (0.5, 1.0) if name in ("sum", "last") else SHARES
            arms |= {f"{name}, {share:g}": Reader(name, share) for share in shares}
        return arms | {f"{self.trained} at random, {s:g}": Reader(self.trained, s, True) for s in SHARES if s < 1}


def random_merges(merger: DynamicTokenizer, ids: Sequence[int], length: int, seed: int) -> DynamicBatch:
    """Merge pairs drawn at random, wherever they stand, until a text is as short as asked for."""
    symbols, sequences, _ = merger.symbols([ids], merger.valid)
    merging, draw = Merging(sequences, symbols.join), np.random.default_rng(seed)
    while merging.lengths[-1] > length and (pairs := merging.pairs()):
        merging.merge(pairs[draw.integers(len(pairs))])
    names = symbols.surfaces
    return merger.merge_ids([ids], merges=[(names[a], names[b]) for a, b in merging.merges])


class _Text:
    """A text's tokens, merges of it drawn at random by share, and the words that start a token in every arm."""

    def __init__(self, readers: Readers, text: str, kind: int, seed: int) -> None:
        self.kind = kind
        merger, lm = readers.merger, readers.lm
        opening = [] if lm.opening is None else [lm.opening]
        self.ids = ids = [*opening, *merger.ids([text], special_tokens=False)[0]]
        self.drawn = {
            share: random_merges(merger, ids, merger.merge_ids([ids], reduction=share).length, seed)
            for share in SHARES
            if share < 1
        }
        words = set(merger.merge_ids([ids], reduction=1.0).starts[0][1:])
        self.words = sorted(words.intersection(*(batch.starts[0] for batch in self.drawn.values())))


def measured_words(kinds: Sequence[str], number: int, *, size: int, arms: Sequence[str]) -> Measure:
    """Make the measure of texts in merged tokens.

    Its columns are ``nats`` of so many ``words``, ``length`` of ``base`` tokens, and the number of the text's ``kind``.

    Parameters
    ----------
    kinds, number, size
        Of the texts, see `documents`.
    arms
        Names of those that are a `Reader`.
    """

    def units(run: Run) -> Mapping[str, Document]:
        found = [document for kind in kinds for document in documents(kind, number, size=size, seed=run.seed)]
        return {f"{document.domain} {document.name}": document for document in found}

    def measure(run: Run, arm: Reader, text: _Text) -> dict[str, float]:
        readers: Readers = run.subject
        batch = text.drawn[arm.share] if arm.at_random else readers.merger.merge_ids([text.ids], reduction=arm.share)
        embeds = None
        if arm.share:
            embeds = composed_rows(readers.source, readers.providers[arm.provider], batch)[batch.tokens[0]]
        nats, count = word_nll(readers.lm, text.ids, text.words, batch.starts[0], embeds)
        return {"nats": nats, "words": count, "length": batch.length, "base": len(text.ids), "kind": text.kind}

    def read(run: Run, document: Document) -> _Text:
        return _Text(run.subject, document.text, kinds.index(document.domain), run.seed)

    return Measure(name="words", units=units, of=measure, arms=arms, prepare=read)


def over_texts(number: int, statistic: Callable[[NDArray[np.intp]], Column]) -> Interval:
    """Bootstrap what is a function of which texts are drawn, [..., texts] positions to [...] values."""
    return bootstrap(np.arange(number), lambda positions, axis: statistic(positions.astype(int)))


def ratio_of_sums(top: Column, bottom: Column) -> Interval:
    """Bootstrap the ratio of two totals over texts; other than in `bootstrap_ratio`, they may be negative."""
    return over_texts(len(top), lambda i: top[i].sum(-1) / bottom[i].sum(-1))


NATS_PER_WORD = Statistic(
    "nats",
    False,
    lambda one, other: ratio_of_sums(one[0] - other[0], other[1]),
    lambda one: ratio_of_sums(one[0], one[1]),
)
"""Of nats and words, stacked: nats per word, or what one reading costs more than another."""

TOKENS_GONE = Statistic(
    "share",
    True,
    lambda one, other: ratio_of_sums(other[0] - one[0], other[0]),
    lambda one: ratio_of_sums(one[1] - one[0], one[1]),
)
"""Of tokens read and original ones, stacked: the share that is gone."""


def per_text(run: Run, top: str, bottom: str, *, left: bool = False) -> dict[str, float]:
    """Return the ratio of two columns' totals by arm, or what is left of 1."""
    found = {n: float(c[top].sum() / c[bottom].sum()) for n, c in run.columns.items() if top in c}
    return {name: 1 - ratio for name, ratio in found.items()} if left else found


def measured_reading(length: int, rounds: int, arm: str, *, warmup: bool) -> Measure:
    """Make the measure of seconds to read the beginning of a German text, as it is and merged.

    Its columns are ``plain``, ``merged`` and ``alone`` (merged, without merging and making embeddings), a number per
    round, and ``tokens`` (merged), each with the length.

    Parameters
    ----------
    length
        Original tokens.
    rounds
        Paired timings.
    arm
        Name of the reader.
    warmup
        Whether it is the first.
    """

    @torch.inference_mode()
    def measure(run: Run, reader: Reader, _: Any) -> Mapping[str, Any]:
        readers: Readers = run.subject
        model: Any = readers.lm.model
        row, extra = german(readers)[:length], []
        dynamic = DynamicTokens(reduction=reader.share, provider=reader.provider, cache=8192)(readers.lm)

        def plain() -> int:
            model(torch.tensor([row]), use_cache=True, logits_to_keep=1)
            return length

        def merged() -> int:
            dynamic.table.forget()
            before = dynamic.table.seconds
            batch, seconds = timed(lambda: dynamic.merger.merge_ids([row], reduction=reader.share))
            dynamic.prefill(batch)
            extra.append(seconds + dynamic.table.seconds - before)
            return batch.length

        took = paired_time({"plain": plain, "merged": merged}, repeats=rounds, warmup=int(warmup))
        whole = took.pairs.values("merged")
        columns = {
            "plain": took.pairs.values("plain"),
            "merged": whole,
            "alone": whole - np.array(extra[-rounds:]),
            "tokens": took.outputs["merged"],
        }
        return {f"{name}, {length}": value for name, value in columns.items()}

    return Measure(name=f"reading {length}", units=lambda run: {length: length}, of=measure, arms=(arm,))


def row_of_reading(run: Run, arm: str, length: int) -> Finding:
    """Return seconds to read merged tokens over those to read the original ones; 2,048 are claimed to take fewer."""
    plain, merged, alone = (run.column(arm, f"{name}, {length}") for name in ("plain", "merged", "alone"))
    tokens = int(run.column(arm, f"tokens, {length}")[0])
    claim = "reading 2,048 tokens of German merged takes less time, merging and embeddings included"
    return Finding(
        metric=f"seconds to read {length} tokens merged over those to read them as they are",
        value=bootstrap(merged / plain, np.median),
        unit="x",
        more_is_better=False,
        n=len(plain),
        baseline={"as they are": 1.0},
        peers={"without merging and embeddings": float(np.median(alone / plain))},
        claim=claim if length == 2048 else "",
        holds=below(1) if length == 2048 else None,
        settings={"length": length, "share": 1.0, "provider": run.subject.trained},
        data="XQuAD, German, one text",
        note=f"{tokens} merged tokens; median seconds: as they are {np.median(plain):.2f}, merged "
        f"{np.median(merged):.2f}, of which the model {np.median(alone):.2f}",
    )


def german(readers: Readers) -> list[int]:
    """Return the original tokens of all that XQuAD has in German, up to 40,000 characters."""
    found, read = [], 0
    for text in texts("xquad", "held-out", domain="de"):
        if read >= 40_000:
            break
        found.append(text)
        read += len(text)
    return readers.merger.ids([" ".join(found)], special_tokens=False)[0]

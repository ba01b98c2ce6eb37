"""Measure on the same texts what gives a model other tokens: bits per byte, positions read per byte, seconds.

Measured is every method that gives the probability of a text: models over bytes (`ByteSampler`), and what makes
embeddings (`EmbeddingTransfer`), all for one tokenizer of many languages and code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer

from mintage import catalog
from mintage.bench.contract import Asked, Bench
from mintage.bench.retrofit.measures import Bits, bits_of, documents
from mintage.bench.retrofit.transfers import moved, train_bpe
from mintage.bench.run import sources_of
from mintage.errors import UserError
from mintage.measure import Figure, Result, bootstrap_ratio, timed
from mintage.measure.environment import environment
from mintage.measure.memo import Memo
from mintage.measure.timing import interleaved
from mintage.models import EMBEDDED, CausalLM, load_causal_lm
from mintage.options import option, settings_of
from mintage.progress import Note
from mintage.retrofit.contract import ByteSampler
from mintage.retrofit.core.embeddings import EmbeddingTransfer
from mintage.retrofit.training.texts import texts_cut_small

__all__ = ["PLAIN", "RetrofitBench"]

Arm = Callable[[str], Bits]

PLAIN = "plain"
"""The model as it is."""

_METRICS = (
    ("bits", "bits per byte", "bits"),
    ("tokens", "positions read per byte", "tokens"),
    ("seconds", "seconds per kilobyte", "s"),
)


@dataclass(frozen=True, kw_only=True)
class RetrofitBench(Bench):
    """Compare what gives a model other tokens, by bits per byte, positions read, and seconds.

    Without names: the papers' methods that give the probability of a text, and all that makes embeddings. Embeddings
    are made for one tokenizer, learnt from many languages and code.

    [dim]Examples[/dim]

      mintage bench retrofit --texts 1 --kinds de,code

      mintage bench retrofit exact-bytes fvt omp:sparsity=16
    """

    job: ClassVar[str] = "retrofit"
    shorter = "--texts 1"

    model: str = option(EMBEDDED, "smollm2 (embedded), a folder, or a hub id; float32.")
    kinds: tuple[str, ...] = option(("code", "prose", "de", "ru", "tr", "zh"), "Kinds of text.")
    texts: int = option(4, "Texts of each kind.", least=1)
    size: int = option(512, "Bytes of a text, at most.", least=4)
    vocabulary: int = option(16_000, "Tokens of the one tokenizer that embeddings are made for.", least=257)

    def _measure(self, specs: list[str], asked: Asked) -> list[Result | Figure]:
        """Measure all arms text by text, in turn."""
        usual = not specs
        rows = {spec: catalog.find(catalog.parse_spec(spec)[0], "retrofit") for spec in specs or _usual(asked.note)}
        classes = {spec: _measurable(row) for spec, row in rows.items()}
        some = {kind: documents(kind, self.texts, size=self.size, seed=self.seed) for kind in self.kinds}
        lm = load_causal_lm(self.model, dtype="float32")
        arms: dict[str, Arm] = {PLAIN: partial(bits_of, lm, window=self.size)}
        for spec in rows:  # models are moved before anything is timed
            try:
                arms[spec] = self._arm(lm, spec, classes[spec])
            except UserError as error:
                if not usual:
                    raise
                asked.note(f"{spec} is left out: {error}")
        sources = [file for kind in classes.values() for file in sources_of(kind)]
        memo = Memo(asked.work, {**settings_of(self), "arms": list(arms)}, sources)
        common = {"job": "retrofit", "model": self.model, "seed": self.seed, "command": asked.command}
        common |= {"environment": environment()}
        results: list[Result | Figure] = []
        for kind in self.kinds:
            stage, found = f"texts, {kind}", {spec: [] for spec in arms}
            total = len(some[kind]) * len(arms)
            for done, (number, spec) in enumerate(interleaved(range(len(some[kind])), arms)):
                asked.progress(stage, done, total)
                text = some[kind][number]
                measure = partial(_measure, arms[spec], text.text)
                found[spec].append(memo(f"{kind} | {spec} | {text.name}", measure))
            asked.progress(stage, total, total)
            results += _rows(found, kind, self.size, common)
        memo.delete()
        return results

    def _arm(self, lm: CausalLM, spec: str, kind: type) -> Arm:
        """Return what gives the bits of a text by a method."""
        if issubclass(kind, EmbeddingTransfer):
            learnt, tokenizer = _target(self.vocabulary, self.seed)
            return partial(bits_of, moved(lm, tokenizer, catalog.build(spec, "retrofit"), learnt), window=self.size)
        plain: Any = kind.of(lm)
        fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        sampler: ByteSampler = catalog.build(spec, "retrofit", **fields)
        tokenizer: Any = lm.tokenizer

        def bits(text: str) -> Bits:
            raw, ids = text.encode(), tokenizer(text, add_special_tokens=False)["input_ids"]
            return Bits(-sampler.logprob(raw) / float(np.log(2)), len(raw), len(ids))

        return bits


def _measurable(row: catalog.Method) -> type:
    """Return the class of a method that gives the probability of a text."""
    kind = row.load()
    if not issubclass(kind, EmbeddingTransfer | ByteSampler):
        own = f"; its own check is: mintage bench {row.name}" if row.study else ""
        raise UserError(f"{row.name} gives no probability of a text to compare{own}")
    return kind


def _usual(note: Note) -> list[str]:
    """Return the papers' methods that can be measured here, and all that makes embeddings."""
    found = []
    for row in catalog.methods("retrofit"):
        try:
            kind = row.load()
        except UserError as error:  # not built yet, or a broken plug-in
            note(str(error))
            continue
        if issubclass(kind, EmbeddingTransfer) or (row.role == "paper" and issubclass(kind, ByteSampler)):
            found.append(row.name)
    return found


@lru_cache(maxsize=1)
def _target(vocabulary: int, seed: int) -> tuple[list[str], Tokenizer]:
    """Texts of many languages and code, and the tokenizer that is learnt from them."""
    learnt = texts_cut_small(seed)
    return learnt, train_bpe(learnt, vocabulary)


def _measure(arm: Arm, text: str) -> dict[str, float]:
    bits, seconds = timed(lambda: arm(text))
    return {"bits": bits.bits, "tokens": bits.tokens, "bytes": bits.bytes, "seconds": 1000 * seconds}


def _rows(
    found: Mapping[str, Sequence[Mapping[str, float]]], kind: str, size: int, common: Mapping[str, Any]
) -> list[Result | Figure]:
    """Make the rows of one kind of text: each method beside the model as it is."""
    length = [row["bytes"] for row in found[PLAIN]]
    rows: list[Result | Figure] = []
    for of, metric, unit in _METRICS:
        intervals = {spec: bootstrap_ratio([row[of] for row in some], length) for spec, some in found.items()}
        plain = intervals.pop(PLAIN).value
        for spec, interval in intervals.items():
            method, settings = catalog.parse_spec(spec)
            row = Result(
                method=method,
                metric=f"{metric}, {kind}",
                value=interval.value,
                unit=unit,
                higher_is_better=False,
                interval=interval.bounds,
                n=len(length),
                baseline={PLAIN: plain},
                data=f"{kind}, {len(length)} texts of at most {size} bytes, {int(np.sum(length))} bytes",
                settings={"run": "joint", **settings},
                **common,
            )
            rows.append(row)
    return rows

"""The joint comparison of cache policies: quality, bytes and milliseconds of each at the same share of the context.

Every arm reads the same tokens in the same process, in rotating order:

- perplexity of the next tokens, decoded one by one after the text was read and compressed;
- retrieval of needles, the question asked after compression or read with the context;
- bytes of storage, elements read per token, seconds to read the prompt, milliseconds per decoded token.

Perplexity alone flatters windows: retrieval decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mintage import catalog
from mintage.bench.contract import Asked, Bench
from mintage.bench.keep.figures import Place, decode_times, quality_by_room, survivor_maps
from mintage.bench.keep.inputs import NEEDLES
from mintage.bench.keep.measures import continuation_scores, needles
from mintage.errors import UserError
from mintage.keep.contract import Policy
from mintage.measure import Figure, Interval, Result, bootstrap, bootstrap_ratio
from mintage.measure.study import PERPLEXITY, Finding, Measure, Run, Study, below
from mintage.models import EMBEDDED, CausalLM, load_causal_lm
from mintage.options import DTYPES, option

__all__ = ["KeepBench", "KeepComparison", "fastest", "ready_policies"]

FULL = "full-cache"

DECODED = 64
"""Tokens scored and timed behind each text."""

RATIOS = {"cache size": "bytes", "elements read": "reads", "prefill time": "prefill", "decode time": "step"}
"""What is compared with the full cache, and its column."""

RETRIEVAL = {
    f"{needle} retrieval, question {kind}": (needle, kind == "inside")
    for needle in NEEDLES
    for kind in ("after", "inside")
}

METRICS = {"perplexity": "nll", **{metric: metric for metric in RETRIEVAL}, **RATIOS}
"""All metrics, and their columns."""

FINDABLE = 0.05
"""Retrieval lost at most, for a policy to count as keeping it."""


@dataclass(frozen=True, kw_only=True)
class KeepBench(Bench):
    """Compare cache policies on long texts: perplexity, needles found, bytes, milliseconds, all at the same room.

    Without names every ready policy that serves the model is measured, the full cache always among them.

    [dim]Examples[/dim]

      mintage bench keep --texts 2

      mintage bench keep snapkv:kernel=7 h2o --contexts 1024,4096 --room 4,16

    Next: [bold]mintage report[/bold]
    """

    job = "keep"
    shorter = "--texts 1 --room 4"

    model: str = option(EMBEDDED, "smollm2 (embedded), a folder, or a hub id.")
    contexts: tuple[int, ...] = option((1024,), "Tokens read before compression.", least=64)
    room: tuple[int, ...] = option((4, 16), "Room as a part of the context: 16 keeps, or reads, one in 16.", least=2)
    texts: int = option(4, "Texts, and twice as many questions of each kind, per context.", least=1)
    dtype: str = option("auto", DTYPES)
    device: str = option("cpu", "cpu, cuda, ...")

    def _measure(self, specs: list[str], asked: Asked) -> list[Result | Figure]:
        """What is not asked for by name and does not serve the model is left out, with the reason."""
        for spec in specs:
            catalog.build(spec, self.job)  # mistakes are told before a model loads
        return asked.study(KeepComparison(seed=self.seed, scale=self, specs=tuple(specs)))


@dataclass(frozen=True, kw_only=True)
class KeepComparison(Study):
    """The comparison as a study: an arm is a policy with room for one entry in so many of a context."""

    method = FULL
    job = "keep"

    scale: KeepBench
    specs: tuple[str, ...]
    """Asked for by name; none means all that is ready."""

    # -- who takes part --

    def subject(self, run: Run) -> CausalLM:
        """Load the model."""
        return load_causal_lm(self.scale.model, dtype=self.scale.dtype, device=self.scale.device, note=run.note)

    def _policies(self, run: Run) -> tuple[dict[str, Policy], dict[str, str]]:
        """Return the policies by spec, and why others are left out: only what nobody asked for by name may be."""
        found: dict[str, Policy] = {}
        left_out: dict[str, str] = {}
        for spec in dict.fromkeys((FULL, *(self.specs or ready_policies()))):
            try:
                policy = catalog.build(spec, self.job)
                policy(run.subject.model)
                found[spec] = policy
            except UserError as error:
                if self.specs:
                    raise
                left_out[spec] = str(error)
        return found, left_out

    def arms(self, run: Run) -> dict[str, Policy]:
        """Every policy at every length and room."""
        return {
            _arm(spec, place): policy.at(max(place.length // place.part, 2))
            for place in self.places
            for spec, policy in self._policies(run)[0].items()
        }

    @property
    def places(self) -> list[Place]:
        """Lengths and rooms."""
        return [Place(length, part) for length in self.scale.contexts for part in self.scale.room]

    def common(self, run: Run) -> dict[str, Any]:
        """What all rows say."""
        settings: dict[str, Any] = {
            "contexts": list(self.scale.contexts),
            "budgets": list(self.scale.room),
            "dtype": str(run.subject.model.dtype).removeprefix("torch."),
            "decoded": DECODED,
        }
        left_out = self._policies(run)[1]
        texts = self.scale.texts
        return {
            "model": self.scale.model,
            "data": f"long_docs (state_union, inaugural), {texts} texts; pass-keys and UUIDs in them, {2 * texts} each",
            "settings": settings | ({"left out": left_out} if left_out else {}),
        }

    # -- measuring --

    def measures(self, run: Run) -> Iterator[Measure]:
        """Continuations and both needles, asked after and inside, at every length."""
        for length in self.scale.contexts:
            arms = [name for name in run.arms if name.endswith(f"of {length} tokens")]
            yield continuation_scores(length, self.scale.texts, DECODED, name=f"decoding, {length} tokens", arms=arms)
            for metric, (needle, inside) in RETRIEVAL.items():
                yield needles(length, 2 * self.scale.texts, kinds=(needle,), inside=inside, column=metric, arms=arms)

    # -- rows --

    def rows(self, run: Run) -> Iterator[Finding]:
        """A row per place, policy and metric, and the verdict on speed."""
        specs = list(self._policies(run)[0])
        papers = {row.name for row in catalog.methods(self.job, role="paper")}
        for place in self.places:
            for spec in specs:
                method = spec.partition(":")[0]
                for metric in METRICS:
                    if spec == FULL and metric in RATIOS:
                        continue
                    interval, unit, more = interval_of(run, spec, place, metric)
                    others = {other: value_of(run, other, place, metric) for other in specs if other != spec}
                    full = others.pop(FULL, None)
                    yield Finding(
                        method=method,
                        metric=f"{metric} {place}",
                        value=interval,
                        unit=unit,
                        more_is_better=more,
                        n=len(run.column(_arm(spec, place), METRICS[metric])),
                        baseline={} if full is None else {FULL: full},
                        peers=others if method in papers else {},
                    )
        yield from fastest(run, specs, self.places)

    def figures(self, run: Run) -> Iterator[Figure]:
        """Quality and time against room, and where each policy's entries lie."""
        policies = self._policies(run)[0]
        value = partial(value_of, run)
        yield from quality_by_room(run, list(policies), self.places, value)
        yield decode_times(run, list(policies), self.places, lambda spec, place: run.column(_arm(spec, place), "step"))
        yield from survivor_maps(run, policies, min(self.scale.contexts), max(self.scale.room))


def ready_policies() -> list[str]:
    """Return the ready policies of all roles, but those that need company: alone they are the full cache."""
    rows = [row for row in catalog.methods("keep") if row.status == "ready"]
    return [row.name for row in rows if not row.load().needs_ranks]


def _arm(spec: str, place: Place) -> str:
    return f"{spec} {place}"


def interval_of(run: Run, spec: str, place: Place, metric: str) -> tuple[Interval, str, bool]:
    """Return a number with its interval, its unit, and whether more is better."""
    column = run.column(_arm(spec, place), METRICS[metric])
    if metric in RATIOS:
        full = run.column(_arm(FULL, place), METRICS[metric])
        return bootstrap_ratio(column, full, of="median"), "x", False
    if metric in RETRIEVAL:
        return bootstrap(column), "share", True
    return PERPLEXITY.of_one(column), "ppl", False


def value_of(run: Run, spec: str, place: Place, metric: str) -> float:
    """Return the number of `interval_of` alone."""
    column = run.column(_arm(spec, place), METRICS[metric])
    if metric in RATIOS:
        return float(np.median(column / run.column(_arm(FULL, place), METRICS[metric])))
    return float(column.mean() if metric in RETRIEVAL else np.exp(column.mean()))


def fastest(run: Run, specs: Sequence[str], places: Sequence[Place]) -> Iterator[Finding]:
    """Ask whether a policy is faster than the full cache from 4k tokens on, and finds what the full cache finds."""
    after = [metric for metric, (_, inside) in RETRIEVAL.items() if not inside]
    rivals = [
        (place, spec, interval_of(run, spec, place, "decode time")[0])
        for place in places
        for spec in specs
        if place.length >= 4096
        and spec != FULL
        and all(value_of(run, spec, place, metric) >= value_of(run, FULL, place, metric) - FINDABLE for metric in after)
    ]
    if rivals:
        place, spec, ratio = min(rivals, key=lambda rival: rival[2].value)
        yield Finding(
            method=spec.partition(":")[0],
            metric=f"decode time {place}, best that finds the needle",
            value=ratio,
            unit="x",
            more_is_better=False,
            n=len(run.column(_arm(spec, place), "step")),
            baseline={FULL: 1.0},
            claim="From 4k tokens on a policy decodes faster than the full cache, retrieval within 5 points",
            holds=below(1),
            note="of several arms the fastest; its interval does not know that it was chosen",
        )

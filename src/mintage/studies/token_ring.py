"""TokenRing: is it exact, what travels, and how long would it take on the paper's links?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from mintage.bench.keep.ranks import ATTENTIONS, Case, count_ranks
from mintage.measure import Figure
from mintage.measure.figure import bars
from mintage.measure.study import Finding, Measure, Run, Study, all_of, at_least, at_most, below
from mintage.options import option

__all__ = ["TokenRingStudy"]

RANKS = (2, 3, 4)
HEADS = 6

A10 = {"tokens": 24_000, "heads": 32, "dim": 128, "bytes": 2}
"""The paper's measurement: Llama-2-7B's attention on four A10, in 16 bits."""

ROW_BYTES = A10["heads"] * A10["dim"] * A10["bytes"]

RING_STEP = 7.6e-3
"""Seconds of its ring step, bound by communication: what the bandwidth of the model is taken from."""

BANDWIDTH = 2 * A10["tokens"] // 4 * ROW_BYTES / RING_STEP  # keys and values of one rank in a step

SAVED = {
    HEADS: (
        "one key-value head per head",
        "the busier direction carries about half of ring attention's bytes (heads not grouped)",
        all_of(at_least(0.45), at_most(0.55)),
    ),
    HEADS // 3: (
        "one key-value head for three heads",
        "with grouped heads nothing is saved over ring attention",
        at_least(1),
    ),
}
"""By number of key-value heads: what it is called, and what is claimed of attention that is not causal."""


@dataclass(frozen=True, kw_only=True)
class TokenRingStudy(Study):
    """Is it exact, what travels, and how long would it take on the paper's links?

    Ranks are processes on this machine, over gloo. Two cores say nothing of bandwidth, so times are modelled from the
    counted messages and labelled so.

    [dim]Example[/dim]

      mintage bench token-ring
    """

    method = "token-ring"
    job = "keep"

    tokens: int = option(48, "Of the text that ranks share.", least=24)
    dim: int = option(32, "Of a head.", least=1)

    def common(self, run: Run) -> Mapping[str, Any]:
        """Nothing but random tensors."""
        return {"data": "random tensors"}

    def arms(self, run: Run) -> dict[str, Case]:
        """One arm: all ranks together run both kinds of attention."""
        return {"ranks": Case(self.tokens, HEADS, tuple(SAVED), self.dim)}

    def measures(self, run: Run) -> Iterator[Measure]:
        """Errors of every rank, bytes in the busier direction, and modelled seconds of every step."""
        larger = A10["tokens"] * ROW_BYTES / (self.tokens * HEADS * self.dim * 4)

        def of(run: Run, case: Case, size: int) -> dict[str, Any]:
            counted = count_ranks(size, case)
            kinds = product(ATTENTIONS, (False, True), case.groups)
            return {
                f"errors of {size}": counted.errors,
                **{f"{kind} of {size}": counted.busiest(*kind) for kind in kinds},
                **{
                    f"steps of {name} of {size}": counted.seconds(name, HEADS, larger=larger, bandwidth=BANDWIDTH)
                    for name in ATTENTIONS
                },
            }

        for size in RANKS:
            yield Measure(name=f"{size} ranks", units=lambda run, n=size: {n: n}, of=of)

    def rows(self, run: Run) -> Iterator[Finding]:
        """Exactness, traffic of four ranks, and a step on the paper's links."""
        sizes = {"tokens": self.tokens, "heads": HEADS}
        yield Finding(
            metric="largest difference from attention in one process (float64)",
            value=max(float(run.column("ranks", f"errors of {size}").max()) for size in RANKS),
            unit="",
            more_is_better=False,
            n=sum(RANKS),
            claim="exact over 2, 3 and 4 ranks, causal and not, heads grouped and not",
            holds=below(1e-5),
            settings={"ranks": list(RANKS), **sizes, "dim": self.dim},
        )
        for causal, (groups, (kind, claim, rule)) in product((False, True), SAVED.items()):
            ours, ring = (float(run.column("ranks", f"{(name, causal, groups)} of 4")[0]) for name in ATTENTIONS)
            order = "causal" if causal else "not causal"
            yield Finding(
                metric=f"bytes in the busier direction over ring attention's, {order}, {kind}",
                value=ours / ring,
                unit="x",
                more_is_better=False,
                n=4,
                baseline={"ring attention (bytes)": ring},
                claim="" if causal else claim,
                holds=None if causal else rule,
                settings={"ranks": 4, **sizes, "groups": groups, "causal": causal},
            )
        ours, ring = (float(run.column("ranks", f"steps of {name} of 4").max()) for name in ATTENTIONS)
        yield Finding(
            metric="modelled: seconds of a ring step over those of a TokenRing step, links as fast as the paper's",
            value=ring / ours,
            unit="x",
            n=4,
            baseline={"ring step, ms (measured by the paper, sets the bandwidth)": 1000 * ring},
            peers={"TokenRing step, ms (paper: 3.5 to 4.6)": 1000 * ours},
            claim="on links like the paper's a step takes 1.6 to 2.2 times less (modelled)",
            holds=all_of(at_least(1.6), at_most(2.2)),
            settings={"bandwidth": BANDWIDTH, "latency": 0.0, "compute": 0.0, **A10},
            note="a model of links, driven by counted messages; computing is left out on both sides",
        )

    def figures(self, run: Run) -> Iterator[Figure]:
        """Modelled milliseconds of every step."""
        steps = {name: 1000 * run.column("ranks", f"steps of {name} of 4") for name in reversed(ATTENTIONS)}
        most = max(map(len, steps.values()))
        series = {name: [*ms.tolist(), *[None] * (most - len(ms))] for name, ms in steps.items()}
        yield run.figure(
            name="ring-steps",
            title="Modelled milliseconds per step, four ranks",
            caption="Counted messages at the paper's sizes on links whose bandwidth its ring step implies.",
            **bars("ms", [f"step {i}" for i in range(most)], series),
        )

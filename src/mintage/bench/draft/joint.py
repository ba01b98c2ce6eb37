"""``mintage bench draft``: drafters of your choice on your model, beside transformers' own decoders, in one process."""

from __future__ import annotations

from dataclasses import dataclass

from mintage.bench.contract import Asked, Bench
from mintage.bench.draft.drafting import Drafting, claim_rows
from mintage.measure import Figure, Result
from mintage.options import option

__all__ = ["DraftBench"]


@dataclass(frozen=True, kw_only=True)
class DraftBench(Drafting, Bench):
    """Compare drafters: tokens per forward, speed, operations, memory, and what other hardware would make of it.

    A method is NAME or NAME:key=value,...; several joined by + share one tree; behind it, cold forgets between prompts
    and compiled, native or auto (the faster one) scores with another engine. Claims of papers whose arms are among them
    are tested along.

    [dim]Examples[/dim]

      mintage bench draft --limit 6

      mintage bench draft token-recycling:budget=16 prompt-lookup -t 0,0.7

      mintage bench draft --nodes 4,8,16,32 --draft-model rounded:4

      mintage bench draft token-recycling "token-recycling cold" "plain compiled" --prompts mine.jsonl
    """

    job = "draft"
    shorter = "--limit 4 -n 48"

    nodes: tuple[int, ...] = option((), "Every method at each of these numbers of nodes per tree.", least=1)

    def _measure(self, specs: list[str], asked: Asked) -> list[Result | Figure]:
        """Measure the drafters; none are `mintage.bench.draft.arms.default_specs`."""
        plan = {float(temperature): list(specs) for temperature in self.temperature or (0.0,)}
        runs = self.prepare(plan, work=asked.work, nodes=self.nodes, command=asked.command, note=asked.note)
        rows: list[Result | Figure] = []
        for run, journal in runs:
            run.measure(asked.progress, journal)
            rows += claim_rows(run, note=asked.note)
            rows += self.rows_of(run)
            rows += self.figures_of(run)
        for _, journal in runs:
            journal.delete()
        return rows

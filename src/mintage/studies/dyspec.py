"""DySpec: does a tree grown where the draft model is sure bring more tokens per forward than any fixed tree?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mintage.bench.draft.arms import DYSPEC, FIXED
from mintage.bench.draft.drafting import DraftStudy, emitted
from mintage.bench.draft.run import DraftRun
from mintage.measure.study import Comparison, at_least

__all__ = ["DySpecStudy"]


@dataclass(frozen=True, kw_only=True)
class DySpecStudy(DraftStudy):
    """Test DySpec's claim against the best fixed tree of 14 nodes, greedy and sampling.

    [dim]Examples[/dim]

      mintage bench dyspec

      mintage bench dyspec --draft-model rounded:4 -t 1
    """

    method = "dyspec"
    greedy = sampling = (DYSPEC, *FIXED)

    def claims(self, run: DraftRun) -> Iterable[Comparison]:
        """See `DraftStudy.claims`."""
        if run.has(DYSPEC, *FIXED):
            when = "greedy" if run.greedy else "sampling"
            yield emitted(
                run,
                f"tokens per target forward over the best fixed tree, {when}",
                DYSPEC,
                f"DySpec emits >= 5% more tokens per forward than the best fixed tree of 14 nodes ({when})",
                at_least(1.05),
                rival=max(FIXED, key=lambda arm: run.measurements[arm].tokens_per_forward.value),
                apart=FIXED,
            )

"""Union of drafters: do recycling, look-up and a draft model together beat what each offers?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mintage.bench.draft.arms import EVERYTHING, LOOKUP, UNION
from mintage.bench.draft.drafting import DraftStudy, emitted
from mintage.bench.draft.run import DraftRun
from mintage.measure.study import Comparison, Finding, above, at_least

__all__ = ["UnionStudy"]


@dataclass(frozen=True, kw_only=True)
class UnionStudy(DraftStudy):
    """Test what unions of drafters are for: more speed than prompt look-up, more tokens per forward than any part.

    [dim]Example[/dim]

      mintage bench union
    """

    method = "union"
    greedy = (UNION, EVERYTHING)

    def claims(self, run: DraftRun) -> Iterable[Comparison | Finding]:
        """See `DraftStudy.claims`."""
        if run.greedy and run.has(UNION):
            yield Finding(
                metric="throughput over prompt lookup (transformers)",
                unit="x",
                value=lambda r: r.pairs.ratio(LOOKUP, UNION, of="sums"),
                n=len(run.prompts),
                baseline={LOOKUP: 1.0},
                claim="recycling and look-up together are faster than transformers' prompt lookup",
                holds=above(1),
            )
        if run.greedy and run.has(EVERYTHING) and run.distilled:
            yield emitted(
                run,
                "tokens per target forward, DySpec, recycling and look-up",
                EVERYTHING,
                "DySpec with the distilled drafter, recycling and look-up together emit >= 2.2 tokens per target "
                "forward (greedy)",
                at_least(2.2),
            )

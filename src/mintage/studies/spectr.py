"""SpecTr: do several drafts, chosen among by K-SEQ, bring more tokens per forward than one?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mintage.bench.draft.acceptance import acceptance
from mintage.bench.draft.drafting import DraftStudy, emitted
from mintage.bench.draft.run import DraftRun
from mintage.measure.study import Comparison, at_least

__all__ = ["SpecTrStudy"]

MANY, ONE = "spectr:num_drafts=8,draft_len=4", "spectr:num_drafts=1,draft_len=4"


@dataclass(frozen=True, kw_only=True)
class SpecTrStudy(DraftStudy):
    """Test SpecTr's claims: eight drafts against one of the same length, and K-SEQ's acceptance, enumerated exactly.

    [dim]Example[/dim]

      mintage bench spectr --limit 12
    """

    method = "spectr"
    sampling = (MANY, ONE)

    exact = (
        acceptance(
            "on flat laws K-SEQ accepts more than SpecInfer's rule and RSD (exact)",
            "kseq",
            ("specinfer", "rsd"),
            scale=0.7,
            correlation=0.7,
        ),
        acceptance(
            "K-SEQ accepts more than SpecInfer's rule on peaked laws (exact)",
            "kseq",
            ("specinfer",),
            scale=1.5,
            correlation=0.0,
        ),
    )

    def claims(self, run: DraftRun) -> Iterable[Comparison]:
        """See `DraftStudy.claims`."""
        if not run.greedy and run.has(MANY, ONE):
            yield emitted(
                run,
                "tokens per target forward, 8 drafts over 1",
                MANY,
                "eight drafts emit >= 1.2 times the tokens per forward of one draft of the same length (sampling)",
                at_least(1.2),
                rival=ONE,
            )
        if not run.greedy and run.has(MANY) and run.distilled:
            yield emitted(
                run,
                "tokens per target forward, eight drafts of the distilled drafter",
                MANY,
                "eight drafts of four tokens by the distilled drafter emit >= 1.8 tokens per target forward (sampling)",
                at_least(1.8),
            )

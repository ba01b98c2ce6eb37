"""RSD: do siblings drawn without replacement bring more tokens per forward than independent ones or a chain?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mintage.bench.draft.acceptance import acceptance
from mintage.bench.draft.arms import CHAIN, INDEPENDENT, RSD_C, RSD_S
from mintage.bench.draft.drafting import DraftStudy, emitted
from mintage.bench.draft.run import DraftRun
from mintage.measure.study import Comparison, Finding, above, at_least

__all__ = ["RSDStudy"]


@dataclass(frozen=True, kw_only=True)
class RSDStudy(DraftStudy):
    """Test RSD's claims: drafts without replacement against independent ones, on equal trees of 14 nodes (sampling).

    Acceptance of three siblings is enumerated exactly, too.

    [dim]Example[/dim]

      mintage bench rsd --limit 12
    """

    method = "rsd"
    sampling = (RSD_C, INDEPENDENT, RSD_S, CHAIN)

    def enumerated(self) -> Iterable[Finding]:
        """See `DraftStudy.enumerated`."""
        yield acceptance(
            "on peaked laws RSD accepts more than a chain, independent siblings and K-SEQ (exact)",
            "rsd",
            ("chain", "specinfer", "kseq"),
            scale=1.5,
            correlation=0.7,
        )
        yield acceptance(
            "on flat laws, too, RSD accepts more than a chain and independent siblings (exact; K-SEQ may win there)",
            "rsd",
            ("chain", "specinfer"),
            scale=0.7,
            correlation=0.7,
        )

    def claims(self, run: DraftRun) -> Iterable[Comparison]:
        """See `DraftStudy.claims`."""
        if not run.greedy and run.has(RSD_C, INDEPENDENT):
            yield emitted(
                run,
                "tokens per target forward, RSD-C over SpecInfer",
                RSD_C,
                "RSD-C emits more tokens per forward than independent siblings on the same tree (14 nodes, sampling)",
                above(1),
                rival=INDEPENDENT,
            )
        if not run.greedy and run.has(RSD_S, RSD_C):
            yield emitted(
                run,
                "tokens per target forward, RSD-S over RSD-C",
                RSD_S,
                "RSD-S emits at least as many tokens per forward as RSD-C at the same budget (14 nodes, sampling)",
                at_least(1),
                rival=RSD_C,
                beside=False,
            )
        if not run.greedy and run.has(RSD_S, CHAIN):
            yield emitted(
                run,
                "tokens per target forward, RSD-S over one chain",
                RSD_S,
                "RSD-S beats a single speculative chain of the same length in tokens per forward (sampling)",
                above(1),
                rival=CHAIN,
                beside=False,
            )

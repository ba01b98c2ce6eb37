"""RSD: do siblings drawn without replacement bring more tokens per forward than independent ones or a chain?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mintage.bench.draft.acceptance import acceptance
from mintage.bench.draft.arms import CHAIN, INDEPENDENT, RSD_C, RSD_S
from mintage.bench.draft.drafting import DraftStudy, emitted
from mintage.bench.draft.run import DraftRun
from mintage.measure.study import Comparison, above, at_least

__all__ = ["RSDStudy"]

_C = "RSD-C emits more tokens per forward than independent siblings on the same tree (14 nodes, sampling)"
_S = "RSD-S emits at least as many tokens per forward as RSD-C at the same budget (14 nodes, sampling)"
_CHAIN = "RSD-S beats a single speculative chain of the same length in tokens per forward (sampling)"


@dataclass(frozen=True, kw_only=True)
class RSDStudy(DraftStudy):
    """Test RSD's claims: drafts without replacement against independent ones, on equal trees of 14 nodes (sampling).

    Acceptance of three siblings is enumerated exactly, too.

    [dim]Example[/dim]

      mintage bench rsd --limit 12
    """

    method = "rsd"
    sampling = (RSD_C, INDEPENDENT, RSD_S, CHAIN)

    exact = (
        acceptance(
            "on peaked laws RSD accepts more than a chain, independent siblings and K-SEQ (exact)",
            "rsd",
            ("chain", "specinfer", "kseq"),
            scale=1.5,
            correlation=0.7,
        ),
        acceptance(
            "on flat laws, too, RSD accepts more than a chain and independent siblings (exact; K-SEQ may win there)",
            "rsd",
            ("chain", "specinfer"),
            scale=0.7,
            correlation=0.7,
        ),
    )

    def claims(self, run: DraftRun) -> Iterable[Comparison]:
        """See `DraftStudy.claims`."""
        pairs = (
            ("RSD-C over SpecInfer", RSD_C, INDEPENDENT, above(1), _C),
            ("RSD-S over RSD-C", RSD_S, RSD_C, at_least(1), _S),
            ("RSD-S over one chain", RSD_S, CHAIN, above(1), _CHAIN),
        )
        for what, arm, rival, rule, claim in pairs:
            if not run.greedy and run.has(arm, rival):
                metric = f"tokens per target forward, {what}"
                yield emitted(run, metric, arm, claim, rule, rival=rival, beside=arm == RSD_C)

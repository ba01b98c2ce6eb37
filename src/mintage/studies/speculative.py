"""Speculative sampling with the distilled drafter: does the small model guess well, and does it cost little?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mintage.bench.draft.arms import CHAIN
from mintage.bench.draft.drafting import DraftStudy
from mintage.bench.draft.guesses import FREQUENT, choices, rival_choices
from mintage.bench.draft.run import DraftRun
from mintage.draft import step_cost
from mintage.measure.study import Finding, at_least, at_most

__all__ = ["SpeculativeStudy"]

_AGREEMENT, _STEP, _STEP_PAIRS = 0.6, 0.15, 20


@dataclass(frozen=True, kw_only=True)
class SpeculativeStudy(DraftStudy):
    """Test the distilled drafter: agreement with the target, and the cost of its step.

    No other draft model is held to it.

    [dim]Example[/dim]

      mintage bench speculative
    """

    method = "speculative"
    greedy = (CHAIN,)

    def claims(self, run: DraftRun) -> Iterable[Finding]:
        """See `DraftStudy.claims`."""
        if not (run.greedy and run.has(CHAIN) and run.distilled):
            return
        beside, guessed = rival_choices(run), choices(run)
        more = ", ".join(f"{share.value:.3g} within {k}" for k, share in guessed.within.items() if k > 1)
        yield Finding(
            metric="greedy agreement with the target",
            unit="share",
            value=lambda r: guessed.within[1],
            n=len(run.prompts),
            baseline={FREQUENT: beside.pop(FREQUENT)},
            peers=beside,
            claim=f"the distilled drafter's likeliest token is the target's greedy choice at >= {_AGREEMENT:g} of "
            "places",
            holds=at_least(_AGREEMENT),
            note=f"{guessed.tokens} places in generate's answers to prompts that were not trained on; {more}; "
            "successors are counted on the answers to other prompts; the rounded copy costs as much as the target",
        )
        yield Finding(
            metric="step cost relative to the target",
            unit="x",
            more_is_better=False,
            value=lambda r: step_cost(r.lm, r.draft_model, rounds=_STEP_PAIRS),
            n=_STEP_PAIRS,
            baseline={"the target": 1.0},
            claim=f"a step of the distilled drafter costs <= {_STEP:g} of the target's",
            holds=at_most(_STEP),
            note="a forward over one token after 256 in the cache, paired with the target's",
        )

"""PPD: do trained prompt tokens make a frozen model guess ahead, better than untrained ones and than word counts?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mintage.bench.draft.arms import PPD
from mintage.bench.draft.drafting import DraftStudy, emitted
from mintage.bench.draft.guesses import FREQUENT, TRAINED, UNTRAINED, guesses
from mintage.bench.draft.run import DraftRun
from mintage.measure import Interval, bootstrap_ratio
from mintage.measure.study import Comparison, Finding, above, at_least

__all__ = ["PPDStudy"]


@dataclass(frozen=True, kw_only=True)
class PPDStudy(DraftStudy):
    """Test PPD's claims: tokens per forward, and how often trained prompt tokens guess right, beside simple rivals.

    [dim]Example[/dim]

      mintage bench ppd
    """

    method = "ppd"
    greedy = (PPD,)

    def claims(self, run: DraftRun) -> Iterable[Comparison | Finding]:
        """See `DraftStudy.claims`."""
        if not (run.greedy and run.has(PPD)):
            return
        yield emitted(
            run,
            "tokens per target forward, trained prompt tokens",
            PPD,
            "trained prompt tokens emit >= 1.3 tokens per forward",
            at_least(1.3),
        )
        if len(guesses(run, PPD)["cuts"]) > 1:
            yield from (_guess(run, distance, best) for distance in (2, 3) for best in (1, 10))


def _guess(run: DraftRun, distance: int, best: int) -> Finding:
    """How often the token `distance` ahead is among the `best` first guesses."""
    counted = guesses(run, PPD)
    drafter: Any = run.arms[PPD].drafter

    def hits(guesser: str) -> np.ndarray:
        return counted[guesser][:, distance - 2, :best].sum(-1)  # prompt token 1 guesses the token 2 ahead

    def accuracy(guesser: str) -> Interval:
        return bootstrap_ratio(hits(guesser), counted["cuts"])

    def lead(_: Any) -> Interval:
        rival = max((UNTRAINED, FREQUENT), key=lambda name: accuracy(name).value)
        return bootstrap_ratio(hits(TRAINED) - hits(rival), counted["cuts"])

    return Finding(
        metric=f"top-{best} accuracy {distance} tokens ahead, trained prompt tokens",
        unit="share",
        value=lambda r: accuracy(TRAINED),
        n=len(run.prompts),
        baseline={UNTRAINED: accuracy(UNTRAINED).value},
        peers={FREQUENT: accuracy(FREQUENT).value},
        claim=f"trained prompt tokens guess the token {distance} ahead (top-{best}) more often than untrained ones and "
        "than the last token's most frequent successors",
        holds=above(0),
        tested=lead,
        note=f"{drafter.tokens.embeddings.numel()} trained numbers (S x d); {int(counted['cuts'].sum())} places in "
        "generate's answers to prompts that were not trained on; successors are counted on the answers to other "
        "prompts",
    )

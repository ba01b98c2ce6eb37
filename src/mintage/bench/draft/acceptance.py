"""Rules of verification compared by exact enumeration over random pairs of distributions: no model, no sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from mintage.draft.core.acceptance import exact_acceptance, random_pairs
from mintage.measure import bootstrap
from mintage.measure.study import Finding

__all__ = ["acceptance"]

_PAIRS, _SIBLINGS = 2000, 3


def acceptance(claim: str, better: str, others: Sequence[str], *, scale: float, correlation: float) -> Finding:
    """Claim that a rule accepts one of three siblings more often than each of `others`; the first is the baseline.

    Parameters
    ----------
    claim
        The sentence.
    better, others
        Names in `mintage.draft.core.acceptance.RULES`.
    scale, correlation
        Of the logits of the random pairs.
    """

    @cache
    def values() -> Mapping[str, np.ndarray]:
        p, q = random_pairs(scale, correlation, pairs=_PAIRS)
        return {rule: exact_acceptance(p, q, _SIBLINGS, rule).numpy() for rule in (better, *others)}

    def means(rules: Sequence[str]) -> dict[str, float]:
        return {rule: float(values()[rule].mean()) for rule in rules}

    def leads(run: Any) -> bool:
        return all(bootstrap(values()[better] - values()[other]).low > 0 for other in others)

    return Finding(
        metric=f"mean acceptance of 3 siblings, logit scale {scale:g}, correlation {correlation:g}",
        unit="probability",
        value=lambda run: bootstrap(values()[better]),
        n=_PAIRS,
        baseline=lambda run: means(others[:1]),
        peers=lambda run: means(others[1:]),
        claim=claim,
        holds=leads,
        model="random laws",
        data="exact enumeration",
        settings={"vocabulary": 6, "siblings": 3, "scale": scale, "correlation": correlation},
    )

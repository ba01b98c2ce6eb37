"""Seconds per token of policies at several lengths of one text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from torch import Tensor

from mintage.bench.keep.inputs import long_texts
from mintage.bench.keep.prefix import Prefix, seconds_per_token
from mintage.keep.contract import Policy
from mintage.measure import Interval, bootstrap, bootstrap_ratio
from mintage.measure.study import Measure, Run, Statistic

__all__ = ["MEDIAN_RATIO", "breakeven", "column_at", "seconds_at"]

MEDIAN_RATIO = Statistic(
    "x",
    False,
    lambda ours, theirs: bootstrap_ratio(ours, theirs, of="median"),
    lambda seconds: bootstrap(1000 * seconds, np.median),
)
"""Of seconds per token by turn: the median of the turns' ratios, and one policy's milliseconds."""


def breakeven(ratios: Mapping[int, Interval]) -> int | None:
    """Return the length from which on the whole interval lies below 1; None where it does not even at the greatest."""
    found: int | None = None
    for length in sorted(ratios, reverse=True):
        if ratios[length].high >= 1:
            break
        found = length
    return found


def column_at(length: int) -> str:
    """Name the column that `seconds_at` makes at a length."""
    return f"{length} tokens"


def seconds_at(lengths: Sequence[int], *, part: int, turns: int, tokens: int) -> Iterator[Measure]:
    """Yield, length by length, the seconds per token of every policy with room for one entry in `part`, by turn.

    One speech is read once; `tokens` of it are decoded behind each length.
    """

    @cache
    def text(run: Run) -> tuple[Prefix, Tensor]:
        ((_, ids),) = long_texts(run.subject, max(lengths) + tokens, 1)
        return Prefix(run.subject, ids[:, : max(lengths)]), ids[0]

    for length in lengths:

        def of(run: Run, policy: Policy, turn: int | None, length: int = length) -> dict[str, float]:
            prefix, ids = text(run)
            following = ids[length : length + tokens]
            return {column_at(length): seconds_per_token(prefix, policy.at(length // part), length, following)}

        yield Measure(name=f"seconds at {length}", units=lambda run: dict.fromkeys(range(turns)), of=of)

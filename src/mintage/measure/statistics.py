"""Bootstrap intervals: how far a measured number can be trusted.

Every interval here is a percentile interval over resampled *units* (prompts, images, documents, rounds). Not here:
tests of significance; an interval that excludes the null value says the same and shows the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mintage.errors import UserError

__all__ = ["Interval", "bootstrap", "bootstrap_ratio"]

_CHUNK = 2_000_000  # resampled values held at once: 16 MB of float64


class Interval(NamedTuple):
    """A number and the interval around it: ``low, value, high``."""

    low: float
    value: float
    high: float

    @property
    def bounds(self) -> tuple[float, float]:
        """``(low, high)``, as `mintage.measure.Result` stores it."""
        return self.low, self.high

    def excludes(self, null: float | int) -> bool:
        """Whether `null` (1 for a ratio, 0 for a difference) lies outside the interval."""
        return not self.low <= null <= self.high


def bootstrap(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic of independent values.

    Parameters
    ----------
    values
        One value per unit, shape (units,).
    statistic
        A numpy reduction that takes ``axis``, e.g. `numpy.mean` or `numpy.median`.
    n
        Number of resamples.
    level
        Share of resampled statistics inside the interval.
    seed
        Equal seeds give equal intervals.

    Raises
    ------
    UserError
        No values, NaN or infinite values, or `level` outside (0, 1).
    """
    sample = _sample("values", values)
    draws = [statistic(sample[chosen], axis=-1) for chosen in _resamples(len(sample), n, seed)]
    return _interval(float(statistic(sample, axis=-1)), np.concatenate(draws), level)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    of: Literal["sums", "median"] = "sums",
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap a ratio of two quantities measured on the same units.

    Parameters
    ----------
    numerators, denominators
        One positive value per unit each, shape (units,), in the same order.
    of
        ``"sums"``: ratio of the totals, e.g. tokens over seconds. ``"median"``: median of the units' own ratios,
        which one slow unit cannot move.
    n, level, seed
        As in `bootstrap`.

    Raises
    ------
    UserError
        Lengths differ, there are no units, a value is not finite, or a denominator is not positive.
    """
    top, bottom = _sample("numerators", numerators), _sample("denominators", denominators)
    if len(top) != len(bottom):
        raise UserError(f"{len(top)} numerators but {len(bottom)} denominators; a paired ratio needs one each per unit")
    if (bottom <= 0).any():
        raise UserError(f"denominator {bottom.min():g} is not positive; a ratio to it has no meaning")
    if of == "median":
        return bootstrap(top / bottom, np.median, n=n, level=level, seed=seed)
    if of != "sums":
        raise UserError(f"of={of!r} is not a kind of ratio; use 'sums' or 'median'")
    draws = [top[chosen].sum(-1) / bottom[chosen].sum(-1) for chosen in _resamples(len(top), n, seed)]
    return _interval(float(top.sum() / bottom.sum()), np.concatenate(draws), level)


def _sample(name: str, values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise UserError(f"{name} have shape {sample.shape}; pass one value per unit, shape (units,)")
    if not sample.size:
        raise UserError(f"{name} are empty; measure at least one unit")
    if not np.isfinite(sample).all():
        place = int(np.flatnonzero(~np.isfinite(sample))[0])
        raise UserError(f"{name} hold {sample[place]} at position {place}; drop or mend that unit, with its pair")
    return sample


def _resamples(size: int, n: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Yield index arrays of shape (resamples, size) that together hold `n` resamples."""
    if n < 1:
        raise UserError(f"n={n} resamples; use at least 1, e.g. 2000")
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK // size)
    for start in range(0, n, rows):
        yield generator.integers(size, size=(min(rows, n - start), size))


def _interval(value: float, draws: NDArray[np.float64], level: float) -> Interval:
    if not 0 < level < 1:
        raise UserError(f"level={level} is outside (0, 1); use e.g. 0.95")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), value, float(high))

"""Time several arms against each other in one process, so that drift of the machine hits all of them alike.

`paired_time` runs whole rounds; `interleaved`, `timed` and `Pairs` are its parts, for benches where every arm runs once
per prompt and more than seconds is recorded.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, SupportsFloat, TypeVar

import numpy as np
from numpy.typing import NDArray

from mintage.errors import UserError, did_you_mean
from mintage.measure.statistics import Interval, bootstrap, bootstrap_ratio

__all__ = ["Pairs", "Timings", "interleaved", "paired_time", "timed"]

T = TypeVar("T")
Unit = TypeVar("Unit")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Return what `call` returns and the seconds it took, with the GPU's queue empty before and after."""
    _synchronise()
    start = time.perf_counter()
    value = call()
    _synchronise()
    return value, time.perf_counter() - start


def _synchronise() -> None:
    torch = sys.modules.get("torch")  # a process that has not imported torch has nothing on the GPU
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def interleaved(units: Iterable[Unit], arms: Iterable[str]) -> Iterator[tuple[Unit, str]]:
    """Yield every unit with every arm; the arm that goes first rotates, so that no arm always meets a cold machine.

    >>> list(interleaved([0, 1], "AB"))
    [(0, 'A'), (0, 'B'), (1, 'B'), (1, 'A')]
    """
    names = list(arms)
    for turn, unit in enumerate(units):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            yield unit, name


class Pairs:
    """Values of several arms on the same units, compared unit by unit.

    A comparison of two arms refuses units that only one of them has: dropping them silently is how a method that fails
    on hard prompts gets to look fast.
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[Hashable, float]] = {}

    def add(self, unit: Hashable, arm: str, value: SupportsFloat) -> None:
        """Record one value.

        Raises
        ------
        UserError
            The arm already has a value for this unit, or the value is not finite.
        """
        known = self._values.setdefault(arm, {})
        if unit in known:
            raise UserError(f"{arm} already has a value for unit {unit!r}; add each unit once per arm")
        if not math.isfinite(value):
            raise UserError(f"{arm}, unit {unit!r}: {value} is not a finite number")
        known[unit] = float(value)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms in the order in which they were first added."""
        return tuple(self._values)

    def values(self, arm: str) -> NDArray[np.float64]:
        """Return an arm's values, shape (units,), in the order in which the first arm met the units.

        Raises
        ------
        UserError
            The arm is unknown, or its units are not those of the first arm.
        """
        reference = self.arms[0] if self._values else arm
        return self._paired(reference, arm)[1]

    def ratio(
        self, a: str, b: str, *, of: Literal["sums", "median"] = "median", level: float = 0.95, seed: int = 0
    ) -> Interval:
        """Return `a` over `b`: the median of the units' ratios, or the ratio of the sums, with its interval.

        Raises
        ------
        UserError
            An arm is unknown, a unit has only one of the two, or a value of `b` is not positive.
        """
        top, bottom = self._paired(a, b)
        return bootstrap_ratio(top, bottom, of=of, level=level, seed=seed)

    def difference(self, a: str, b: str, *, level: float = 0.95, seed: int = 0) -> Interval:
        """Return the mean of `a` minus `b` over units, with its interval.

        Raises
        ------
        UserError
            An arm is unknown, or a unit has only one of the two.
        """
        first, second = self._paired(a, b)
        return bootstrap(first - second, level=level, seed=seed)

    def _paired(self, a: str, b: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        for arm in (a, b):
            if arm not in self._values:
                raise UserError(f"no values for arm {arm!r}; {did_you_mean(arm, self._values)}")
        first, second = self._values[a], self._values[b]
        for arm, absent in ((b, first.keys() - second.keys()), (a, second.keys() - first.keys())):
            if absent:
                some = ", ".join(sorted(map(repr, absent))[:3])
                raise UserError(
                    f"{arm} lacks {len(absent)} of the units of {a} and {b} ({some}); run both arms on every unit"
                )
        return np.array(list(first.values())), np.array([second[unit] for unit in first])


@dataclass(frozen=True)
class Timings(Generic[T]):
    """What `paired_time` measured.

    Parameters
    ----------
    pairs
        Seconds per round and arm.
    outputs
        What each arm returned in the last round, to check that the arms did equal work.
    """

    pairs: Pairs
    outputs: Mapping[str, T]

    @property
    def seconds(self) -> dict[str, NDArray[np.float64]]:
        """Seconds of each arm, shape (rounds,)."""
        return {arm: self.pairs.values(arm) for arm in self.pairs.arms}

    def median(self, arm: str) -> float:
        """Return the median seconds of one arm."""
        return float(np.median(self.pairs.values(arm)))

    def ratio(self, a: str, b: str, *, level: float = 0.95, seed: int = 0) -> Interval:
        """Return seconds of `a` over seconds of `b`: the median over rounds, with its interval."""
        return self.pairs.ratio(a, b, level=level, seed=seed)

    def speedup(self, arm: str, over: str, *, level: float = 0.95, seed: int = 0) -> Interval:
        """Return how many times faster `arm` is than `over`; above 1 is faster."""
        return self.pairs.ratio(over, arm, level=level, seed=seed)


def paired_time(arms: Mapping[str, Callable[[], T]], *, repeats: int = 10, warmup: int = 1) -> Timings[T]:
    """Time all arms in every round, in rotating order.

    Parameters
    ----------
    arms
        Name to a call without arguments; all must do comparable work.
    repeats
        Measured rounds; the interval of a ratio resamples these.
    warmup
        Rounds before, not recorded (caches, compilation, allocator).

    Raises
    ------
    UserError
        Fewer than one arm or round.
    """
    if not arms:
        raise UserError("no arms to time; pass {'name': callable}")
    if repeats < 1 or warmup < 0:
        raise UserError(f"repeats={repeats}, warmup={warmup}; use at least 1 measured round and no negative warm-up")
    for _, arm in interleaved(range(warmup), arms):
        timed(arms[arm])
    pairs, outputs = Pairs(), {}
    for turn, arm in interleaved(range(repeats), arms):
        outputs[arm], seconds = timed(arms[arm])
        pairs.add(turn, arm, seconds)
    return Timings(pairs, outputs)

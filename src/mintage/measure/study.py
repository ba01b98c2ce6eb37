"""A paper's claims as data: arms, what is measured of them, comparisons that must hold; one runner does the rest.

A `Study` is a dataclass: its fields are the options of ``mintage bench METHOD``. It names *arms* (what is compared),
`Measure`\\ s (numbers of every arm on every unit, by column) and rows: a `Comparison` sets one arm's column against
another's by a `Statistic`, a `Finding` computes its number freely. A row with a claim has a rule, and the rule alone
decides the verdict. `run_study` owns order, progress, resume after a kill, environment and figures.

Not here: what a job measures its methods by (``mintage.bench.<job>.measures``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mintage.errors import UserError, did_you_mean
from mintage.measure.environment import environment
from mintage.measure.figure import Figure
from mintage.measure.memo import Memo
from mintage.measure.result import Result
from mintage.measure.statistics import Interval, bootstrap, bootstrap_ratio
from mintage.measure.timing import interleaved
from mintage.options import Options, option, settings_of
from mintage.progress import Note, Progress, silent, unheard

__all__ = [
    "MEAN_SHARE",
    "PERPLEXITY",
    "POINTS",
    "Comparison",
    "Finding",
    "Measure",
    "Rule",
    "Run",
    "Statistic",
    "Study",
    "above",
    "all_of",
    "at_least",
    "at_most",
    "below",
    "contains",
    "from_on",
    "mean",
    "ratio",
    "run_study",
    "up_to",
    "within",
]

Column = NDArray[np.float64]


# -- rules and statistics ----------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """When a claim holds; the text stands in the row, so that sentence and threshold cannot part."""

    text: str
    passes: Callable[[Interval], bool]


def above(bound: float) -> Rule:
    """The whole interval is above `bound`."""
    return Rule(f"interval above {bound:g}", lambda i: i.low > bound)


def below(bound: float) -> Rule:
    """The whole interval is below `bound`."""
    return Rule(f"interval below {bound:g}", lambda i: i.high < bound)


def from_on(bound: float) -> Rule:
    """The whole interval is `bound` or more."""
    return Rule(f"interval from {bound:g} on", lambda i: i.low >= bound)


def up_to(bound: float) -> Rule:
    """The whole interval is `bound` or less."""
    return Rule(f"interval up to {bound:g}", lambda i: i.high <= bound)


def at_least(bound: float) -> Rule:
    """The number itself is `bound` or more."""
    return Rule(f"at least {bound:g}", lambda i: i.value >= bound)


def at_most(bound: float) -> Rule:
    """The number itself is `bound` or less."""
    return Rule(f"at most {bound:g}", lambda i: i.value <= bound)


def contains(bound: float) -> Rule:
    """`bound` is in the interval: nothing speaks against it."""
    return Rule(f"interval contains {bound:g}", lambda i: i.low <= bound <= i.high)


def within(bound: float) -> Rule:
    """The whole interval is at most `bound` away from 0."""
    return Rule(f"interval within {bound:g} of 0", lambda i: max(abs(i.low), abs(i.high)) <= bound)


def all_of(*rules: Rule) -> Rule:
    """Every rule holds."""
    return Rule(" and ".join(rule.text for rule in rules), lambda i: all(rule.passes(i) for rule in rules))


@dataclass(frozen=True)
class Statistic:
    """How columns become numbers.

    Parameters
    ----------
    unit, more_is_better
        Of the numbers.
    of_two
        From two arms' columns, paired by unit, to the number compared and its interval. Where a comparison names
        several columns, each arm's come stacked, shape (columns, units).
    of_one
        From one arm's to the number it has alone (baselines, peers, and rows without a rival).
    """

    unit: str
    more_is_better: bool
    of_two: Callable[[Column, Column], Interval]
    of_one: Callable[[Column], Interval]


def mean(unit: str, *, more_is_better: bool = True, scale: float = 1.0) -> Statistic:
    """Difference of two means over units, and one mean; both times `scale`."""
    return Statistic(unit, more_is_better, lambda a, b: bootstrap(scale * (a - b)), lambda a: bootstrap(scale * a))


def ratio(unit: str = "x", *, more_is_better: bool = True) -> Statistic:
    """Ratio of two arms' totals, and one arm's mean."""
    return Statistic(unit, more_is_better, bootstrap_ratio, bootstrap)


def _perplexity(nll: Column, axis: int = -1) -> Any:
    return np.exp(nll.mean(axis))


POINTS = mean("points", scale=100)
"""Of columns from 0 to 1: difference of two shares in points, one share in percent."""

MEAN_SHARE = mean("share")

PERPLEXITY = Statistic("x", False, lambda a, b: bootstrap(a - b, _perplexity), lambda a: bootstrap(a, _perplexity))
"""Of mean negative log-likelihoods by text: ratio of two perplexities, one perplexity."""


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Numbers of arms on units.

    Parameters
    ----------
    name
        What is measured: the stage that is shown, and the key under which values are kept.
    units
        From the run to units by name (texts, images, rounds). Called once.
    of
        ``of(run, arm, unit)`` gives columns by name: a number each, or as many numbers as the unit has parts.
    arms
        Names of the arms that are measured; default all.
    prepare
        ``prepare(run, unit)`` makes of a unit what `of` is given: what is costly and the same for all arms (a text that
        was read). Made when it is first needed, and let go with the unit.
    """

    name: str
    units: Callable[[Run], Mapping[Any, Any]]
    of: Callable[[Run, Any, Any], Mapping[str, Any]]
    arms: Sequence[str] | None = None
    prepare: Callable[[Run, Any], Any] = lambda run, unit: unit

    def run(self, run: Run, stage: str) -> None:
        """Measure every arm on every unit, the arm that goes first rotating, and add the columns to the run."""
        for name in self.arms or ():
            if name not in run.arms:
                raise UserError(f"{self.name}: unknown arm {name!r}; {did_you_mean(name, run.arms)}")
        arms = {name: arm for name, arm in run.arms.items() if self.arms is None or name in self.arms}
        units = self.units(run)
        if not arms or not units:
            raise UserError(f"{self.name}: there is nothing to measure, {len(arms)} arms on {len(units)} units")
        found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in arms}
        total = len(arms) * len(units)

        @lru_cache(maxsize=1)
        def prepared(unit: Any) -> Any:
            return self.prepare(run, units[unit])

        for done, (unit, name) in enumerate(interleaved(units, arms)):
            run.progress(stage, done, total)
            key = f"{self.name} | {name} | {unit}"
            found[name].append(run.memo(key, lambda a=arms[name], u=unit: _plain(self.of(run, a, prepared(u)))))
        run.progress(stage, total, total)
        for name, rows in found.items():
            for unit, row in zip(units, rows, strict=True):
                if row.keys() != rows[0].keys():
                    raise UserError(
                        f"{self.name}: {name} has columns {[*row]} on {unit}, but {[*rows[0]]} on the first"
                    )
            for column in rows[0]:
                parts = [np.atleast_1d(np.asarray(row[column], float)) for row in rows]
                run.columns.setdefault(name, {})[column] = np.concatenate(parts)


def _plain(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _numbers(value) for name, value in columns.items()}


def _numbers(value: Any) -> Any:
    return np.asarray(value.tolist() if hasattr(value, "tolist") else value, float).tolist()


# -- rows --------------------------------------------------------------------------------------------------------------


Measured = Any
"""What rows are made from: a `Run`, or a part of one that has ``common`` and ``column`` of its own."""


@dataclass(frozen=True, kw_only=True)
class _Row(ABC):
    """What all rows say.

    Parameters
    ----------
    metric
        What the number is.
    claim, holds
        The sentence that is tested, and when it is true: a rule about the number, or any function of the run.
    note, data, settings, model, method
        As in `Result`; a note may be made from the run. Default: the study's.
    when
        Whether the row is made at all.
    """

    metric: str
    claim: str = ""
    holds: Rule | Callable[[Any], bool] | None = None
    note: str | Callable[[Any], str] = ""
    data: str | None = None
    settings: Mapping[str, Any] | None = None
    model: str | None = None
    method: str | None = None
    when: Callable[[Any], bool] = lambda run: True

    def __post_init__(self) -> None:
        if bool(self.claim) != (self.holds is not None):
            raise UserError(f"{self.metric}: a claim needs a rule, and a rule a claim")

    @abstractmethod
    def numbers(self, run: Measured) -> tuple[dict[str, Any], Interval]:
        """Return the number with all that stands beside it, and what a rule is asked about."""

    def result(self, run: Measured) -> Result:
        """Make the row."""
        numbers, tested = self.numbers(run)
        said: dict[str, Any] = {
            "metric": self.metric,
            "note": self.note if isinstance(self.note, str) else self.note(run),
        }
        own = ("data", "settings", "model", "method")
        said |= {name: value for name in own if (value := getattr(self, name)) is not None}
        if self.holds is not None:
            holds = self.holds.passes(tested) if isinstance(self.holds, Rule) else self.holds(run)
            rule = self.holds.text if isinstance(self.holds, Rule) else ""
            said |= {"claim": self.claim, "rule": rule, "verdict": "holds" if holds else "does not hold"}
        return Result(**{**run.common, **numbers, **said})


@dataclass(frozen=True, kw_only=True)
class Comparison(_Row):
    """One arm against another in a column.

    Parameters
    ----------
    ours, rival
        Names of arms; the rival may be chosen when all is measured. Without a rival the row is `ours` alone.
    of
        The column, or several that the statistic takes together.
    by
        How columns become numbers.
    baseline, peers
        Arms that stand beside it, each with its own number: names, or what a row calls them to the arm's name; or to a
        number that is known (a difference to itself is 0).
    units
        Which units are compared: an index of columns; default all.
    n
        Units, where the columns do not say.
    """

    ours: str
    of: str | tuple[str, ...]
    by: Statistic
    rival: str | Callable[[Any], str] | None = None
    baseline: Sequence[str] | Mapping[str, str | float] = ()
    peers: Sequence[str] | Mapping[str, str | float] = ()
    units: Any = ...
    n: int | None = None

    def numbers(self, run: Measured) -> tuple[dict[str, Any], Interval]:
        """See `_Row.numbers`."""
        rival = self.rival(run) if callable(self.rival) else self.rival
        ours = self._column(run, self.ours)
        found = self.by.of_one(ours) if rival is None else self.by.of_two(ours, self._column(run, rival))
        stands = _named(self.baseline)
        if callable(self.rival) and rival is not None:
            called = next((name for name, arm in _named(self.peers).items() if arm == rival), rival)
            stands = {**stands, called: rival}
        return {
            "value": found.value,
            "interval": found.bounds,
            "unit": self.by.unit,
            "higher_is_better": self.by.more_is_better,
            "n": self.n or ours.shape[-1],
            "baseline": self._alone(run, stands),
            "peers": self._alone(run, _named(self.peers)),
        }, found

    def _column(self, run: Measured, arm: str) -> Column:
        column = run.column(arm, self.of)
        return column if self.units is ... else column[..., self.units]

    def _alone(self, run: Measured, arms: Mapping[str, str | float]) -> dict[str, float]:
        return {
            name: self.by.of_one(self._column(run, arm)).value if isinstance(arm, str) else arm
            for name, arm in arms.items()
        }


def _named(arms: Sequence[str] | Mapping[str, str | float]) -> Mapping[str, str | float]:
    return arms if isinstance(arms, Mapping) else {arm: arm for arm in arms}


@dataclass(frozen=True, kw_only=True)
class Finding(_Row):
    """A number that takes more than two columns.

    Parameters
    ----------
    value
        The number, with its interval where it has one, or how it is made from the run.
    unit, more_is_better, n
        As in `Result`; `n` may be made from the run.
    baseline, peers
        What stands beside it, or how it is made.
    tested
        What a rule is asked about, where it is not the number itself.
    """

    value: Interval | float | Callable[[Any], Interval | float]
    unit: str
    more_is_better: bool = True
    n: int | Callable[[Any], int] = 1
    baseline: Mapping[str, float] | Callable[[Any], Mapping[str, float]] = field(default_factory=dict)
    peers: Mapping[str, float] | Callable[[Any], Mapping[str, float]] = field(default_factory=dict)
    tested: Callable[[Any], Interval] | None = None

    def numbers(self, run: Measured) -> tuple[dict[str, Any], Interval]:
        """See `_Row.numbers`."""
        found = self.value(run) if callable(self.value) else self.value
        interval = found if isinstance(found, Interval) else Interval(found, found, found)
        return {
            "value": float(interval.value),
            "interval": interval.bounds if isinstance(found, Interval) else None,
            "unit": self.unit,
            "higher_is_better": self.more_is_better,
            "n": self.n(run) if callable(self.n) else self.n,
            "baseline": dict(self.baseline(run) if callable(self.baseline) else self.baseline),
            "peers": dict(self.peers(run) if callable(self.peers) else self.peers),
        }, interval if self.tested is None else self.tested(run)


# -- studies and their runs --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Study(Options, ABC):
    """The claims of a paper, at a scale that its fields set. Subclasses add theirs, each an `option`."""

    method: ClassVar[str]
    job: ClassVar[str]

    seed: int = option(0, "Of everything random.", least=0, below=2**63)

    def subject(self, run: Run) -> Any:
        """Load what all arms share (a model, images); done once, when first asked for."""
        return None

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what all rows say of model, data and settings."""
        return {"model": str(getattr(self, "model", ""))}

    @abstractmethod
    def arms(self, run: Run) -> Mapping[str, Any]:
        """Return what is compared, by name."""

    @abstractmethod
    def measures(self, run: Run) -> Iterable[Measure]:
        """Yield what is measured; a later one may use the columns of those before it."""

    @abstractmethod
    def rows(self, run: Run) -> Iterable[Comparison | Finding | Result]:
        """Yield the rows, when everything is measured; what is a `Result` already stands as it is."""

    def figures(self, run: Run) -> Iterable[Figure]:
        """Yield figures, made by `Run.figure`."""
        return ()

    def finish(self, run: Run) -> None:
        """Forget what was kept for a resume beside `Run.memo`; called when all is made."""


class Run:
    """A study while it runs.

    Parameters
    ----------
    study
        What runs.
    command
        Written into the rows: what repeats them.
    progress, note
        ``progress(stage, done, of)``; ``note(line)`` is told what whoever waits should know.
    work
        Folder of unfinished runs; default ``.mintage/studies/<method>``.
    sources
        Files that measure and are not mintage's own (a plug-in's).

    Attributes
    ----------
    columns
        What was measured: arm, column, one number per unit.
    memo
        Keeps what else is costly by a key: ``run.memo(key, measure)``, JSON values; ``run.memo.folder`` is for files.
    """

    def __init__(
        self,
        study: Study,
        *,
        command: str = "",
        progress: Progress = silent,
        note: Note = unheard,
        work: Path | None = None,
        sources: Sequence[Path] = (),
    ) -> None:
        self.study, self.progress, self.note, self.seed = study, progress, note, study.seed
        self.work = Path(".mintage") / "studies" / study.method if work is None else Path(work)
        self.memo = Memo(self.work, {"study": type(study).__qualname__, **settings_of(study)}, sources)
        self.command = command
        self.columns: dict[str, dict[str, Column]] = {}

    @cached_property
    def subject(self) -> Any:
        """What all arms share."""
        return self.study.subject(self)

    @cached_property
    def arms(self) -> Mapping[str, Any]:
        """What is compared, by name."""
        return self.study.arms(self)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Machine, versions and commit."""
        return environment()

    @cached_property
    def common(self) -> dict[str, Any]:
        """What all rows say."""
        own = {"method": self.study.method, "job": self.study.job, "seed": self.seed, "command": self.command}
        return {**own, "environment": self.environment, **self.study.common(self)}

    def column(self, arm: str, of: str | tuple[str, ...]) -> Column:
        """Return a column of an arm, or several stacked.

        Raises
        ------
        UserError
            It was not measured.
        """
        if not isinstance(of, str):
            return np.stack([self.column(arm, name) for name in of])
        if of not in self.columns.get(arm, {}):
            known = [f"{of} of {arm}" for arm, columns in self.columns.items() for of in columns]
            raise UserError(f"{of} of {arm} was not measured; {did_you_mean(f'{of} of {arm}', known)}")
        return self.columns[arm][of]

    def figure(self, **fields: Any) -> Figure:
        """Make a figure of this run; `fields` may replace what all have in common."""
        own = {"method": self.study.method, "job": self.study.job, "environment": self.environment}
        return Figure(**own | fields)


def run_study(
    study: Study,
    *,
    command: str = "",
    progress: Progress = silent,
    note: Note = unheard,
    work: Path | None = None,
    sources: Sequence[Path] = (),
) -> list[Result | Figure]:
    """Run a study: measure, compare, and forget what was kept for a resume.

    A killed run goes on where it was under the same study, the same settings and the same code; see `Run` for the
    parameters.
    """
    run = Run(study, command=command, progress=progress, note=note, work=work, sources=sources)
    names: set[str] = set()
    for measure in study.measures(run):  # lazily: a later one may depend on what the first ones found
        if measure.name in names:
            raise UserError(f"two measures are called {measure.name!r}; what is kept of one would pass for the other's")
        names.add(measure.name)
        measure.run(run, measure.name)
    rows = []
    for row in study.rows(run):
        if isinstance(row, Result):
            rows.append(row)
        elif row.when(run):
            rows.append(row.result(run))
    figures = list(study.figures(run))
    study.finish(run)
    run.memo.delete()
    return [*rows, *figures]

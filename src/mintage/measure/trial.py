"""A claim check while it runs: arms on the same units, in rotating order, every measurement kept as it comes.

Not here: what is measured, and on what; each job adds its own texts, models and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mintage.measure.environment import environment
from mintage.measure.figure import Figure
from mintage.measure.memo import Memo
from mintage.measure.result import Result
from mintage.measure.timing import interleaved

__all__ = ["Report", "Trial", "silent"]

Report = Callable[[int, int, str], None]
"""``progress(done, of, label)``."""

Arm = TypeVar("Arm")


def silent(done: int, of: int, label: str) -> None:
    """Report nothing."""


class Trial:
    """One run of a claim check, and what all its rows have in common.

    Parameters
    ----------
    method, job
        Catalogue name of the method whose claim is checked, and its job.
    model
        What `mintage.models.load_causal_lm` takes; written into the rows.
    seed, command
        Written into the rows.
    definition
        What else defines the run: a killed run goes on only under the same definition.
    sources
        Files and folders of the code that measures; with other code a run starts afresh.
    total
        Number of measurements, for `progress`; more may be added as they become known.
    progress
        ``progress(done, of, label)``.
    work
        Folder of unfinished runs; default ``.mintage/<job>/<method>``.
    """

    def __init__(
        self,
        method: str,
        *,
        job: str,
        model: str,
        seed: int,
        command: str,
        definition: Mapping[str, Any],
        sources: Sequence[Path] = (),
        total: int = 0,
        progress: Report = silent,
        work: Path | None = None,
    ) -> None:
        self.seed, self.progress, self.total, self.done = seed, progress, total, 0
        work = Path(".mintage") / job / method if work is None else work
        self.memo = Memo(work, {**definition, "seed": seed, "model": model}, sources)
        self.common: dict[str, Any] = {
            "method": method,
            "job": job,
            "model": model,
            "seed": seed,
            "command": command,
            "environment": environment(),
        }

    def result(self, **fields: Any) -> Result:
        """Make a row; `fields` may replace what all rows have in common."""
        return Result(**self.common | fields)

    def figure(self, **fields: Any) -> Figure:
        """Make a figure."""
        return Figure(**{name: self.common[name] for name in ("method", "job", "environment")} | fields)

    def measured(self, key: str, measure: Callable[[], Any], label: str = "") -> Any:
        """Return what is known under `key`, or measure and keep it (as JSON gives it back)."""
        value = self.memo(key, measure)
        self.done += 1
        self.progress(self.done, max(self.total, self.done), label or key)
        return value

    def each(
        self,
        kind: str,
        units: Mapping[Hashable, Any],
        arms: Mapping[str, Arm],
        measure: Callable[[Arm, Any], Any],
    ) -> dict[str, list[Any]]:
        """Measure every arm on every unit; the arm that goes first rotates.

        Parameters
        ----------
        kind
            What is measured; with the names of unit and arm it is the key under which a value is kept.
        units, arms
            By name.
        measure
            ``measure(arm, unit)`` gives what JSON can hold.

        Returns
        -------
        What was measured, by arm, in the order of `units`.
        """
        found: dict[str, list[Any]] = {name: [] for name in arms}
        for unit, name in interleaved(units, arms):
            key = f"{kind} {name} {unit}"
            found[name].append(self.measured(key, lambda a=arms[name], u=units[unit]: measure(a, u), f"{kind}: {name}"))
        return found

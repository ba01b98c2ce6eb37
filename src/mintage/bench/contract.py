"""What the joint comparison of a job is: methods of your choice, on your model and data, beside baseline and rivals.

A subclass is the command ``mintage bench JOB``; its fields are the command's options. Not here: the papers' claims
(`mintage.studies`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from mintage.measure.figure import Figure
from mintage.measure.result import Result
from mintage.measure.study import Study, run_study
from mintage.options import Options, option
from mintage.progress import Note, Progress, silent, unheard

__all__ = ["Asked", "Bench"]


class Asked(NamedTuple):
    """How a comparison was called for; see `Bench.run`."""

    command: str
    progress: Progress
    note: Note
    work: Path

    def study(self, study: Study) -> list[Result | Figure]:
        """Run a comparison that is written as a study."""
        return run_study(study, **self._asdict())


@dataclass(frozen=True, kw_only=True)
class Bench(Options, ABC):
    """A job's joint comparison. The docstring of a subclass is its command's help."""

    job: ClassVar[str]
    shorter: ClassVar[str] = ""
    """Options of a smaller run, for whoever has no hour."""

    seed: int = option(0, "Of everything random.", least=0, below=2**63)

    def run(
        self,
        specs: Sequence[str] = (),
        *,
        command: str = "",
        progress: Progress = silent,
        note: Note = unheard,
        work: Path | None = None,
    ) -> list[Result | Figure]:
        """Measure the methods.

        Parameters
        ----------
        specs
            ``"name"`` or ``"name:key=value,..."``; none means the job's usual arms.
        command
            Written into the rows: what repeats them.
        progress
            ``progress(stage, done, of)``.
        note
            Told what a user should know while it runs.
        work
            Folder of unfinished runs; default ``.mintage/bench/<job>``.

        Raises
        ------
        UserError
            A spec is unknown or cannot be measured here.
        """
        folder = Path(".mintage") / "bench" / self.job if work is None else Path(work)
        return self._measure(list(specs), Asked(command, progress, note, folder))

    @abstractmethod
    def _measure(self, specs: list[str], asked: Asked) -> list[Result | Figure]:
        """Do what `run` says."""

"""Find a bench and run it: the study of a method, or the joint comparison of a job."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mintage
from mintage import catalog
from mintage.bench.contract import Bench
from mintage.errors import UserError, did_you_mean
from mintage.measure.figure import Figure
from mintage.measure.result import Result
from mintage.measure.study import Study, run_study
from mintage.progress import Note, Progress, silent, unheard

__all__ = ["bench_of", "run_claims", "sources_of", "study_of"]


def bench_of(job: str) -> type[Bench]:
    """Import the joint comparison of a job.

    Raises
    ------
    UserError
        The job has none.
    """
    known = catalog.benches()
    if job not in known:
        raise UserError(f"the {job} job has no bench yet; these have: {', '.join(known)}")
    return catalog.resolve(known[job])


def study_of(name: str) -> type[Study]:
    """Import the claim check of a method.

    Raises
    ------
    UserError
        The method is unknown, broken, or has none.
    """
    return catalog.find(name).load_study()


def run_claims(
    name: str,
    settings: Mapping[str, Any] | None = None,
    *,
    command: str = "",
    progress: Progress = silent,
    note: Note = unheard,
    work: Path | None = None,
) -> list[Result | Figure]:
    """Run the claim check of a method.

    Parameters
    ----------
    name
        Catalogue name.
    settings
        Fields of its study; the others keep their defaults.
    command, progress, note, work
        As in `mintage.measure.study.Run`.

    Raises
    ------
    UserError
        The method has no claim check, or a setting is unknown to it or out of range.
    """
    kind = study_of(name)
    known = catalog.hyperparameters(kind)
    for key in settings or {}:
        if key not in known:
            raise UserError(f"the claim check of {name} takes no {key!r}; {did_you_mean(key, known)}")
    study, sources = kind(**settings or {}), sources_of(kind)
    return run_study(study, command=command, progress=progress, note=note, work=work, sources=sources)


def sources_of(kind: type) -> list[Path]:
    """Return the code of a plug-in's class, its whole package; mintage's own is fingerprinted without being asked."""
    module = sys.modules[kind.__module__]
    top = sys.modules.get(kind.__module__.partition(".")[0], module)
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    if Path(mintage.__file__).parent in folders:
        return []
    return folders or [Path(file) for file in [getattr(module, "__file__", None)] if file]

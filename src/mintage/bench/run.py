"""Find a bench and run it: the study of a method, or the joint comparison of a job."""

from __future__ import annotations

import importlib
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
from mintage.progress import Progress, silent

__all__ = ["bench_of", "benches", "run_claims", "sources_of", "study_of"]


def benches() -> list[str]:
    """Return the jobs that have a joint comparison, in order."""
    return [job for job in catalog.JOBS if _target(job)]


def _target(job: str) -> str:
    return getattr(importlib.import_module(f"mintage.{job}"), "BENCH", "")


def bench_of(job: str) -> type[Bench]:
    """Import the joint comparison of a job.

    Raises
    ------
    UserError
        The job has none.
    """
    if not _target(job):
        raise UserError(f"the {job} job has no bench yet; these have: {', '.join(benches())}")
    return catalog.resolve(_target(job))


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
    work: Path | None = None,
) -> list[Result | Figure]:
    """Run the claim check of a method.

    Parameters
    ----------
    name
        Catalogue name.
    settings
        Fields of its study; the others keep their defaults.
    command, progress, work
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
    return run_study(kind(**settings or {}), command=command, progress=progress, work=work, sources=sources_of(kind))


def sources_of(kind: type) -> list[Path]:
    """Return the file of a plug-in's class; mintage's own code is fingerprinted as a whole."""
    file = getattr(sys.modules[kind.__module__], "__file__", None)
    return [] if file is None or Path(mintage.__file__).parent in Path(file).parents else [Path(file)]

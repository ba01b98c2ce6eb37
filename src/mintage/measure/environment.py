"""Where a number was measured: versions, machine, commit. Without these a number says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mintage
from mintage.processor import instructions_used, limited_to, limits, processor_name

__all__ = ["device_name", "environment"]


def environment() -> dict[str, Any]:
    """Describe this process and machine; call it once per run and give it to every row of the run.

    Returns
    -------
    dict
        ``time`` (UTC, ISO 8601), ``mintage``, ``python``, ``torch``, ``transformers`` (versions), ``platform``, ``cpu``
        (model), ``cores`` (usable by this process), ``threads`` (of torch), ``instructions`` (those that torch computes
        with here), ``limits`` (the variables that keep it from wider ones, or None), ``gpu`` (name or None), ``cuda``
        (version or None), ``commit`` (of mintage's own repository, or None where it runs from an installed copy) and
        ``dirty`` (whether mintage's source differs from the commit). No host or user name.
    """
    import torch

    commit, dirty = _commit(Path(mintage.__file__).parent)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "mintage": mintage.__version__,
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": processor_name(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "instructions": instructions_used(),
        "limits": limits() or None,
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "commit": commit,
        "dirty": dirty,
    }


def device_name(described: Mapping[str, Any]) -> str:
    """Return what a row ran on, in a few words: the GPU, or the CPU, its usable cores and, where told, instructions."""
    if described.get("gpu"):
        return str(described["gpu"])
    cpu = str(described.get("cpu") or "unknown machine")
    for noise in ("(R)", "(TM)", " CPU", " Processor"):
        cpu = cpu.replace(noise, "")
    cpu, cores = cpu.partition(" @ ")[0], described.get("cores")
    used = str(described.get("instructions") or "")
    parts = [
        " ".join(cpu.split()),
        f"{cores} core{'s' if cores != 1 else ''}" if cores else "",
        f"limited to {used}" if limited_to(described) else used,
    ]
    return ", ".join(filter(None, parts))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _commit(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the repository that tracks `folder`, and whether files in `folder` differ from it.

    A virtual environment inside somebody else's repository must not report theirs, hence "tracks".
    """
    if not _git(folder, "ls-files", "."):
        return None, None
    return _git(folder, "rev-parse", "HEAD") or None, bool(_git(folder, "status", "--porcelain", "--", "."))


def _git(folder: Path, *arguments: str) -> str:
    """Return what git prints, or nothing where there is no git, no repository or no commit."""
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()

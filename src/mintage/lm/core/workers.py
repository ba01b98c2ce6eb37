"""Commands that run side by side: processes of this machine, or tasks of a Ray cluster.

A command that fails is run once more, since a training goes on where it was; then it is told by name, when the others
are done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mintage.errors import UserError, missing_extra

__all__ = ["run_all"]

_TRIES = 2


def run_all(
    commands: Mapping[str, Sequence[str]],
    workers: int,
    *,
    cluster: str | None = None,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Run ``python -m mintage ...`` commands, at most `workers` at once.

    Parameters
    ----------
    commands
        Name to arguments.
    workers
        How many run side by side; each gets its share of the cores.
    cluster
        None for processes of this machine; else an address of Ray (``"auto"``, ``"local"``, ``"ray://..."``), whose
        machines must see the same files under the same paths.
    told
        ``told(done, of)``.

    Raises
    ------
    UserError
        One failed twice, or Ray is missing or not to be reached.
    """
    cores = max((os.cpu_count() or 1) // workers, 1)
    start = _by_process if cluster is None else _by_ray(cluster, cores)
    done, lock, failed = 0, threading.Lock(), {}

    def run(name: str) -> None:
        nonlocal done
        for _ in range(_TRIES):
            status, last = start(list(commands[name]), cores)
            if status == 0:
                break
        else:
            failed[name] = last or f"status {status}"
        with lock:
            done += 1
            told(done, len(commands))

    told(0, len(commands))
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, commands))
    if failed:
        name, last = next(iter(failed.items()))
        names = ", ".join(failed)
        told_of = f"{len(failed)} of {len(commands)} workers failed ({names})"
        raise UserError(f"{told_of}; {name}: {last}; run it again to go on")


def _run(arguments: list[str], cores: int, folder: str) -> tuple[int, str]:
    """Run one command; return its status and the last line that it told."""
    own = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    command = [sys.executable, "-m", "mintage", *arguments]
    done = subprocess.run(command, env=own, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return done.returncode, lines[-1] if lines else ""


def _by_process(arguments: list[str], cores: int) -> tuple[int, str]:
    return _run(arguments, cores, str(Path.cwd()))


def _by_ray(address: str, cores: int) -> Callable[[list[str], int], tuple[int, str]]:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise missing_extra("ray", "cluster") from None
    if not ray.is_initialized():
        try:
            ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
        except Exception as error:  # ConnectionError, ValueError, RuntimeError: as the address is wrong
            raise UserError(f"no Ray cluster at {address!r} ({str(error).splitlines()[0]}); pass local") from None
    task: Any = ray.remote(num_cpus=cores)(_run)
    folder = str(Path.cwd())
    return lambda arguments, cores: ray.get(task.remote(arguments, cores, folder))

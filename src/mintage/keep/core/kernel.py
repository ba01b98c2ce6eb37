"""The compiled decoding step of policies that read few tokens: `choose` by labels, `read` the rows chosen, on a CPU.

``kernel.cpp`` is compiled at first use, in a few seconds, for this machine, and kept in mintage's cache. It reads the
label cache where it lies and holds one row of scores at a time, where torch copies the labels, scores them for all
heads and sorts whole rows; rows of keys and values are read in place, not gathered first. Sums are float32, so that in
bfloat16 the choice is that of exact scores, which torch rounds before it compares them.

Not here: packed labels, GPUs, gradients; torch operations do these, and everything where there is no compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.files import cache_dir, replace_file

__all__ = ["Kernel", "choose", "read", "serves"]

Kernel = Literal["auto", "torch", "compiled"]

_SOURCE = Path(__file__).with_name("kernel.cpp")
_FLAGS = ("-std=c++17", "-shared", "-fPIC", "-O2", "-march=native")
"""Not ``-ffast-math``: linking with it makes the whole process flush small numbers to zero."""

_TYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def serves(kernel: Kernel, states: Tensor) -> bool:
    """Say whether the compiled step is to be used on `states`, and see to it that it is compiled.

    Raises
    ------
    UserError
        ``"compiled"`` was asked for, and there is no compiler, or these are no bfloat16 or float32 numbers on a CPU.
    """
    fits = states.device.type == "cpu" and states.dtype in _TYPES
    if kernel == "compiled":
        if not fits:
            raise UserError(
                f"kernel='compiled' serves bfloat16 and float32 on a CPU, not {states.dtype} on {states.device.type}; "
                "pass kernel='torch'"
            )
        _library()
    return kernel != "torch" and fits and not torch.is_grad_enabled() and (kernel == "compiled" or _has_library())


@cache
def _has_library() -> bool:
    """Whether there is a compiled step; says once why not."""
    try:
        _library()
    except UserError as error:
        warnings.warn(f"{error}; decoding goes on with torch operations, more slowly", stacklevel=2)
        return False
    return True


@cache
def _library() -> ctypes.CDLL:
    """Return the compiled step, from the cache or compiled now."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            _compile(path)
    if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
        raise UserError(f"{path} belongs to another user, and loading it would run their code; set MINTAGE_CACHE")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(f"{path} is damaged ({error}); delete it to compile again") from None


def _path() -> Path:
    """Where the compiled step lies: its source, the compiler and this machine's instructions go into its name."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    able = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    digest = hashlib.blake2b(_SOURCE.read_bytes(), digest_size=16)
    digest.update(repr((_FLAGS, _compiler(), platform.machine(), platform.processor(), able)).encode())
    return cache_dir() / "kernels" / f"{digest.hexdigest()}.so"


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _compile(path: Path) -> None:
    compiler = _compiler()
    if shutil.which(compiler) is None:
        raise UserError(f"the compiled kernel needs a C++ compiler, and {compiler!r} is not on PATH; set CXX")
    with replace_file(path) as temporary:
        for threads in (["-fopenmp"], []):  # some compilers come without OpenMP
            command = [compiler, *_FLAGS, *threads, str(_SOURCE), "-o", str(temporary)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
        reason = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise UserError(f"{compiler!r} cannot compile the kernel ({reason}); set CXX to another compiler")


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    made: list[object] = []
    for value in arguments:
        if isinstance(value, Tensor):
            made.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, float):
            made.append(ctypes.c_float(value))
        else:
            made.append(value if value is None else ctypes.c_int64(value))
    getattr(_library(), f"{name}_{_TYPES[dtype]}")(*made, ctypes.c_int(torch.get_num_threads()))


def _rows(states: Tensor, width: int) -> Tensor:
    """Make entries lie `width` numbers apart, as they do in every cache."""
    return states if states.stride(2) == width and states.stride(3) == 1 else states.contiguous()


def _seen(visible: Bool[Tensor, "#batch #groups 1 entries"] | None, batch: int) -> Tensor | None:
    return None if visible is None else visible[:, 0, 0].expand(batch, -1).contiguous()


def choose(
    query: Float[Tensor, "batch heads 1 dim"],
    label: Float[Tensor, "batch groups entries labels"],
    channels: Int[Tensor, "rows number"],
    number: int,
    *,
    scale: float = 1.0,
    visible: Bool[Tensor, "#batch 1 1 entries"] | None = None,
) -> Int[Tensor, "batch rows chosen"]:
    """Return the entries with the best label scores, ascending, for each row of `channels`.

    Parameters
    ----------
    query
        After rotation, all channels.
    label
        The label channels of each entry, those of a group's rows one behind another.
    channels
        Label channels of each query head; or of each group, whose heads then vote by their softmax.
    number
        Entries to choose.
    scale
        Factor of the scores; matters for votes only.
    visible
        False where an entry must not be read while others are left.
    """
    batch, heads, _, dim = query.shape
    rows, width = channels.shape
    groups, entries = label.shape[1:3]
    sets = rows // groups
    label, query, seen = _rows(label, sets * width), query.contiguous(), _seen(visible, batch)
    chosen = torch.empty(batch, rows, number, dtype=torch.long)
    shape = batch, groups, heads // groups, sets, entries, dim, width, number, label.stride(0), label.stride(1)
    _call("choose", query.dtype, query, label, channels.contiguous(), seen, chosen, *shape, float(scale))
    return chosen


def read(
    query: Float[Tensor, "batch heads 1 dim"],
    key: Float[Tensor, "batch groups entries dim"],
    value: Float[Tensor, "batch groups entries dim"],
    chosen: Int[Tensor, "batch rows chosen"],
    *,
    scaling: float,
    visible: Bool[Tensor, "#batch 1 1 entries"] | None = None,
) -> Float[Tensor, "batch heads 1 dim"]:
    """Attend to the rows chosen, per query head or per group, where they lie."""
    batch, heads, _, dim = query.shape
    groups, entries = key.shape[1:3]
    key, value, query, seen = _rows(key, dim), _rows(value, dim), query.contiguous(), _seen(visible, batch)
    out = torch.empty_like(query)
    shape = batch, groups, heads // groups, chosen.shape[1] // groups, entries, dim, chosen.shape[2]
    strides = key.stride(0), key.stride(1), value.stride(0), value.stride(1)
    _call("read", query.dtype, query, key, value, chosen.contiguous(), seen, out, *shape, *strides, float(scaling))
    return out

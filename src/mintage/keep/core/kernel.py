"""The compiled decoding step of policies that read few tokens: `choose` by labels, `read` the rows chosen, on a CPU.

``kernel.cpp`` is compiled at first use, in a few seconds, for this machine, and kept in mintage's cache. It reads the
label cache where it lies and holds one row of scores at a time, where torch copies the labels, scores them for all
heads and sorts whole rows; rows of keys and values are read in place, not gathered first. Sums are float32, so that in
bfloat16 the choice is that of exact scores, which torch rounds before it compares them.

Not here: packed labels, GPUs, gradients; torch operations do these, and everything where there is no compiler.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.native import Native

__all__ = ["Kernel", "choose", "read", "serves"]

Kernel = Literal["auto", "torch", "compiled"]

_NATIVE = Native(Path(__file__).with_name("kernel.cpp"), "decoding goes on with torch operations, more slowly")

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
        _NATIVE.library  # noqa: B018
    return kernel != "torch" and fits and not torch.is_grad_enabled() and (kernel == "compiled" or _NATIVE.available)


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | int | float | None) -> None:
    made: list[object] = []
    for value in arguments:
        if isinstance(value, Tensor):
            made.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, float):
            made.append(ctypes.c_float(value))
        else:
            made.append(value if value is None else ctypes.c_int64(value))
    getattr(_NATIVE.library, f"{name}_{_TYPES[dtype]}")(*made, ctypes.c_int(torch.get_num_threads()))


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

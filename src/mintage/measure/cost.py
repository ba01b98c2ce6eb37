"""What a computation costs besides seconds: FLOPs, peak memory, bytes held, and the bandwidth to judge them by.

Not here: FLOPs inside custom CUDA or Triton kernels, which torch's counter does not see.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

__all__ = ["Peak", "count_flops", "memory_bandwidth", "peak_memory", "peak_tensor_bytes", "tensor_bytes"]


def count_flops(call: Callable[[], Any]) -> int:
    """Run `call` once and count its floating-point operations, two per multiply-add.

    Papers that say "FLOPs" for vision models mostly mean multiply-adds: halve this number to compare. Causal attention
    counts as full attention, as torch counts it for every kernel.

    Two of torch's blind spots are mended: CPU attention counts as zero there (pytorch issue 195460), and so does the
    fused inference path of `torch.nn.TransformerEncoderLayer`.
    """
    import torch
    from torch.utils import flop_counter

    aten = torch.ops.aten

    def attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return flop_counter.sdpa_flop_count(query, key, value)

    def attention_backward(
        gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
    ) -> int:
        return flop_counter.sdpa_backward_flop_count(gradient, query, key, value)

    mended = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with flop_counter.FlopCounterMode(display=False, custom_mapping=mended) as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


@dataclass
class Peak:
    """What `peak_memory` found, filled in on leaving.

    Parameters
    ----------
    bytes
        Highest memory in use above the level on entering.
    device
        ``"cuda"`` (torch's allocator) or ``"cpu"`` (resident memory of the process).
    exact
        False where the system cannot reset its high-water mark: then an earlier, higher peak hides this one and
        `bytes` is a lower bound.
    """

    bytes: int = 0
    device: str = "cpu"
    exact: bool = True


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the memory that the body needs at its peak: of the GPU where torch uses one, else of the process.

    >>> with peak_memory() as peak:
    ...     data = bytes(10**6)
    >>> peak.device
    'cpu'
    """
    _give_back()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak = Peak(device="cuda")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        torch.cuda.synchronize()
        peak.bytes = torch.cuda.max_memory_allocated() - before
    else:
        peak = Peak(exact=_reset_high_water())
        before = _high_water()
        yield peak
        peak.bytes = _high_water() - before


def _give_back() -> None:
    """Return to the system what the process holds and does not need: taken again within, it would hide the peak."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def _reset_high_water() -> bool:
    """Set the process's high-water mark of resident memory to its present level (Linux, see proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _high_water() -> int:
    try:  # unlike ru_maxrss, not what the process that started this one once held (it survives exec)
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:", 1)[1].split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError):
        ctypes.CDLL(None).malloc_trim(0)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_tensor_bytes(call: Callable[[], Any]) -> int:
    """Run `call` once and return the most bytes that torch tensors made by it held at one time.

    Exact and repeatable, unlike resident memory, which an allocator keeps back from earlier work. What existed before
    (weights, a table) does not count, nor does scratch space inside one operation. Every operation passes through
    Python, so do not time `call` here.
    """
    import weakref

    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Ledger(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.held, self.peak = 0, 0
            self.known: dict[int, int] = {}  # storage to its bytes, 0 for those that existed before

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.enter((args, kwargs), count=False)
            made = func(*args, **(kwargs or {}))
            self.enter(made, count=True)
            return made

        def enter(self, values: Any, *, count: bool) -> None:
            for tensor in tree_leaves(values):
                if not isinstance(tensor, Tensor):
                    continue
                for storage in _storages(tensor) or ():
                    key = storage._cdata
                    if key not in self.known:
                        self.known[key] = storage.nbytes() if count else 0
                        self.held += self.known[key]
                        weakref.finalize(storage, self.leave, key)
            self.peak = max(self.peak, self.held)

        def leave(self, key: int) -> None:
            self.held -= self.known.pop(key, 0)

    with Ledger() as ledger:
        call()
    return ledger.peak


def tensor_bytes(held: Any) -> int:
    """Bytes of all tensors (and numpy arrays) that `held` keeps alive, each storage counted once and whole.

    Follows mappings, sequences, sets and attributes, so a model, a transformers ``Cache`` or a dataclass of tensors can
    be passed as it is. A view counts with the storage behind it: a cache sliced from a longer one frees nothing.
    """
    total, seen, waiting = 0, set(), [held]
    keep = []  # temporaries stay alive so that no address is used twice
    while waiting:
        item = waiting.pop()
        if item is None or isinstance(item, _LEAVES) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            base = item if item.base is None else item.base
            if isinstance(base, np.ndarray) and base is not item:
                waiting.append(base)
            else:
                total += item.nbytes
        elif (storages := _storages(item)) is not None:
            for storage in storages:
                keep.append(storage)
                if storage._cdata not in seen:
                    seen.add(storage._cdata)
                    total += storage.nbytes()
            waiting.append(getattr(item, "grad", None) if getattr(item, "is_leaf", False) else None)
        elif isinstance(item, Mapping):
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            waiting.extend(item)
        else:
            waiting.extend(_attributes(item))
    return total


_LEAVES = (str, bytes, int, float, complex, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def _attributes(item: Any) -> Iterator[Any]:
    yield from getattr(item, "__dict__", {}).values()
    for kind in type(item).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(item, name, None)


_SPARSE_PARTS = {
    "torch.sparse_coo": ("_indices", "_values"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values"),
}


def _storages(item: Any) -> list[Any] | None:
    """Return the storages of a tensor (of its parts, where it is sparse), or None for anything else."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(item, torch.Tensor):
        return None
    parts = [getattr(item, name)() for name in _SPARSE_PARTS.get(str(item.layout), ())]
    return [part.untyped_storage() for part in parts or [item]]


def memory_bandwidth(device: str = "cpu", *, mebibytes: int = 256, seconds: float = 0.3) -> float:
    """Measure how many bytes per second the device reads from its memory, by summing a large array.

    Parameters
    ----------
    device
        A torch device, e.g. ``"cuda"``.
    mebibytes
        Size of the array; must be well above the last cache.
    seconds
        How long to repeat; the best pass counts.
    """
    import torch

    from mintage.measure.timing import timed

    array = torch.ones(mebibytes * 2**18, dtype=torch.float32, device=device)
    array.sum()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        best = min(best, timed(array.sum)[1])
        if time.perf_counter() >= end:
            return array.nbytes / best

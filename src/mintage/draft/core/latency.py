"""How long a target forward takes for N tokens, and how large a tree should therefore be.

On memory-bound hardware T(N) is nearly flat, on a CPU it is not; the best tree follows from the measured curve.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as memoise
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mintage.draft.core.tree import TokenTree, Topology
from mintage.files import cache_dir, replace_file
from mintage.processor import instructions_used, limits, processor_name

__all__ = ["LatencyCurve", "fingerprint_of", "latency_curve"]

_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
_CONTEXT = 256
_REPEATS = 5


@dataclass(frozen=True)
class LatencyCurve:
    """Seconds of one target forward over `sizes` tokens, non-decreasing, interpolated linearly between them.

    Raises
    ------
    ValueError
        Fewer than two sizes, sizes that do not ascend, or seconds that are not positive or fall.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in pairwise((0, *self.sizes)))
        if not (len(self.sizes) == len(self.seconds) > 1 and ascending):
            raise ValueError(f"a latency curve needs two or more ascending sizes, got {self.sizes}")
        if not (self.seconds[0] > 0 and all(a <= b < np.inf for a, b in pairwise(self.seconds))):
            raise ValueError(f"a latency curve never falls, got {self.seconds}")

    def __call__(self, tokens: int | np.ndarray) -> np.ndarray:
        """Seconds of a forward over `tokens` tokens; beyond the largest size measured, its slope continues."""
        tokens = np.asarray(tokens, dtype=float)
        inside = np.interp(tokens, self.sizes, self.seconds)
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.sizes[-1] - self.sizes[-2])
        return np.asarray(inside + np.clip(tokens - self.sizes[-1], 0, None) * slope)

    def best_size(self, confidence: Sequence[float] | np.ndarray) -> int:
        """Choose how many of the most confident nodes to draft.

        Parameters
        ----------
        confidence
            Estimated acceptance probability of every node's path, descending.

        Returns
        -------
        int
            The n that maximises expected tokens per second, ``(1 + sum of the first n) / T(1 + n)``.
        """
        gain = 1 + np.concatenate([[0.0], np.cumsum(np.asarray(confidence, dtype=float))])
        return int(np.argmax(gain / self(np.arange(1, len(gain) + 1))))


@memoise
def _curve_at(path: str) -> LatencyCurve | None:
    try:
        with open(path) as file:
            stored = json.load(file)
        return LatencyCurve(tuple(stored["sizes"]), tuple(stored["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: measure (again)
        return None


def latency_curve(target: Any) -> LatencyCurve:
    """Return the target's curve on this machine, measured once (some seconds) and kept in mintage's cache.

    The key is the model's configuration, device, dtype, attention function, number of threads and torch version.
    """
    path = str(cache_dir() / "latency" / f"{fingerprint_of(target)}.json")
    if (known := _curve_at(path)) is not None:
        return known
    curve = _measure(target)
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps({"sizes": curve.sizes, "seconds": curve.seconds}))
    _curve_at.cache_clear()
    return curve


def fingerprint_of(target: Any) -> str:
    """Name a target on this machine: what its speed depends on."""
    device = torch.cuda.get_device_name(target.device) if target.device.type == "cuda" else processor_name()
    parts = (
        target.config.to_json_string(),
        f"{target.device.type} {device} {platform.machine()}",
        str(target.dtype),
        target.config._attn_implementation,
        str(torch.get_num_threads()),
        torch.__version__,
        type(target).__name__,
        f"{instructions_used()} {limits()}",  # less than the processor has, where the environment limits it
        target.code,
    )
    if target.compiled:
        parts = (*parts, f"compiled for {target.compiled} nodes")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


@torch.no_grad()
def _measure(target: Any) -> LatencyCurve:
    context = min(_CONTEXT, max(target.positions - max(_SIZES), 1)) if target.positions else _CONTEXT
    wanted = {*_SIZES, target.compiled, target.compiled + 1} - {0}  # a compiled step ends in a jump
    sizes = [n for n in sorted(wanted) if not target.positions or context + n <= target.positions]
    ids = torch.arange(context + max(sizes), device=target.device) % target.vocabulary
    cache = target.new_cache(1, context + max(sizes))
    target.prefill(ids[None, :context], [context], cache)
    times: dict[int, list[float]] = {n: [] for n in sizes}
    for repeat in range(_REPEATS + 1):
        for n in sizes:
            tree = TokenTree(tokens=ids[:n], topology=Topology.chain(n - 1))
            began = time.perf_counter()
            target.score([tree], cache)
            if target.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first sweep warms up
                times[n].append(time.perf_counter() - began)
            cache.commit([[]])  # accept nothing: every forward meets the same context
    medians = [statistics.median(times[n]) for n in sizes]
    return LatencyCurve(tuple(sizes), tuple(np.maximum.accumulate(medians).tolist()))

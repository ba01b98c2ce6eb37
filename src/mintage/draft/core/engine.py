"""Which engine runs a target's forwards: torch, or the C++ step; on this machine the faster one, by measurement.

A processor's name says little: with instructions for bfloat16 torch is fast, without them eight rows cost it five times
one. So one and eight tokens are timed with each engine, once per model and machine.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch

from mintage.draft.core.latency import fingerprint_of
from mintage.draft.core.native import NATIVE, NativeTarget
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.errors import UserError
from mintage.files import cache_dir, replace_file
from mintage.options import check_literals

__all__ = ["Engine", "engine_seconds", "target_for"]

Engine = Literal["auto", "torch", "native"]

_CONTEXT, _SIZES, _REPEATS = 64, (1, 8), 5


@check_literals
def target_for(model: Any, engine: Engine = "torch") -> Target:
    """Wrap a model for the loop.

    Parameters
    ----------
    model
        A Hugging Face causal LM.
    engine
        ``"torch"``: the model's own forward. ``"native"``: the C++ step (`mintage.draft.core.native`), which computes
        in float32. ``"auto"``: the faster of those that can serve the model; without a compiler torch, after a warning.

    Raises
    ------
    UserError
        The model cannot branch, or ``"native"`` cannot serve it.
    """
    if engine == "torch":
        return Target(model)
    if engine == "native":
        return NativeTarget(model)
    own = Target(model)
    if not NATIVE.available:  # which says so, once
        return own
    try:
        native = NativeTarget(model)
    except UserError:
        return own
    targets = {"torch": own, "native": native}
    seconds = engine_seconds(targets)
    return targets[min(targets, key=lambda name: seconds[name][0] * seconds[name][1])]


def engine_seconds(targets: Mapping[str, Target]) -> dict[str, tuple[float, float]]:
    """Return seconds of a forward over one and over eight tokens by engine, measured once and kept in the cache."""
    known = hashlib.sha256("".join(map(fingerprint_of, targets.values())).encode()).hexdigest()[:24]
    path = cache_dir() / "latency" / f"engines-{known}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {name: (float(kept[name][0]), float(kept[name][1])) for name in targets}
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # absent or damaged: measure (again)
        found = _measured(targets)
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
    return found


@torch.no_grad()
def _measured(targets: Mapping[str, Target]) -> dict[str, tuple[float, float]]:
    times: dict[tuple[str, int], list[float]] = {}
    caches = {}
    for name, target in targets.items():
        context = torch.arange(_CONTEXT)[None].to(target.device) % target.vocabulary
        caches[name] = target.new_cache(1, _CONTEXT + max(_SIZES))
        target.prefill(context, [_CONTEXT], caches[name])
    for repeat in range(_REPEATS + 1):
        for size in _SIZES:
            for name, target in targets.items():
                tree = TokenTree(tokens=torch.arange(size, device=target.device), topology=Topology.chain(size - 1))
                began = time.perf_counter()
                target.score([tree], caches[name])
                if repeat:  # the first sweep warms up
                    times.setdefault((name, size), []).append(time.perf_counter() - began)
                caches[name].commit([[]])  # accept nothing: every forward meets the same context
    one, many = _SIZES
    return {name: (statistics.median(times[name, one]), statistics.median(times[name, many])) for name in targets}

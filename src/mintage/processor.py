"""The processor that computes here: its name, its instructions, and what keeps this process from using all of them.

Not here: how fast it is (`mintage.precision`, `mintage.measure.cost`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["instructions_used", "limited_to", "limits", "processor_features", "processor_name"]

_LISTED = Path("/proc/cpuinfo")

_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
"""Variables by which a library that computes here is told to leave instructions alone."""

_MATRICES = {
    "AMX": ("amx_bf16", ("AMX",)),
    "AVX512_BF16": ("avx512_bf16", ("BF16", "FP16", "AVX10", "AMX")),
    "BF16": ("bf16", ("BF16",)),
}
"""Instructions for bfloat16 matrices, widest first: the processor's word, and the parts of limits that allow them."""


def processor_name() -> str:
    """Return the model's name, or the architecture's where nobody says."""
    return _line("model name") or platform.processor() or platform.machine()


def processor_features() -> tuple[str, ...]:
    """Return what the processor can, in its maker's words; nothing where the system does not tell."""
    return tuple((_line("flags") or _line("Features")).split())


def _line(key: str) -> str:
    """Return the value of the first line of that key."""
    try:
        lines = _LISTED.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def limits() -> str:
    """Return the variables that limit what libraries use here, as a command line sets them; empty without any."""
    return " ".join(f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name))


def instructions_used() -> str:
    """Return what this process computes with: torch's vectors, then oneDNN's matrices where it has any.

    E.g. ``AVX512+AMX``, ``AVX2``. Limits count, so that a run under ``ATEN_CPU_CAPABILITY=avx2
    ONEDNN_MAX_CPU_ISA=AVX2`` says ``AVX2`` on any processor.
    """
    import torch

    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    able, free = processor_features(), limit in ("", "DEFAULT", "ALL")
    matrices = (
        name
        for name, (word, allowing) in _MATRICES.items()
        if word in able and (free or any(part in limit for part in allowing))
    )
    return "+".join([torch.backends.cpu.get_cpu_capability(), *list(matrices)[:1]])


def limited_to(environment: Mapping[str, Any]) -> str:
    """Return the instructions that a described run was limited to; empty where it used all, or does not tell."""
    return str(environment.get("instructions") or "") if environment.get("limits") else ""

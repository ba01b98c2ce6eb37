"""Which dtype a model is fastest in on this machine: measured on a few of its layers, never guessed from a name.

With instructions for bfloat16 a processor reads half the bytes and loses nothing; without them eight rows may cost it
five times one, and float32 wins though it reads twice as much. So a forward of one token (plain decoding) and one of
eight (drafted) are timed in both, and the lower geometric mean decides. Once per machine and model kind: the seconds
are kept in mintage's cache.

Not here: loading (`mintage.models`), engines that compute in a dtype of their own (`mintage.draft`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import platform
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from mintage.files import cache_dir, replace_file
from mintage.processor import instructions_used, limits, processor_name
from mintage.progress import Note, unheard

__all__ = ["fastest_dtype", "forward_seconds"]

_SIZES = (1, 8)
_DTYPES = (torch.float32, torch.bfloat16)
_ROUNDS, _SECONDS = 4, 1.0  # rounds at most, and no further one begins after so long
_PARAMETERS = 32_000_000  # of the layers timed: more than most caches of processors hold, less than what will be loaded
_VOCABULARY = 4096  # rows of the head timed; it is one more matrix
_VOLATILE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def fastest_dtype(config: Any, device: str | torch.device = "cpu", note: Note = unheard) -> torch.dtype:
    """Choose the dtype of ``dtype="auto"``.

    Parameters
    ----------
    config
        Of a causal language model.
    device
        A GPU takes bfloat16 where it can, else float32; a CPU is measured; other devices take bfloat16.
    note
        Told in one line what was chosen and why.

    Returns
    -------
    torch.dtype
        On a CPU bfloat16 too where the weights in float32 would take more than half of the machine's memory, and
        where a model of this kind cannot be timed in parts.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        chosen = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        return _told(chosen, "what this GPU computes fastest", note)
    if kind != "cpu":
        return _told(torch.bfloat16, f"the choice for {kind}", note)
    try:
        room = _memory()
        if room and 4 * _parameters(config) > room / 2:
            return _told(torch.bfloat16, "float32 would take more than half of this machine's memory", note)
        seconds = forward_seconds(config)
    except Exception:  # others' models: a config that cannot be cut, a constructor that wants real tensors
        return _told(torch.bfloat16, "a model of this kind cannot be timed in parts", note)
    chosen = min(_DTYPES, key=lambda dtype: math.prod(seconds[_name(dtype)]))
    parts = (f"{_name(d)} {' and '.join(f'{1000 * s:.3g}' for s in seconds[_name(d)])} ms" for d in _DTYPES)
    return _told(chosen, f"a part of the model takes for 1 and 8 tokens in {', in '.join(parts)}", note)


def _told(dtype: torch.dtype, why: str, note: Note) -> torch.dtype:
    note(f"dtype auto is {_name(dtype)}: {why}")
    return dtype


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _memory() -> int:
    """Bytes of this machine's memory; 0 where nobody says."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def _parameters(config: Any) -> int:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config)).num_parameters()


def forward_seconds(config: Any) -> dict[str, tuple[float, float]]:
    """Return the seconds of a forward over one and over eight tokens by dtype, on the CPU.

    Timed on the model's first layers with a short vocabulary, without a cache: over a short context the matrices are
    what costs. Measured once, then read from mintage's cache.
    """
    path = cache_dir() / "dtype" / f"{_key(config)}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = {_name(dtype): (float(kept[_name(dtype)][0]), float(kept[_name(dtype)][1])) for dtype in _DTYPES}
        if all(0 < second < math.inf for pair in found.values() for second in pair):
            return found
    except (OSError, ValueError, KeyError, TypeError, IndexError):  # absent or damaged: measure (again)
        pass
    found = _measured(config)
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(found), encoding="utf-8")
    return found


def _key(config: Any) -> str:
    """Name what the seconds depend on: the machine, its libraries, and the sizes of the model."""
    sizes = {name: value for name, value in config.to_dict().items() if name not in _VOLATILE}
    machine = [platform.machine(), processor_name(), torch.get_num_threads(), instructions_used()]
    versions = [torch.__version__, transformers.__version__]
    text = json.dumps([machine, limits(), versions, sizes], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@torch.no_grad()
def _measured(config: Any) -> dict[str, tuple[float, float]]:
    model = _part(config)
    models = {torch.float32: model, torch.bfloat16: copy.deepcopy(model).to(torch.bfloat16)}
    best: dict[tuple[torch.dtype, int], float] = {}
    began = time.perf_counter()
    for rounds in range(_ROUNDS):
        if rounds > 1 and time.perf_counter() - began > _SECONDS:
            break
        for dtype, part in models.items():
            for size in _SIZES:
                ids = torch.ones(1, size, dtype=torch.long)
                if not rounds:
                    part(ids, use_cache=False)  # the first call of a shape prepares it
                start = time.perf_counter()
                part(ids, use_cache=False)
                # the fastest of a few: whatever else runs here only ever adds
                best[dtype, size] = min(best.get((dtype, size), math.inf), time.perf_counter() - start)
    one, many = _SIZES
    return {_name(dtype): (best[dtype, one], best[dtype, many]) for dtype in _DTYPES}


def _part(config: Any) -> Any:
    """Make a model of as many of the layers as `_PARAMETERS` allows, float32, filled with one number."""
    single, double = (_cut(config, layers) for layers in (1, 2))
    layer = max(1, _parameters(double) - _parameters(single))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_cut(config, max(1, _PARAMETERS // layer)), dtype=torch.float32)
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(0.01 if tensor.is_floating_point() else 0)
    return model


def _cut(config: Any, layers: int) -> Any:
    """Copy a config with fewer layers (and what it lists per layer) and a short vocabulary."""
    small = copy.deepcopy(config)
    inner = small.get_text_config(decoder=True)
    before = inner.num_hidden_layers
    for name, value in list(vars(inner).items()):
        if isinstance(value, list) and len(value) == before:
            setattr(inner, name, value[:layers])
    inner.num_hidden_layers = min(layers, before)
    inner.vocab_size = min(_VOCABULARY, inner.vocab_size)
    inner.pad_token_id = None
    return small

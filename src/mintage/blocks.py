"""The embedded model's weights as its file stores them: blocks of 32 small integers with a scale, a third of bfloat16.

The model that `mintage.models` unpacks is these blocks written out in float32; a kernel that reads the blocks computes
with the very same numbers. Not here: the kernel (`mintage.draft.core.native`); other files.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.files import cache_dir
from mintage.models import embedded_gguf
from mintage.weights import read_weights, write_weights

__all__ = ["Blocks", "embedded_blocks"]

_BLOCK = 32
_FORM = "mintage-blocks-1"
_NAMES = {
    r"token_embd\.weight": "lm_head.weight",
    r"blk\.(\d+)\.attn_(q|k|v)\.weight": r"model.layers.\1.self_attn.\2_proj.weight",
    r"blk\.(\d+)\.attn_output\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    r"blk\.(\d+)\.ffn_(gate|up|down)\.weight": r"model.layers.\1.mlp.\2_proj.weight",
}
"""Names in the file to those in the model."""


class Blocks(NamedTuple):
    """A matrix in blocks along its rows.

    Parameters
    ----------
    kind
        ``"Q4_1"``: byte i of a block holds weights i (low half) and i + 16 (high half), weight = scale * q + offset;
        ``"Q8_0"``: a signed byte each, weight = scale * q.
    data
        The integers, (rows, blocks, bytes).
    scales
        Scale, and offset if there is one, of every block.
    """

    kind: str
    data: Int[Tensor, "rows blocks bytes"]
    scales: Float[Tensor, "rows blocks numbers"]

    def dense(self) -> Float[Tensor, "rows columns"]:
        """Write the weights out, as the file's own library does."""
        if self.kind == "Q8_0":
            return (self.data.view(torch.int8).float() * self.scales).flatten(1)
        whole = torch.cat([self.data & 15, self.data >> 4], -1).float()
        return (whole * self.scales[..., :1] + self.scales[..., 1:]).flatten(1)


@cache
def _read(heads: int, groups: int) -> dict[str, Blocks]:
    """Return the file's blocks, from mintage's cache after the first time: its reader takes seconds for the words."""
    gguf = embedded_gguf()
    path = cache_dir() / "blocks" / f"{gguf.stem}-{gguf.stat().st_size}-{heads}-{groups}.safetensors"
    if path.exists():
        with suppress(UserError):  # damaged: read the file again
            kept = read_weights(path, _FORM, "")
            parts = {
                (name, part): tensor for key, tensor in kept.tensors.items() for name, _, part in [key.rpartition(":")]
            }
            kinds = json.loads(kept.notes["kinds"])
            return {name: Blocks(kind, parts[name, "data"], parts[name, "scales"]) for name, kind in kinds.items()}
    found = _read_gguf(gguf, heads, groups)
    tensors = {f"{name}:{part}": getattr(b, part) for name, b in found.items() for part in ("data", "scales")}
    write_weights(path, _FORM, tensors, {"kinds": json.dumps({name: b.kind for name, b in found.items()})})
    return found


def _read_gguf(gguf: Path, heads: int, groups: int) -> dict[str, Blocks]:
    from gguf import GGUFReader

    found: dict[str, Blocks] = {}
    for tensor in GGUFReader(str(gguf)).tensors:
        kind = tensor.tensor_type.name
        name = next(
            (re.sub(f"^{a}$", b, tensor.name) for a, b in _NAMES.items() if re.match(f"^{a}$", tensor.name)), ""
        )
        if not name or kind not in ("Q4_1", "Q8_0"):
            continue
        columns, rows = (int(size) for size in tensor.shape)
        raw = torch.from_numpy(np.array(tensor.data)).view(rows, columns // _BLOCK, -1)
        front = 4 if kind == "Q4_1" else 2  # bytes of the scales, which are float16
        scales, data = raw[..., :front].contiguous().view(torch.float16).float(), raw[..., front:]
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # the file turns neighbouring channels, the model halves
            order = _halves(rows, heads if name.endswith("q_proj.weight") else groups)
            scales, data = scales[order], data[order]
        found[name] = Blocks(kind, data.contiguous(), scales.contiguous())
    return found


def _halves(rows: int, heads: int) -> Tensor:
    return torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)


def embedded_blocks(model: Any) -> dict[str, Blocks]:
    """Return the blocks of a model's matrices by parameter name; empty where it is not the embedded model as it ships.

    Every matrix is compared with what its blocks say (rounded, where the model is in bfloat16): a model that was
    trained on, or another one of the same shape, has none.
    """
    config = model.config
    if "smollm2-135m" not in str(getattr(config, "_name_or_path", "")).lower():
        return {}
    try:
        known = _read(config.num_attention_heads, config.num_key_value_heads)
    except (UserError, ImportError):
        return {}
    weights = {name: weight for name, weight in model.named_parameters(remove_duplicate=False) if weight.ndim == 2}
    same = all(name in weights and _are_equal(blocks, weights[name].detach()) for name, blocks in known.items())
    return known if same else {}


def _are_equal(blocks: Blocks, weight: Tensor) -> bool:
    """Compare some rows at a time: written out, the largest matrix would be a quarter of the model."""
    return len(blocks.data) == len(weight) and all(
        torch.equal(Blocks(blocks.kind, data, scales).dense().to(part.dtype), part.cpu())
        for data, scales, part in zip(*(t.split(2048) for t in (blocks.data, blocks.scales, weight)), strict=True)
    )

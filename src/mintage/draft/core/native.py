"""A decoding step in C++ for the CPU: the whole forward of a Llama-like model over a few tokens in one call.

Python and torch cost half of a small model's step, and torch's bfloat16 products are slow for more than one row where a
processor has no instructions for them. ``step.cpp`` reads the weights as they are stored (bfloat16, float32, or the
4-bit blocks of the embedded model's file), sums in float32 and keeps the cache in float32, so that eight tokens cost
little more than one. The first use compiles it, in some seconds.

Served: Llama and its like (Qwen2, Qwen3, Mistral without a window, SmolLM): rotary positions of any scaling but
longrope's, grouped heads, norms of heads, SwiGLU, full attention in every layer. What is not that is refused, and so is
a model whose own forward disagrees on seven tokens. Not here: GPUs, gradients, training.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mintage.blocks import Blocks, embedded_blocks
from mintage.draft.core.cache import TreeCache
from mintage.draft.core.target import Target
from mintage.draft.core.wrapped import long_rotation
from mintage.errors import UserError
from mintage.native import Native

__all__ = ["NATIVE", "NativeTarget"]

NATIVE = Native(Path(__file__).with_name("step.cpp"), "decoding goes on with torch, more slowly", flags=("-O3",))
_FORMATS = {torch.float32: 0, torch.bfloat16: 1, "Q4_1": 2, "Q8_0": 3}
_PROMPT_CHUNK = 128  # tokens of a prompt that are read at once


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("format", ctypes.c_int32),
    )


_PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")
_POINTERS = ("before", "after", "query_norm", "key_norm", "keys", "values")


class _Layer(ctypes.Structure):
    _fields_ = (*((name, _Matrix) for name in _PROJECTIONS), *((name, ctypes.c_void_p) for name in _POINTERS))


_SIZES = ("layers", "width", "heads", "groups", "dim", "inner")


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("epsilon", ctypes.c_float),
        ("layer", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
        ("head", _Matrix),
    )


class _Packed:
    """A model's weights as the step reads them; nothing is copied that lies right already."""

    def __init__(self, model: Any) -> None:
        self.kept: list[Tensor] = []
        blocks = embedded_blocks(model)
        body, config = model.model, model.config
        layers = (_Layer * len(body.layers))()
        for number, (mine, layer) in enumerate(zip(layers, body.layers, strict=True)):
            attention, mlp, prefix = layer.self_attn, layer.mlp, f"model.layers.{number}"
            for name, module in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
                linear = getattr(attention, f"{module}_proj")
                setattr(mine, name, self._matrix(linear, blocks.get(f"{prefix}.self_attn.{module}_proj.weight")))
            for name in ("gate", "up", "down"):
                linear = getattr(mlp, f"{name}_proj")
                setattr(mine, name, self._matrix(linear, blocks.get(f"{prefix}.mlp.{name}_proj.weight")))
            mine.before = self._floats(layer.input_layernorm.weight)
            mine.after = self._floats(layer.post_attention_layernorm.weight)
            for name in ("query_norm", "key_norm"):
                norm = getattr(attention, f"{name[0]}_norm", None)
                setattr(mine, name, None if norm is None else self._floats(norm.weight))
        heads = config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        sizes = (len(body.layers), config.hidden_size, heads, groups, dim, config.intermediate_size)
        head = self._matrix(model.lm_head, blocks.get("lm_head.weight"))
        self._model = _Model(*sizes, config.rms_norm_eps, layers, self._floats(body.norm.weight), head)
        self._layers, self.groups, self.dim = layers, groups, dim

    def copy(self) -> tuple[_Model, Any]:
        """Return the model and its layers for one target, which points them at its own caches."""
        model, layers = _Model.from_buffer_copy(self._model), type(self._layers).from_buffer_copy(self._layers)
        model.layer = layers
        return model, layers

    def _matrix(self, linear: Any, blocks: Blocks | None) -> _Matrix:
        weight = linear.weight.detach()
        rows, columns = weight.shape
        bias = None if linear.bias is None else self._floats(linear.bias)
        if blocks is not None:
            return _Matrix(
                self._keep(blocks.data), self._keep(blocks.scales), bias, rows, columns, _FORMATS[blocks.kind]
            )
        if weight.dtype == torch.float32 and not (weight.view(torch.int32) & 0xFFFF).any():
            weight = weight.bfloat16()  # as a checkpoint in bfloat16 loads: the same numbers in half the bytes
        return _Matrix(self._keep(weight.contiguous()), None, bias, rows, columns, _FORMATS[weight.dtype])

    def _floats(self, weight: Tensor) -> int:
        return self._keep(weight.detach().float().contiguous())

    def _keep(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()


_packed: WeakKeyDictionary[Any, tuple[tuple[tuple[int, int], ...], _Packed]] = WeakKeyDictionary()


class NativeTarget(Target):
    """A target whose forwards are the C++ step's; computes in float32 whatever the weights are stored in.

    Parameters
    ----------
    model
        See `Target`; on the CPU, weights in float32 or bfloat16.

    Raises
    ------
    UserError
        The model is not built as the step is, or there is no compiler.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        model = self.model
        if reason := _unfit(model, self.kinds):
            raise UserError(f"{type(model).__name__} cannot be run by the native step ({reason}); pass engine='torch'")
        self._step = NATIVE.library.step
        weights = tuple((weight.data_ptr(), weight._version) for weight in model.parameters())
        held, packed = _packed.get(model), None
        if held is not None and held[0] == weights:
            packed = held[1]
        self._packed = packed or _Packed(model)
        self._native, self._layers = self._packed.copy()
        if packed is None:
            self._agree()
            _packed[model] = (weights, self._packed)

    @property
    def code(self) -> str:  # type: ignore[override]
        """The library that computes."""
        return NATIVE.name

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype: float32."""
        return torch.float32

    def prefill(
        self, ids: Int[Tensor, "batch length"], lengths: Sequence[int], cache: TreeCache, *, all_logits: bool = False
    ) -> Float[Tensor, "batch kept vocabulary"]:
        """Read prompts as `Target.prefill` does, some tokens at a time."""
        found = []
        for start in range(0, ids.shape[1], _PROMPT_CHUNK):
            part = ids[:, start : start + _PROMPT_CHUNK]
            new = part.shape[1]
            seen = torch.ones(len(ids), new, start + new, dtype=torch.bool)
            seen[:, :, start:] = torch.ones(new, new, dtype=torch.bool).tril()
            positions = torch.arange(start, start + new).expand_as(part)
            last = start + new == ids.shape[1]
            kept = new if all_logits else int(last)
            found.append(self._forward(self._embedded(part), positions, seen, cache, kept))
        cache.fill(lengths)
        return torch.cat(found, 1)

    def extend(
        self,
        tokens: Int[Tensor, "batch new"],
        positions: Int[Tensor, "batch pending"],
        lineage: Bool[Tensor, "batch new pending"],
        cache: TreeCache,
        embedded: Float[Tensor, "batch new width"] | None = None,
    ) -> Float[Tensor, "batch new vocabulary"]:
        """Append tokens to the cache as `Target.extend` does."""
        new, pending = lineage.shape[1:]
        seen = torch.ones(len(tokens), new, cache.width + pending, dtype=torch.bool)
        seen[:, :, cache.width :] = lineage
        if cache.ragged:
            lengths = torch.tensor(cache.lengths)
            seen[:, :, : cache.width] = (torch.arange(cache.width) < lengths[:, None])[:, None]
        states = self._embedded(tokens) if embedded is None else embedded.float()
        return self._forward(states, positions[:, pending - new :], seen, cache, new)

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(tokens).float()

    def _forward(self, states: Tensor, positions: Tensor, seen: Tensor, cache: TreeCache, kept: int) -> Tensor:
        """Run the step over embedded tokens that go behind the last column of the cache."""
        batch, new = states.shape[:2]
        columns, packed = seen.shape[-1], self._packed
        states = states.clone(memory_format=torch.contiguous_format)
        turns = [t.float().expand(batch, -1, -1).contiguous() for t in self.model.model.rotary_emb(states, positions)]
        capacity = cache.reserve(columns, states.new_empty(batch, packed.groups, 0, packed.dim))
        for mine, layer in zip(self._layers, cache.layers, strict=True):
            mine.keys, mine.values = (buffer.data_ptr() for buffer in layer.storage)  # type: ignore[attr-defined]
        logits = states.new_empty(batch, kept, self.vocabulary)
        sizes = (ctypes.c_int64(size) for size in (batch, new, capacity, columns))
        arrays = (ctypes.c_void_p(t.data_ptr()) for t in (states, *turns, seen, logits))
        self._step(
            ctypes.byref(self._native), *sizes, *arrays, ctypes.c_int64(kept), ctypes.c_int(torch.get_num_threads())
        )
        cache.advance(columns)
        return logits

    @torch.no_grad()
    def _agree(self) -> None:
        """Refuse a model that computes something else with such weights.

        The median over tokens decides: in bfloat16 torch's own rounding can move one token's logits far.
        """
        ids = (torch.arange(1, 10)[None] * 97) % self.vocabulary
        mine = self.prefill(ids, [9], self.new_cache(1, 9), all_logits=True)
        own = self.model(input_ids=ids).logits.float()
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.1
        off = ((mine - own).norm(dim=-1) / own.norm(dim=-1)).median()
        if not off <= tolerance:
            raise UserError(
                f"{type(self.model).__name__} computes something else than the native step; pass engine='torch'"
            )


_LINEARS = (*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))
_NORMS = ("input_layernorm", "post_attention_layernorm")


def _unfit(model: Any, kinds: Collection[str]) -> str:
    """Why a model cannot be run by the step; empty if it seems to be built like it."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "it has forward hooks, which the step would not call"
    if any("forward" in vars(module) for module in model.modules()):
        return "a forward in it was replaced, which the step would not call"
    if long_rotation(config := model.config):
        return "its rotation depends on a forward's last position"
    body: Any = getattr(model, "model", None)
    layers = getattr(body, "layers", None)
    if layers is None or not hasattr(body, "rotary_emb") or not hasattr(model, "lm_head"):
        return "it is not built like Llama"
    if set(kinds) != {"full_attention"}:
        return "not every layer attends to everything"
    try:
        linears = [layer.get_submodule(part) for layer in layers for part in _LINEARS]
        norms = [layer.get_submodule(part) for layer in layers for part in _NORMS] + [body.get_submodule("norm")]
    except AttributeError:
        return "its layers are not built like Llama's"
    norms += [getattr(layer.self_attn, name, norms[0]) for layer in layers for name in ("q_norm", "k_norm")]
    if any(type(linear) is not torch.nn.Linear for linear in (*linears, model.lm_head)):
        return "its linear layers are wrapped or quantised"
    if any(norm is not None and not type(norm).__name__.endswith("RMSNorm") for norm in norms):
        return "it has norms that are wrapped or of another kind"
    if any(hasattr(layer, "pre_feedforward_layernorm") for layer in layers):
        return "it has more norms"
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}"
    if not hasattr(config, "rms_norm_eps") or not hasattr(config, "intermediate_size"):
        return "it has other norms"
    weights = {(weight.device.type, weight.dtype) for weight in model.parameters()}
    if weights - {("cpu", torch.float32), ("cpu", torch.bfloat16)}:
        return "its weights are neither float32 nor bfloat16 on the CPU"
    sizes = {config.hidden_size, config.intermediate_size, getattr(config, "head_dim", None) or 16}
    if any(size % 16 for size in sizes):
        return "its sizes are no multiples of 16"
    scaling = getattr(layers[0].self_attn, "scaling", None)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if dim % 16 or (scaling is not None and abs(scaling - dim**-0.5) > 1e-6):
        return "its heads are of another kind"
    return ""

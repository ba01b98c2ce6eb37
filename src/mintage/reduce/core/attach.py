"""Attach a reducer to a vision transformer for the length of a ``with``, and take it off without a trace.

No library has a boundary between attention and MLP where tokens could vanish, so the class of every block is swapped
for a subclass that runs the block's own parts with the reducer in between. Parameters, their names, recorded hidden
states and hooks stay as they are; attention keeps its fused kernel, the log sizes being an additive mask. All that is
changed hangs on modules of this one model: others made from the same configuration, and copies, are plain.

Where every patch must keep a row (dense output), a block returns full rows and the next one goes on from the reduced
ones that are held here: hidden states, feature maps and what reads them have the shapes that they always have.

Not here: flash and flex kernels (their masks are not tensors), masks over patches, gradient checkpointing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from threading import RLock
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.reduce.contract import Reducer
from mintage.reduce.core.adapters import Undo, adapter_for, sdpa, timm_attention
from mintage.reduce.core.schedule import Anatomy
from mintage.reduce.core.state import Evidence, TokenState
from mintage.reduce.core.swapped import (
    SwitchedConfig,
    layer_forward,
    pool_forward,
    swap,
    timm_forward,
    timm_intermediates,
    timm_pool,
    tower_forward,
)

__all__ = ["Attachment"]

_SERVED = ("sdpa", "eager")
_attached: WeakSet[Any] = WeakSet()
_numbers = count()


class Attachment:
    """A reducer on a model; ``with`` switches it on and off.

    Attributes
    ----------
    state
        The tokens behind the last hook of the latest forward, or None before the first.
    tokens
        How many tokens entered each layer of the latest forward, the prefix included.
    sources
        The source map behind each layer, where one is traced.
    dense
        Whether blocks return one row per input token.

    Raises
    ------
    UserError
        On entering: the model is not supported or has a reducer already. In a forward: a mask over patches.
    """

    def __init__(self, reducer: Reducer, model: nn.Module, *, trace: bool = False, dense: bool | None = None) -> None:
        self.model, self.trace = model, trace
        self.adapter = adapter_for(model)
        self.dense = self.adapter.dense if dense is None else dense
        self.anatomy: Anatomy = self.adapter.anatomy()
        self.reducer = reducer.fitted(model, self.anatomy)
        self.reducer.kept(self.anatomy)  # says now what it cannot serve
        self.state: TokenState | None = None
        self.tokens: list[int] = []
        self.sources: list[Tensor] = []
        self._lock = RLock()
        self._rows: Tensor | None = None
        self._kept: dict[int, tuple[int, ...]] = {}  # by patches of the image
        self._bias: Tensor | None = None
        self._evidence: Evidence | None = None
        self._layer = 0
        self._unmasked = False

    def __enter__(self) -> Attachment:
        tower, adapter = self.adapter.tower, self.adapter
        if tower in _attached:
            raise UserError(
                f"a reducer is attached to this {type(self.model).__name__} already; leave its 'with' first"
            )
        if getattr(tower, "is_activation_checkpointing", False) or getattr(tower, "grad_checkpointing", False):
            raise UserError("gradient checkpointing runs layers twice; switch it off before attaching a reducer")
        self._undo: list[Undo] = []
        try:
            methods: dict[str, Any] = {"forward": tower_forward(type(tower))}
            if adapter.timm:
                for layer in adapter.layers:
                    self._swap(adapter.attention(layer), self, forward=timm_forward)
                methods |= {"pool": timm_pool, "forward_intermediates": timm_intermediates}
            else:
                self._switch_attention()
            self._kind: Any = type(tower)
            self._swap(tower, self, **methods)
            for index, layer in enumerate(adapter.layers):
                self._swap(layer, (self, index), forward=layer_forward)
            for pool, mask in adapter.attention_pools():
                self._swap(pool, (self, mask), forward=pool_forward(type(pool)))
            modules = self.reducer.modules()
            if modules is not None:
                parameter = next(tower.parameters())
                modules.to(device=parameter.device, dtype=parameter.dtype)
            self._swap_weights(self.reducer.backbone())
        except BaseException:
            self._restore()
            raise
        _attached.add(tower)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        _attached.discard(self.adapter.tower)
        self._bias = self._evidence = None

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    def unmerge(
        self, rows: Float[Tensor, "batch tokens dim"], layer: int | None = None
    ) -> Float[Tensor, "batch inputs dim"]:
        """Give every input token the row of the token it went into; zeros where it was dropped.

        Parameters
        ----------
        rows
            One per token that was left.
        layer
            Behind which layer, from 0 (of ``output_hidden_states`` it is the entry ``layer + 1``); default the last.

        Raises
        ------
        UserError
            Nothing was traced, there is no such layer, or `rows` are not as many as the tokens that were left.
        """
        if not self.sources:
            raise UserError("no source map: attach with trace=True, and run the model inside the 'with'")
        if layer is not None and not 0 <= layer < len(self.sources):
            raise UserError(f"layer={layer} did not run; pass one from 0 to {len(self.sources) - 1}")
        source = self.sources[-1 if layer is None else layer]
        if rows.shape[:2] != source.shape[:2]:
            raise UserError(f"unmerge takes {source.shape[1]} rows per image, one per token left; got {rows.shape[1]}")
        return _spread(source, rows)[0]

    def groups(self, grid: tuple[int, int] | None = None) -> list[list[list[int | None]]]:
        """Tell for every image, row by row, which token each patch went into (the most, if several); None: dropped.

        Parameters
        ----------
        grid
            Rows and columns of patches; default those of the model's own image size, or a square.

        Raises
        ------
        UserError
            Nothing was traced, or the patches are no such grid.
        """
        if self.state is None or self.state.source is None:
            raise UserError("no source map: attach with trace=True, and run the model inside the 'with'")
        share, token = self.state.source[:, :, self.adapter.prefix :].max(1)
        side, patches = math.isqrt(token.shape[1]), token.shape[1]
        if grid is None:
            own = self.anatomy.grid
            grid = own if own is not None and own[0] * own[1] == patches else (side, side)
        if grid[0] * grid[1] != patches:
            raise UserError(f"{patches} patches are no grid of {grid[0]} x {grid[1]}; pass grid=(rows, columns)")
        token = torch.where(share > 0, token, -1).unflatten(1, grid)
        return [[[None if t < 0 else t for t in row] for row in image] for image in token.tolist()]

    # -- surgery ------------------------------------------------------------------------------------------------------

    def _swap(self, module: nn.Module, held: Any, **methods: Any) -> None:
        self._undo.extend(swap(module, held, **methods))

    def _swap_weights(self, weights: Mapping[str, Tensor]) -> None:
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, tensor in weights.items():
            if name not in own or own[name].shape != tensor.shape:
                raise UserError(
                    f"this {type(self.model).__name__} has no {name} of shape {tuple(tensor.shape)}; "
                    f"{type(self.reducer).__name__} was trained for another model"
                )
            held, before = own[name], own[name].data
            held.data = tensor.to(before, copy=True)
            self._undo.append(lambda held=held, before=before: setattr(held, "data", before))

    def _switch_attention(self) -> None:
        from transformers import AttentionInterface
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        name = f"mintage-{type(self.reducer).__name__.lower()}-{next(_numbers)}"
        for layer in self.adapter.layers:
            module: Any = self.adapter.attention(layer)
            before = module.config._attn_implementation
            if before not in _SERVED:
                raise UserError(
                    f"attn_implementation={before!r} has masks of its own; "
                    f"load the model with one of: {', '.join(_SERVED)}"
                )
            source = sys.modules[type(module).__module__]
            self._own = source.eager_attention_forward if before == "eager" else ALL_ATTENTION_FUNCTIONS[before]
            self._undo.append(lambda module=module, own=module.config: setattr(module, "config", own))
            module.config = SwitchedConfig(module.config, name)
        AttentionInterface.register(name, self._attend_hf)
        self._undo.append(lambda: AttentionInterface._global_mapping.pop(name, None))

    # -- called by the model --

    def run_tower(self, tower: Any, args: Any, kwargs: Any) -> Any:
        """Run the transformer; a forward of another thread waits."""
        given = (kwargs.get("attention_mask"), *args[1:])
        unmasked = not self.adapter.timm and not any(isinstance(mask, Tensor) for mask in given)
        if torch.compiler.is_compiling():
            self._unmasked = unmasked
            out = self._kind.forward(tower, *args, **kwargs)
            self._unmasked = False
            return self.adapter.scale_output(out, self._sizes())
        with self._lock:
            self._unmasked = unmasked
            try:
                return self.adapter.scale_output(self._kind.forward(tower, *args, **kwargs), self._sizes())
            finally:
                self._unmasked = False

    def run_layer(self, layer: nn.Module, index: int, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Run one block, with the reducer at its hook."""
        if self._unmasked:  # while a model is exported, transformers makes a mask that hides nothing
            args = tuple(None if isinstance(mask, Tensor) else mask for mask in args)
        if any(isinstance(mask, Tensor) for mask in (*args, *kwargs.values())) or kwargs.get("is_causal"):
            raise UserError("a mask over patches does not go with a reducer; pass images without padding")
        if index == 0:
            self._begin(x)
        state, keep = self._current(x, index), self._keep(index)
        x = state.x
        self.tokens.append(x.shape[1])
        self._layer = index
        x = x + self.adapter.attention_branch(layer, x, *args, **kwargs)
        if self.reducer.hook == "attention":
            state = self._reduced(replace(state, x=x), keep)
            x = state.x
        x = x + self.adapter.mlp_branch(layer, x)
        state = replace(state, x=x)
        if self.reducer.hook == "block":
            state = self._reduced(state, keep)
        self.state = state
        if state.source is not None:
            self.sources.append(state.source)
        if self.dense and state.source is not None:
            if state.x.shape[1] == state.inputs:
                self._rows = state.x
            else:
                rows, share = _spread(state.source, state.x)
                self._rows = torch.where(share > 0, rows, self._rows)  # type: ignore[arg-type]
            return self._rows  # type: ignore[return-value]  # a patch that was dropped keeps its last row
        return state.x

    def _begin(self, x: Tensor) -> None:
        patches = x.shape[1] - self.adapter.prefix
        if patches not in self._kept:
            self._kept[patches] = tuple(self.reducer.kept(replace(self.anatomy, patches=patches)))
        self._patches = patches
        self.tokens, self.sources, self._bias, self.state, self._rows = [], [], None, None, x

    def _current(self, x: Tensor, index: int) -> TokenState:
        if self.state is not None:
            return replace(self.state, layer=index, x=self.state.x if self.dense else x)
        source = None
        if self.trace or self.dense:
            source = torch.eye(x.shape[1], device=x.device).expand(x.shape[0], -1, -1)
        return TokenState(
            x=x,
            size=torch.ones(x.shape[0], x.shape[1], 1, device=x.device),
            prefix=self.adapter.prefix,
            layer=index,
            layers=len(self.adapter.layers),
            source=source,
            inputs=x.shape[1],
        )

    def _keep(self, index: int) -> int:
        return self._kept[self._patches][index]

    def _reduces(self, index: int, tokens: int) -> bool:
        return self.reducer.masks or self._keep(index) < tokens - self.adapter.prefix

    def _reduced(self, state: TokenState, keep: int) -> TokenState:
        evidence, self._evidence = self._evidence, None
        if keep >= state.patches and not self.reducer.masks:
            return state
        if evidence is None:
            kind = type(self.adapter.tower).__name__
            raise UserError(f"the attention of this {kind} went past the reducer; load it with sdpa or eager attention")
        with torch.autocast(state.x.device.type, enabled=False):  # decisions are taken in the precision they ask for
            state = self.reducer.reduce(state, evidence, keep)
        if self.reducer.proportional:
            self._bias = state.size.clamp_min(1e-6).log().transpose(1, 2)[:, None]
        return state

    def _sizes(self) -> Tensor | None:
        return None if self.state is None or self._bias is None or self.dense else self.state.size

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, own: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention output [batch, heads, tokens, head_dim] and its probabilities, if they are known.

        ``own(mask)`` is the model's own function.
        """
        index, reducer = self._layer, self.reducer
        bias = None if self._bias is None else self._bias.to(query.dtype)
        reduces = self._reduces(index, query.shape[2])
        if reduces or reducer.attends:
            positions = None if self.state is None else self.state.positions
            evidence = Evidence(query=query, key=key, value=value, scaling=scaling, bias=bias, positions=positions)
            if reduces and reducer.wants_attention(index):
                evidence = replace(evidence, weights=evidence.attention())
            self._evidence = evidence if reduces else None
            out = reducer.attend(evidence, index) if reducer.attends else None
            if out is not None:
                return out, None
            if evidence.weights is not None:
                weights = functional.dropout(evidence.weights, dropout, training=dropout > 0).to(value.dtype)
                return weights @ value, weights
        return own(bias)

    def _attend_hf(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        def own(mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
            if mask is not None:
                mask = mask.expand(-1, -1, query.shape[2], -1)
            out, weights = self._own(module, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
            return out.transpose(1, 2), weights

        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        out, weights = self._attend(query, key, value, factor, dropout, own)
        return out.transpose(1, 2).contiguous(), weights

    def attend_timm(self, module: Any, x: Tensor) -> Tensor:
        """Run timm's attention module."""

        def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
            def own(mask: Tensor | None) -> tuple[Tensor, None]:
                return sdpa(query, key, value, mask, scaling, dropout), None

            return self._attend(query, key, value, scaling, dropout, own)[0]

        return timm_attention(module, x, attend)

    def run_pool(self, run: Callable[..., Tensor], mask: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Any:
        """Pool by attention, a merged token counted by its size."""
        return run() if self._bias is None or self.dense else run(attn_mask=mask(self._bias, x))

    def pool_timm(self, tower: Any, x: Tensor, kind: str | None) -> Tensor:
        """Pool timm's tokens by size."""
        return self.adapter.pool_timm(partial(self._kind.pool, tower), self._sizes(), x, kind)

    def intermediates_timm(self, tower: Any, args: Any, kwargs: Any) -> Any:
        """Run timm's transformer for what its layers give: one row per patch, whoever asks."""
        with self._lock:
            dense, self.dense = self.dense, True
            try:
                return self._kind.forward_intermediates(tower, *args, **kwargs)
            finally:
                self.dense = dense


def _spread(source: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return a row for every input token, and how much of it is in any token."""
    share = source.sum(1, keepdim=True).transpose(1, 2)  # of a soft mixture: its mean
    full = source.transpose(1, 2) @ rows.to(source.dtype) / share.clamp_min(1e-12)
    return full.to(rows.dtype), share

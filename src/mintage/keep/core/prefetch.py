"""What the next layer is going to ask: its queries, guessed from the hidden states that enter the layer before it.

A layer adds little to the hidden states that pass it, so the next layer's norm and projection of what came before it
point to nearly the same tokens. A guess costs one projection; what is done with it must be right when it is wrong.

Not here: layers without a norm in front of their attention, or with queries, keys and values in one projection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.keep.core.served import decoder_of
from mintage.keep.core.step import Geometry
from mintage.keep.core.storage import running

__all__ = ["Ahead"]


class Ahead:
    """Watches the hidden states of a model's layers.

    Raises
    ------
    UserError
        The model's layers are not built as known, or its rotation is unknown.
    """

    def __init__(self, model: Any, geometry: Geometry) -> None:
        self.rotary = geometry.need_rotary("looking ahead")
        self.layers = getattr(decoder_of(model), "layers", ())
        for layer in self.layers:
            if not hasattr(layer, "input_layernorm") or not hasattr(getattr(layer, "self_attn", None), "q_proj"):
                raise UserError(
                    f"{geometry.model} has no input_layernorm and q_proj in its layers, by which to look ahead; "
                    "known to work: Llama, Qwen2, Mistral"
                )

    def watch(self, hook: Callable[[Any], Any]) -> list[Any]:
        """Hook the layers, each by what `hook` makes of a function; returns the handles."""

        def watcher(index: int) -> Any:
            def note(layer: Any, args: Any, kwargs: Any) -> None:
                if (forward := running.get()) is not None:
                    forward.hidden = {index: args[0] if args else kwargs["hidden_states"]}

            return hook(note)

        return [
            layer.register_forward_pre_hook(watcher(index), with_kwargs=True) for index, layer in enumerate(self.layers)
        ]

    @torch.no_grad()
    def query(
        self, index: int, position_ids: Int[Tensor, "#batch queries"], hidden: Mapping[int, Tensor]
    ) -> Float[Tensor, "batch heads queries dim"] | None:
        """Return what layer ``index + 1`` would ask of the `hidden` states given to `index`; None after the last."""
        if index + 1 >= len(self.layers) or index not in hidden:
            return None
        layer = self.layers[index + 1]
        attention = layer.self_attn
        query = attention.q_proj(layer.input_layernorm(hidden[index]))
        query = query.unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, "q_norm"):
            query = attention.q_norm(query)
        return self.rotary(query.transpose(1, 2), position_ids)

"""What a policy is told: the shape of the model, and one forward of one layer.

Not here: anything that decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.keep.core.storage import KeptLayer

__all__ = ["Geometry", "Rotary", "Step"]

_HALF_SPLIT = frozenset({"llama", "qwen2", "qwen3", "mistral", "mixtral", "gemma", "smollm3", "olmo2", "granite"})
"""Values of ``config.model_type`` whose rotation turns dimension i together with i + d/2, over all of d."""


@dataclass(frozen=True, eq=False)
class Rotary:
    """A model's rotary embedding, so that keys can be stored without it and positions reassigned."""

    module: Any
    _tables: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __call__(
        self, x: Float[Tensor, "batch heads tokens dim"], position_ids: Int[Tensor, "#batch tokens"]
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Rotate `x` as the model rotates tokens at these positions."""
        return self._turn(x, position_ids, 1)

    def undo(
        self, x: Float[Tensor, "batch heads tokens dim"], position_ids: Int[Tensor, "#batch tokens"]
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Turn back what was rotated at these positions; computed in float32."""
        return self._turn(x, position_ids, -1)

    def near(
        self, x: Float[Tensor, "batch heads tokens dim"], position_ids: Int[Tensor, "#batch tokens"]
    ) -> Float[Tensor, "batch heads tokens dim"]:
        """Rotate `x` to small positions, by a table that all layers and steps share, in the dtype of `x`."""
        size = 1 << int(position_ids.max()).bit_length()
        key = (size, x.device, x.dtype)
        if key not in self._tables:
            places = torch.arange(size, device=x.device)[None]
            cos, sin = self.module(torch.zeros(1, dtype=torch.float32, device=x.device), places)
            self._tables[key] = cos[0].to(x.dtype), sin[0].to(x.dtype)
        cos, sin = (table[position_ids][:, None] for table in self._tables[key])
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def _turn(self, x: Tensor, position_ids: Tensor, sign: int) -> Tensor:
        cos, sin = self.module(x.float(), position_ids)
        cos, sin = cos[:, None], sin[:, None] * sign
        first, second = x.float().chunk(2, -1)
        turned = x.float() * cos + torch.cat((-second, first), -1) * sin
        if sign < 0:  # YaRN and the like scale cos and sin; undoing a rotation divides by the scale twice
            turned = turned / (cos**2 + sin**2)
        return turned.to(x.dtype)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Shape of a model's attention.

    Parameters
    ----------
    model
        Class name of the model, for errors.
    layers, heads, groups, dim
        Decoder layers, query heads, key-value heads, dimension of a head.
    rotary
        The rotary embedding; None where positions are learned, or where its layout is unknown.
    fingerprint
        What an artefact for this model must state, e.g. ``"llama, 30 layers, 9/3 heads of 64"``.
    """

    model: str
    layers: int
    heads: int
    groups: int
    dim: int
    rotary: Rotary | None
    fingerprint: str

    @classmethod
    def of(cls, model: Any) -> Geometry:
        """Read it off a Hugging Face model."""
        config = model.config.get_text_config(decoder=True)
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        module = getattr(model.base_model, "rotary_emb", None)
        changing = getattr(module, "rope_type", "default") in ("dynamic", "longrope")  # with the length of the text
        known = module is not None and config.model_type in _HALF_SPLIT and not changing
        rotary = Rotary(module) if known else None
        layers = config.num_hidden_layers
        fingerprint = f"{config.model_type}, {layers} layers, {heads}/{groups} heads of {dim}"
        return cls(type(model).__name__, layers, heads, groups, dim, rotary, fingerprint)

    def need_rotary(self, method: str) -> Rotary:
        """Return the rotary embedding.

        Raises
        ------
        UserError
            The model has none that is known.
        """
        if self.rotary is None:
            known = ", ".join(sorted(_HALF_SPLIT))
            raise UserError(f"{method} moves rotary positions, which {self.model} lacks; model types served: {known}")
        return self.rotary


@dataclass(frozen=True, eq=False)
class Step:
    """One forward of one layer, as a policy sees it.

    Parameters
    ----------
    query
        After rotation, [B, H, Q, d]; its tokens' keys are already stored.
    mask
        What the model's own mask function made: None, boolean (True = visible) or additive, over all tokens read.
    scaling
        Factor of the scores.
    position_ids
        Rotary positions of the queries, [B or 1, Q].
    geometry
        The model's heads and rotation.
    dense
        Computes the unmodified model's own attention over the stored entries, [B, H, Q, d].
    ahead
        Gives the next layer, and a guess of the queries [B, H, Q, d] that it is going to ask; None after the last
        layer, and where the policy does not say that it `looks_ahead`.
    """

    query: Float[Tensor, "batch heads queries dim"]
    mask: Tensor | None
    scaling: float
    position_ids: Int[Tensor, "#batch queries"]
    geometry: Geometry
    dense: Callable[[], Tensor]
    ahead: Callable[[], tuple[KeptLayer, Tensor] | None] = lambda: None

    @property
    def queries(self) -> int:
        """Number of query tokens."""
        return self.query.shape[2]

    def visible(
        self, layer: KeptLayer, start: int = 0, stop: int | None = None
    ) -> Bool[Tensor, "#batch #groups queries entries"] | None:
        """Say which entries of `layer` the queries from `start` to `stop` may see; None where it is all of them."""
        stop = self.queries if stop is None else stop
        if self.mask is None:
            if self.queries == 1:
                return None
            own = torch.arange(layer.seen - self.queries + start, layer.seen - self.queries + stop)
            return layer.positions[:, :, None, :].to(self.query.device) <= own.to(self.query.device)[:, None]
        mask = self.mask[:, :, start:stop]
        if mask.dtype != torch.bool:
            mask = mask > torch.finfo(mask.dtype).min / 2
        if layer.complete:
            return mask[..., : layer.entries]
        index = layer.positions.to(mask.device).long()[:, :, None, :].expand(-1, -1, mask.shape[2], -1)
        return mask.expand(index.shape[0], index.shape[1], -1, -1).gather(3, index)

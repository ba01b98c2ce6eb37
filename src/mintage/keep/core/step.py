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
from mintage.keep.core.attention import attend, attention_weights, weights_by_column
from mintage.keep.core.extras import Extras
from mintage.keep.core.served import decoder_of
from mintage.keep.core.storage import KeptLayer

__all__ = ["Geometry", "Rotary", "Step", "own_way"]

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
        Decoder layers, query heads, key-value heads, dimension of a head; 0 where layers differ in it.
    rotary
        The rotary embedding; None where positions are learned, or where its layout is unknown.
    fingerprint
        What an artefact for this model must state, e.g. ``"llama, 30 layers, 9/3 heads of 64"``.
    latent
        Whether it caches latents, of which keys and values are made when they are read.
    """

    model: str
    layers: int
    heads: int
    groups: int
    dim: int
    rotary: Rotary | None
    fingerprint: str
    latent: bool = False

    @classmethod
    def of(cls, model: Any) -> Geometry:
        """Read it off a Hugging Face model."""
        config = model.config.get_text_config(decoder=True)
        heads = config.num_attention_heads
        groups = _alike(config, "num_key_value_heads") or heads
        dim = _alike(config, "head_dim")
        dim = config.hidden_size // heads if dim is None else dim
        if len(set(getattr(config, "num_attention_heads_per_layer", None) or ())) > 1:
            heads = 0
        latent = bool(getattr(config, "kv_lora_rank", None))
        module = getattr(decoder_of(model), "rotary_emb", None)
        changing = getattr(module, "rope_type", "default") in ("dynamic", "longrope")  # with the length of the text
        known = module is not None and config.model_type in _HALF_SPLIT and not changing
        rotary = Rotary(module) if known else None
        layers = config.num_hidden_layers
        fingerprint = f"{config.model_type}, {layers} layers, {heads}/{groups} heads of {dim}"
        return cls(type(model).__name__, layers, heads, groups, dim, rotary, fingerprint, latent)

    def need_keys(self, method: str) -> None:
        """Refuse a model that caches latents.

        Raises
        ------
        UserError
            It does.
        """
        if self.latent:
            raise UserError(f"{method} looks at cached keys, and {self.model} caches latents; use snapkv or h2o, e.g.")

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


def _alike(config: Any, name: str) -> int | None:
    """Return a size of every layer, 0 where layers differ in it."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # as transformers tells it
        return 0


def own_way(model: str, what: str) -> UserError:
    """Make the refusal of a choice of entries: `what` a model does with its cached keys and values forbids it."""
    return UserError(f"{model} {what}, which does not go with a policy that reads some entries only; use full-cache")


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
    key, value
        What the model made of the entries that the layer gave it: those themselves, or, of latents, keys and values of
        every head, [B, H, M, d]; None: the layer's.
    changed
        What the model does to cached keys and values that a choice of entries does not go with, if it does.
    extras
        The model's own attention function and what else it was passed; None where there is none.
    show
        Takes attention weights [B, H, Q, M] and the tokens of their columns, where the caller wants to see them.
    """

    query: Float[Tensor, "batch heads queries dim"]
    mask: Tensor | None
    scaling: float
    position_ids: Int[Tensor, "*axes queries"]
    geometry: Geometry
    dense: Callable[[], Tensor]
    ahead: Callable[[], tuple[KeptLayer, Tensor] | None] = lambda: None
    key: Float[Tensor, "batch readers entries dim"] | None = None
    value: Float[Tensor, "batch readers entries width"] | None = None
    changed: str = ""
    extras: Extras | None = None
    show: Callable[[Tensor, Tensor], None] | None = None

    @property
    def queries(self) -> int:
        """Number of query tokens."""
        return self.query.shape[2]

    @property
    def plain(self) -> bool:
        """Whether any attention to entries will do: the model adds nothing of its own, nobody looks at the weights."""
        return self.extras is None or (self.extras.plain and self.show is None)

    def visible(
        self, layer: KeptLayer, start: int = 0, stop: int | None = None
    ) -> Bool[Tensor, "#batch #groups queries entries"] | None:
        """Say which entries of `layer` the queries from `start` to `stop` may see; None where it is all of them."""
        stop = self.queries if stop is None else stop
        held = None if not layer.ragged else (layer.positions >= 0)[:, :, None]
        if self.mask is None:
            if self.queries == 1:
                return held
            own = torch.arange(layer.seen - self.queries + start, layer.seen - self.queries + stop)
            seen = layer.positions[:, :, None, :].to(self.query.device) <= own.to(self.query.device)[:, None]
            return seen if held is None else seen & held
        mask = self.mask[:, :, start:stop]
        if mask.shape[1] > 1:
            raise own_way(self.geometry.model, "masks every head in its own way")
        if mask.dtype != torch.bool:
            mask = mask > torch.finfo(mask.dtype).min / 2
        if layer.complete:
            return mask[..., : layer.entries]
        index = layer.positions.to(mask.device).long().clamp(min=0)[:, :, None, :].expand(-1, -1, mask.shape[2], -1)
        seen = mask.expand(index.shape[0], index.shape[1], -1, -1).gather(3, index)
        return seen if held is None else seen & held

    def attend_to_all(
        self, layer: KeptLayer, bias: Float[Tensor, "batch groups entries"] | None = None
    ) -> Float[Tensor, "batch heads queries width"]:
        """Attend to all entries of `layer`."""
        key, value = (
            layer["key"] if self.key is None else self.key,
            layer["value"] if self.value is None else self.value,
        )
        return self.attend(key, value, layer.positions, visible=self.visible(layer), bias=bias)

    def attend(
        self,
        key: Float[Tensor, "batch choosers chosen dim"],
        value: Float[Tensor, "batch choosers chosen width"],
        tokens: Int[Tensor, "#batch #choosers chosen"],
        *,
        visible: Bool[Tensor, "#batch #choosers queries chosen"] | None = None,
        bias: Float[Tensor, "#batch #choosers chosen"] | None = None,
        query: Float[Tensor, "batch heads queries dim"] | None = None,
    ) -> Float[Tensor, "batch heads queries width"]:
        """Attend to some entries as the model does, with whatever it passes to its attention function.

        Parameters
        ----------
        key, value
            The entries, for each key-value head or for each query head.
        tokens
            Which token each of them is.
        visible, bias
            See `mintage.keep.core.attention.attend`.
        query
            In the place of the step's own, or of some of them.

        Raises
        ------
        UserError
            The model passes something that does not go with a choice of entries.
        """
        query = self.query if query is None else query
        if self.extras is None or (self.plain and not self.changed):
            return attend(query, key, value, scaling=self.scaling, visible=visible, bias=bias)
        if self.changed:
            raise own_way(self.geometry.model, self.changed)
        self.extras.check()
        mask: Tensor = query.new_ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
        mask = mask if visible is None else visible
        if bias is not None:
            added = bias[:, :, None].to(query.dtype)
            mask = added.masked_fill(~mask, torch.finfo(query.dtype).min)
        out, weights = self.extras.over(query, key, value, mask, tokens)
        if self.show is not None and weights is not None:
            self.show(weights, tokens)
        return out.transpose(1, 2)

    def weights(
        self, layer: KeptLayer, first: int = 0, bias: Float[Tensor, "batch groups entries"] | None = None
    ) -> Float[Tensor, "batch groups share queries entries"]:
        """Weights that the queries from `first` on give to the entries of `layer`, in float32, heads apart."""
        key = layer["key"] if self.key is None else self.key
        visible = self.visible(layer, first)
        weights = attention_weights(
            self.query[:, :, first:], key, scaling=self.scaling, visible=visible, bias=bias, **self._own_scores()
        )
        return weights.flatten(1, 2).unflatten(1, (layer["key"].shape[1], -1))

    def received(
        self, layer: KeptLayer, bias: Float[Tensor, "batch groups entries"] | None = None
    ) -> Float[Tensor, "batch groups entries"]:
        """Attention that each entry of `layer` receives from all queries, averaged over the heads of its group."""

        def visible(start: int, stop: int) -> Tensor | None:
            return self.visible(layer, start, stop)

        key, own = layer["key"] if self.key is None else self.key, self._own_scores()
        total = weights_by_column(self.query, key, scaling=self.scaling, visible=visible, bias=bias, **own)
        return total.unflatten(1, (layer["key"].shape[1], -1)).mean(2)

    def _own_scores(self) -> dict[str, Any]:
        if self.extras is None:
            return {}
        self.extras.check(looks=True)
        return {"softcap": self.extras.softcap, "sinks": self.extras.sinks}

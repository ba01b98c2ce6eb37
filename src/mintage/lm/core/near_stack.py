"""Stacks whose places see the last few before them alone: Llama's blocks with a sliding window, over streams of bytes.

Attention runs block by block, each with those before it that the window reaches, so that its cost grows with the
length of a text and not with its square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mintage.lm.core.stack import stack
from mintage.models import with_cache

__all__ = ["Near", "NearCache", "near_stack", "run_near"]

NEAR = "mintage_near"
"""Name of the attention."""


@dataclass(frozen=True)
class Near:
    """Which places of rows see which: themselves and those before them, down to `window` in all.

    Parameters
    ----------
    place
        Of a text, shape (rows, longest); places of a row do not fall but where a late run ends.
    late
        See `mintage.lm.core.growing.Layout`.
    window
        Places that one sees.
    """

    place: Int[Tensor, "rows longest"]
    late: Int[Tensor, "rows longest"]
    window: int

    @classmethod
    def plain(cls, rows: int, places: int, window: int, first: int = 0, device: Any = "cpu") -> Near:
        """Make it for rows whose places follow one another."""
        place = torch.arange(first, first + places, device=device).expand(rows, -1)
        return cls(place, torch.full_like(place, -1), window)

    @cached_property
    def block(self) -> int:
        """Places of a block."""
        return max(min(self.window, self.place.shape[1]), 1)

    @cached_property
    def back(self) -> int:
        """Blocks before its own that a place sees: a window of places holds each of them twice at most."""
        if self.place.shape[1] <= self.window:
            return 0
        return 2 if bool((self.late >= 0).any()) else 1

    @cached_property
    def mask(self) -> Bool[Tensor, "blocks 1 block all"]:
        """What the places of every block see of it and of those before it."""
        rows, longest = self.place.shape
        index = torch.arange(longest, device=self.place.device).expand(rows, -1)
        queries = [self.blocks(x[:, None, :, None], fill)[:, 0] for x, fill in self._sides(index)]
        keys = [self.blocks_before(x[:, None, :, None], fill)[:, 0, None, :, 0] for x, fill in self._sides(index)]
        before = (keys[0] >= 0) & (keys[0] <= queries[0])
        reached = queries[1] - keys[1] < self.window
        seen = before & reached & ((keys[2] < 0) | (keys[2] == queries[2]))
        return (seen | (queries[0] < 0))[:, None]  # filling sees anything: a row of nothing has no softmax

    def _sides(self, index: Tensor) -> tuple[tuple[Tensor, int], ...]:
        return (index, -1), (self.place, 0), (self.late, -1)

    def blocks(self, rows: Tensor, filling: int = 0) -> Tensor:
        """Cut rows of shape (rows, heads, longest, size) into blocks, behind one another in the first dimension."""
        longest = rows.shape[2]
        rows = F.pad(rows, (0, 0, 0, -longest % self.block), value=filling)
        return rows.unflatten(2, (-1, self.block)).transpose(1, 2).flatten(0, 1)

    def blocks_before(self, rows: Tensor, filling: int = 0) -> Tensor:
        """Cut rows into the blocks that each block sees."""
        longest = rows.shape[2]
        rows = F.pad(rows, (0, 0, self.back * self.block, -longest % self.block), value=filling)
        cut = rows.unflatten(2, (-1, self.block))
        count = cut.shape[2] - self.back
        seen = torch.cat([cut[:, :, first : first + count] for first in range(self.back + 1)], 3)
        return seen.transpose(1, 2).flatten(0, 1)


class NearCache:
    """Keys and values of the last places of a stack, as many as are seen and may be taken back."""

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add those of new places, and return all that are held."""
        if layer in self.held:
            keys, values = (torch.cat(both, 2) for both in zip(self.held[layer], (keys, values), strict=True))
        self.held[layer] = keys[:, :, -self.kept :], values[:, :, -self.kept :]
        return keys, values

    def take_back(self, places: int) -> None:
        """Forget the last places."""
        if places:
            held = self.held.items()
            self.held = {layer: (keys[:, :, :-places], values[:, :, :-places]) for layer, (keys, values) in held}


def near_stack(width: int, layers: int, heads: int) -> LlamaModel:
    """Make a stack for `run_near`; see `mintage.lm.core.stack.stack`."""
    made = stack(width, layers, heads)
    made.config._attn_implementation = NEAR
    return made


def run_near(
    blocks: LlamaModel,
    hidden: Float[Tensor, "rows longest width"],
    near: Near,
    cache: NearCache | None = None,
    before: Sequence[Callable[[Tensor], Tensor]] = (),
) -> Float[Tensor, "rows longest width"]:
    """Run a stack over places that see those near to them; with a `cache`, behind those that it holds.

    `before` is done to the states in front of every block.
    """
    if not hidden.shape[1]:
        return hidden
    turned = blocks.rotary_emb(hidden, position_ids=near.place)
    for number, layer in enumerate(blocks.layers):
        hidden = before[number](hidden) if before else hidden
        hidden = layer(hidden, position_embeddings=turned, near=near, **with_cache(layer, cache))
    return blocks.norm(hidden)


def _attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads places size"],
    key: Float[Tensor, "rows heads all size"],
    value: Float[Tensor, "rows heads all size"],
    attention_mask: Tensor | None = None,
    *,
    near: Near,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    new, all_ = query.shape[2], key.shape[2]
    if new == all_:
        blocks = near.blocks(query), near.blocks_before(key), near.blocks_before(value)
        out = F.scaled_dot_product_attention(*blocks, attn_mask=near.mask, scale=scaling)
        out = out.unflatten(0, (len(query), -1)).transpose(1, 2).flatten(2, 3)[:, :, :new]
        return out.transpose(1, 2), None
    key, value = (held[:, :, -(near.window + new - 1) :] for held in (key, value))
    mask = None
    if new > 1:
        mask = torch.ones(new, key.shape[2], dtype=torch.bool, device=key.device).tril(key.shape[2] - new)
        mask = mask.triu(key.shape[2] - new - near.window + 1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NEAR, _attention)

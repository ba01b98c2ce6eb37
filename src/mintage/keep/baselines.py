"""The policies people use today, under the same contract: rivals for the papers' methods.

All of them drop entries within `budget`; `FullCache` drops nothing. Where a paper compresses the prompt only, decoding
goes on by the same score, because here a budget holds at every step; the classes say how.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.keep.contract import Geometry, Policy, Step
from mintage.keep.core.evict import Evictor, highest, padding, protect
from mintage.keep.core.storage import KeptLayer
from mintage.options import option

__all__ = ["H2O", "TOVA", "ExpectedAttention", "FullCache", "Knorm", "RandomEviction", "SnapKV", "StreamingLLM"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FullCache(Policy):
    """Keeps and reads everything: the unmodified model, measured by the same means as the others."""

    @classmethod
    def tiny(cls) -> FullCache:
        """Read everything, as always."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamingLLM(Evictor):
    """Attention sinks and a window of the newest tokens (Xiao et al. 2023).

    True positions, not positions within the cache as in the paper: the model is not run past its trained length here.
    """

    sinks: int = option(4, "First tokens, which are always kept.", least=0)
    window: int = option(1, "Newest tokens, which are always kept.", least=1)

    @property
    def smallest(self) -> int:
        """The sinks, the window and one more."""
        return self.sinks + self.window + 1

    def importance(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"]:
        """Sinks first, then the newest."""
        positions = layer.positions.expand(*layer["key"].shape[:2], -1)
        start = 0 if layer.start is None else layer.start[:, None, None]
        return positions.float().masked_fill(positions < start + self.sinks, torch.inf)

    @classmethod
    def tiny(cls) -> StreamingLLM:
        """Hold 12 entries, the newest 2 among them."""
        return cls(budget=12, window=2, sinks=2, every=2)


class _Scored(Evictor):
    """Keeps one float32 score per entry, zero for a new one."""

    def take(self, layer: KeptLayer, key: Tensor, value: Tensor) -> None:
        layer.append(key=key, value=value, score=key.new_zeros(key.shape[:3], dtype=torch.float32))

    def importance(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"]:
        return layer["score"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SnapKV(_Scored):
    """Keeps what the prompt's last queries attend to (Li et al. 2024): the last `window`, whose tokens are kept, too.

    In decoding each new query's weights are added to the scores (the paper compresses the prompt once).
    """

    kernel: int = option(5, "Odd width of the pooling over positions, so that whole passages survive.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise UserError(f"kernel={self.kernel} has no centre; pass an odd number, e.g. 5")

    def observe(self, layer: KeptLayer, step: Step) -> None:
        """Sum the attention of the last `window` queries; heads of a group are averaged."""
        first = max(step.queries - self.window, 0)
        received = step.weights(layer, first).sum(3).mean(2)
        if step.queries == 1:
            layer["score"].add_(received)
        else:
            pooled = functional.avg_pool1d(received, self.kernel, stride=1, padding=self.kernel // 2)
            layer["score"].copy_(pooled)

    @classmethod
    def tiny(cls) -> SnapKV:
        """Hold 12 entries, the newest 4 among them."""
        return cls(budget=12, window=4, kernel=3, every=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class H2O(_Scored):
    """Heavy hitters: entries with the most attention from all queries so far, and the newest (Zhang et al. 2023)."""

    window: int = option(1, "Newest tokens, which are always kept.", least=1)
    recent_share: float | int = option(0.5, "Part of the budget that the newest tokens take.", least=0, below=1)

    def observe(self, layer: KeptLayer, step: Step) -> None:
        """Add the attention of all queries; heads of a group are averaged."""
        layer["score"].add_(step.received(layer))

    def shrink(self, layer: KeptLayer, target: int) -> None:
        """Keep the newest part and the heavy hitters before it."""
        window = max(self.window, int(self.recent_share * target))
        layer.keep(highest(protect(layer, layer["score"], window), target))

    @classmethod
    def tiny(cls) -> H2O:
        """Hold 12 entries."""
        return cls(budget=12, every=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class TOVA(_Scored):
    """Drops what the newest query attends to least; all heads of a layer keep the same tokens (Oren et al. 2024)."""

    window: int = option(1, "Newest tokens, which are always kept.", least=1)

    def observe(self, layer: KeptLayer, step: Step) -> None:
        """Take the last query's weights, averaged over all heads."""
        weights = step.weights(layer, step.queries - 1)
        layer["score"].copy_(weights[:, :, :, 0].mean((1, 2))[:, None].expand_as(layer["score"]))

    @classmethod
    def tiny(cls) -> TOVA:
        """Hold 12 entries."""
        return cls(budget=12, every=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Knorm(Evictor):
    """Drops keys of large norm, which are attended to little (Devoto et al. 2024)."""

    window: int = option(1, "Newest tokens, which are always kept.", least=1)

    def check(self, geometry: Geometry) -> None:
        """Refuse models without keys in their cache."""
        super().check(geometry)
        geometry.need_keys("knorm")

    def importance(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"]:
        """Return the negative norm of the key."""
        return -layer["key"].float().norm(dim=-1)

    @classmethod
    def tiny(cls) -> Knorm:
        """Hold 12 entries."""
        return cls(budget=12, every=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExpectedAttention(Evictor):
    """Scores entries by the attention that future queries, normal like those so far, would pay (Devoto et al. 2025).

    Queries before rotation have mean m and covariance C; averaged over the next `future` positions the rotation is a
    matrix R. The expected exponential score of a key k is exp(k'Rm / sqrt(d) + k'RCR'k / 2d), which is normalised over
    entries and multiplied by the norm of the value.
    """

    window: int = option(1, "Newest tokens, which are always kept.", least=1)
    future: int = option(512, "Positions ahead over which the rotation is averaged.", least=1)
    sinks: int = option(4, "First tokens, which are always kept and whose queries are not counted.", least=0)

    @property
    def smallest(self) -> int:
        """The sinks, the window and one more."""
        return self.sinks + self.window + 1

    def check(self, geometry: Geometry) -> None:
        """Refuse models whose rotation is not known."""
        super().check(geometry)
        geometry.need_rotary("expected-attention")

    def observe(self, layer: KeptLayer, step: Step) -> None:
        """Update the sums of queries, of their products, and their number."""
        query = step.geometry.need_rotary("expected-attention").undo(step.query.float(), step.position_ids)
        first = layer.seen - step.queries
        start = 0 if layer.start is None else layer.start[:, None]
        own = torch.arange(first, layer.seen, device=query.device)[None]
        counted = (own >= start + self.sinks).expand(query.shape[0], -1).to(query.dtype)
        query = query * counted[:, None, :, None]
        sums = {
            "number": counted.sum(1),
            "sum": query.sum(2),
            "products": query.transpose(-1, -2) @ query,
            "next": step.position_ids[:, -1].expand(query.shape[0]) + 1,
        }
        for name, value in sums.items():
            layer.state[name] = value + layer.state[name] if name in layer.state and name != "next" else value.clone()

    def importance(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"]:
        """Return the expected weight times the norm of the value, averaged over the query heads of the group."""
        state, key = layer.state, layer["key"].float()
        groups, dim = key.shape[1], key.shape[3]
        number = state["number"].clamp_min(1)[:, None, None]
        mean = state["sum"] / number
        covariance = state["products"] / number[..., None] - mean[..., :, None] * mean[..., None, :]
        rotation = self._mean_rotation(layer, dim)  # [B, d, d]
        mean = (rotation[:, None] @ mean[..., None])[..., 0]
        covariance = rotation[:, None] @ covariance @ rotation[:, None].transpose(-1, -2)
        mean, covariance = mean.unflatten(1, (groups, -1)), covariance.unflatten(1, (groups, -1))
        scores = torch.einsum("bgmd,bghd->bghm", key, mean) / dim**0.5
        scores = scores + torch.einsum("bgmd,bghde,bgme->bghm", key, covariance, key) / (2 * dim)
        pads = padding(layer)
        if pads is not None:
            scores = scores.masked_fill(pads[:, :, None], -torch.inf)
        expected = scores.softmax(-1).mean(2) * layer["value"].float().norm(dim=-1)
        start = 0 if layer.start is None else layer.start[:, None, None]
        return expected.masked_fill(layer.positions < start + self.sinks, torch.inf)

    def _mean_rotation(self, layer: KeptLayer, dim: int) -> Tensor:
        rotary = layer.geometry.need_rotary("expected-attention")
        first = layer.state["next"]
        ahead = first[:, None] + torch.arange(self.future, device=first.device)
        axes = torch.eye(dim, device=first.device)[None, :, None]  # every axis is a head of its own
        turned = rotary(axes.expand(first.shape[0], dim, self.future, dim), ahead)
        return turned.mean(2).transpose(-1, -2)

    @classmethod
    def tiny(cls) -> ExpectedAttention:
        """Hold 12 entries."""
        return cls(budget=12, sinks=2, future=16, every=2)


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomEviction(Evictor):
    """Keeps the window and a random choice of the others: what any method must beat."""

    seed: int = option(0, "Of the choice.", least=0, below=2**63)

    def importance(self, layer: KeptLayer) -> Float[Tensor, "batch groups entries"]:
        """Return a hash of seed, layer, head and position, uniform in [0, 1)."""
        groups = layer["key"].shape[1]
        heads = torch.arange(groups, device=layer["key"].device)[None, :, None]
        start = 0 if layer.start is None else layer.start[:, None, None]
        x = (
            (layer.positions.long() - start) * 0x9E3779B1
            + heads * 0x85EBCA6B
            + (layer.index + 1) * 0xC2B2AE35
            + self.seed
        )
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
            x = ((x ^ (x >> shift)) & 0xFFFFFFFF) * factor
        x = (x ^ (x >> 15)) & 0xFFFFFF
        return (x.float() / 2**24).expand(*layer["key"].shape[:2], -1)

    @classmethod
    def tiny(cls) -> RandomEviction:
        """Hold 12 entries, the newest 4 among them."""
        return cls(budget=12, window=4, every=2)

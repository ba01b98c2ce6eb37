"""What deletes bytes inside an encoder: gates, the compaction of what is kept, and the controller of how much goes.

A gate is 0 for a byte that stays and `scale` (k = -30) for one that goes, and anything between; padding has `scale`.
MrT5, arXiv 2410.20771, sections 3 and 4. Not here: the encoder (`mintage.lm.mrt5`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm

from mintage.errors import UserError

__all__ = [
    "SEPARATORS",
    "Compacted",
    "DeleteGate",
    "GateScore",
    "PIController",
    "deletion_rate",
    "fixed_gate",
    "gate_loss",
    "hard_delete",
    "random_gate",
]

SEPARATORS = (1, *(byte + 3 for byte in b"\t\n !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"))
"""Ids of ByT5 that end a segment of the fixed gate: the end of the text, white space and ASCII's punctuation."""

_SPREAD = 0.05  # of the random gate's share, from batch to batch
_EPS = 1e-10  # keeps a uniform number's logarithm finite


class GateScore(nn.Linear):
    """The linear function of a gate, a kind of its own so that whatever initialises a model knows it."""

    def __init__(self, d_model: int, start: float | int) -> None:
        self.start = float(start)
        super().__init__(d_model, 1)

    def reset_parameters(self) -> None:
        """Begin by keeping: with a bias of 1 gates are about -8, with one of 5 about -0.2."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.constant_(self.bias, self.start)


class DeleteGate(nn.Module):
    """Score every position: ``G = k sigmoid(-g)``, g a linear function of its normed state (section 3.1).

    Parameters
    ----------
    d_model
        Width of the states.
    scale
        k, what is added to the scores of a key that is deleted.
    eps
        Of the norm.
    norm
        Whether states are normed.
    gumbel
        Whether noise is added to g while training, to explore.
    start
        The bias of g to begin with.
    """

    def __init__(
        self,
        d_model: int,
        scale: float | int = -30.0,
        eps: float = 1e-6,
        *,
        norm: bool = True,
        gumbel: bool = False,
        start: float | int = 1.0,
    ) -> None:
        super().__init__()
        self.layer_norm = T5LayerNorm(d_model, eps=eps) if norm else nn.Identity()
        self.feed_forward = GateScore(d_model, start)
        self.scale, self.gumbel = scale, gumbel

    def forward(
        self, hidden: Float[Tensor, "batch bytes width"], padding: Bool[Tensor, "batch bytes"] | None = None
    ) -> tuple[Float[Tensor, "batch bytes"], Float[Tensor, "batch bytes"]]:
        """Return the gate and its logit g."""
        logit = self.feed_forward(self.layer_norm(hidden))[..., 0]
        if self.training and self.gumbel:
            uniform = torch.rand_like(logit, dtype=torch.float32).clamp(_EPS, 1 - 1e-7)
            logit = logit - (-uniform.log()).log().to(logit.dtype)
        gate = self.scale * torch.sigmoid(-logit)
        return gate if padding is None else gate.masked_fill(padding, self.scale), logit


def random_gate(padding: Bool[Tensor, "batch bytes"], share: float, scale: float | int) -> Float[Tensor, "batch bytes"]:
    """Delete a share of the batch's bytes at random; the share itself is Gaussian (deviation 0.05)."""
    real = (~padding).flatten().nonzero()[:, 0]
    drawn = share + _SPREAD * float(torch.randn(()))
    chosen = torch.randperm(len(real), device=real.device)[: round(min(max(drawn, 0.0), 1.0) * len(real))]
    gate = torch.where(padding.flatten(), scale, 0.0)
    return gate.index_fill(0, real[chosen], scale).view(padding.shape)


def fixed_gate(
    ids: Int[Tensor, "batch bytes"], padding: Bool[Tensor, "batch bytes"], share: float, scale: float
) -> Float[Tensor, "batch bytes"]:
    """Keep the first ``ceil((1 - share) n)`` of every segment of n bytes; a separator ends its segment.

    The authors' code counts segments over the flattened batch; here a row stands for itself.
    """
    ends = torch.isin(ids, torch.tensor(SEPARATORS, device=ids.device)) & ~padding
    segment = ends.cumsum(1) - ends.long()
    place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    sizes = torch.zeros_like(ids).scatter_add_(1, segment, (~padding).long())
    firsts = torch.full_like(ids, ids.shape[1])
    firsts.scatter_reduce_(1, segment, place.masked_fill(padding, ids.shape[1]), "amin")
    kept = torch.ceil((1 - share) * sizes.double() - 1e-9).long()  # 0.3 * 10 is a little more than 3
    within = place - firsts.gather(1, segment)
    stays = (within < kept.gather(1, segment)) & ~padding
    return torch.where(stays, 0.0, scale)


class Compacted(NamedTuple):
    """What is left of a batch after hard deletion, moved to the left; N' is the most that a row keeps.

    Parameters
    ----------
    hidden
        States, shape (batch, N', width).
    bias
        Relative position bias by the original distances, shape (batch, heads, N', N').
    mask
        True where there is something, shape (batch, N').
    index
        Original positions, 0 where there is nothing, shape (batch, N').
    """

    hidden: Float[Tensor, "batch kept width"]
    bias: Float[Tensor, "batch heads kept kept"] | None
    mask: Bool[Tensor, "batch kept"]
    index: Int[Tensor, "batch kept"]


def hard_delete(
    hidden: Float[Tensor, "batch bytes width"],
    gate: Float[Tensor, "batch bytes"],
    threshold: float | int,
    position_bias: Float[Tensor, "#batch heads bytes bytes"] | None = None,
    padding: Bool[Tensor, "batch bytes"] | None = None,
) -> Compacted:
    """Take out padding, and all positions whose gate is not above `threshold` (section 3.2).

    Raises
    ------
    UserError
        No row keeps anything.
    """
    keep = gate > threshold if padding is None else (gate > threshold) & ~padding
    target = keep.long().cumsum(1)
    length = int(target[:, -1].max()) if keep.numel() else 0
    if not length:
        raise UserError(
            f"all {keep.numel()} bytes of the batch are deleted (gates up to {threshold:g}); delete fewer, or call "
            "with hard=False"
        )
    rows, places = keep.nonzero(as_tuple=True)
    index = torch.zeros(len(gate), length, dtype=torch.long, device=gate.device)
    index[rows, target[rows, places] - 1] = places
    mask = torch.arange(length, device=gate.device) < target[:, -1:]
    short = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
    return Compacted(short, None if position_bias is None else _at(position_bias, index), mask, index)


def _at(bias: Float[Tensor, "#batch heads n n"], index: Int[Tensor, "batch kept"]) -> Float[Tensor, "batch heads k k"]:
    """Take rows and columns of a bias for every row of the batch."""
    parts = zip(bias.expand(len(index), -1, -1, -1), index, strict=True)
    return torch.stack([part[:, chosen[:, None], chosen] for part, chosen in parts])


def gate_loss(gate: Float[Tensor, "batch bytes"], padding: Bool[Tensor, "batch bytes"]) -> Float[Tensor, ""]:
    """Return the mean gate of the bytes: negative, the lower the more is deleted (eq. for L_G, section 3.3)."""
    return gate[~padding].mean()


def deletion_rate(
    gate: Float[Tensor, "batch bytes"], padding: Bool[Tensor, "batch bytes"], threshold: float | int
) -> Float[Tensor, ""]:
    """Return the share of the bytes, padding not counted, whose gate is below `threshold`."""
    return (gate[~padding] < threshold).float().mean()


class PIController(nn.Module):
    """Steer the weight of the gate loss to where a share `target` of the bytes is deleted (section 3.4).

    ``e = target - observed``; ``P <- 0.9 P + 0.1 kp e``; ``I <- I + ki e``; the weight of the *next* step is
    ``max(0, P + I)``. Its state is buffers, so that whatever keeps a module keeps it.

    Parameters
    ----------
    target
        Share of the bytes.
    kp, ki
        Gains.

    Raises
    ------
    UserError
        `target` is outside (0, 1).
    """

    def __init__(self, target: float, kp: float = 0.5, ki: float = 1e-5) -> None:
        super().__init__()
        if not 0 < target < 1:
            raise UserError(f"target={target} is outside (0, 1); pass the share of the bytes to delete, e.g. 0.5")
        self.target, self.kp, self.ki = target, kp, ki
        self.proportional = nn.Buffer(torch.zeros((), dtype=torch.float64))
        self.integral = nn.Buffer(torch.zeros((), dtype=torch.float64))

    @property
    def alpha(self) -> float:
        """The weight of the gate loss now."""
        return max(0.0, float(self.proportional + self.integral))

    def step(self, observed: float) -> float:
        """Take note of the share that was deleted, and return the weight of the next step."""
        error = self.target - observed
        self.proportional.mul_(0.9).add_(0.1 * self.kp * error)
        self.integral.add_(self.ki * error)
        return self.alpha

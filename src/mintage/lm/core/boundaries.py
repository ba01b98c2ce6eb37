"""Boundaries that are learnt: where segments of bytes end, how they are pooled, and how bytes read them again.

MAGNET (arXiv 2407.08818, section 2) and dynamic pooling (arXiv 2211.09761): a predictor says of every byte whether a
segment *ends* with it; the choice is a relaxed Bernoulli variable passed straight through, and a binomial prior holds
the number of segments near a share of the bytes. Sums run over places, never over (places x segments) matrices; what
comes out, and its gradient, is the authors'.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mintage.errors import UserError

__all__ = ["BoundaryPredictor", "binomial_nats", "check_prior", "pool", "unpool"]


class BoundaryPredictor(nn.Module):
    """Predict of every position whether a segment ends there.

    Parameters
    ----------
    width, hidden
        Of the states, and of the layer between (GELU).
    prior
        Share of the positions that should end a segment, in (0, 1).
    temperature
        Of the relaxed Bernoulli variable.

    Raises
    ------
    UserError
        `prior` is outside (0, 1), or `temperature` is not above 0.
    """

    def __init__(self, width: int, hidden: int, prior: float, temperature: float = 0.5) -> None:
        super().__init__()
        check_prior(prior)
        if not temperature > 0:
            raise UserError(f"temperature={temperature} is not above 0; pass e.g. 0.5")
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, 1)
        self.prior, self.temperature = prior, temperature

    def forward(
        self, hidden: Float[Tensor, "*places width"], uniform: Float[Tensor, "*places"] | None = None
    ) -> tuple[Float[Tensor, "*places"], Float[Tensor, "*places"], Float[Tensor, "*places"]]:
        """Return soft choices, hard ones with the soft ones' gradient, and logits.

        `uniform` are the draws from (0, 1); by default they are drawn while training, and 0.5 else, so that a segment
        ends where that is likelier than not (the authors draw at evaluation, too).
        """
        logit = self.outer(nn.functional.gelu(self.inner(hidden)))[..., 0].float()
        if uniform is None:
            uniform = torch.rand_like(logit) if self.training else torch.full_like(logit, 0.5)
        eps = torch.finfo(logit.dtype).eps
        uniform = uniform.clamp(eps, 1 - eps)
        soft = torch.sigmoid((logit + uniform.log() - torch.log1p(-uniform)) / self.temperature)
        hard = (soft > 0.5).to(soft)
        return soft, hard - soft.detach() + soft, logit

    def prior_loss(
        self, hard: Float[Tensor, "batch places"], mask: Bool[Tensor, "batch places"] | None = None
    ) -> Float[Tensor, ""]:
        """Return the binomial loss, averaged over rows: per position for whole rows, per row where there is a mask."""
        nats = binomial_nats(hard, self.prior, mask).mean()
        return nats / max(hard.shape[1], 1) if mask is None else nats


def check_prior(prior: float) -> None:
    """Refuse what is no share.

    Raises
    ------
    UserError
        It is outside (0, 1).
    """
    if not (isinstance(prior, int | float) and 0 < prior < 1):
        raise UserError(f"prior={prior!r} is outside (0, 1); pass the share of bytes that end a segment, e.g. 0.2")


def binomial_nats(
    hard: Float[Tensor, "batch places"], prior: float, mask: Bool[Tensor, "batch places"] | None = None
) -> Float[Tensor, " batch"]:
    """Return ``-log Binomial(k; n, prior)`` of every row, k its ends and n its positions (those of the mask).

    The factorials are gamma functions, so that the gradient reaches k through whatever `hard` came from.
    """
    if mask is None:
        n = torch.full_like(hard[:, 0], hard.shape[1]) if hard.shape[1] else hard.sum(1)
    else:
        hard, n = hard * mask, mask.sum(1).to(hard)
    k = hard.sum(1)
    k = k.detach().round() + (k - k.detach())  # straight-through sums are a rounding error off
    rest = n - k
    choices = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(rest + 1)
    return -(choices + k * math.log(prior) + rest * math.log1p(-prior))


def _segments_before(hard: Float[Tensor, "batch places"]) -> Int[Tensor, "batch places"]:
    """Return how many segments have ended before each position: the number of its own."""
    ends = hard.detach().round().long()
    return ends.cumsum(1) - ends


def pool(
    hidden: Float[Tensor, "batch places width"],
    hard: Float[Tensor, "batch places"],
    null: Float[Tensor, " width"],
) -> Float[Tensor, "batch segments width"]:
    """Return the null vector and, behind it, the mean state of every segment.

    A row with fewer segments than the longest has its unfinished tail in the next slot and zeros behind, which no byte
    reads (`unpool`). The gradient moves a position's weight in its segment with the number of ends before it, as the
    authors' indicator ``1 - (s - seg(t))`` does.
    """
    first = null.to(hidden).expand(len(hidden), 1, -1)
    most = int(hard.detach().round().sum(1).max()) if hard.numel() else 0
    if not most:
        return first
    kind = torch.promote_types(hidden.dtype, torch.float32)
    segment = _segments_before(hard)
    before = (hard.cumsum(1) - hard).to(kind)
    weight = 1 + before - before.detach()
    slot = segment[..., None].expand_as(hidden)
    sums = torch.zeros(len(hidden), most + 1, hidden.shape[2], dtype=kind, device=hidden.device)
    sums = sums.scatter_add(1, slot, weight[..., None] * hidden)
    counts = torch.zeros(len(hidden), most + 1, dtype=kind, device=hidden.device).scatter_add(1, segment, weight)
    means = sums / (counts[..., None] + 1e-9)
    return torch.cat([first, means[:, :most].to(hidden.dtype)], 1)


def unpool(
    said: Float[Tensor, "batch segments width"], hard: Float[Tensor, "batch places"]
) -> Float[Tensor, "batch places width"]:
    """Return, for every position, the slot of the latest segment that has ended, its own included; 0 is the null's.

    No gradient goes to `hard`: the authors' normalised indicator passes on 1e-9 of it.
    """
    latest = hard.detach().round().long().cumsum(1)
    return said.gather(1, latest[..., None].expand(-1, -1, said.shape[2]))

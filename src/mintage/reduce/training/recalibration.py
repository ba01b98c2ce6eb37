"""Feature recalibration distillation (FRD): what brings a slimmed block's tokens back, and the loss on them.

Zong, Li et al., ECCV 2022, arXiv 2111.12624, section 3.2. Not here: student and teacher
(`mintage.reduce.training.slimmed_student`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FRDLoss", "ReverseTokenSlimming", "frd_loss"]


class ReverseTokenSlimming(nn.Module):
    """Make `tokens_out` tokens of a block's few (section 3.2): a mixer block without a residual around its token part.

    Parameters
    ----------
    dim
        Width of a token.
    tokens_in, tokens_out
        Numbers of tokens; both are part of the weights.
    ratio
        Hidden width of both parts, over `tokens_out` and `dim`.
    """

    def __init__(self, dim: int, tokens_in: int, tokens_out: int, ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp1, self.mlp2 = _mlp(tokens_in, int(tokens_out * ratio), tokens_out), _mlp(dim, int(dim * ratio), dim)

    def forward(self, x: Float[Tensor, "batch few dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Return as many tokens as the teacher has."""
        y = self.mlp1(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return y + self.mlp2(self.norm2(y))


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    first, second = nn.Linear(width, hidden), nn.Linear(hidden, out)
    for linear in (first, second):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(first, nn.GELU(), second)


class FRDLoss(NamedTuple):
    """The loss and its parts, weighted as they are summed."""

    loss: Tensor
    classes: Tensor
    token: Tensor
    logits: Tensor


def frd_loss(
    student_tokens: Sequence[Float[Tensor, "batch tokens dim"]] | Float[Tensor, "layers batch tokens dim"],
    teacher_tokens: Sequence[Float[Tensor, "batch tokens dim"]] | Float[Tensor, "layers batch tokens dim"],
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Tensor,
    *,
    lambda_token: float = 2.0,
    lambda_logits: float = 2.0,
    tau: float = 1.0,
) -> FRDLoss:
    """Cross-entropy, mean squared error of the blocks' tokens, and divergence of the logits (section 3.2).

    Parameters
    ----------
    student_tokens, teacher_tokens
        Patch tokens behind every block, the student's brought back to the teacher's number; none leaves this part out.
    student_logits, teacher_logits
        Of the same images.
    labels
        Classes, or their probabilities (mixed images).
    lambda_token, lambda_logits, tau
        Weights of the parts, and the temperature of the last one.
    """
    classes = functional.cross_entropy(student_logits, labels)
    errors = [functional.mse_loss(s, t) for s, t in zip(student_tokens, teacher_tokens, strict=True)]
    token = lambda_token * torch.stack(errors).mean() if errors else classes.new_zeros(())
    student, teacher = ((x / tau).log_softmax(1) for x in (student_logits, teacher_logits))
    logits = lambda_logits * tau**2 * functional.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return FRDLoss(classes + token + logits, classes, token, logits)

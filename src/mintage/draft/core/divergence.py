"""How far a student's distribution is from its teacher's, with a gradient that costs few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["divergence"]

_METRIC_POSITIONS = 256


def divergence(
    student: Float[Tensor, "positions known"], log_p: Float[Tensor, "positions known"], overlap: float = 0.0
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Compare the student's distribution q with the teacher's p, which need not sum to 1 over what the student knows.

    The distance is ``(1 - overlap) sum p log(p / q) + overlap (1 - sum min(p, q))``, averaged over positions. The
    gradient with respect to the student's logits is computed along with it, in fewer passes over memory than
    autograd's.

    Parameters
    ----------
    student
        Logits.
    log_p
        Log-probabilities.
    overlap
        Share of the chance that a draft is rejected.

    Returns
    -------
    loss, metrics
        The distance, and its parts: ``divergence``, ``accept`` (``sum min(p, q)``) and ``agree`` (the most likely
        tokens are the same); the latter two over the first positions only where they cost nothing but time.
    """
    with torch.no_grad():
        log_q = student.float().log_softmax(-1)
        p = log_p.exp()
        mass = p.sum(-1, keepdim=True)
        forward = torch.linalg.vecdot(p, log_p - log_q).mean()
        some = slice(None) if overlap else slice(None, _METRIC_POSITIONS)
        agree = (log_q[some].argmax(-1) == log_p[some].argmax(-1)).float().mean()
        q = log_q.exp_()
        accept = torch.minimum(p[some], q[some]).sum(-1).mean()
        slope = torch.mul(q, (1 - overlap) * mass).sub_(p, alpha=1 - overlap)
        if overlap:
            below = torch.where(q < p, q, 0.0)  # d/ds of sum min(p, q) is q [q < p] - q sum q [q < p]
            slope -= overlap * (below - q * below.sum(-1, keepdim=True))
        slope = slope.div_(len(student)).to(student.dtype)
    loss = (1 - overlap) * forward + overlap * (1 - accept)
    return _Known.apply(student, slope, loss), {
        "divergence": float(forward),
        "accept": float(accept),
        "agree": float(agree),
    }  # type: ignore[return-value]


class _Known(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, slope: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0].to(slope.dtype), None, None

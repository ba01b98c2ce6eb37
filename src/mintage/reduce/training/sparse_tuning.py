"""Phase 2 of Sparsifiner's training: the transformer learns under the masks of its frozen predictors.

Wei, Duke et al., CVPR 2023, arXiv 2303.13755, section 3.3: from the labels, and from the logits and the last tokens
that it had before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mintage.reduce.core.adapters import Adapter, adapter_for
from mintage.reduce.sparsifiner import Sparsifiner
from mintage.reduce.training.images import logits_of

__all__ = ["SparseStudent", "Tuning", "TuningLoss", "final_tokens", "tuning_loss"]


class TuningLoss(NamedTuple):
    """The loss and its parts, weighted as they are summed."""

    loss: Tensor
    classes: Tensor
    logits: Tensor
    token: Tensor


def tuning_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Tensor,
    student_tokens: Float[Tensor, "batch tokens dim"],
    teacher_tokens: Float[Tensor, "batch tokens dim"],
    *,
    lambda_logits: float = 0.5,
    lambda_token: float = 0.5,
) -> TuningLoss:
    """Cross-entropy, divergence of the logits, and mean squared error of the last tokens (section 3.3)."""
    classes = functional.cross_entropy(student_logits, labels)
    student, teacher = student_logits.log_softmax(1), teacher_logits.log_softmax(1)
    logits = lambda_logits * functional.kl_div(student, teacher, log_target=True, reduction="batchmean")
    token = lambda_token * functional.mse_loss(student_tokens, teacher_tokens)
    return TuningLoss(classes + logits + token, classes, logits, token)


@contextmanager
def final_tokens(adapter: Adapter) -> Iterator[list[Tensor]]:
    """Collect the tokens that a transformer ends with, behind its last norm."""
    held: list[Tensor] = []
    last: Any = adapter.tower.norm if adapter.timm else adapter.tower

    def hold(_: nn.Module, args: Any, out: Any) -> None:
        held.append(out if isinstance(out, Tensor) else out[0])

    hook = last.register_forward_hook(hold)
    try:
        yield held
    finally:
        hook.remove()


class SparseStudent(nn.Module):
    """A transformer under the masks of its frozen predictors.

    Parameters
    ----------
    model
        Is trained.
    reducer
        With trained predictors.
    """

    def __init__(self, model: nn.Module, reducer: Sparsifiner) -> None:
        super().__init__()
        self.model = model
        self.attached, self.adapter = [reducer(model)], [adapter_for(model)]  # in lists: they hold the model

    def forward(
        self, pixels: Tensor
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch tokens dim"], Int[Tensor, "batch tokens"] | None]:
        """Return logits, last tokens, and which tokens these are if some were pruned."""
        with self.attached[0] as session, final_tokens(self.adapter[0]) as held:
            logits = logits_of(self.model(pixels))
        return logits, held[-1], None if session.state is None else session.state.positions


class Tuning:
    """Phase 2 for the training loop.

    Parameters
    ----------
    student
        Is trained.
    teacher
        The transformer as it was.
    batches
        Makes the batch of any index.
    lambda_logits, lambda_token
        See `tuning_loss`.
    """

    def __init__(
        self,
        student: SparseStudent,
        teacher: nn.Module,
        batches: Callable[[int], dict[str, Tensor]],
        *,
        lambda_logits: float = 0.5,
        lambda_token: float = 0.5,
    ) -> None:
        self.module, self.teacher, self.batches = student, teacher.eval(), batches
        self.weights = {"lambda_logits": lambda_logits, "lambda_token": lambda_token}
        self.adapter = adapter_for(teacher)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return pixels and labels."""
        return self.batches(index)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and its parts."""
        logits, tokens, positions = module(batch["pixels"])
        with torch.no_grad(), final_tokens(self.adapter) as held:
            taught = logits_of(self.teacher(batch["pixels"]))
        wanted = held[-1]
        if positions is not None:
            wanted = wanted.gather(1, positions[..., None].expand(-1, -1, wanted.shape[2]))
        found = tuning_loss(logits, taught, batch["labels"], tokens, wanted, **self.weights)
        right = (logits.detach().argmax(1) == batch["labels"]).float().mean()
        parts = {"classes": found.classes, "logits": found.logits, "token": found.token, "right": right}
        return found.loss, {name: value.item() for name, value in parts.items()}

"""What the training of MrT5 learns: a task under a gate loss whose weight is steered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mintage.lm.core.deletion import PIController
from mintage.lm.core.seq2seq_tasks import Seq2SeqTask
from mintage.lm.mrt5 import MrT5

__all__ = ["Seq2SeqRecipe", "SteeredDeletion"]


class SteeredDeletion(nn.Module):
    """A model with what steers the weight of its gate loss; its state is buffers, so that a killed run goes on.

    Parameters
    ----------
    model, controller
        Without a controller the weight stays.
    weight
        What it then is.
    delay
        Steps before it counts.
    """

    def __init__(self, model: MrT5, controller: PIController | None, weight: float, delay: int) -> None:
        super().__init__()
        self.model, self.controller, self.weight, self.delay = model, controller, weight, delay
        self.steps = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def forward(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and what is worth a log, and steer."""
        alpha = self.weight if self.controller is None else self.controller.alpha
        counts = int(self.steps) >= self.delay
        out = self.model(input_ids=input_ids, labels=labels, gate_weight=alpha if counts else 0.0)
        told = {"cross_entropy": out.cross_entropy.item()}
        if out.deletion_rate is not None:
            told |= {"deleted": out.deletion_rate.item(), "alpha": alpha if counts else 0.0}
            self.steps += 1
            if counts and self.controller is not None:
                self.controller.step(told["deleted"])
        return out.loss, told


class Seq2SeqRecipe:
    """Batches of a task, and the steered loss."""

    def __init__(self, module: SteeredDeletion, task: Seq2SeqTask, rows: int, seed: int) -> None:
        self.module: nn.Module = module
        self.task, self.rows, self.seed = task, rows, seed

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return a batch of the task."""
        return self.task.batch(index, self.rows, self.seed)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the steered loss."""
        return module(batch["input_ids"], batch["labels"])

"""A student under a reducer, and its frozen teacher: feature recalibration distillation (FRD).

Zong, Li et al., ECCV 2022, arXiv 2111.12624, section 3.2. The teacher is the transformer as it was; the student starts
from its weights. *Reverse token slimming modules* bring a block's few tokens back to as many as the teacher has, so
that every block learns densely; they are left behind when the student is saved.

Deviation: no convolutional second teacher (the released code never runs its own). Not here: the loss
(`mintage.reduce.training.recalibration`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mintage.reduce.contract import Reducer
from mintage.reduce.core.adapters import Adapter, adapter_for
from mintage.reduce.training.images import logits_of
from mintage.reduce.training.recalibration import ReverseTokenSlimming, frd_loss

__all__ = ["Distillation", "Student", "block_outputs"]


@contextmanager
def block_outputs(adapter: Adapter) -> Iterator[list[Tensor]]:
    """Collect what every block returns, in order, the prefix included; a reducer behind a block has acted by then."""
    held: list[Tensor] = []

    def hold(_: nn.Module, args: Any, out: Any) -> None:
        held.append(out[0] if isinstance(out, tuple) else out)

    hooks = [layer.register_forward_hook(hold) for layer in adapter.layers]
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()


class Student(nn.Module):
    """A transformer under a reducer, and what brings its tokens back.

    Parameters
    ----------
    model
        Is trained.
    reducer
        Its modules are trained along.
    recover
        Whether to bring tokens back, with a reverse module behind every block that has fewer than the image.
    ratio
        See `ReverseTokenSlimming`.
    """

    def __init__(self, model: nn.Module, reducer: Reducer, *, recover: bool = True, ratio: float = 4.0) -> None:
        super().__init__()
        self.model, self.slimming = model, reducer.modules() or nn.ModuleDict()
        self.attached = [reducer(model)]  # in a list: it holds the model, which is registered already
        self.adapter = [adapter_for(model)]
        anatomy = self.attached[0].anatomy
        behind = enumerate(reducer.kept(anatomy))
        self.reverse = nn.ModuleDict(
            {
                str(layer): ReverseTokenSlimming(anatomy.dim, kept, anatomy.patches, ratio)
                for layer, kept in behind
                if recover and kept < anatomy.patches
            }
        )
        self.recover, self.prefix = recover, anatomy.prefix

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits, and the patch tokens behind every block, as many as the image has (none: not asked)."""
        with self.attached[0], block_outputs(self.adapter[0]) as held:
            logits = logits_of(self.model(pixels))
        if not self.recover:
            return logits, []
        tokens = [x[:, self.prefix :] for x in held]
        return logits, [self.reverse[str(i)](x) if str(i) in self.reverse else x for i, x in enumerate(tokens)]


class Distillation:
    """What the training loop needs: a student, its frozen teacher, and images.

    Parameters
    ----------
    student
        Is trained.
    teacher
        In evaluation mode; stays as it is.
    batches
        Makes the batch of any index.
    lambda_token, lambda_logits, tau
        See `frd_loss`.
    """

    def __init__(
        self,
        student: Student,
        teacher: nn.Module,
        batches: Callable[[int], dict[str, Tensor]],
        *,
        lambda_token: float = 2.0,
        lambda_logits: float = 2.0,
        tau: float = 1.0,
    ) -> None:
        self.module, self.teacher, self.batches = student, teacher.eval(), batches
        self.weights = {"lambda_token": lambda_token, "lambda_logits": lambda_logits, "tau": tau}
        self.adapter = adapter_for(teacher)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return pixels and labels."""
        return self.batches(index)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and its parts."""
        logits, tokens = module(batch["pixels"])
        with torch.no_grad(), block_outputs(self.adapter) as held:
            taught = logits_of(self.teacher(batch["pixels"]))
        wanted = [x[:, self.adapter.prefix :] for x in held] if tokens else []
        found = frd_loss(tokens, wanted, logits, taught, batch["labels"], **self.weights)
        right = (logits.detach().argmax(1) == batch["labels"]).float().mean()
        parts = {"classes": found.classes, "token": found.token, "logits": found.logits, "right": right}
        return found.loss, {name: value.item() for name, value in parts.items()}

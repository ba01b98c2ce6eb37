"""Train slimming modules and the transformer around them: feature recalibration distillation (FRD).

Zong, Li et al., ECCV 2022, arXiv 2111.12624, section 3.2. The teacher is the transformer as it was; the student starts
from its weights. *Reverse token slimming modules* bring a block's few tokens back to as many as the teacher has, so
that every block learns densely; they are left behind when the student is saved.

Deviation: no convolutional second teacher (the released code never runs its own). Not here: the loop (`mintage.train`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mintage.reduce.contract import Reducer
from mintage.reduce.core.adapters import Adapter, adapter_for
from mintage.reduce.training.images import logits_of

__all__ = ["Distillation", "FRDLoss", "ReverseTokenSlimming", "Student", "block_outputs", "frd_loss"]


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

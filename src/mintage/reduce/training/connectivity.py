"""Train connectivity predictors, then tune the transformer under their masks.

Wei, Duke et al., CVPR 2023, arXiv 2303.13755, section 3.3. Phase 1: the transformer is frozen and dense, and every
layer's predictor learns its attention. Phase 2: the predictors are frozen and their masks are on; the transformer
learns from the labels, from the logits and from the last tokens that it had before.

Deviation: the reconstruction loss is a mean over images (the authors': a sum), so that the learning rate does not
depend on the batch. Not here: the loop (`mintage.train`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.core.adapters import Adapter, adapter_for
from mintage.reduce.sparsifiner import Connectivity, Sparsifiner, reconstruction_loss
from mintage.reduce.training.images import logits_of

__all__ = [
    "Predictors",
    "Reconstruction",
    "SparseStudent",
    "Tuning",
    "TuningLoss",
    "Watch",
    "final_tokens",
    "tuning_loss",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Watch(Reducer):
    """Attached to hand every layer's queries and keys to a function; attention stays the model's own.

    Parameters
    ----------
    see
        Called as ``see(evidence, layer)``.
    """

    see: Callable[[Evidence, int], None] = field(default=lambda evidence, layer: None)

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return all."""
        return (anatomy.patches,) * anatomy.layers

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Return what came."""
        return state

    def attend(self, evidence: Evidence, layer: int) -> None:
        """Show what there is, and leave attention to the model."""
        self.see(evidence, layer)

    @property
    def attends(self) -> bool:
        """Always, so that `attend` is called."""
        return True

    @classmethod
    def tiny(cls) -> Watch:
        """Return one that sees nothing."""
        return cls()


# -- phase 1 -------------------------------------------------------------------------------------------------------


class Predictors(nn.Module):
    """The predictors of a frozen transformer; a forward returns every layer's reconstruction loss.

    Parameters
    ----------
    model
        Frozen, dense, in evaluation mode.
    connectivity
        Is trained.
    """

    def __init__(self, model: nn.Module, connectivity: Connectivity) -> None:
        super().__init__()
        self.predictors = connectivity.modules
        self.model = [model.eval()]  # in a list: it is not trained
        self.attached = [Watch(see=self._see)(model)]
        self.losses: list[Tensor] = []

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, " layers"]:
        """Return the loss of every layer, a mean over images."""
        self.losses = []
        with self.attached[0], torch.no_grad():
            self.model[0](pixels)
        return torch.stack(self.losses) / len(pixels)

    def _see(self, evidence: Evidence, layer: int) -> None:
        predictor: Any = self.predictors[str(layer)]
        with torch.enable_grad():
            _, approx = predictor.approximate(evidence.query, evidence.key, dense=True)
            self.losses.append(reconstruction_loss(approx, evidence.attention()[:, :, predictor.prefix :]))


class Reconstruction:
    """Phase 1 for the training loop; see `Predictors`.

    Parameters
    ----------
    predictors
        Are trained.
    batches
        Makes the batch of any index.
    weight
        Of the loss, which is the mean over layers.
    """

    def __init__(
        self, predictors: Predictors, batches: Callable[[int], dict[str, Tensor]], *, weight: float = 0.01
    ) -> None:
        self.module, self.batches, self.weight = predictors, batches, weight

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return pixels and labels, which are not used."""
        return self.batches(index)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, and what it is of the first and the last layer."""
        found = module(batch["pixels"])
        return self.weight * found.mean(), {"first layer": found[0].item(), "last layer": found[-1].item()}


# -- phase 2 -------------------------------------------------------------------------------------------------------


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

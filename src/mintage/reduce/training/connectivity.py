"""Phase 1 of Sparsifiner's training: predictors learn the attention of the frozen, dense transformer.

Wei, Duke et al., CVPR 2023, arXiv 2303.13755, section 3.3. Deviation: the reconstruction loss is a mean over images
(the authors': a sum), so that the learning rate does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.sparsifiner import Connectivity, reconstruction_loss

__all__ = ["Predictors", "Reconstruction", "Watch"]


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

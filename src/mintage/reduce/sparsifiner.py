"""Sparsifiner: every query reads a few keys, which a small predictor picks for each image; all tokens stay.

Wei, Duke et al., CVPR 2023, arXiv 2303.13755. A *connectivity predictor* guesses each layer's attention matrix as a
product of low rank, from queries and keys of fewer channels. The largest entries of every row become a mask, and
attention is evaluated there. Predictors are trained first, on the attention of the transformer itself; then the
transformer is tuned under the masks (``mintage train sparsifiner``).

The sparsity has no structure: it saves multiply-adds (`mhsa_macs`), not by itself seconds. Like the released code, the
``"masked"`` backend computes all scores; ``"gather"`` computes those that are read and moves the keys for it.

Tokens may be pruned as well: where the authors zero a token's rows and hide its column, it leaves here, to the same
effect.

Not here: training (`mintage.reduce.training.sparsifiner`), dropout of attention, other image sizes than the predictors
were trained on (one row of their weights belongs to one token).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.options import option
from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.core.connectivity import Connectivity, ConnectivityPredictor
from mintage.reduce.core.sparse_attention import (
    Backend,
    best_keys,
    connectivity_mask,
    gather_attention,
    keys_read,
    masked_attention,
    mhsa_macs,
    sparse_attention,
)

__all__ = [
    "Connectivity",
    "ConnectivityPredictor",
    "Sparsifiner",
    "connectivity_mask",
    "gather_attention",
    "masked_attention",
    "mhsa_macs",
    "reconstruction_loss",
    "sparse_attention",
]


def reconstruction_loss(
    approx: Float[Tensor, "batch heads patches tokens"], attention: Float[Tensor, "batch heads patches tokens"]
) -> Float[Tensor, ""]:
    """Sum of squared differences to the true attention of the same queries (section 3.3); it grows with everything."""
    return (approx - attention).square().sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class Sparsifiner(Reducer):
    """Sparse attention by predicted connectivity.

    Raises
    ------
    UserError
        A setting is out of range, or a threshold stands with the backend ``"gather"``.
    """

    keep_rate: float | int = option(0.25, "Share of the keys that a patch reads; 1 reads all.", above=0, most=1)
    score_threshold: float | int | None = option(
        None, "Read the keys whose guessed attention is above this, instead of a fixed share."
    )
    backend: Backend = option("masked", "How sparse attention is evaluated, see the module.")
    prune: float | int = option(
        1.0,
        "Share of the patches that stay at each of --prune-at (of all patches: its powers), by the class token's "
        "attention; 1 prunes none.",
        above=0,
        most=1,
    )
    prune_at: tuple[int, ...] = option((3, 6, 9), "Layers, from 0.", least=0)
    weights: str | Connectivity | None = option(
        "vit-tiny-cifar10",
        "A file of mintage train sparsifiner, the name of a model that mintage ships one for, or none for untrained "
        "predictors.",
    )
    fine_tuned: bool = option(True, "Put in the transformer's weights that were tuned under the masks, if any.")
    _held: dict[str, Connectivity] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend == "gather" and self.score_threshold is not None:
            raise UserError("backend gather needs as many keys in every row; use backend=masked with a threshold")

    @property
    def connectivity(self) -> Connectivity | None:
        """The predictors, read when first asked for; None before untrained ones know their transformer."""
        if self.weights is None or isinstance(self.weights, Connectivity):
            return self.weights
        if "weights" not in self._held:
            self._held["weights"] = Connectivity.load(self.weights)
        return self._held["weights"]

    def fitted(self, model: nn.Module, anatomy: Anatomy) -> Sparsifiner:
        """Refuse a model that the predictors were not trained for; make untrained ones where none were asked for."""
        if not self.attends and not self._tunes:
            return self
        if self.connectivity is None:
            return replace(self, weights=Connectivity.new(anatomy))
        self.connectivity.check(model, anatomy)
        return self

    @property
    def _tunes(self) -> bool:
        return self.fine_tuned and self.weights is not None

    @property
    def attends(self) -> bool:
        """Whether a patch reads less than everything."""
        return self.keep_rate < 1 or self.score_threshold is not None

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return all patches, unless tokens are pruned, too."""
        held = self.connectivity if self.attends else None
        if held is not None and held.patches != anatomy.patches:
            raise UserError(
                f"connectivity predictors for {held.patches} patches, but this image has {anatomy.patches}; "
                f"pass images of the size that they were trained on, or train them with {held.again()}"
            )
        if self.prune < 1 and not anatomy.prefix:
            raise UserError("prune needs a class token, whose attention it goes by; this model has none")
        passed, kept = 0, []
        for layer in range(anatomy.layers):
            passed += layer in self.prune_at
            kept.append(max(math.ceil(self.prune**passed * anatomy.patches), 1))
        return tuple(kept)

    def attend(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads tokens head_dim"] | None:
        """Guess the connectivity, and attend to it; None where it is everything."""
        held, tokens = self.connectivity, evidence.key.shape[2]
        assert held is not None
        total = held.tokens
        if self.score_threshold is None and keys_read(self.keep_rate, total) >= tokens:
            return None
        approx = self.guess(evidence, layer)
        parts = evidence.query, evidence.key, evidence.value
        if self.backend == "gather":
            return gather_attention(*parts, best_keys(approx, self.keep_rate, total), evidence.scaling)
        mask = connectivity_mask(approx, self.keep_rate, threshold=self.score_threshold, tokens=total)
        return masked_attention(*parts, mask, evidence.scaling)

    @torch.no_grad()
    def guess(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads patches tokens"]:
        """Return the attention that a layer's predictor expects."""
        assert self.connectivity is not None
        predictor: Any = self.connectivity.modules[str(layer)]
        return predictor.approximate(evidence.query, evidence.key, positions=evidence.positions)[1]

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Keep the patches that the class token attends to most, in their order."""
        score = evidence.row(0).mean(1)[:, state.prefix :]
        return state.keep(score.topk(keep).indices.sort(1).values)

    def modules(self) -> nn.ModuleDict | None:
        """Return the predictors."""
        return self.connectivity.modules if self.attends and self.connectivity is not None else None

    def backbone(self) -> Mapping[str, Tensor]:
        """Return the transformer's weights that were tuned under the masks."""
        return self.connectivity.backbone if self._tunes and self.connectivity is not None else {}

    @property
    def fixed(self) -> bool:
        """Its strength is a share of the attention, which a share of all multiply-adds does not set."""
        return True

    def unreduced(self) -> Sparsifiner:
        """Return one whose patches read everything, on the transformer's own weights."""
        return replace(self, keep_rate=1.0, score_threshold=None, prune=1.0, fine_tuned=False)

    def mhsa_macs(self, anatomy: Anatomy) -> tuple[int, int]:
        """Multiply-adds of all attention blocks for one image, dense and as the paper counts sparse ones.

        Raises
        ------
        UserError
            A threshold decides, so that the number depends on the image.
        """
        if self.score_threshold is not None:
            raise UserError("with score_threshold the multiply-adds depend on the image; use keep_rate")
        held = self.connectivity or Connectivity.new(anatomy)
        return held.mhsa_macs(anatomy, self.kept(anatomy), keys_read(self.keep_rate, held.tokens))

    @classmethod
    def tiny(cls) -> Sparsifiner:
        """Return one with untrained predictors."""
        return cls(weights=None)

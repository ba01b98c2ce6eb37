"""The configuration of `mintage.lm.mrt5`: T5's, and what deletes."""

from __future__ import annotations

from typing import Any

from transformers import T5Config

from mintage.errors import UserError, did_you_mean
from mintage.options import Range

__all__ = ["MrT5Config"]

GATES = ("scaled_sigmoid", "random", "fixed", "none")
_RANGES = {
    "sigmoid_mask_scale": Range(below=0),
    "random_deletion_probability": Range(above=0, below=1),
    "fixed_deletion_amount": Range(above=0, below=1),
    "hard_delete_train_prob": Range(least=0, most=1),
    "scores_loss_coeff": Range(least=0),
}


class MrT5Config(T5Config):
    """T5's configuration and what deletes; the defaults of the gate are the paper's.

    Parameters
    ----------
    deletion_type
        ``"scaled_sigmoid"``, the learnt gate; ``"random"``, ``"fixed"`` (the first of each segment stay), ``"none"``.
    delete_gate_layer
        Block in front of which the gate stands.
    sigmoid_mask_scale, deletion_threshold
        k, and the gate below which a byte is deleted, default k / 2.
    use_softmax1
        Whether all attention is `softmax1`.
    random_deletion_probability, fixed_deletion_amount
        Share of the bytes that these two delete.
    hard_delete_train_prob
        Share of the training batches that are deleted hard.
    scores_loss_coeff
        beta, weight of the penalty on high scores, for training from scratch.
    gate_layer_norm, use_gumbel_noise, gate_bias
        See `mintage.lm.core.deletion.DeleteGate`.

    Raises
    ------
    UserError
        A value is out of range.
    """

    model_type = "mrt5"

    def __init__(
        self,
        deletion_type: str = "scaled_sigmoid",
        delete_gate_layer: int = 3,
        sigmoid_mask_scale: float | int = -30.0,
        deletion_threshold: float | int | None = None,
        use_softmax1: bool = True,
        random_deletion_probability: float | int = 0.5,
        fixed_deletion_amount: float | int = 0.5,
        hard_delete_train_prob: float | int = 0.0,
        scores_loss_coeff: float | int = 0.0,
        gate_layer_norm: bool = True,
        use_gumbel_noise: bool = False,
        gate_bias: float | int = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"decoder_start_token_id": 0, **kwargs})
        self.deletion_type, self.delete_gate_layer = deletion_type, delete_gate_layer
        self.sigmoid_mask_scale, self.deletion_threshold = sigmoid_mask_scale, deletion_threshold
        self.use_softmax1, self.scores_loss_coeff = use_softmax1, scores_loss_coeff
        self.random_deletion_probability, self.fixed_deletion_amount = (
            random_deletion_probability,
            fixed_deletion_amount,
        )
        self.hard_delete_train_prob = hard_delete_train_prob
        self.gate_layer_norm, self.use_gumbel_noise, self.gate_bias = gate_layer_norm, use_gumbel_noise, gate_bias
        self._check()

    def _check(self) -> None:
        if self.deletion_type not in GATES:
            raise UserError(f"deletion_type={self.deletion_type!r}; {did_you_mean(str(self.deletion_type), GATES)}")
        for name, limits in _RANGES.items():
            if not limits.holds(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)} is out of range; pass a number {limits}")
        if self.deletion_type != "none" and not 1 <= self.delete_gate_layer < self.num_layers:
            raise UserError(
                f"delete_gate_layer={self.delete_gate_layer} is no block of an encoder of {self.num_layers} that has "
                f"one before it; pass 1 to {self.num_layers - 1}"
            )
        if not self.sigmoid_mask_scale <= self.threshold < 0:
            raise UserError(
                f"deletion_threshold={self.deletion_threshold} is outside [{self.sigmoid_mask_scale}, 0); "
                f"pass e.g. {self.sigmoid_mask_scale / 2}"
            )
        if self.scores_loss_coeff and not self.use_softmax1:
            raise UserError(f"scores_loss_coeff={self.scores_loss_coeff} needs use_softmax1=True; or pass 0")

    @property
    def threshold(self) -> float | int:
        """The gate below which a byte is deleted."""
        return self.sigmoid_mask_scale / 2 if self.deletion_threshold is None else self.deletion_threshold

"""What a method brings to the training loop, and how to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from mintage.errors import UserError

__all__ = ["Recipe", "Settings"]


@runtime_checkable
class Recipe(Protocol):
    """What a method brings to the loop.

    Attributes
    ----------
    module
        What is trained: its parameters with ``requires_grad``. All its tensors are checkpointed, so a frozen model
        that the loss needs is better kept outside it.
    """

    @property
    def module(self) -> nn.Module:
        """See above."""
        ...

    def batch(self, index: int) -> Any:
        """Return batch number `index`: the same one whenever it is asked for. Tensors are moved to the device."""
        ...

    def loss(self, module: nn.Module, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Return the scalar loss of `batch` and metrics to log; `module` is `Recipe.module`, perhaps wrapped."""
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train.

    Parameters
    ----------
    steps
        Optimiser steps.
    lr, warmup, final_lr
        Peak learning rate; steps of linear warm-up; share of the peak that the cosine ends at.
    optimiser
        ``"adamw"``, or ``"muon"`` (Jordan et al. 2024): the weights of linear layers in repeated blocks (those within
        an `nn.ModuleList`) take orthogonalised steps of the size that AdamW's have, all else takes AdamW's.
    weight_decay, betas
        The decay applies to parameters of two or more dimensions; the betas are AdamW's.
    clip
        Largest gradient norm; 0 does not clip.
    accumulate
        Batches per optimiser step.
    bf16
        Run the loss under bfloat16 autocast.
    ema
        Decay of the exponential moving average of weights and float buffers, with which the module ends; 0 keeps none.
    seed
        Of everything random.
    save_every, log_every
        Steps between checkpoints and between log rows; the last step always has both.

    Raises
    ------
    UserError
        A value is out of range.
    """

    steps: int
    lr: float
    warmup: int = 0
    final_lr: float = 0.0
    optimiser: str = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    accumulate: int = 1
    bf16: bool = False
    ema: float = 0.0
    seed: int = 0
    save_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}; pass at least 1")
        if self.optimiser not in ("adamw", "muon"):
            raise UserError(f"unknown optimiser {self.optimiser!r}; known: adamw, muon")
        if not self.lr > 0:
            raise UserError(f"lr={self.lr} is not positive; pass e.g. 1e-3")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema={self.ema} is outside [0, 1); pass e.g. 0.999, or 0 for none")
        if min(self.warmup, self.clip, self.weight_decay) < 0:
            raise UserError("warmup, clip and weight_decay cannot be negative")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step number `step` (the first is 0)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

"""What a method brings to the training loop, and how to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from mintage.options import Options, option

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
class Settings(Options):
    """How to train.

    Weights of linear layers in repeated blocks (those within an `nn.ModuleList`) take Muon's orthogonalised steps
    (Jordan et al. 2024) where `optimiser` says so, of the size that AdamW's have; all else takes AdamW's.

    Raises
    ------
    UserError
        A value is of another type, or out of range.
    """

    steps: int = option(help="Optimiser steps.", least=1)
    lr: float = option(help="Peak learning rate.", above=0)
    warmup: int = option(0, "Steps of linear warm-up.", least=0)
    final_lr: float = option(0.0, "Share of the peak that the cosine ends at.", least=0, most=1)
    optimiser: Literal["adamw", "muon"] = option("adamw", "What steps the matrices of repeated blocks take.")
    weight_decay: float = option(0.0, "Of parameters of two or more dimensions.", least=0)
    betas: tuple[float, float] = option((0.9, 0.999), "Decay of AdamW's averages.", least=0, below=1)
    clip: float = option(1.0, "Largest gradient norm; 0 does not clip.", least=0)
    accumulate: int = option(1, "Batches per optimiser step.", least=1)
    bf16: bool = option(False, "Compute the loss under bfloat16 autocast.")
    ema: float = option(
        0.0, "Decay of the average of weights and float buffers that the module ends with; 0: none.", least=0, below=1
    )
    seed: int = option(0, "Of everything random.", least=0, below=2**63)
    save_every: int = option(100, "Steps between checkpoints; the last step always has one.", least=1)
    log_every: int = option(10, "Steps between log rows; the last step always has one.", least=1)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step number `step` (the first is 0)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

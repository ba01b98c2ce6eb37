"""The one training of all byte language models: windows of text, AdamW, nats per symbol."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mintage.data import Corpus, texts
from mintage.errors import UserError
from mintage.lm.contract import ByteLanguageModel
from mintage.lm.core.windows import Windows, byte_windows, hold_out
from mintage.options import option
from mintage.train import Recipe, Settings
from mintage.train.training import Training, Work

__all__ = ["ByteRecipe", "ByteTraining", "TextTraining", "english", "mean_bits_per_byte"]

ENGLISH = ("wikitext2", "speeches", "gsm8k")


def english() -> Iterable[str]:
    """Return what is learnt from by default: articles, speeches and problems in English, 3.6 MB."""
    return (text for name in ENGLISH for text in texts(name, "train", domain="en"))


@dataclass(frozen=True, kw_only=True)
class TextTraining(Training, ABC):
    """What trainings on windows of text share: the options, the windows, the settings of the loop, the folder."""

    suffix: ClassVar[str] = ""

    texts: tuple[str, ...] = option((), "Text files or folders; none: 3.6 MB of English.", argument=True)
    steps: int = option(1000, "Optimiser steps.", least=1)
    rows: int = option(8, "Windows per step.", least=1)
    window: int = option(512, "Bytes of a window.", least=8)
    lr: float = option(2e-3, "Peak learning rate; cosine to a tenth.", above=0)
    warmup: int = option(50, "Steps of linear warm-up.", least=0)
    optimiser: Literal["adamw", "muon"] = option("adamw", "What matrices of blocks take; all else takes adamw.")
    bf16: bool = option(False, "Compute in bfloat16 where torch can; faster with AMX or on a GPU.")

    def corpus(self) -> Windows:
        """Read what is learnt from."""
        return hold_out(byte_windows(Corpus(*self.texts) if self.texts else english(), self.window))

    def loop_settings(self) -> Settings:
        """Return those of the loop."""
        return Settings(
            steps=self.steps,
            lr=self.lr,
            warmup=min(self.warmup, self.steps),
            final_lr=0.1,
            weight_decay=0.1,
            betas=(0.9, 0.95),
            optimiser=self.optimiser,
            bf16=self.bf16,
            seed=self.seed,
        )

    def train(self, recipe: Recipe, work: Work) -> None:
        """Train in the run's folder, and tell the bytes that were read."""
        work.stage("training", recipe, self.loop_settings(), unit=self.rows * self.window, of="bytes")

    def check_out(self, path: Path) -> None:
        """Refuse to take the place of anything but a model that was written before."""
        if path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists():
            raise UserError(f"{path} holds other files; pass a new folder")
        super().check_out(path / "config.json" if path.is_dir() else path)


@dataclass(frozen=True, kw_only=True)
class ByteTraining(TextTraining):
    """What the trainings of byte language models share; a subclass makes the model."""

    after: ClassVar[str] = "mintage generate 'The ' --model FOLDER --raw"

    lr: float = option(1e-2, "Peak learning rate; cosine to a tenth. With adamw pass less, e.g. 0.002.", above=0)
    optimiser: Literal["adamw", "muon"] = option("muon", "What matrices of blocks take; all else takes adamw.")

    @abstractmethod
    def build(self, windows: Windows) -> ByteLanguageModel:
        """Make the model; torch's generator is seeded."""

    def learn(self, work: Work) -> ByteLanguageModel:
        """Cut windows, make the model, train it, and measure it on the windows held out."""
        return self.fit(self.corpus(), work)

    def fit(self, windows: Windows, work: Work) -> ByteLanguageModel:
        """Train on windows that are there."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed % 2**63)
            model = self.build(windows)
        recipe = ByteRecipe(model, windows, self.rows, self.seed)
        self.train(recipe, work)
        model.eval()
        model.config.held_out_bits_per_byte = mean_bits_per_byte(model, windows.held_out, self.rows)
        return model

    def summary(self, made: ByteLanguageModel) -> str:
        """Return what a held-out byte costs."""
        size = sum(p.numel() for p in made.parameters()) / 1e6
        return f"{made.config.held_out_bits_per_byte:.3f} bits per byte on held-out windows, {size:.2f} M parameters"


class ByteRecipe:
    """Windows in seeded order; the loss is the model's own."""

    def __init__(self, model: ByteLanguageModel, windows: Windows, rows: int, seed: int) -> None:
        self.module: nn.Module = model
        self.windows, self.rows, self.seed = windows, rows, seed

    def batch(self, index: int) -> Tensor:
        """Return a batch of windows."""
        return self.windows.batch(index, self.rows, self.seed)

    def loss(self, module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return nats per symbol with the method's own terms, and bits per byte."""
        found = module(batch)
        bits = float(found.nats.detach().sum()) / batch.numel() / math.log(2)
        return found.loss, {"bits": bits, **(found.told or {})}


@torch.no_grad()
def mean_bits_per_byte(model: ByteLanguageModel, windows: Any, rows: int = 16, context: int = 0) -> float:
    """Return what bytes of windows cost on average; the first `context` bytes of each are read and not counted."""
    total = 0.0
    for start in range(0, len(windows), rows):
        ids = torch.from_numpy(np.asarray(windows[start : start + rows], np.int64)).to(model.device)
        total += float(model(ids).nats[:, context:].double().sum())
    return total / (len(windows) * (windows.shape[1] - context)) / math.log(2)

"""Trainings of the rivals that cut a stream of bytes in other ways than MAGNET."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mintage.lm.baselines import DynamicPooling, DynamicPoolingConfig, EntropyPatches, EntropyPatchesConfig
from mintage.lm.core.windows import Windows
from mintage.lm.magnet import ANY
from mintage.lm.training.byte_training import ByteRecipe, ByteTraining
from mintage.lm.training.magnet import SegmentTraining
from mintage.options import option
from mintage.train.training import Work

__all__ = ["DynamicPoolingTraining", "EntropyPatchesTraining", "EntropyTraining"]

MEASURED = 64
"""Batches on which the threshold is found."""


@dataclass(frozen=True, kw_only=True)
class DynamicPoolingTraining(SegmentTraining):
    """Train dynamic token pooling: segments that are learnt, one rate for all scripts."""

    name: ClassVar[str] = "dynamic-pooling"
    examples: ClassVar[tuple[str, ...]] = ("mintage train dynamic-pooling notes/ --prior 0.2 -o my-segments",)

    prior: float = option(0.2, "Share of the bytes that end segments.", above=0, below=1)

    def build(self, windows: Windows) -> DynamicPooling:
        """See `ByteTraining.build`."""
        return DynamicPooling(DynamicPoolingConfig(scripts={ANY: self.prior}, **self.own_sizes))


@dataclass(frozen=True, kw_only=True)
class EntropyTraining(ByteTraining):
    """What the trainings of models over entropy patches share: a small model, trained first, whose doubt ends them."""

    share: float = option(0.2, "Of the bytes that end patches; the threshold is found by it.", above=0, below=1)
    small_width: int = option(64, "Of the small model's vectors.", least=2)
    small_layers: int = option(2, "Blocks of the small model.", least=1)
    small_heads: int = option(4, "Of the small model's attention.", least=1)
    small_steps: int = option(1000, "Optimiser steps of the small model.", least=1)

    @property
    def small_sizes(self) -> dict[str, int]:
        """Keywords of the small model in a configuration."""
        return {name: getattr(self, name) for name in ("small_width", "small_layers", "small_heads")}

    def train(self, recipe: Any, work: Work) -> None:
        """Train the small model, find the threshold, and train the rest."""
        model: Any = recipe.module
        model.small.requires_grad_(True)
        first = ByteRecipe(model.small, recipe.windows, self.rows, self.seed)
        steps = {"steps": self.small_steps, "warmup": min(self.warmup, self.small_steps)}
        settings = dataclasses.replace(self.loop_settings(), **steps)
        work.stage("small model", first, settings, unit=self.rows * self.window, of="bytes")
        model.small.requires_grad_(False)
        batches = [recipe.batch(index) for index in range(min(MEASURED, self.steps))]
        entropy = torch.cat([model.entropy(batch).flatten() for batch in batches])
        model.config.threshold = float(entropy.sort().values[int((1 - self.share) * len(entropy))])
        super().train(recipe, work)


@dataclass(frozen=True, kw_only=True)
class EntropyPatchesTraining(EntropyTraining, SegmentTraining):
    """Train a model over patches that end where a small model, trained first, is unsure of the next byte."""

    name: ClassVar[str] = "entropy-patches"
    examples: ClassVar[tuple[str, ...]] = ("mintage train entropy-patches notes/ --share 0.2 -o my-patches",)

    def build(self, windows: Windows) -> EntropyPatches:
        """See `ByteTraining.build`."""
        return EntropyPatches(EntropyPatchesConfig(**self.own_sizes, **self.small_sizes))

"""Train slimming modules and the transformer around them (Zong, Li et al., ECCV 2022, arXiv 2111.12624).

Not here: student and teacher (`mintage.reduce.training.slimmed_student`), the loop (`mintage.train`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from mintage.options import option
from mintage.reduce.contract import Reducer
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.sit_slim import SelfSlimmed, Slimming
from mintage.reduce.training.images import ImageTraining, TrainingImages, on_device
from mintage.reduce.training.slimmed_student import Distillation, Student
from mintage.train.training import Work
from mintage.weights import Imprint

__all__ = ["SitSlimTraining"]


@dataclass(frozen=True, kw_only=True)
class SitSlimTraining(ImageTraining):
    """Train a transformer that slims its own tokens, taught by the transformer that it was (SiT)."""

    name: ClassVar[str] = "sit-slim"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train sit-slim --out slim.safetensors",
        "mintage train sit-slim --model ./my-vit --images photos/ --stages 9,3,2,2",
    )
    after: ClassVar[str] = "mintage bench reduce sit-slim:weights=slim.safetensors"

    stages: tuple[int, ...] = option((1, 1, 1, 5), "Blocks of each stage; a slimming follows all but the last.")
    ratio: float = option(0.5, "Share of the patch tokens that every stage keeps.", above=0, below=1)
    counts: tuple[int, ...] = option((), "Numbers of tokens in the place of --ratio, e.g. 32,16,8.")
    steps: int = option(1000, "Optimiser steps.", least=1)
    lr: float = option(1e-3, "Peak learning rate (cosine, no warm-up, as the authors train).", above=0)
    weight_decay: float = option(0.05, "Of weights of two or more dimensions.", least=0)
    recover: bool = option(True, "Learn from the tokens of every block, not from logits only.")
    recover_ratio: float = option(1.0, "Width of the modules that bring tokens back (paper: 4).", above=0)
    init_std: float = option(0.16, "Of the modules' first weights (paper: 0.02, long training).", least=0)
    lambda_token: float = option(2.0, "Weight of the error of the tokens.", least=0)
    lambda_logits: float = option(2.0, "Weight of the divergence of the logits.", least=0)
    tau: float = option(1.0, "Temperature of the divergence.", above=0)
    cut: int = option(0, "Side of the square that is cut out of an image; 0 for none.", least=0)

    def teach(self, images: TrainingImages, work: Work) -> Slimming:
        """Train modules and transformer.

        Raises
        ------
        UserError
            Stages do not fit the model, or the folder holds another run.
        """
        teacher = images.classifier.model
        slimming = self.slimming(teacher)
        model = self.distil(images, SelfSlimmed(weights=slimming), work)
        slimming.backbone = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
        slimming.imprint = Imprint.of(teacher)
        log = (work.folder / "train" / "log.jsonl").read_text().splitlines()[-1]
        slimming.as_saved()
        slimming.notes = self.tested(SelfSlimmed(weights=slimming), images, work) | {"log": log}
        return slimming

    def slimming(self, model: nn.Module) -> Slimming:
        """Make untrained modules for a model."""
        anatomy = adapter_for(model).anatomy()
        return Slimming.new(
            anatomy, self.stages, self.ratio, counts=self.counts, seed=self.seed, init_std=self.init_std
        )

    def distil(self, images: TrainingImages, reducer: Reducer, work: Work) -> nn.Module:
        """Train a copy of a classifier under any reducer; the reducer's modules are trained in place.

        Other methods than SiT have no reverse modules: they learn without `recover`.

        Returns
        -------
        nn.Module
            The trained copy, on the CPU, in evaluation mode.
        """
        model = copy.deepcopy(images.classifier.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            student = Student(model, reducer, recover=self.recover, ratio=self.recover_ratio)
        batches = images.batches(self.batch_rows, cut=self.cut, seed=self.seed)
        teacher = on_device(images.classifier.model, self.device)
        weights = {"lambda_token": self.lambda_token, "lambda_logits": self.lambda_logits, "tau": self.tau}
        settings = self.settings(steps=self.steps, lr=self.lr, weight_decay=self.weight_decay)
        work.stage("train", Distillation(student, teacher, batches, **weights), settings)
        student.cpu()
        return model.eval()

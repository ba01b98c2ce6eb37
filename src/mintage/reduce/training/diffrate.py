"""Find how many tokens each block should prune and merge, by gradient, under a budget of multiply-adds.

Chen et al., ICCV 2023, arXiv 2305.17997, sections 3.2 to 3.4. Every block gets two *rate proxies*: distributions over
how many patches to keep. In training nothing is removed: tokens beyond the expected number are masked out of attention,
hard forward, and backward by the probability that they stay, so that the gradient says whether one more token would
have helped. The model itself is frozen; a few hundred steps move only these distributions. AdamW moves a logit by about
the learning rate a step, so they need ten times the paper's 0.01, which it uses for 3,750 steps, to get as far.

The squared difference from the budget is taken relative to the unmodified model, and its weight of 100 is the paper's 5
per squared GMAC on DeiT-S (4.6 GMACs): in GMACs it would vanish for small models.

Not here: mixup, which the authors train with; a search on images without labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import option
from mintage.reduce.contract import Anatomy
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.core.rate_schedule import RateSchedule, write_schedules
from mintage.reduce.diffrate import DiffRate
from mintage.reduce.training.images import ImageTraining, TrainingImages, accuracy, logits_of, on_device
from mintage.reduce.training.masked import MaskedDiffRate
from mintage.reduce.training.rates import Rates, expected_macs
from mintage.train.training import Work

__all__ = ["DiffRateTraining", "RateSearch", "Schedules"]


class RateSearch:
    """What the training loop needs: rates, batches, and the loss of eq. 10.

    Parameters
    ----------
    rates
        Are searched.
    model
        Frozen.
    batches
        Make the batch of any index: ``pixels`` and ``labels``.
    anatomy
        Sizes of the model.
    share
        Of its multiply-adds, that is aimed at.
    cost_weight
        Of the squared relative difference from the budget.
    smoothing
        Of the labels.
    """

    def __init__(
        self,
        rates: Rates,
        model: nn.Module,
        batches: Callable[[int], dict[str, Tensor]],
        anatomy: Anatomy,
        *,
        share: float,
        cost_weight: float = 100.0,
        smoothing: float = 0.1,
    ) -> None:
        self.module, self.model, self.batches, self.anatomy, self.share = rates, model, batches, anatomy, share
        self.cost_weight, self.smoothing = cost_weight, smoothing

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return pixels and labels."""
        return self.batches(index)

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the smoothed cross-entropy plus the weighted distance from the budget, and both to log."""
        rates = module()
        with MaskedDiffRate(rates=rates)(self.model):
            logits = logits_of(self.model(batch["pixels"])).float()
        task = functional.cross_entropy(logits, batch["labels"], label_smoothing=self.smoothing)
        share = expected_macs(rates, self.anatomy) / self.anatomy.full
        cost = self.cost_weight * (share - self.share) ** 2
        return task + cost.float(), {"task": task.item(), "share": share.item()}


class Schedules(tuple[RateSchedule, ...]):
    """Searched schedules, which write themselves as JSON."""

    def save(self, path: Path, notes: Mapping[str, str]) -> None:
        """Write what `mintage.reduce.core.rate_schedule.read_schedules` reads."""
        own = {name: json.loads(text) if name == "settings" else text for name, text in notes.items()}
        write_schedules(path, [replace(found, notes={**found.notes, **own}) for found in self])


@dataclass(frozen=True, kw_only=True)
class DiffRateTraining(ImageTraining):
    """Search how many tokens each block should prune and merge, for a budget of multiply-adds; the model is frozen."""

    name: ClassVar[str] = "diffrate"
    suffix: ClassVar[str] = ".json"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train diffrate --shares 0.8,0.65,0.5 --out rates.json",
        "mintage train diffrate --model facebook/deit-small-patch16-224 --images photos/ --granularity 4",
    )
    after: ClassVar[str] = "mintage bench reduce diffrate:schedule=rates.json"

    shares: tuple[float, ...] = option((0.6,), "Shares of the multiply-adds; each gets a schedule.", above=0, below=1)
    steps: int = option(400, "Optimiser steps per schedule.", least=1)
    lr: float = option(0.1, "Peak learning rate (cosine to a tenth; the paper: 0.01, ten times the steps).", above=0)
    granularity: int = option(1, "Step between the numbers of tokens that are tried.", least=1)
    prunes: bool = option(True, "Search numbers to prune.")
    merges: bool = option(True, "Search numbers to merge.")
    cost_weight: float = option(100.0, "Of the squared relative difference from the budget.", above=0)

    def teach(self, images: TrainingImages, work: Work) -> Schedules:
        """Search a schedule for each share, and tell its accuracy on the images held out.

        Raises
        ------
        UserError
            No shares, or what `search` raises.
        """
        if not self.shares:
            raise UserError("no shares to aim at; pass e.g. 0.8,0.65,0.5")
        return Schedules(self._told(images, share, work) for share in self.shares)

    def _told(self, images: TrainingImages, share: float, work: Work) -> RateSchedule:
        found = self.search(images, share, work)
        log = work.folder / _stage(share) / "log.jsonl"
        notes: dict[str, Any] = {
            "model": images.classifier.name,
            "data": images.described("searched on"),
            "aim": share,
            "log": log.read_text().splitlines()[-1],
        }
        if len(images.held_out):
            reducer = DiffRate(schedule=found)
            notes["held out"] = accuracy(reducer, images.classifier, images.held_out, work.progress)
        return replace(found, notes=notes)

    def search(self, images: TrainingImages, share: float, work: Work) -> RateSchedule:
        """Search one schedule.

        Raises
        ------
        UserError
            The model is not supported, or the folder holds another run.
        """
        model = on_device(images.classifier.model, self.device).eval()
        asked = [p for p in model.parameters() if p.requires_grad]
        for parameter in asked:
            parameter.requires_grad_(False)
        try:
            anatomy = adapter_for(model).anatomy()
            rates = Rates(anatomy.layers, anatomy.patches, self.granularity, prunes=self.prunes, merges=self.merges)
            batches = images.batches(self.batch_rows, cut=0, seed=self.seed)
            recipe = RateSearch(rates, model, batches, anatomy, share=share, cost_weight=self.cost_weight)
            settings = self.settings(steps=self.steps, lr=self.lr, final_lr=0.1, clip=0.0, save_every=50, log_every=10)
            work.stage(_stage(share), recipe, settings)
        finally:
            for parameter in asked:
                parameter.requires_grad_(True)
        found = rates.cpu().schedule()
        return replace(found, share=round(found.share_of(anatomy), 4))

    def summary(self, made: Schedules) -> str:
        """Tell the accuracy on images held out."""
        return "; ".join(
            f"{found.share:.3f} of the multiply-adds: {found.notes.get('held out', 'not measured')}" for found in made
        )


def _stage(share: float) -> str:
    return f"search for {share:g}"

"""Find how many tokens each block should prune and merge, by gradient, under a budget of multiply-adds.

Chen et al., ICCV 2023, arXiv 2305.17997. Not here: what is learned (`mintage.reduce.training.rate_search`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from mintage.errors import UserError
from mintage.options import option
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.core.rate_schedule import RateSchedule, write_schedules
from mintage.reduce.diffrate import DiffRate
from mintage.reduce.training.images import ImageTraining, TrainingImages, accuracy, on_device
from mintage.reduce.training.rate_search import RateSearch
from mintage.reduce.training.rates import Rates
from mintage.train.training import Work

__all__ = ["DiffRateTraining", "Schedules"]


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

"""Is a schedule that was searched by gradient better than a uniform one that costs as much?

Not here: the search (`mintage.reduce.training.diffrate`), how arms are judged (`mintage.bench.reduce.measures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from mintage.bench.reduce.measures import PLAIN, ReducerStudy, gap, note_of, quality
from mintage.measure.figure import Figure, curve
from mintage.measure.study import POINTS, Comparison, Finding, Measure, Run, above, below
from mintage.options import option
from mintage.reduce.baselines import ClassAttention, RandomDrop, ToMe
from mintage.reduce.contract import Reducer
from mintage.reduce.core.rate_schedule import RateSchedule
from mintage.reduce.diffrate import DiffRate
from mintage.reduce.training.diffrate import DiffRateTraining
from mintage.train.training import Work

__all__ = ["DiffRateStudy"]

OURS = "diffrate"
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    OURS: {},
    "prunes only": {"merges": False},
    "merges only": {"prunes": False},
}
OTHERS = ("tome", "random-drop", "class-attention", "prunes only", "merges only")


@dataclass(frozen=True, kw_only=True)
class DiffRateStudy(ReducerStudy):
    """Is a schedule that was searched by gradient better than a uniform one that costs as much?

    Schedules are searched on training images of CIFAR-10, the model frozen, and judged on test images: pruning and
    merging, pruning only, merging only. Every rival is set to what the searched schedule costs.

    Example: mintage bench diffrate --steps 100 --test-images 500
    """

    method: ClassVar[str] = OURS

    share: float = option(0.6, "Share of the multiply-adds that is searched for.", above=0, below=1)
    steps: int = option(400, "Optimiser steps of each search.", least=1)
    batch_rows: int = option(64, "Images per step.", least=1)

    def settings(self, run: Run) -> dict[str, Any]:
        """Return those of the search."""
        return {"share": self.share, "steps": self.steps, "batch": self.batch_rows}

    def _searched(self, run: Run) -> dict[str, RateSchedule]:
        """Search, or recall what was found."""

        def search(name: str) -> dict[str, Any]:
            training = DiffRateTraining(steps=self.steps, batch_rows=self.batch_rows, seed=self.seed, **SEARCHES[name])
            folder = run.memo.folder / name
            work = Work(folder, progress=lambda stage, done, of: run.progress(f"search, {name}", done, of))
            found = training.search(run.subject.training_images, self.share, work)
            return {"prune_kept": found.prune_kept, "merge_kept": found.merge_kept, "patches": found.patches}

        return {name: RateSchedule.of(run.memo(f"search {name}", partial(search, name))) for name in SEARCHES}

    def arms(self, run: Run) -> Mapping[str, Reducer | None]:
        """Return the searched schedules and the rivals, all at what the searched one costs."""
        schedules, anatomy = self._searched(run), run.subject.anatomy
        reached = schedules[OURS].share_of(anatomy)
        rivals = {name: DiffRate(schedule=found) for name, found in schedules.items() if name != OURS}
        rivals |= {"uniform": DiffRate(schedule="ratio=0.9"), "tome": ToMe(), "class-attention": ClassAttention()}
        rivals |= {"random-drop": RandomDrop(seed=self.seed)}
        others = {name: rival.at(reached, anatomy) for name, rival in rivals.items()}
        return {PLAIN: None, OURS: DiffRate(schedule=schedules[OURS]), **others}

    def measures(self, run: Run) -> Iterable[Measure]:
        """Judge."""
        yield quality()

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Yield how near the budget is, what the schedule gains, and how uneven it is."""
        schedule, anatomy = self._searched(run)[OURS], run.subject.anatomy
        reached = schedule.share_of(anatomy)
        kept = [left for _, left in schedule.patches_kept(anatomy.layers, anatomy.patches)]
        ratios = [after / before for before, after in zip((anatomy.patches, *kept), kept, strict=False)]
        peers = {name: name for name in run.arms if name not in (PLAIN, OURS)}
        setting = f"at {100 * reached:.1f}% of the MACs"
        yield Finding(
            metric="distance of the searched schedule's multiply-adds from the budget",
            value=lambda run: 100 * abs(reached - self.share) / self.share,
            unit="%",
            more_is_better=False,
            baseline={"budget": 0.0},
            claim="the search ends less than 2% from its budget",
            holds=below(2),
            note=f"aimed at {self.share:g} of the multiply-adds, reached {reached:.4f}",
        )
        claim = "a searched schedule is above a uniform one of the same multiply-adds"
        yield gap(f"top-1 minus that of a uniform schedule {setting}", OURS, "uniform", peers, claim=claim)
        yield Finding(
            metric="greatest minus least share of the patches that a block keeps",
            value=lambda run: max(ratios[1:]) - min(ratios[1:]),
            unit="",
            baseline={"uniform": 0.0},
            claim="the searched schedule is not flat: blocks differ by more than 0.1 in the share they keep",
            holds=above(0.1),
            note="patches kept: " + ", ".join(map(str, kept)) + "; the first block keeps all by definition",
        )
        for other in OTHERS:
            yield gap(f"top-1 minus that of {other} {setting}", OURS, other, peers)
        yield Comparison(
            metric=f"top-1 minus the unmodified model's {setting}",
            ours=OURS,
            rival=PLAIN,
            of="correct",
            by=POINTS,
            note=lambda run: note_of(run, OURS),
        )

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield the searched numbers by block."""
        anatomy = run.subject.anatomy
        series: dict[str, list[int]] = {}
        for name, schedule in self._searched(run).items():
            pruned, merged = zip(*schedule.patches_kept(anatomy.layers, anatomy.patches), strict=True)
            ours = {"left by pruning": list(pruned), "left by merging": list(merged)}
            series |= ours if name == OURS else {name: list(merged)}
        yield run.figure(
            name="diffrate-schedule",
            title=f"Patches that a search for {self.share:g} of the multiply-adds keeps, by block",
            caption=f"{self.model}, {anatomy.patches} patches; the first block keeps all by definition.",
            **curve("block", "patches", {name: enumerate(values) for name, values in series.items()}),
        )

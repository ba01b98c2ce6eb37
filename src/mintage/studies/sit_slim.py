"""Does a transformer that slims itself keep its accuracy where dropping loses it, and is it as fast as it should be?

Not here: training (`mintage.reduce.training.sit_slim`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mintage.bench.reduce.measures import ReducerStudy, accuracies, quality, seconds, speedup
from mintage.bench.reduce.students import DROP, LOGITS, OURS, POOL, STUDENTS, taught
from mintage.errors import UserError
from mintage.measure.statistics import Interval, bootstrap
from mintage.measure.study import POINTS, Comparison, Finding, Measure, Run, above, at_least
from mintage.options import option
from mintage.reduce.sit_slim import SelfSlimmed
from mintage.reduce.training.sit_slim import SitSlimTraining
from mintage.vision import SHIPPED

__all__ = ["SitSlimStudy"]

TEACHER, SLIMMED = "teacher", "shipped"
RIVALS = {DROP: "class-attention dropping", LOGITS: "slimming taught by logits only", POOL: ""}
"""What is claimed about them; nothing about pooling."""


@dataclass(frozen=True, kw_only=True)
class SitSlimStudy(ReducerStudy):
    """Does a transformer that slims itself keep its accuracy where dropping loses it, and is it as fast as it should?

    The harsh point: after the first, second and third block half of the patch tokens each, 64 to 8. The shipped weights
    are held against their teacher. Then students start afresh from the teacher and take the same few steps on the same
    images: slimming taught by tokens and logits, slimming taught by logits only, and rivals that leave as many tokens
    behind the same blocks, taught by the same logits.

    Example: mintage bench sit-slim --steps 100 --test-images 500
    """

    method: ClassVar[str] = "sit-slim"

    weights: str = option("", "Trained weights to hold against their teacher; default: those shipped for the model.")
    steps: int = option(300, "Optimiser steps of every student.", least=1)
    batch_rows: int = option(64, "Images per step.", least=1)
    lr: float = option(1e-3, "Peak learning rate.", above=0)
    init_std: float = option(0.16, "Of the modules' first weights; the paper's 0.02 is for 100 epochs.", least=0)
    rounds: int = option(12, "Timed batches per arm.", least=1)

    def settings(self, run: Run) -> dict[str, Any]:
        """Return those of the students."""
        return {"steps": self.steps, "batch": self.batch_rows, "lr": self.lr, "init_std": self.init_std}

    def arms(self, run: Run) -> Mapping[str, Any]:
        """Return the teacher, the trained weights where there are any for it, and the students."""
        if run.subject.anatomy.layers < 4:
            layers = run.subject.anatomy.layers
            raise UserError(f"the check slims behind three blocks; {self.model} has {layers}, pass a deeper model")
        weights = self.weights or (SHIPPED if self.model == SHIPPED else "")
        slimmed = {SLIMMED: SelfSlimmed(weights=weights)} if weights else {}
        return {TEACHER: None, **slimmed, **{student.name: student for student in STUDENTS}}

    def measures(self, run: Run) -> Iterable[Measure]:
        """Train and judge the students, then judge and time the trained weights."""
        names = [student.name for student in STUDENTS]
        given = {name: getattr(self, name) for name in ("steps", "batch_rows", "lr", "init_std", "seed")}
        stages = (1, 1, 1, run.subject.anatomy.layers - 3)
        yield taught(SitSlimTraining(stages=stages, **given), names)
        trained = [name for name in (TEACHER, SLIMMED) if name in run.arms]
        yield quality(trained)
        if SLIMMED in trained:
            yield seconds(trained, self.rounds)

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Yield what the students say, and what the trained weights do."""
        for other, rival in RIVALS.items():
            claim = f"at 1/8 of the tokens, after the same {self.steps} steps, it is above {rival}" if rival else ""
            yield Comparison(
                metric=f"top-1 of slimming taught by tokens and logits minus that of {other}, 1/8 of the tokens",
                ours=OURS,
                rival=other,
                of="correct",
                by=POINTS,
                baseline=[TEACHER],
                peers=[LOGITS, DROP, POOL],
                claim=claim,
                holds=above(0) if claim else None,
                note=lambda run: f"baseline and peers are accuracies; the first is {_accuracy(run, OURS):.2f}",
            )
        if SLIMMED in run.arms:
            yield from self._of_trained(run)

    def _of_trained(self, run: Run) -> Iterator[Finding]:
        reducer, subject = run.arms[SLIMMED], run.subject
        tokens = "x".join(map(str, dict.fromkeys(reducer.kept(subject.anatomy))))
        settings = {"tokens": tokens, "made by": reducer.slimming.notes.get("command", "")}
        fewer = subject.macs(None) / subject.macs(reducer)
        yield Finding(
            metric="top-1 over the teacher's, shipped weights, 1/8 of the tokens",
            value=lambda run: _share(run.columns[SLIMMED]["correct"], run.columns[TEACHER]["correct"]),
            unit="%",
            n=len(subject),
            settings=settings,
            baseline=lambda run: {TEACHER: _accuracy(run, TEACHER)},
            claim="at 1/8 of the tokens at least 97% of the teacher's accuracy is kept",
            holds=at_least(97),
            note=lambda run: f"its accuracy is {_accuracy(run, SLIMMED):.2f}",
        )
        yield Finding(
            metric="images per second over the teacher's, shipped weights, 1/8 of the tokens",
            value=lambda run: speedup(run, SLIMMED, TEACHER),
            unit="x",
            n=self.rounds,
            settings=settings,
            baseline={TEACHER: 1.0},
            peers={"multiply-adds of the teacher over its own": fewer},
            claim="the measured speed-up is at least 85% of the ratio of multiply-adds",
            holds=at_least(0.85 * fewer),
            note=f"batches of {subject.batch}; slimming itself is in both",
        )


def _accuracy(run: Run, arm: str) -> float:
    return accuracies(run, {arm: arm})[arm]


def _share(correct: np.ndarray, plain: np.ndarray) -> Interval:
    """Ratio of two accuracies on the same images in percent, resampled together."""

    def ratio(chosen: np.ndarray, axis: int) -> Any:
        index = chosen.astype(int)
        return 100 * correct[index].sum(axis) / np.maximum(plain[index].sum(axis), 1)

    return bootstrap(np.arange(len(plain), dtype=float), ratio)

"""Does pruning by votes over the attention graph, without any training, lose little, and less than its rivals?

Not here: how arms are judged and timed (`mintage.bench.reduce.measures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mintage.bench.reduce.measures import (
    PLAIN,
    SharesStudy,
    accuracies,
    curves,
    gap,
    lost,
    quality,
    seconds,
    setting_of,
    speed_row,
)
from mintage.measure.figure import Figure
from mintage.measure.study import Comparison, Finding, Measure, Run, at_most, mean
from mintage.options import option
from mintage.reduce.baselines import ClassAttention, RandomDrop, ToMe
from mintage.reduce.contract import Reducer
from mintage.reduce.zero_tprune import ZeroTPrune

__all__ = ["ZeroTPruneStudy"]

OURS, TOME = "zero-tprune", "tome"

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "I only": {"order": "I"},
    "I then S": {"order": "IS"},
    "plain mean of heads": {"heads": "plain"},
    "no filter of heads": {"v_min": 0.0, "v_max": float("inf")},
    "plain mean, no filter": {"heads": "plain", "v_min": 0.0, "v_max": float("inf")},
    "no boost of the class token": {"class_boost": False},
    "1 round": {"iterations": (1,)},
    "5 rounds": {"iterations": (5,)},
    "30 rounds": {"iterations": (30,)},
    "before the MLP": {"hook": "attention"},
}
"""Parts switched off or changed one by one, at equal multiply-adds."""


@dataclass(frozen=True, kw_only=True)
class ZeroTPruneStudy(SharesStudy):
    """Does pruning by votes over the attention graph, without any training, lose little, and less than its rivals?

    Top-1 accuracy on CIFAR-10's test images at equal multiply-adds, and what each part of the method contributes. The
    convolution stem of the shipped classifier is among the multiply-adds and cannot be reduced.

    Example: mintage bench zero-tprune --test-images 500
    """

    method: ClassVar[str] = OURS
    needed: ClassVar[tuple[str, ...]] = (OURS,)

    claimed: float = option(0.65, "The share that is claimed about; one of --shares.", above=0, most=1)

    def reducers(self) -> Mapping[str, Reducer]:
        """Return Zero-TPrune and its rivals."""
        rivals = {"class-attention": ClassAttention(), "random-drop": RandomDrop(seed=self.seed), TOME: ToMe()}
        return {OURS: ZeroTPrune(), **rivals}

    def arms(self, run: Run) -> Mapping[str, Reducer | None]:
        """Return the unmodified model, every method at every share, and the variants at the claimed one."""
        arms = super().arms(run)
        variants = {name: replace(ZeroTPrune(), **fields) for name, fields in VARIANTS.items()}
        return {**arms, **{name: arm.at(self.claimed, run.subject.anatomy) for name, arm in variants.items()}}

    def measures(self, run: Run) -> Iterable[Measure]:
        """Judge, then time."""
        yield quality()
        yield seconds([PLAIN, f"{OURS} at {self.claimed:g}", *self.peers(run, self.claimed).values()], self.rounds)

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Yield what is lost at every share, what the parts contribute, and speed."""
        for share in self.shares:
            if f"{OURS} at {share:g}" in run.arms:
                yield from self._at(run, share)
        ours, setting = f"{OURS} at {self.claimed:g}", setting_of(self.claimed)
        variants = {name: name for name in VARIANTS}
        for name in variants:
            yield gap(f"top-1 minus that of the variant '{name}' {setting}", ours, name, variants)
        peers = self.peers(run, self.claimed)
        yield speed_row(f"images per second {setting}", ours, peers, lambda run: _counted(run, {OURS: ours, **peers}))

    def _at(self, run: Run, share: float) -> Iterator[Comparison | Finding]:
        ours, peers, setting = f"{OURS} at {share:g}", self.peers(run, share), setting_of(share)
        claimed = share == self.claimed
        yield Finding(
            metric=f"top-1 lost {setting}",
            value=lost(run, ours),
            unit="points",
            more_is_better=False,
            n=lambda run: len(run.subject),
            baseline={PLAIN: 0.0},
            peers=lambda run: {
                name: accuracies(run, {PLAIN: PLAIN})[PLAIN] - score for name, score in accuracies(run, peers).items()
            },
            claim=f"{setting} and without training at most 1 point of top-1 is lost" if claimed else "",
            holds=at_most(1) if claimed else None,
        )
        for other, arm in peers.items():
            claim = f"{setting} it is above {other}" if claimed and other != TOME else ""
            yield gap(f"top-1 minus that of {other} {setting}", ours, arm, peers, claim=claim)
        yield Comparison(
            metric=f"distance to the unmodified model's output {setting}",
            ours=ours,
            of="divergence",
            by=mean("nats", more_is_better=False),
            baseline=[PLAIN],
            peers=peers,
        )

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield the accuracy against the share."""
        plain = accuracies(run, {PLAIN: PLAIN})[PLAIN]
        series: dict[str, dict[float, float]] = {name: {1.0: plain} for name in self.reducers()}
        for share in self.shares:
            for name, score in accuracies(run, self.reached(run, share)).items():
                series[name][share] = score
        yield curves(run, "zero-tprune-accuracy", "Accuracy without any training", "top-1 accuracy, %", series)


def _counted(run: Run, arms: Mapping[str, str]) -> str:
    whole = run.subject.macs(None)
    shares = ", ".join(f"{name} {run.subject.macs(run.arms[arm]) / whole:.3f}" for name, arm in arms.items())
    return f"multiply-adds counted while running, votes and similarities included: {shares}"

"""Copies of a classifier that are trained alike, each with fewer tokens by another method, and judged.

Not here: the training (`mintage.reduce.training.sit_slim`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

from mintage.bench.reduce.quality import Subject
from mintage.measure.study import Measure, Run
from mintage.reduce.baselines import AveragePool, ClassAttention
from mintage.reduce.contract import Reducer
from mintage.reduce.sit_slim import SelfSlimmed
from mintage.reduce.training.sit_slim import SitSlimTraining
from mintage.train.training import Work

__all__ = ["DROP", "LOGITS", "OURS", "POOL", "STUDENTS", "Taught", "taught"]

OURS, LOGITS, DROP, POOL = "slimming, tokens and logits", "slimming, logits", "class attention", "average pooling"


@dataclass(frozen=True, kw_only=True, eq=False)
class _DropBehind(ClassAttention):
    """Class-attention dropping where slimming stands: behind the block."""

    hook: ClassVar[Literal["attention", "block"]] = "block"


@dataclass(frozen=True, kw_only=True, eq=False)
class _PoolBehind(AveragePool):
    """Average pooling behind the block."""

    hook: ClassVar[Literal["attention", "block"]] = "block"


class Taught(NamedTuple):
    """Who is trained: under what (made from untrained slimming and its numbers of tokens), and whether by tokens."""

    name: str
    reducer: Callable[[SelfSlimmed, str], Reducer]
    recover: bool = False


STUDENTS = (
    Taught(OURS, lambda slimmed, counts: slimmed, recover=True),
    Taught(LOGITS, lambda slimmed, counts: slimmed),
    Taught(DROP, lambda slimmed, counts: _DropBehind(schedule=counts)),
    Taught(POOL, lambda slimmed, counts: _PoolBehind(schedule=counts)),
)


def taught(training: SitSlimTraining, arms: Sequence[str]) -> Measure:
    """Train students (arms are `Taught`) as `training` says, and judge them: column ``correct``, by image."""

    def teach(run: Run, student: Taught, unit: None) -> dict[str, Any]:
        subject = run.subject
        slimmed = SelfSlimmed(weights=training.slimming(subject.model))
        reducer = student.reducer(slimmed, "counts=" + "x".join(map(str, slimmed.kept(subject.anatomy))))
        work = Work(
            run.memo.folder / student.name,
            progress=lambda stage, done, of: run.progress(f"{stage} {student.name}", done, of),
        )
        model = replace(training, recover=student.recover).distil(subject.training_images, reducer, work)
        return {"correct": Subject(model, subject.pixels, subject.labels).quality(reducer).correct}

    return Measure(name="students", units=lambda run: {"images": None}, of=teach, arms=arms)

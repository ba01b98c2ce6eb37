"""Audits by needles, one haystack at a time: the measure of a study, so that a killed run loses one haystack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from mintage.audit.core.needle_report import Scored
from mintage.audit.needle_threading import NeedleThreading, examples
from mintage.measure.study import Measure, Run

__all__ = ["Haystacks"]


@dataclass(frozen=True)
class Haystacks:
    """So many haystacks of every size; arms are audits whose own sizes and seeds give way."""

    sizes: Sequence[int]
    each: int
    seed: int

    def settings(self) -> Iterator[dict[str, Any]]:
        """Yield what makes an audit one of a single haystack, the shortest first."""
        for size, number in product(sorted(self.sizes), range(self.each)):
            yield {"pairs": (size,), "repeats": 1, "seed": self.seed + number}

    def measure(self, name: str, arms: Sequence[str]) -> Measure:
        """Ask the arms: columns ``scores``, every question, and ``score``, the mean of a haystack."""
        units = {f"{one['pairs'][0]} pairs, seed {one['seed']}": one for one in self.settings()}
        return Measure(name=name, units=lambda run: units, of=_scores, arms=arms)

    def asked(self, run: Run, arm: str) -> list[Scored]:
        """Return what an arm was asked, with its scores."""
        questions = (question for one in self.settings() for question in examples(replace(run.arms[arm], **one)))
        return [
            Scored(example.task, variant, len(example.haystack.pairs), len(example.haystack.text), float(score))
            for (variant, example), score in zip(questions, run.column(arm, "scores"), strict=True)
        ]


def _scores(run: Run, arm: NeedleThreading, one: Mapping[str, Any]) -> Mapping[str, Any]:
    scores = [needle.score for needle in replace(arm, **one).ask(run.subject)]
    return {"scores": scores, "score": sum(scores) / len(scores)}

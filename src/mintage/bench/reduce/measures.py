"""What checks of reducers at equal multiply-adds share: a classifier, its test images, every arm judged on all of them.

Not here: which arms, and what is claimed of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mintage.bench.reduce.quality import Quality, Subject, spread
from mintage.errors import UserError
from mintage.measure import Figure, Interval, Result, bootstrap, bootstrap_ratio
from mintage.measure.trial import Report, Trial
from mintage.reduce.contract import Reducer
from mintage.reduce.training.images import numbered, test_images
from mintage.vision import load_image_classifier

__all__ = ["PLAIN", "EqualMacs", "at_shares", "points"]

PLAIN = "unmodified"
_ROUNDS = 8


class EqualMacs(Trial):
    """Reducers on one classifier and CIFAR-10's test images.

    Parameters
    ----------
    method
        Whose claim is checked.
    model
        What `mintage.vision.load_image_classifier` takes.
    limit
        Images at most, spread over the test images.
    seed, command, progress, work
        As of `mintage.measure.trial.Trial`.
    definition
        What else defines the run.
    total
        Number of measurements.

    Attributes
    ----------
    classifier, images, subject
        The model, its images, and both together.
    """

    def __init__(
        self,
        method: str,
        *,
        model: str,
        limit: int | None,
        seed: int,
        command: str,
        progress: Report,
        work: Path | None,
        definition: Mapping[str, Any],
        total: int,
    ) -> None:
        super().__init__(
            method,
            job="reduce",
            model=model,
            seed=seed,
            command=command,
            definition={"limit": limit, **definition},
            total=total,
            progress=progress,
            work=work,
        )
        self.work = Path(".mintage") / "reduce" / method if work is None else work
        self.classifier = load_image_classifier(model)
        images = numbered(test_images(), self.classifier)
        self.images = images.take(spread(limit or len(images), len(images)))
        pixels = self.classifier.preprocess(self.images.pixels)
        self.subject = Subject(self.classifier.model, pixels, self.images.labels)
        self.common |= {"data": "CIFAR-10, test images", "settings": dict(definition)}

    def qualities(
        self, arms: Mapping[str, Reducer | None], *, on: str = "", subject: Subject | None = None
    ) -> dict[str, Quality]:
        """Judge every arm on every image.

        Parameters
        ----------
        arms
            By name; None is the unmodified model.
        on, subject
            Name and images of another subject than the test images.
        """
        return {name: self._quality(f"{name}{on}", reducer, subject or self.subject) for name, reducer in arms.items()}

    def _quality(self, name: str, reducer: Reducer | None, subject: Subject) -> Quality:
        def measure() -> list[list[float]]:
            torch.manual_seed(self.seed)
            found = subject.judged(subject.reference) if reducer is None else subject.quality(reducer)
            assert found.correct is not None
            return [found.correct.tolist(), found.agrees.tolist(), found.divergence.tolist()]

        return Quality(*map(np.array, self.measured(f"quality {name}", measure, name)))

    def speeds(self, arms: Mapping[str, Reducer], label: str) -> dict[str, Interval]:
        """Images per second over the unmodified model's, from rounds in which every arm is timed once."""
        all_arms: dict[str, Reducer | None] = {PLAIN: None, **arms}

        def round_of(turn: int) -> dict[str, float]:
            if turn == 0:
                self.subject.seconds(all_arms, 0)  # warms up
            return self.subject.seconds(all_arms, turn)

        rounds = [
            self.measured(f"seconds {label} {turn}", lambda t=turn: round_of(t), f"time {label}")
            for turn in range(_ROUNDS)
        ]
        plain = [found[PLAIN] for found in rounds]
        return {name: bootstrap_ratio(plain, [found[name] for found in rounds], of="median") for name in arms}

    def gap(
        self,
        metric: str,
        ours: np.ndarray,
        other: np.ndarray,
        *,
        claim: str = "",
        threshold: float = 0.0,
        **fields: Any,
    ) -> Result:
        """Make a row of the paired difference of two accuracies; a claim holds if its interval is above `threshold`."""
        found = points(ours - other)
        told: dict[str, Any] = {}
        if claim:
            told = {"claim": claim, "verdict": "holds" if found.low > threshold else "does not hold"}
        return self.result(
            metric=metric,
            value=found.value,
            interval=found.bounds,
            unit="points",
            higher_is_better=True,
            n=len(ours),
            **told,
            **fields,
        )

    def curves(self, name: str, title: str, label: str, series: Mapping[str, Mapping[float, float]]) -> Figure:
        """Make a figure of one number against the share of the multiply-adds."""
        lines = [{"name": n, "x": sorted(held), "y": [held[x] for x in sorted(held)]} for n, held in series.items()]
        data = {"x_label": "share of the multiply-adds", "y_label": label, "series": lines}
        caption = f"{self.common['model']}, {self.common['data']}; nothing was trained with fewer tokens."
        return self.figure(name=name, title=title, caption=caption, kind="curve", data=data)


def points(difference: np.ndarray) -> Interval:
    """Mean difference of two accuracies, in points, over images."""
    return bootstrap(100 * difference)


def at_shares(
    reducers: Mapping[str, Reducer], shares: Sequence[float], subject: Subject
) -> tuple[dict[float, dict[str, Reducer]], dict[str, str]]:
    """Set every reducer to every share of the multiply-adds; what cannot be reached is left out with the reason."""
    made: dict[float, dict[str, Reducer]] = {share: {} for share in shares}
    absent: dict[str, str] = {}
    for share in shares:
        for name, reducer in reducers.items():
            try:
                made[share][name] = reducer.at(share, subject.anatomy)
            except UserError as error:
                absent[f"{name} at {100 * share:.0f}%"] = str(error)
    return made, absent

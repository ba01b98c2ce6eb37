"""What studies of reducers share: a classifier and its test images, how arms are judged and timed on them, rows.

Not here: which arms, and what is claimed of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from mintage.bench.reduce.quality import Subject, evenly_spread
from mintage.errors import UserError
from mintage.measure.figure import Figure, curve
from mintage.measure.statistics import Interval, bootstrap, bootstrap_ratio
from mintage.measure.study import POINTS, Comparison, Finding, Measure, Run, Study, above
from mintage.options import option
from mintage.reduce.contract import Reducer
from mintage.reduce.training.images import TrainingImages, numbered, read_training_images, test_images
from mintage.vision import SHIPPED, load_image_classifier

__all__ = [
    "PLAIN",
    "ReducerStudy",
    "SharesStudy",
    "TestedClassifier",
    "accuracies",
    "at_shares",
    "curves",
    "gap",
    "lost",
    "note_of",
    "quality",
    "seconds",
    "setting_of",
    "speed_row",
    "speedup",
]

PLAIN = "unmodified"


class TestedClassifier(Subject):
    """A classifier and CIFAR-10's test images, or as many of them, evenly spread.

    Parameters
    ----------
    name
        What `mintage.vision.load_image_classifier` takes.
    count
        Images at most; None takes all.
    """

    def __init__(self, name: str, count: int | None) -> None:
        self.classifier = load_image_classifier(name)
        images = numbered(test_images(), self.classifier)
        self.images = images.take(evenly_spread(count or len(images), len(images)))
        pixels = self.classifier.preprocess(self.images.pixels)
        super().__init__(self.classifier.model, pixels, self.images.labels)

    @cached_property
    def training_images(self) -> TrainingImages:
        """CIFAR-10's training images, read when first asked for."""
        return read_training_images(self.classifier)


@dataclass(frozen=True, kw_only=True)
class ReducerStudy(Study, ABC):
    """A study of reducers on one classifier; ``run.subject`` is a `TestedClassifier`."""

    job: ClassVar[str] = "reduce"

    model: str = option(SHIPPED, "The shipped classifier, a file, a folder, a hub id, or timm:name.")
    test_images: int | None = option(None, "Test images, evenly spread; default all.", least=1)

    def subject(self, run: Run) -> TestedClassifier:
        """Load the classifier and its test images."""
        return TestedClassifier(self.model, self.test_images)

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what all rows say."""
        return {"model": self.model, "data": "CIFAR-10, test images", "settings": self.settings(run)}

    def settings(self, run: Run) -> dict[str, Any]:
        """Return the settings that stand in the rows."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SharesStudy(ReducerStudy, ABC):
    """A study of methods that are all set to the same shares of the multiply-adds, one of which is claimed about.

    Attributes
    ----------
    needed
        Methods without which nothing can be claimed.
    """

    needed: ClassVar[tuple[str, ...]]

    shares: tuple[float, ...] = option((0.8, 0.65, 0.5, 0.4), "Shares of the multiply-adds.", above=0, most=1)
    claimed: float = option(0.5, "The share that is claimed about; one of --shares.", above=0, most=1)
    rounds: int = option(8, "Timed batches per arm.", least=1)

    @abstractmethod
    def reducers(self) -> Mapping[str, Reducer]:
        """Return the methods by name, at any strength."""

    def settings(self, run: Run) -> dict[str, Any]:
        """Return the shares, and what is left out."""
        absent = at_shares(self.reducers(), self.shares, run.subject)[1]
        return {"shares": list(self.shares)} | ({"left out": absent} if absent else {})

    def arms(self, run: Run) -> Mapping[str, Reducer | None]:
        """Return the unmodified model, and every method at every share.

        Raises
        ------
        UserError
            What is claimed about cannot be measured.
        """
        made, absent = at_shares(self.reducers(), self.shares, run.subject)
        for name in self.needed:
            if f"{name} at {self.claimed:g}" not in made:
                why = absent.get(f"{name} at {100 * self.claimed:.0f}%", f"shares lack {self.claimed:g}; add it")
                raise UserError(f"{self.model}: {why}")
        return {PLAIN: None, **made}

    def reached(self, run: Run, share: float) -> dict[str, str]:
        """Return the arms that are set to a share, by method."""
        held = {name: f"{name} at {share:g}" for name in self.reducers()}
        return {name: arm for name, arm in held.items() if arm in run.arms}

    def peers(self, run: Run, share: float, among: Iterable[str] | None = None) -> dict[str, str]:
        """Return the arms of the other methods, or of some, at a share, by method."""
        held = self.reached(run, share)
        return {name: held[name] for name in (held if among is None else among) if name in held.keys() - {self.method}}


# -- measures ------------------------------------------------------------------------------------------------------


def quality(
    arms: Sequence[str] | None = None, *, on: str = "", subject: Callable[[Run], Subject] = lambda run: run.subject
) -> Measure:
    """Judge arms (reducers, None for the unmodified model): columns ``correct`` and ``divergence``, by image.

    Parameters
    ----------
    arms
        Names; default all.
    on
        Begins the names of the columns, where it is another subject than the study's.
    subject
        Gives the images.
    """

    def judge(run: Run, reducer: Reducer | None, subject: Subject) -> dict[str, Any]:
        torch.manual_seed(run.seed)
        found = subject.judged(subject.reference) if reducer is None else subject.quality(reducer)
        return {f"{on}correct": found.correct, f"{on}divergence": found.divergence}

    return Measure(name=f"{on}quality", units=lambda run: {"images": subject(run)}, of=judge, arms=arms)


def seconds(arms: Sequence[str], rounds: int) -> Measure:
    """Time arms round by round on one batch of images each: column ``seconds``."""

    def turns(run: Run) -> dict[int, int]:
        for name in arms:
            run.subject.second(run.arms[name], 0)  # warms up
        return {turn: turn for turn in range(rounds)}

    def time(run: Run, reducer: Reducer | None, turn: int) -> dict[str, float]:
        return {"seconds": run.subject.second(reducer, turn)}

    return Measure(name="seconds", units=turns, of=time, arms=arms)


def at_shares(
    reducers: Mapping[str, Reducer], shares: Sequence[float], subject: Subject
) -> tuple[dict[str, Reducer], dict[str, str]]:
    """Set every reducer to every share of the multiply-adds: ``"tome at 0.5"``.

    Returns
    -------
    made, absent
        Reducers, and of those that cannot get there the reason (``"tome at 50%"``).
    """
    made, absent = {}, {}
    for share in shares:
        for name, reducer in reducers.items():
            try:
                arm = reducer.at(share, subject.anatomy)
                arm.kept(subject.anatomy)
                made[f"{name} at {share:g}"] = arm
            except UserError as error:
                absent[f"{name} at {100 * share:.0f}%"] = str(error)
    return made, absent


# -- rows ----------------------------------------------------------------------------------------------------------


def lost(run: Run, arm: str) -> Interval:
    """Points of top-1 that an arm loses to the unmodified model."""
    return bootstrap(100 * (run.columns[PLAIN]["correct"] - run.columns[arm]["correct"]))


def setting_of(share: float) -> str:
    """Say a share of the multiply-adds as rows do."""
    return f"at -{100 - 100 * share:.0f}% MACs"


def accuracies(run: Run, arms: Mapping[str, str], on: str = "") -> dict[str, float]:
    """Return arms' accuracies in percent, by the names that a row gives them."""
    return {name: 100 * float(run.columns[arm][f"{on}correct"].mean()) for name, arm in arms.items()}


def gap(
    metric: str, ours: str, other: str, peers: Mapping[str, str], *, claim: str = "", on: str = "", **said: Any
) -> Comparison:
    """Make the row of a paired difference of two accuracies; a claim holds if its interval is above 0.

    Parameters
    ----------
    metric, claim
        Of the row.
    ours, other
        Arms.
    peers
        Arms that stand beside, by the name that the row gives them; the unmodified model is the baseline.
    on
        See `quality`.
    """
    own = {"baseline": [PLAIN], "note": lambda run: note_of(run, ours, on)}
    held = {"claim": claim, "holds": above(0)} if claim else {}
    return Comparison(
        metric=metric, ours=ours, rival=other, of=f"{on}correct", by=POINTS, peers=peers, **own | held | said
    )


def note_of(run: Run, ours: str, on: str = "") -> str:
    """Say what stands beside an accuracy, and what it was."""
    return f"baseline and peers are accuracies; its own is {accuracies(run, {ours: ours}, on)[ours]:.2f}"


def speedup(run: Run, arm: str, over: str = PLAIN) -> Interval:
    """Images per second over another arm's: median of paired rounds."""
    return bootstrap_ratio(run.columns[over]["seconds"], run.columns[arm]["seconds"], of="median")


def speed_row(metric: str, ours: str, peers: Mapping[str, str], note: str | Callable[[Run], str]) -> Finding:
    """Make the row of images per second over the unmodified model's; see `seconds`."""
    return Finding(
        metric=metric,
        value=lambda run: speedup(run, ours),
        unit="x",
        n=lambda run: len(run.columns[ours]["seconds"]),
        baseline={PLAIN: 1.0},
        peers=lambda run: {name: speedup(run, arm).value for name, arm in peers.items()},
        note=note,
    )


def curves(run: Run, name: str, title: str, label: str, series: Mapping[str, Mapping[float, float]]) -> Figure:
    """Make a figure of one number against the share of the multiply-adds."""
    lines = curve("share of the multiply-adds", label, {name: sorted(held.items()) for name, held in series.items()})
    caption = f"{run.common['model']}, {run.common['data']}; nothing was trained with fewer tokens."
    return run.figure(name=name, title=title, caption=caption, **lines)

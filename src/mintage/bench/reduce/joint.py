"""Measure reducers: accuracy, agreement, multiply-adds, images per second and memory, at equal multiply-adds.

Every arm sees the same images in the same process, in rotating order, beside the unmodified model. A method that was
trained for one setting runs at that one.

Not here: pictures (`mintage.bench.reduce.figures`), papers' claims (`mintage.studies`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from mintage import catalog
from mintage.bench.contract import Asked, Bench
from mintage.bench.reduce.figures import ReducerArm, curve_of, patch_maps
from mintage.bench.reduce.inputs import GivenImages, given_images
from mintage.bench.reduce.quality import decision_seconds
from mintage.errors import UserError
from mintage.measure.figure import Figure, curve
from mintage.measure.result import Result
from mintage.measure.statistics import Interval, bootstrap, bootstrap_ratio
from mintage.measure.study import Finding, Measure, Run, Study, at_least
from mintage.options import option
from mintage.vision import SHIPPED

__all__ = ["ReduceBench", "ReduceComparison"]

PLAIN = "unmodified"
ROUNDS = 8
"""Timed batches per arm and setting."""

FASTER, LOST = 1.4, 1.0
"""A method pays if it is this many times faster and loses at most this many points of accuracy."""

SIZES, SIZE_ROUNDS = (112, 224, 336, 448), 4
"""Image sizes at which a model that takes any is timed, and how often."""


@dataclass(frozen=True, kw_only=True)
class ReduceBench(Bench):
    """Compare reducers of vision tokens: accuracy, multiply-adds, images per second and memory, at equal multiply-adds.

    Without names every ready method that serves the model is measured.

    [dim]Examples[/dim]

      mintage bench reduce --limit 500

      mintage bench reduce pitome:schedule=ratio=0.9 tome --macs 80,60

      mintage bench reduce --model owner/name --images photos/

    Next: [bold]mintage report[/bold]
    """

    job: ClassVar[str] = "reduce"
    shorter = "--limit 100 --macs 65"

    model: str = option(SHIPPED, "The shipped classifier, a file, a folder, a hub id, timm:name, or vit-s14.")
    images: str | None = option(None, "Folder (sub-folders are classes) or .npz; default: what belongs to the model.")
    on_error: Literal["refuse", "skip"] = option("refuse", "What to do with a broken image.")
    macs: tuple[int, ...] = option(
        (80, 65, 50, 40), "Percent of the model's multiply-adds that methods are set to.", above=0, below=100
    )
    limit: int | None = option(None, "Images; default all, of the ImageNet sample 200.", least=1)
    device: str = option("cpu", "cpu, cuda, ...")

    def _measure(self, specs: list[str], asked: Asked) -> list[Result | Figure]:
        """What is not asked for by name and does not serve the model is left out, with the reason."""
        if not self.macs:
            raise UserError("no --macs; pass percents of the multiply-adds, e.g. 80,65,50")
        for spec in specs:
            catalog.find(catalog.parse_spec(spec)[0], self.job).load()  # mistakes are told before a model loads
        return asked.study(ReduceComparison(seed=self.seed, bench=self, specs=tuple(specs)))


@dataclass(frozen=True, kw_only=True)
class ReduceComparison(Study):
    """The comparison as a study: an arm is a method at one share of the multiply-adds."""

    method: ClassVar[str] = ""
    job: ClassVar[str] = "reduce"

    bench: ReduceBench
    specs: tuple[str, ...]
    """Asked for by name; none means all that is ready."""

    def subject(self, run: Run) -> GivenImages:
        """Load model and images."""
        bench = self.bench
        return given_images(bench.model, bench.images, limit=bench.limit, on_error=bench.on_error, device=bench.device)

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what all rows say; shares of the multiply-adds are called budgets there."""
        settings: dict[str, Any] = {"budgets": list(self.bench.macs), "batch": run.subject.batch}
        absent = self._placed(run)[1]
        left_out = {"left out": absent} if absent else {}
        return {"model": self.bench.model, "data": run.subject.data, "settings": settings | left_out}

    # -- arms --

    def _placed(self, run: Run) -> tuple[list[ReducerArm], dict[str, str]]:
        """Set the methods to every share; those of the catalogue that do not serve this model are left out."""
        specs = self.specs or [m.name for m in catalog.methods(self.job) if m.status == "ready"]
        arms, absent = [], {}
        for spec in dict.fromkeys(specs):
            made, why = _at_every(spec, self.bench.macs, run.subject)
            if self.specs and not made:
                raise UserError(f"{spec} cannot be measured: {next(iter(why.values()))}")
            arms += made
            absent |= why
        if not arms:
            raise UserError("no method serves this model: " + "; ".join(f"{n}: {why}" for n, why in absent.items()))
        return arms, absent

    def arms(self, run: Run) -> Mapping[str, ReducerArm]:
        """Return the unmodified model, and every method at every share."""
        return {PLAIN: ReducerArm(PLAIN, None, None)} | {arm.key: arm for arm in self._placed(run)[0]}

    # -- measures --

    def measures(self, run: Run) -> Iterator[Measure]:
        """Quality and cost of every arm, then seconds of those at the same setting, then of images of other sizes."""
        yield Measure(name="quality", units=lambda run: {"images": None}, of=_quality)
        for setting, arms in _by_setting(run).items():
            yield _seconds(setting, [PLAIN, *(arm.key for arm in arms)])
        if run.subject.any_size and (arms := _in_the_middle(run)):
            yield _seconds_by_size([PLAIN, *(arm.key for arm in arms)])

    # -- rows --

    def rows(self, run: Run) -> Iterator[Finding]:
        """Yield one row per metric of one arm, the others at the same setting beside it, and the verdict."""
        papers = {row.name for row in catalog.methods(self.job, role="paper")}
        arms = [arm for arm in run.arms.values() if arm.reducer is not None]
        for arm in arms:
            beside = [other for other in arms if other is not arm and other.setting == arm.setting]
            for metric in _metrics(run):
                yield Finding(
                    method=arm.method,
                    metric=f"{metric.name} {arm.setting}" + ("" if arm.name == arm.method else f", {arm.name}"),
                    value=metric.of(run, arm),
                    unit=metric.unit,
                    more_is_better=metric.more_is_better,
                    n=metric.n,
                    baseline={PLAIN: metric.plain},
                    peers={o.name: _plain(metric.of(run, o)) for o in beside} if arm.method in papers else {},
                )
        yield from _second_fastest(run, arms)
        for arm in _in_the_middle(run) if run.subject.any_size else ():
            ratios = _by_size(run, arm)
            paying = [size for size, ratio in zip(SIZES, ratios, strict=True) if ratio > 1]
            yield Finding(
                method=arm.method,
                metric=f"images per second at {SIZES[-1]} pixels {arm.setting}, {arm.name}",
                value=ratios[-1],
                unit="x",
                n=SIZE_ROUNDS,
                baseline={PLAIN: 1.0},
                note=f"pays from {paying[0]} pixels on" if paying else "pays at none of these sizes",
            )

    def figures(self, run: Run) -> Iterator[Figure]:
        """Quality and speed against the multiply-adds, what becomes of the patches, and speed against the size."""
        drawn = [m for m in _metrics(run) if m.label]
        yield from (curve_of(run, m.slug, m.label, lambda arm, m=m: _plain(m.of(run, arm)), _macs) for m in drawn)
        yield from patch_maps(run, _macs)
        if run.subject.any_size and (arms := _in_the_middle(run)):
            yield run.figure(
                name="image-size",
                title=f"From which image size on it pays, at {arms[0].percent}% of the multiply-adds",
                caption="Batches of 4, paired rounds, median.",
                **curve(
                    "pixels of the image's side",
                    "images per second, unmodified = 1",
                    {arm.name: zip(SIZES, _by_size(run, arm), strict=True) for arm in arms},
                ),
            )


def _at_every(spec: str, macs: Sequence[int], subject: GivenImages) -> tuple[list[ReducerArm], dict[str, str]]:
    """Set one method to every share, or to the one it was trained for; what does not serve comes with the reason."""
    try:
        reducer = catalog.build(spec, "reduce", model=subject.model)
    except UserError as error:
        return [], {spec: str(error)}
    made, absent = [], {}
    for percent in [None] if reducer.fixed else macs:
        try:
            set_to = reducer if percent is None else reducer.at(percent / 100, subject.anatomy)
            set_to(subject.model)  # says whether it serves this model
            made.append(ReducerArm(spec, set_to, percent))
        except UserError as error:
            absent[spec if percent is None else f"{spec} at {percent}%"] = str(error)
    return made, absent


def _by_setting(run: Run) -> dict[str, list[ReducerArm]]:
    """Return the arms, those at the same setting together."""
    found: dict[str, list[ReducerArm]] = {}
    for arm in run.arms.values():
        if arm.reducer is not None:
            found.setdefault(arm.setting, []).append(arm)
    return found


def _in_the_middle(run: Run) -> list[ReducerArm]:
    """Return the arms at about the middle of the shares: those that are timed at other image sizes."""
    percents = {arm.percent for arm in run.arms.values() if arm.percent is not None}
    middle = min(sorted(percents), key=lambda percent: abs(percent - 65), default=None)
    return [arm for arm in run.arms.values() if arm.percent == middle and middle is not None]


# -- what is measured ----------------------------------------------------------------------------------------------


def _quality(run: Run, arm: ReducerArm, unit: None) -> dict[str, Any]:
    torch.manual_seed(run.seed)
    subject, reducer = run.subject, arm.reducer
    quality = subject.judged(subject.reference) if reducer is None else subject.quality(reducer)
    found = {"agrees": quality.agrees, "divergence": quality.divergence, "macs": subject.macs(reducer)}
    found |= {"bytes": float(subject.peak_bytes(reducer))}
    if quality.correct is not None:
        found["correct"] = quality.correct
    if reducer is not None:
        found["decision"] = decision_seconds(reducer, subject)
        if subject.head is not None:
            found["likeness"] = subject.likeness(reducer)
    return found


def _seconds(setting: str, arms: Sequence[str]) -> Measure:
    """Time all arms of one setting, and the unmodified model, in every round: column ``seconds SETTING``."""

    def turns(run: Run) -> dict[int, int]:
        for name in arms:
            run.subject.second(run.arms[name].reducer, 0)  # warms up
        return {turn: turn for turn in range(ROUNDS)}

    def time(run: Run, arm: ReducerArm, turn: int) -> dict[str, float]:
        return {f"seconds {setting}": run.subject.second(arm.reducer, turn)}

    return Measure(name=f"seconds {setting}", units=turns, of=time, arms=arms)


def _seconds_by_size(arms: Sequence[str]) -> Measure:
    """Time arms on images of several sizes: column ``size seconds``, the rounds of one size after the other."""

    def set_to(run: Run, arm: ReducerArm, subject: Any) -> Any:
        if arm.percent is None:
            return None
        made = catalog.build(arm.name, run.study.job, model=subject.model)
        return made.at(arm.percent / 100, subject.anatomy)

    def units(run: Run) -> dict[str, Any]:
        subjects = {size: run.subject.at_size(size, 8, 4) for size in SIZES}
        for subject in subjects.values():
            for name in arms:
                subject.second(set_to(run, run.arms[name], subject), 0)
        return {f"{size}, {turn}": (subjects[size], turn) for size in SIZES for turn in range(SIZE_ROUNDS)}

    def time(run: Run, arm: ReducerArm, unit: Any) -> dict[str, float]:
        subject, turn = unit
        return {"size seconds": subject.second(set_to(run, arm, subject), turn)}

    return Measure(name="image sizes", units=units, of=time, arms=arms)


def _by_size(run: Run, arm: ReducerArm) -> list[float]:
    ratios = run.column(PLAIN, "size seconds") / run.column(arm.key, "size seconds")
    return [float(np.median(part)) for part in ratios.reshape(len(SIZES), SIZE_ROUNDS)]


# -- metrics -------------------------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """A number of an arm: its name, unit and direction, how it is made, what the unmodified model has, and its units.

    Those with a `label` are drawn against the multiply-adds, under the name `slug`.
    """

    name: str
    unit: str
    more_is_better: bool
    of: Callable[[Run, ReducerArm], Interval | float]
    plain: float
    n: int
    label: str = ""
    slug: str = ""


def _metrics(run: Run) -> list[Metric]:
    """Return what this model can be measured by."""
    images = len(run.subject)

    def mean(column: str, scale: float = 1.0) -> Callable[[Run, ReducerArm], Interval]:
        return lambda run, arm: bootstrap(scale * run.column(arm.key, column))

    distance = Metric("distance to the unmodified model's output", "nats", False, mean("divergence"), 0.0, images)
    found = [
        Metric("agreement with the unmodified model", "%", True, mean("agrees", 100.0), 100.0, images),
        distance._replace(label="distance to the unmodified output, nats", slug="distance"),
    ]
    if "correct" in run.columns[PLAIN]:
        plain = 100 * float(run.column(PLAIN, "correct").mean())
        accuracy = Metric("top-1 accuracy", "%", True, mean("correct", 100.0), plain, images)
        found.insert(0, accuracy._replace(label="top-1 accuracy, %", slug="accuracy"))
    if run.subject.head is not None:
        label = "correlation with the unmodified saliency map"
        found.append(Metric(label, "", True, mean("likeness"), 1.0, images, label, "saliency"))
    speed = Metric("images per second", "x", True, _speedup, 1.0, ROUNDS, "images per second, unmodified = 1", "speed")
    return [
        *found,
        Metric("multiply-adds", "x", False, _macs, 1.0, 1),
        speed,
        Metric("peak memory of activations", "x", False, lambda run, arm: _ratio(run, arm, "bytes"), 1.0, 1),
        Metric(
            "time to decide and move",
            "ms per batch",
            False,
            lambda run, arm: 1000 * float(run.column(arm.key, "decision")[0]),
            0.0,
            5,
        ),
    ]


def _plain(number: Interval | float) -> float:
    return number.value if isinstance(number, Interval) else number


def _ratio(run: Run, arm: ReducerArm, column: str) -> float:
    return float(run.column(arm.key, column)[0] / run.column(PLAIN, column)[0])


def _macs(run: Run, arm: ReducerArm) -> float:
    return _ratio(run, arm, "macs")


def _speedup(run: Run, arm: ReducerArm) -> Interval:
    column = f"seconds {arm.setting}"
    return bootstrap_ratio(run.column(PLAIN, column), run.column(arm.key, column), of="median")


def _second_fastest(run: Run, arms: Sequence[ReducerArm]) -> Iterator[Finding]:
    """Ask whether two methods are much faster and hardly worse; of each the fastest that loses little counts."""
    if "correct" not in run.columns[PLAIN]:
        return
    plain = run.column(PLAIN, "correct")
    lost = {arm.key: 100 * float((plain - run.column(arm.key, "correct")).mean()) for arm in arms}
    best: dict[str, ReducerArm] = {}
    for arm in sorted(arms, key=lambda arm: -_speedup(run, arm).value):
        if lost[arm.key] <= LOST:
            best.setdefault(arm.name, arm)
    if len(best) < 2:
        return
    ranked = list(best.values())
    second = ranked[1]
    yield Finding(
        method=second.method,
        metric=f"images per second of the second fastest method that loses at most {LOST:g} point",
        value=_speedup(run, second),
        unit="x",
        n=ROUNDS,
        baseline={PLAIN: 1.0},
        peers={arm.key: _speedup(run, arm).value for arm in ranked if arm is not second},
        claim=f"at least two methods give {FASTER:g} times the images per second for at most {LOST:g} point",
        holds=at_least(FASTER),
        note=f"{second.key} loses {lost[second.key]:.2f} points; the settings were chosen on these images",
    )

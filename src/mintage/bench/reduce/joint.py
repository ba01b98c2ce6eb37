"""Measure reducers: accuracy, agreement, multiply-adds, images per second and memory, at equal multiply-adds.

The job alone (``mintage bench reduce``) runs every ready method and baseline; a paper's method alone runs its own claim
check, `mintage.studies`. Every arm sees the same images in the same process, in rotating order, beside the
unmodified model. A method that was trained for one setting runs at that one.

``mintage bench reduce --model owner/name --images folder/`` measures a model and images of your own.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mintage import catalog
from mintage.bench.reduce.quality import Quality, Subject, decision_seconds, plain_or, spread
from mintage.data import data_file
from mintage.data.images import Images, OnError, read_cifar10, read_images
from mintage.errors import UserError
from mintage.measure import Figure, Interval, Result, Trial, bootstrap, bootstrap_ratio
from mintage.measure.trial import Report, silent
from mintage.reduce.contract import Reducer
from mintage.saliency import load_saliency
from mintage.vision import SHIPPED, Preprocessing, load_image_classifier, load_vit_s14

__all__ = ["run"]

PLAIN = "unmodified"
_ROUNDS = 8
"""Timed batches per arm and setting."""

_FAST, _LOST = 1.4, 1.0
"""A method pays if it is this many times faster and loses at most this many points of accuracy."""

VIT_S14 = "vit-s14"
"""Name of the backbone in DINOv2's layout that lies in the data folder."""

_IMAGENET = "imagenet_sample_224_jpeg.npz"

_SIZES = (112, 224, 336, 448)
"""Image sizes at which a model that takes any is timed."""


def run(
    methods: Sequence[str] = (),
    *,
    model: str = SHIPPED,
    images: str | None = None,
    on_error: OnError = "refuse",
    budgets: Sequence[int] = (80, 65, 50, 40),
    limit: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    command: str = "",
    work: Path | None = None,
    progress: Report = silent,
) -> list[Result | Figure]:
    """Measure, and return rows and figures.

    Parameters
    ----------
    methods
        Specs of the job's methods, e.g. ``"pitome:schedule=ratio=0.9"``; default every ready one.
    model
        What `mintage.vision.load_image_classifier` takes, or ``"vit-s14"``, the backbone of that data set.
    images
        A folder of images (sub-folders are classes) or an ``.npz``; default what belongs to the model.
    on_error
        ``"refuse"`` or ``"skip"`` a broken image.
    budgets
        Percent of the unmodified model's multiply-adds that methods are set to.
    limit
        Images; None uses all.
    device, seed, command, work, progress
        As in the other benches.

    Raises
    ------
    UserError
        Unknown methods or settings, budgets outside 1..99, a model that is not supported, missing or broken images.
    """
    if not budgets or not all(0 < percent < 100 for percent in budgets):
        raise UserError(f"--budgets {','.join(map(str, budgets))}: pass percents of the multiply-adds, e.g. 80,65,50")
    given = _load(model, images, limit=limit, on_error=on_error, device=device)
    subject = Subject(given.model, given.pixels().to(device), given.labels, head=given.head)
    arms, absent = _arms(methods, subject, budgets)
    settings = {"budgets": list(budgets), "batch": subject.batch}
    trial = Trial(
        "",
        job="reduce",
        model=model,
        seed=seed,
        command=command,
        definition={"images": given.data, "limit": limit, **settings},
        total=len(arms) + len({arm.setting for arm in arms}) * _ROUNDS,
        progress=progress,
        work=Path(".mintage") / "reduce" / "bench" if work is None else work,
    )
    trial.common |= {"data": given.data, "settings": settings | ({"left out": absent} if absent else {})}
    held = [_measure(trial, subject, arm) for arm in arms]
    _time(trial, subject, held)
    rows: list[Result | Figure] = [row for one in held for row in _rows(trial, one, held)]
    rows += _verdicts(trial, held)
    rows += _curves(trial, held)
    rows += _pictures(trial, subject, held, given)
    if given.any_size:
        rows += _sizes(trial, given, arms)
    trial.memo.delete()
    return rows


# -- inputs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """A model and images for it."""

    model: Any
    preprocess: Preprocessing
    images: Images
    labels: np.ndarray | None
    data: str
    head: Any = None

    @property
    def any_size(self) -> bool:
        """Whether the model interpolates its positions by itself."""
        return type(self.model).__name__.startswith("Dinov2")

    def pixels(self, rows: Sequence[int] | None = None, *, side: int | None = None) -> torch.Tensor:
        """Prepare some of the images, at another size if told."""
        prepared = self.preprocess if side is None else replace(self.preprocess, size=(side, side), shortest=side)
        return prepared(self.images.pixels if rows is None else self.images.take(rows).pixels)


def _load(model: str, images: str | None, *, limit: int | None, on_error: OnError, device: str) -> _Given:
    """Load a model and the images that belong to it, or those of a folder."""
    classes: tuple[str, ...] = ()
    head = None
    if model == VIT_S14:
        network, preprocess = load_vit_s14()
        network.to(device)
        head = load_saliency().to(device)
    else:
        loaded = load_image_classifier(model, device=device)
        network, preprocess, classes = loaded.model, loaded.preprocess, loaded.labels
    if images is not None:
        held, data = read_images(images, on_error=on_error, limit=limit), Path(images).name
    elif model == SHIPPED:
        test = read_cifar10()[1]
        held, data = test.take(spread(limit or len(test), len(test))), "CIFAR-10, test images"
    elif model == VIT_S14:
        held, data = read_images(data_file(_IMAGENET), limit=limit or 200), "ImageNet sample"
    else:
        raise UserError(f"no images belong to {model}; pass --images with a folder of them (sub-folders are classes)")
    if held.skipped:
        data += f" ({len(held.skipped)} broken ones skipped)"
    return _Given(network, preprocess, held, _matched(held, classes), data, head)


def _matched(images: Images, classes: tuple[str, ...]) -> np.ndarray | None:
    """Number the images' labels as the model numbers its classes, by name; None where a name is not among them."""
    if images.labels is None:
        return None
    places = {name.lower(): place for place, name in enumerate(classes)}
    numbered = [places.get(name.lower()) for name in images.classes]
    if None in numbered or not numbered:
        return None
    return np.array(numbered)[images.labels]


# -- arms -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A method at one setting: a percentage of the multiply-adds, or the one it was trained for (None)."""

    name: str
    reducer: Reducer
    percent: int | None

    @property
    def setting(self) -> str:
        return "as trained" if self.percent is None else f"at -{100 - self.percent}% MACs"

    @property
    def key(self) -> str:
        return f"{self.name} {self.setting}"


def _arms(methods: Sequence[str], subject: Subject, budgets: Sequence[int]) -> tuple[list[Arm], dict[str, str]]:
    """Build the arms; those of the catalogue that do not serve this model are left out with the reason."""
    specs = list(methods) or [m.name for m in catalog.methods("reduce") if m.status == "ready"]
    arms, absent = [], {}
    for spec in dict.fromkeys(specs):
        try:
            reducer = catalog.build(spec, "reduce", model=subject.model)
            percents = [None] if reducer.fixed else budgets
        except UserError as error:
            absent[spec], percents = str(error), []
        for percent in percents:
            try:
                arm = Arm(spec, reducer if percent is None else reducer.at(percent / 100, subject.anatomy), percent)
                arm.reducer(subject.model)
                arms.append(arm)
            except UserError as error:
                absent[spec if percent is None else f"{spec} at {percent}%"] = str(error)
        if methods and spec not in {arm.name for arm in arms}:
            raise UserError(f"{spec} cannot be measured: {next(why for name, why in absent.items() if spec in name)}")
    if not arms:
        raise UserError("no method serves this model: " + "; ".join(f"{n}: {why}" for n, why in absent.items()))
    return arms, absent


class _Held:
    """All that was measured of one arm."""

    def __init__(self, arm: Arm, found: dict[str, Any]) -> None:
        self.arm = arm
        correct, agrees, divergence = found["quality"]
        right = None if correct is None else np.array(correct)
        self.quality = Quality(right, np.array(agrees), np.array(divergence))
        self.plain = None if found["plain"] is None else np.array(found["plain"])
        self.likeness = None if found["likeness"] is None else np.array(found["likeness"])
        self.macs, self.bytes, self.decision = found["macs"], found["bytes"], found["decision"]
        self.seconds: np.ndarray = np.zeros(0)
        self.plain_seconds: np.ndarray = np.zeros(0)

    @property
    def lost(self) -> Interval | None:
        """Points of accuracy lost to the unmodified model."""
        if self.plain is None or self.quality.correct is None:
            return None
        return bootstrap(100 * (self.plain - self.quality.correct))

    @property
    def speedup(self) -> Interval:
        return bootstrap_ratio(self.plain_seconds, self.seconds, of="median")


def _measure(trial: Trial, subject: Subject, arm: Arm) -> _Held:
    def measure() -> dict[str, Any]:
        torch.manual_seed(trial.seed)
        quality, plain = subject.quality(arm.reducer), subject.judged(subject.reference)
        likeness = subject.likeness(arm.reducer)
        return {
            "likeness": None if likeness is None else likeness.tolist(),
            "quality": [
                None if v is None else v.tolist() for v in (quality.correct, quality.agrees, quality.divergence)
            ],
            "plain": None if plain.correct is None else plain.correct.tolist(),
            "macs": subject.macs(arm.reducer) / subject.macs(None),
            "bytes": subject.peak_bytes(arm.reducer) / subject.peak_bytes(None),
            "decision": decision_seconds(arm.reducer, subject),
        }

    return _Held(arm, trial.measured(f"quality {arm.key}", measure, arm.key))


def _time(trial: Trial, subject: Subject, held: Sequence[_Held]) -> None:
    """Time all arms of one setting, and the unmodified model, in every round."""
    for setting in dict.fromkeys(one.arm.setting for one in held):
        same = [one for one in held if one.arm.setting == setting]
        arms: dict[str, Reducer | None] = {PLAIN: None} | {one.arm.name: one.arm.reducer for one in same}
        subject.seconds(arms, 0)  # warms up
        rounds = [
            trial.measured(f"seconds {setting} {turn}", lambda t=turn, a=arms: subject.seconds(a, t), f"time {setting}")
            for turn in range(_ROUNDS)
        ]
        for one in same:
            one.seconds = np.array([found[one.arm.name] for found in rounds])
            one.plain_seconds = np.array([found[PLAIN] for found in rounds])


# -- rows -----------------------------------------------------------------------------------------------------------


def _rows(trial: Trial, one: _Held, held: Sequence[_Held]) -> list[Result]:
    """One row per metric of one arm, the others at the same setting beside it."""
    papers = {m.name for m in catalog.methods("reduce", role="paper")}
    method = one.arm.name.partition(":")[0]
    others = [o for o in held if o is not one and o.arm.setting == one.arm.setting] if method in papers else []
    rows = []

    def add(metric: str, unit: str, higher: bool, of: Any, plain: float, n: int) -> None:
        value = of(one)
        interval = value.bounds if isinstance(value, Interval) else None
        number = [v.value if isinstance(v, Interval) else v for v in map(of, others)]
        rows.append(
            trial.result(
                method=method,
                metric=f"{metric} {one.arm.setting}" + ("" if one.arm.name == method else f", {one.arm.name}"),
                value=value.value if isinstance(value, Interval) else value,
                unit=unit,
                higher_is_better=higher,
                interval=interval,
                n=n,
                baseline={PLAIN: plain},
                peers={o.arm.name: v for o, v in zip(others, number, strict=True)},
            )
        )

    images, rounds = len(one.quality.agrees), len(one.seconds)
    if one.quality.correct is not None and one.plain is not None:
        plain = 100 * float(one.plain.mean())
        add("top-1 accuracy", "%", True, lambda o: bootstrap(100 * o.quality.correct), plain, images)
    add("agreement with the unmodified model", "%", True, lambda o: bootstrap(100 * o.quality.agrees), 100.0, images)
    add(
        "distance to the unmodified model's output",
        "nats",
        False,
        lambda o: bootstrap(o.quality.divergence),
        0.0,
        images,
    )
    if one.likeness is not None:
        add("correlation with the unmodified saliency map", "", True, lambda o: bootstrap(o.likeness), 1.0, images)
    add("multiply-adds", "x", False, lambda o: o.macs, 1.0, 1)
    add("images per second", "x", True, lambda o: o.speedup, 1.0, rounds)
    add("peak memory of activations", "x", False, lambda o: o.bytes, 1.0, 1)
    add("time to decide and move", "ms per batch", False, lambda o: 1000 * o.decision, 0.0, 5)
    return rows


def _verdicts(trial: Trial, held: Sequence[_Held]) -> list[Result]:
    """Are two methods much faster and hardly worse? Of each method its fastest setting that loses little counts."""
    best: dict[str, _Held] = {}
    for one in held:
        if one.lost is not None and one.lost.value <= _LOST:
            name = one.arm.name
            if name not in best or one.speedup.value > best[name].speedup.value:
                best[name] = one
    if len(best) < 2:
        return []
    ranked = sorted(best.values(), key=lambda o: -o.speedup.value)
    second = ranked[1]
    lost = second.lost.value if second.lost else 0.0
    return [
        trial.result(
            method=second.arm.name.partition(":")[0],
            metric=f"images per second of the second fastest method that loses at most {_LOST:g} point",
            value=second.speedup.value,
            interval=second.speedup.bounds,
            unit="x",
            higher_is_better=True,
            n=len(second.seconds),
            baseline={PLAIN: 1.0},
            peers={o.arm.key: o.speedup.value for o in ranked if o is not second},
            claim=f"at least two methods give {_FAST:g} times the images per second for at most {_LOST:g} point",
            verdict="holds" if second.speedup.value >= _FAST else "does not hold",
            note=f"{second.arm.key} loses {lost:.2f} points; the settings were chosen on these images",
        )
    ]


# -- figures --------------------------------------------------------------------------------------------------------


def _curves(trial: Trial, held: Sequence[_Held]) -> list[Figure]:
    """Quality against multiply-adds, and speed against them."""
    figures = []
    names = list(dict.fromkeys(one.arm.name for one in held))

    def series(of: Any) -> list[dict[str, Any]]:
        made = []
        for name in names:
            own = sorted((o for o in held if o.arm.name == name), key=lambda o: o.macs)
            made.append({"name": name, "x": [o.macs for o in own], "y": [of(o) for o in own]})
        return made

    wanted = [("distance", "distance to the unmodified output, nats", lambda o: float(o.quality.divergence.mean()))]
    if held[0].quality.correct is not None:
        wanted.insert(0, ("accuracy", "top-1 accuracy, %", lambda o: 100 * float(o.quality.correct.mean())))
    if held[0].likeness is not None:
        wanted.append(("saliency", "correlation with the unmodified saliency map", lambda o: float(o.likeness.mean())))
    wanted.append(("speed", "images per second, unmodified = 1", lambda o: o.speedup.value))
    for slug, label, of in wanted:
        figures.append(
            trial.figure(
                name=f"{slug}-{_slug(trial.common['model'])}",
                method="",
                title=f"{label[0].upper()}{label[1:]}, against the multiply-adds",
                caption=f"{trial.common['model']}, {trial.common['data']}; what the decisions cost is counted.",
                kind="curve",
                data={"x_label": "share of the multiply-adds", "y_label": label, "series": series(of)},
            )
        )
    return figures


def _pictures(trial: Trial, subject: Subject, held: Sequence[_Held], given: _Given) -> list[Figure]:
    """Which patches became one token, on some of the images, at the setting next to half of the multiply-adds."""
    figures = []
    places = spread(4, len(subject))
    for name in dict.fromkeys(one.arm.name for one in held):
        one = min((o for o in held if o.arm.name == name), key=lambda o: abs(o.macs - 0.5))
        with plain_or(one.arm.reducer, subject.model, trace=True) as session:
            subject.outputs(subject.pixels[places])
            assert session is not None
            groups = session.groups()
        if groups is None:
            continue
        images = [
            {"src": _data_address(given.images.pixels[place]), "label": f"image {place}", "groups": grid}
            for place, grid in zip(places, groups, strict=True)
        ]
        figures.append(
            trial.figure(
                name=f"patches-{_slug(name)}-{_slug(trial.common['model'])}",
                method=name.partition(":")[0],
                title=f"What {name} makes of the patches, {one.arm.setting}",
                caption="Lines part the tokens left at the end; patches that share one have a tint; dark ones went.",
                kind="patch-map",
                data={"images": images},
            )
        )
    return figures


def _sizes(trial: Trial, given: _Given, arms: Sequence[Arm]) -> list[Result | Figure]:
    """From which image size on does a method pay? Timed at about the middle of the settings."""
    percents = sorted({arm.percent for arm in arms if arm.percent is not None})
    if not percents:
        return []
    percent = min(percents, key=lambda p: abs(p - 65))
    same = [arm for arm in arms if arm.percent == percent]
    ratios: dict[str, list[float]] = {arm.name: [] for arm in same}
    for size in _SIZES:
        subject = Subject(given.model, given.pixels(range(min(8, len(given.images))), side=size), batch=4)
        now: dict[str, Reducer | None] = {PLAIN: None}
        for arm in same:
            now[arm.name] = catalog.build(arm.name, "reduce", model=given.model).at(percent / 100, subject.anatomy)
        subject.seconds(now, 0)
        rounds = [
            trial.measured(f"size {size} {turn}", lambda t=turn, s=subject, a=now: s.seconds(a, t), f"{size} pixels")
            for turn in range(4)
        ]
        for name, found in ratios.items():
            found.append(float(np.median([r[PLAIN] / r[name] for r in rounds])))
    rows: list[Result | Figure] = []
    for name, found in ratios.items():
        paying = [size for size, ratio in zip(_SIZES, found, strict=True) if ratio > 1]
        rows.append(
            trial.result(
                method=name.partition(":")[0],
                metric=f"images per second at {_SIZES[-1]} pixels at -{100 - percent}% MACs, {name}",
                value=found[-1],
                unit="x",
                higher_is_better=True,
                n=4,
                baseline={PLAIN: 1.0},
                note=f"pays from {paying[0]} pixels on" if paying else "pays at none of these sizes",
            )
        )
    data = {
        "x_label": "pixels of the image's side",
        "y_label": "images per second, unmodified = 1",
        "series": [{"name": name, "x": list(_SIZES), "y": found} for name, found in ratios.items()],
    }
    title = f"From which image size on it pays, at {percent}% of the multiply-adds"
    caption = "Batches of 4, paired rounds, median."
    rows.append(trial.figure(name="image-size", method="", title=title, caption=caption, kind="curve", data=data))
    return rows


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def _data_address(pixels: np.ndarray) -> str:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()

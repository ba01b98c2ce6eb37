"""Does a transformer that slims itself keep its accuracy where dropping loses it, and is it as fast as it should be?

The harsh point: after the first, second and third block half of the patch tokens each, 64 to 8. The shipped weights are
held against their teacher. Then students start afresh from the teacher and take the same few steps on the same images:
slimming taught by tokens and logits, slimming taught by logits only, and rivals that leave as many tokens behind the
same blocks, taught by the same logits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from mintage.bench.reduce.quality import Subject, spread
from mintage.errors import UserError
from mintage.measure import Figure, Interval, Result, bootstrap, bootstrap_ratio
from mintage.measure.trial import Report, Trial, silent
from mintage.reduce.baselines import AveragePool, ClassAttention
from mintage.reduce.contract import Reducer
from mintage.reduce.sit_slim import SelfSlimmed, Slimming
from mintage.reduce.training.images import TrainingImages, numbered, read_training_images, test_images
from mintage.reduce.training.sit_slim import distil
from mintage.vision import SHIPPED, load_image_classifier

__all__ = ["run"]

STEPS, BATCH, LR = 300, 64, 1e-3
"""Of every student that is trained here."""

INIT_STD = 0.16
"""Of the slimming modules: the paper's 0.02 is for a hundred epochs."""

ROUNDS = 12
OURS, LOGITS, DROP, POOL = "slimming, tokens and logits", "slimming, logits", "class attention", "average pooling"


@dataclass(frozen=True, kw_only=True, eq=False)
class _DropBehind(ClassAttention):
    """Class-attention dropping where slimming stands: behind the block."""

    hook: ClassVar[Literal["attention", "block"]] = "block"


@dataclass(frozen=True, kw_only=True, eq=False)
class _PoolBehind(AveragePool):
    """Average pooling behind the block."""

    hook: ClassVar[Literal["attention", "block"]] = "block"


def _stages(layers: int) -> tuple[int, ...]:
    return (1, 1, 1, layers - 3)


def run(
    *,
    model: str = SHIPPED,
    limit: int | None = None,
    seed: int = 0,
    command: str = "",
    work: Path | None = None,
    progress: Report = silent,
) -> list[Result | Figure]:
    """Run the check; `limit` is the number of test images (default all)."""
    classifier = load_image_classifier(model)
    images = numbered(test_images(), classifier)
    images = images.take(spread(limit or len(images), len(images)))
    work = Path(".mintage") / "reduce" / "sit-slim" if work is None else work
    settings = {"steps": STEPS, "batch": BATCH, "lr": LR, "init_std": INIT_STD}
    trial = Trial(
        "sit-slim",
        job="reduce",
        model=model,
        seed=seed,
        command=command,
        definition={"limit": limit, **settings},
        total=4 + 1 + ROUNDS,
        progress=progress,
        work=work,
    )
    trial.common |= {"data": "CIFAR-10, test images", "settings": settings}
    pixels = classifier.preprocess(images.pixels)
    subject = Subject(classifier.model, pixels, images.labels)
    anatomy = subject.anatomy
    if anatomy.layers < 4:
        raise UserError(f"the check slims behind three blocks; {model} has {anatomy.layers}, pass a deeper model")
    plain = subject.judged(subject.reference).correct
    assert plain is not None
    lessons: list[TrainingImages] = []  # read when the first student needs them

    def trained(name: str) -> np.ndarray:
        def measure() -> list[float]:
            if not lessons:
                lessons.append(read_training_images(classifier))
            torch.manual_seed(seed)
            slimming = Slimming.new(classifier.model, _stages(anatomy.layers), seed=seed, init_std=INIT_STD)
            counts = "counts=" + "x".join(map(str, SelfSlimmed(weights=slimming).kept(anatomy)))
            reducer: Reducer = {
                DROP: _DropBehind(schedule=counts),
                POOL: _PoolBehind(schedule=counts),
            }.get(name, SelfSlimmed(weights=slimming))
            student = distil(
                lessons[0],
                reducer,
                work / "students" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}",
                recover=name == OURS,
                steps=STEPS,
                batch_rows=BATCH,
                lr=LR,
                seed=seed,
                ratio=1.0,
                report=_reporter(trial, name),
            )
            found = Subject(student, pixels, images.labels).quality(reducer).correct
            assert found is not None
            return found.tolist()

        return np.array(trial.measured(f"student {name}", measure, name))

    correct = {name: trained(name) for name in (OURS, LOGITS, DROP, POOL)}
    rows: list[Result | Figure] = []
    scores = {name: 100 * float(v.mean()) for name, v in correct.items()}
    teacher = {"teacher": 100 * float(plain.mean())}
    for other in (DROP, LOGITS, POOL):
        gap = _points(correct[OURS] - correct[other])
        told: dict[str, Any] = {}
        if other != POOL:
            rival = "class-attention dropping" if other == DROP else "slimming taught by logits only"
            told = {
                "claim": f"at 1/8 of the tokens, after the same {STEPS} steps, it is above {rival}",
                "verdict": "holds" if gap.low > 0 else "does not hold",
            }
        rows.append(
            trial.result(
                metric=f"top-1 of slimming taught by tokens and logits minus that of {other}, 1/8 of the tokens",
                value=gap.value,
                interval=gap.bounds,
                unit="points",
                higher_is_better=True,
                n=len(plain),
                baseline=teacher,
                peers={name: score for name, score in scores.items() if name != OURS},
                note=f"baseline and peers are accuracies; the first is {scores[OURS]:.2f}",
                **told,
            )
        )
    if model == SHIPPED:
        rows += _of_shipped(trial, subject, plain)
    trial.memo.delete()
    shutil.rmtree(work / "students", ignore_errors=True)
    return rows


def _of_shipped(trial: Trial, subject: Subject, plain: np.ndarray) -> list[Result | Figure]:
    """Accuracy and speed of the weights that ship with mintage."""
    reducer = SelfSlimmed()

    def measure() -> list[float]:
        found = subject.quality(reducer).correct
        assert found is not None
        return found.tolist()

    correct = np.array(trial.measured("shipped", measure, "shipped weights"))
    share = _share(correct, plain)
    tokens = "x".join(map(str, dict.fromkeys(reducer.kept(subject.anatomy))))
    common: dict[str, Any] = {
        "settings": {"tokens": tokens, "made by": reducer.slimming.notes.get("command", "")},
        "higher_is_better": True,
    }
    rows: list[Result | Figure] = [
        trial.result(
            metric="top-1 over the teacher's, shipped weights, 1/8 of the tokens",
            value=100 * share.value,
            interval=(100 * share.low, 100 * share.high),
            unit="%",
            n=len(plain),
            baseline={"teacher": 100 * float(plain.mean())},
            claim="at 1/8 of the tokens at least 97% of the teacher's accuracy is kept",
            verdict="holds" if share.value >= 0.97 else "does not hold",
            note=f"its accuracy is {100 * correct.mean():.2f}",
            **common,
        )
    ]
    arms: dict[str, Reducer | None] = {"teacher": None, "shipped": reducer}
    subject.seconds(arms, 0)  # warms up
    rounds = [
        trial.measured(f"seconds {turn}", lambda t=turn: subject.seconds(arms, t), "seconds") for turn in range(ROUNDS)
    ]
    faster = bootstrap_ratio([r["teacher"] for r in rounds], [r["shipped"] for r in rounds], of="median")
    fewer = subject.macs(None) / subject.macs(reducer)
    rows.append(
        trial.result(
            metric="images per second over the teacher's, shipped weights, 1/8 of the tokens",
            value=faster.value,
            interval=faster.bounds,
            unit="x",
            n=ROUNDS,
            baseline={"teacher": 1.0},
            peers={"multiply-adds of the teacher over its own": fewer},
            claim="the measured speed-up is at least 85% of the ratio of multiply-adds",
            verdict="holds" if faster.value >= 0.85 * fewer else "does not hold",
            note=f"batches of {subject.batch}; slimming itself is in both",
            **common,
        )
    )
    return rows


def _points(difference: np.ndarray) -> Interval:
    return bootstrap(100 * difference)


def _share(correct: np.ndarray, plain: np.ndarray) -> Interval:
    """Ratio of two accuracies on the same images, resampled together."""
    places = np.arange(len(plain), dtype=float)

    def ratio(chosen: np.ndarray, axis: int) -> Any:
        index = chosen.astype(int)
        return correct[index].sum(axis) / np.maximum(plain[index].sum(axis), 1)

    return bootstrap(places, ratio)


def _reporter(trial: Trial, name: str) -> Callable[[str, int, int], None]:
    def report(stage: str, done: int, of: int) -> None:
        if stage == "train":
            trial.progress(trial.done, trial.total, f"{name}: step {done} of {of}")

    return report

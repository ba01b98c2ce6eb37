"""Does merging by energy lose less than ToMe's merging by place, in general and for small things on plain ground?

CIFAR-10's test images as they are, and the same at half size on a plain canvas of their mean colour, at a random place:
the regime that the paper claims. Top-1 is coarse on a small model, so the distance to the unmodified model's output
is told beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn import functional

from mintage.bench.reduce.measures import PLAIN, EqualMacs, at_shares, points
from mintage.bench.reduce.quality import Quality, Subject
from mintage.errors import UserError
from mintage.measure import Figure, Result, bootstrap
from mintage.measure.trial import Report, silent
from mintage.reduce.baselines import AveragePool, RandomDrop, ToMe
from mintage.reduce.contract import Reducer
from mintage.reduce.pitome import PiToMe
from mintage.vision import SHIPPED

__all__ = ["run", "small_on_plain"]

OURS = "pitome"
SHARES = (0.8, 0.65, 0.5, 0.4)
CLAIMED = 0.5

ARMS: Mapping[str, Reducer] = {
    OURS: PiToMe(),
    "pitome, matching": PiToMe(variant="matching"),
    "pitome, auto": PiToMe(variant="auto"),
    "pitome, no size in attention": PiToMe(proportional_attention=False),
    "tome": ToMe(),
    "tome, no size in attention": ToMe(proportional_attention=False),
    "average-pool": AveragePool(),
}


def small_on_plain(
    images: Sequence[UInt8[np.ndarray, "height width 3"]], *, seed: int = 0
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Shrink every image to half its sides, and put it at a random place on a canvas of its mean colour."""
    generator = np.random.default_rng(seed)
    made = []
    for image in images:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        small = functional.interpolate(pixels, size=(height, width), mode="area")[0].permute(1, 2, 0)
        canvas = np.broadcast_to(image.mean((0, 1)).round().astype(np.uint8), image.shape).copy()
        top = int(generator.integers(0, image.shape[0] - height + 1))
        left = int(generator.integers(0, image.shape[1] - width + 1))
        canvas[top : top + height, left : left + width] = small.round().byte().numpy()
        made.append(canvas)
    return made


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
    trial = EqualMacs(
        OURS,
        model=model,
        limit=limit,
        seed=seed,
        command=command,
        progress=progress,
        work=work,
        definition={"shares": list(SHARES)},
        total=2 * (1 + (len(ARMS) + 1) * len(SHARES)) + 8,
    )
    arms, absent = at_shares({**ARMS, "random-drop": RandomDrop(seed=seed)}, SHARES, trial.subject)
    if absent:
        trial.common["settings"] |= {"left out": absent}
    missing = [name for name in (OURS, "tome") if name not in arms[CLAIMED]]
    if missing:
        raise UserError(f"{model}: {absent[f'{missing[0]} at {100 * CLAIMED:.0f}%']}")
    pixels = trial.classifier.preprocess(small_on_plain(trial.images.pixels, seed=seed))
    small = Subject(trial.classifier.model, pixels, trial.images.labels)
    rows: list[Result | Figure] = []
    for kind, subject in (("", trial.subject), (", small on plain ground", small)):
        plain = trial.qualities({PLAIN: None}, on=kind, subject=subject)[PLAIN].correct
        assert plain is not None
        curves: dict[str, dict[float, float]] = {}
        for share in SHARES:
            held = trial.qualities(arms[share], on=f" at {share:g}{kind}", subject=subject)
            for name, quality in held.items():
                curves.setdefault(name, {1.0: 0.0})[share] = float(quality.divergence.mean())
            if OURS in held and "tome" in held:
                rows += _at(trial, share, kind, plain, held)
        slug = "small" if kind else "whole"
        title = "Distance to the unmodified output" + (", small things on plain ground" if kind else "")
        rows.append(trial.curves(f"pitome-distance-{slug}", title, "KL divergence, nats", curves))
    rows += _speed(trial, arms[CLAIMED])
    trial.memo.delete()
    return rows


def _at(
    trial: EqualMacs, share: float, kind: str, plain: np.ndarray, held: Mapping[str, Quality]
) -> list[Result | Figure]:
    """Accuracy and distance at one share, beside ToMe."""
    setting = f"at -{100 - 100 * share:.0f}% MACs{kind}"
    correct = {name: q.correct for name, q in held.items() if q.correct is not None}
    ours, tome = correct[OURS], correct["tome"]
    scores = {name: 100 * float(right.mean()) for name, right in correct.items() if name != OURS}
    note = f"baseline and peers are accuracies; its own is {100 * ours.mean():.2f}"
    whole = {PLAIN: 100 * float(plain.mean())}
    rows: list[Result | Figure] = [
        trial.gap(f"top-1 minus that of ToMe {setting}", ours, tome, baseline=whole, peers=scores, note=note),
        trial.gap(
            f"top-1 minus that of random dropping {setting}",
            ours,
            correct["random-drop"],
            baseline=whole,
            peers=scores,
            note=note,
        ),
    ]
    nearer = bootstrap(held["tome"].divergence - held[OURS].divergence)
    told: dict[str, Any] = {}
    if share == CLAIMED:
        half = points(0.5 * (plain - tome) - (plain - ours))
        where = "where small things stand on plain ground" if kind else "on whole images"
        rows.append(
            trial.result(
                metric=f"half of what ToMe loses minus what PiToMe loses {setting}",
                value=half.value,
                interval=half.bounds,
                unit="points",
                higher_is_better=True,
                n=len(plain),
                baseline=whole,
                peers=scores,
                claim=f"at -50% MACs PiToMe loses at most half of the top-1 that ToMe loses, {where}",
                verdict="holds" if half.low > 0 else "does not hold",
                note=note,
            )
        )
        told = {
            "claim": f"at -50% MACs PiToMe is nearer to the unmodified model's output than ToMe, {where}",
            "verdict": "holds" if nearer.low > 0 else "does not hold",
        }
    rows.append(
        trial.result(
            metric=f"distance of ToMe minus that of PiToMe {setting}",
            value=nearer.value,
            interval=nearer.bounds,
            unit="nats",
            higher_is_better=True,
            n=len(plain),
            baseline={PLAIN: 0.0},
            peers={name: float(q.divergence.mean()) for name, q in held.items() if name != OURS},
            note=f"peers are distances to the unmodified output; its own is {held[OURS].divergence.mean():.4f}",
            **told,
        )
    )
    return rows


def _speed(trial: EqualMacs, arms: Mapping[str, Reducer]) -> list[Result | Figure]:
    """Images per second: the similarity of all pairs and the sort cost more than ToMe's."""
    timed = {name: arms[name] for name in (OURS, "tome", "random-drop") if name in arms}
    speeds = trial.speeds(timed, f"at {CLAIMED:g}")
    ours = speeds[OURS]
    return [
        trial.result(
            metric=f"images per second at -{100 - 100 * CLAIMED:.0f}% MACs",
            value=ours.value,
            interval=ours.bounds,
            unit="x",
            higher_is_better=True,
            n=8,
            baseline={PLAIN: 1.0},
            peers={name: speed.value for name, speed in speeds.items() if name != OURS},
            note="deciding is in it",
        )
    ]

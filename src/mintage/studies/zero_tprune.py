"""Does pruning by votes over the attention graph, without any training, lose little, and less than its rivals?

Top-1 accuracy on CIFAR-10's test images at equal multiply-adds, and what each part of the method contributes. The
convolution stem of the shipped classifier is among the multiply-adds and cannot be reduced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mintage.bench.reduce.measures import PLAIN, EqualMacs, at_shares, points
from mintage.errors import UserError
from mintage.measure import Figure, Result, bootstrap
from mintage.measure.trial import Report, silent
from mintage.reduce.baselines import ClassAttention, RandomDrop, ToMe
from mintage.reduce.contract import Reducer
from mintage.reduce.zero_tprune import ZeroTPrune
from mintage.vision import SHIPPED

__all__ = ["run"]

OURS = "zero-tprune"
SHARES = (0.8, 0.65, 0.5, 0.4)
CLAIMED = 0.65

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
        total=1 + 4 * len(SHARES) + len(VARIANTS) + 8,
    )
    reducers: dict[str, Reducer] = {
        OURS: ZeroTPrune(),
        "class-attention": ClassAttention(),
        "random-drop": RandomDrop(seed=seed),
        "tome": ToMe(),
    }
    arms, absent = at_shares(reducers, SHARES, trial.subject)
    if absent:
        trial.common["settings"] |= {"left out": absent}
    if OURS not in arms[CLAIMED]:
        raise UserError(f"{model}: {absent[f'{OURS} at {100 * CLAIMED:.0f}%']}")
    plain = trial.qualities({PLAIN: None})[PLAIN].correct
    assert plain is not None
    accuracy: dict[str, dict[float, float]] = {name: {1.0: 100 * float(plain.mean())} for name in reducers}
    rows: list[Result | Figure] = []
    for share in SHARES:
        held = trial.qualities(arms[share], on=f" at {share:g}")
        correct: dict[str, np.ndarray] = {n: q.correct for n, q in held.items() if q.correct is not None}
        for name, right in correct.items():
            accuracy[name][share] = 100 * float(right.mean())
        if OURS not in correct:
            continue
        scores = {name: 100 * float(right.mean()) for name, right in correct.items()}
        rows += _at(trial, share, plain, correct, scores)
        divergence = bootstrap(held[OURS].divergence)
        rows.append(
            trial.result(
                metric=f"distance to the unmodified model's output at -{100 - 100 * share:.0f}% MACs",
                value=divergence.value,
                interval=divergence.bounds,
                unit="nats",
                higher_is_better=False,
                n=len(plain),
                baseline={PLAIN: 0.0},
                peers={name: float(q.divergence.mean()) for name, q in held.items() if name != OURS},
            )
        )
    rows += _parts(trial, plain)
    rows += _speed(trial, arms[CLAIMED])
    rows.append(trial.curves("zero-tprune-accuracy", "Accuracy without any training", "top-1 accuracy, %", accuracy))
    trial.memo.delete()
    return rows


def _at(
    trial: EqualMacs, share: float, plain: np.ndarray, correct: Mapping[str, np.ndarray], scores: Mapping[str, float]
) -> list[Result | Figure]:
    """How much is lost at one share, and how much less than by rivals."""
    setting = f"at -{100 - 100 * share:.0f}% MACs"
    told: dict[str, Any] = {}
    lost = points(plain - correct[OURS])
    if share == CLAIMED:
        told = {
            "claim": f"{setting} and without training at most 1 point of top-1 is lost",
            "verdict": "holds" if lost.value <= 1 else "does not hold",
        }
    others = {name: score for name, score in scores.items() if name != OURS}
    whole = {PLAIN: 100 * float(plain.mean())}
    rows: list[Result | Figure] = [
        trial.result(
            metric=f"top-1 lost {setting}",
            value=lost.value,
            interval=lost.bounds,
            unit="points",
            higher_is_better=False,
            n=len(plain),
            baseline={PLAIN: 0.0},
            peers={name: whole[PLAIN] - score for name, score in others.items()},
            **told,
        )
    ]
    for other in others:
        claimed = share == CLAIMED and other != "tome"
        rows.append(
            trial.gap(
                f"top-1 minus that of {other} {setting}",
                correct[OURS],
                correct[other],
                claim=f"{setting} it is above {other}" if claimed else "",
                baseline=whole,
                peers=others,
                note=f"baseline and peers are accuracies; its own is {scores[OURS]:.2f}",
            )
        )
    return rows


def _parts(trial: EqualMacs, plain: np.ndarray) -> list[Result | Figure]:
    """The method minus each variant of it, at the claimed share."""
    whole = ZeroTPrune()
    arms: dict[str, Reducer] = {OURS: whole.at(CLAIMED, trial.subject.anatomy)}
    for name, fields in VARIANTS.items():
        arms[name] = replace(whole, **fields).at(CLAIMED, trial.subject.anatomy)
    held = trial.qualities(arms, on=f" at {CLAIMED:g}")
    correct = {name: q.correct for name, q in held.items() if q.correct is not None}
    ours = correct.pop(OURS)
    scores = {name: 100 * float(right.mean()) for name, right in correct.items()}
    return [
        trial.gap(
            f"top-1 minus that of the variant '{name}' at -{100 - 100 * CLAIMED:.0f}% MACs",
            ours,
            right,
            baseline={PLAIN: 100 * float(plain.mean())},
            peers=scores,
            note=f"baseline and peers are accuracies; its own is {100 * ours.mean():.2f}",
        )
        for name, right in correct.items()
    ]


def _speed(trial: EqualMacs, arms: Mapping[str, Reducer]) -> list[Result | Figure]:
    """Images per second, the votes counted."""
    speeds = trial.speeds(arms, f"at {CLAIMED:g}")
    ours = speeds[OURS]
    counted = {name: trial.subject.macs(reducer) / trial.subject.macs(None) for name, reducer in arms.items()}
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
            note="multiply-adds counted while running, votes and similarities included: "
            + ", ".join(f"{name} {share:.3f}" for name, share in counted.items()),
        )
    ]

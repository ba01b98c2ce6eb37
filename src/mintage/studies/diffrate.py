"""Is a schedule that was searched by gradient better than a uniform one that costs as much?

Schedules are searched on training images of CIFAR-10 for 60% of the multiply-adds, the model frozen, and judged on test
images: pruning and merging, pruning only, merging only. Every rival is set to what the searched schedule costs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mintage.bench.reduce.measures import PLAIN, EqualMacs
from mintage.measure import Figure, Result
from mintage.measure.trial import Report, silent
from mintage.reduce.baselines import ClassAttention, RandomDrop, ToMe
from mintage.reduce.contract import Reducer
from mintage.reduce.diffrate import DiffRate, RateSchedule
from mintage.reduce.training.diffrate import search_schedule
from mintage.reduce.training.images import Lessons, read_lessons
from mintage.vision import SHIPPED

__all__ = ["run"]

OURS = "diffrate"
SHARE = 0.6
STEPS, BATCH = 400, 64
SEARCHES = {OURS: {}, "prunes only": {"merges": False}, "merges only": {"prunes": False}}


def run(
    *,
    model: str = SHIPPED,
    limit: int | None = None,
    seed: int = 0,
    command: str = "",
    work: Path | None = None,
    progress: Report = silent,
    steps: int = STEPS,
) -> list[Result | Figure]:
    """Run the check; `limit` is the number of test images (default all), `steps` of each search."""
    trial = EqualMacs(
        OURS,
        model=model,
        limit=limit,
        seed=seed,
        command=command,
        progress=progress,
        work=work,
        definition={"share": SHARE, "steps": steps, "batch": BATCH},
        total=len(SEARCHES) + 1 + 7,
    )
    anatomy = trial.subject.anatomy
    lessons: list[Lessons] = []  # read when the first search needs them

    def searched(name: str) -> RateSchedule:
        def search() -> dict[str, Any]:
            if not lessons:
                lessons.append(read_lessons(trial.classifier))
            found = search_schedule(
                lessons[0],
                trial.work / "searches" / f"{name.replace(' ', '-')}-{steps}-{seed}",
                SHARE,
                steps=steps,
                batch_rows=BATCH,
                seed=seed,
                report=_reporter(trial, name),
                **SEARCHES[name],
            )
            return {"prune_kept": found.prune_kept, "merge_kept": found.merge_kept, "patches": found.patches}

        return RateSchedule.of(trial.measured(f"search {name}", search, f"search: {name}"))

    schedules = {name: searched(name) for name in SEARCHES}
    reached = schedules[OURS].share_of(anatomy)
    arms: dict[str, Reducer | None] = {PLAIN: None, OURS: DiffRate(schedule=schedules[OURS])}
    for name in SEARCHES:
        if name != OURS:
            arms[name] = DiffRate(schedule=schedules[name]).at(reached, anatomy)
    rivals = {"uniform": DiffRate(schedule="ratio=0.9"), "tome": ToMe(), "class-attention": ClassAttention()}
    arms |= {name: reducer.at(reached, anatomy) for name, reducer in rivals.items()}
    arms["random-drop"] = RandomDrop(seed=seed).at(reached, anatomy)
    held = trial.qualities(arms)
    correct = {name: q.correct for name, q in held.items() if q.correct is not None}
    rows = _rows(trial, schedules, reached, correct)
    rows.append(_numbers(trial, schedules))
    trial.memo.delete()
    return rows


def _rows(
    trial: EqualMacs, schedules: dict[str, RateSchedule], reached: float, correct: dict[str, np.ndarray]
) -> list[Result | Figure]:
    anatomy = trial.subject.anatomy
    kept = [left for _, left in schedules[OURS].patches_kept(anatomy.layers, anatomy.patches)]
    ratios = [after / before for before, after in zip((anatomy.patches, *kept), kept, strict=False)]
    scores = {name: 100 * float(right.mean()) for name, right in correct.items()}
    whole = {PLAIN: scores.pop(PLAIN)}
    peers = {name: score for name, score in scores.items() if name != OURS}
    setting = f"at {100 * reached:.1f}% of the MACs"
    note = f"baseline and peers are accuracies; its own is {scores[OURS]:.2f}"
    off = 100 * abs(reached - SHARE) / SHARE
    rows: list[Result | Figure] = [
        trial.result(
            metric="distance of the searched schedule's multiply-adds from the budget",
            value=off,
            unit="%",
            higher_is_better=False,
            baseline={"budget": 0.0},
            claim="the search ends less than 2% from its budget",
            verdict="holds" if off < 2 else "does not hold",
            note=f"aimed at {SHARE:g} of the multiply-adds, reached {reached:.4f}",
        ),
        trial.gap(
            f"top-1 minus that of a uniform schedule {setting}",
            correct[OURS],
            correct["uniform"],
            claim="a searched schedule is above a uniform one of the same multiply-adds",
            baseline=whole,
            peers=peers,
            note=note,
        ),
        trial.result(
            metric="greatest minus least share of the patches that a block keeps",
            value=max(ratios[1:]) - min(ratios[1:]),
            unit="",
            higher_is_better=True,
            baseline={"uniform": 0.0},
            claim="the searched schedule is not flat: blocks differ by more than 0.1 in the share they keep",
            verdict="holds" if max(ratios[1:]) - min(ratios[1:]) > 0.1 else "does not hold",
            note="patches kept: " + ", ".join(map(str, kept)) + "; the first block keeps all by definition",
        ),
    ]
    for other in ("tome", "random-drop", "class-attention", "prunes only", "merges only"):
        metric = f"top-1 minus that of {other} {setting}"
        rows.append(trial.gap(metric, correct[OURS], correct[other], baseline=whole, peers=peers, note=note))
    rows.append(trial.gap(f"top-1 minus the unmodified model's {setting}", correct[OURS], correct[PLAIN], note=note))
    return rows


def _numbers(trial: EqualMacs, schedules: dict[str, RateSchedule]) -> Figure:
    """The searched numbers by block."""
    anatomy = trial.subject.anatomy
    blocks = list(range(anatomy.layers))
    series = []
    for name, schedule in schedules.items():
        numbers = schedule.patches_kept(anatomy.layers, anatomy.patches)
        if name == OURS:
            series.append({"name": "left by pruning", "x": blocks, "y": [pruned for pruned, _ in numbers]})
            series.append({"name": "left by merging", "x": blocks, "y": [left for _, left in numbers]})
        else:
            series.append({"name": name, "x": blocks, "y": [left for _, left in numbers]})
    return trial.figure(
        name="diffrate-schedule",
        title=f"Patches that a search for {SHARE:g} of the multiply-adds keeps, by block",
        caption=f"{trial.common['model']}, {anatomy.patches} patches; the first block keeps all by definition.",
        kind="curve",
        data={"x_label": "block", "y_label": "patches", "series": series},
    )


def _reporter(trial: EqualMacs, name: str) -> Callable[[str, int, int], None]:
    def report(stage: str, done: int, of: int) -> None:
        trial.progress(trial.done, trial.total, f"search, {name}: step {done} of {of}")

    return report

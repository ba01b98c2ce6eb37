"""What the study of MrT5 measures: models that read rows and write others, trained on a task and judged row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mintage.bench.lm.trained import text_mark, trained_folder
from mintage.data import Corpus, texts
from mintage.lm.core.seq2seq_tasks import Seq2SeqTask, SpanTask, VowelTask, judge_rows
from mintage.lm.core.windows import Windows, byte_windows, hold_out
from mintage.lm.mrt5 import MrT5
from mintage.lm.training.byte_training import english
from mintage.lm.training.mrt5 import MrT5Training
from mintage.measure.statistics import Interval, bootstrap
from mintage.measure.study import Measure, Run
from mintage.measure.timing import timed

__all__ = ["Continued", "encoding", "gap_share", "per_byte", "rows_judged", "share_deleted"]

_ROWS = 16
LONG = 1024
"""Bytes of the rows whose encoding is timed."""


@lru_cache(maxsize=1)
def _windows(text: tuple[str, ...], size: int) -> Windows:
    """Return windows to learn from, and others: of the same text, or without one of WikiText's held-out part."""
    if text:
        return hold_out(byte_windows(Corpus(*text), size))
    return Windows(byte_windows(english(), size), byte_windows(texts("wikitext2", "held-out"), size))


def _lesson(training: MrT5Training) -> tuple[Seq2SeqTask, str]:
    task = training.lesson() if training.task == "vowels" else SpanTask(_windows(training.texts, training.window))
    return task, "letters" if isinstance(task, VowelTask) else text_mark(_windows(training.texts, training.window))


class Continued(NamedTuple):
    """A training from scratch, and one that goes on from what it made."""

    first: MrT5Training
    then: MrT5Training

    def model(self, run: Run, folder: Path) -> MrT5:
        """Load what was trained, or train it; a killed training goes on."""
        task, mark = _lesson(self.first)
        made, _ = trained_folder(self.first, mark, lambda work: self.first.fit(task, work), folder, run.progress)
        then = replace(self.then, model=str(made))
        task, mark = _lesson(then)
        made, _ = trained_folder(then, mark, lambda work: then.fit(task, work), folder, run.progress)
        return MrT5.from_pretrained(made).eval()


def rows_judged(name: str, arms: Sequence[str], seeds: int, rows: int, folder: Path) -> Measure:
    """Train every arm with every seed and judge it on the same held-out rows; columns are those of `judge_rows`.

    Parameters
    ----------
    name
        Of the measure.
    arms
        Names of arms that give what is trained with a seed, a `Continued`.
    seeds, rows
        How many.
    folder
        Where trained models are kept.
    """

    def judge(run: Run, arm: Any, seed: int) -> dict[str, Any]:
        trained: Continued = arm(run.seed + seed)
        model = trained.model(run, folder)
        torch.manual_seed(seed)  # for the random gate
        found = judge_rows(model, _lesson(trained.then)[0].held_out(rows, _ROWS))
        return dict(found._asdict())

    return Measure(name=name, units=lambda run: {seed: seed for seed in range(seeds)}, of=judge, arms=arms)


def encoding(arms: Sequence[str], rounds: int, folder: Path, *, batch: int = 4) -> Measure:
    """Encode rows of 1,024 bytes round by round; columns ``seconds``, ``gone`` (percent deleted) and ``length``."""

    def turns(run: Run) -> dict[int, Any]:
        loaded = {run.arms[arm]: _loaded(run, run.arms[arm], folder) for arm in arms}
        for model, rows in loaded.values():
            _encoded(model, rows[:batch])  # warms up
        return {turn: (turn, loaded) for turn in range(rounds)}

    def time(run: Run, arm: Any, unit: Any) -> dict[str, float]:
        turn, loaded = unit
        model, rows = loaded[arm]
        torch.manual_seed(turn)  # for the random gate
        return _encoded(model, rows[(torch.arange(batch) + turn * batch) % len(rows)])

    return Measure(name=f"encoding {LONG:,} bytes", units=turns, of=time, arms=arms)


def _loaded(run: Run, arm: Callable[[int], Continued], folder: Path) -> tuple[MrT5, Tensor]:
    trained = arm(run.seed)
    data = _windows(trained.then.texts, trained.then.window).held_out.ravel()
    data = np.resize(data, max(len(data), LONG))
    rows = data[: len(data) // LONG * LONG].reshape(-1, LONG).astype(np.int64)
    return trained.model(run, folder), torch.from_numpy(rows) + 3


@torch.no_grad()
def _encoded(model: MrT5, ids: Tensor) -> dict[str, float]:
    states, seconds = timed(lambda: model.encoder(ids))
    gone = 0.0 if states.gate is None else 100 * float((states.gate <= model.config.threshold).float().mean())
    return {"seconds": seconds, "gone": gone, "length": float(states.last_hidden_state.shape[1])}


# -- numbers -----------------------------------------------------------------------------------------------------------


def _over_rows(columns: Sequence[np.ndarray], ratio: Callable[..., Any]) -> Interval:
    """Bootstrap a ratio of sums over rows."""
    stacked = np.stack(columns)

    def of(chosen: np.ndarray, axis: int) -> Any:
        return ratio(*stacked[:, chosen.astype(int)].sum(axis))

    return bootstrap(np.arange(stacked.shape[1], dtype=float), of)


def per_byte(run: Run, arm: str) -> Interval:
    """Bits per byte that is written."""
    return _over_rows([run.column(arm, "bits"), run.column(arm, "size")], lambda bits, size: bits / size)


def share_deleted(run: Run, arm: str) -> Interval:
    """Percent of the bytes read that are deleted."""
    return _over_rows([run.column(arm, "deleted"), run.column(arm, "read")], lambda gone, read: 100 * gone / read)


def gap_share(run: Run, ours: str, rival: str, whole: str) -> Interval:
    """Bits that `ours` loses to `whole` over those that `rival` loses, on the same rows."""
    columns = [run.column(arm, "bits") for arm in (ours, rival, whole)]
    return _over_rows(columns, lambda mine, theirs, full: (mine - full) / np.maximum(theirs - full, 1e-9))

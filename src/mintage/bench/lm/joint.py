"""The joint comparison of lm: models trained on the same windows of the same text, at equal operations per byte.

Not here: what they are judged by (`mintage.bench.lm.measures`), and the papers' claims (`mintage.studies`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from mintage import catalog
from mintage.bench.contract import Asked, Bench
from mintage.bench.lm.figures import figures
from mintage.bench.lm.measures import (
    CONTEXT,
    HeldOut,
    bits_after_noise,
    sample_prompts,
    training_speed,
    window_bits,
    word_counts,
    writing_speed,
)
from mintage.bench.lm.noise import NOISES
from mintage.bench.lm.trained import trained_model
from mintage.bench.run import sources_of
from mintage.data import Corpus
from mintage.errors import UserError
from mintage.lm.contract import ByteLanguageModel
from mintage.lm.core.windows import Windows, byte_windows, hold_out
from mintage.lm.training.byte_training import ByteTraining, english
from mintage.measure import Figure, Result
from mintage.measure.environment import environment
from mintage.measure.memo import Memo
from mintage.measure.statistics import bootstrap, bootstrap_ratio
from mintage.measure.study import POINTS, Comparison, Finding, Statistic, mean
from mintage.measure.timing import interleaved
from mintage.options import option, settings_of

__all__ = ["BYTES", "LanguageModelBench"]

BYTES = "byte-transformer"
"""What the others stand beside."""

_BITS = mean("bits", more_is_better=False)
_SPEED = mean("bytes/s")
_METRICS = {
    "bits": ("bits per byte", _BITS),
    "word": ("words right", POINTS),
    "word, new": ("words right, not seen in training", POINTS),
    "word, rare": ("words right, seen up to ten times", POINTS),
    "word, common": ("words right, seen more than ten times", POINTS),
    "training": ("training, bytes per second", _SPEED),
    "writing": ("writing, bytes per second", _SPEED),
}
"""Columns, what they are, and how they become numbers."""

_OVER_CLEAN = Statistic("x", False, lambda a, b: bootstrap(a[0] - b[0]), lambda a: bootstrap_ratio(a[0], a[1]))
"""Of two columns: the total of the first over that of the second."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelBench(Bench):
    """Train language models on the same text and compare bits per byte, whole words, robustness and speed.

    Nothing named: every model that has a training of the common kind, at sizes that cost about as many operations per
    byte. Trained models are kept in a folder and taken from there when they are needed again.

    [dim]Examples[/dim]

      mintage bench lm --steps 50 --measured 16

      mintage bench lm hat bpe-transformer:vocabulary=2048 --text notes/

    Next: [bold]mintage report[/bold]
    """

    job: ClassVar[str] = "lm"
    shorter = "--steps 200"

    text: tuple[str, ...] = option((), "A text file or folder to learn from; repeat. None: English.", repeat=True)
    steps: int = option(800, "Steps of every training.", least=1)
    window: int = option(512, "Bytes of a window.", least=2 * CONTEXT)
    measured: int = option(128, "Held-out windows that are measured on, at most.", least=2)
    rounds: int = option(5, "Timed rounds.", least=2)
    written: int = option(64, "Bytes written in a timed round.", least=1)
    models: Path = option(Path(".mintage/lm"), "Folder of trained models; what is missing is trained.")

    def _measure(self, specs: list[str], asked: Asked) -> list[Result | Figure]:
        """Train, then measure all arms window by window, in turn where time counts."""
        trainings = {spec: self.training(spec) for spec in dict.fromkeys([BYTES, *(specs or usual())])}
        windows = hold_out(byte_windows(Corpus(*self.text) if self.text else english(), self.window))
        models = {
            spec: trained_model(training, windows, self.models, asked.progress).model
            for spec, training in trainings.items()
        }
        sources = [file for model in models.values() for file in sources_of(type(model))]
        memo = Memo(asked.work, {**settings_of(self), "arms": list(models)}, sources)
        held = HeldOut.of(windows.held_out[: self.measured], word_counts(windows.train))
        columns = self._columns(models, windows, held, memo, asked)
        common = {
            "job": self.job,
            "model": f"{self.steps} steps of {trainings[BYTES].rows} windows",
            "data": f"{len(held.windows)} held-out windows of {self.window} bytes, {len(held.words)} words",
            "seed": self.seed,
            "command": asked.command,
            "environment": environment(),
        }
        ids = torch.from_numpy(windows.held_out[:8].astype(np.int64))
        flops = {spec: model.flops(ids) for spec, model in models.items()}
        measured = _Measured(columns, common)
        made = [*_rows(measured, flops), *figures(models, measured.columns, held, flops, common["environment"])]
        memo.delete()
        return made

    def training(self, spec: str) -> ByteTraining:
        """Make the training of an arm; what the spec says goes before the bench's own settings."""
        name, settings = catalog.parse_spec(spec)
        row = catalog.find(name, self.job)
        kind = common_training(row)
        given = {"steps": self.steps, "window": self.window, "seed": self.seed, "texts": self.text}
        return catalog.made(kind, name, settings, **given)

    def _columns(
        self,
        models: Mapping[str, ByteLanguageModel],
        windows: Windows,
        held: HeldOut,
        memo: Memo,
        asked: Asked,
    ) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for done, (spec, model) in enumerate(models.items()):
            asked.progress("reading", done, len(models))
            read = memo(f"read | {spec}", lambda m=model: _plain(window_bits(m, held)))
            noisy = memo(f"noise | {spec}", lambda m=model: _plain(bits_after_noise(m, held.windows, self.seed)))
            found[spec] = {name: np.array(column) for name, column in {**read, **noisy}.items()}
        asked.progress("reading", len(models), len(models))
        prompts = sample_prompts(held.windows, self.rounds)
        speeds: dict[str, dict[str, list[float]]] = {spec: {"training": [], "writing": []} for spec in models}
        total = self.rounds * len(models)
        for done, (number, spec) in enumerate(interleaved(range(self.rounds), models)):
            asked.progress("timing", done, total)
            batch = windows.batch(number, 8, self.seed)
            if not number:  # what is made once is not on the clock
                training_speed(models[spec], batch)
            speeds[spec]["training"].append(training_speed(models[spec], batch))
            prompt = prompts[number % len(prompts)]
            speeds[spec]["writing"].append(writing_speed(models[spec], prompt, self.written, self.seed + number))
        asked.progress("timing", total, total)
        for spec, columns in speeds.items():
            found[spec] |= {name: np.array(column) for name, column in columns.items()}
        return found


def _plain(columns: Mapping[str, Any]) -> dict[str, list[float]]:
    return {name: np.asarray(column, float).tolist() for name, column in columns.items()}


def common_training(row: catalog.Method) -> type:
    """Return the training of a row that is of the common kind.

    Raises
    ------
    UserError
        It has none.
    """
    for part in row.trainings:
        kind = row.load_training(part.name)
        if issubclass(kind, ByteTraining):
            return kind
    own = f"; its own check is: mintage bench {row.name}" if row.study else ""
    raise UserError(f"{row.name} is not trained on windows of text{own}")


def usual() -> list[str]:
    """Return the names of all that can be compared."""
    found = []
    for row in catalog.methods("lm"):
        if (
            row.status == "ready"
            and row.installed
            and any(issubclass(row.load_training(part.name), ByteTraining) for part in row.trainings)
        ):
            found.append(row.name)
    return found


class _Measured(NamedTuple):
    """What rows are made from."""

    columns: Mapping[str, Mapping[str, Any]]
    common: Mapping[str, Any]

    def column(self, arm: str, of: str | tuple[str, ...]) -> Any:
        """Return a column of an arm, or several stacked."""
        return self.columns[arm][of] if isinstance(of, str) else np.stack([self.columns[arm][name] for name in of])


def _rows(measured: _Measured, flops: Mapping[str, float]) -> Iterator[Result]:
    """Yield every metric of every arm beside the byte transformer's."""
    for spec, mine in measured.columns.items():
        method, settings = catalog.parse_spec(spec)
        said: dict[str, Any] = {"method": method, "settings": {"run": "joint", **settings}}
        if spec != BYTES:
            said["note"] = f"{flops[spec] / flops[BYTES]:.2f} times the operations per byte of {BYTES}"
        beside: list[str] = [] if spec == BYTES else [BYTES]
        told: list[Comparison | Finding] = [
            Comparison(metric=metric, ours=spec, of=of, by=by, baseline=beside, **said)
            for of, (metric, by) in _METRICS.items()
            if of in mine
        ]
        told += [
            Comparison(
                metric=f"bits behind a context with {noise}, over those behind it as it was",
                ours=spec,
                of=(f"bits, {noise}", "bits, clean"),
                by=_OVER_CLEAN,
                baseline=beside,
                **said,
            )
            for noise in NOISES
            if noise != "clean"
        ]
        told.append(
            Finding(
                metric="operations per byte, forward",
                value=flops[spec],
                unit="FLOP",
                more_is_better=False,
                baseline={name: flops[name] for name in beside},
                **said,
            )
        )
        yield from (row.result(measured) for row in told)

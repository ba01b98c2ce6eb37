"""MAGNET: do scripts get equally many segments for what they say, at no cost in bits?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mintage.bench.lm.trained import trained_model
from mintage.data import texts
from mintage.lm.contract import as_rows
from mintage.lm.core.windows import Windows, byte_windows, hold_out
from mintage.lm.training.baselines import ByteTransformerTraining
from mintage.lm.training.byte_training import ByteTraining
from mintage.lm.training.magnet import MagnetTraining
from mintage.lm.training.segment_baselines import DynamicPoolingTraining
from mintage.measure.statistics import Interval, bootstrap_ratio
from mintage.measure.study import Finding, Measure, Run, Study, above, at_least, at_most, up_to
from mintage.options import option

__all__ = ["MagnetStudy"]

LANGUAGES = {"es": "spa", "ru": "rus", "hi": "hin"}
"""Of three scripts: the parallel paragraphs' names to those of the sentences that are learnt from."""

OURS, POOLED, BYTES = "MAGNET", "dynamic pooling", "byte transformer"


@dataclass(frozen=True, kw_only=True)
class MagnetStudy(Study):
    """Do scripts get equally many segments for what they say, at no cost in bits?

    MAGNET, dynamic token pooling (one predictor, one segment in five bytes) and a transformer over bytes learn from
    as many bytes of Spanish, Russian and Hindi sentences, and read the same paragraphs in all three.

    Example: mintage bench magnet --seeds 1 --steps 200
    """

    method: ClassVar[str] = "magnet"
    job: ClassVar[str] = "lm"

    seeds: int = option(3, "Models of every kind.", least=1)
    steps: int = option(2000, "Steps of every training.", least=1)
    window: int = option(512, "Bytes of a window.", least=32)
    width: int = option(128, "Of all models.", least=2)
    measured: int = option(60, "Parallel paragraphs.", least=2)
    rounds: int = option(7, "Timed rounds.", least=2)
    bf16: bool = option(False, "Train in bfloat16.")
    models: Path = option(Path(".mintage/lm"), "Folder of trained models; what is missing is trained.")

    def subject(self, run: Run) -> tuple[Windows, dict[str, list[bytes]]]:
        """Read as much of every language to learn from, and parallel paragraphs, cut at the window."""
        learnt = [byte_windows(texts("tatoeba", "train", domain=name), self.window) for name in LANGUAGES.values()]
        least = min(map(len, learnt))
        held = {
            name: [str(text).encode() for text in texts("xquad", "held-out", domain=name)][: self.measured]
            for name in LANGUAGES
        }
        return hold_out(np.stack([part[:least] for part in learnt], 1).reshape(-1, self.window)), held

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what is trained, and what is read."""
        size = run.subject[0].train.size // len(LANGUAGES)
        return {
            "model": f"width {self.width}, 8 blocks, {self.steps} steps of 8 windows, {self.seeds} seeds",
            "data": f"{self.measured} paragraphs of XQuAD in es, ru, hi; {size:,} bytes of each learnt",
        }

    def arms(self, run: Run) -> Mapping[str, ByteTraining]:
        """Return the trainings; all have eight blocks."""
        own: dict[str, Any] = {"steps": self.steps, "window": self.window, "bf16": self.bf16, "width": self.width}
        return {
            OURS: MagnetTraining(**own),
            POOLED: DynamicPoolingTraining(**own, prior=0.2),
            BYTES: ByteTransformerTraining(**own, layers=8),
        }

    def measures(self, run: Run) -> Iterator[Measure]:
        """Read paragraphs, then time."""
        seeds = {f"seed {seed}": seed for seed in range(self.seed, self.seed + self.seeds)}
        yield Measure(name="reading", units=lambda run: seeds, of=self._read)
        yield Measure(name="speed", units=lambda run: {f"round {n}": n for n in range(self.rounds)}, of=self._seconds)

    def _model(self, run: Run, training: ByteTraining, seed: int) -> Any:
        return trained_model(replace(training, seed=seed), run.subject[0], self.models, run.progress).model

    def _read(self, run: Run, training: ByteTraining, seed: int) -> dict[str, Any]:
        """Segments, bits and bytes of every paragraph by language."""
        model, found = self._model(run, training, seed), {}
        for name, paragraphs in run.subject[1].items():
            found[f"segments {name}"] = [len(model.cuts(text)) for text in paragraphs]
            found[f"bits {name}"] = [model.score(text) for text in paragraphs]
        return found

    @torch.no_grad()
    def _seconds(self, run: Run, training: ByteTraining, number: int) -> dict[str, float]:
        """Read eight windows of one language, as the paper's batches are."""
        model = self._model(run, training, self.seed)
        rows = as_rows([row.tobytes() for row in run.subject[0].train[number % 3 :: 3][:8]])
        model(*rows)  # nothing is made on the clock
        began = time.perf_counter()
        model(*rows)
        return {"seconds": time.perf_counter() - began}

    def rows(self, run: Run) -> Iterator[Finding]:
        """Segments by language, bits, time."""
        n = self.seeds * self.measured
        for arm, claim, rule in (
            (OURS, "parallel text has nearly as many segments in every language", at_most(1.25)),
            (POOLED, "with one rate for all, segments of parallel text differ", at_least(1.7)),
        ):
            yield Finding(
                metric=f"most segments of a language over fewest, parallel paragraphs, {arm}", unit="x", n=n,
                value=lambda run, arm=arm: _spread(run, arm), more_is_better=False, claim=claim, holds=rule,
                peers={other: _spread(run, other).value for other in (OURS, POOLED, BYTES) if other != arm},
            )  # fmt: skip
        for name in LANGUAGES:
            yield Finding(
                metric=f"bits per byte over those of dynamic pooling, {name}", unit="x", n=n, more_is_better=False,
                value=lambda run, of=f"bits {name}": bootstrap_ratio(run.column(OURS, of), run.column(POOLED, of)),
                claim=f"bits are within 3% of dynamic pooling's, {name}", holds=up_to(1.03),
            )  # fmt: skip
        for arm in (OURS, POOLED):
            yield Finding(
                metric=f"seconds of the byte transformer over those of {arm}, reading", unit="x", n=self.rounds,
                value=lambda run, arm=arm: bootstrap_ratio(run.column(BYTES, "seconds"), run.column(arm, "seconds")),
                claim=f"{arm} reads faster than a transformer over bytes", holds=above(1),
            )  # fmt: skip


def _spread(run: Run, arm: str) -> Interval:
    counts = {name: run.column(arm, f"segments {name}") for name in LANGUAGES}
    ordered = sorted(counts.values(), key=lambda column: float(column.mean()))
    return bootstrap_ratio(ordered[-1], ordered[0])

"""What studies of byte language models share: models trained alike over several seeds, read on the same windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mintage.bench.lm.measures import (
    HeldOut,
    bits_after_noise,
    sample_prompts,
    training_speed,
    window_bits,
    word_counts,
    writing_speed,
)
from mintage.bench.lm.trained import TrainedModel, trained_model
from mintage.data import texts
from mintage.lm.core.windows import Windows, byte_windows, hold_out
from mintage.lm.training.byte_training import ByteTraining, english
from mintage.measure.statistics import Interval, bootstrap_ratio
from mintage.measure.study import POINTS, Column, Comparison, Finding, Measure, Run, Statistic, Study, from_on, mean
from mintage.options import option

__all__ = ["BITS", "BITS_RATIO", "NOISE_RATIO", "SHARE_RATIO", "SPEED_RATIO", "ByteStudy", "EnglishText"]

BITS = mean("bits", more_is_better=False)
"""Of bits per byte by window."""

BITS_RATIO = Statistic("x", False, bootstrap_ratio, BITS.of_one)
"""Bits of one arm over those of another, by window."""

SPEED_RATIO = Statistic("x", True, bootstrap_ratio, mean("bytes/s").of_one)
"""Bytes per second of one arm over those of another, by round."""


def _growth(columns: Column) -> Any:
    return columns[..., 0, :].mean(-1) / columns[..., 1, :].mean(-1) - 1


def _noise_ratio(ours: Column, rival: Column) -> Interval:
    """Growth of one arm's bits over that of another's; of bits with noise and without."""
    draw = np.random.default_rng(0).integers(0, ours.shape[1], (2000, ours.shape[1]))
    found = [_growth(ours[:, some]) / max(_growth(rival[:, some]), 1e-9) for some in draw]
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(low), float(_growth(ours) / max(_growth(rival), 1e-9)), float(high))


def _share_ratio(ours: Column, rival: Column) -> Interval:
    """Ratio of two shares of the same units; where the rival has none, one unit is counted for it."""
    draw = np.random.default_rng(0).integers(0, len(ours), (2000, len(ours)))
    low, high = np.quantile(ours[draw].sum(1) / np.maximum(rival[draw].sum(1), 1), [0.025, 0.975])
    return Interval(float(low), float(ours.sum() / max(rival.sum(), 1)), float(high))


SHARE_RATIO = Statistic("x", True, _share_ratio, POINTS.of_one)
"""Share of units right of one arm over that of another; of columns of 0 and 1."""

NOISE_RATIO = Statistic("x", False, _noise_ratio, lambda own: Interval(*[float(_growth(own))] * 3))
"""How much more bits cost behind a spoilt context, one arm's growth over another's; of (spoilt, clean) columns."""


class EnglishText:
    """Windows to learn from, and windows of other texts to judge by.

    Parameters
    ----------
    size
        Bytes of a window.
    measured
        Windows that are judged by, at most.
    """

    def __init__(self, size: int, measured: int) -> None:
        self.windows = hold_out(byte_windows(english(), size))
        held = byte_windows((text for text in texts("wikitext2", "held-out")), size)
        step = max(len(held) // measured, 1)
        self.held = HeldOut.of(held[::step][:measured], word_counts(self.windows.train))

    @cached_property
    def german(self) -> Windows:
        """Windows of a second language: to learn from, and of other texts to judge by."""
        size = self.windows.train.shape[1]
        learnt = [*texts("genesis", "train", domain="de"), *texts("tatoeba", "train", domain="deu")]
        held = byte_windows(texts("xquad", "held-out", domain="de"), size)
        return Windows(byte_windows(learnt, size), held[: len(self.held.windows)])


@dataclass(frozen=True, kw_only=True)
class ByteStudy(Study):
    """Options of studies that train byte language models."""

    job: ClassVar[str] = "lm"

    seeds: int = option(3, "Models of every kind.", least=1)
    steps: int = option(800, "Steps of every training.", least=1)
    window: int = option(512, "Bytes of a window.", least=128)
    measured: int = option(128, "Held-out windows that are measured on, at most.", least=2)
    rounds: int = option(7, "Timed rounds.", least=2)
    written: int = option(96, "Bytes written in a timed round.", least=1)
    bf16: bool = option(False, "Train in bfloat16.")
    models: Path = option(Path(".mintage/lm"), "Folder of trained models; what is missing is trained.")

    def subject(self, run: Run) -> EnglishText:
        """Read the texts."""
        return EnglishText(self.window, self.measured)

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what is trained, and what is read."""
        held = run.subject.held
        return {
            "model": f"{self.steps} steps of 8 windows, {self.seeds} seeds",
            "data": f"wikitext2, held out: {len(held.windows)} windows of {self.window} bytes, {len(held.words)} words",
        }

    def training(self, kind: type[ByteTraining], seed: int, **sizes: Any) -> ByteTraining:
        """Make a training at this study's scale."""
        return kind(seed=seed, steps=self.steps, window=self.window, bf16=self.bf16, **sizes)

    def model(self, run: Run, training: ByteTraining, seed: int) -> TrainedModel:
        """Train an arm with a seed, or take it from the folder."""
        return trained_model(replace(training, seed=seed), run.subject.windows, self.models, run.progress)

    def _seeds(self, run: Run) -> Mapping[str, int]:
        return {f"seed {seed}": seed for seed in range(self.seed, self.seed + self.seeds)}

    def reading(self, arms: Sequence[str] | None = None) -> Measure:
        """Measure bits and words by window, and what a spoilt context costs."""

        def of(run: Run, training: ByteTraining, seed: int) -> dict[str, Any]:
            made, held = self.model(run, training, seed).model, run.subject.held
            return {**window_bits(made, held), **bits_after_noise(made, held.windows, self.seed)}

        return Measure(name="reading", units=self._seeds, of=of, arms=arms)

    def speed(self, arms: Sequence[str] | None = None) -> Measure:
        """Measure bytes per second of training and of writing, in turn."""
        held: dict[str, Any] = {}

        def of(run: Run, training: ByteTraining, number: int) -> dict[str, Any]:
            if training.name not in held:
                held[training.name] = self.model(run, training, self.seed).model
                training_speed(held[training.name], run.subject.windows.batch(0, 8, 0))  # nothing is made on the clock
            made = held[training.name]
            prompts = sample_prompts(run.subject.held.windows, self.rounds)
            return {
                "training": training_speed(made, run.subject.windows.batch(number, 8, self.seed)),
                "writing": writing_speed(made, prompts[number % len(prompts)], self.written, self.seed + number),
            }

        return Measure(name="speed", units=lambda run: {f"round {n}": n for n in range(self.rounds)}, of=of, arms=arms)

    def speed_rows(self, run: Run, ours: str, rival: str, peers: Sequence[str]) -> Iterator[Comparison | Finding]:
        """Yield the speed claims of models of words against a model of bytes, and operations per byte."""
        for of, told, bound in (("writing", "writes", 2.0), ("training", "is trained on", 1.5)):
            yield Comparison(
                metric=f"bytes per second of {of}, over those of the model of bytes",
                ours=ours,
                rival=rival,
                of=of,
                by=SPEED_RATIO,
                baseline=[rival],
                peers=[peer for peer in peers if peer != rival],
                claim=f"{ours} {told} at least {bound:g} times as many bytes per second as a model of bytes",
                holds=from_on(bound),
            )
        flops = self.operations(run)
        yield Finding(
            metric="operations per byte, forward",
            value=flops[ours],
            unit="FLOP",
            more_is_better=False,
            baseline={rival: flops[rival]},
            peers={peer: flops[peer] for peer in peers if peer != rival},
        )

    def operations(self, run: Run) -> dict[str, float]:
        """Return operations per byte of every arm."""
        ids = torch.from_numpy(run.subject.windows.held_out[:8].astype(np.int64))
        return {name: self.model(run, arm, self.seed).model.flops(ids) for name, arm in run.arms.items()}

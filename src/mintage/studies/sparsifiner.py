"""Does a predicted mask read the attention that matters, what does it cost in accuracy, and does it save time?

Masks of equal density on the shipped small transformer: predicted, the largest entries of the true attention (oracle),
the nearest patches (window), and chance. Kept mass is the share of the true attention that a mask reads, over patch
queries; accuracy is measured with attention confined to the masks. Kernels are timed on random tensors of growing
length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mintage.bench.reduce.quality import Subject, spread
from mintage.errors import UserError
from mintage.measure import Figure, Interval, Result, bootstrap, bootstrap_ratio
from mintage.measure.timing import paired_time
from mintage.measure.trial import Report, Trial, silent
from mintage.reduce.baselines import ToMe
from mintage.reduce.contract import Evidence, Reducer
from mintage.reduce.sparsifiner import (
    Connectivity,
    ConnectivityPredictor,
    Sparsifiner,
    connectivity_mask,
    gather_attention,
    masked_attention,
)
from mintage.reduce.training.images import numbered, test_images
from mintage.reduce.training.sparsifiner import Watch
from mintage.vision import SHIPPED, load_image_classifier

__all__ = ["run"]

DENSITIES = (0.25, 0.10)
LENGTHS = (65, 197, 577, 1025, 2305, 4097, 8193)
LONGEST = 4097
"""Of what makes a square matrix: masks, and predictors, whose work grows with the cube."""

READ = 32
"""Keys per query where the number is fixed while the length grows."""

MASS_IMAGES = 500
ROUNDS = 5
OURS, ORACLE, WINDOW, RANDOM = "sparsifiner", "oracle", "window", "random"


# -- rival masks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _Oracle(Sparsifiner):
    """Reads where the true attention is largest."""

    def guess(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads patches tokens"]:
        assert self.connectivity is not None
        return evidence.attention()[:, :, self.connectivity.sizes["prefix"] :]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Window(Sparsifiner):
    """Reads the prefix and the nearest patches."""

    def guess(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads patches tokens"]:
        assert self.connectivity is not None
        prefix, patches = self.connectivity.sizes["prefix"], self.connectivity.sizes["patches"]
        side = math.isqrt(patches)
        place = torch.arange(patches, device=evidence.key.device)
        point = torch.stack([place // side, place % side], 1).float()
        near = functional.pad(-torch.cdist(point, point), (prefix, 0), value=1.0)
        return near.expand(*evidence.key.shape[:2], -1, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Random(Sparsifiner):
    """Reads anything."""

    def guess(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads patches tokens"]:
        assert self.connectivity is not None
        batch, heads, tokens, _ = evidence.key.shape
        generator = torch.Generator().manual_seed(layer)
        guess = torch.rand(batch, heads, tokens - self.connectivity.sizes["prefix"], tokens, generator=generator)
        return guess.to(evidence.key.device)


_MASKS: dict[str, type[Sparsifiner]] = {OURS: Sparsifiner, ORACLE: _Oracle, WINDOW: _Window, RANDOM: _Random}


def _arms(held: Connectivity, density: float) -> dict[str, Sparsifiner]:
    """Masks on the transformer as it was before it was tuned."""
    return {name: kind(keep_rate=density, weights=held, fine_tuned=False) for name, kind in _MASKS.items()}


def run(
    *,
    model: str = SHIPPED,
    weights: str | Connectivity = SHIPPED,
    limit: int | None = None,
    seed: int = 0,
    command: str = "",
    work: Path | None = None,
    progress: Report = silent,
) -> list[Result | Figure]:
    """Run the check.

    Parameters
    ----------
    model
        What the predictors belong to.
    weights
        Trained predictors, see `Sparsifiner`.
    limit
        Test images (default all).
    seed, command, work, progress
        As in the other checks.
    """
    classifier = load_image_classifier(model)
    images = numbered(test_images(), classifier)
    images = images.take(spread(limit or len(images), len(images)))
    held = weights if isinstance(weights, Connectivity) else Connectivity.load(weights)
    subject = Subject(classifier.model, classifier.preprocess(images.pixels), images.labels)
    if math.isqrt(subject.anatomy.patches) ** 2 != subject.anatomy.patches:
        raise UserError(f"{subject.anatomy.patches} patches are no square grid, which the window needs")
    settings = {"densities": list(DENSITIES), "made by": held.notes.get("command", "")}
    trial = Trial(
        "sparsifiner",
        job="reduce",
        model=model,
        seed=seed,
        command=command,
        definition={"limit": limit, **settings},
        total=len(DENSITIES) * 7 + 2 * len(LENGTHS),
        progress=progress,
        work=work,
    )
    trial.common |= {"data": "CIFAR-10, test images", "settings": settings}
    rows: list[Result | Figure] = []
    for density in DENSITIES:
        rows += _of_mass(trial, subject, held, density)
        rows += _of_accuracy(trial, subject, held, density)
    rows += _of_seconds(trial, held)
    trial.memo.delete()
    return rows


# -- mass ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def kept_mass(subject: Subject, arms: dict[str, Sparsifiner], images: int) -> dict[str, list[float]]:
    """Share of the true attention of patch queries that each arm's masks read, by image; mean over heads and layers."""
    fitted = {name: arm.fitted(subject.model, subject.anatomy) for name, arm in arms.items()}
    sums: dict[str, Tensor] = {}

    def see(evidence: Evidence, layer: int) -> None:
        prefix = subject.anatomy.prefix
        attention = evidence.attention()[:, :, prefix:]
        for name, arm in fitted.items():
            assert isinstance(arm, Sparsifiner)
            mask = connectivity_mask(arm.guess(evidence, layer), arm.keep_rate)[:, :, prefix:]
            mass = (attention * mask).sum(-1).mean((1, 2)) / subject.anatomy.layers
            sums[name] = sums[name] + mass if name in sums else mass

    found: dict[str, list[float]] = {name: [] for name in arms}
    with Watch(see=see)(subject.model):
        for pixels in subject.pixels[:images].split(subject.batch):
            sums.clear()
            subject.outputs(pixels)
            for name, values in sums.items():
                found[name] += values.tolist()
    return found


def _of_mass(trial: Trial, subject: Subject, held: Connectivity, density: float) -> list[Result | Figure]:
    number = min(MASS_IMAGES, len(subject))
    arms = _arms(held, density)
    found = trial.measured(f"mass {density}", lambda: kept_mass(subject, arms, number), "kept attention")
    mass = {name: np.array(values) for name, values in found.items()}
    mean = {name: 100 * float(values.mean()) for name, values in mass.items()}
    ours = bootstrap(100 * mass[OURS])
    closed = bootstrap_ratio(mass[OURS] - mass[RANDOM], mass[ORACLE] - mass[RANDOM])
    ordered = mean[ORACLE] >= mean[OURS] > mean[WINDOW] > mean[RANDOM]
    percent = f"{100 * density:g}% of the keys"
    common: dict[str, Any] = {"n": number, "higher_is_better": True, "unit": "%"}
    peers = {name: value for name, value in mean.items() if name != OURS}
    return [
        trial.result(
            metric=f"attention kept by predicted masks, {percent}",
            value=ours.value,
            interval=ours.bounds,
            baseline={"dense": 100.0},
            peers=peers,
            claim=f"with {percent} read: the oracle keeps most, then predicted masks, a window, and chance",
            verdict="holds" if ordered else "does not hold",
            note="oracle is the most that any mask of this density keeps",
            **common,
        ),
        trial.result(
            metric=f"share of the gap from random masks to the oracle that predicted ones close, {percent}",
            value=100 * closed.value,
            interval=(100 * closed.low, 100 * closed.high),
            baseline={RANDOM: 0.0},
            peers={WINDOW: 100 * (mean[WINDOW] - mean[RANDOM]) / (mean[ORACLE] - mean[RANDOM]), ORACLE: 100.0},
            claim=f"with {percent} read, at least half of the gap in kept attention is closed",
            verdict="holds" if closed.low >= 0.5 else "does not hold",
            **common,
        ),
    ]


# -- accuracy ------------------------------------------------------------------------------------------------------


def _of_accuracy(trial: Trial, subject: Subject, held: Connectivity, density: float) -> list[Result | Figure]:
    plain = subject.judged(subject.reference).correct
    assert plain is not None
    tuned = Sparsifiner(keep_rate=density, weights=held)
    dense, sparse = tuned.mhsa_macs(subject.anatomy)
    share = 1 - (dense - sparse) / subject.anatomy.full
    arms: dict[str, Reducer] = {"tuned": tuned, **_arms(held, density)}
    if share < 1:
        with suppress(UserError):  # so many multiply-adds cannot be met
            arms["tome"] = ToMe().at(share, subject.anatomy)

    def measure(arm: Reducer) -> list[float]:
        found = subject.quality(arm).correct
        assert found is not None
        return found.tolist()

    correct = {
        name: np.array(trial.measured(f"top-1 {name} {density}", partial(measure, arm), f"top-1: {name}"))
        for name, arm in arms.items()
    }
    lost = _lost(plain, correct["tuned"])
    percent = f"{100 * density:g}% of the keys"
    told: dict[str, Any] = {}
    if density == DENSITIES[0]:
        told = {
            "claim": f"with {percent} read and the transformer tuned, at most 0.5 points of top-1 are lost",
            "verdict": "holds" if lost.value <= 0.5 else "does not hold",
        }
    return [
        trial.result(
            metric=f"top-1 lost with predicted masks, tuned, {percent}",
            value=lost.value,
            interval=lost.bounds,
            unit="points",
            higher_is_better=False,
            n=len(plain),
            baseline={"unmodified": 0.0},
            peers={
                f"{name}, not tuned" if name in _MASKS else name: _lost(plain, values).value
                for name, values in correct.items()
                if name != "tuned"
            },
            note=f"the unmodified model has {100 * plain.mean():.2f}; tuned for {_tuned_for(held)}; "
            "ToMe at as many multiply-adds, counted as the paper does",
            **told,
        ),
        trial.result(
            metric=f"multiply-adds of attention blocks, counted as the paper does, {percent}",
            value=sparse / dense,
            unit="x",
            higher_is_better=False,
            n=1,
            baseline={"dense": 1.0},
            peers={"of the whole model": share},
            note="predictor included; no backend runs so few",
        ),
    ]


def _tuned_for(held: Connectivity) -> str:
    rate = json.loads(held.notes.get("settings", "{}")).get("keep_rate")
    return "an unknown share of the keys" if rate is None else f"{100 * rate:g}% of the keys"


def _lost(plain: np.ndarray, correct: np.ndarray) -> Interval:
    return bootstrap(100 * (plain - correct))


# -- seconds -------------------------------------------------------------------------------------------------------


def _kernels(tokens: int, heads: int, dim: int, read: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    """Attention of one image: dense, and sparse with the predictor's work in it."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, heads, tokens, dim, generator=generator).unbind(0)
    scaling = dim**-0.5
    index = torch.randint(tokens, (1, heads, tokens - 1, read), generator=generator)
    kernels: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: functional.scaled_dot_product_attention(query, key, value, scale=scaling),
        "gather": lambda: gather_attention(query, key, value, index, scaling),
    }
    if tokens > LONGEST:
        return kernels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = ConnectivityPredictor(dim, tokens, heads)
    mask = connectivity_mask(predictor.approximate(query, key)[1], read / tokens)

    def predicted() -> Tensor:
        best = predictor.approximate(query, key)[1].topk(read, sorted=False).indices
        return gather_attention(query, key, value, best, scaling)

    return kernels | {
        "masked": lambda: masked_attention(query, key, value, mask, scaling),
        "gather and predictor": predicted,
    }


@torch.no_grad()
def _time(tokens: int, heads: int, dim: int, read: int, seed: int) -> dict[str, list[float]]:
    timings = paired_time(_kernels(tokens, heads, dim, read, seed), repeats=ROUNDS)
    return {name: values.tolist() for name, values in timings.seconds.items()}


def _of_seconds(trial: Trial, held: Connectivity) -> list[Result | Figure]:
    """Kernels against dense attention, as the image grows."""
    heads, dim = held.sizes["heads"], held.sizes["head_dim"]
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for name in ("25%", f"{READ} keys"):
        for tokens in LENGTHS:
            read = math.ceil(tokens / 4) if name == "25%" else READ
            if heads * tokens * read * dim > 2**26:  # more than a gigabyte of gathered keys and values, with scratch
                continue
            key = f"seconds {tokens} {read}"
            found[name, tokens] = trial.measured(
                key, lambda n=tokens, r=read: _time(n, heads, dim, r, trial.seed), f"{tokens} tokens"
            )
    rows: list[Result | Figure] = []
    series = []
    for name in dict.fromkeys(kind for kind, _ in found):
        lengths = [tokens for kind, tokens in found if kind == name]
        speed = {
            backend: {
                tokens: bootstrap_ratio(held["dense"], held[backend], of="median")
                for (kind, tokens), held in found.items()
                if kind == name and backend in held
            }
            for backend in ("masked", "gather", "gather and predictor")
        }
        series += [
            {"name": f"{backend}, {name}", "x": list(ratios), "y": [ratio.value for ratio in ratios.values()]}
            for backend, ratios in speed.items()
        ]
        told = []
        for backend, ratios in speed.items():
            paying = [tokens for tokens, ratio in ratios.items() if ratio.low > 1]
            told.append(
                f"{backend} " + (f"pays from {paying[0]} tokens on" if paying else f"never pays to {[*ratios][-1]}")
            )
        best = speed["gather"][lengths[-1]]
        rows.append(
            trial.result(
                metric=f"speed of attention that gathers the keys it reads over dense attention, {name}, "
                f"{lengths[-1]} tokens",
                value=best.value,
                interval=best.bounds,
                unit="x",
                higher_is_better=True,
                n=ROUNDS,
                baseline={"dense": 1.0},
                peers={
                    f"{backend}, {tokens} tokens": ratio.value
                    for backend, ratios in speed.items()
                    for tokens, ratio in [*ratios.items()][-1:]
                    if backend != "gather"
                },
                claim=f"sparse attention without structure is no faster than dense attention at 197 tokens, {name}",
                verdict="holds" if all(ratios[197].low <= 1 for ratios in speed.values()) else "does not hold",
                note="; ".join(told),
                data=f"random tensors, {heads} heads of {dim}, one image",
            )
        )
    data = {"x_label": "tokens", "y_label": "dense attention's seconds over its own", "series": series}
    title = "Sparse attention against dense attention, as images grow"
    caption = "Above 1 is faster than torch's fused attention; medians of paired rounds on one image."
    rows.append(trial.figure(name="sparse-attention-speed", title=title, caption=caption, kind="curve", data=data))
    return rows

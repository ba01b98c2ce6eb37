"""Masks that rival predicted ones, and the attention that a mask keeps.

Not here: how a mask is predicted (`mintage.reduce.sparsifiner`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mintage.bench.reduce.quality import Subject
from mintage.measure.statistics import bootstrap, bootstrap_ratio
from mintage.measure.study import Finding, Measure, Run, from_on
from mintage.reduce.contract import Evidence
from mintage.reduce.core.sparse_attention import connectivity_mask
from mintage.reduce.sparsifiner import Sparsifiner
from mintage.reduce.training.connectivity import Watch

__all__ = ["MASKS", "NearestPatches", "RandomKeys", "TrueAttention", "attention_kept", "kept_mass", "mass_rows"]

OURS, ORACLE, WINDOW, RANDOM = "sparsifiner", "oracle", "window", "random"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueAttention(Sparsifiner):
    """Reads where the true attention is largest: an oracle."""

    def guess(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads patches tokens"]:
        """Return the true attention."""
        assert self.connectivity is not None
        return evidence.attention()[:, :, self.connectivity.prefix :]


@dataclass(frozen=True, kw_only=True, eq=False)
class NearestPatches(Sparsifiner):
    """Reads the prefix and the nearest patches: a window."""

    def guess(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads patches tokens"]:
        """Return nearness on the grid."""
        assert self.connectivity is not None
        prefix, patches = self.connectivity.prefix, self.connectivity.patches
        side = math.isqrt(patches)
        index = torch.arange(patches, device=evidence.key.device)
        point = torch.stack([index // side, index % side], 1).float()
        near = functional.pad(-torch.cdist(point, point), (prefix, 0), value=1.0)
        return near.expand(*evidence.key.shape[:2], -1, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class RandomKeys(Sparsifiner):
    """Reads anything."""

    def guess(self, evidence: Evidence, layer: int) -> Float[Tensor, "batch heads patches tokens"]:
        """Return random numbers."""
        assert self.connectivity is not None
        batch, heads, tokens, _ = evidence.key.shape
        generator = torch.Generator().manual_seed(layer)
        guess = torch.rand(batch, heads, tokens - self.connectivity.prefix, tokens, generator=generator)
        return guess.to(evidence.key.device)


@torch.inference_mode()
def kept_mass(subject: Subject, arm: Sparsifiner, images: int) -> list[float]:
    """Share of the true attention of patch queries that an arm's masks read, by image; mean over heads and layers."""
    fitted = arm.fitted(subject.model, subject.anatomy)
    prefix = subject.anatomy.prefix
    masses: list[Tensor] = []

    def see(evidence: Evidence, layer: int) -> None:
        mask = connectivity_mask(fitted.guess(evidence, layer), fitted.keep_rate)[:, :, prefix:]
        mass = (evidence.attention()[:, :, prefix:] * mask).sum(-1).mean((1, 2)) / subject.anatomy.layers
        if layer:
            masses[-1] += mass
        else:
            masses.append(mass)

    with Watch(see=see)(subject.model):
        for pixels in subject.pixels[:images].split(subject.batch):
            subject.outputs(pixels)
    return torch.cat(masses).tolist()


MASKS: Mapping[str, type[Sparsifiner]] = {
    OURS: Sparsifiner,
    ORACLE: TrueAttention,
    WINDOW: NearestPatches,
    RANDOM: RandomKeys,
}
"""Predicted masks and their rivals."""


def attention_kept(arms: Sequence[str], images: int) -> Measure:
    """Measure the attention that arms' masks keep on the first `images` images: column ``mass``, by image."""

    def mass(run: Run, arm: Sparsifiner, unit: None) -> dict[str, list[float]]:
        return {"mass": kept_mass(run.subject, arm, images)}

    return Measure(name="kept attention", units=lambda run: {"images": None}, of=mass, arms=arms)


def mass_rows(run: Run, density: float) -> Iterator[Finding]:
    """Yield the rows on the attention that masks of one density keep; arms are called ``"oracle, 0.25"``."""
    mass = {name: run.columns[f"{name}, {density:g}"]["mass"] for name in MASKS}
    mean = {name: 100 * float(values.mean()) for name, values in mass.items()}
    percent, n = f"{100 * density:g}% of the keys", len(mass[OURS])
    yield Finding(
        metric=f"attention kept by predicted masks, {percent}",
        value=bootstrap(100 * mass[OURS]),
        unit="%",
        n=n,
        baseline={"dense": 100.0},
        peers={name: value for name, value in mean.items() if name != OURS},
        claim=f"with {percent} read: the oracle keeps most, then predicted masks, a window, and chance",
        holds=lambda run: mean[ORACLE] >= mean[OURS] > mean[WINDOW] > mean[RANDOM],
        note="oracle is the most that any mask of this density keeps",
    )
    yield Finding(
        metric=f"share of the gap from random masks to the oracle that predicted ones close, {percent}",
        value=bootstrap_ratio(100 * (mass[OURS] - mass[RANDOM]), mass[ORACLE] - mass[RANDOM]),
        unit="%",
        n=n,
        baseline={RANDOM: 0.0},
        peers={WINDOW: 100 * (mean[WINDOW] - mean[RANDOM]) / (mean[ORACLE] - mean[RANDOM]), ORACLE: 100.0},
        claim=f"with {percent} read, at least half of the gap in kept attention is closed",
        holds=from_on(50),
    )

"""Does a predicted mask read the attention that matters, what does it cost in accuracy, and does it save time?

Not here: the rival masks and the kernels (`mintage.bench.reduce.attention_masks`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from mintage.bench.reduce.attention_masks import MASKS, attention_kept, mass_rows
from mintage.bench.reduce.attention_speed import AttentionSpeed
from mintage.bench.reduce.measures import PLAIN, ReducerStudy, accuracies, lost, quality
from mintage.errors import UserError
from mintage.measure.figure import Figure
from mintage.measure.study import Finding, Measure, Run, at_most
from mintage.options import option
from mintage.reduce.baselines import ToMe
from mintage.reduce.contract import Reducer
from mintage.reduce.sparsifiner import Connectivity, Sparsifiner
from mintage.vision import SHIPPED

__all__ = ["SparsifinerStudy"]

TOME = "tome"


@dataclass(frozen=True, kw_only=True)
class SparsifinerStudy(ReducerStudy):
    """Does a predicted mask read the attention that matters, what does it cost in accuracy, and does it save time?

    Masks of equal density: predicted, the largest entries of the true attention (oracle), the nearest patches (window),
    and chance. Kept mass is the share of the true attention that a mask reads, over patch queries; accuracy is measured
    with attention confined to the masks. Kernels are timed on random tensors of growing length.

    Example: mintage bench sparsifiner --test-images 500 --lengths 197,1025
    """

    method: ClassVar[str] = "sparsifiner"

    weights: str = option(SHIPPED, "Trained predictors: a file, or the model that mintage ships some for.")
    densities: tuple[float, ...] = option((0.25, 0.10), "Shares of the keys that masks read.", above=0, most=1)
    mass_images: int = option(500, "Images whose attention is compared, at most.", least=1)
    lengths: tuple[int, ...] = option((65, 197, 577, 1025, 2305, 4097, 8193), "Tokens of timed attention.", least=2)
    read: int = option(32, "Keys per query where the number is fixed while the length grows.", least=1)
    rounds: int = option(5, "Timed rounds per length.", least=1)

    def settings(self, run: Run) -> dict[str, Any]:
        """Return densities and how the predictors were made."""
        return {"densities": list(self.densities), "made by": self._connectivity(run).notes.get("command", "")}

    def _connectivity(self, run: Run) -> Connectivity:
        return run.arms[f"tuned, {self.densities[0]:g}"].connectivity

    def arms(self, run: Run) -> Mapping[str, Reducer | None]:
        """Return, by density, tuned and not tuned masks, and ToMe at as many multiply-adds."""
        anatomy, held = run.subject.anatomy, Connectivity.load(self.weights)
        if math.isqrt(anatomy.patches) ** 2 != anatomy.patches:
            raise UserError(f"{anatomy.patches} patches are no square grid, which the window needs")
        made: dict[str, Reducer | None] = {PLAIN: None}
        for density in self.densities:
            made[f"tuned, {density:g}"] = Sparsifiner(keep_rate=density, weights=held)
            for name, kind in MASKS.items():  # on the transformer as it was before it was tuned
                made[f"{name}, {density:g}"] = kind(keep_rate=density, weights=held, fine_tuned=False)
            with suppress(UserError):  # so many multiply-adds cannot be met
                tome = ToMe().at(self._share(run, made[f"tuned, {density:g}"]), anatomy)
                tome.kept(anatomy)
                made[f"{TOME}, {density:g}"] = tome
        return made

    def _share(self, run: Run, tuned: Any) -> float:
        dense, sparse = tuned.mhsa_macs(run.subject.anatomy)
        return 1 - (dense - sparse) / run.subject.anatomy.full

    def measures(self, run: Run) -> Iterable[Measure]:
        """Compare attention, then judge; kernels are timed with the rows."""
        yield attention_kept([arm for arm in run.arms if arm.partition(",")[0] in MASKS], self.mass_images)
        yield quality()

    def rows(self, run: Run) -> Iterator[Finding]:
        """Yield attention and accuracy by density, then seconds."""
        for density in self.densities:
            yield from mass_rows(run, density)
            yield from self._of_accuracy(run, density)
        speed = self._speed(run)
        yield from (speed.row(run, kind) for kind in speed.kinds)

    def _of_accuracy(self, run: Run, density: float) -> Iterator[Finding]:
        percent, tuned = f"{100 * density:g}% of the keys", f"tuned, {density:g}"
        claimed = density == self.densities[0]
        claim = f"with {percent} read and the transformer tuned, at most 0.5 points of top-1 are lost"
        dense, sparse = run.arms[tuned].mhsa_macs(run.subject.anatomy)
        peers = {
            name if name == TOME else f"{name}, not tuned": lost(run, arm).value
            for name in (*MASKS, TOME)
            if (arm := f"{name}, {density:g}") in run.arms
        }
        yield Finding(
            metric=f"top-1 lost with predicted masks, tuned, {percent}",
            value=lost(run, tuned),
            unit="points",
            more_is_better=False,
            n=len(run.subject),
            baseline={PLAIN: 0.0},
            peers=peers,
            claim=claim if claimed else "",
            holds=at_most(0.5) if claimed else None,
            note=f"the unmodified model has {accuracies(run, {PLAIN: PLAIN})[PLAIN]:.2f}; tuned for "
            f"{_tuned_for(self._connectivity(run))}; ToMe at as many multiply-adds, counted as the paper does",
        )
        yield Finding(
            metric=f"multiply-adds of attention blocks, counted as the paper does, {percent}",
            value=sparse / dense,
            unit="x",
            more_is_better=False,
            baseline={"dense": 1.0},
            peers={"of the whole model": self._share(run, run.arms[tuned])},
            note="predictor included; no backend runs so few",
        )

    def _speed(self, run: Run) -> AttentionSpeed:
        held = self._connectivity(run)
        sizes = {"heads": held.heads, "dim": held.head_dim, "lengths": self.lengths}
        return AttentionSpeed(**sizes, read=self.read, rounds=self.rounds)

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield speed against length."""
        yield self._speed(run).figure(run)


def _tuned_for(held: Connectivity) -> str:
    rate = json.loads(held.notes.get("settings", "{}")).get("keep_rate")
    return "an unknown share of the keys" if rate is None else f"{100 * rate:g}% of the keys"

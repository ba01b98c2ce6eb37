"""HAT: as good as BPE per byte, harder to upset, quicker to learn a second language?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mintage.bench.lm.byte_studies import BITS_RATIO, NOISE_RATIO, ByteStudy
from mintage.bench.lm.second_language import learnt_by_steps
from mintage.lm.training.baselines import BPETransformerTraining, ByteTransformerTraining
from mintage.lm.training.byte_training import ByteTraining
from mintage.lm.training.hat import HatTraining
from mintage.measure.figure import Figure, curve
from mintage.measure.statistics import bootstrap
from mintage.measure.study import Comparison, Finding, Measure, Run, at_most, below, up_to
from mintage.options import option

__all__ = ["HatStudy"]

OURS, BYTES, BPE = "hat", "byte transformer", "BPE transformer"


@dataclass(frozen=True, kw_only=True)
class HatStudy(ByteStudy):
    """Is HAT as good as BPE per byte, harder to upset, and quicker to learn a second language?

    HAT, a transformer over BPE tokens and one over bytes are trained on the same windows of English at equal operations
    per byte. Then the first halves of held-out windows are spoilt and the untouched second halves read; then all go on
    with German until BPE's bits are reached.

    Example: mintage bench hat --seeds 1 --steps 200
    """

    method: ClassVar[str] = "hat"

    german_steps: int = option(300, "Steps in the second language.", least=10)

    def arms(self, run: Run) -> Mapping[str, ByteTraining]:
        """Return the trainings."""
        return {
            OURS: self.training(HatTraining, self.seed),
            BYTES: self.training(ByteTransformerTraining, self.seed),
            BPE: self.training(BPETransformerTraining, self.seed),
        }

    def measures(self, run: Run) -> Iterator[Measure]:
        """Read, learn German, time."""
        yield self.reading()
        yield Measure(name="German", units=self._seeds, of=self._german, arms=[OURS, BPE])
        yield self.speed()

    def _german(self, run: Run, training: ByteTraining, seed: int) -> dict[str, Any]:
        model = self.model(run, training, seed).model
        folder = run.memo.folder / f"german-{training.name}-{seed}"
        return {"German": learnt_by_steps(model, run.subject.german, self.german_steps, folder, run.progress)}

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Bits, robustness, second language, speed."""
        yield Comparison(
            metric="bits per byte, over those of BPE",
            ours=OURS,
            rival=BPE,
            of="bits",
            by=BITS_RATIO,
            baseline=[BPE],
            peers=[BYTES],
            claim="HAT's bits per byte are within 3% of BPE's",
            holds=up_to(1.03),
        )
        for noise in ("10% typos", "ALL CAPS"):
            yield Comparison(
                metric=f"growth of bits behind a context with {noise}, over BPE's growth",
                ours=OURS,
                rival=BPE,
                of=(f"bits, {noise}", "bits, clean"),
                by=NOISE_RATIO,
                baseline=[BPE],
                peers=[BYTES],
                claim=f"behind a context with {noise}, HAT's bits grow by less than 0.7 of what BPE's grow by",
                holds=below(0.7),
            )
        yield Finding(
            metric="steps until BPE's bits per byte of German, share of BPE's steps",
            value=lambda run: bootstrap(self._shares(run)),
            unit="share",
            more_is_better=False,
            n=self.seeds,
            baseline={BPE: 1.0},
            claim="HAT reaches BPE's bits per byte of a second language in at most 0.7 of the steps",
            holds=at_most(0.7),
            note=f"{self.german_steps} steps of German behind {self.steps} of English; measured at every tenth.",
        )
        yield from self.speed_rows(run, OURS, BYTES, peers=[BPE])

    def _curves(self, run: Run, arm: str) -> Any:
        return run.column(arm, "German").reshape(self.seeds, -1)

    def _shares(self, run: Run) -> list[float]:
        """Return for every seed the share of steps after which HAT is at BPE's last bits (1 and a tenth if never)."""
        found = []
        for ours, rival in zip(self._curves(run, OURS), self._curves(run, BPE), strict=True):
            reached = np.nonzero(ours <= rival[-1])[0]
            found.append(reached[0] / (len(ours) - 1) if len(reached) else 1.1)
        return found

    def figures(self, run: Run) -> Iterator[Figure]:
        """Draw how fast the second language is learnt."""
        series = {}
        for arm in (OURS, BPE):
            curves = self._curves(run, arm)
            places = np.linspace(0, self.german_steps, curves.shape[1])
            series[arm] = [(float(x), bootstrap(column)) for x, column in zip(places, curves.T, strict=True)]
        yield run.figure(
            name="hat-german",
            title="A second language",
            caption="Bits per byte of held-out German while models of English go on with German; means over seeds.",
            **curve("steps of German", "bits per byte", series),
        )

"""Does a ByT5 that deletes bytes lose little where it may, nothing where it can, and read faster?

Not here: trainings (`mintage.lm.training.mrt5`), and what is measured (`mintage.bench.lm.deleting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mintage.bench.lm.deleting import Continued, encoding, gap_share, per_byte, rows_judged, share_deleted
from mintage.lm.training.mrt5 import MrT5Training
from mintage.measure.figure import Figure, curve
from mintage.measure.statistics import Interval, bootstrap_ratio
from mintage.measure.study import POINTS, Comparison, Finding, Measure, Run, Study, all_of, at_least, at_most, within
from mintage.options import option

__all__ = ["MrT5Study"]

LETTERS = {"T5, letters": "none", "MrT5, letters": "scaled_sigmoid"}
TEXT = {"ByT5": "none", "MrT5": "scaled_sigmoid", "random gate": "random", "fixed gate": "fixed"}
"""Arms and their gates."""

SHARE = 0.5
"""Of the bytes of text that is to be deleted."""


@dataclass(frozen=True, kw_only=True)
class MrT5Study(Study):
    """Does a ByT5 that deletes bytes lose little where it may, nothing where it can, and read faster?

    T5s are trained from scratch, then go on with a gate or without, the same steps on the same rows; all delete hard.
    Letters: write them without their vowels, with no word on how much to delete. Text: write spans that were taken out,
    at half the bytes, by a learnt, a random, a fixed gate and none. Last, seconds to encode rows of 1,024 bytes.

    [dim]Examples[/dim]

      mintage bench mrt5 --seeds 1 --letter-steps 50 --text-steps 50 --more-steps 20 --width 32

    Next: [bold]mintage report[/bold]
    """

    method: ClassVar[str] = "mrt5"
    job: ClassVar[str] = "lm"

    text: tuple[str, ...] = option((), "A text file or folder to learn from; repeat. None: English.", repeat=True)
    seeds: int = option(3, "Trainings of every arm.", least=1)
    letter_steps: int = option(2500, "Steps on letters, from scratch.", least=1)
    letters: int = option(64, "Ids of a row of letters.", least=8)
    text_steps: int = option(1500, "Steps on text, from scratch.", least=1)
    window: int = option(256, "Bytes of a window of text.", least=32)
    more_steps: int = option(1000, "Steps that go on from there, with a gate or without.", least=2)
    weight: float = option(0.1, "Of the gate loss on letters, in the last two thirds of these steps.", above=0)
    gate_bias: float = option(3.0, "Of a fresh gate; the paper's 1 deletes too much of so small a model at once.")
    width: int = option(128, "Of all models.", least=8)
    measured: int = option(256, "Held-out rows of each task.", least=2)
    rounds: int = option(20, "Timed rounds.", least=2)
    models: Path = option(Path(".mintage/lm"), "Folder of trained models; what is missing is trained.")

    def on_letters(self, gate: Any, seed: int) -> Continued:
        """Return trainings on letters: three blocks and three, and a gate loss of a weight that stays."""
        own: dict[str, Any] = {"task": "vowels", "rows": 32, "window": self.letters, "optimiser": "muon", "seed": seed}
        first = MrT5Training(**own, width=self.width, layers=3, decoder_layers=3, gate="none", steps=self.letter_steps)
        own |= {"weight": self.weight, "delay": self.more_steps // 3, "gate_layer": 1, **self._gated()}
        return Continued(first, MrT5Training(**own, gate=gate))

    def on_text(self, gate: Any, seed: int) -> Continued:
        """Return trainings on spans: four blocks and two, steered to half of the bytes."""
        own: dict[str, Any] = {"texts": self.text, "window": self.window, "optimiser": "muon", "seed": seed}
        first = MrT5Training(**own, width=self.width, gate="none", steps=self.text_steps)
        return Continued(first, MrT5Training(**own, **self._gated(), ki=1e-4, deletion=SHARE, gate=gate))

    def _gated(self) -> dict[str, Any]:
        return {"steps": self.more_steps, "gate_bias": self.gate_bias, "score_weight": 0.5}

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what all rows say."""
        data = f"{self.measured} held-out windows of {self.window} bytes, {self.seeds} trainings"
        model = f"T5, 4+2 blocks, width {self.width}, {self.text_steps} + {self.more_steps} steps"
        return {"model": model, "data": data, "settings": {"target": SHARE}}

    def arms(self, run: Run) -> Mapping[str, Any]:
        """Return what makes the training of a seed."""
        return {
            **{name: lambda seed, gate=gate: self.on_letters(gate, seed) for name, gate in LETTERS.items()},
            **{name: lambda seed, gate=gate: self.on_text(gate, seed) for name, gate in TEXT.items()},
        }

    def measures(self, run: Run) -> Iterable[Measure]:
        """Yield letters, text and seconds."""
        yield rows_judged("letters", [*LETTERS], self.seeds, self.measured, self.models)
        yield rows_judged("text", [*TEXT], self.seeds, self.measured, self.models)
        yield encoding(["ByT5", "MrT5", "random gate"], self.rounds, self.models)

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Yield what letters, text and seconds say."""
        letters: dict[str, Any] = {
            "data": f"{self.measured} held-out rows of {self.letters - 1} letters, {self.seeds} trainings",
            "model": f"T5, 3+3 blocks, width {self.width}, {self.letter_steps} + {self.more_steps} steps",
        }
        yield Comparison(
            metric="rows written right without their vowels, MrT5", ours="MrT5, letters", of="right", by=POINTS,
            baseline=["T5, letters"], claim="MrT5 writes at least 99% of the rows right", holds=at_least(99), **letters,
        )  # fmt: skip
        yield Finding(
            metric="bytes deleted from rows of letters, MrT5", value=lambda run: share_deleted(run, "MrT5, letters"),
            unit="%", n=self.seeds * self.measured, **letters, holds=all_of(at_least(18), at_most(21)),
            claim="18 to 21% of the bytes are deleted: the vowels (18.9%) and the end of the row (1.6%)",
        )  # fmt: skip
        n = self.seeds * self.measured
        bits = {arm: per_byte(run, arm).value for arm in TEXT}
        for rival, claim in (("random gate", "at half the bytes MrT5 loses at most a third of it"), ("fixed gate", "")):
            yield Finding(
                metric=f"loss of MrT5 over ByT5's, as a share of that of a {rival}", peers=bits, claim=claim,
                value=lambda run, rival=rival: gap_share(run, "MrT5", rival, "ByT5"), unit="x", more_is_better=False,
                n=n, baseline={rival: 1.0}, holds=at_most(1 / 3) if claim else None, note="peers are bits per byte",
            )  # fmt: skip
        yield Finding(
            metric="bytes deleted from text minus those asked for, MrT5", value=lambda run: _off(run, "MrT5"),
            unit="points", n=n, more_is_better=False, peers={arm: share_deleted(run, arm).value for arm in TEXT},
            claim="the controller deletes what it is asked for, within 3 points", holds=within(3),
            note="under hard deletion; peers are percent deleted",
        )  # fmt: skip
        for arm, claim, least in (
            ("MrT5", "hard deletion takes at least 25% off the encoder's time", 4 / 3),
            ("random gate", "hard deletion of half encodes at least 1.4 times as fast", 1.4),
        ):
            gone, length = (float(run.column(arm, name).mean()) for name in ("gone", "length"))
            yield Finding(
                metric=f"encoder's seconds without deletion over those of {arm}, rows of 1,024 bytes",
                value=lambda run, arm=arm: _faster(run, arm), unit="x", n=self.rounds, baseline={"ByT5": 1.0},
                claim=claim, holds=at_least(least), note=f"batches of 4, {gone:.1f}% deleted, {length:.0f} left",
            )  # fmt: skip

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield bits against what is deleted."""
        points = {arm: [(share_deleted(run, arm).value, per_byte(run, arm))] for arm in TEXT}
        drawn = curve("% of the bytes deleted", "bits per byte", points)
        caption = f"{run.common['model']}, {run.common['data']}; hard deletion."
        yield run.figure(name="bits", title="What bytes cost when others are deleted", caption=caption, **drawn)


def _off(run: Run, arm: str) -> Interval:
    return Interval(*(bound - 100 * SHARE for bound in share_deleted(run, arm)))


def _faster(run: Run, arm: str) -> Interval:
    return bootstrap_ratio(run.column("ByT5", "seconds"), run.column(arm, "seconds"), of="median")

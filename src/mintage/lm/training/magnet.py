"""Training of MAGNET."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8

from mintage.errors import UserError
from mintage.lm.core.scripts import running_letters, script_of
from mintage.lm.core.windows import Windows
from mintage.lm.magnet import Magnet, MagnetConfig
from mintage.lm.training.byte_training import ByteTraining
from mintage.options import option

__all__ = ["MagnetTraining", "SegmentTraining", "words_per_byte"]

LEAST = 0.01
"""Share of the bytes that a script has to have for a predictor of its own."""

_WHITE = tuple(b"\t\n\v\f\r ")


def words_per_byte(windows: UInt8[np.ndarray, "windows size"]) -> dict[str, tuple[float, float]]:
    """Return, for every script of a text, its share of the bytes and its words per byte, the commonest first.

    A byte is of the script of the last complete letter; a word ends before white space.
    """
    letters = running_letters(windows)
    white = np.isin(windows, _WHITE)
    word_ends = np.zeros(windows.shape, bool)
    word_ends[:, :-1] = ~white[:, :-1] & white[:, 1:]
    codes, where = np.unique(letters, return_inverse=True)
    scripts = np.array([script_of(int(code)) if code >= 0 else "" for code in codes])[where.reshape(letters.shape)]
    found = {}
    for name in np.unique(scripts[scripts != ""]).tolist():
        mine = scripts == name
        found[name] = float(mine.mean()), float(word_ends[mine].mean())
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


@dataclass(frozen=True, kw_only=True)
class SegmentTraining(ByteTraining):
    """What the trainings of models over segments share: sizes."""

    width: int = option(128, "Of the vectors.", least=2)
    byte_layers: int = option(2, "Blocks over bytes before pooling, and as many behind.", least=1)
    layers: int = option(4, "Blocks over segments.", least=1)
    heads: int = option(4, "Of attention; they divide the width.", least=1)

    @property
    def own_sizes(self) -> dict[str, int]:
        """Keywords of a `SegmentConfig`."""
        return {name: getattr(self, name) for name in ("width", "byte_layers", "layers", "heads")}


@dataclass(frozen=True, kw_only=True)
class MagnetTraining(SegmentTraining):
    """Train MAGNET: bytes in segments that are learnt, at a rate for every script.

    A script's rate is one segment a word, measured on the text, unless it is given.
    """

    name: ClassVar[str] = "magnet"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train magnet notes/ --steps 300 -o my-segments",
        "mintage train magnet notes/ --script Latin=0.2 --script Cyrillic=0.1 -o my-segments",
    )

    script: tuple[str, ...] = option(
        (), "A script, and the share of its bytes that end segments: Latin=0.2; repeat. None: those of the text.",
        repeat=True,
    )  # fmt: skip

    def build(self, windows: Windows) -> Magnet:
        """See `ByteTraining.build`."""
        return Magnet(MagnetConfig(scripts=self.rates(windows.train), **self.own_sizes))

    def rates(self, windows: UInt8[np.ndarray, "windows size"]) -> dict[str, float]:
        """Return scripts and the share of their bytes that are to end segments.

        Raises
        ------
        UserError
            A share is no number, or there is nothing to measure one on.
        """
        measured = words_per_byte(windows)
        asked: Iterable[str] = self.script or [name for name, (share, _) in measured.items() if share >= LEAST]
        rates = {}
        for one in asked:
            name, given, value = one.partition("=")
            try:
                rate = float(value) if given else measured.get(name, (0.0, 0.0))[1]
            except ValueError:
                raise UserError(f"script {one!r} has no number behind its =; write e.g. {name}=0.2") from None
            if not given and not 0 < rate < 1:
                raise UserError(f"the text has no words in {name} to measure a rate on; write e.g. {name}=0.2")
            rates[name] = rate
        if not rates:
            raise UserError("the text has no letters to find scripts by; name one, e.g. --script Latin=0.2")
        return rates

"""Training of HAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mintage.lm.core.cuts import CutName
from mintage.lm.core.windows import Windows
from mintage.lm.hat import Hat, HatConfig
from mintage.lm.training.byte_training import ByteTraining
from mintage.options import option

__all__ = ["HatTraining"]


@dataclass(frozen=True, kw_only=True)
class HatTraining(ByteTraining):
    """Train HAT: a transformer over words, between small ones over their bytes."""

    name: ClassVar[str] = "hat"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train hat notes/ --steps 300 -o my-words",
        "mintage train hat notes/ --cut stride --most 8 -o my-strides",
    )

    byte_width: int = option(96, "Of the vectors inside words.", least=2)
    byte_layers: int = option(2, "Blocks that read a word's bytes, and as many that spell them.", least=1)
    byte_heads: int = option(4, "Of attention inside words.", least=1)
    width: int = option(224, "Of words' vectors.", least=2)
    layers: int = option(4, "Blocks over words.", least=1)
    heads: int = option(4, "Of attention over words.", least=1)
    cut: CutName = option("hat", "Rule that cuts words: hat, spaces, or stride (every --most bytes).")
    most: int = option(32, "Bytes of the longest word.", least=1)

    def build(self, windows: Windows) -> Hat:
        """See `ByteTraining.build`."""
        names = ("byte_width", "byte_layers", "byte_heads", "width", "layers", "heads", "cut", "most")
        return Hat(HatConfig(**{name: getattr(self, name) for name in names}))

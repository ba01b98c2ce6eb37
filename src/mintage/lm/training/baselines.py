"""Trainings of the rivals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mintage.lm.baselines import BPETransformer, BPETransformerConfig, ByteTransformer, ByteTransformerConfig
from mintage.lm.core.bpe import BytePairs
from mintage.lm.core.windows import Windows
from mintage.lm.training.byte_training import ByteTraining
from mintage.options import option

__all__ = ["BPETransformerTraining", "ByteTransformerTraining"]


@dataclass(frozen=True, kw_only=True)
class ByteTransformerTraining(ByteTraining):
    """Train a transformer over bytes."""

    name: ClassVar[str] = "byte-transformer"
    examples: ClassVar[tuple[str, ...]] = ("mintage train byte-transformer notes/ --steps 300 -o my-bytes",)

    width: int = option(128, "Of the vectors.", least=2)
    layers: int = option(4, "Blocks.", least=1)
    heads: int = option(4, "Of attention; they divide the width.", least=1)

    def build(self, windows: Windows) -> ByteTransformer:
        """See `ByteTraining.build`."""
        return ByteTransformer(ByteTransformerConfig(width=self.width, layers=self.layers, heads=self.heads))


@dataclass(frozen=True, kw_only=True)
class BPETransformerTraining(ByteTraining):
    """Train a transformer over BPE tokens that are learnt from the same text."""

    name: ClassVar[str] = "bpe-transformer"
    examples: ClassVar[tuple[str, ...]] = ("mintage train bpe-transformer notes/ --vocabulary 2048 -o my-tokens",)

    vocabulary: int = option(4096, "Tokens, the 256 bytes among them.", least=256, most=1_000_000)
    width: int = option(232, "Of the vectors.", least=2)
    layers: int = option(4, "Blocks.", least=1)
    heads: int = option(4, "Of attention; they divide the width.", least=1)

    def build(self, windows: Windows) -> BPETransformer:
        """See `ByteTraining.build`."""
        learnt = BytePairs.train((bytes(row).decode(errors="replace") for row in windows.train), self.vocabulary)
        tokenizer = learnt.tokenizer.to_str()
        sizes = {"width": self.width, "layers": self.layers, "heads": self.heads}
        return BPETransformer(BPETransformerConfig(**sizes, tokenizer=tokenizer))

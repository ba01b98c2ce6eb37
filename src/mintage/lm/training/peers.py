"""Trainings of models that other packages bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mintage.lm.blt import Blt, BltPeerConfig
from mintage.lm.core.windows import Windows
from mintage.lm.hnet import HNet, HNetConfig
from mintage.lm.training.byte_training import ByteTraining
from mintage.lm.training.segment_baselines import EntropyTraining
from mintage.options import option

__all__ = ["BltTraining", "HNetTraining"]


@dataclass(frozen=True, kw_only=True)
class BltTraining(EntropyTraining):
    """Train transformers' Byte Latent Transformer; a small model, trained first, says where patches begin."""

    name: ClassVar[str] = "blt"
    examples: ClassVar[tuple[str, ...]] = ("mintage train blt notes/ --share 0.2 -o my-blt",)

    width: int = option(160, "Of the vectors of patches; those of bytes are half as wide.", least=4)
    byte_layers: int = option(1, "Blocks of the encoder.", least=1)
    decoder_layers: int = option(3, "Blocks of the decoder.", least=1)
    layers: int = option(5, "Blocks over patches.", least=1)
    heads: int = option(4, "Of attention; they divide half the width.", least=1)
    hashes: int = option(2000, "Vectors for the n-grams of a length.", least=1)

    def build(self, windows: Windows) -> Blt:
        """See `ByteTraining.build`."""
        names = ("width", "byte_layers", "decoder_layers", "layers", "heads", "hashes")
        return Blt(BltPeerConfig(**{name: getattr(self, name) for name in names}, **self.small_sizes))


@dataclass(frozen=True, kw_only=True)
class HNetTraining(ByteTraining):
    """Train H-Net's dynamic chunks, as the package h-net-dynamic-chunking finds them; needs mintage[lm]."""

    name: ClassVar[str] = "h-net"
    examples: ClassVar[tuple[str, ...]] = ("mintage train h-net notes/ --chunk 5 -o my-chunks",)

    width: int = option(128, "Of the vectors.", least=2)
    byte_layers: int = option(1, "Blocks over bytes before chunking, and as many behind.", least=1)
    layers: int = option(11, "Blocks over chunks.", least=1)
    heads: int = option(4, "Of attention; they divide the width.", least=1)
    chunk: float = option(5.0, "Bytes of a chunk that the loss asks for, on average.", above=1)

    def build(self, windows: Windows) -> HNet:
        """See `ByteTraining.build`."""
        names = ("width", "byte_layers", "layers", "heads", "chunk")
        return HNet(HNetConfig(**{name: getattr(self, name) for name in names}))

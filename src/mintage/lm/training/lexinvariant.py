"""Training of lexinvariant models, on text or on a chain whose ideal model is known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import UInt8

from mintage.data import Corpus
from mintage.lm.core.cipher import random_chain
from mintage.lm.core.windows import Windows, byte_windows, hold_out
from mintage.lm.lexinvariant import Lexinvariant, LexinvariantConfig
from mintage.lm.training.byte_training import ByteTraining, english
from mintage.options import option

__all__ = ["LETTERS", "LexinvariantTraining", "chain_windows", "letters_of"]

LETTERS = b" abcdefghijklmnopqrstuvwxyz"
"""The symbols of English without case and punctuation."""

_OTHER = re.compile(r"[^a-z]+")

FIRST = ord("a")
"""The byte of a chain's first symbol."""


def letters_of(texts: Iterable[str]) -> Iterator[str]:
    """Write texts in `LETTERS` alone: small ones, and a blank for whatever stands between."""
    return (f"{_OTHER.sub(' ', text.lower()).strip()} " for text in texts)


def chain_windows(count: int, size: int, symbols: int, chain: int, seed: int) -> UInt8[np.ndarray, "count size"]:
    """Draw texts of a chain, letters from "a" on; `chain` names the chain, `seed` the texts."""
    first, then = (part.numpy() for part in random_chain(symbols, chain))
    generator = np.random.default_rng([seed, 0xC4A1])
    draws = generator.random((count, size))
    limits = then.cumsum(1)
    texts = np.empty((count, size), np.uint8)
    now = (draws[:, :1] > first.cumsum()).sum(1).clip(max=symbols - 1)
    for place in range(size):
        texts[:, place] = now + FIRST
        if place + 1 < size:
            now = (draws[:, place + 1, None] > limits[now]).sum(1).clip(max=symbols - 1)
    return texts


@dataclass(frozen=True, kw_only=True)
class LexinvariantTraining(ByteTraining):
    """Train a model whose symbols mean nothing but what the text makes of them.

    On text it starts slowly: that equal vectors are equal symbols has to be found first. The task chain draws fresh
    texts of one first-order chain over a few letters.
    """

    name: ClassVar[str] = "lexinvariant"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train lexinvariant --task chain --window 64 --rows 32 --width 64 --layers 2 --steps 3000 -o my-chain",
        "mintage train lexinvariant notes/ --rate 0.2 --steps 300 -o my-regularised",
    )

    task: Literal["text", "letters", "chain"] = option(
        "text", "What is read: text, the letters a to z of a text, or a chain of letters."
    )
    symbols: int = option(5, "Letters of the chain.", least=2, most=26)
    chain: int = option(0, "Number of the chain.", least=0)
    width: int = option(128, "Of the vectors.", least=2)
    layers: int = option(4, "Blocks.", least=1)
    heads: int = option(4, "Of attention; they divide the width.", least=1)
    rate: float = option(
        1.0, "Share of the symbols that are random in a text; 0 is an ordinary model.", least=0, most=1
    )
    whole: float = option(0.0, "Share of the texts in which all symbols are random.", least=0, most=1)

    def corpus(self) -> Windows:
        """See `TextTraining.corpus`."""
        if self.task == "text":
            return super().corpus()
        if self.task == "letters":
            return hold_out(byte_windows(letters_of(Corpus(*self.texts) if self.texts else english()), self.window))
        count = max(self.rows * self.steps, 50) * 50 // 49 + 1  # none is read twice
        return hold_out(chain_windows(count, self.window, self.symbols, self.chain, self.seed))

    def build(self, windows: Windows) -> Lexinvariant:
        """See `ByteTraining.build`."""
        chain = bytes(range(FIRST, FIRST + self.symbols))
        alphabet = {"chain": chain, "letters": LETTERS, "text": b""}[self.task]
        sizes = {name: getattr(self, name) for name in ("width", "layers", "heads", "rate", "whole")}
        return Lexinvariant(LexinvariantConfig(**sizes, alphabet=alphabet))

"""Training of word-pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mintage.lm.core.cuts import CutName
from mintage.lm.core.windows import Windows
from mintage.lm.training.byte_training import ByteTraining
from mintage.lm.word_pool import WordPool, WordPoolConfig
from mintage.options import option

__all__ = ["WordPoolTraining"]


@dataclass(frozen=True, kw_only=True)
class WordPoolTraining(ByteTraining):
    """Train word-pool: words pooled into vectors, a GPT over them, words spelt."""

    name: ClassVar[str] = "word-pool"
    examples: ClassVar[tuple[str, ...]] = ("mintage train word-pool notes/ --vectors 1 --steps 300 -o my-words",)

    width: int = option(88, "Of all vectors.", least=2)
    heads: int = option(4, "Of attention; they divide the width.", least=1)
    vectors: int = option(4, "That a word becomes.", least=1)
    pool_layers: int = option(2, "Blocks that pool a word.", least=1)
    layers: int = option(4, "Blocks over words.", least=1)
    spell_layers: int = option(2, "Blocks that spell a word.", least=1)
    feed_forward: int = option(256, "Of the blocks that pool; 2048 in the paper.", least=1)
    cut: CutName = option("hat", "Rule that cuts words: hat, spaces, or stride (every --most bytes).")
    most: int = option(24, "Bytes of the longest word.", least=1)

    def build(self, windows: Windows) -> WordPool:
        """See `ByteTraining.build`."""
        names = ("width", "heads", "vectors", "pool_layers", "layers", "spell_layers", "feed_forward", "cut", "most")
        most_words = max(1024, self.window + 1)
        return WordPool(WordPoolConfig(**{name: getattr(self, name) for name in names}, most_words=most_words))

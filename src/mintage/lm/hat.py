"""HAT: bytes into words, a transformer over words, words back into bytes (arXiv 2501.10322).

A small transformer reads every word's bytes, in both directions, behind a marker [W], whose state becomes the word's
vector; the backbone runs over words; a small causal transformer spells the next word from what the backbone predicts,
and [W] ends it. Words are cut by a fixed rule (`mintage.lm.core.cuts`), and the first one is predicted from a learnt
start. Ends of words that cannot be longer are certain and cost nothing.

Not here: reading and writing (`mintage.lm.core.word_model`), the blocks, which are Llama's (`mintage.lm.core.stack`).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.lm.contract import register
from mintage.lm.core.backbone import backbone_of, over_words
from mintage.lm.core.hat_config import ConnectorHatConfig, HatConfig
from mintage.lm.core.reading import seeded
from mintage.lm.core.stack import inside_words, over_rows, stack, stack_flops
from mintage.lm.core.word_model import WordModel
from mintage.lm.core.words import Words
from mintage.lm.hat_connectors import ConnectorHat

__all__ = ["ConnectorHat", "ConnectorHatConfig", "Hat", "HatConfig"]


class Hat(WordModel):
    """A hierarchical autoregressive transformer, in the paper's form."""

    config_class = HatConfig

    def __init__(self, config: HatConfig) -> None:
        super().__init__(config)
        inner = (config.byte_width, config.byte_layers, config.byte_heads)
        self.bytes = nn.Embedding(257, config.byte_width)  # the last is [W]
        self.encoder = stack(*inner, inside=True, causal=False)
        self.widen = nn.Linear(config.byte_width, config.width, bias=False)  # W_E
        self.backbone = backbone_of(config)
        self.narrow = nn.Linear(config.width, config.byte_width, bias=False)  # W_D
        self.decoder = stack(*inner, inside=True)
        self.head = nn.Linear(config.byte_width, 257, bias=False)
        self._set_up(config.width, vectors=1)
        self.post_init()

    @classmethod
    def tiny(cls) -> Hat:
        """See `ByteLanguageModel.tiny`."""
        config = HatConfig(byte_width=16, byte_layers=1, byte_heads=2, width=24, layers=2, heads=2, most=12)
        return seeded(cls, config)

    def _placed(self, flat: Int[Tensor, " bytes"], words: Words) -> Float[Tensor, "places narrow"]:
        ids = torch.full_like(words.word, 256)
        ids[words.is_byte] = flat
        return self.bytes(ids)

    def pool(self, flat: Int[Tensor, " bytes"], words: Words) -> Float[Tensor, "words 1 width"]:
        """Return the state of [W] in every word, widened."""
        states = inside_words(self.encoder, self._placed(flat, words), words)
        return self.widen(states[words.starts])[:, None]

    def context(self, rows: Float[Tensor, "batch places width"], cache: Any = None) -> Tensor:
        """Run the backbone."""
        return over_words(self.backbone, rows, cache)

    def spell(
        self, said: Float[Tensor, "words 1 width"], flat: Int[Tensor, " bytes"], words: Words
    ) -> Float[Tensor, "places 257"]:
        """Spell every word from the vector that predicts it, which stands in place of [W]."""
        predicts = self.narrow(said[:, 0])
        placed = self._placed(flat, words)
        placed = placed.index_put((words.starts,), predicts.to(placed.dtype))
        return self.head(inside_words(self.decoder, placed, words))

    def begin_word(self, said: Float[Tensor, "1 1 width"], cache: Any) -> Float[Tensor, 257]:
        """See `WordModel.begin_word`."""
        return self.head(over_rows(self.decoder, self.narrow(said), cache)[0, -1])

    def spell_on(self, spelt: Int[Tensor, " new"], done: int, cache: Any) -> Float[Tensor, 257]:
        """See `WordModel.spell_on`."""
        return self.head(over_rows(self.decoder, self.bytes(spelt)[None], cache)[0, -1])

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`."""
        lengths = torch.full((len(input_ids),), input_ids.shape[1])
        words = self.words(input_ids, lengths)
        share = len(words.lengths) / input_ids.numel()  # words per byte
        inside = float((words.lengths + 1).float().square().sum() / (words.lengths + 1).sum())  # seen by a byte
        rows = float(words.counts.float().mean())
        bridges = 2 * share * (self.widen.weight.numel() + self.narrow.weight.numel())
        return (
            stack_flops(self.encoder, 1 + share, inside)
            + stack_flops(self.decoder, 1 + share, (inside + 1) / 2)
            + stack_flops(self.backbone, share, (rows + 1) / 2)
            + 2 * (1 + share) * self.head.weight.numel()
            + bridges
        )


register(HatConfig, Hat)

"""Word-pool: end-to-end words from bytes (*Learn Your Tokens*, arXiv 2310.11628).

A bidirectional transformer pools every word's bytes into a few vectors, a GPT runs over those of all words, and a small
causal one spells the next word behind what the GPT says of it; one width everywhere.

Deviations: padding is never attended to (the authors' mask lets it be); a word ends by a symbol of its own, not by a
unit that is also padding; the first word is predicted, too, from a learnt start; words are cut without losing a byte;
bytes get their in-word positions once in the speller (``positions_twice`` is the authors' way, for their weights).

Not here: reading and writing (`mintage.lm.core.word_model`); the authors' layout of weights (`mintage.lm.core.etok`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.lm.contract import LMConfig, register
from mintage.lm.core.gpt_stack import gpt_inside_words, gpt_over_rows, gpt_stack, pooling_stack
from mintage.lm.core.reading import seeded
from mintage.lm.core.stack import block_flops
from mintage.lm.core.word_model import WordModel
from mintage.lm.core.words import Words

__all__ = ["WordPool", "WordPoolConfig"]


class WordPoolConfig(LMConfig):
    """Sizes of a word-pool model.

    Parameters
    ----------
    width, heads
        Of all transformers.
    vectors
        That a word becomes.
    pool_layers, layers, spell_layers
        Blocks that pool, run over words, and spell.
    feed_forward
        Of the pooling blocks; 2,048 in the paper, whatever the width.
    most_words
        Words of a text that have positions.
    cut, most
        The rule that cuts words, and the longest word in bytes.
    positions_twice
        Whether bytes get their in-word positions twice in the speller, as in the authors' code.
    """

    model_type = "mintage-word-pool"
    sizes: ClassVar = {
        "width": 2,
        **dict.fromkeys(("heads", "vectors", "pool_layers", "layers", "spell_layers"), 1),
        **dict.fromkeys(("feed_forward", "most_words", "most"), 1),
    }

    others: ClassVar = ("cut", "positions_twice")

    width, heads, vectors = 88, 4, 4
    pool_layers, layers, spell_layers = 2, 4, 2
    feed_forward, most_words = 256, 1024
    cut, most = "hat", 24
    positions_twice = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class WordPool(WordModel):
    """Pools, models and spells words."""

    config_class = WordPoolConfig

    def __init__(self, config: WordPoolConfig) -> None:
        super().__init__(config)
        inner, p = config.most + config.vectors, config.vectors
        self.units = nn.Embedding(256, config.width)
        self.marks = nn.Embedding(p, config.width)  # CLS_1 to CLS_p
        self.places = nn.Embedding(inner, config.width)  # P_in
        self.pooler = pooling_stack(config.width, config.pool_layers, config.heads, config.feed_forward)
        self.backbone = gpt_stack(config.width, config.layers, config.heads, config.most_words * p)
        self.speller = gpt_stack(config.width, config.spell_layers, config.heads, inner, inside=True)
        self.head = nn.Linear(config.width, 257, bias=False)
        self._set_up(config.width, p)
        self.post_init()

    @classmethod
    def tiny(cls) -> WordPool:
        """See `ByteLanguageModel.tiny`."""
        sizes: dict[str, Any] = {"width": 16, "heads": 2, "vectors": 2, "pool_layers": 1, "layers": 2}
        return seeded(cls, WordPoolConfig(**sizes, spell_layers=1, feed_forward=24, most=12, most_words=600))

    def pool(self, flat: Int[Tensor, " bytes"], words: Words) -> Float[Tensor, "words vectors width"]:
        """Return Q: the first outputs of a transformer over [CLS_1..CLS_p, bytes] with in-word positions."""
        placed = self.marks(words.places.clamp(max=self.vectors - 1))
        placed = placed.index_put((words.is_byte,), self.units(flat)) + self.places(words.places)
        states = self.pooler(placed[None], words=words).last_hidden_state[0] if len(placed) else placed
        return states[~words.is_byte].view(-1, self.vectors, placed.shape[1])

    def context(self, rows: Float[Tensor, "batch places width"], cache: Any = None) -> Tensor:
        """Run the GPT; R of the paper."""
        seen = rows.shape[1] + (0 if cache is None else cache.get_seq_length())
        if seen > self.config.most_words * self.vectors:
            most = self.config.most_words
            raise UserError(f"a text has more than the {most} words that have positions here; read less at once")
        return gpt_over_rows(self.backbone, rows, cache)

    def spell(
        self, said: Float[Tensor, "words vectors width"], flat: Int[Tensor, " bytes"], words: Words
    ) -> Float[Tensor, "places 257"]:
        """Spell every word behind what is said of it; its last vector predicts the first byte."""
        placed = said.new_zeros(len(words.word), said.shape[2])
        placed = placed.index_put((~words.is_byte,), said.flatten(0, 1))
        placed = placed.index_put((words.is_byte,), self._spelt(flat, words.places[words.is_byte]).to(placed.dtype))
        return self.head(gpt_inside_words(self.speller, placed, words))

    def _spelt(self, flat: Int[Tensor, " bytes"], places: Int[Tensor, " bytes"]) -> Float[Tensor, "bytes width"]:
        """Return bytes as the speller reads them, which adds in-word positions of its own."""
        return self.units(flat) + self.places(places) if self.config.positions_twice else self.units(flat)

    def begin_word(self, said: Float[Tensor, "1 vectors width"], cache: Any) -> Float[Tensor, 257]:
        """See `WordModel.begin_word`."""
        return self.head(gpt_over_rows(self.speller, said, cache)[0, -1])

    def spell_on(self, spelt: Int[Tensor, " new"], done: int, cache: Any) -> Float[Tensor, 257]:
        """See `WordModel.spell_on`."""
        places = torch.arange(done, done + len(spelt), device=spelt.device) + self.vectors
        return self.head(gpt_over_rows(self.speller, self._spelt(spelt, places)[None], cache)[0, -1])

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`."""
        words = self.words(input_ids, torch.full((len(input_ids),), input_ids.shape[1]))
        share = self.vectors * len(words.lengths) / input_ids.numel()  # vectors per byte
        inside = float((words.lengths + words.lead).float().square().sum() / (words.lengths + words.lead).sum())
        rows = self.vectors * float(words.counts.float().mean())
        width, layers = self.config.width, self.config
        return (
            block_flops(self.pooler, width, layers.pool_layers, 1 + share, inside)
            + block_flops(self.speller, width, layers.spell_layers, 1 + share, (inside + 1) / 2)
            + block_flops(self.backbone, width, layers.layers, share, (rows + 1) / 2)
            + 2 * (1 + share / self.vectors) * self.head.weight.numel()
        )


register(WordPoolConfig, WordPool)

"""A peer: transformers' Byte Latent Transformer (arXiv 2412.09871), trained from scratch under the lm contract.

``BltForCausalLM`` is taken as it is: bytes with hashes of n-grams, an encoder that attends into patches, blocks over
patches, a decoder that attends to them. Its released weights have a patcher of 100 M parameters, and transformers has
no training for one; here a small transformer over bytes, trained first, says where patches begin, by transformers' rule
(``BltPatcher.patch_lengths_from_entropies``).

A text is written without a cache, all is read anew at every byte: with one, transformers 5.24 reads patches of the last
byte alone and writes another text (``findings/transformers-blt-cache.sh``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import BltConfig, BltForCausalLM
from transformers.models.blt.modeling_blt import BltPatcher

from mintage.lm.baselines import TINY_SMALL, ByteTransformer, ByteTransformerConfig
from mintage.lm.contract import ByteLanguageModel, LMConfig, OpenText, Reading, register
from mintage.lm.core.open_row import SINGLE
from mintage.lm.core.reading import byte_reading, lengths_of, seeded
from mintage.lm.core.stack import block_flops, check_heads

__all__ = ["Blt", "BltPeerConfig"]

_START = 256
_PARTS = 2  # vectors of a patch between encoder, global blocks and decoder: cross_attn_k, as released
_GROUPS = (3, 4, 5, 6, 7, 8)  # bytes of the n-grams that are hashed, as released


class BltPeerConfig(LMConfig):
    """Sizes of a Byte Latent Transformer; released is byte_layers=1, decoder_layers=9, layers=25.

    Parameters
    ----------
    width, layers
        Of the blocks over patches; vectors of bytes are half as wide.
    byte_layers, decoder_layers
        Blocks of the encoder and of the decoder.
    heads
        Of attention, everywhere.
    hashes
        Vectors for the n-grams of every length, which share them by a hash.
    small_width, small_layers, small_heads
        Of the transformer over bytes that finds where patches begin.
    threshold
        Nats; a patch begins where the entropy of its first byte is above.
    """

    model_type = "mintage-blt"
    sizes: ClassVar = {
        "width": 4,
        "small_width": 2,
        **dict.fromkeys(("byte_layers", "decoder_layers", "layers", "heads", "hashes"), 1),
        **dict.fromkeys(("small_layers", "small_heads"), 1),
    }
    others: ClassVar = ("threshold",)

    width, byte_layers, decoder_layers, layers, heads, hashes = 160, 1, 3, 5, 4, 2000
    small_width, small_layers, small_heads, threshold = 64, 2, 4, 1.5

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Blt(ByteLanguageModel):
    """A Byte Latent Transformer; the first byte is predicted from a start symbol."""

    config_class = BltPeerConfig

    def __init__(self, config: BltPeerConfig) -> None:
        super().__init__(config)
        check_heads(config.width // _PARTS, config.heads)
        self.inner = BltForCausalLM(_blt_config(config))
        sizes = {"width": config.small_width, "layers": config.small_layers, "heads": config.small_heads}
        self.small = ByteTransformer(ByteTransformerConfig(**sizes)).requires_grad_(False)  # it is learnt before
        self.post_init()

    @classmethod
    def tiny(cls) -> Blt:
        """See `ByteLanguageModel.tiny`; about half of the places are above the threshold."""
        made = seeded(cls, BltPeerConfig(width=32, decoder_layers=1, layers=2, heads=2, hashes=50, **TINY_SMALL))
        made.small.louder_()
        return made

    def entropy(self, ids: Int[Tensor, "batch bytes"]) -> Float[Tensor, "batch bytes"]:
        """Return the small model's entropy of the byte behind each, in nats."""
        return self.small.entropy(ids)

    def patch_lengths(self, ids: Int[Tensor, "batch bytes"]) -> Int[Tensor, "batch patches"]:
        """Return the lengths of patches, the start symbol's first; 0 and below where a row has no more."""
        entropies = torch.nn.functional.pad(self.entropy(ids), (1, 0))
        return BltPatcher.patch_lengths_from_entropies(
            entropies, ids.shape[1] + 1, patch_size=1, threshold=self.config.threshold
        )

    def forward(self, input_ids: Int[Tensor, "batch bytes"], attention_mask: Tensor | None = None) -> Reading:
        """See `ByteLanguageModel.forward`."""
        lengths = lengths_of(input_ids, attention_mask)
        patches = self.patch_lengths(input_ids)
        logits = self.next_logits(input_ids, patches)[:, :-1]
        per_patch = input_ids.numel() / max(float((patches[:, 1:] > 0).sum()), 1.0)
        return byte_reading(logits, input_ids, lengths, **{"bytes per segment": per_patch})

    def next_logits(
        self, ids: Int[Tensor, "batch bytes"], patches: Int[Tensor, "batch patches"]
    ) -> Float[Tensor, "batch more 256"]:
        """Return logits of the byte behind the start symbol and behind every byte."""
        start = ids.new_full((len(ids), 1), _START)
        read = self.inner(input_ids=torch.cat([start, ids], 1), patch_lengths=patches, use_cache=False)
        return read.logits[..., :_START]

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`; the small model's are among them."""
        length, model, config = input_ids.shape[1], self.inner.model, self.config
        patches = float((self.patch_lengths(input_ids) > 0).sum(1).float().mean())
        share, narrow, half = patches / length, config.width // _PARTS, (length + 1) / 2
        encoder, decoder = model.local_encoder, model.local_decoder
        rows = block_flops(encoder.layers, narrow, config.byte_layers, 1.0, half)
        rows += block_flops(decoder.layers, narrow, config.decoder_layers, 1.0, half)
        rows += block_flops(model.global_transformer.layers, config.width, config.layers, share, (patches + 1) / 2)
        square = narrow * narrow
        # into patches: keys and values of bytes, queries and outputs of patches, which see their own bytes; and back
        into = 2 * (2 + 2 * share * _PARTS) * square + 4 * _PARTS * narrow + 2 * share * _PARTS * square
        back = 2 * (2 + 2 * share * _PARTS) * square + 4 * _PARTS * narrow
        back = config.decoder_layers * back + 2 * share * _PARTS * narrow * config.width
        return rows + into + back + 2 * self.inner.lm_head.weight.numel() + self.small.flops(input_ids)

    def symbols(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.symbols`."""
        return list(text)

    def cuts(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.cuts`: where patches begin."""
        if not text:
            return []
        lengths = self.patch_lengths(torch.tensor([list(text)], device=self.device))[0]
        starts = (lengths.cumsum(0) - 1).tolist()  # without the start symbol
        return [start for start in starts if 0 <= start < len(text)]

    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """See `ByteLanguageModel.open_text`; there is no cache that would change nothing."""
        return _OpenWhole(self, prompt)


class _OpenWhole(OpenText):
    """Reads all again at every byte."""

    def __init__(self, model: Blt, prompt: bytes) -> None:
        self.model, self.text = model, list(prompt)

    @property
    @torch.no_grad()
    def logits(self) -> Float[Tensor, " symbols"]:
        """See `OpenText.logits`."""
        ids = torch.tensor([self.text], dtype=torch.long, device=self.model.device)
        return self.model.next_logits(ids, self.model.patch_lengths(ids))[0, -1]

    def push(self, symbol: int) -> bytes:
        """See `OpenText.push`."""
        self.text.append(symbol)
        return SINGLE[symbol]


def _blt_config(config: BltPeerConfig) -> BltConfig:
    """Return the sizes as transformers' configuration has them."""

    def blocks(width: int, layers: int, **more: Any) -> dict[str, Any]:
        wide = -(-8 * width // 24) * 8
        own = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": config.heads}
        return {**own, "intermediate_size": wide, "max_position_embeddings": 1 << 17, **more}

    outer = {"vocab_size": _START + 1, "hidden_size_global": config.width, "cross_attn_k": _PARTS}
    narrow = config.width // _PARTS
    return BltConfig(
        vocab_size=_START + 1,
        cross_attn_k=_PARTS,
        patch_in_forward=False,
        encoder_hash_byte_group_size=list(_GROUPS),
        encoder_hash_byte_group_vocab=config.hashes,
        encoder_config=blocks(narrow, config.byte_layers, **outer),
        decoder_config=blocks(narrow, config.decoder_layers, **outer),
        global_config=blocks(config.width, config.layers),
    )


register(BltPeerConfig, Blt)

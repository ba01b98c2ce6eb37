"""Rivals under the lm contract: transformers over bytes and BPE tokens, and other ways to cut a stream of bytes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from mintage.lm.contract import ByteLanguageModel, LMConfig, OpenText, Reading, register
from mintage.lm.core.bpe import BytePairs
from mintage.lm.core.open_row import SINGLE, OpenRow
from mintage.lm.core.reading import byte_reading, lengths_of, real, seeded
from mintage.lm.core.segment_model import Ends, SegmentConfig, SegmentModel
from mintage.lm.core.stack import over_rows, stack, stack_flops
from mintage.lm.magnet import ANY, Magnet, MagnetConfig

__all__ = [
    "TINY_SMALL",
    "BPETransformer",
    "BPETransformerConfig",
    "ByteTransformer",
    "ByteTransformerConfig",
    "DynamicPooling",
    "DynamicPoolingConfig",
    "EntropyPatches",
    "EntropyPatchesConfig",
]


TINY_SMALL = {"small_width": 8, "small_layers": 1, "small_heads": 2, "threshold": 4.92}
"""Sizes of a small model with random weights, `louder_`, whose doubt is above the threshold half of the time."""


class ByteTransformerConfig(LMConfig):
    """Sizes of a transformer over bytes."""

    model_type = "mintage-byte-transformer"
    sizes: ClassVar = {"width": 2, "layers": 1, "heads": 1}

    width, layers, heads = 128, 4, 4

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class ByteTransformer(ByteLanguageModel):
    """A Llama over bytes; the first byte is predicted from a learnt start vector."""

    config_class = ByteTransformerConfig

    def __init__(self, config: ByteTransformerConfig) -> None:
        super().__init__(config)
        self.bytes = nn.Embedding(257, config.width)  # the last is the start
        self.blocks = stack(config.width, config.layers, config.heads)
        self.head = nn.Linear(config.width, 256, bias=False)
        self.post_init()

    @classmethod
    def tiny(cls) -> ByteTransformer:
        """See `ByteLanguageModel.tiny`."""
        return seeded(cls, ByteTransformerConfig(width=16, layers=2, heads=2))

    def forward(self, input_ids: Int[Tensor, "batch bytes"], attention_mask: Tensor | None = None) -> Reading:
        """See `ByteLanguageModel.forward`."""
        lengths = lengths_of(input_ids, attention_mask)
        start = input_ids.new_full((len(input_ids), 1), 256)
        hidden = over_rows(self.blocks, self.bytes(torch.cat([start, input_ids], 1)[:, :-1]))
        return byte_reading(self.head(hidden), input_ids, lengths)

    @torch.no_grad()
    def louder_(self) -> None:
        """Scale the head up: random weights are as good as even, whatever they read."""
        self.head.weight.mul_(20)

    @torch.no_grad()
    def entropy(
        self, ids: Int[Tensor, "batch bytes"], memory: dict[str, Any] | None = None
    ) -> Float[Tensor, "batch bytes"]:
        """Return the entropy of the byte behind each, in nats; `memory` goes with a text that grows, empty at first."""
        first = not memory
        if memory is not None and first:
            memory["cache"] = DynamicCache()
        start = ids.new_full((len(ids), int(first)), 256)
        states = over_rows(self.blocks, self.bytes(torch.cat([start, ids], 1)), (memory or {}).get("cache"))
        log = self.head(states[:, int(first) :]).float().log_softmax(-1)
        return -(log.exp() * log).sum(-1)

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`."""
        length = input_ids.shape[1]
        return stack_flops(self.blocks, 1.0, (length + 1) / 2) + 2 * self.head.weight.numel()

    def symbols(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.symbols`."""
        return list(text)

    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """See `ByteLanguageModel.open_text`."""
        return OpenRow(self.bytes, self.blocks, self.head, [256, *prompt], SINGLE, use_cache)


class BPETransformerConfig(LMConfig):
    """Sizes of a transformer over BPE tokens, and its tokenizer.json as a text."""

    model_type = "mintage-bpe-transformer"
    sizes: ClassVar = {"width": 2, "layers": 1, "heads": 1}

    others: ClassVar = ("tokenizer",)

    width, layers, heads = 232, 4, 4
    tokenizer = ""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class BPETransformer(ByteLanguageModel):
    """A Llama over byte-level BPE tokens with tied embeddings; a token's cost is spread over its bytes.

    What a byte costs depends on how the text behind it is cut, so this rival, alone here, breaks the laws of causality.
    """

    config_class = BPETransformerConfig

    def __init__(self, config: BPETransformerConfig) -> None:
        super().__init__(config)
        self.pairs = BytePairs(config.tokenizer)
        self.tokens = nn.Embedding(len(self.pairs.tokens) + 1, config.width)  # the last is the start
        self.blocks = stack(config.width, config.layers, config.heads)
        self.post_init()

    @classmethod
    def tiny(cls) -> BPETransformer:
        """See `ByteLanguageModel.tiny`."""
        learnt = BytePairs.train(["the sea and the moon and the tides"] * 4, 270)
        config = BPETransformerConfig(width=16, layers=2, heads=2, tokenizer=learnt.tokenizer.to_str())
        return seeded(cls, config)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits of all tokens."""
        return hidden @ self.tokens.weight[:-1].T

    def forward(self, input_ids: Int[Tensor, "batch bytes"], attention_mask: Tensor | None = None) -> Reading:
        """See `ByteLanguageModel.forward`."""
        lengths = lengths_of(input_ids, attention_mask)
        cut = [self.pairs.encode(bytes(row[:n])) for row, n in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
        start = len(self.pairs.tokens)
        rows = [torch.tensor([start, *row], device=input_ids.device) for row in cut]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        logits = self.head(over_rows(self.blocks, self.tokens(ids[:, :-1])))
        counts = torch.tensor([len(row) for row in cut], dtype=torch.long, device=input_ids.device)
        by_token = byte_reading(logits, ids[:, 1:], counts)
        sizes = torch.tensor([len(self.pairs.tokens[i]) for row in cut for i in row], dtype=torch.long)
        sizes = sizes.to(input_ids.device)
        in_row, in_text = real(counts, ids.shape[1] - 1), real(lengths, input_ids.shape[1])
        nats = (by_token.nats[in_row] / sizes).repeat_interleave(sizes)
        right = by_token.right[in_row].repeat_interleave(sizes)
        full = torch.zeros(in_text.shape, device=input_ids.device)
        return Reading(
            loss=by_token.loss,
            nats=full.masked_scatter(in_text, nats),
            right=torch.zeros_like(in_text).masked_scatter(in_text, right),
            told={"bytes per token": float(lengths.sum()) / max(len(sizes), 1)},
        )

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`."""
        tokens = sum(len(self.pairs.encode(bytes(row))) for row in input_ids.tolist())
        share, per_row = tokens / input_ids.numel(), tokens / len(input_ids)
        head = 2 * (len(self.pairs.tokens)) * self.config.width
        return stack_flops(self.blocks, share, (per_row + 1) / 2) + share * head

    def symbols(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.symbols`."""
        return self.pairs.encode(text)

    def cuts(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.cuts`."""
        sizes = [len(self.pairs.tokens[token]) for token in self.symbols(text)]
        return [sum(sizes[:number]) for number in range(len(sizes))]

    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """See `ByteLanguageModel.open_text`; a prompt that ends within a word is cut as it is."""
        begun = [len(self.pairs.tokens), *self.pairs.encode(prompt)]
        return OpenRow(self.tokens, self.blocks, self.head, begun, self.pairs.tokens, use_cache)


class DynamicPoolingConfig(MagnetConfig):
    """Sizes of dynamic token pooling: MAGNET's, with one share for all bytes."""

    model_type = "mintage-dynamic-pooling"

    scripts: Any = ((ANY, 0.2),)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class DynamicPooling(Magnet):
    """Segments that are learnt, by one predictor for all scripts (arXiv 2211.09761)."""

    config_class = DynamicPoolingConfig

    @classmethod
    def tiny(cls) -> DynamicPooling:
        """See `ByteLanguageModel.tiny`."""
        return seeded(cls, DynamicPoolingConfig(width=16, byte_layers=1, layers=2, heads=2))


class EntropyPatchesConfig(SegmentConfig):
    """Sizes of a model over entropy patches.

    Parameters
    ----------
    width, byte_layers, layers, heads
        See `SegmentConfig`.
    small_width, small_layers, small_heads
        Of the transformer over bytes that finds where patches end.
    threshold
        Nats; a patch ends where that of the next byte is above.
    """

    model_type = "mintage-entropy-patches"
    sizes: ClassVar = {**SegmentConfig.sizes, "small_width": 2, "small_layers": 1, "small_heads": 1}
    others: ClassVar = ("threshold",)

    small_width, small_layers, small_heads, threshold = 64, 2, 4, 1.5

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class EntropyPatches(SegmentModel):
    """Patches that end where a small model of bytes is unsure of the next one, as BLT's do (arXiv 2412.09871).

    Patches are means and are added to bytes, as in the other models over segments here, where BLT attends across; it
    has hashes of byte n-grams, too.
    """

    config_class = EntropyPatchesConfig

    def __init__(self, config: EntropyPatchesConfig) -> None:
        super().__init__(config)
        sizes = (config.small_width, config.small_layers, config.small_heads)
        self.small = ByteTransformer(
            ByteTransformerConfig(**dict(zip(("width", "layers", "heads"), sizes, strict=True)))
        )
        self.small.requires_grad_(False)  # it is learnt before
        self.post_init()

    @classmethod
    def tiny(cls) -> EntropyPatches:
        """See `ByteLanguageModel.tiny`; about half of the places are above the threshold."""
        made = seeded(cls, EntropyPatchesConfig(width=16, byte_layers=1, layers=2, heads=2, **TINY_SMALL))
        made.small.louder_()
        return made

    def entropy(
        self, ids: Int[Tensor, "batch bytes"], memory: dict[str, Any] | None = None
    ) -> Float[Tensor, "batch bytes"]:
        """Return the small model's entropy of the byte behind each, in nats; `memory` as in `SegmentModel.ends`."""
        return self.small.entropy(ids, memory)

    def ends(
        self,
        hidden: Float[Tensor, "batch bytes width"],
        ids: Int[Tensor, "batch bytes"],
        seen: Bool[Tensor, "batch bytes"],
        memory: dict[str, Any] | None = None,
    ) -> Ends:
        """See `SegmentModel.ends`."""
        return Ends(((self.entropy(ids, memory) > self.config.threshold) & seen).float())

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`; the small model's are among them."""
        return super().flops(input_ids) + self.small.flops(input_ids)


register(ByteTransformerConfig, ByteTransformer)
register(BPETransformerConfig, BPETransformer)
register(DynamicPoolingConfig, DynamicPooling)
register(EntropyPatchesConfig, EntropyPatches)

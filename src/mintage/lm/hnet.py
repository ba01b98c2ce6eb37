"""A peer: H-Net's dynamic chunking (arXiv 2507.07955) as the package ``h-net-dynamic-chunking`` has it.

Its ``DynamicSequenceChunker`` begins a chunk at a byte whose state is unlike the one before it, gives the first state
of each chunk to the blocks over chunks, smooths what comes out and hands it to all bytes of the chunk; a loss holds the
mean length. The stacks around it are those of the other models here, so that only the chunking differs.

Version 0.5.19 weighs a chunk by the probability of its beginning *before* the blocks over chunks; the paper's
smoothing (eq. 5) weighs what comes out of them. Needs ``pip install 'mintage[lm]'``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from mintage.errors import UserError, missing_extra
from mintage.lm.contract import ByteLanguageModel, LMConfig, OpenText, Reading, register
from mintage.lm.core.open_row import SINGLE
from mintage.lm.core.reading import byte_reading, lengths_of, seeded
from mintage.lm.core.stack import over_rows, stack, stack_flops

__all__ = ["HNet", "HNetConfig"]


class HNetConfig(LMConfig):
    """Sizes of a model over dynamic chunks.

    Parameters
    ----------
    width, heads
        Of all three stacks.
    byte_layers
        Blocks over bytes before chunking, and as many behind.
    layers
        Blocks over chunks.
    chunk
        Bytes of a chunk that the loss asks for, on average; above 1.

    Raises
    ------
    UserError
        A size is out of range.
    """

    model_type = "mintage-h-net"
    sizes: ClassVar = {"width": 2, **dict.fromkeys(("byte_layers", "layers", "heads"), 1)}
    others: ClassVar = ("chunk",)

    width, byte_layers, layers, heads, chunk = 128, 1, 11, 4, 5.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(self.chunk, int | float) or not 1 < self.chunk < float("inf"):
            raise UserError(f"chunk={self.chunk!r} is out of range; pass bytes per chunk above 1, e.g. 5")


class HNet(ByteLanguageModel):
    """Bytes in chunks that are learnt; the first byte is predicted from a learnt start, a part of the first chunk.

    Raises
    ------
    UserError
        The package is not installed.
    """

    config_class = HNetConfig

    def __init__(self, config: HNetConfig) -> None:
        super().__init__(config)
        try:
            from h_net_dynamic_chunking import DynamicSequenceChunker  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise missing_extra("h-net-dynamic-chunking", "lm") from None
        self.bytes = nn.Embedding(257, config.width)  # the last is the start
        self.reader = stack(config.width, config.byte_layers, config.heads)
        self.chunker = DynamicSequenceChunker(
            config.width, target_avg_token_length=float(config.chunk), handle_residual_proj=True
        )
        self.blocks = stack(config.width, config.layers, config.heads)
        self.writer = stack(config.width, config.byte_layers, config.heads)
        self.head = nn.Linear(config.width, 256, bias=False)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        if all(module is not own for own in self.chunker.modules()):  # which the package makes
            super()._init_weights(module)

    @classmethod
    def tiny(cls) -> HNet:
        """See `ByteLanguageModel.tiny`."""
        return seeded(cls, HNetConfig(width=16, layers=2, heads=2))

    def forward(self, input_ids: Int[Tensor, "batch bytes"], attention_mask: Tensor | None = None) -> Reading:
        """See `ByteLanguageModel.forward`."""
        lengths = lengths_of(input_ids, attention_mask)
        states = self._states(input_ids)
        (chunks, spread, ratio), found = self.chunker(states, lens=lengths + 1, return_intermediates=True)
        heard = spread(over_rows(self.blocks, chunks))
        logits = self.head(over_rows(self.writer, heard[:, :-1]))
        count = max(float(found.boundary_mask[:, 1:].sum()), 1.0)
        return byte_reading(logits, input_ids, lengths, ratio, **{"bytes per segment": float(lengths.sum()) / count})

    def _states(self, ids: Int[Tensor, "batch bytes"]) -> Float[Tensor, "batch places width"]:
        start = ids.new_full((len(ids), 1), 256)
        return over_rows(self.reader, self.bytes(torch.cat([start, ids], 1)))

    @torch.no_grad()
    def begins(self, ids: Int[Tensor, "batch bytes"]) -> Bool[Tensor, "batch places"]:
        """Return where chunks begin, the start's place before those of the bytes."""
        return self.chunker(self._states(ids), return_intermediates=True)[1].boundary_mask

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`."""
        length = input_ids.shape[1]
        chunks = float(self.begins(input_ids).sum(1).float().mean())
        routing = sum(m.weight.numel() for m in self.chunker.modules() if isinstance(m, nn.Linear))
        return (
            stack_flops(self.reader, 1.0, (length + 1) / 2)
            + stack_flops(self.writer, 1.0, (length + 1) / 2)
            + stack_flops(self.blocks, chunks / length, (chunks + 1) / 2)
            + 2 * (routing + self.head.weight.numel())
        )

    def symbols(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.symbols`."""
        return list(text)

    def cuts(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.cuts`: where chunks begin; the first holds the start, too."""
        if not text:
            return []
        begins = self.begins(torch.tensor([list(text)], device=self.device))[0, 1:]
        return [0, *(place for place in begins.nonzero()[:, 0].tolist() if place)]

    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """See `ByteLanguageModel.open_text`."""
        return _OpenChunks(self, prompt, use_cache)


class _OpenChunks(OpenText):
    """Keeps keys and values of the three stacks, and what the chunker goes on from."""

    def __init__(self, model: HNet, prompt: bytes, use_cache: bool) -> None:
        self.model, self.text, self.use_cache = model, [256, *prompt], use_cache
        self._read(self.text)

    @torch.no_grad()
    def _read(self, new: list[int]) -> None:
        model = self.model
        if len(new) == len(self.text):  # from the beginning
            self.caches = [DynamicCache() if self.use_cache else None for _ in range(3)]
            self.routed, self.spread = ({}, {}) if self.use_cache else (None, None)
        states = over_rows(model.reader, model.bytes(torch.tensor([new], device=model.device)), self.caches[0])
        (chunks, spread, _), _ = model.chunker(states, return_intermediates=True, cache=self.routed)
        heard = spread(over_rows(model.blocks, chunks, self.caches[1]), cache=self.spread)
        self._logits = model.head(over_rows(model.writer, heard, self.caches[2])[0, -1])

    @property
    def logits(self) -> Float[Tensor, " symbols"]:
        """See `OpenText.logits`."""
        return self._logits

    def push(self, symbol: int) -> bytes:
        """See `OpenText.push`."""
        self.text.append(symbol)
        self._read([symbol] if self.use_cache else self.text)
        return SINGLE[symbol]


register(HNetConfig, HNet)

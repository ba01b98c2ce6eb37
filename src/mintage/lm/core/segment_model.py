"""Language models that pool bytes into segments: a byte stack, a stack over segments, a byte stack.

Every byte's state may end a segment; the mean state of a segment that has ended goes to the stack over segments, behind
a null vector, and what comes out is added to the states of all bytes from the segment's last one on, which the second
byte stack reads. The first byte is predicted from a learnt start, which is in no segment. Where segments end is a
method's (`SegmentModel.ends`); it must look at no later byte. While writing, the byte stacks go on byte by byte, the
stack over segments whenever one has ended.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from mintage.lm.contract import ByteLanguageModel, LMConfig, OpenText, Reading
from mintage.lm.core.boundaries import pool, unpool
from mintage.lm.core.open_row import SINGLE
from mintage.lm.core.reading import byte_reading, lengths_of, real
from mintage.lm.core.stack import over_rows, stack, stack_flops

__all__ = ["Ends", "SegmentConfig", "SegmentModel"]


class SegmentConfig(LMConfig):
    """Sizes of a model over segments.

    Parameters
    ----------
    width, heads
        Of all three stacks.
    byte_layers
        Blocks of the byte stack before pooling, and as many of the one behind.
    layers
        Blocks over segments.
    """

    sizes: ClassVar = {"width": 2, **dict.fromkeys(("byte_layers", "layers", "heads"), 1)}

    width, byte_layers, layers, heads = 128, 2, 4, 4

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


@dataclass
class Ends:
    """Where segments end.

    Parameters
    ----------
    hard
        1 where a byte is the last of a segment, else 0, shape (batch, bytes); may carry a gradient.
    extra
        Joins the loss.
    told
        Metrics worth a log.
    """

    hard: Float[Tensor, "batch bytes"]
    extra: Tensor | float = 0.0
    told: dict[str, float] = field(default_factory=dict)


class SegmentModel(ByteLanguageModel):
    """A model over segments of bytes."""

    def __init__(self, config: SegmentConfig) -> None:
        super().__init__(config)
        self.bytes = nn.Embedding(257, config.width)  # the last is the start
        self.reader = stack(config.width, config.byte_layers, config.heads)
        self.null = nn.Parameter(torch.zeros(config.width))  # what is said before any segment has ended
        self.norm = nn.LayerNorm(config.width)
        self.blocks = stack(config.width, config.layers, config.heads)
        self.writer = stack(config.width, config.byte_layers, config.heads)
        self.head = nn.Linear(config.width, 256, bias=False)

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.normal_(self.null)

    @abstractmethod
    def ends(
        self,
        hidden: Float[Tensor, "batch bytes width"],
        ids: Int[Tensor, "batch bytes"],
        seen: Bool[Tensor, "batch bytes"],
        memory: dict[str, Any] | None = None,
    ) -> Ends:
        """Say where segments end, from the first byte stack's states; filling (not in `seen`) ends none.

        `memory` is empty at a text's beginning and goes with it while it grows: then only new bytes come.
        """

    def forward(self, input_ids: Int[Tensor, "batch bytes"], attention_mask: Tensor | None = None) -> Reading:
        """See `ByteLanguageModel.forward`."""
        lengths = lengths_of(input_ids, attention_mask)
        seen = real(lengths, input_ids.shape[1])
        states = self._states(input_ids)
        found = self.ends(states[:, 1:], input_ids, seen)
        said = over_rows(self.blocks, self.norm(pool(states[:, 1:], found.hard, self.null)))
        heard = states + torch.cat([said[:, :1], unpool(said, found.hard)], 1)
        logits = self.head(over_rows(self.writer, heard[:, :-1]))
        count = max(float(found.hard.detach().sum()), 1.0)
        told = {"bytes per segment": float(lengths.sum()) / count, **found.told}
        return byte_reading(logits, input_ids, lengths, found.extra, **told)

    def _states(self, ids: Int[Tensor, "batch bytes"]) -> Float[Tensor, "batch places width"]:
        start = ids.new_full((len(ids), 1), 256)
        return over_rows(self.reader, self.bytes(torch.cat([start, ids], 1)))

    @torch.no_grad()
    def segment_ends(self, ids: Int[Tensor, "batch bytes"], mask: Tensor | None = None) -> Bool[Tensor, "batch bytes"]:
        """Return which bytes are the last of a segment."""
        seen = real(lengths_of(ids, mask), ids.shape[1])
        return self.ends(self._states(ids)[:, 1:], ids, seen).hard > 0.5

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`; those of `ends` are its method's to add."""
        length = input_ids.shape[1]
        rows = float(self.segment_ends(input_ids).sum(1).float().mean()) + 1  # the null vector's place
        return (
            stack_flops(self.reader, 1.0, (length + 1) / 2)
            + stack_flops(self.writer, 1.0, (length + 1) / 2)
            + stack_flops(self.blocks, rows / length, (rows + 1) / 2)
            + 2 * self.head.weight.numel()
        )

    def symbols(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.symbols`."""
        return list(text)

    def cuts(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.cuts`: where segments begin."""
        if not text:
            return []
        ends = self.segment_ends(torch.tensor([list(text)], device=self.device))[0]
        return [0, *(place + 1 for place in ends[:-1].nonzero()[:, 0].tolist())]

    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """See `ByteLanguageModel.open_text`."""
        return _OpenSegments(self, prompt, use_cache)


class _OpenSegments(OpenText):
    """Keeps the states of the bytes since the last end, and what the stack over segments said last."""

    def __init__(self, model: SegmentModel, prompt: bytes, use_cache: bool) -> None:
        self.model, self.text, self.use_cache = model, list(prompt), use_cache
        self._begin()

    def _begin(self) -> None:
        self.caches = [DynamicCache() if self.use_cache else None for _ in range(3)]
        self.memory: dict[str, Any] = {}
        nothing = torch.zeros(1, 0, self.model.config.width, device=self.model.device)
        self.open, self.said = nothing, nothing
        self._read([256, *self.text])

    @torch.no_grad()
    def _read(self, new: list[int]) -> None:
        model, first = self.model, int(new[0] == 256)
        ids = torch.tensor([new], device=model.device)
        states = over_rows(model.reader, model.bytes(ids), self.caches[0])
        fresh, ids = states[:, first:], ids[:, first:]
        hard = model.ends(fresh, ids, torch.ones_like(ids, dtype=torch.bool), self.memory).hard
        begun = torch.cat([self.open, fresh], 1)
        groups = pool(begun, nn.functional.pad(hard, (self.open.shape[1], 0)), model.null)
        said = over_rows(model.blocks, model.norm(groups[:, 1 - first :]), self.caches[1])
        said = torch.cat([self.said, said], 1)
        heard = unpool(said, nn.functional.pad(hard, (first, 0)))
        self._logits = model.head(over_rows(model.writer, states + heard, self.caches[2])[0, -1])
        ended = hard[0].nonzero()[:, 0]
        self.open = begun if not len(ended) else fresh[:, int(ended[-1]) + 1 :]
        self.said = said[:, -1:]

    @property
    def logits(self) -> Float[Tensor, " symbols"]:
        """See `OpenText.logits`."""
        return self._logits

    def push(self, symbol: int) -> bytes:
        """See `OpenText.push`."""
        self.text.append(symbol)
        if self.use_cache:
            self._read([symbol])
        else:
            self._begin()
        return SINGLE[symbol]

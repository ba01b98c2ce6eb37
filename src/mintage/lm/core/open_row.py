"""Writing with a model whose stack runs over one row of symbols."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel

from mintage.lm.contract import OpenText
from mintage.lm.core.stack import over_rows

__all__ = ["SINGLE", "OpenRow"]

SINGLE = [bytes([byte]) for byte in range(256)]
"""What symbols write where each is a byte."""


class OpenRow(OpenText):
    """Feeds a stack symbol by symbol.

    Parameters
    ----------
    embed, blocks, head
        Symbols to vectors, a causal stack, states to logits.
    seen
        Symbols read so far, the start first.
    written
        What each symbol writes.
    use_cache
        Whether keys and values are kept; else all is read again.
    """

    def __init__(
        self,
        embed: nn.Module,
        blocks: LlamaModel,
        head: Callable[[Tensor], Tensor],
        seen: Sequence[int],
        written: Sequence[bytes],
        use_cache: bool,
    ) -> None:
        self.embed, self.blocks, self.head, self.written = embed, blocks, head, written
        self.seen = list(seen)
        self.cache = DynamicCache() if use_cache else None
        self._read(self.seen)

    @torch.no_grad()
    def _read(self, ids: Sequence[int]) -> None:
        embedded = self.embed(torch.tensor([list(ids)], device=self.blocks.device))
        self._logits = self.head(over_rows(self.blocks, embedded, self.cache)[0, -1])

    @property
    def logits(self) -> Float[Tensor, " symbols"]:
        """See `OpenText.logits`."""
        return self._logits

    def push(self, symbol: int) -> bytes:
        """See `OpenText.push`."""
        self.seen.append(symbol)
        self._read(self.seen if self.cache is None else [symbol])
        return self.written[symbol]

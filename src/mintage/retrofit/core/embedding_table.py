"""Rows of tokens that are made when first needed, and kept for a while."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.retrofit.core.embeddings import Parts, Provider

__all__ = ["EmbeddingTable", "table_for"]


class EmbeddingTable:
    """Rows of tokens, made when first needed, in a matrix of fixed size from which the least recently used go first.

    Parameters
    ----------
    make
        The rows of tokens given as bytes, [tokens, width]; a row may not depend on the others asked for with it.
    width
        Of a row.
    capacity
        Rows held; at least the distinct new tokens of a batch.

    Attributes
    ----------
    made, seconds
        Rows made so far, and the time that took.
    """

    def __init__(
        self,
        make: Callable[[Sequence[bytes]], Float[Tensor, "tokens width"]],
        width: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1:
            raise UserError(f"cache={capacity} rows; pass at least 1, e.g. 5000")
        self.rows = torch.zeros(capacity, width, dtype=dtype, device=device)
        self._make = make
        self._places: OrderedDict[bytes, int] = OrderedDict()  # the least recently used first
        self.made, self.seconds = 0, 0.0

    def __contains__(self, token: bytes) -> bool:
        return token in self._places

    def forget(self) -> None:
        """Drop all rows."""
        self._places.clear()

    def places(self, tokens: Sequence[bytes]) -> Int[Tensor, " tokens"]:
        """Return where in `rows` the tokens of a batch stand, making those that are missing.

        Raises
        ------
        UserError
            The batch has more distinct tokens than there are rows.
        """
        wanted, capacity = dict.fromkeys(tokens), len(self.rows)
        if len(wanted) > capacity:
            raise UserError(f"cache={capacity} rows, but this batch has {len(wanted)} new tokens; pass a larger cache")
        missing = []
        for token in wanted:  # what the batch needs moves to the end, out of reach
            if token in self._places:
                self._places.move_to_end(token)
            else:
                missing.append(token)
        if missing:
            began = time.perf_counter()
            rows = self._make(missing)
            free = range(len(self._places), min(len(self._places) + len(missing), capacity))
            taken = [*free, *(self._places.popitem(last=False)[1] for _ in range(len(missing) - len(free)))]
            self.rows[taken] = rows.to(self.rows)
            self._places.update(zip(missing, taken, strict=True))
            self.made += len(missing)
            self.seconds += time.perf_counter() - began
        return torch.tensor([self._places[token] for token in tokens], dtype=torch.long, device=self.rows.device)


def table_for(model: Any, provider: Provider, source: Parts, capacity: int) -> EmbeddingTable:
    """Make a table of the input embeddings that a provider makes for a model."""
    embedding = model.get_input_embeddings()
    scale = float(getattr(embedding, "embed_scale", 1.0))  # Gemma scales what it looks up
    weight = embedding.weight

    def make(tokens: Sequence[bytes]) -> Tensor:
        return provider.rows(source, tokens).input.to(weight) * scale

    return EmbeddingTable(make, weight.shape[1], capacity, dtype=weight.dtype, device=weight.device)

"""Rows of types beside a causal language model: vectors that it reads in place of tokens, and logits of its states."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["NO_TYPE", "TypeRows", "type_nats"]

NO_TYPE = -1
"""In place of a type where a text has none; it costs nothing."""


class TypeRows(nn.Module):
    """What a vocabulary's rows would be for types; tied where the model's are.

    Parameters
    ----------
    model
        Gives widths, and how large its own rows are.
    count
        Types.
    reads
        Whether types are read, too; else there are only logits of them.
    """

    rows: Tensor | None
    head: Tensor | None

    def __init__(self, model: Any, count: int, *, reads: bool = True) -> None:
        super().__init__()
        tokens, head = model.get_input_embeddings(), model.get_output_embeddings()
        some = torch.arange(min(tokens.weight.shape[0], 512), device=tokens.weight.device)
        with torch.no_grad():
            read = tokens(some)  # as large as the model's blocks see them
            wide = head.weight.shape[1]
            is_tied = reads and tokens.weight is head.weight and wide == read.shape[1]
            rows = torch.randn(count, read.shape[1]).to(read) * read.std() if reads else None
            own = None if is_tied else torch.randn(count, wide).to(read) * head.weight.std()
        self.register_parameter("rows", None if rows is None else nn.Parameter(rows))
        self.register_parameter("head", None if own is None else nn.Parameter(own))

    def embed(self, types: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        """Return the vectors of types."""
        assert self.rows is not None
        return self.rows[types]

    def forward(self, states: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens types"]:
        """Return the logits of types."""
        table = self.rows if self.head is None else self.head
        assert table is not None
        return states @ table.T

    @staticmethod
    def read(model: Any, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Read a batch, and return the model's logits and the states that it reads them off."""
        held: list[Tensor] = []
        handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: held.append(given[0]))
        try:
            logits = model(**inputs, use_cache=False).logits
        finally:
            handle.remove()
        return logits, held[0]


def type_nats(
    logits: Float[Tensor, "batch tokens types"],
    types: Int[Tensor, "batch tokens"],
    others: Float[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean nats of types; `others` is the log-sum of what the softmax is over beside them."""
    total = logits.logsumexp(-1)
    total = total if others is None else torch.logaddexp(total, others)
    given = types != NO_TYPE
    nats = (total - logits.gather(-1, types.clamp(min=0)[..., None])[..., 0]) * given
    return nats.sum() / given.sum().clamp(min=1)

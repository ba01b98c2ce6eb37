"""Embeddings that are drawn anew for every sequence: a symbol is the same vector inside one and means nothing across.

Lexinvariant language models, arXiv 2305.16349, section 3. The table that embeds also reads out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mintage.errors import UserError

__all__ = ["RandomEmbedding", "check_portion"]


def check_portion(name: str, value: float) -> None:
    """Refuse what is no share.

    Raises
    ------
    UserError
        It is outside [0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name}={value!r} is outside [0, 1]; pass a share, e.g. 1 or 0.2")


class RandomEmbedding(nn.Module):
    """Tables of Gaussian rows, and of learnt ones where `rate` is below 1.

    Parameters
    ----------
    num, dim
        Symbols, and the width of their vectors.
    rate
        Share of the symbols that are random in a sequence: 1 is lexinvariant, 0 an ordinary embedding.
    whole
        Share of the sequences in which all are random, whatever the rate.

    Raises
    ------
    UserError
        A share is outside [0, 1].
    """

    def __init__(self, num: int, dim: int, rate: float = 1.0, whole: float = 0.0) -> None:
        super().__init__()
        check_portion("rate", rate)
        check_portion("whole", whole)
        self.num, self.dim, self.rate, self.whole = num, dim, rate, whole
        self.learned = None if rate == 1 or whole == 1 else nn.Parameter(torch.randn(num, dim))

    def draw(
        self, batch: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "batch num dim"], Bool[Tensor, "batch num"]]:
        """Return random tables and which of their rows are used, on the CPU in float32."""
        tables = torch.randn(batch, self.num, self.dim, generator=generator)
        chosen = torch.rand(batch, self.num, generator=generator) < self.rate
        return tables, chosen | (torch.rand(batch, 1, generator=generator) < self.whole)

    def mix(
        self, tables: Float[Tensor, "batch num dim"], chosen: Bool[Tensor, "batch num"]
    ) -> Float[Tensor, "batch num dim"]:
        """Return tables with learnt rows where random ones are not chosen."""
        return tables if self.learned is None else torch.where(chosen[..., None], tables, self.learned)

    def sample(
        self, batch: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "batch num dim"]:
        """Draw a table for every sequence of a batch; they follow from the generator (default: torch's own)."""
        tables, chosen = self.draw(batch, generator)
        return self.mix(tables.to(device), chosen.to(device))

    @staticmethod
    def embed(
        ids: Int[Tensor, "batch places"], table: Float[Tensor, "batch num dim"]
    ) -> Float[Tensor, "batch places dim"]:
        """Look symbols up in their sequence's table."""
        return table.gather(1, ids[..., None].expand(-1, -1, table.shape[2]))

    @staticmethod
    def logits(
        hidden: Float[Tensor, "batch places dim"], table: Float[Tensor, "batch num dim"]
    ) -> Float[Tensor, "batch places num"]:
        """Compare states with every vector of their sequence's table."""
        return hidden @ table.transpose(1, 2)

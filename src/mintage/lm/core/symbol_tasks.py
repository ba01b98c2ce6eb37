"""Tasks that need no meaning: what stands beside what, and in which order (arXiv 2305.16349, section 4.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mintage.errors import UserError

__all__ = ["SymbolTask", "lookup_task", "permutation_task"]


class SymbolTask(NamedTuple):
    """Texts that ask for their last symbols.

    Parameters
    ----------
    texts
        Symbols, question and answer, shape (texts, length).
    answer
        How many symbols at the end are asked for.
    """

    texts: Int[Tensor, "texts length"]
    answer: int


def _distinct(count: int, many: int, symbols: int, generator: torch.Generator | None) -> Tensor:
    if many > symbols:
        raise UserError(f"a task of {many} different symbols does not fit an alphabet of {symbols}; ask for fewer")
    return torch.rand(count, symbols, generator=generator).argsort(1)[:, :many]


def lookup_task(
    count: int, pairs: int, symbols: int, generator: torch.Generator | None = None, shown: int = 1
) -> SymbolTask:
    """Make texts of pairs of a key and its value, and a key whose value is asked for.

    Parameters
    ----------
    count, pairs
        Texts, and pairs of each; keys and values are all different.
    symbols
        Of the alphabet.
    generator
        Draws them.
    shown
        How often every pair is shown, in a new order each time.

    Raises
    ------
    UserError
        The alphabet is too small, or a number below 1.
    """
    if min(pairs, shown) < 1:
        raise UserError(f"pairs={pairs}, shown={shown}: pass at least 1 of each")
    pairs_of = _distinct(count, 2 * pairs, symbols, generator).view(count, pairs, 2)
    orders = torch.stack([torch.rand(count, pairs, generator=generator).argsort(1) for _ in range(shown)], 1).flatten(1)
    asked = torch.randint(pairs, (count, 1), generator=generator)
    order = torch.cat([orders, asked], 1)
    return SymbolTask(pairs_of.gather(1, order[..., None].expand(-1, -1, 2)).flatten(1), 1)


def permutation_task(
    count: int, examples: int, symbols: int, generator: torch.Generator | None = None, size: int = 3
) -> SymbolTask:
    """Make texts that show groups of new symbols, each followed by itself in the text's own order; the last is asked.

    Raises
    ------
    UserError
        The alphabet is too small, or a number below 1.
    """
    if examples < 1 or size < 2:
        raise UserError(f"examples={examples}, size={size}: pass at least 1 and 2")
    groups = _distinct(count, size * (examples + 1), symbols, generator).view(count, examples + 1, size)
    order = torch.rand(count, size, generator=generator).argsort(1)
    moved = groups.gather(2, order[:, None].expand_as(groups))
    return SymbolTask(torch.cat([groups, moved], 2).flatten(1), size)

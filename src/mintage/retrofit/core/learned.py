"""What the heuristics of tokenizer transfer share: copying what is known, and mixing rows by vectors of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mintage.errors import UserError
from mintage.options import option
from mintage.retrofit.core.embeddings import Composed, EmbeddingTransfer, Parts, PartsTransfer
from mintage.retrofit.core.mixtures import static_embeddings
from mintage.retrofit.core.word_vectors import as_vectors

__all__ = ["ByVectors", "copied"]


def _known(source: Parts, tokens: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Positions of the tokens that the model knows, and what they are called there."""
    pairs = [
        (place, source.vocabulary.ids[token]) for place, token in enumerate(tokens) if token in source.vocabulary.ids
    ]
    both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def copied(source: Parts, tokens: Sequence[bytes], fill: Callable[[Tensor], Tensor]) -> Composed:
    """Copy what is known; the rest by ``fill(weight)`` [tokens, width]."""
    positions, names = _known(source, tokens)

    def made(weight: Tensor) -> Tensor:
        rows = fill(weight).to(weight.dtype)
        rows[positions] = weight[names]
        return rows

    first = made(source.input)
    return Composed(first, first if source.tied else made(source.output))


@dataclass(frozen=True, kw_only=True, eq=False)
class ByVectors(EmbeddingTransfer):
    """A method that compares tokens by vectors: given ones, else learnt from texts that say which occur together."""

    dim: int = option(100, "Dimensions of the vectors that texts give.", least=1)
    window: int = option(5, "Tokens to each side that count as near.", least=1)
    vectors: Any = option(None, "Vectors by the bytes of a token; left out, `fitted` learns them from texts.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vectors is not None:
            object.__setattr__(self, "vectors", as_vectors(self.vectors, "vectors"))

    @property
    def reads_texts(self) -> bool:
        """Whether there are no vectors yet."""
        return self.vectors is None

    def fitted(self, source: Parts, tokens: Sequence[bytes], texts: Sequence[Sequence[int]]) -> EmbeddingTransfer:
        """Learn the vectors of these tokens, unless some are given."""
        if self.vectors is not None:
            return self
        made = static_embeddings(texts, len(tokens), dim=self.dim, window=self.window)
        return replace(self, vectors=dict(zip(tokens, made, strict=True)))

    def vectors_of(self, tokens: Sequence[bytes]) -> Tensor:
        """Return the tokens' vectors; zeros for one without."""
        if self.vectors is None:
            raise UserError(
                f"{type(self).__name__} has learnt no vectors yet; call fitted(source, tokens, texts) first"
            )
        absent = torch.zeros_like(next(iter(self.vectors.values())))
        return torch.stack([self.vectors.get(token, absent) for token in tokens])

    def split(self, source: Parts, tokens: Sequence[bytes]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors of all tokens and which have one; vectors of those that the model knows, and their names there."""
        vectors = self.vectors_of(tokens)
        positions, names = _known(source, list(self.vectors))
        held = self.vectors_of(list(self.vectors))
        seen = held[positions].norm(dim=-1) > 0
        if not bool(seen.any()):
            raise UserError("none of the tokens that the model knows occurs in the texts; pass more of them")
        return vectors, vectors.norm(dim=-1) > 0, held[positions[seen]], names[seen]

    def mixed(self, source: Parts, tokens: Sequence[bytes], mixture: Any, copying: bool = True) -> Composed:
        """Copy what is known (unless told not to), mix what has a vector; the rest are means of their parts."""
        device = source.input.device
        vectors, occurs, known, names = (tensor.to(device) for tensor in self.split(source, tokens))
        parts = PartsTransfer().rows(source, tokens)

        def fill(weight: Tensor) -> Tensor:
            rows = (parts.input if weight is source.input else parts.output).float().clone()
            for chunk in occurs.nonzero()[:, 0].split(2048):
                rows[chunk] = mixture(vectors[chunk], known, weight[names].float())
            return rows

        if copying:
            return copied(source, tokens, fill)
        first = fill(source.input).to(source.input.dtype)
        return Composed(first, first if source.tied else fill(source.output).to(source.output.dtype))

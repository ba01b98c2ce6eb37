"""Embeddings of new tokens without training a network: the baselines of tokenizer transfer.

`Lexical`, `MeanRow` and `FVT` look at a token's own bytes. `FOCUS`, `WECHSEL` and `OMP` learn from texts which tokens
occur together (`core.mixtures`), and write a new token as a mixture of ones that the model knows.

References: FVT (Gee et al., EMNLP 2022), FOCUS (Dobler and de Melo, EMNLP 2023), WECHSEL (Minixhofer et al., NAACL
2022), OMP (Goddard and Fernandes Neto, 2025, arXiv 2506.06607).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import option
from mintage.retrofit.core.embeddings import Composed, EmbeddingTransfer, Parts, PartsTransfer, mean_row
from mintage.retrofit.core.mixtures import focus_weights, nearest_mixture, pursuit, static_embeddings

__all__ = ["FOCUS", "FVT", "OMP", "WECHSEL", "Lexical", "MeanRow"]


def _known(source: Parts, tokens: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Positions of the tokens that the model knows, and what they are called there."""
    pairs = [
        (place, source.vocabulary.ids[token]) for place, token in enumerate(tokens) if token in source.vocabulary.ids
    ]
    both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _copied(source: Parts, tokens: Sequence[bytes], fill: Callable[[Tensor], Tensor]) -> Composed:
    """Copy what is known; the rest by ``fill(weight)`` [tokens, width]."""
    positions, names = _known(source, tokens)

    def made(weight: Tensor) -> Tensor:
        rows = fill(weight).to(weight.dtype)
        rows[positions] = weight[names]
        return rows

    first = made(source.input)
    return Composed(first, first if source.tied else made(source.output))


@dataclass(frozen=True, kw_only=True, eq=False)
class Lexical(EmbeddingTransfer):
    """Known tokens keep their rows; others are drawn with the rows' mean and deviation, dimension by dimension."""

    seed: int = option(0, "Of the draw.", least=0)

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens; a token's draw depends on its bytes alone."""
        seeds = [zlib.crc32(token) ^ self.seed for token in tokens]

        def fill(weight: Tensor) -> Tensor:
            mean, deviation = weight.float().mean(0), weight.float().std(0)
            draws = [torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(s)) for s in seeds]
            return mean + deviation * torch.stack(draws).to(weight.device)

        return _copied(source, tokens, fill)

    @classmethod
    def tiny(cls) -> Lexical:
        """Make one with the defaults."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanRow(EmbeddingTransfer):
    """Known tokens keep their rows; others get the mean of all."""

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return _copied(source, tokens, lambda weight: mean_row(weight).repeat(len(tokens), 1))

    @classmethod
    def tiny(cls) -> MeanRow:
        """Make one with the defaults."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class FVT(EmbeddingTransfer):
    """Every token gets the mean of the rows that its bytes are cut into: a known one its own."""

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return PartsTransfer().rows(source, tokens)

    @classmethod
    def tiny(cls) -> FVT:
        """Make one with the defaults."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Learned(EmbeddingTransfer):
    """A method that first learns from texts which tokens occur together."""

    reads_texts: ClassVar[bool] = True

    dim: int = option(100, "Dimensions of the vectors that texts give.", least=1)
    window: int = option(5, "Tokens to each side that count as near.", least=1)
    vectors: Any = option(None, "Those vectors, by token; `fitted` fills them in.")

    def fitted(self, source: Parts, tokens: Sequence[bytes], texts: Sequence[Sequence[int]]) -> EmbeddingTransfer:
        """Learn the vectors of these tokens."""
        made = static_embeddings(texts, len(tokens), dim=self.dim, window=self.window)
        return replace(self, vectors=dict(zip(tokens, made, strict=True)))

    def _vectors(self, tokens: Sequence[bytes]) -> Tensor:
        if self.vectors is None:
            raise UserError(
                f"{type(self).__name__} has learnt no vectors yet; call fitted(source, tokens, texts) first"
            )
        absent = torch.zeros_like(next(iter(self.vectors.values())))
        return torch.stack([self.vectors.get(token, absent) for token in tokens])

    def _split(self, source: Parts, tokens: Sequence[bytes]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Vectors of all tokens; which of them are known, seen in the texts, and their names in the model."""
        vectors = self._vectors(tokens)
        positions, names = _known(source, list(self.vectors))
        held = self._vectors(list(self.vectors))
        seen = held[positions].norm(dim=-1) > 0
        if not bool(seen.any()):
            raise UserError("none of the tokens that the model knows occurs in the texts; pass more of them")
        return vectors, vectors.norm(dim=-1) > 0, held[positions[seen]], names[seen]

    def _mixed(self, source: Parts, tokens: Sequence[bytes], mixture: Any) -> Composed:
        """Copy what is known, mix what occurs in the texts; the rest are means of their parts."""
        vectors, occurs, known, names = self._split(source, tokens)
        parts = PartsTransfer().rows(source, tokens)

        def fill(weight: Tensor) -> Tensor:
            rows = (parts.input if weight is source.input else parts.output).float().clone()
            for chunk in occurs.nonzero()[:, 0].split(2048):
                rows[chunk] = mixture(vectors[chunk], known, weight[names].float())
            return rows

        return _copied(source, tokens, fill)


@dataclass(frozen=True, kw_only=True, eq=False)
class FOCUS(_Learned):
    """A new token is a sparse mixture of tokens that both vocabularies have, by how similar their vectors are."""

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return self._mixed(source, tokens, lambda new, known, rows: focus_weights(new, known) @ rows)

    @classmethod
    def tiny(cls) -> FOCUS:
        """Make one of few dimensions."""
        return cls(dim=4)


@dataclass(frozen=True, kw_only=True, eq=False)
class WECHSEL(_Learned):
    """A new token is a mixture of its nearest known ones. (The paper's aligns vectors of words of two languages.)"""

    k: int = option(10, "Neighbours.", least=1)
    temperature: float = option(0.1, "The lower, the more the nearest outweigh the others.", above=0)

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return self._mixed(
            source,
            tokens,
            lambda new, known, rows: nearest_mixture(new, known, rows, k=self.k, temperature=self.temperature),
        )

    @classmethod
    def tiny(cls) -> WECHSEL:
        """Make one of few dimensions and neighbours."""
        return cls(dim=4, k=3)


@dataclass(frozen=True, kw_only=True, eq=False)
class OMP(_Learned):
    """A new token has the sparse coefficients that write its vector as a sum of known ones' vectors.

    The paper takes the vectors from a donor model of the new tokenizer; here they are learnt from texts."""

    sparsity: int = option(8, "Terms of the sum.", least=1)

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""

        def mixture(new: Tensor, known: Tensor, rows: Tensor) -> Tensor:
            # counted vectors are as long as their tokens are frequent, embeddings are not: only directions are matched
            new, known = functional.normalize(new, dim=-1), functional.normalize(known, dim=-1)
            places, weights = pursuit(new, known, sparsity=self.sparsity)
            return (weights[..., None] * rows[places]).sum(1)

        return self._mixed(source, tokens, mixture)

    @classmethod
    def tiny(cls) -> OMP:
        """Make one of few dimensions and terms."""
        return cls(dim=4, sparsity=2)

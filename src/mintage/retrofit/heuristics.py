"""Embeddings of new tokens without training a network: the baselines of tokenizer transfer.

`Lexical`, `MeanRow` and `FVT` look at a token's own bytes. `FOCUS`, `WECHSEL` and `OMP` learn from texts which tokens
occur together (`core.mixtures`), and write a new token as a mixture of ones that the model knows.

References: FVT (Gee et al., EMNLP 2022), FOCUS (Dobler and de Melo, EMNLP 2023), WECHSEL (Minixhofer et al., NAACL
2022), OMP (Goddard and Fernandes Neto, 2025, arXiv 2506.06607).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import option
from mintage.retrofit.core.embeddings import Composed, EmbeddingTransfer, Parts, PartsTransfer, mean_row
from mintage.retrofit.core.learned import ByVectors, copied
from mintage.retrofit.core.mixtures import focus_weights, nearest_mixture, pursuit
from mintage.retrofit.core.word_vectors import as_vectors

__all__ = ["FOCUS", "FVT", "OMP", "WECHSEL", "Lexical", "MeanRow"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lexical(EmbeddingTransfer):
    """Known tokens keep their rows; others are drawn with the rows' mean and deviation, dimension by dimension."""

    seed: int = option(0, "Of the draw.", least=0, below=2**63)

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens; a token's draw depends on its bytes alone."""
        seeds = [zlib.crc32(token) ^ self.seed for token in tokens]

        def fill(weight: Tensor) -> Tensor:
            mean, deviation = weight.float().mean(0), weight.float().std(0)
            draws = [torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(s)) for s in seeds]
            return mean + deviation * torch.stack(draws).to(weight.device)

        return copied(source, tokens, fill)

    @classmethod
    def tiny(cls) -> Lexical:
        """Make one with the defaults."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanRow(EmbeddingTransfer):
    """Known tokens keep their rows; others get the mean of all."""

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return copied(source, tokens, lambda weight: mean_row(weight).repeat(len(tokens), 1))

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
class FOCUS(ByVectors):
    """A new token is a sparse mixture of tokens that both vocabularies have, by how similar their vectors are."""

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return self.mixed(source, tokens, lambda new, known, rows: focus_weights(new, known) @ rows)

    @classmethod
    def tiny(cls) -> FOCUS:
        """Make one of few dimensions."""
        return cls(dim=4)


@dataclass(frozen=True, kw_only=True, eq=False)
class WECHSEL(ByVectors):
    """A new token is a mixture of its nearest known ones.

    The paper's case, two languages: `vectors` of the new tokens and `source_vectors` of the model's, in one space
    (`core.word_vectors` makes them of aligned word vectors). Then no token is copied, since one that both languages
    write may mean two things.
    """

    k: int = option(10, "Neighbours.", least=1)
    temperature: float = option(0.1, "The lower, the more the nearest outweigh the others.", above=0)
    source_vectors: Any = option(None, "Vectors by the bytes of the model's tokens, in the space of `vectors`.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_vectors is None:
            return
        if self.vectors is None:
            raise UserError("source_vectors are compared with vectors of the new tokens; pass vectors, too")
        object.__setattr__(self, "source_vectors", as_vectors(self.source_vectors, "source_vectors"))
        sizes = [len(next(iter(held.values()))) for held in (self.source_vectors, self.vectors)]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"source_vectors are of {sizes[0]} dimensions, vectors of {sizes[1]}; pass one space for both"
            )

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return self.mixed(
            source,
            tokens,
            lambda new, known, rows: nearest_mixture(new, known, rows, k=self.k, temperature=self.temperature),
            copying=self.source_vectors is None,
        )

    def split(self, source: Parts, tokens: Sequence[bytes]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return vectors of all tokens and which have one; vectors of the model's, and their names there."""
        if self.source_vectors is None:
            return super().split(source, tokens)
        vectors, known = self.vectors_of(tokens), [t for t in self.source_vectors if t in source.vocabulary.ids]
        if not known:
            raise UserError("none of the model's tokens has a vector; name them by their bytes, e.g. b' the'")
        names = torch.tensor([source.vocabulary.ids[token] for token in known])
        return vectors, vectors.norm(dim=-1) > 0, torch.stack([self.source_vectors[t] for t in known]), names

    @classmethod
    def tiny(cls) -> WECHSEL:
        """Make one of few dimensions and neighbours."""
        return cls(dim=4, k=3)


@dataclass(frozen=True, kw_only=True, eq=False)
class OMP(ByVectors):
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

        return self.mixed(source, tokens, mixture)

    @classmethod
    def tiny(cls) -> OMP:
        """Make one of few dimensions and terms."""
        return cls(dim=4, sparsity=2)

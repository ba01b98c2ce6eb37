"""Embeddings of new tokens without training a network: the baselines of tokenizer transfer.

`Lexical`, `MeanRow` and `FVT` look at a token's own bytes. `FOCUS`, `WECHSEL` and `OMP` learn from texts which tokens
occur together (`static_embeddings`), and write a new token as a mixture of ones that the model knows.

References: FVT (Gee et al., EMNLP 2022), FOCUS (Dobler and de Melo, EMNLP 2023), WECHSEL (Minixhofer et al., NAACL
2022), OMP (Goddard and Fernandes Neto, 2025, arXiv 2506.06607).

Not here: fastText. The vectors that the three need are made of the same texts by counting (shifted positive pointwise
mutual information, then a truncated SVD: Levy and Goldberg, NeurIPS 2014), which needs seconds and no other library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.retrofit.core.composer import Composed, Parts, PartsTransfer
from mintage.retrofit.core.transfer import EmbeddingTransfer, mean_row

__all__ = [
    "FOCUS",
    "FVT",
    "OMP",
    "WECHSEL",
    "Lexical",
    "MeanRow",
    "focus_weights",
    "nearest_mixture",
    "pursuit",
    "sparsemax",
    "static_embeddings",
]


# -- mixtures ----------------------------------------------------------------------------------------------------------


def sparsemax(scores: Float[Tensor, "rows choices"]) -> Float[Tensor, "rows choices"]:
    """Project scores onto the simplex: a softmax with zeros (Martins and Astudillo, ICML 2016)."""
    ordered = scores.sort(-1, descending=True).values
    places = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    total = ordered.cumsum(-1)
    count = (1 + places * ordered > total).sum(-1, keepdim=True)
    threshold = (total.gather(-1, count - 1) - 1) / count.to(scores.dtype)
    return (scores - threshold).clamp_min(0)


def focus_weights(new: Float[Tensor, "new dim"], overlap: Float[Tensor, "overlap dim"]) -> Float[Tensor, "new overlap"]:
    """How much of each overlapping token is in a new one: sparsemax of cosine similarities (FOCUS, section 3)."""
    return sparsemax(functional.normalize(new, dim=-1) @ functional.normalize(overlap, dim=-1).T)


def nearest_mixture(
    new: Float[Tensor, "new dim"],
    known: Float[Tensor, "known dim"],
    rows: Float[Tensor, "known width"],
    *,
    k: int,
    temperature: float,
) -> Float[Tensor, "new width"]:
    """Mix the rows of the `k` most similar known tokens by a softmax of their similarities (WECHSEL, eq. 5)."""
    similar = functional.normalize(new, dim=-1) @ functional.normalize(known, dim=-1).T
    best, places = similar.topk(min(k, len(known)), dim=-1)
    return ((best / temperature).softmax(-1)[..., None] * rows[places]).sum(1)


def pursuit(
    new: Float[Tensor, "new dim"], known: Float[Tensor, "known dim"], *, sparsity: int
) -> tuple[Int[Tensor, "new atoms"], Float[Tensor, "new atoms"]]:
    """Write every new vector as a sum of `sparsity` known ones: orthogonal matching pursuit, all rows at once.

    Returns
    -------
    places, weights
        Which known vectors, and how much of each.
    """
    atoms = functional.normalize(known, dim=-1)
    scale = known.norm(dim=-1).clamp_min(1e-12)
    sparsity = min(sparsity, len(known), known.shape[1])
    rest, chosen = new, torch.zeros(len(new), 0, dtype=torch.long, device=new.device)
    weights = new.new_zeros(len(new), 0)
    for _ in range(sparsity):
        fit = (rest @ atoms.T).abs()
        fit.scatter_(1, chosen, -1.0)  # none twice
        chosen = torch.cat([chosen, fit.argmax(1, keepdim=True)], 1)
        basis = atoms[chosen].transpose(1, 2)  # [new, dim, atoms]
        gram = basis.transpose(1, 2) @ basis
        gram = gram + 1e-6 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve(gram, basis.transpose(1, 2) @ new[..., None])[..., 0]
        rest = new - (basis @ weights[..., None])[..., 0]
    return chosen, weights / scale[chosen]


def static_embeddings(
    texts: Sequence[Sequence[int]],
    vocabulary: int,
    *,
    dim: int = 100,
    window: int = 5,
    contexts: int = 2000,
    seed: int = 0,
) -> Float[Tensor, "vocabulary dim"]:
    """Vectors of tokens from which other tokens they stand near.

    Parameters
    ----------
    texts
        As token ids below `vocabulary`.
    dim
        Dimensions of the vectors.
    window
        Tokens to each side that count as near.
    contexts
        Most frequent tokens that are counted as neighbours.
    seed
        Of the randomised SVD.

    Raises
    ------
    UserError
        There is no text.
    """
    lists = [torch.tensor(list(ids)) for ids in texts if len(ids) > 1]
    if not lists:
        raise UserError("no text to learn from which tokens occur together; pass some")
    counts = torch.bincount(torch.cat(lists), minlength=vocabulary)
    common = counts.argsort(descending=True)[: min(contexts, int((counts > 0).sum()))]
    column = torch.full((vocabulary,), -1)
    column[common] = torch.arange(len(common))
    near = torch.zeros(vocabulary * len(common))
    for ids in lists:
        for distance in range(1, min(window, len(ids) - 1) + 1):
            left, right = ids[:-distance], ids[distance:]
            for one, other in ((left, right), (right, left)):
                place = column[other]
                seen = (one * len(common) + place)[place >= 0]
                near.index_add_(0, seen, torch.full((len(seen),), 1.0))
    near = near.view(vocabulary, -1)
    expected = near.sum(1, keepdim=True) * (near.sum(0) ** 0.75 / (near.sum(0) ** 0.75).sum())
    information = (near / expected.clamp_min(1e-12)).clamp_min(1e-12).log().clamp_min(0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        left, size, _ = torch.svd_lowrank(information, q=min(dim, *information.shape))
    return left * size.sqrt()


# -- methods -----------------------------------------------------------------------------------------------------------


def _known(source: Parts, tokens: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Places of the tokens that the model knows, and what they are called there."""
    pairs = [
        (place, source.vocabulary.ids[token]) for place, token in enumerate(tokens) if token in source.vocabulary.ids
    ]
    both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _copied(source: Parts, tokens: Sequence[bytes], fill: Any) -> Composed:
    """Copy what is known; the rest by ``fill(weight)`` [tokens, width]."""
    places, names = _known(source, tokens)

    def made(weight: Tensor) -> Tensor:
        rows = fill(weight).to(weight.dtype)
        rows[places] = weight[names]
        return rows

    first = made(source.input)
    return Composed(first, first if source.tied else made(source.output))


@dataclass(frozen=True, kw_only=True, eq=False)
class Lexical(EmbeddingTransfer):
    """Known tokens keep their rows; others are drawn with the rows' mean and deviation, dimension by dimension.

    Parameters
    ----------
    seed
        Of the draw.
    """

    seed: int = 0

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens; a token's draw depends on its bytes alone."""
        seeds = [hash_of(token) ^ self.seed for token in tokens]

        def fill(weight: Tensor) -> Tensor:
            mean, deviation = weight.float().mean(0), weight.float().std(0)
            draws = [torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(s)) for s in seeds]
            return mean + deviation * torch.stack(draws).to(weight.device)

        return _copied(source, tokens, fill)

    @classmethod
    def tiny(cls) -> Lexical:
        """Make one."""
        return cls()


def hash_of(token: bytes) -> int:
    """Return a number that a token's bytes decide, the same in every process."""
    import zlib

    return zlib.crc32(token)


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanRow(EmbeddingTransfer):
    """Known tokens keep their rows; others get the mean of all."""

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return _copied(source, tokens, lambda weight: mean_row(weight).repeat(len(tokens), 1))

    @classmethod
    def tiny(cls) -> MeanRow:
        """Make one."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class FVT(EmbeddingTransfer):
    """Every token gets the mean of the rows that its bytes are cut into: a known one its own."""

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return PartsTransfer().rows(source, tokens)

    @classmethod
    def tiny(cls) -> FVT:
        """Make one."""
        return cls()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Learned(EmbeddingTransfer):
    """A method that first learns from texts which tokens occur together.

    Parameters
    ----------
    dim, window
        Of the vectors, see `static_embeddings`.
    """

    reads_texts: ClassVar[bool] = True

    dim: int = 100
    window: int = 5
    vectors: Any = field(default=None, repr=False)

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
        places, names = _known(source, list(self.vectors))
        held = self._vectors(list(self.vectors))
        seen = held[places].norm(dim=-1) > 0
        if not bool(seen.any()):
            raise UserError("none of the tokens that the model knows occurs in the texts; pass more of them")
        return vectors, vectors.norm(dim=-1) > 0, held[places[seen]], names[seen]

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
    """A new token is a sparse mixture of tokens that both vocabularies have, by how similar their vectors are.

    Parameters
    ----------
    dim, window
        Of the vectors that the texts give, see `static_embeddings`.
    vectors
        Those vectors, by token; `fitted` fills them in.
    """

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return self._mixed(source, tokens, lambda new, known, rows: focus_weights(new, known) @ rows)

    @classmethod
    def tiny(cls) -> FOCUS:
        """Make one."""
        return cls(dim=4)


@dataclass(frozen=True, kw_only=True, eq=False)
class WECHSEL(_Learned):
    """A new token is a mixture of its nearest known ones. (The paper's aligns vectors of words of two languages.)

    Parameters
    ----------
    k, temperature
        Neighbours, and how much the nearest outweigh the others.
    dim, window
        Of the vectors that the texts give, see `static_embeddings`.
    vectors
        Those vectors, by token; `fitted` fills them in.
    """

    k: int = 10
    temperature: float = 0.1

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        return self._mixed(
            source,
            tokens,
            lambda new, known, rows: nearest_mixture(new, known, rows, k=self.k, temperature=self.temperature),
        )

    @classmethod
    def tiny(cls) -> WECHSEL:
        """Make one."""
        return cls(dim=4, k=3)


@dataclass(frozen=True, kw_only=True, eq=False)
class OMP(_Learned):
    """A new token has the sparse coefficients that write its vector as a sum of known ones' vectors.

    The paper takes the vectors from a donor model of the new tokenizer; here they are learnt from texts.

    Parameters
    ----------
    sparsity
        Terms of the sum.
    dim, window
        Of the vectors that the texts give, see `static_embeddings`.
    vectors
        Those vectors, by token; `fitted` fills them in.
    """

    sparsity: int = 8

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
        """Make one."""
        return cls(dim=4, sparsity=2)

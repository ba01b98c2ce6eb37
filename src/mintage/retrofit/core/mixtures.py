"""New tokens as mixtures of known ones: sparsemax, nearest neighbours, matching pursuit; and vectors to compare by.

Not here: fastText. The vectors are made of texts by counting (shifted positive pointwise mutual information, then a
truncated SVD: Levy and Goldberg, NeurIPS 2014), which needs seconds and no other library.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError

__all__ = ["focus_weights", "nearest_mixture", "pursuit", "sparsemax", "static_embeddings"]


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

"""Vectors of words made into vectors of tokens, and two languages' vectors into one space (WECHSEL, section 3).

Not here: learning the vectors of words (fastText, or any other).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mintage.errors import UserError
from mintage.retrofit.core.token_bytes import TokenBytes

__all__ = ["aligned", "as_vectors", "token_vectors"]


def as_vectors(given: Any, what: str, key: type = bytes) -> dict[Any, Float[Tensor, " dim"]]:
    """Return vectors of any make (numpy, lists, any precision) in float32.

    Raises
    ------
    UserError
        There are none, a name is of another type than `key`, or a vector is of another length or not finite.
    """
    if not isinstance(given, Mapping) or not given:
        raise UserError(
            f"{what} is no mapping from {key.__name__} to vectors, or empty; pass e.g. {{b'a': [0.1, 0.2]}}"
        )
    found = {name: torch.as_tensor(vector).detach().float().cpu() for name, vector in given.items()}
    sizes = {tuple(vector.shape) for vector in found.values()}
    if len(sizes) > 1 or len(next(iter(sizes))) != 1:
        raise UserError(f"{what} holds vectors of shapes {sorted(sizes)[:3]}; pass one length for all")
    for name, vector in found.items():
        if not isinstance(name, key):
            raise UserError(f"{what} names {name!r}, a {type(name).__name__}; pass {key.__name__}")
        if not bool(vector.isfinite().all()):
            raise UserError(f"{what}: the vector of {name!r} is not finite")
    return found


def aligned(
    vectors: Mapping[str, Any], others: Mapping[str, Any], pairs: Iterable[tuple[str, str]]
) -> dict[str, Float[Tensor, " dim"]]:
    """Turn vectors of words so that translations lie at the same place: orthogonal Procrustes.

    Parameters
    ----------
    vectors
        By word; these are turned.
    others
        By word, of the other language.
    pairs
        A dictionary: a word of `vectors` and its translation among `others`. Unknown words are passed over.

    Raises
    ------
    UserError
        No pair has both words, or the lengths differ.
    """
    mine, theirs = as_vectors(vectors, "vectors", str), as_vectors(others, "others", str)
    known = [(a, b) for a, b in pairs if a in mine and b in theirs]
    if not known:
        raise UserError("no pair has vectors of both words; pass a dictionary of these two languages")
    left, right = torch.stack([mine[a] for a, _ in known]), torch.stack([theirs[b] for _, b in known])
    if left.shape != right.shape:
        raise UserError(
            f"vectors are of {left.shape[1]} dimensions, others of {right.shape[1]}; pass one length for all"
        )
    unit = torch.nn.functional.normalize
    u, _, v = torch.linalg.svd((unit(left, dim=-1).T @ unit(right, dim=-1)).double())
    turn = (u @ v).float()
    return {word: vector @ turn for word, vector in mine.items()}


def token_vectors(
    tokenizer: Any, words: Mapping[str, Any], counts: Mapping[str, float | int] | None = None
) -> dict[bytes, Float[Tensor, " dim"]]:
    """Return vectors of tokens: the mean of those of the words that are written with them, by how frequent these are.

    Parameters
    ----------
    tokenizer
        A fast tokenizer of transformers, or one of ``tokenizers``.
    words
        Vectors by word.
    counts
        How often a word occurs; once, if left out.
    """
    held, known = as_vectors(words, "words", str), TokenBytes(tokenizer)
    total: dict[bytes, Tensor] = {}
    weight: dict[bytes, float] = {}
    for word, vector in held.items():
        often = float((counts or {}).get(word, 1.0))
        for text in (word, f" {word}"):
            for number in set(known.backend.encode(text, add_special_tokens=False).ids):
                if token := known.tokens[number]:
                    total[token] = total.get(token, torch.zeros_like(vector)) + often * vector
                    weight[token] = weight.get(token, 0.0) + often
    return {token: vector / weight[token] for token, vector in total.items() if weight[token] > 0}

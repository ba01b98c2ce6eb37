"""The two connectors of HAT's released checkpoints: bytes to words, and words back to bytes.

The encoder connector is cross-attention of one learnt query to each word's own bytes, with rotary positions on both
sides (a word's number, a byte's place in the text) and without a residual. The decoder connector adds to every byte
what is said of its word. There a byte attends to one vector, and softmax over one key is 1: the checkpoints' queries,
keys and norms of these (``query_norm`` too) do not change the result, so they are not here.

Key heads may be fewer: head *g* of them serves the next ``heads / key_heads`` query heads.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.lm.core.stack import check_heads

__all__ = ["DecoderConnector", "EncoderConnector", "rotated"]

THETA = 10_000.0


def rotated(
    heads: Float[Tensor, "places heads size"], places: Int[Tensor, " places"], theta: float = THETA
) -> Float[Tensor, "places heads size"]:
    """Turn vectors by their places: rotary positions of half-split pairs, as Llama's."""
    half = heads.shape[-1] // 2
    speeds = theta ** (-torch.arange(half, device=heads.device, dtype=torch.float64) / half)
    angle = (places.to(speeds.dtype)[:, None] * speeds)[:, None]
    cos, sin = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _check(width: int, heads: int, key_heads: int) -> int:
    """Return the size of a head."""
    check_heads(width, heads)
    if heads % key_heads:
        raise UserError(f"key_heads={key_heads} does not divide the {heads} heads; pass e.g. {heads}")
    return width // heads


class EncoderConnector(nn.Module):
    """Makes one vector of every word from the states of its bytes.

    Parameters
    ----------
    narrow, width
        Of the bytes' states, and of the words' vectors.
    heads, key_heads
        Of attention; keys and values may have fewer.
    head_norm
        Whether queries and keys are RMS-normed in every head, before they are turned.
    eps, theta
        Of the norms, and of the rotary positions.

    Raises
    ------
    UserError
        The heads do not divide the width, or the key heads the heads.
    """

    def __init__(
        self,
        narrow: int,
        width: int,
        heads: int,
        key_heads: int,
        head_norm: bool = False,
        eps: float = 1e-5,
        theta: float = THETA,
    ) -> None:
        super().__init__()
        size = _check(width, heads, key_heads)
        self.size, self.repeats, self.theta = size, heads // key_heads, theta
        self.latent = nn.Parameter(torch.zeros(width))
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(narrow, key_heads * size, bias=False)
        self.v = nn.Linear(narrow, key_heads * size, bias=False)
        self.o = nn.Linear(width, width, bias=False)
        self.query_norm = nn.RMSNorm(size, eps) if head_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(size, eps) if head_norm else nn.Identity()

    def forward(
        self,
        states: Float[Tensor, "bytes narrow"],
        lengths: Int[Tensor, " words"],
        byte_places: Int[Tensor, " bytes"],
        word_places: Int[Tensor, " words"],
    ) -> Float[Tensor, "words width"]:
        """Pool words.

        Parameters
        ----------
        states
            Of the bytes of all words, word after word.
        lengths
            Bytes of each word.
        byte_places, word_places
            Their places in the text, for the rotary positions.
        """
        word = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        query = self.query_norm(self.q(self.latent).view(1, -1, self.size)).expand(len(lengths), -1, -1)
        query = rotated(query, word_places, self.theta).unflatten(1, (-1, self.repeats))
        key = rotated(self.key_norm(self.k(states).unflatten(-1, (-1, self.size))), byte_places, self.theta)
        value = self.v(states).unflatten(-1, (-1, self.size))
        scores = (query[word] * key[:, :, None]).sum(-1) * self.size**-0.5  # bytes key_heads repeats
        shares = _softmax_inside(scores, word, len(lengths))
        weighted = (shares[..., None] * value[:, :, None]).flatten(1)
        return self.o(weighted.new_zeros(len(lengths), weighted.shape[1]).index_add(0, word, weighted))


def _softmax_inside(scores: Float[Tensor, "bytes ..."], word: Int[Tensor, " bytes"], words: int) -> Tensor:
    """Return the softmax over the bytes of each word."""
    with torch.no_grad():
        index = word.view(-1, *[1] * (scores.ndim - 1)).expand_as(scores)
        highest = torch.full_like(scores[:1], -torch.inf).repeat(words, *[1] * (scores.ndim - 1))
        highest = highest.scatter_reduce(0, index, scores, "amax")
    powers = (scores - highest[word]).exp()
    return powers / torch.zeros_like(highest).index_add(0, word, powers)[word]


class DecoderConnector(nn.Module):
    """Adds to the state of every byte what is said of its word; parameters as in `EncoderConnector`."""

    def __init__(self, narrow: int, width: int, heads: int, key_heads: int, eps: float = 1e-5) -> None:
        super().__init__()
        size = _check(width, heads, key_heads)
        self.size, self.repeats = size, heads // key_heads
        self.norm = nn.RMSNorm(width, eps)
        self.v = nn.Linear(width, key_heads * size, bias=False)
        self.o = nn.Linear(width, narrow, bias=False)

    def forward(
        self, states: Float[Tensor, "*places narrow"], said: Float[Tensor, "words width"], word: Int[Tensor, "*places"]
    ) -> Float[Tensor, "*places narrow"]:
        """Add to every state what `said` holds of the word that it belongs to."""
        value = self.v(self.norm(said)).unflatten(-1, (-1, self.size)).repeat_interleave(self.repeats, 1)
        return states + self.o(value.flatten(1))[word]

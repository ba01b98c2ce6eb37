"""The ideal lexinvariant model of a known one: a Bayesian who knows the language but not which symbol is which.

A text is seen under an unknown relabelling, all equally likely: cipher symbol ``pi[r]`` stands for the real symbol r.
Small alphabets are summed over exactly, larger ones by Metropolis steps that swap two symbols (arXiv 2305.16349,
section 2). A language is a `Source`, a function of real symbols.

Not here: models that learn (`mintage.lm.lexinvariant`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError

__all__ = ["Deciphered", "Source", "decipher", "ideal_lexinvariant", "markov_chain", "probe_accuracy", "random_chain"]

Source = Callable[[Int[Tensor, "texts length"]], Float[Tensor, "texts more symbols"]]
"""Symbols of texts to log probabilities of the next one, behind nothing, the first, ... and all of them."""

MOST = 8
"""Symbols of an alphabet whose relabellings are all looked at: 40,320."""

_ANEW = 0.1  # of the proposals forget the relabelling: swaps alone may not get out of one

_AT_ONCE = 1 << 24  # numbers held together


class Deciphered(NamedTuple):
    """What a Bayesian says of texts.

    Parameters
    ----------
    next
        Probability of each symbol as the next one: [text, k] after k symbols.
    posterior
        [text, k, c, r]: probability that the cipher symbol c stands for the real one r after k symbols.
    """

    next: Float[Tensor, "texts more symbols"]
    posterior: Float[Tensor, "texts more symbols symbols"]


def random_chain(symbols: int, seed: int = 0, concentration: float = 0.25) -> tuple[Tensor, Tensor]:
    """Draw the first and the next symbol's probabilities of a chain: Dirichlet rows; the first one's are even.

    Returns
    -------
    The probabilities of shape (symbols,) and (symbols, symbols), float64.
    """
    drawn = np.random.default_rng(seed).dirichlet([concentration] * symbols, symbols)
    rows = torch.from_numpy(drawn).clamp(min=1e-12)
    return torch.full((symbols,), 1 / symbols).double(), rows / rows.sum(1, keepdim=True)


def markov_chain(initial: Float[Tensor, " symbols"], transition: Float[Tensor, "symbols symbols"]) -> Source:
    """Return the language of a first-order chain; rows of `transition` are the symbol before."""
    first, then = initial.double().log(), transition.double().log()

    def source(texts: Int[Tensor, "texts length"]) -> Float[Tensor, "texts more symbols"]:
        return torch.cat([first.expand(len(texts), 1, -1), then[texts]], 1)

    return source


def ideal_lexinvariant(source: Source, symbols: int, texts: Int[Tensor, "texts length"]) -> Deciphered:
    """Sum over all relabellings: ``p'(x) = E_pi[p(pi^-1(x))]``, float64.

    Parameters
    ----------
    source
        The language p.
    symbols
        Of the alphabet, at most 8.
    texts
        Ciphered texts of one length.

    Raises
    ------
    UserError
        The alphabet is too large, or a symbol is outside it.
    """
    if not 1 <= symbols <= MOST:
        raise UserError(f"{symbols} symbols have too many relabellings; pass 1 to {MOST}, or use decipher")
    _check(texts, symbols)
    real = torch.tensor(list(itertools.permutations(range(symbols))))  # pi^-1: real symbol of each cipher symbol
    step = max(1, _AT_ONCE // (len(real) * (texts.shape[1] + 1) * symbols))
    parts = [_exact(source, real, part) for part in texts.split(step)]
    if not parts:
        nothing = torch.zeros(0, texts.shape[1] + 1, symbols).double()
        return Deciphered(nothing, nothing[..., None].expand(-1, -1, -1, symbols))
    return Deciphered(*(torch.cat(list(part)) for part in zip(*parts, strict=True)))


def _check(texts: Tensor, symbols: int) -> None:
    if texts.numel() and not 0 <= int(texts.min()) <= int(texts.max()) < symbols:
        raise UserError(f"texts have symbols {int(texts.min())} to {int(texts.max())}; pass 0 to {symbols - 1}")


def _exact(source: Source, real: Int[Tensor, "maps symbols"], texts: Int[Tensor, "texts length"]) -> Deciphered:
    maps, symbols = real.shape
    count, length = texts.shape
    plain = real[:, texts]  # maps texts length
    log = source(plain.flatten(0, 1)).double().view(maps, count, length + 1, symbols)
    seen = log[:, :, :-1].gather(3, plain[..., None])[..., 0].cumsum(2)
    weight = torch.nn.functional.pad(seen, (1, 0)).softmax(0)  # maps texts more
    by_cipher = log.exp().gather(3, real[:, None, None].expand(-1, count, length + 1, -1))
    following = torch.einsum("mtk,mtkc->tkc", weight, by_cipher)
    stands = torch.nn.functional.one_hot(real, symbols).double()
    return Deciphered(following, torch.einsum("mtk,mcr->tkcr", weight, stands))


def decipher(
    source: Source,
    symbols: int,
    text: Int[Tensor, " length"],
    *,
    walkers: int = 64,
    steps: int = 2000,
    generator: torch.Generator | None = None,
) -> Deciphered:
    """Estimate what a Bayesian says behind a whole text, by Metropolis steps over relabellings.

    Every walker proposes to swap the meaning of two symbols; in the first half of the steps it cools down from what is
    even (annealing), the second half is averaged.

    Returns
    -------
    As `ideal_lexinvariant`, with one text and one place.

    Raises
    ------
    UserError
        A symbol is outside the alphabet, or a number below 1 (of symbols: 2).
    """
    if symbols < 2 or min(walkers, steps) < 1:
        raise UserError(f"symbols={symbols}, walkers={walkers}, steps={steps}: pass at least 2, 1 and 1")
    _check(text, symbols)
    real = torch.stack([torch.randperm(symbols, generator=generator) for _ in range(walkers)])
    log, following = _behind(source, real, text)
    sums = Deciphered(torch.zeros(1, 1, symbols).double(), torch.zeros(1, 1, symbols, symbols).double())
    rows = torch.arange(walkers)
    for step in range(steps):
        a = torch.randint(symbols, (walkers,), generator=generator)
        b = (a + torch.randint(1, symbols, (walkers,), generator=generator)) % symbols
        other = real.clone()
        other[rows, a], other[rows, b] = real[rows, b], real[rows, a]
        anew = torch.rand(walkers, generator=generator) < _ANEW
        other = torch.where(anew[:, None], torch.rand(walkers, symbols, generator=generator).argsort(1), other)
        new_log, new_following = _behind(source, other, text)
        heat = min(1.0, 2 * (step + 1) / steps)
        taken = torch.rand(walkers, generator=generator).double().log() < heat * (new_log - log)
        taken |= log == -torch.inf
        real = torch.where(taken[:, None], other, real)
        log = torch.where(taken, new_log, log)
        following = torch.where(taken[:, None], new_following, following)
        if step >= steps // 2:
            sums.next[0, 0] += following.mean(0)
            sums.posterior[0, 0] += torch.nn.functional.one_hot(real, symbols).double().mean(0)
    return Deciphered(*(part / (steps - steps // 2) for part in sums))


def _behind(
    source: Source, real: Int[Tensor, "walkers symbols"], text: Int[Tensor, " length"]
) -> tuple[Float[Tensor, " walkers"], Float[Tensor, "walkers symbols"]]:
    """Return the log probability of a text under every map, and the next cipher symbol's probabilities."""
    plain = real[:, text]
    log = source(plain).double()
    seen = log[:, :-1].gather(2, plain[..., None])[..., 0].sum(1)
    return seen, log[:, -1].exp().gather(1, real)


def probe_accuracy(
    states: Float[Tensor, "texts length width"],
    real: Int[Tensor, "texts length"],
    new_states: Float[Tensor, "others length width"],
    new_real: Int[Tensor, "others length"],
    ridge: float = 1e-2,
) -> Float[Tensor, " length"]:
    """Read the real symbol off states by one linear layer (ridge regression), and return its accuracy by position.

    The layer is learnt on all positions of `states` and tried on other texts.
    """
    ones = torch.ones(states.shape[0] * states.shape[1], 1).double()
    known = torch.cat([states.flatten(0, 1).double(), ones], 1)
    wanted = torch.nn.functional.one_hot(real.flatten()).double()
    square = known.T @ known + ridge * len(known) * torch.eye(known.shape[1]).double()
    layer = torch.linalg.solve(square, known.T @ wanted)
    found = (new_states.double() @ layer[:-1] + layer[-1]).argmax(-1)
    return (found == new_real).double().mean(0)

"""Mixtures of language models by the posterior of who wrote the text so far (Branch-Train-Merge, arXiv 2208.03306).

    p(x_t | x_<t) = sum_j p_j(x_t | x_<t) p(D = j | x_<t),    p(D = j | x_<t) ~ pi_j prod_{s<t} p_j(x_s | x_<s)

All in log space and float64: a product of a hundred probabilities underflows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mintage.errors import UserError

__all__ = ["log_posterior", "mixed", "prior_of", "running_prior", "top_k_prior", "weighted_average"]


def prior_of(weights: Sequence[float | int] | None, experts: int) -> Float[Tensor, " experts"]:
    """Return a distribution over experts; None is uniform.

    Raises
    ------
    UserError
        There is not one weight for each, or they are negative or all zero.
    """
    if weights is None:
        return torch.full((experts,), 1 / experts, dtype=torch.float64)
    found = torch.tensor(list(weights), dtype=torch.float64)
    if len(found) != experts:
        raise UserError(f"{len(found)} weights for {experts} experts; pass one for each")
    if not bool((found >= 0).all()) or not 0 < float(found.sum()) < torch.inf:
        raise UserError(f"weights {list(weights)} are no distribution; pass numbers from 0 on that are not all 0")
    return found / found.sum()


def log_posterior(
    token_logprob: Float[Tensor, "experts batch tokens"],
    prior: Float[Tensor, " experts"],
    starts: Bool[Tensor, "batch tokens"] | None = None,
    *,
    history: int | None = None,
) -> Float[Tensor, "experts batch after"]:
    """Return log p(D = j | x_<t) for every position, and behind the last token: one more than there are tokens.

    Parameters
    ----------
    token_logprob
        log p_j(x_t | x_<t) of every token by every expert.
    prior
        pi; an expert with 0 never counts.
    starts
        Where documents begin: there the posterior is the prior again.
    history
        Tokens that are looked back at; None is all of them, as the paper has it (the authors' code uses 1).

    Raises
    ------
    UserError
        `history` is below 1.
    """
    if history is not None and history < 1:
        raise UserError(f"history={history} is out of range; pass at least 1, or None for all tokens")
    likelihood = token_logprob.double()
    total = torch.nn.functional.pad(likelihood.cumsum(2), (1, 0))  # before each token, and behind the last
    places = torch.arange(total.shape[2], device=total.device)
    first = torch.zeros(total.shape[1:], dtype=torch.long, device=total.device)  # the first token that counts
    if starts is not None:
        begun = torch.where(starts, places[:-1], 0).cummax(1).values
        first[:, :-1] = begun
        first[:, -1] = begun[:, -1] if begun.shape[1] else 0
    if history is not None:
        first = torch.maximum(first, places - history)
    before = total.gather(2, first.expand(len(total), -1, -1))
    seen = total - before + prior.double().log()[:, None, None].to(total.device)
    return seen - seen.logsumexp(0)


def mixed(logprobs: Float[Tensor, "experts ..."], weights: Float[Tensor, "experts ..."]) -> Float[Tensor, ...]:
    """Mix probabilities, not their logarithms; both given and returned in log space."""
    return (logprobs.double() + weights).logsumexp(0)


def running_prior(
    block_posteriors: Float[Tensor, "blocks experts"], decay: float = 0.3
) -> Float[Tensor, "blocks experts"]:
    """Return e_b = decay p_b + (1 - decay) e_(b-1), e_0 = p_0, behind every block (the cached prior is the last).

    Raises
    ------
    UserError
        `decay` is outside (0, 1].
    """
    if not 0 < decay <= 1:
        raise UserError(f"decay={decay} is out of range; pass a number in (0, 1], e.g. 0.3")
    found = [block_posteriors[0].double()]
    for posterior in block_posteriors[1:].double():
        found.append(decay * posterior + (1 - decay) * found[-1])
    return torch.stack(found)


def top_k_prior(prior: Float[Tensor, " experts"], k: int) -> Float[Tensor, " experts"]:
    """Keep the k largest entries and scale them to one; of equal ones the first.

    Raises
    ------
    UserError
        `k` is not between 1 and the number of experts.
    """
    if not 1 <= k <= len(prior):
        raise UserError(f"top_k={k} is out of range; pass a number in [1, {len(prior)}]")
    kept = torch.sort(prior.double(), descending=True, stable=True).indices[:k]
    found = torch.zeros_like(prior, dtype=torch.float64)
    found[kept] = prior.double()[kept]
    return found / found.sum()


def weighted_average(states: Sequence[Mapping[str, Tensor]], weights: Float[Tensor, " experts"]) -> dict[str, Tensor]:
    """Average parameters, in float64, back in their own dtype; what is no float is the heaviest expert's.

    Raises
    ------
    UserError
        Experts have other tensors, or the same in other shapes.
    """
    shapes = {name: tensor.shape for name, tensor in states[0].items()}
    for number, state in enumerate(states):
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise UserError(f"expert {number} has other weights than expert 0; average experts of one seed")
    heaviest = states[int(weights.argmax())]
    merged = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            total = torch.zeros(tensor.shape, dtype=torch.float64)
            for state, weight in zip(states, weights.tolist(), strict=True):
                if weight:
                    total += weight * state[name].detach().cpu().double()
            merged[name] = total.to(tensor.dtype)
        else:
            merged[name] = heaviest[name].detach().cpu().clone()
    return merged

"""How often a rule accepts one of K drafted siblings, computed exactly by enumeration; for small vocabularies.

A rule says which of K siblings to emit, if any, so that the emitted token has the target's distribution p. Its
acceptance is the probability, over the draw of the siblings from the draft distribution q and the rule's own coin, that
one of them is emitted.
Every rule here has the same form, ``rule(p, q, k) -> acceptance``, and `RULES` names them. Not here: the rules
themselves (`core.verify`, `mintage.draft.spectr`); acceptance over whole trees, which generation measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mintage.draft.core.kseq import kseq_rho
from mintage.draft.core.verify import after_rejection
from mintage.errors import UserError, did_you_mean

__all__ = ["RULES", "Row", "Rule", "acceptance_table", "exact_acceptance", "random_pairs"]

_MOST_BYTES, _COPIES = 4 * 2**30, 6  # an enumeration may take, and how many tensors of its size it holds at once

Rule = Callable[[Tensor, Tensor, int], Tensor]
"""From distributions of target and draft, both (pairs, vocabulary) and float64, and K to the acceptance, (pairs,)."""

SETTINGS = ((1.5, 0.0), (1.5, 0.7), (0.7, 0.0), (0.7, 0.7))
"""Scales and correlations of the logits in `acceptance_table`: peaked and flat ones, poor and good draft models."""


def exact_acceptance(
    p: Float[Tensor, "pairs vocabulary"], q: Float[Tensor, "pairs vocabulary"], k: int, rule: str | Rule
) -> Float64[Tensor, " pairs"]:
    """Return the probability that one of `k` siblings is accepted.

    Parameters
    ----------
    p, q
        Target and draft distributions.
    k
        Siblings drawn.
    rule
        A name in `RULES`, or a function of the same form.

    Raises
    ------
    UserError
        Unknown rule, `k` below 1, or an enumeration that would fill the memory.
    """
    if k < 1:
        raise UserError(f"k={k}; draw at least 1 sibling")
    if isinstance(rule, str):
        if rule not in RULES:
            raise UserError(f"unknown rule {rule!r}; {did_you_mean(rule, RULES)}")
        rule = RULES[rule]
    p, q = p.double(), q.double()
    return rule(p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True), k)


def chain(p: Tensor, q: Tensor, k: int) -> Tensor:
    """Speculative sampling: one draft, whatever `k` is."""
    return torch.minimum(p, q).sum(-1)


def specinfer(p: Tensor, q: Tensor, k: int) -> Tensor:
    """SpecInfer: k independent siblings, recursive rejection with the same draft distribution throughout."""
    accepted, reached = torch.zeros_like(p[:, 0]), torch.ones_like(p[:, 0])
    nothing = torch.zeros(len(p), dtype=torch.long, device=p.device)
    for _ in range(k):
        accepted += reached * torch.minimum(p, q).sum(-1)
        reached = reached * (q - p).clamp_min(0).sum(-1)
        p, q = after_rejection(p, q, nothing, replacement=True)
    return accepted


def kseq(p: Tensor, q: Tensor, k: int) -> Tensor:
    """K-SEQ (SpecTr): k independent siblings, each accepted with ``p / (rho q)`` at the smallest valid rho."""
    return kseq_rho(p, q, k).accept_prob


def rsd(p: Tensor, q: Tensor, k: int) -> Tensor:
    """RSD: k siblings without replacement, recursive rejection; enumerates the ordered draws of k - 1 siblings."""
    size, accepted = p.shape[-1], torch.zeros_like(p[:, 0])
    k = min(k, size)  # no more siblings can be drawn
    held = 8 * _COPIES * len(p) * size**k
    if held > _MOST_BYTES:
        raise UserError(
            f"k={k} siblings of {size} tokens are {size}^{k - 1} ordered draws for each of {len(p)} pairs, about "
            f"{held / 2**30:.3g} GB; pass a smaller k, vocabulary or number of pairs"
        )
    p, q = p[:, None], q[:, None]  # (pairs, rejected draws so far, vocabulary)
    reached = torch.ones_like(p[..., 0])
    for child in range(k):
        accepted += (reached * torch.minimum(p, q).sum(-1)).sum(-1)
        if child == k - 1:
            break
        reached = (reached[..., None] * (q - p).clamp_min(0)).flatten(1)
        states = (*p.shape[:-1], size)
        tokens = torch.arange(size, device=p.device).expand(states)
        p, q = (probs[..., None, :].expand(*states, size) for probs in (p, q))
        p, q = (probs.flatten(1, 2) for probs in after_rejection(p, q, tokens))
    return accepted


RULES: Mapping[str, Rule] = {"chain": chain, "specinfer": specinfer, "kseq": kseq, "rsd": rsd}
"""Rules by name."""


def random_pairs(
    scale: float, correlation: float, *, vocabulary: int = 6, pairs: int = 2000, seed: int = 0
) -> tuple[Float64[Tensor, "pairs vocabulary"], Float64[Tensor, "pairs vocabulary"]]:
    """Make distributions of target and draft with normal logits of standard deviation `scale` and this correlation."""
    normal = np.random.default_rng(seed).normal(size=(pairs, 2, vocabulary))
    target, other = torch.from_numpy(normal).unbind(1)
    draft = correlation * target + (1 - correlation**2) ** 0.5 * other
    return (scale * target).softmax(-1), (scale * draft).softmax(-1)


@dataclass(frozen=True)
class Row:
    """Mean acceptance of every rule at one setting, and the standard error of the mean over the pairs."""

    scale: float
    correlation: float
    mean: dict[str, float]
    error: dict[str, float]


def acceptance_table(
    k: int = 3,
    *,
    settings: Sequence[tuple[float, float]] = SETTINGS,
    rules: Mapping[str, Rule] = RULES,
    vocabulary: int = 6,
    pairs: int = 2000,
    seed: int = 0,
) -> list[Row]:
    """Compare rules on the same random pairs of distributions, one row per scale and correlation of the logits.

    Peaked distributions are what language models have; there drawing without replacement pays most. For flat ones and
    a good draft model K-SEQ accepts more.
    """
    rows = []
    for scale, correlation in settings:
        p, q = random_pairs(scale, correlation, vocabulary=vocabulary, pairs=pairs, seed=seed)
        values = {name: exact_acceptance(p, q, k, rule) for name, rule in rules.items()}
        rows.append(
            Row(
                scale=scale,
                correlation=correlation,
                mean={name: float(value.mean()) for name, value in values.items()},
                error={name: float(value.std() / pairs**0.5) for name, value in values.items()},
            )
        )
    return rows

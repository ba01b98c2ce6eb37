"""DySpec's hypothesis: a drafted token is accepted about as often as its draft distribution says.

arXiv 2410.11744, section 4. Trees of every drafter that states its confidence can be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mintage.draft.core.tree import TokenTree

__all__ = ["Bin", "calibration", "tried"]


class Bin(NamedTuple):
    """A bin of `calibration`: mean predicted acceptance, observed share accepted, number of nodes."""

    predicted: float
    observed: float
    nodes: int


def tried(tree: TokenTree, path: Sequence[int]) -> list[tuple[float, bool]]:
    """Return R[X] and the outcome of every node that a verifier tried on its way along the accepted `path`."""
    if tree.confidence is None:
        raise ValueError("the tree states no confidence, so there is no predicted acceptance")
    value, outcomes = tree.confidence.tolist(), []
    for node, accepted in zip(path, [*path[1:], -1], strict=True):
        slot = value[node]
        for child in tree.topology.children[node]:
            outcomes.append((min(value[child] / slot, 1.0), child == accepted))
            if child == accepted:
                break
            slot -= value[child]
    return outcomes


def calibration(values: Sequence[float], accepted: Sequence[bool], bins: int = 10) -> list[Bin]:
    """Compare predicted with observed acceptance in `bins` groups of equal size, least confident first."""
    predicted, observed = np.asarray(values, dtype=float), np.asarray(accepted, dtype=float)
    groups = np.array_split(predicted.argsort(kind="stable"), bins)
    return [Bin(float(predicted[g].mean()), float(observed[g].mean()), len(g)) for g in groups if len(g)]

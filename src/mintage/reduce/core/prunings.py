"""After which blocks Zero-TPrune prunes, and how strongly: numbers known for DeiT-S, fitted to any depth and image.

Not here: which tokens go (`mintage.reduce.zero_tprune`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mintage.errors import UserError

__all__ = ["Pruning", "patches_left", "prunings"]

_BLOCKS, _PATCHES = 12, 196  # of the model that the defaults are from
_LAYERS, _RETENTION, _SIMILAR = (1, 3, 6, 9, 11), (1.0, 0.9, 0.8, 0.7, 1.0), 10


class Pruning(NamedTuple):
    """Share that the I stage keeps, patches that the S stage drops, and rounds of votes."""

    retention: float
    similar: int
    iterations: int


def prunings(
    layers: int,
    patches: int,
    *,
    at: Sequence[int] | None,
    retention: Sequence[float | int] | None,
    similar: Sequence[int] | None,
    iterations: Sequence[int] | None,
) -> dict[int, Pruning]:
    """Return the prunings of a model, by block.

    Parameters
    ----------
    layers, patches
        Blocks of the model, and patches of the image.
    at
        Blocks that are followed by a pruning.
    retention, similar, iterations
        One number, or one per block; None is what is known for DeiT-S.

    Raises
    ------
    UserError
        A block does not exist, or there is not one number, or one per block.
    """
    blocks = at or tuple(math.floor(block * (layers - 1) / (_BLOCKS - 1) + 0.5) for block in _LAYERS)
    if max(blocks) >= layers:
        raise UserError(f"layer {max(blocks)} does not exist; this model has layers 0 to {layers - 1}")
    usual_rounds = [30 if block < layers / 4 else 1 if block >= layers * 3 / 4 else 5 for block in blocks]
    given = {
        "retention": _RETENTION if retention is None else retention,
        "similar": [round(_SIMILAR * patches / _PATCHES)] if similar is None else similar,
        "iterations": usual_rounds if iterations is None else iterations,
    }
    for name, values in given.items():
        if len(values) not in (1, len(blocks)):
            raise UserError(f"{name} has {len(values)} numbers for {len(blocks)} layers; pass one, or one for each")
    kept, dropped, rounds = (tuple(values) * (len(blocks) // len(values)) for values in given.values())
    made: dict[int, Pruning] = {}
    for number, block in enumerate(blocks):  # of few blocks some coincide: the first counts
        made.setdefault(block, Pruning(float(kept[number]), int(dropped[number]), int(rounds[number])))
    return made


def patches_left(planned: Mapping[int, Pruning], layers: int, patches: int) -> tuple[int, ...]:
    """Return how many patches are left behind every block."""
    counts, left = [], patches
    for layer in range(layers):
        if layer in planned:
            left = math.ceil(planned[layer].retention * (left - min(planned[layer].similar, left // 2)))
        counts.append(left)
    return tuple(counts)

"""What a study of models without fixed symbols reads and asks: English in small letters, other names, look-ups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.data import texts
from mintage.lm.core.cipher import probe_accuracy
from mintage.lm.core.symbol_tasks import lookup_task
from mintage.lm.core.windows import byte_windows
from mintage.lm.training.lexinvariant import LETTERS, letters_of
from mintage.measure.statistics import bootstrap
from mintage.measure.study import Finding, Run, above, below, contains

__all__ = ["gap_shrinks", "letter_bits", "letter_texts", "look_ups", "names_cost", "renamed"]

FIRST, LAST = 16, 64
"""Letters at the beginning and at the end of a text whose bits are compared."""


def letter_texts(count: int, size: int) -> Int[Tensor, "texts size"]:
    """Return the letters of held-out articles, at most `count` windows of `size`, as bytes of `LETTERS`."""
    windows = byte_windows(letters_of(texts("wikitext2", "held-out")), size)
    step = max(len(windows) // count, 1)
    return torch.from_numpy(windows[::step][:count].astype(np.int64))


def renamed(symbols: Int[Tensor, "texts size"], count: int, seed: int) -> Int[Tensor, "texts size"]:
    """Rename the symbols 0 to `count` - 1 of every text by a draw of its own."""
    draws = torch.rand(len(symbols), count, generator=torch.Generator().manual_seed(seed))
    return draws.argsort(1).gather(1, symbols)


@torch.no_grad()
def letter_bits(model: Any, plain: Int[Tensor, "texts size"], seed: int) -> dict[str, Float[np.ndarray, " texts"]]:
    """Return bits per letter of each text's first and last letters, under its own and under other names."""
    alphabet = torch.tensor(list(LETTERS))
    numbers = torch.zeros(256, dtype=torch.long)
    numbers[alphabet] = torch.arange(len(alphabet))
    found = {}
    for how, ids in (("", plain), (", renamed", alphabet[renamed(numbers[plain], len(alphabet), seed)])):
        draws = torch.Generator().manual_seed(seed)
        nats = torch.cat([model(some, generator=draws).nats for some in ids.split(50)])
        bits = nats.double().numpy() / math.log(2)
        found |= {f"first{how}": bits[:, :FIRST].mean(1), f"last{how}": bits[:, -LAST:].mean(1)}
    return found


@torch.no_grad()
def look_ups(
    model: Any, plain: Int[Tensor, "texts size"], other: Int[Tensor, "texts size"], symbols: int, seed: int
) -> dict[str, Any]:
    """Return whether what was looked up is right, and how much better a linear layer reads letters behind their names.

    The layer is learnt on half of the renamed texts `other`, and tried on the rest: last quarter minus first four.
    """
    draws = torch.Generator().manual_seed(seed)
    task = lookup_task(len(plain), 2, symbols, draws, shown=6)
    table = model.table(len(plain), draws)
    said = model.logits(model.states(task.texts[:, :-1], table), table)[:, -1].argmax(-1)
    states, half = model.states(other, table)[:, 1:], len(plain) // 2
    read = probe_accuracy(states[:half], plain[:half], states[half:], plain[half:]).numpy()
    grows = read[-plain.shape[1] // 4 :].mean() - read[:4].mean()
    return {"looked up": (said == task.texts[:, -1]).numpy(), "grows": grows}


def gap_shrinks(ours: str, rival: str) -> Finding:
    """Return whether the bits that `ours` costs above `rival` at least halve along a text."""

    def gap(run: Run, of: str) -> Any:
        return run.column(ours, of) - run.column(rival, of)

    return Finding(
        metric=f"bits per letter of English above an ordinary model's, last {LAST} minus half of the first {FIRST}'s",
        value=lambda run: bootstrap(gap(run, "last") - gap(run, "first") / 2),
        unit="bits per letter",
        more_is_better=False,
        n=lambda run: len(gap(run, "last")),
        baseline=lambda run: {"first letters": float(gap(run, "first").mean())},
        claim="on English the gap to an ordinary model at least halves along a text",
        holds=below(0),
    )


def names_cost(arm: str, of: str, *, blind: bool) -> Finding:
    """Return what other names cost an arm at the end of a text, from its columns `of` and ``of, renamed``."""
    part = {"late": "half", "last": "letters"}[of]
    told = "names mean nothing to the lexinvariant model: renamed texts cost the same"
    return Finding(
        metric=f"bits per symbol of renamed texts, minus plain ones, last {part}, {arm}",
        unit="bits per symbol",
        value=lambda run: bootstrap(run.column(arm, f"{of}, renamed") - run.column(arm, of)),
        n=lambda run: len(run.column(arm, of)),
        more_is_better=False,
        claim=told if blind else "renamed texts cost an ordinary model over 1 bit more",
        holds=contains(0) if blind else above(1),
    )

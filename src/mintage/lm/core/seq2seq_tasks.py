"""What models that read one row of bytes and write another are trained on, as batches by their number.

Ids are ByT5's: a byte is its value + 3, 0 fills, 1 ends a text. Not here: where windows of text come from
(`mintage.lm.core.windows`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from mintage.errors import UserError
from mintage.lm.core.windows import Windows

__all__ = ["Judged", "PrefixTask", "Seq2SeqTask", "SpanTask", "VowelTask", "judge_rows", "noise_spans"]

BYTE, END, FIRST_SENTINEL = 3, 1, 258
"""Of ids: what is added to a byte, the end of a text, and the mark of the first span; the others count down."""

MOST_SPANS = 100
"""Marks that ByT5 has: ids of bytes that valid text does not hold, or seldom."""

_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
_VOWELS = np.frombuffer(b"aeiouAEIOU", np.uint8)

Row = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Ids that are read, ids that are written, and which of these are bytes of the text."""


class Seq2SeqTask(ABC):
    """Rows to read and what to write for each."""

    @abstractmethod
    def row(self, number: int, seed: int) -> Row:
        """Return row number `number` of the training, or, where it is negative, of those held out (-1, -2, ...)."""

    def batch(self, index: int, rows: int, seed: int) -> dict[str, Tensor]:
        """Return batch number `index`: ``input_ids`` (0 fills), ``labels`` (-100 fills), ``counted``."""
        return _filled([self.row(index * rows + i, seed) for i in range(rows)])

    def held_out(self, count: int, rows: int, seed: int = 0) -> list[dict[str, Tensor]]:
        """Return `count` rows that no training sees, the same for every seed of a training, in batches."""
        numbers = range(1, count + 1)
        return [_filled([self.row(-n, seed) for n in numbers[i : i + rows]]) for i in range(0, count, rows)]


def _filled(rows: Sequence[Row]) -> dict[str, Tensor]:
    def stack(number: int, value: int, kind: Any = np.int64) -> Tensor:
        width = max(len(row[number]) for row in rows)
        out = np.full((len(rows), width), value, kind)
        for place, row in enumerate(rows):
            out[place, : len(row[number])] = row[number]
        return torch.from_numpy(out)

    return {"input_ids": stack(0, 0), "labels": stack(1, -100), "counted": stack(2, 0, np.bool_)}


@dataclass(frozen=True)
class VowelTask(Seq2SeqTask):
    """Write a row of random letters without its vowels (section 4): 10 letters of 52 can go without loss.

    Parameters
    ----------
    size
        Ids of a row, the end among them.
    grow
        Rows of the training over which sizes rise from 8 to `size`: a model learns to copy in short rows.
    """

    size: int = 64
    grow: int = 0

    def row(self, number: int, seed: int) -> Row:
        """See `Seq2SeqTask.row`."""
        size = self.size
        if 0 <= number < self.grow:
            size = min(8, self.size) + (max(self.size - 8, 0) * number) // self.grow
        drawn = np.random.default_rng([seed, abs(number), int(number < 0)])
        letters = _LETTERS[drawn.integers(len(_LETTERS), size=size - 1)]
        kept = letters[~np.isin(letters, _VOWELS)]
        return _ended(letters), _ended(kept), np.append(np.ones(len(kept), bool), False)


@dataclass(frozen=True)
class _WindowTask(Seq2SeqTask):
    """A task over windows of text.

    Parameters
    ----------
    windows
        To learn from, and to measure on.
    """

    windows: Windows

    def window(self, number: int, seed: int) -> UInt8[np.ndarray, " size"]:
        """Return the window of a row; every epoch has its own order."""
        if number < 0:
            return self.windows.held_out[(-number - 1) % len(self.windows.held_out)]
        epoch, place = divmod(number, len(self.windows.train))
        return self.windows.train[_order(len(self.windows.train), seed, epoch)[place]]


@dataclass(frozen=True)
class SpanTask(_WindowTask):
    """Write the spans that were taken out of a window, as ByT5 was trained (Raffel et al. 2020, section 3.1.4).

    Parameters
    ----------
    density
        Share of the bytes that are taken out.
    span
        Mean length of what is taken out in one piece.
    """

    density: float = 0.15
    span: float = 20.0

    def __post_init__(self) -> None:
        size = self.windows.train.shape[1]
        if round(size * self.density / self.span) > MOST_SPANS:
            raise UserError(f"windows of {size} bytes have more than {MOST_SPANS} spans; pass smaller windows")

    def row(self, number: int, seed: int) -> Row:
        """See `Seq2SeqTask.row`."""
        window = self.window(number, seed)
        drawn = np.random.default_rng([seed if number >= 0 else 0, abs(number), int(number < 0)])
        gone = noise_spans(len(window), self.density, self.span, drawn)
        read, _ = _marked(window, gone)
        written, counted = _marked(window, ~gone)
        return read, written, counted


@dataclass(frozen=True)
class PrefixTask(_WindowTask):
    """Read the first half of a window and write the second, so that bits per byte compare with other models'."""

    def row(self, number: int, seed: int) -> Row:
        """See `Seq2SeqTask.row`."""
        window = self.window(number, seed)
        half = len(window) // 2
        rest = window[half:].astype(np.int64) + BYTE
        return _ended(window[:half]), rest, np.ones(len(rest), bool)


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _ended(data: np.ndarray) -> np.ndarray:
    return np.append(data.astype(np.int64) + BYTE, END)


def _marked(window: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put a mark in the place of every run that is gone; return the ids, and which of them are bytes."""
    begins = gone & ~np.append(False, gone[:-1])
    ids = np.where(begins, FIRST_SENTINEL + 1 - begins.cumsum(), window.astype(np.int64) + BYTE)
    stays = ~gone | begins
    return np.append(ids[stays], END), np.append(~begins[stays], False)


def noise_spans(size: int, density: float, span: float, drawn: np.random.Generator) -> Bool[np.ndarray, " size"]:
    """Draw which bytes are taken out: runs of random lengths, what stays in front, as T5's ``random_spans_helper``."""
    gone = min(max(round(size * density), 1), size - 1)
    pieces = max(round(min(gone, size - gone) / span), 1)

    def lengths(total: int) -> np.ndarray:
        cuts = np.sort(drawn.choice(total - 1, pieces - 1, replace=False)) + 1
        return np.diff(np.concatenate([[0], cuts, [total]]))

    turns = np.stack([lengths(size - gone), lengths(gone)], 1).ravel()
    return np.repeat(np.arange(2 * pieces) % 2 == 1, turns)


class Judged(NamedTuple):
    """What a model does with held-out rows, one number each.

    Parameters
    ----------
    bits, size
        Cost of the bytes to be written, and how many these are.
    right
        Whether every byte was the likeliest, the end too: whether greedy decoding writes the row.
    deleted, read, kept
        Bytes read that were deleted, bytes read, and positions that the batch's rows have behind the gate.
    """

    bits: Float[np.ndarray, " rows"]
    size: Float[np.ndarray, " rows"]
    right: Float[np.ndarray, " rows"]
    deleted: Float[np.ndarray, " rows"]
    read: Float[np.ndarray, " rows"]
    kept: Float[np.ndarray, " rows"]


@torch.no_grad()
def judge_rows(model: Any, batches: Sequence[dict[str, Tensor]]) -> Judged:
    """Judge a model in evaluation mode, so under hard deletion; random gates draw from torch's generator."""
    found: list[list[Tensor]] = []
    for batch in batches:
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        ids, labels, counted = batch["input_ids"], batch["labels"], batch["counted"]
        out = model(input_ids=ids, labels=labels)
        nats = F.cross_entropy(out.logits.transpose(1, 2).float(), labels, ignore_index=-100, reduction="none")
        right = ((out.logits.argmax(-1) == labels) | (labels == -100)).all(1)
        real = ids != 0
        gone = torch.zeros_like(real) if out.gate is None else (out.gate <= model.config.threshold) & real
        kept = real.new_full((len(ids),), out.encoder_last_hidden_state.shape[1], dtype=torch.float)
        bits = (nats * counted).sum(1) / math.log(2)
        found.append([bits, counted.sum(1), right, gone.sum(1), real.sum(1), kept])
    return Judged(*(torch.cat(column).double().cpu().numpy() for column in zip(*found, strict=True)))

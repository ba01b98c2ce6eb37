"""What a byte language model is judged by: bits, whole words, mistyped contexts, bytes per second.

Every function gives numbers by unit (a window, a word), the same units for every model, so that they can be paired.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray

from mintage.bench.lm.noise import NOISES
from mintage.errors import UserError
from mintage.lm.contract import ByteLanguageModel
from mintage.lm.core.sampling import Sampling

__all__ = ["CONTEXT", "HeldOut", "bits_after_noise", "training_speed", "window_bits", "word_counts", "writing_speed"]

CONTEXT = 64
"""Bytes at the beginning of a window that are read and not scored."""

_WORD = re.compile(rb"[^\s]+")
_ROWS = 16
FREQUENCIES = ("new", "rare", "common")
"""Words that were not seen in training, at most ten times, and more often."""


def word_counts(windows: UInt8[np.ndarray, "windows size"]) -> Counter[bytes]:
    """Count whitespace-separated words."""
    return Counter(_WORD.findall(windows.tobytes()))


class HeldOut(NamedTuple):
    """Windows to judge by, and the whole words in them behind the context."""

    windows: UInt8[np.ndarray, "windows size"]
    words: list[tuple[int, int, int, str]]
    """Window, first byte, byte behind the last, and how common the word is (`FREQUENCIES`)."""

    @classmethod
    def of(cls, windows: UInt8[np.ndarray, "windows size"], seen: Mapping[bytes, int]) -> HeldOut:
        """Find the words; `seen` counts those of the training text."""
        found = []
        for row, window in enumerate(windows):
            text = window.tobytes()
            for word in _WORD.finditer(text):
                if word.start() >= CONTEXT and word.end() < len(text):
                    count = seen.get(word.group(), 0)
                    common = FREQUENCIES[0] if not count else FREQUENCIES[1] if count <= 10 else FREQUENCIES[2]
                    found.append((row, *word.span(), common))
        return cls(windows, found)


@torch.no_grad()
def _read(model: ByteLanguageModel, windows: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    nats, right = [], []
    for start in range(0, len(windows), _ROWS):
        ids = torch.from_numpy(np.asarray(windows[start : start + _ROWS], np.int64)).to(model.device)
        found = model.forward(ids)
        nats.append(found.nats.double().cpu().numpy())
        right.append(found.right.cpu().numpy())
    return np.concatenate(nats), np.concatenate(right)


def window_bits(model: ByteLanguageModel, held: HeldOut) -> dict[str, NDArray[np.float64]]:
    """Return columns by window (``bits``: per byte, behind the context) and by word (``word``, ``word, rare``, ...).

    A word is right if every byte of it, and the end of what stands before it, is the likeliest behind the true text.
    """
    nats, right = _read(model, held.windows)
    columns = {"bits": nats[:, CONTEXT:].mean(1) / math.log(2)}
    whole = np.array([right[row, start:stop].all() for row, start, stop, _ in held.words], float)
    common = np.array([how for *_, how in held.words])
    columns["word"] = whole
    for how in FREQUENCIES:
        if (common == how).any():
            columns[f"word, {how}"] = whole[common == how]
    return columns


def bits_after_noise(
    model: ByteLanguageModel, windows: UInt8[np.ndarray, "windows size"], seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return what the untouched second half of each window costs behind a first half as `NOISES` make it, by noise."""
    half = windows.shape[1] // 2
    columns = {}
    for name, noise in NOISES.items():
        texts = [noise(row[:half].tobytes(), seed + i) + row[half:].tobytes() for i, row in enumerate(windows)]
        bits = []
        for start in range(0, len(texts), _ROWS):
            some = texts[start : start + _ROWS]
            nats = model.read(some).nats.double().cpu().numpy()
            ends = [row[len(text) - half : len(text)] for row, text in zip(nats, some, strict=True)]
            bits += [end.mean() / math.log(2) for end in ends]
        columns[f"bits, {name}"] = np.array(bits)
    return columns


def training_speed(model: ByteLanguageModel, batch: torch.Tensor) -> float:
    """Return bytes per second of one forward and backward."""
    model.train()
    began = time.perf_counter()
    model.forward(batch).loss.backward()
    seconds = time.perf_counter() - began
    model.zero_grad()
    model.eval()
    return batch.numel() / seconds


def writing_speed(model: ByteLanguageModel, prompt: bytes, count: int, seed: int) -> float:
    """Return bytes per second of writing `count` bytes behind a prompt, its reading included."""
    how = Sampling(max_new_tokens=count, do_sample=True, temperature=0.8, seed=seed)
    began = time.perf_counter()
    written = model.write(prompt, how)
    if len(written) != count:
        raise UserError(f"{type(model).__name__} wrote {len(written)} of {count} bytes")
    return count / (time.perf_counter() - began)


def sample_prompts(windows: UInt8[np.ndarray, "windows size"], count: int) -> Sequence[bytes]:
    """Return the first halves of some windows."""
    return [row[: len(row) // 2].tobytes() for row in windows[:count]]

"""Texts as windows of a tokenizer's tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.lm.core.windows import drawn

__all__ = ["TokenRecipe", "token_windows", "window_mark"]


def token_windows(tokenizer: Any, texts: Iterable[str], size: int) -> Int[np.ndarray, "windows size"]:
    """Cut texts into tokens, join them by the end-of-text token (if there is one), and cut windows.

    Raises
    ------
    UserError
        There is not one window.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    some: list[str] = []

    def take() -> None:
        for row in tokenizer(some, add_special_tokens=False)["input_ids"]:
            ids.extend([*row, *end])
        some.clear()

    for text in texts:
        if text:
            some.append(text)
        if len(some) == 1024:
            take()
    if some:
        take()
    if len(ids) < size:
        raise UserError(f"the texts have {len(ids)} tokens, less than one window of {size}; pass more text")
    return np.array(ids, np.int64)[: len(ids) // size * size].reshape(-1, size)


def window_mark(windows: Int[np.ndarray, "windows size"]) -> str:
    """Return what changes with the windows."""
    return hashlib.sha256(np.ascontiguousarray(windows).tobytes()).hexdigest()[:12]


class TokenRecipe:
    """Windows of tokens in seeded order, for any causal language model; nats per token.

    Parameters
    ----------
    model
        A causal language model of transformers.
    windows
        What it learns from.
    rows, seed
        Windows of a batch; the order follows from the seed.
    """

    def __init__(self, model: Any, windows: Int[np.ndarray, "windows size"], rows: int, seed: int) -> None:
        self.module: nn.Module = model
        self.windows, self.rows, self.seed = windows, rows, seed

    def batch(self, index: int) -> Tensor:
        """Return a batch of windows; every epoch has its own order."""
        return torch.from_numpy(self.windows[drawn(len(self.windows), index, self.rows, self.seed)])

    def loss(self, module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross entropy of the next token."""
        return module(input_ids=batch, labels=batch, use_cache=False).loss, {}

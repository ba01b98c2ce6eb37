"""Which tokens of a file a model of code predicts right: every piece the likeliest one behind the true text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from mintage.lm.core.code_windows import pieces_of
from mintage.lm.core.python_lexer import lex_python

__all__ = ["NOT_COUNTED", "right_tokens"]

NOT_COUNTED = frozenset({"EOL", "INDENT", "DEDENT", "COMMENT"})
"""Types of tokens that the paper does not count; comments are none of its tokens."""


@torch.no_grad()
def right_tokens(model: Any, tokenizer: Any, source: str, window: int) -> Bool[np.ndarray, " tokens"]:
    """Return for every token of a file, but for `NOT_COUNTED` ones, whether it is predicted right.

    The file is read in windows of `window` pieces that overlap by half, so that a piece has at least half a window
    before it where the file has; the file's first piece cannot be right.
    """
    ids, offsets = pieces_of(tokenizer, source)
    right = np.zeros(len(ids), bool)
    for start in range(0, max(len(ids) - window // 2, 1), max(window // 2, 1)):
        piece = torch.tensor([ids[start : start + window]], device=model.device)
        best = model(input_ids=piece, use_cache=False).logits[0, :-1].argmax(-1)
        fresh = 1 if not start else window // 2
        right[start + fresh : start + piece.shape[1]] = (best == piece[0, 1:]).cpu().numpy()[fresh - 1 :]
    starts = np.array([start for start, _ in offsets], np.int64)
    ends = np.array([end for _, end in offsets], np.int64)
    lexed = lex_python(source)
    kept = [number for number, kind in enumerate(lexed.types) if kind not in NOT_COUNTED]
    first = np.searchsorted(ends, np.array(lexed.starts, np.int64)[kept], side="right")
    behind = np.searchsorted(starts, np.array(lexed.ends, np.int64)[kept], side="left")
    good = np.concatenate([[0], right.cumsum()])
    return (good[behind] - good[first] == behind - first) & (behind > first)

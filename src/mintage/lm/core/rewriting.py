"""Bytes through a model that reads one row and writes another, with ByT5's ids."""

from __future__ import annotations

from typing import Any

import torch

from mintage.errors import UserError
from mintage.lm.core.sampling import Sampling
from mintage.lm.core.seq2seq_tasks import BYTE, END

__all__ = ["rewrite"]


@torch.no_grad()
def rewrite(model: Any, text: bytes | str, sampling: Sampling | None = None) -> bytes:
    """Return what a model writes for a text, up to its end or ``sampling.max_new_tokens`` bytes; it need not be UTF-8.

    Raises
    ------
    UserError
        There is nothing to write, or every byte is deleted.
    """
    how = sampling or Sampling()
    if how.max_new_tokens < 1:
        raise UserError("max_new_tokens=0 writes nothing; pass at least 1")
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    ids = torch.tensor([[*(byte + BYTE for byte in data), END]], device=model.device)
    drawn = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p} if how.do_sample else {}
    with torch.random.fork_rng(enabled=how.seed is not None):
        if how.seed is not None:
            torch.manual_seed(how.seed)
        out = model.generate(input_ids=ids, max_new_tokens=how.max_new_tokens, do_sample=how.do_sample, **drawn)
    return bytes(i - BYTE for i in out[0].tolist() if BYTE <= i < BYTE + 256)

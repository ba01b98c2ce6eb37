"""Scripts of letters, and the script that a stream of bytes is in at each byte."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
import regex
from jaxtyping import Int, UInt8

__all__ = ["is_script", "running_letters", "script_of"]


@cache
def is_script(name: str) -> bool:
    """Whether Unicode has a script of this name, e.g. Latin."""
    try:
        return name.replace("_", "").isalpha() and bool(regex.compile(rf"\p{{Script={name}}}"))
    except regex.error:
        return False


@lru_cache(maxsize=1 << 16)
def script_of(code: int) -> str:
    """Return the script of the letter or mark of a code point by Unicode's property; "" of what has none of its own.

    A letter's name holds the name of its script (Han is called CJK there), which spares the table.
    """
    letter = chr(code)
    if unicodedata.category(letter)[0] not in "LM":
        return ""
    words = [word.title() for word in unicodedata.name(letter, "").replace("-", " ").split()]
    pairs = [f"{first}_{second}" for first, second in pairwise(words)]
    for name in ("Latin", "Han", *pairs, *words):
        own = name not in ("Common", "Inherited") and is_script(name)
        if own and regex.fullmatch(rf"\p{{Script={name}}}", letter):
            return name
    return ""


def running_letters(rows: UInt8[np.ndarray, "batch bytes"]) -> Int[np.ndarray, "batch bytes"]:
    """Return the code point of the last letter that is complete at each byte, -1 before the first.

    Bytes inside a letter still belong to the one before it, so what a byte is read as never depends on later ones.
    Bytes that are no UTF-8, and characters of no script, change nothing.
    """
    data = rows.astype(np.int64)
    found = np.full(data.shape, -1, np.int64)
    tail = (data & 0xC0) == 0x80
    for size, (low, high, mask, least) in enumerate(_LEADS, start=1):
        if data.shape[1] < size:
            break
        count = data.shape[1] - size + 1
        lead = data[:, :count]
        whole = (lead >= low) & (lead <= high)
        code = lead & mask
        for more in range(1, size):
            whole &= tail[:, more : more + count]
            code = code << 6 | data[:, more : more + count] & 0x3F
        whole &= (code >= least) & (code < 0x110000)
        end = found[:, size - 1 :]
        end[whole] = code[whole]
    codes, where = np.unique(found, return_inverse=True)
    lettered = np.array([code >= 0 and bool(script_of(int(code))) for code in codes], bool)
    known = lettered[where.reshape(found.shape)] if found.size else found >= 0
    last = np.maximum.accumulate(np.where(known, np.arange(data.shape[1]), -1), 1)
    return np.where(last >= 0, np.take_along_axis(found, last.clip(min=0), 1), -1)


_LEADS = ((0x00, 0x7F, 0x7F, 0), (0xC2, 0xDF, 0x1F, 0x80), (0xE0, 0xEF, 0x0F, 0x800), (0xF0, 0xF4, 0x07, 0x10000))
"""Of characters of one to four bytes: lowest and highest first byte, its own bits, the least code point."""

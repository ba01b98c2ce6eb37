"""Texts as people mistype them: seeded, and the same for every model."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

__all__ = ["NOISES", "mistyped"]

_WORD = re.compile(rb"[A-Za-z]{2,}")
_LEET = bytes.maketrans(b"aeiostAEIOST", b"431057431057")


def mistyped(text: bytes, share: float, seed: int) -> bytes:
    """Change a share of the words by one edit: swap, replace, delete, insert or double a letter."""
    draw = np.random.default_rng(seed)

    def edit(found: re.Match[bytes]) -> bytes:
        word = bytearray(found.group())
        if draw.random() >= share:
            return bytes(word)
        place, letter = int(draw.integers(len(word))), int(draw.integers(26)) + 97
        kind = int(draw.integers(5))
        if kind == 0:
            other = place - 1 if place else 1
            word[place], word[other] = word[other], word[place]
        elif kind == 1:
            word[place] = letter
        elif kind == 2:
            del word[place]
        else:
            word.insert(place, letter if kind == 3 else word[place])
        return bytes(word)

    return _WORD.sub(edit, text)


def _spaced(text: bytes, seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    put = draw.random(len(text)) < 0.05
    return b"".join(bytes([byte]) + (b" " if more else b"") for byte, more in zip(text, put, strict=True))


NOISES: dict[str, Callable[[bytes, int], bytes]] = {
    "clean": lambda text, seed: text,
    "5% typos": lambda text, seed: mistyped(text, 0.05, seed),
    "10% typos": lambda text, seed: mistyped(text, 0.1, seed),
    "20% typos": lambda text, seed: mistyped(text, 0.2, seed),
    "ALL CAPS": lambda text, seed: text.upper(),
    "l33t": lambda text, seed: text.translate(_LEET),
    "random spaces": _spaced,
}
"""What is done to a context, by name."""

"""A SentencePiece model's table of characters as normalizers of ``tokenizers``.

sentencepiece replaces the longest key of the table, from left to right; ``Precompiled`` of tokenizers reads a character
with its marks at once, takes the shortest key, and drops the rest, or takes none where they are long. Here it sees one
character at a time: what a table of the usual kind (NFKC) composes is composed before, marks are kept apart.
"""

from __future__ import annotations

import struct
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

from tokenizers import Regex, normalizers

__all__ = ["keys_of", "rewriting"]

_APART = "\U000ffffe"  # a private letter between characters that are not to be read together
_SMALL = 1 << 16  # bytes of a table whose keys are looked at one by one


def rewriting(table: bytes) -> list[Any]:
    """Return normalizers that do what a table says."""
    rewrites = normalizers.Precompiled(table)
    if rewrites.normalize_str("e\u0301") != "é":  # a table of somebody's own
        lines = "".join(map(rewrites.normalize_str, "\r\n"))
        return [*([normalizers.Replace("\r\n", lines)] if lines != "\r\n" else []), rewrites]
    steps: list[Any] = []
    if rewrites.normalize_str("\uff76") == "カ":
        steps += [normalizers.Replace(pair, one) for pair, one in _voiced()]
    steps += [normalizers.Replace(Regex(_not_composed()), _APART), normalizers.NFC()]
    apart = normalizers.Replace(Regex(r"(?=[\p{M}\n\x{200d}])(?<=[\s\S])"), _APART)
    return [*steps, apart, rewrites, normalizers.Replace(_APART, "")]


def _voiced() -> list[tuple[str, str]]:
    """Half-width kana with a mark behind them, and the one letter that they are."""
    pairs = [chr(letter) + mark for letter in range(0xFF66, 0xFF9E) for mark in "\uff9e\uff9f"]
    return [(pair, one) for pair in pairs if len(one := unicodedata.normalize("NFKC", pair)) == 1]


@cache
def _not_composed() -> str:
    """Write where a mark must not be composed with a letter before another mark, which sentencepiece does not do."""
    bases: dict[str, list[str]] = {}
    composed: list[str] = []  # keys are of letters that are decomposed to the end, or are none
    for code in range(0xC0, 0x30000):
        parts = unicodedata.decomposition(chr(code)).split(" ")
        if len(parts) == 2 and not parts[0].startswith("<"):
            base, mark = (chr(int(part, 16)) for part in parts)
            if unicodedata.category(mark)[0] == "M" and unicodedata.normalize("NFC", base + mark) == chr(code):
                bases.setdefault(mark, []).append(base)
                composed.append(chr(code))
    begins = {letter for letters in bases.values() for letter in letters if unicodedata.category(letter)[0] == "M"}
    ways = [rf"(?<=[\p{{M}}&&[^{_written(bases.keys() | begins)}]])", rf"(?<=[{_written(composed)}])"]
    ways += [rf"(?<=[^{_written(letters)}]{_written(mark)})" for mark, letters in bases.items()]
    return rf"(?=\p{{M}})(?:{'|'.join(ways)})"


def _written(letters: Iterable[str]) -> str:
    return "".join(f"\\x{{{ord(letter):x}}}" for letter in letters)


def keys_of(table: bytes) -> list[str]:
    """Return the keys of a small table, which are what may be read otherwise; none of a large, usual one."""
    if not 4 < len(table) <= _SMALL:
        return []
    (size,) = struct.unpack_from("<I", table)
    units = struct.unpack_from(f"<{size // 4}I", table, 4)
    found, open_ = [], [(0, b"")]
    while open_:  # down a double array of darts-clone
        place, key = open_.pop()
        unit = units[place]
        base = place ^ ((unit >> 10) << ((unit & 0x200) >> 6))
        if key and unit >> 8 & 1:
            found.append(key.decode("utf-8", "replace"))
        for byte in range(1, 256):
            after = base ^ byte
            if after < len(units) and units[after] & 0x800000FF == byte:
                open_.append((after, key + bytes([byte])))
    return found

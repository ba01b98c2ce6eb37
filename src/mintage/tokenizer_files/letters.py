"""How byte-level vocabularies write bytes, and a regular expression for the longest of some words."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["BYTE_CHARS", "longest_match_pattern"]


def _byte_chars() -> str:
    """Return the character of every byte: itself where it prints, else the next free one from U+0100 on."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(b if b in printing else next(others)) for b in range(256))


BYTE_CHARS = _byte_chars()
"""``BYTE_CHARS[b]`` stands for byte `b` in vocabularies, as in `tokenizers.pre_tokenizers.ByteLevel`."""


def longest_match_pattern(words: Iterable[str]) -> str:
    """Write a regular expression that matches the longest of some words: a tree, optional groups where words end."""
    ends, children = set[str](), dict[str, list[str]]()
    seen: set[str] = set()
    for word in words:
        ends.add(word)
        while word and word not in seen:
            seen.add(word)
            children.setdefault(word[:-1], []).append(word[-1])
            word = word[:-1]
    patterns: dict[str, str] = {}
    for prefix in sorted(children, key=len, reverse=True):  # from the leaves to the root; trees may be deep
        leaves, parts = "", []
        for char in children[prefix]:
            written = char if char.isascii() and char.isalnum() else f"\\x{{{ord(char):x}}}"
            more = patterns.pop(prefix + char, None)
            if more is None:
                leaves += written
            else:
                parts.append(written + more)
        if leaves:
            parts.append(f"[{leaves}]")
        patterns[prefix] = f"(?:{'|'.join(parts)}){'?' if prefix in ends else ''}"
    return patterns[""]

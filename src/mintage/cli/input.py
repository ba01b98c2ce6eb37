"""What a verb reads: the text that was passed to it, or standard input."""

from __future__ import annotations

import sys

__all__ = ["read_input"]


def read_input(text: str) -> bytes:
    """Return the text's UTF-8, or, where it is ``-``, all of standard input as it is."""
    if text != "-":
        return text.encode("utf-8", "surrogateescape")  # bytes of the command line that are no text
    stream = getattr(sys.stdin, "buffer", None)
    return stream.read() if stream else sys.stdin.read().encode()

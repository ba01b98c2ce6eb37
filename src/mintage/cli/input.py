"""What a verb reads: the text that was passed to it, or standard input."""

from __future__ import annotations

import sys

from mintage.errors import UserError

__all__ = ["read_input"]


def read_input(text: str) -> bytes:
    """Return the text's UTF-8, or, where it is ``-``, all of standard input as it is.

    Raises
    ------
    UserError
        Standard input is closed or cannot be read.
    """
    if text != "-":
        return text.encode("utf-8", "surrogateescape")  # bytes of the command line that are no text
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("standard input is closed; pass the text itself, or pipe it in")
    stream = getattr(sys.stdin, "buffer", None)
    try:
        return stream.read() if stream else sys.stdin.read().encode()
    except OSError as error:
        raise UserError(f"cannot read standard input: {error.strerror}; pass the text itself, or pipe it in") from None

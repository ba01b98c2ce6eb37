"""Files of tokens that a second model is trained on, and its loss made comparable: bits per byte of text."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16
from safetensors import SafetensorError, safe_open

from mintage.errors import UserError
from mintage.files import replace_file
from mintage.segment.contract import as_bytes

__all__ = ["bits_per_byte", "read_tokens", "write_tokens"]


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Turn the mean loss of a model over tokens, in nats, into bits per byte of the text that they stand for.

    Raises
    ------
    UserError
        There are no bytes.
    """
    if n_bytes < 1 or n_tokens < 0:
        raise UserError(f"{n_tokens} tokens for {n_bytes} bytes; count the tokens of at least one byte")
    return loss / float(np.log(2)) * n_tokens / n_bytes


_HEADER = 1024  # bytes kept for the header, which is known only at the end


def write_tokens(
    segmenter: Any,
    texts: Iterable[str | bytes],
    path: str | Path,
    *,
    document_bytes: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
    """Tokenise a corpus of any size into one safetensors file: ``ids`` (uint16) and ``starts`` (int64, of documents).

    Its metadata say ``tokens``, ``bytes`` and ``vocab_size``, which is what `bits_per_byte` needs.

    Parameters
    ----------
    segmenter
        Anything with ``encode(text) -> ids`` and ``vocab_size``, at most 65,536.
    texts
        Documents.
    path
        File to write, whole or not at all.
    document_bytes
        Join texts to documents of about this many bytes, where they are lines of something; None keeps each by itself.
    progress
        Told how many bytes are done.

    Returns
    -------
    tokens, bytes
        How many there are.

    Raises
    ------
    UserError
        The vocabulary is too large, or there is no text.
    """
    if segmenter.vocab_size > 1 << 16:
        raise UserError(f"a vocabulary of {segmenter.vocab_size} does not fit into 16 bits; use at most 65536 ids")
    if document_bytes is not None and document_bytes < 1:
        raise UserError(f"document_bytes={document_bytes}; pass at least 1, or None")
    starts: list[int] = []
    tokens = size = 0
    with replace_file(path) as temporary, temporary.open("wb") as file:
        file.write(bytes(_HEADER))
        for document in _documents(texts, document_bytes):
            ids = segmenter.encode(document)
            starts.append(tokens)
            file.write(np.asarray(ids, dtype="<u2").tobytes())
            tokens, size = tokens + len(ids), size + len(document)
            progress(size)
        if not size:
            raise UserError("the corpus is empty; pass at least one byte of text")
        gap = -2 * tokens % 8  # tensors begin at multiples of their size
        first = 2 * tokens
        if gap:
            file.write(bytes(gap))
        file.write(np.array(starts, dtype="<i8").tobytes())
        told = {"tokens": tokens, "bytes": size, "vocab_size": segmenter.vocab_size}
        header: dict[str, Any] = {"__metadata__": {name: str(value) for name, value in told.items()}}
        header["ids"] = {"dtype": "U16", "shape": [tokens], "data_offsets": [0, first]}
        if gap:  # the format allows no holes
            header["gap"] = {"dtype": "U8", "shape": [gap], "data_offsets": [first, first + gap]}
        begin = first + gap
        header["starts"] = {"dtype": "I64", "shape": [len(starts)], "data_offsets": [begin, begin + 8 * len(starts)]}
        text = json.dumps(header).encode()
        file.seek(0)
        file.write(struct.pack("<Q", _HEADER - 8) + text.ljust(_HEADER - 8))
    return tokens, size


def _documents(texts: Iterable[str | bytes], size: int | None) -> Iterable[bytes]:
    held: list[bytes] = []
    length = 0
    for text in texts:
        held.append(as_bytes(text))
        length += len(held[-1])
        if size is None or length >= size:
            yield b"".join(held)
            held, length = [], 0
    if held:
        yield b"".join(held)


def read_tokens(path: str | Path) -> tuple[UInt16[np.ndarray, " tokens"], dict[str, int]]:
    """Read the ids that `write_tokens` wrote, and its numbers of ``tokens`` and ``bytes`` and the ``vocab_size``.

    Raises
    ------
    UserError
        There is no such file, or it is something else.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            return file.get_tensor("ids"), {name: int(metadata[name]) for name in ("tokens", "bytes", "vocab_size")}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no file of tokens ({error}); write it with write_tokens") from None

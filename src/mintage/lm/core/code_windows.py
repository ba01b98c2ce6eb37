"""Code as windows of a tokenizer's pieces, each piece with its type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mintage.errors import UserError
from mintage.lm.core.python_lexer import lex_python
from mintage.lm.core.token_types import Labels, piece_types
from mintage.lm.core.windows import drawn

__all__ = ["CodeWindows", "pieces_of", "typed_windows", "unpythonic", "without_comments"]


class CodeWindows(NamedTuple):
    """Windows of code and of its types, aligned."""

    code: Int[np.ndarray, "windows size"]
    types: Int[np.ndarray, "windows size"]
    """-1 where a text has no types."""

    def batch(self, index: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return batch number `index`; every epoch has its own order, which follows from the seed."""
        some = drawn(len(self.code), index, rows, seed)
        return torch.from_numpy(self.code[some].astype(np.int64)), torch.from_numpy(self.types[some].astype(np.int64))

    def shuffled(self, seed: int) -> CodeWindows:
        """Return them with the types of every window in a random order: what types say, without where."""
        draw = np.random.default_rng(seed)
        return CodeWindows(self.code, draw.permuted(self.types, axis=1))


def pieces_of(tokenizer: Any, source: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the pieces of a text and where they stand in it.

    Raises
    ------
    UserError
        The tokenizer does not tell where.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} tells no offsets, so types cannot be aligned; pass a fast tokenizer"
        )
    found = tokenizer(source, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return found["input_ids"], found["offset_mapping"]


def typed_windows(tokenizer: Any, sources: Iterable[str], size: int, labels: Labels) -> CodeWindows:
    """Join files by the end-of-text token (if there is one), and cut windows of `size` pieces.

    Raises
    ------
    UserError
        There is not one window.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    known = {name: index for index, name in enumerate(labels.names)}
    code: list[int] = []
    types: list[np.ndarray] = []
    for source in sources:
        ids, offsets = pieces_of(tokenizer, source)
        if not ids:
            continue
        cover = labels.cover(source)
        if cover is None:
            types.append(np.full(len(ids) + len(end), -1, np.int16))
        else:
            of_cover = np.array([known[name] for *_, name in cover], np.int16)
            types += [of_cover[piece_types(cover, offsets)], np.full(len(end), len(known), np.int16)]
        code += [*ids, *end]
    if len(code) < size:
        raise UserError(f"the code has {len(code)} tokens, less than one window of {size}; pass more code")
    count = len(code) // size * size
    shape = (-1, size)
    return CodeWindows(np.array(code[:count], np.int32).reshape(shape), np.concatenate(types)[:count].reshape(shape))


_LAYOUT = ("EOL", "INDENT", "DEDENT")


def without_comments(source: str) -> str:
    """Take comments and empty lines out of code, and what docstrings say: strings that are statements become empty."""
    lexed = lex_python(source)
    found: list[str] = []
    done, before = 0, "EOL"
    following = [*lexed.types[1:], "EOL"]
    for kind, start, end, after in zip(lexed.types, lexed.starts, lexed.ends, following, strict=True):
        gap, text, done = source[done:start], source[start:end], end
        if kind == "COMMENT" or (kind == before == "EOL"):
            continue
        is_statement = before in _LAYOUT and after in ("EOL", "COMMENT")
        found += [gap, '""' if kind == "STRING" and is_statement else text]
        before = kind
    return "".join([*found, source[done:]])


def _statements(source: str) -> Iterator[int]:
    """Yield where the first token of every line stands that begins a statement."""
    lexed, depth, fresh = lex_python(source), 0, True
    for kind, start in zip(lexed.types, lexed.starts, strict=True):
        if kind == "EOL":
            fresh = depth <= 0
        elif kind not in ("INDENT", "DEDENT", "COMMENT"):
            if fresh:
                yield start
            fresh = False
            depth += (kind in ("LPAR", "LSQB", "LBRACE")) - (kind in ("RPAR", "RSQB", "RBRACE"))


def _line(source: str, begin: int) -> int:
    return len(re.findall("\r\n?|\n", source[:begin])) + 1


_PYTHON_2 = re.compile(
    r"(?:print|exec)[ \t]+(?:\w|['\"%])|except[ \t]+[\w.]+[ \t]*,[ \t]*\w+[ \t]*:|raise[ \t]+\w+[ \t]*,"
)


def unpythonic(source: str) -> tuple[int, str] | None:
    """Return line and reason where a text is Python 2, or mixes tabs and blanks as Python refuses it; else None."""
    blocks = [(0, 0)]  # columns of open blocks with tabs of eight and of one
    for start in _statements(source):
        begin = max(source.rfind("\n", 0, start), source.rfind("\r", 0, start)) + 1
        if _PYTHON_2.match(source, start):
            return _line(source, begin), "is Python 2"
        blanks = source[begin:start]
        if blanks.strip(" \t"):
            continue
        column = (len(blanks.expandtabs(8)), len(blanks))
        while column[0] < blocks[-1][0]:
            blocks.pop()
        deeper = [mine > inner for mine, inner in zip(column, blocks[-1], strict=True)]
        if column == blocks[-1]:
            continue
        if not all(deeper):
            return _line(source, begin), "mixes tabs and blanks"
        blocks.append(column)
    return None

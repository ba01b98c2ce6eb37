"""Token types beside code: the streams of PyCoder's preprocessing, and a type for every piece of any tokenizer.

The streams (`python_token_types`) are those of the authors, token for token. Pieces (`piece_types`) are what models
read: offsets of a tokenizer against stretches of the text that carry a type, whether lexical (`lexical_cover`) or of
the syntax tree (`syntax_cover`), which exists for whole and right files only.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mintage.errors import UserError
from mintage.lm.core.python_lexer import TYPES, lex_python

__all__ = [
    "LABELS",
    "SYNTAX",
    "Cover",
    "Labels",
    "frequent_literals",
    "lexical_cover",
    "piece_types",
    "python_token_types",
    "repeat_types",
    "syntax_cover",
]

Cover = list[tuple[int, int, str]]
"""Start, end and type of stretches without gaps."""

_STRUCTURE = {"EOL", "INDENT", "DEDENT"}
_QUOTES = ("'''", '"""', "'", '"')


# -- the authors' streams ----------------------------------------------------------------------------------------------


def python_token_types(
    source: str, literals: Mapping[str, Collection[str]] | None = None
) -> tuple[list[str], list[str]]:
    """Return tokens and types of a file, alike in length, between ``<s>`` and ``</s>``.

    Comments go, runs of line ends become one ``<EOL>``, literals become ``<STR_LIT>`` and ``<NUM_LIT>``. Where Python's
    tokenizer would raise, the streams end.

    Parameters
    ----------
    source
        Any text.
    literals
        Frequent strings (``"str"``; blank and comma written U+0020 and U+002C) and numbers (``"num"``) that are kept,
        see `frequent_literals`; None keeps none.
    """
    strings, numbers = (frozenset((literals or {}).get(name, ())) for name in ("str", "num"))
    source = source.removeprefix("\ufeff")
    lexed = lex_python(source)
    count = len(lexed.types) if lexed.stop is None else lexed.stop
    tokens: list[str] = []
    types: list[str] = []
    for kind, start, end in zip(lexed.types[:count], lexed.starts, lexed.ends, strict=False):
        text = " ".join(source[start:end].split())
        if kind == "COMMENT" or (kind == "ERRORTOKEN" and not text) or (kind == "EOL" and tokens[-1:] == ["<EOL>"]):
            continue
        if kind in _STRUCTURE:
            text = f"<{kind}>"
        elif kind == "STRING":
            text = _string(text, strings)
        elif kind == "NUMBER":
            text = f"<NUM_LIT:{text}>" if text in numbers else "<NUM_LIT>"
        tokens.append(text)
        types.append(f"<{kind}>")
    if tokens[:1] == ["<EOL>"]:
        if lexed.stop is None:
            tokens, types = tokens[1:], types[1:]
        else:  # the authors' code puts one behind instead where their tokenizer raised
            tokens, types = [*tokens, "<EOL>"], [*types, "<EOL>"]
    return ["<s>", *tokens, "</s>"], ["<s>", *types, "</s>"]


def _parts(text: str) -> tuple[str, str, str, str]:
    """Return qualifier, opening quote, body as it is written in a stream, and closing quote of a string."""
    qualifier = re.match("[a-zA-Z]*", text)
    rest = text[qualifier.end() :] if qualifier else text
    quote = next((quote for quote in _QUOTES if rest.startswith(quote)), "")
    close = quote if rest.endswith(quote) else ""
    body = rest[len(quote) :]
    body = body[: -len(close)] if close else body
    return qualifier.group() if qualifier else "", quote, body.replace(" ", "U+0020").replace(",", "U+002C"), close


def _string(text: str, kept: Collection[str]) -> str:
    qualifier, quote, body, close = _parts(text)
    return f"{qualifier}{quote}<STR_LIT{':' + body if body in kept else ''}>{close}"


def frequent_literals(sources: Iterable[str], strings: int = 200, numbers: int = 30) -> dict[str, list[str]]:
    """Count the literals of code and return the most frequent ones, as `python_token_types` takes them."""
    counts: dict[str, Counter[str]] = {"str": Counter(), "num": Counter()}
    for source in sources:
        lexed = lex_python(source)
        for kind, start, end in zip(lexed.types, lexed.starts, lexed.ends, strict=True):
            if kind == "STRING":
                counts["str"][_parts(" ".join(source[start:end].split()))[2]] += 1
            elif kind == "NUMBER":
                counts["num"][source[start:end]] += 1
    most = {"str": strings, "num": numbers}
    return {
        name: [text for text, _ in sorted(count.items(), key=lambda one: (-one[1], one[0]))[: most[name]]]
        for name, count in counts.items()
    }


def repeat_types(types: Sequence[str], pieces: Sequence[int]) -> list[str]:
    """Repeat each token's type for each of its pieces.

    Raises
    ------
    UserError
        There is not one count for each type, or one is negative.
    """
    if len(types) != len(pieces):
        raise UserError(f"{len(types)} types and {len(pieces)} counts of pieces; pass one for each")
    if any(count < 0 for count in pieces):
        raise UserError(f"{min(pieces)} pieces of a token; pass 0 or more")
    return [kind for kind, count in zip(types, pieces, strict=True) for _ in range(count)]


# -- pieces of any tokenizer -------------------------------------------------------------------------------------------


def lexical_cover(source: str) -> Cover:
    """Return the types of Python's tokens; there are some for any text."""
    return lex_python(source).cover(len(source))


_NODES = """
FunctionDef AsyncFunctionDef ClassDef Return Delete Assign AugAssign AnnAssign For AsyncFor While If With AsyncWith
Match Raise Try TryStar Assert Import ImportFrom Global Nonlocal Expr Pass Break Continue BoolOp NamedExpr BinOp UnaryOp
Lambda IfExp Dict Set ListComp SetComp DictComp GeneratorExp Await Yield YieldFrom Compare Call FormattedValue JoinedStr
Constant Attribute Subscript Starred Name List Tuple Slice ExceptHandler arg keyword alias MatchValue MatchSingleton
MatchSequence MatchMapping MatchClass MatchStar MatchAs MatchOr
"""
SYNTAX = ("Module", "Other", *_NODES.split())
"""Types of the syntax tree: the innermost node around a letter; Module is outside all, Other what 3.11 has not."""

_LINE_END = re.compile(rb"\r\n?|\n")


def syntax_cover(source: str) -> Cover | None:
    """Return the innermost node of the syntax tree around every letter; None where Python cannot parse the text."""
    try:
        tree = ast.parse(source)
        data = source.encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = [0, *(match.end() for match in _LINE_END.finditer(data))]
    known = {name: index for index, name in enumerate(SYNTAX)}
    found = np.zeros(len(data), np.int16)
    for node in ast.walk(tree):  # parents come before their children
        if isinstance(node, ast.stmt | ast.expr | ast.excepthandler | ast.arg | ast.keyword | ast.alias | ast.pattern):
            start = lines[node.lineno - 1] + node.col_offset
            end = lines[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
            found[start:end] = known.get(type(node).__name__, 1)
    letters = found[(np.frombuffer(data, np.uint8) & 0xC0) != 0x80]  # one byte of every letter
    begins = [0, *(np.flatnonzero(np.diff(letters)) + 1).tolist(), len(letters)]
    return [(start, end, SYNTAX[letters[start]]) for start, end in pairwise(begins) if end > start]


class Labels(NamedTuple):
    """A coarse stream beside a text.

    Parameters
    ----------
    names
        Its types.
    cover
        Returns the stretches of a text, or None where there are none.
    """

    names: tuple[str, ...]
    cover: Callable[[str], Cover | None]


LABELS: Mapping[str, Labels] = {"lexer": Labels(TYPES, lexical_cover), "ast": Labels(SYNTAX, syntax_cover)}
"""The streams that there are."""


def piece_types(cover: Cover, offsets: Sequence[tuple[int, int]]) -> Int[np.ndarray, " pieces"]:
    """Return for every piece of a tokenizer the stretch that it belongs to, as an index of `cover`.

    It is the last one that has begun when the piece ends: the first piece of a token has its type, and a line end with
    the blanks behind it says whether the indentation grew. An empty stretch belongs to the piece before it.

    Parameters
    ----------
    cover
        Of the text.
    offsets
        First letter, and letter behind the last, of every piece in the text.
    """
    begun = np.array([2 * start - (start == end) for start, end, _ in cover], np.int64)
    ends = np.array([end for _, end in offsets], np.int64)
    return np.maximum(np.searchsorted(begun, 2 * ends) - 1, 0)

r"""Python source as lexical tokens with their types, in any state: half-typed, broken, or no Python at all.

Tokens and types are those of Python 3.11's pure tokenizer on every Python: later ones cut f-strings into parts and
raise where 3.11 had an error token. Nothing is raised: behind an error (`LexedCode.stop`) the lexer goes on where that
one stops. Linear in the text: a quote that is not closed on its line is remembered.

Deviations: a lone ``\r`` ends a line, as when Python opens a file; ``coding`` lines are not obeyed, a text is a text.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import NamedTuple

__all__ = ["KEYWORDS", "TYPES", "LexedCode", "lex_python"]

_KEYWORDS = """
False None True and as assert async await break class continue def del elif else except finally for from global if
import in is lambda nonlocal not or pass raise return try while with yield
"""
KEYWORDS = frozenset(_KEYWORDS.split())
"""Of Python 3.11."""

_SIGN_NAMES = """
!= NOTEQUAL % PERCENT %= PERCENTEQUAL & AMPER &= AMPEREQUAL ( LPAR ) RPAR * STAR ** DOUBLESTAR **= DOUBLESTAREQUAL
*= STAREQUAL + PLUS += PLUSEQUAL , COMMA - MINUS -= MINEQUAL -> RARROW . DOT ... ELLIPSIS / SLASH // DOUBLESLASH
//= DOUBLESLASHEQUAL /= SLASHEQUAL : COLON := COLONEQUAL ; SEMI < LESS << LEFTSHIFT <<= LEFTSHIFTEQUAL <= LESSEQUAL
= EQUAL == EQEQUAL > GREATER >= GREATEREQUAL >> RIGHTSHIFT >>= RIGHTSHIFTEQUAL @ AT @= ATEQUAL [ LSQB ] RSQB
^ CIRCUMFLEX ^= CIRCUMFLEXEQUAL { LBRACE | VBAR |= VBAREQUAL } RBRACE ~ TILDE
"""
_OPERATORS: dict[str, str] = dict(zip(_SIGN_NAMES.split()[::2], _SIGN_NAMES.split()[1::2], strict=True))

_LEXICAL = ("NAME", "KEYWORD", "NUMBER", "STRING", "OP", "ERRORTOKEN", "EOL", "INDENT", "DEDENT", "COMMENT", "BLANK")
TYPES = (*_LEXICAL, *sorted(set(_OPERATORS.values())))
"""Every type; BLANK is what stands before the first token, OP a letter that can begin no name."""

_LINE = r"(?:\r\n?|\n)"
_DIGITS = r"[0-9](?:_?[0-9])*"
_FLOAT = rf"(?:(?:{_DIGITS}\.(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?{_DIGITS})?|{_DIGITS}[eE][-+]?{_DIGITS})"
_WHOLE = r"0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO](?:_?[0-7])+|0(?:_?0)*|[1-9](?:_?[0-9])*"
_NUMBER = rf"{_DIGITS}[jJ]|{_FLOAT}[jJ]?|{_WHOLE}"
_SIGNS = r"[()\[\],]|\.\.\.|->|(?:\*\*|//|<<|>>)=?|[-+*/%&|^@=<>:!]=|[-+*/%&|^@=<>:.;{}~]"
_PREFIX = "(?:[bB][rR]?|[rR][bBfF]?|[uU]|[fF][rR]?)?"
_END_OF_LINE = re.compile(r"[\r\n]|\Z")
_UNENDED = re.compile(rf"\\{_LINE}\Z")  # the text ends behind a backslash
_NAME, _NUM, _OP, _EOL, _COMMENT, _STRING, _OPEN, _TORN, _WORD, _OTHER = range(2, 12)
"""Groups of the pattern; group 1 is the blanks before a token, and alone at the end of the text."""


def _closed(quote: str) -> str:
    """Return the rest of a string that ends on its line, or on one that backslashes join to it."""
    body = rf"(?:[^\r\n{quote}\\]++|\\(?!{_LINE})(?s:.))*+"
    return rf"{quote}(?!{quote}{quote}){body}(?:\\{_LINE}{body}(?:(?:\\|(?<=\\)){_LINE}{body})*+)?+{quote}"


def _torn(quote: str) -> str:
    """Return the rest of a string that goes on behind a backslash and is not closed there."""
    first = rf"(?:[^\r\n{quote}\\]++|\\(?!{_LINE})(?s:.))*+"
    return rf"{quote}(?!{quote}{quote}){first}\\{_LINE}(?:[^\r\n]*+(?<=\\){_LINE})*+[^\r\n]*+{_LINE}?"


def _triple(quote: str) -> str:
    return rf"{quote * 3}(?:[^{quote}\\]++|\\(?s:.)|{quote}(?!{quote}{quote}))*+{quote * 3}"


@cache
def _pattern(quotes: str) -> re.Pattern[str]:
    """Return the pattern of a token; `quotes` are those that may open a string of one line."""
    triples = "|".join(map(_triple, "'\""))
    single = "".join(f"|{_closed(quote)}" for quote in quotes)
    torn = "|".join(map(_torn, quotes)) or r"(?!)"
    return re.compile(
        rf"((?:[ \t\f]++|\\{_LINE})*+)(?:([^\W\d]\w*+(?!['\"]))|((?=\.?[0-9])(?:{_NUMBER}))|({_SIGNS})|(\r\n?|\n)"
        rf"|(#[^\r\n]*+)|({_PREFIX}(?:{triples}{single}))|({_PREFIX}(?:'''|\"\"\")(?s:.*+))|({_PREFIX}(?:{torn}))|(\w+)|((?s:.))|\Z)"
    )


class LexedCode(NamedTuple):
    """Tokens in order.

    Parameters
    ----------
    types, starts, ends
        Type, first character, and character behind the last, of every token. Blanks belong to no token.
    stop
        Tokens before the place where Python's own tokenizer raises; None if it does not.
    closing
        Tokens without a character that only the end of the text brings: the end of a last line, and its dedents.
    """

    types: list[str]
    starts: list[int]
    ends: list[int]
    stop: int | None
    closing: int

    def cover(self, size: int) -> list[tuple[int, int, str]]:
        """Return start, end and type of stretches that cover a text of `size` characters without a gap.

        Blanks belong to the token before them, those before the first token are BLANK.
        """
        count = len(self.types) - self.closing
        starts = self.starts[:count]
        found = list(zip(starts, [*starts[1:], size], self.types, strict=False))
        if size and not (starts and starts[0] == 0):
            found.insert(0, (0, starts[0] if starts else size, "BLANK"))
        return found


def _column(blanks: str) -> int:
    if "\t" not in blanks and "\f" not in blanks:
        return len(blanks)
    column = 0
    for letter in blanks:
        column = column + 1 if letter == " " else 0 if letter == "\f" else (column // 8 + 1) * 8
    return column


_PLAIN = {_STRING: "STRING", _OPEN: "STRING", _NUM: "NUMBER", _COMMENT: "COMMENT", _TORN: "ERRORTOKEN"}


def lex_python(source: str) -> LexedCode:
    """Cut any text into Python's tokens; see the module."""
    lexer = _Lexer(source)
    while not lexer.done:
        lexer.go_on()
    return lexer.finished()


class _Lexer:
    """Where the lexer is.

    Attributes
    ----------
    depth
        Brackets that are open; below 0 where more were closed.
    fresh
        Whether a statement begins here, whose blanks are its indentation.
    joined
        Whether the blanks that were read last end in a line that a backslash joins to the next.
    unclosed
        Quotes that are not closed on their line, and where it ends: there they open nothing.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens: list[tuple[str, int, int]] = []
        self.stop: int | None = None
        self.position, self.depth, self.fresh, self.joined, self.done = 0, 0, True, False, False
        self.columns = [0]
        self.unclosed: dict[str, int] = {}

    def error(self) -> None:
        """Python's own tokenizer raises here."""
        self.stop = len(self.tokens) if self.stop is None else self.stop

    def go_on(self) -> None:
        """Read until the end, or until other quotes may open strings."""
        source, put = self.source, self.tokens.append
        limit = min(self.unclosed.values(), default=sys.maxsize)
        for match in _pattern("".join(q for q in "'\"" if q not in self.unclosed)).finditer(source, self.position):
            group = match.lastindex or 1
            start, end = match.span(group)
            if end > limit:
                self.unclosed = {quote: line for quote, line in self.unclosed.items() if line >= end}
                self.position = match.start()
                return
            if self.fresh:
                self.begin(match[1], match.start(), group)
            if group in (_NAME, _WORD):
                name = match[group]
                put(("KEYWORD" if name in KEYWORDS else "NAME" if name[0].isidentifier() else "OP", start, end))
            elif group == _OP:
                sign = match[group]
                if sign in "([{":
                    self.depth += 1
                elif sign in ")]}":
                    self.depth -= 1
                put((_OPERATORS[sign], start, end))
            elif group == _EOL:
                put(("EOL", start, end))
                self.fresh = self.depth == 0
            elif group == _OTHER:
                put(("ERRORTOKEN", start, end))
                if source[start] in "'\"" and source[start] not in self.unclosed:
                    self.unclosed[source[start]] = _END_OF_LINE.search(source, end).start()  # type: ignore[union-attr]
                    self.position = end
                    return
            elif group == 1:  # blanks at the end of the text
                self.joined = match[1].endswith(("\\\n", "\\\r", "\\\r\n"))
                break
            else:
                if group == _OPEN or (group == _TORN and _UNENDED.search(source, start, end)):
                    self.error()
                elif group == _TORN:
                    self.fresh = self.depth == 0 and source[end - 1] in "\r\n"
                put((_PLAIN[group], start, end))
        self.done = True

    def begin(self, blanks: str, start: int, group: int | None) -> None:
        """Begin a line that may begin a statement: count its indentation, unless it is blank or a comment."""
        measured, backslash, _ = blanks.partition("\\")
        if not backslash and group in (_EOL, _COMMENT, 1):
            return
        self.fresh = False
        column, columns = _column(measured), self.columns
        if column > columns[-1]:
            columns.append(column)
            self.tokens.append(("INDENT", start, start + len(measured)))
        while column < columns[-1]:
            if column not in columns:
                self.error()
                if columns[-2] < column:  # between two blocks: the inner one goes on here
                    columns[-1] = column
                    return
            columns.pop()
            self.tokens.append(("DEDENT", start, start))

    def finished(self) -> LexedCode:
        """Add what the end of the text brings."""
        size = before = len(self.tokens)
        if self.depth or self.joined:
            self.error()
        if self.stop is None:
            end, last = len(self.source), self.source[max(map(self.source.rfind, "\r\n")) + 1 :]
            is_comment = self.fresh and bool(self.tokens) and self.tokens[-1][0] == "COMMENT"
            opened = not self.fresh and not last.strip().startswith("#")
            if last and (is_comment or opened):
                self.tokens.append(("EOL", end, end))
            for _ in self.columns[1:]:
                self.tokens.append(("DEDENT", end, end))
            size = len(self.tokens)
        types, starts, ends = map(list, zip(*self.tokens, strict=True)) if self.tokens else ([], [], [])
        return LexedCode(types, starts, ends, self.stop, size - before)

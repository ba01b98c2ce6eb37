"""HAT's splitter: words of any text by a fixed rule, without losing a byte.

Neitemeier, Deiseroth, Eichenberg, Balles, *Hierarchical Autoregressive Transformers* (2025), appendix: word segments of
Unicode (UAX #29), cut behind punctuation and in camelCase; one space belongs to the word behind it, punctuation to the
word before it.

Pieces do not change when text is added behind them, but for what joins with what stood at the end: marks that combine,
a fraction slash between digits, a narrow no-break space behind a blank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import regex

from mintage.errors import UserError

__all__ = ["HatSplitter"]

_NAMES = {
    "ext": r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*+",
    "letter": r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]",
    "hebrew": r"\p{WB=Hebrew_Letter}",
    "digit": r"\p{WB=Numeric}",
    "kana": r"\p{WB=Katakana}",
    "low": r"\p{WB=ExtendNumLet}",
    "in_word": r"[\p{WB=MidLetter}\p{WB=MidNumLet}\p{WB=Single_Quote}]",
    "in_number": r"[\p{WB=MidNum}\p{WB=MidNumLet}\p{WB=Single_Quote}]",
    "flag": r"\p{WB=Regional_Indicator}",
    "space": r"\p{WB=WSegSpace}",
    "line": r"[\p{WB=CR}\p{WB=LF}\p{WB=Newline}]",
}
_RUN = (  # WB5 to WB12: letters and digits, and what may stand between two of a kind; WB13
    '(?:(?:{letter}{ext}(?:{in_word}{ext}(?={letter})|"{ext}(?<={hebrew}{ext}"{ext})(?={hebrew}))?+'
    "|{digit}{ext}(?:{in_number}{ext}(?={digit}))?+)++|(?:{kana}{ext})++)"
)
_CHAIN = (  # WB13a and b join runs by low lines; WB7a lets a quote follow Hebrew
    f"(?:(?:{{low}}{{ext}})++(?:{_RUN}(?:{{low}}{{ext}})++)*+{_RUN}?+|{_RUN}(?:(?:{{low}}{{ext}})++{_RUN}?+)*+)"
    "(?:'(?<={hebrew}{ext}')(?:{ext}))?+"
)
_PART = f"(?:{_CHAIN}|{{flag}}{{ext}}(?:{{flag}}{{ext}})?+|{{space}}++{{ext}}|(?!{{line}}).{{ext}})"  # WB15, 3d, 4
_SEGMENT = regex.compile(  # WB3, 3a, 3b, and 3c, which joins an emoji to anything that ends in a zero-width joiner
    f"\r\n|{{line}}|{_PART}(?:(?<=\u200d)(?=\\p{{{{Extended_Pictographic}}}}){_PART})*+".format(**_NAMES),
    regex.DOTALL | regex.V1,
)
_ITEM = regex.compile(r".*?(?:\p{P}|\p{Ll}(?=\p{Lu}))|.+", regex.DOTALL)
_PUNCTUATION = regex.compile(r"\p{P}")
_BLANK = regex.compile(r"\p{White_Space}+")
_SHORT = 64  # characters of a chunk that is remembered
_GROUP = re.compile("w|sa?p*|ap*|p+")  # by labels: one space, other white space, punctuation, anything else

_WIDE = " \u1680\u2000-\u2006\u2008-\u200a\u205f\u3000"  # WSegSpace: behind anything else it begins a piece
_CHUNK = re.compile(f"[{_WIDE}]*[^{_WIDE}]+|[{_WIDE}]+")


class HatSplitter:
    """Cuts texts and bytes into words."""

    def split(self, text: str) -> list[str]:
        """Cut a text; the pieces joined are the text."""
        return [piece for chunk in _CHUNK.findall(text) for piece in _cut(chunk)]

    def split_bytes(self, data: bytes | str, most: int | None = None) -> list[bytes]:
        """Cut bytes, or a text's UTF-8; bytes that are no UTF-8 are read as letters of a kind of their own.

        Parameters
        ----------
        data
            Any bytes.
        most
            Longest piece, in bytes; a longer one is cut, between two characters where one ends in reach.

        Raises
        ------
        UserError
            `most` is no whole number from 1 on, or a text holds half of a surrogate pair.
        """
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise UserError(f"most={most!r} is out of range; pass at least 1 byte")
        text = data.decode("utf-8", "surrogateescape") if isinstance(data, bytes) else data
        try:
            pieces = [(piece, piece.encode("utf-8", "surrogateescape")) for piece in self.split(text)]
        except UnicodeEncodeError as error:
            code = ord(text[error.start]) if error.start < len(text) else 0xD800
            raise UserError(f"the text holds half of a surrogate pair (U+{code:04X}); pass bytes") from None
        if most is None:
            return [piece for _, piece in pieces]
        return [p for text, piece in pieces for p in ([piece] if len(piece) <= most else _limited(text, most))]


def _cut(chunk: str) -> tuple[str, ...]:
    """Cut what stands between two blanks, with the blanks before it; short ones are remembered."""
    return _remembered(chunk) if len(chunk) <= _SHORT else _remembered.__wrapped__(chunk)


@lru_cache(maxsize=1 << 16)
def _remembered(chunk: str) -> tuple[str, ...]:
    items: list[str] = []
    for segment in _SEGMENT.findall(chunk):
        for item in _ITEM.findall(segment) if len(segment) > 1 else (segment,):
            if items and not item.strip(" ") and not items[-1].strip(" "):
                items[-1] += item
            else:
                items.append(item)
    pieces, done = [], 0
    for group in _GROUP.finditer("".join(map(_label, items))):
        pieces.append("".join(items[done : group.end()]))
        done = group.end()
    return tuple(pieces)


def _label(item: str) -> str:
    if item == " ":
        return "s"
    if _BLANK.fullmatch(item):
        return "w"
    return "p" if _PUNCTUATION.fullmatch(item) else "a"


def _limited(piece: str, most: int) -> Iterator[bytes]:
    """Cut a piece: as many whole characters as there is room for, or a part of one that is longer."""
    part = b""
    for letter in piece:
        data = letter.encode("utf-8", "surrogateescape")
        if len(part) + len(data) > most:
            if part:
                yield part
            while len(data) > most:
                yield data[:most]
                data = data[most:]
            part = b""
        part += data
    yield part

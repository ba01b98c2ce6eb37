"""Where bytes are cut into words: rules that need no learning.

A rule takes bytes and gives the lengths of its words, which join to the input; none is longer than `most`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from mintage.errors import UserError, did_you_mean
from mintage.lm.core.splitter import HatSplitter

__all__ = ["Cut", "CutName", "cut_rule"]

Cut = Callable[[bytes], list[int]]

CutName = Literal["hat", "spaces", "stride"]

_SPLITTER = HatSplitter()
_SPACELIKE = rb"[^0-9A-Za-z\x80-\xbf]"
_SPACED = re.compile(rb"%b*[0-9A-Za-z\x80-\xbf]+%b?|%b+" % ((_SPACELIKE,) * 3))


def cut_rule(name: str, most: int) -> Cut:
    """Return a rule.

    Parameters
    ----------
    name
        ``hat``: HAT's words (Unicode segments, punctuation with the word before it, a blank with the word behind it).
        ``spaces``: behind a byte that is no ASCII letter or digit and continues no character, unless the one before it
        is such a byte, too (SpaceByte's spacelike bytes). ``stride``: every `most` bytes, as MegaByte.
    most
        Longest word, in bytes.

    Raises
    ------
    UserError
        There is no such rule, or `most` is below 1.
    """
    if name not in get_args(CutName):
        raise UserError(f"unknown rule {name!r} to cut words by; {did_you_mean(name, get_args(CutName))}")
    if most < 1:
        raise UserError(f"most={most} is out of range; pass at least 1 byte")
    return partial({"hat": _hat, "spaces": _spaces, "stride": _stride}[name], most=most)


def _hat(data: bytes, most: int) -> list[int]:
    return [len(piece) for piece in _SPLITTER.split_bytes(data, most)]


def _spaces(data: bytes, most: int) -> list[int]:
    whole = (len(found) for found in _SPACED.findall(data))
    return [part for length in whole for part in _parts(length, most)]


def _stride(data: bytes, most: int) -> list[int]:
    return _parts(len(data), most)


def _parts(length: int, most: int) -> list[int]:
    return [most] * (length // most) + ([length % most] if length % most else [])

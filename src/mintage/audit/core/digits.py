r"""Digit groups: cut a number from the left or from the right, in text, as a pattern, and as tokens show it.

Source: Singh & Strouse, "Tokenization counts", arXiv 2402.14903. Deviations: decimal fractions (``fraction="l2r"``),
`only_if_longer_than` and the choice of the digit class are ours; the paper has integers of ASCII digits only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import regex
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from mintage.errors import UserError, did_you_mean
from mintage.options import check_literals

__all__ = [
    "CLASSES",
    "SCHEMES",
    "DigitClass",
    "Direction",
    "digits_of",
    "format_numbers",
    "format_scheme",
    "group_digits",
    "number_pattern",
    "number_split",
    "number_tokenizer",
    "scheme",
    "tokenizer_cut",
]

Direction = Literal["l2r", "r2l"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

DigitClass = Literal["[0-9]", r"\p{Nd}", r"\p{N}"]
CLASSES: tuple[DigitClass, ...] = get_args(DigitClass)
r"""Digit classes, each a part of the next: ASCII, decimal digits of all scripts, all numerals (``²``, ``Ⅷ``)."""


@check_literals
def group_digits(digits: str, size: int = 3, direction: Direction = "r2l") -> list[str]:
    """Cut a digit string into groups of `size`; only the last group (l2r) or the first (r2l) may be shorter.

    Parameters
    ----------
    digits
        A run of digits; leading zeros are kept, an empty string has no groups.
    size
        Digits per group.
    direction
        ``"l2r"`` cuts after every `size` digits from the left, ``"r2l"`` from the right, as thousands separators do.

    Raises
    ------
    UserError
        `digits` holds something else, `size` is below 1, or the direction is unknown.
    """
    check_sizes(size)
    for character in digits:
        if not unicodedata.category(character).startswith("N"):
            raise UserError(f"{digits!r} holds {character!r}, which is no digit; format_numbers finds numbers in text")
    first = len(digits) % size if direction == "r2l" else 0
    edges = [0, *range(first or size, len(digits), size), len(digits)] if digits else []
    return [digits[a:b] for a, b in pairwise(edges)]


class Scheme(NamedTuple):
    """A separator of the paper and the side from which it is inserted."""

    separator: str
    direction: Direction


_SEPARATORS = {"comma": ",", "space": " ", "dec": ".", "hash": "#", "dollar": "$", "foo": "foo", "nosep": ""}

SCHEMES: dict[str, Scheme] = {
    **{f"{name}_{side}": Scheme(mark, side) for name, mark in _SEPARATORS.items() for side in DIRECTIONS},
    "nosep": Scheme("", "r2l"),
}
"""The paper's formats by name, e.g. ``"comma_r2l"``; ``"nosep"`` leaves numbers as they are."""


def scheme(name: str) -> Scheme:
    """Return the format called `name`, or tell in one line which there are."""
    if name not in SCHEMES:
        raise UserError(f"unknown number format {name!r}; {did_you_mean(name, SCHEMES)}")
    return SCHEMES[name]


def format_scheme(text: str, name: str, size: int = 3) -> str:
    """Write the numbers of `text` in one of the paper's formats (see `SCHEMES`)."""
    return format_numbers(text, *_in_order(scheme(name), size))


def _in_order(chosen: Scheme, size: int) -> tuple[str, int, Direction]:
    return chosen.separator, size, chosen.direction


@check_literals
def format_numbers(
    text: str,
    separator: str = ",",
    size: int = 3,
    direction: Direction = "r2l",
    *,
    digit_class: DigitClass = "[0-9]",
    fraction: Literal["l2r"] | None = None,
    only_if_longer_than: int = 0,
) -> str:
    r"""Insert `separator` between the digit groups of every number in `text`.

    Parameters
    ----------
    text
        Any text; what is not a digit stays as it is.
    separator
        Any text without digits; it reads forwards in both directions.
    size, direction
        As in `group_digits`.
    digit_class
        ``"[0-9]"``, ``r"\p{Nd}"`` or ``r"\p{N}"``; see `CLASSES`.
    fraction
        ``"l2r"`` groups the digits after a decimal point from the point on (an extension); by default the point ends
        one number and starts another.
    only_if_longer_than
        Leave runs of at most this many digits (years, codes) alone.

    Raises
    ------
    UserError
        A setting is out of range, or the separator holds a digit.
    """
    check_sizes(size, only_if_longer_than)
    if any(unicodedata.category(c).startswith("N") for c in separator):
        raise UserError(f"separator {separator!r} holds a digit, so numbers could not be read back; pass e.g. ','")

    def formatted(match: Any) -> str:
        run: str = match.group()
        if len(run) <= only_if_longer_than:
            return run
        side: Direction = "l2r" if fraction and match.group("point") is not None else direction
        return separator.join(group_digits(run, size, side))

    return regex.sub(rf"(?<point>(?<={digit_class}\.))?{digit_class}+", formatted, text)


def check_sizes(size: int, only_if_longer_than: int = 0) -> None:
    """Refuse a size of groups below 1, and a negative length of numbers that stay whole."""
    if size < 1:
        raise UserError(f"size={size} is below 1; pass the digits per group, e.g. 3")
    if only_if_longer_than < 0:
        raise UserError(f"only_if_longer_than={only_if_longer_than} is negative; pass 0 to cut numbers of any length")


# -- as a pre-tokenizer ------------------------------------------------------------------------------------------------


@check_literals
def number_pattern(
    direction: Direction = "r2l",
    size: int = 3,
    digit_class: DigitClass = r"\p{N}",
    *,
    fraction: Literal["l2r"] | None = None,
    only_if_longer_than: int = 0,
) -> str:
    r"""Return the grouping as a regular expression whose matches are the groups.

    At the start of a run the first alternative takes so many digits that whole groups remain; after it, the plain
    ``{1,size}`` cuts the rest. One look-ahead per number keeps the time linear in its length. Oniguruma
    (``tokenizers``), fancy-regex (``tiktoken``) and Python's ``regex`` read it. With `only_if_longer_than`, shorter
    runs match as a whole. For the parameters see `format_numbers`.
    """
    check_sizes(size, only_if_longer_than)
    whole = whole_run(digit_class, only_if_longer_than)
    lead = first_group(digit_class, size, fraction, 0) if direction == "r2l" else ""
    return "|".join(part for part in (whole, lead, f"{digit_class}{{1,{size}}}") if part)


def first_group(d: str, size: int, fraction: str | None, longer_than: int, space: str = "") -> str:
    """Match the first group, at the start of a run, of a cut from the right."""
    after_point = rf"(?<!{d}\.)" if fraction else ""
    long = f"(?={d}{{{longer_than + 1}}})" if longer_than else ""
    return f"{space}(?<!{d}){after_point}{long}{d}{{1,{size}}}(?=(?:{d}{{{size}}})*(?!{d}))"


def whole_run(d: str, longest: int, space: str = "") -> str:
    """Match a whole run of at most `longest` digits."""
    return f"{space}(?<!{d}){d}{{1,{longest}}}(?!{d})" if longest else ""


@check_literals
def number_split(
    direction: Direction = "r2l",
    size: int = 3,
    digit_class: DigitClass = r"\p{N}",
    *,
    fraction: Literal["l2r"] | None = None,
    only_if_longer_than: int = 0,
) -> pre_tokenizers.Split:
    """Make the pre-tokenizer that isolates the digit groups of numbers and leaves other text alone.

    Put it in front of the others: ``pre_tokenizers.Sequence([number_split(), pre_tokenizers.ByteLevel()])``. It is
    written to tokenizer.json. For the parameters see `format_numbers`; runs that `only_if_longer_than` spares are
    isolated whole.
    """
    pattern = number_pattern(direction, size, digit_class, fraction=fraction, only_if_longer_than=only_if_longer_than)
    return pre_tokenizers.Split(Regex(pattern), "isolated")


# -- as tokens show it -------------------------------------------------------------------------------------------------


def digits_of(token: str) -> str:
    """Return the ASCII digits that a vocabulary string stands for."""
    if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
        token = chr(int(byte[1], 16))
    return "".join(c for c in token if c in "0123456789")


def tokenizer_cut(tokenizer: Tokenizer, numbers: Sequence[str], prefix: str = "") -> list[list[str]]:
    """Return the digit groups of each number, as the tokens show them; `prefix` stands in front of every number.

    Special tokens and padding are left out. Where the tokens do not add up to the number (an unknown token), its groups
    do not either.
    """
    if tokenizer.truncation or tokenizer.padding:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
    encodings = tokenizer.encode_batch([prefix + number for number in numbers], add_special_tokens=False)
    return [[digits for token in encoding.tokens if (digits := digits_of(token))] for encoding in encodings]


def number_tokenizer(direction: Direction = "r2l", size: int = 3, **options: Any) -> Tokenizer:
    """Make a lossless byte tokenizer whose only longer tokens are digit strings; for tests and for looking at the cut.

    Parameters
    ----------
    direction, size, **options
        As in `number_split`; `size` is 1 to 4.

    Raises
    ------
    UserError
        `size` is above 4: that many strings are no small vocabulary.
    """
    if size > 4:
        raise UserError(f"size={size} would need {10**size} tokens; pass 1 to 4")
    groups = [f"{n:0{width}d}" for width in range(2, size + 1) for n in range(10**width)]
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet()) + groups
    ids = {token: index for index, token in enumerate(vocabulary)}
    # a piece that is in the vocabulary is a token, as in Llama 3
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    split, byte_level = number_split(direction, size, **options), pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

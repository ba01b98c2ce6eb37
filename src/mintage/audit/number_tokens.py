r"""Number tokens: how a tokenizer cuts numbers, and how to make it cut them from the right.

Models add better when digits are grouped from the right (10|642|122): then a token's place value does not depend on how
long the number is. The usual pattern ``\p{N}{1,3}`` groups from the left (106|421|22). Here are

- `group_digits` and `format_numbers`: the two groupings, and the paper's separators, which bring a fixed model to the
  right cut (``"10,642,122"``);
- `number_split` and `to_r2l`: the same cut as an exportable pre-tokenizer, and as a change to an existing tokenizer
  that needs no new tokens;
- `NumberTokens`: the report about a tokenizer.

The paper's prompts, its problems and its analysis of errors are in `mintage.audit.core.number_problems`.

Not here: number embeddings, and models. Deviations: decimal fractions (``fraction="l2r"``), `only_if_longer_than` and
the choice of the digit class are ours; the paper has integers of ASCII digits only.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from mintage.audit.contract import Audit, Progress, Report, silent
from mintage.errors import UserError, did_you_mean
from mintage.files import replace_folder
from mintage.measure.figure import Figure

__all__ = [
    "SCHEMES",
    "NumberTokens",
    "format_numbers",
    "format_scheme",
    "group_digits",
    "number_pattern",
    "number_split",
    "number_tokenizer",
    "save_tokenizer",
    "scheme",
    "to_r2l",
    "tokenizer_cut",
]

DIRECTIONS = ("l2r", "r2l")

CLASSES = ("[0-9]", r"\p{Nd}", r"\p{N}")
r"""Digit classes, each a part of the next: ASCII, decimal digits of all scripts, all numerals (``²``, ``Ⅷ``)."""


# -- grouping ---------------------------------------------------------------------------------------------------------


def group_digits(digits: str, size: int = 3, direction: str = "r2l") -> list[str]:
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
    _check(size, direction)
    for character in digits:
        if not unicodedata.category(character).startswith("N"):
            raise UserError(f"{digits!r} holds {character!r}, which is no digit; format_numbers finds numbers in text")
    first = len(digits) % size if direction == "r2l" else 0
    edges = [0, *range(first or size, len(digits), size), len(digits)] if digits else []
    return [digits[a:b] for a, b in pairwise(edges)]


class Scheme(NamedTuple):
    """A separator of the paper and the side from which it is inserted."""

    separator: str
    direction: str


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


def _in_order(chosen: Scheme, size: int) -> tuple[str, int, str]:
    return chosen.separator, size, chosen.direction


def format_numbers(
    text: str,
    separator: str = ",",
    size: int = 3,
    direction: str = "r2l",
    *,
    digit_class: str = "[0-9]",
    fraction: str | None = None,
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
    _check(size, direction, digit_class, fraction, only_if_longer_than)
    if any(unicodedata.category(c).startswith("N") for c in separator):
        raise UserError(f"separator {separator!r} holds a digit, so numbers could not be read back; pass e.g. ','")

    def formatted(match: Any) -> str:
        run: str = match.group()
        if len(run) <= only_if_longer_than:
            return run
        side = "l2r" if fraction and match.group("point") is not None else direction
        return separator.join(group_digits(run, size, side))

    return regex.sub(rf"(?<point>(?<={digit_class}\.))?{digit_class}+", formatted, text)


def _check(
    size: int,
    direction: str = "r2l",
    digit_class: str = "[0-9]",
    fraction: str | None = None,
    only_if_longer_than: int = 0,
) -> None:
    if size < 1:
        raise UserError(f"size={size} is below 1; pass the digits per group, e.g. 3")
    if direction not in DIRECTIONS:
        raise UserError(f"unknown direction {direction!r}; {did_you_mean(direction, DIRECTIONS)}")
    if digit_class not in CLASSES:
        raise UserError(f"unknown digit class {digit_class!r}; known: {', '.join(CLASSES)}")
    if fraction not in (None, "l2r"):
        raise UserError(f"fraction={fraction!r} is not known; pass 'l2r', or None for digits after a point like any")
    if only_if_longer_than < 0:
        raise UserError(f"only_if_longer_than={only_if_longer_than} is negative; pass 0 to cut numbers of any length")


# -- as a pre-tokenizer ------------------------------------------------------------------------------------------------


def number_pattern(
    direction: str = "r2l",
    size: int = 3,
    digit_class: str = r"\p{N}",
    *,
    fraction: str | None = None,
    only_if_longer_than: int = 0,
) -> str:
    r"""Return the grouping as a regular expression whose matches are the groups.

    At the start of a run the first alternative takes so many digits that whole groups remain; after it, the plain
    ``{1,size}`` cuts the rest. One look-ahead per number keeps the time linear in its length. Oniguruma
    (``tokenizers``), fancy-regex (``tiktoken``) and Python's ``regex`` read it. With `only_if_longer_than`, shorter
    runs match as a whole. For the parameters see `format_numbers`.
    """
    _check(size, direction, digit_class, fraction, only_if_longer_than)
    whole = _whole(digit_class, only_if_longer_than)
    lead = _lead(digit_class, size, fraction, 0) if direction == "r2l" else ""
    return "|".join(part for part in (whole, lead, f"{digit_class}{{1,{size}}}") if part)


def _lead(d: str, size: int, fraction: str | None, longer_than: int, space: str = "") -> str:
    """Match the first group, at the start of a run, of a cut from the right."""
    after_point = rf"(?<!{d}\.)" if fraction else ""
    long = f"(?={d}{{{longer_than + 1}}})" if longer_than else ""
    return f"{space}(?<!{d}){after_point}{long}{d}{{1,{size}}}(?=(?:{d}{{{size}}})*(?!{d}))"


def _whole(d: str, longest: int, space: str = "") -> str:
    """Match a whole run of at most `longest` digits."""
    return f"{space}(?<!{d}){d}{{1,{longest}}}(?!{d})" if longest else ""


def number_split(
    direction: str = "r2l",
    size: int = 3,
    digit_class: str = r"\p{N}",
    *,
    fraction: str | None = None,
    only_if_longer_than: int = 0,
) -> pre_tokenizers.Split:
    """Make the pre-tokenizer that isolates the digit groups of numbers and leaves other text alone.

    Put it in front of the others: ``pre_tokenizers.Sequence([number_split(), pre_tokenizers.ByteLevel()])``. It is
    written to tokenizer.json. For the parameters see `format_numbers`; runs that `only_if_longer_than` spares are
    isolated whole.
    """
    pattern = number_pattern(direction, size, digit_class, fraction=fraction, only_if_longer_than=only_if_longer_than)
    return pre_tokenizers.Split(Regex(pattern), "isolated")


# -- rewriting an existing tokenizer -----------------------------------------------------------------------------------

_BRANCH = re.compile(
    r"(?P<space> \?)?(?P<class>\\p\{Nd?\}|\[\\p\{Nd?\}\]|\\d|\[0-9\])(?P<count>\+\+?|\{1,(?P<up_to>\d+)\}|)$"
)
"""An alternative that takes digits and nothing else, but for a space in front."""

_LOOKS_AHEAD = re.compile(r"(\\p\{Nd?\}|\\d|\[0-9\])\]?(\+|\*|\{[\d,]+\})?\)*\(\?[=!]")

_FIXED = {r"\d": r"\p{Nd}", r"[\p{N}]": r"\p{N}", r"[\p{Nd}]": r"\p{Nd}"}

_PROBES = ("7", "42", "007", "2024", "10642122", "x12345y", "9876543210+1234567=", "(31415926535897)")


def to_r2l(
    tokenizer: Any,
    *,
    size: int = 3,
    digit_class: str | None = None,
    fraction: str | None = None,
    only_if_longer_than: int = 0,
    allow_missing: bool = False,
) -> Tokenizer:
    r"""Return a copy of `tokenizer` that cuts numbers from the right; no token is added, other text is cut as before.

    Rewritten is the digit branch of the pre-tokenizer: ``\p{N}{1,3}`` and its like in a ``Split`` (GPT-4, GPT-4o, Llama
    3), ``\p{N}`` (Qwen), ``Digits``, or the whole numbers of GPT-2's ``ByteLevel``.

    Parameters
    ----------
    tokenizer
        Any fast tokenizer; it stays as it is.
    size
        Digits per group.
    digit_class
        Which characters count as digits; default: those of the branch. A narrower class leaves the other numerals to
        the branch as it was.
    fraction
        As in `format_numbers`.
    only_if_longer_than
        Cut runs of at most this many digits as before.
    allow_missing
        Return the copy even where the vocabulary cannot build every group: to train a new vocabulary on it.

    Raises
    ------
    UserError
        There is no digit branch, it looks ahead already, a group cannot be built from the vocabulary, or a setting does
        not fit.
    """
    _check(size, "r2l", digit_class or "[0-9]", fraction, only_if_longer_than)
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"{type(tokenizer).__name__} is no tokenizers.Tokenizer; open one with load_tokenizer")
    change = _Change(size, digit_class, fraction, only_if_longer_than)
    described = json.loads(tokenizer.to_str())
    described["pre_tokenizer"] = change.stage(described["pre_tokenizer"])
    if not change.done and (described["pre_tokenizer"] or {}).get("type") in ("ByteLevel", "Sequence"):
        described["pre_tokenizer"] = change.before_byte_level(described["pre_tokenizer"])
    if not change.done:
        raise UserError(
            r"this pre-tokenizer has no digit branch (such as \p{N}{1,3}, \p{N} or Digits) to rewrite; "
            "put number_split() in front of it and train a new vocabulary"
        )
    changed = Tokenizer.from_str(json.dumps(described, ensure_ascii=False))
    _check_cut(changed, size, only_if_longer_than)
    if not allow_missing:
        _check_groups(changed, size, spaced=change.spaced)
    return changed


@dataclass
class _Change:
    """The walk through a pre-tokenizer's JSON, and what it found."""

    size: int
    digit_class: str | None
    fraction: str | None
    longer_than: int
    done: bool = False
    spaced: bool = False
    """Whether a number's first group holds the space in front of it."""

    def stage(self, node: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the stage with its digit branches rewritten."""
        kind = (node or {}).get("type")
        if node is None or kind not in ("Sequence", "Split", "Digits"):
            return node
        if kind == "Sequence":
            return {**node, "pretokenizers": [self.stage(part) for part in node["pretokenizers"]]}
        if kind == "Digits":
            count = "" if node["individual_digits"] else "+"
            return _isolate(self.branch(r"\p{N}", count, ""))
        pattern = node["pattern"].get("Regex")
        rewritten = self.pattern(pattern) if pattern else None
        if not rewritten:
            return node
        if node["behavior"] != "Isolated" and not (node["behavior"] == "Removed" and node["invert"]):
            raise UserError(f"a Split that is {node['behavior']} cannot be rewritten; only one that keeps its matches")
        return {**node, "pattern": {"Regex": rewritten}}

    def pattern(self, pattern: str) -> str | None:
        """Rewrite the digit branches among the alternatives; None where there are none."""
        if _LOOKS_AHEAD.search(pattern):
            raise UserError(f"the digit branch looks ahead already ({pattern[:60]!r}...); pass the original tokenizer")
        opening, inner, closing = _unwrapped(pattern)
        parts = list(_alternatives(inner))
        found = [_BRANCH.match(part) for part in parts]
        if not any(found):
            return None
        for place, match in enumerate(found):
            if match:
                parts[place] = self.branch(match["class"], match["count"], match["space"] or "")
        return opening + "|".join(parts) + closing

    def branch(self, known: str, count: str, space: str) -> str:
        """Return what takes the place of the branch ``space known count``."""
        known = _FIXED.get(known, known)
        d = self.digit_class or known
        if CLASSES.index(d) > CLASSES.index(known):
            raise UserError(f"digit_class {d} is wider than this tokenizer's {known}; pass {known}")
        self.done, self.spaced = True, self.spaced or bool(space)
        rest = f"{space}{d}{{1,{self.size}}}"
        before = ""
        if self.longer_than > 1 and count.startswith("+"):
            before = _whole(d, self.longer_than, space)
        elif self.longer_than > 1 and count != f"{{1,{self.size}}}":
            raise UserError(
                f"only_if_longer_than={self.longer_than} needs a tokenizer that cuts groups of {self.size} from the "
                f"left or keeps numbers whole; this one's branch is {known}{count}; pass 0"
            )
        lead = _lead(d, self.size, self.fraction, self.longer_than, space)
        others = f"{space}(?:(?!{d}){known}){count}" if d != known else ""
        return "|".join(part for part in (before, lead, rest, others) if part)

    def before_byte_level(self, node: dict[str, Any]) -> dict[str, Any]:
        """Put a Split in front of the ByteLevel that keeps a number, with a space before it, in one piece."""
        parts = node["pretokenizers"] if node["type"] == "Sequence" else [node]
        for place, part in enumerate(parts):
            if part["type"] == "ByteLevel" and part["use_regex"]:
                if part["add_prefix_space"]:
                    raise UserError(
                        "this ByteLevel puts a space in front of every piece (add_prefix_space), which would come "
                        "between digit groups; it cannot be rewritten"
                    )
                split = _isolate(self.branch(r"\p{N}", "+", " ?"))
                return {"type": "Sequence", "pretokenizers": [*parts[:place], split, *parts[place:]]}
        return node


def _isolate(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _alternatives(pattern: str) -> Iterator[str]:
    """Yield the alternatives of a regular expression at its top level."""
    start = depth = brackets = 0
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if character == "\\":
            at += 1
        elif character == "[":
            brackets += 1
        elif character == "]" and brackets:
            brackets -= 1
        elif not brackets and character in "()":
            depth += 1 if character == "(" else -1
        elif not brackets and not depth and character == "|":
            yield pattern[start:at]
            start = at + 1
        at += 1
    yield pattern[start:]


def _unwrapped(pattern: str) -> tuple[str, str, str]:
    """Take off a group around the whole pattern."""
    for opening in ("(?:", "("):
        inner = pattern[len(opening) : -1]
        if pattern.startswith(opening) and pattern.endswith(")") and f"{opening}{inner})" == pattern:
            whole = len(list(_alternatives(pattern))) == 1 and not inner.startswith("?")
            if whole and _balanced(inner):
                return opening, inner, ")"
    return "", pattern, ""


def _balanced(pattern: str) -> bool:
    """Whether no group closes that was not opened."""
    depth = 0
    for character in re.sub(r"\\.|\[(?:\\.|[^\]])*\]", "", pattern):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


def _check_cut(changed: Tokenizer, size: int, longer_than: int) -> None:
    """Refuse where another alternative takes digits before the rewritten one can."""
    for probe in _PROBES:
        pieces = ["".join(filter(str.isdigit, p)) for p, _ in changed.pre_tokenizer.pre_tokenize_str(probe)]
        runs = [run for run in re.findall("[0-9]+", probe) if len(run) > longer_than]
        wanted = [group for run in runs for group in group_digits(run, size)]
        got = [piece for piece in pieces if piece]
        if runs and len(runs) == len(re.findall("[0-9]+", probe)) and got != wanted:
            raise UserError(
                f"{probe!r} is cut {'|'.join(got)}: another part of this pre-tokenizer takes its digits first"
            )


def _check_groups(changed: Tokenizer, size: int, *, spaced: bool) -> None:
    """Refuse where the vocabulary has no single token for a group."""
    marks = ("", "Ġ") if spaced else ("",)
    widths = range(1, size + 1)
    strings = [f"{n:0{w}d}" for w in widths for n in range(0, 10**w, max(1, 10**w // 10_000))]
    missing = [s for s in strings for mark in marks if _groups_of(changed.model.tokenize(mark + s)) != [s]]
    if missing:
        raise UserError(
            f"this vocabulary cannot build {len(missing)} of {len(strings) * len(marks)} groups of up to {size} digits "
            f"(e.g. {missing[0]!r}) as one token; train a new vocabulary on this pre-tokenizer (allow_missing)"
        )


def _groups_of(tokens: Sequence[Any]) -> list[str]:
    return [digits for token in tokens if (digits := _digits(token.value))]


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, source: str | Path | None = None) -> None:
    """Write a folder that ``AutoTokenizer.from_pretrained`` opens, and check that it cuts numbers as `tokenizer` does.

    Parameters
    ----------
    tokenizer
        What to write.
    folder
        New, or empty.
    source
        Folder of the tokenizer it was made from: its special tokens and chat template are taken over.

    Raises
    ------
    UserError
        `folder` is in use, `source`'s configuration is damaged, or the written folder is read differently.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    target = Path(folder)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"{target} exists; pass a new folder, nothing was written")
    with replace_folder(target) as temporary:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_special_tokens(source)).save_pretrained(temporary)
        if source is not None and (template := Path(source) / "chat_template.jinja").exists():
            (temporary / template.name).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
        again: Any = AutoTokenizer.from_pretrained(temporary, local_files_only=True)
        for probe in _PROBES:
            if again(probe, add_special_tokens=False)["input_ids"] != _ids(tokenizer, probe):
                raise UserError(
                    f"transformers reads the written tokenizer differently ({probe!r}); nothing was written"
                )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _special_tokens(source: str | Path | None) -> dict[str, Any]:
    """Read what a tokenizer_config.json says about special tokens; the class is left out, it would fix the pattern."""
    path = Path(source or "") / "tokenizer_config.json"
    if source is None or not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        named = {name: value for name, value in config.items() if name.endswith("_token") and value is not None}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); get it again") from None
    held = {name: v["content"] if isinstance(v, dict) else v for name, v in named.items() if not isinstance(v, bool)}
    if isinstance(length := config.get("model_max_length"), int):
        held["model_max_length"] = length
    if isinstance(template := config.get("chat_template"), str):
        held["chat_template"] = template
    return held


# -- the report --------------------------------------------------------------------------------------------------------

KINDS = ("left to right", "right to left", "both", "single digits", "irregular")
"""How a number is cut; ``both`` where the two directions agree (length at most the size, or a multiple of it)."""

_COLUMNS = ("l2r", "r2l", "both", "digits", "irregular")


def _digits(token: str) -> str:
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
    return [[digits for token in encoding.tokens if (digits := _digits(token))] for encoding in encodings]


def kind_of(groups: Sequence[str], size: int = 3) -> str:
    """Name the cut of a number: one of `KINDS`."""
    number = "".join(groups)
    left, right = (list(groups) == group_digits(number, size, side) for side in DIRECTIONS)
    if left or right:
        return "both" if left and right else "left to right" if left else "right to left"
    return "single digits" if all(len(group) == 1 for group in groups) else "irregular"


@dataclass(frozen=True, kw_only=True, eq=False)
class NumberTokens(Audit):
    """How a tokenizer cuts numbers of every length, and which digit strings are single tokens.

    Parameters
    ----------
    size
        Digits per group that the directions are told for.
    max_length
        Longest number.
    samples
        Numbers per length; of lengths that have no more, every one.
    prefix
        Text in front of every number, e.g. ``" "`` or ``"="``: some tokenizers glue a space to the first digits.
    examples
        Texts for the token map.
    seed
        Of the numbers drawn.

    Raises
    ------
    UserError
        A setting is out of range, or the prefix holds a digit.
    """

    size: int = 3
    max_length: int = 15
    samples: int = 1000
    prefix: str = ""
    examples: tuple[str, ...] = ("10642122", "2024", "1234567", "999999+1=1000000", "3.14159265")
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.size)
        for name in ("max_length", "samples"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is below 1; pass e.g. {getattr(type(self), name)}")
        if _digits(self.prefix):
            raise UserError(f"prefix {self.prefix!r} holds a digit, which would join the number; pass e.g. ' '")

    def run(self, subject: Any, *, name: str = "", progress: Progress = silent) -> Report:
        """Audit a ``tokenizers.Tokenizer``, or a transformers tokenizer that has one inside."""
        tokenizer = getattr(subject, "backend_tokenizer", subject)
        if not isinstance(tokenizer, Tokenizer):
            raise UserError(f"{type(subject).__name__} is no fast tokenizer; open one with load_tokenizer")
        table: list[dict[str, Any]] = []
        kinds: dict[int, Counter[str]] = {}
        for length in range(1, self.max_length + 1):
            progress("cutting numbers", length, self.max_length)
            kinds[length], row = self._length(tokenizer, length)
            table.append(row)
        coverage = {w: self._coverage(tokenizer, w) for w in range(1, 4)}
        telling = sum((kinds[n] for n in kinds if n > self.size and n % self.size), Counter[str]())
        total = telling.total()
        findings: dict[str, Any] = {
            "cut": _verdict(telling, self.size),
            **{f"share {kind}": telling[kind] / total if total else 0.0 for kind in KINDS if kind != "both"},
            "most cuts of one length": max(row["cuts"] for row in table),
            **{f"single tokens of {w} digit{'s'[: w > 1]}": held for w, held in coverage.items()},
            "single tokens": sum(coverage.values()),
            "example": f"10642122 = {'|'.join(tokenizer_cut(tokenizer, ['10642122'], self.prefix)[0])}",
        }
        notes = [
            f"Shares are over numbers whose length tells the directions apart: above {self.size}, no multiple of it.",
            "cuts: distinct cuts among the numbers of a length; tokens: per number.",
            f"Up to {self.samples} numbers per length without leading zeros; 1110 strings of 1 to 3 digits in all.",
        ]
        figures = [self._heatmap(kinds), self._examples(tokenizer)]
        return Report(
            audit="number-tokens",
            subject=name or "tokenizer",
            findings=findings,
            table=table,
            figures=figures,
            notes=notes,
        )

    def _numbers(self, length: int) -> list[str]:
        """Draw numbers of this length, no two alike."""
        low, high = (10 ** (length - 1) if length > 1 else 0), 10**length
        if high - low <= self.samples:
            return [str(n) for n in range(low, high)]
        generator = np.random.default_rng([self.seed, length])
        drawn: dict[str, None] = {}
        while len(drawn) < self.samples:
            first = generator.integers(1, 10, size=(self.samples, 1))
            rest = generator.integers(0, 10, size=(self.samples, length - 1))
            rows = np.concatenate([first, rest], axis=1)
            drawn |= dict.fromkeys("".join(map(str, row)) for row in rows.tolist())
        return list(drawn)[: self.samples]

    def _length(self, tokenizer: Tokenizer, length: int) -> tuple[Counter[str], dict[str, Any]]:
        numbers = self._numbers(length)
        cuts = tokenizer_cut(tokenizer, numbers, self.prefix)
        kinds = Counter(
            kind_of(groups, self.size) if "".join(groups) == number else "irregular"
            for number, groups in zip(numbers, cuts, strict=True)
        )
        patterns = Counter("+".join(str(len(group)) for group in groups) for groups in cuts)
        return kinds, {
            "length": length,
            "numbers": len(numbers),
            **{column: kinds[kind] / len(numbers) for column, kind in zip(_COLUMNS, KINDS, strict=True)},
            "cuts": len(patterns),
            "usual_cut": patterns.most_common(1)[0][0],
            "tokens": sum(map(len, cuts)) / len(cuts),
        }

    def _coverage(self, tokenizer: Tokenizer, width: int) -> int:
        strings = [f"{n:0{width}d}" for n in range(10**width)]
        cuts = tokenizer_cut(tokenizer, strings, self.prefix)
        return sum(groups == [string] for string, groups in zip(strings, cuts, strict=True))

    def _heatmap(self, kinds: dict[int, Counter[str]]) -> Figure:
        return Figure(
            job="audit",
            method="number-tokens",
            name="number-tokens-cuts",
            title="How numbers are cut, by their length",
            caption=f"Share of numbers; groups of {self.size}. Where both directions agree, the cut is called both.",
            kind="heatmap",
            data={
                "x_label": "digits",
                "y_label": "cut",
                "z_label": "share of numbers",
                "x": list(kinds),
                "y": list(KINDS),
                "z": [[counts[kind] / counts.total() for counts in kinds.values()] for kind in KINDS],
            },
        )

    def _examples(self, tokenizer: Tokenizer) -> Figure:
        tokens = []
        for text in self.examples:
            encoding = tokenizer.encode(self.prefix + text, add_special_tokens=False)
            for token in encoding.tokens:
                width = len(_digits(token))
                group = f"{width} digit{'s'[: width > 1]}" if width else None
                tokens.append({"text": token, "value": min(width / self.size, 1.0) if width else None, "group": group})
            tokens.append({"text": " ", "value": None, "group": None})
        return Figure(
            job="audit",
            method="number-tokens",
            name="number-tokens-examples",
            title="Numbers in tokens",
            caption="Each box is a token, coloured by how many digits it holds.",
            kind="token-map",
            data={"tokens": tokens},
        )

    @classmethod
    def tiny(cls) -> NumberTokens:
        """Few lengths, few numbers."""
        return cls(max_length=8, samples=20)

    @classmethod
    def tiny_subject(cls) -> Tokenizer:
        """A byte tokenizer that cuts from the left."""
        return number_tokenizer("l2r")


def _verdict(kinds: Counter[str], size: int) -> str:
    """Say in a few words how long numbers are cut."""
    if not kinds:
        return "not told apart"
    kind, count = kinds.most_common(1)[0]
    if count < 0.99 * kinds.total():
        return "irregular"
    return f"{kind}, groups of {size}" if kind in ("left to right", "right to left") else kind


def number_tokenizer(direction: str = "r2l", size: int = 3, **options: Any) -> Tokenizer:
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
    ids = {token: place for place, token in enumerate(vocabulary)}
    # a piece that is in the vocabulary is a token, as in Llama 3
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    split, byte_level = number_split(direction, size, **options), pre_tokenizers.ByteLevel(False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer

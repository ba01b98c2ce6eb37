"""When a method pays and when it does not, each with its number: sentences in a file, numbers out of result rows.

The sentences stand by method in ``assets/advice.toml``, whose head tells how a number is named. Here a name becomes the
newest row that fits, so that no sentence can outlive its measurement.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mintage
from mintage.errors import UserError
from mintage.measure.result import Result
from mintage.measure.standing import time_of
from mintage.processor import limited_to

__all__ = ["Advice", "Number", "advise", "advised", "cited", "find_number"]

ADVICE = Path(mintage.__file__).parent / "assets" / "advice.toml"

_OWN = ("method", "metric", "model", "data")
_RULES = ("of", "above", "below")


@dataclass(frozen=True)
class Number:
    """A number of a sentence: a row, or the baseline or peer of it that is called `of`."""

    row: Result
    of: str = ""

    @property
    def value(self) -> float:
        """The number itself, in the row's unit."""
        return (self.row.baseline | self.row.peers)[self.of] if self.of else self.row.value

    def __str__(self) -> str:
        """Write it as in ``1.18x [1.09 to 1.29, n=16]``; a share as per cent."""
        unit = {"x": "x", "%": "%", "share": "%"}.get(self.row.unit, f" {self.row.unit}".rstrip())
        scale = 100 if self.row.unit == "share" else 1
        text = f"{scale * self.value:.3g}{unit}"
        if self.of:
            return text
        bounds = [f"{scale * bound:.3g}" for bound in self.row.interval or ()]
        beside = [" to ".join(bounds)] if len(set(bounds)) > 1 else []
        return f"{text} [{', '.join([*beside, f'n={self.row.n}'])}]"


@dataclass(frozen=True)
class Advice:
    """Two sentences about a method, and the numbers in them by name."""

    pays: str
    pays_not: str
    numbers: Mapping[str, Number]


@cache
def _written() -> dict[str, dict[str, Any]]:
    return tomllib.loads(ADVICE.read_text(encoding="utf-8"))


def advised() -> Sequence[str]:
    """Return the methods that there is advice about."""
    return list(_written())


def find_number(name: str, rows: Iterable[Result], asked: Mapping[str, Any]) -> Number:
    """Return the newest of `rows` that is `asked` for, as the head of the file tells; of limited processors last.

    Parameters
    ----------
    name
        The method that is meant where `asked` names none.

    Raises
    ------
    UserError
        No row fits, the row has no baseline or peer of that name, or the number is not what the sentence rests on.
    """
    wanted = {"method": name, **asked}
    settings = {key: value for key, value in wanted.items() if key not in (*_OWN, *_RULES)}
    fitting = [
        row
        for row in rows
        if all(getattr(row, key) == wanted[key] for key in _OWN if key in wanted)
        and all(row.settings.get(key) == value for key, value in settings.items())
    ]
    where = ", ".join(f"{key}={value!r}" for key, value in wanted.items() if key not in _RULES)
    if not fitting:
        raise UserError(f"advice on {name}: no row of results has {where}; measure it, or name another row")
    fitting = [row for row in fitting if not limited_to(row.environment)] or fitting
    row, of = max(fitting, key=time_of), str(wanted.get("of", ""))
    if of and of not in row.baseline | row.peers:
        raise UserError(f"advice on {name}: the row with {where} has no baseline or peer {of!r}; name another")
    number = Number(row, of)
    if not wanted.get("below", float("inf")) > number.value > wanted.get("above", float("-inf")):
        rule = " and ".join(f"{word} {wanted[word]:g}" for word in ("above", "below") if word in wanted)
        raise UserError(f"advice on {name} rests on a number {rule}, now {number.value:.4g} ({where}); write it anew")
    return number


def cited(name: str, rows: Sequence[Result]) -> list[Number]:
    """Return the numbers of a method's advice that `rows` have."""
    found = []
    for asked in _written().get(name, {}).values():
        if isinstance(asked, dict):
            with suppress(UserError):  # a folder of one's own need not have them all
                found.append(find_number(name, rows, asked))
    return found


def advise(name: str, rows: Sequence[Result]) -> Advice | None:
    """Return the advice on a method with its numbers out of `rows`, or None where nothing is written.

    Raises
    ------
    UserError
        As `find_number`; or a sentence uses a number that is not named, or leaves one out.
    """
    if name not in _written():
        return None
    written = dict(_written()[name])
    sentences = [str(written.pop(key)) for key in ("pays", "not")]
    numbers = {key: find_number(name, rows, asked) for key, asked in written.items()}
    unused = [key for key in numbers if f"{{{key}}}" not in " ".join(sentences)]
    if unused:
        raise UserError(f"advice on {name}: no sentence uses {', '.join(unused)}")
    try:
        pays, pays_not = (sentence.format_map(numbers) for sentence in sentences)
    except KeyError as error:
        raise UserError(f"advice on {name}: a sentence uses the number {error}, which is not named") from None
    return Advice(pays, pays_not, numbers)

"""Settings that are written once: a field with its default, what it is, and what it may be.

Methods, studies and trainings are frozen dataclasses. What a value may be follows from a field's annotation (`Literal`
lists choices) and from `option` (a range); commands, notes and documentation derive from the same fields::

    @dataclass(frozen=True, kw_only=True)
    class Sharpen(Options):
        share: float = option(0.25, "Share of the keys that a query reads.", above=0, most=1)
        rule: Literal["sum", "max"] = option("sum", "How the heads are put together.")

Not here: options of the command line (`mintage.cli.fields`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from mintage.errors import UserError, did_you_mean

__all__ = ["DTYPES", "Options", "Range", "alternatives", "check_fields", "check_literals", "option", "settings_of"]

Function = TypeVar("Function", bound=Callable[..., Any])


class Range(NamedTuple):
    """What a number may be: bounds that belong to it (`least`, `most`) or do not (`above`, `below`)."""

    least: float | int | None = None
    most: float | int | None = None
    above: float | int | None = None
    below: float | int | None = None

    def holds(self, value: float | int) -> bool:
        """Whether `value` is inside; NaN never is."""
        return (
            value == value
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = _number(self.above if self.least is None else self.least)
        high = _number(self.below if self.most is None else self.most)
        if not high:
            return f"above {low}" if self.least is None else f"at least {low}"
        if not low:
            return f"below {high}" if self.most is None else f"at most {high}"
        return f"in {'(' if self.least is None else '['}{low}, {high}{')' if self.most is None else ']'}"


def _number(bound: float | int | None) -> str:
    """Write a bound: whole numbers whole."""
    return "" if bound is None else str(bound) if isinstance(bound, int) else f"{bound:g}"


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    least: float | int | None = None,
    most: float | int | None = None,
    above: float | int | None = None,
    below: float | int | None = None,
    short: str = "",
    argument: bool = False,
    repeat: bool = False,
) -> Any:
    """Make a field: its default, what it is in one sentence, and its range (of every number, where it holds several).

    On the command line a field is ``--its-name``, which must be given if it has no default; `short` adds e.g. ``"-n"``.
    A field that is a tuple of texts becomes the command's arguments (`argument`) or is given again for every text
    (`repeat`).

    Raises
    ------
    UserError
        When the class is made with a value outside the range (see `check_fields`).
    """
    limits = Range(least, most, above, below)
    metadata: dict[str, Any] = {"help": help, "short": short, "argument": argument, "repeat": repeat}
    if limits != Range():
        metadata["range"] = limits
    return dataclasses.field(default=default, metadata=metadata)


DTYPES = "auto (the faster on this machine, measured once), bfloat16, float32 or float16."
"""Help of every option that says what a model computes in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A dataclass whose fields are checked when it is made; a subclass's ``__post_init__`` calls this one."""

    def __post_init__(self) -> None:
        check_fields(self)


def check_fields(made: Any) -> None:
    """Check every field of a dataclass against its annotation and its range.

    Annotations of numbers, text, `Literal`, unions and tuples of these are understood; fields of other types pass.

    Raises
    ------
    UserError
        A value is none of the choices, of another type, or out of range; the line holds value, rule and an example.
    """
    hints = _hints(type(made))
    for field in dataclasses.fields(made):
        if field.init:
            _check(field.name, getattr(made, field.name), hints[field.name], field.metadata.get("range"), field.default)


def check_literals(function: Function) -> Function:
    """Check the arguments of a function that are annotated as `Literal`, or as several, whenever it is called.

    Raises
    ------
    UserError
        By the function: an argument is none of its choices.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not hints:
            found = typing.get_type_hints(function)
            hints.update({name: kind for name, kind in found.items() if name != "return" and _holds_choices(kind)})
        given = signature.bind(*args, **kwargs).arguments
        for name, kind in hints.items():
            if name in given:
                _check(name, given[name], kind, None, signature.parameters[name].default)
        return function(*args, **kwargs)

    return typing.cast(Function, call)


def settings_of(made: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as JSON has them: what a note or the definition of a run holds."""
    found = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init}
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _choices(kind: Any) -> list[Any]:
    return [c for part in alternatives(kind) if typing.get_origin(part) is Literal for c in typing.get_args(part)]


def _holds_choices(kind: Any) -> bool:
    return bool(_choices(kind)) or any(map(_holds_choices, typing.get_args(kind)))


def _check(name: str, value: Any, kind: Any, limits: Range | None, default: Any) -> None:
    inner = [typing.get_args(part)[0] for part in alternatives(kind) if typing.get_args(part)[1:] == (Ellipsis,)]
    if inner and isinstance(value, list | tuple):
        for part in value:  # one by one, so that the line names the wrong one
            _check(name, part, inner[0], limits, default)
        return
    if not any(_fits(value, part) for part in alternatives(kind)):
        example = "" if isinstance(value, str) and _choices(kind) else _example(default)
        raise UserError(f"{name}={value!r} is not {_described(kind, value)}{example}")
    if any(number != number for number in _numbers(value)):
        raise UserError(f"{name}={value!r} is not a number{_example(default)}")
    if limits is not None and not all(map(limits.holds, _numbers(value))):
        raise UserError(f"{name}={value!r} is out of range; pass a number {limits}{_example(default)}")


def _fits(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return any(value == c and isinstance(value, bool) == isinstance(c, bool) for c in typing.get_args(kind))
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str)
    if origin is tuple:
        args = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(any(_fits(part, k) for k in alternatives(args[0])) for part in value)
        return len(args) == len(value) and all(
            any(_fits(part, k) for k in alternatives(arg)) for part, arg in zip(value, args, strict=True)
        )
    return True


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, numbers.Real) and not isinstance(value, bool) else []


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "None",
    tuple: "several values",
}


def _described(kind: Any, value: Any) -> str:
    choices = [str(choice) for choice in _choices(kind)]
    others = [part for part in alternatives(kind) if typing.get_origin(part) is not Literal]
    if choices and not [part for part in others if part is not type(None)]:
        nearest = did_you_mean(str(value), choices)  # or it lists them again
        return f"one of {', '.join(choices)}{f'; {nearest}' if nearest.startswith('did') else ''}"
    return " or ".join(
        [
            *choices,
            *(_NAMES.get(typing.get_origin(part) or part) or getattr(part, "__name__", str(part)) for part in others),
        ]
    )


def _example(default: Any) -> str:
    return "" if default is dataclasses.MISSING or default in (None, ()) else f", e.g. {default!r}"

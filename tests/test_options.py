"""Settings that are written once: what a field may be, and what is said of a value that it may not."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from mintage.errors import UserError
from mintage.options import Options, Range, check_fields, check_literals, option, settings_of

RULES = Literal["sum", "max"]


@dataclass(frozen=True, kw_only=True)
class Sharpen(Options):
    share: float = option(0.25, "Share of the keys.", above=0, most=1)
    steps: int = option(3, "Steps.", least=1)
    rule: RULES = option("sum", "How heads are put together.")
    sizes: tuple[int, ...] = option((4, 8), "Sizes.", least=1)
    pair: tuple[int, float] = option((1, 0.5), "A count and a rate.")
    either: int | Literal["auto"] = option("auto", "A count, or auto.", least=2)
    some: tuple[RULES, ...] = option(("sum",), "Several rules.")
    name: str | None = option(None, "A name.")
    wide: bool = option(False, "Wide or not.")
    room: Path | None = option(None, "A folder.")
    anything: Any = None


@pytest.fixture(autouse=True)
def _unchecked(as_users_call):
    """What tests switch on would refuse these values before the fields are asked."""


@pytest.mark.parametrize(
    "value",
    [
        {"share": 1},
        {"share": np.float32(0.5)},
        {"steps": np.int64(1)},
        {"sizes": [1, 2, 3]},
        {"sizes": ()},
        {"pair": (2, 1)},
        {"either": 2},
        {"either": "auto"},
        {"some": ("max", "sum")},
        {"name": "x"},
        {"wide": True},
        {"room": Path("x")},
        {"anything": {1, 2}},
    ],
    ids=repr,
)
def test_values_that_fit(value):
    ((name, given),) = value.items()
    assert getattr(Sharpen(**value), name) is given


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"share": 0}, "share=0 is out of range; pass a number in (0, 1], e.g. 0.25"),
        ({"share": 1.01}, "share=1.01 is out of range; pass a number in (0, 1], e.g. 0.25"),
        ({"share": math.nan}, "share=nan is not a number, e.g. 0.25"),
        ({"share": "half"}, "share='half' is not a number, e.g. 0.25"),
        ({"share": True}, "share=True is not a number, e.g. 0.25"),
        ({"steps": 0}, "steps=0 is out of range; pass a number at least 1, e.g. 3"),
        ({"steps": 2.5}, "steps=2.5 is not a whole number, e.g. 3"),
        ({"steps": None}, "steps=None is not a whole number, e.g. 3"),
        ({"rule": "smu"}, "rule='smu' is not one of sum, max; did you mean 'sum'?"),
        ({"rule": 1}, "rule=1 is not one of sum, max, e.g. 'sum'"),
        ({"sizes": (4, 0)}, "sizes=0 is out of range; pass a number at least 1, e.g. (4, 8)"),
        ({"sizes": (4, 0.5)}, "sizes=0.5 is not a whole number, e.g. (4, 8)"),
        ({"sizes": 4}, "sizes=4 is not several values, e.g. (4, 8)"),
        ({"sizes": "4,8"}, "sizes='4,8' is not several values, e.g. (4, 8)"),
        ({"pair": (1,)}, "pair=(1,) is not several values, e.g. (1, 0.5)"),
        ({"either": 1}, "either=1 is out of range; pass a number at least 2, e.g. 'auto'"),
        ({"either": "atuo"}, "either='atuo' is not auto or a whole number"),
        ({"some": ("max", "mxa")}, "some='mxa' is not one of sum, max; did you mean 'max'?"),
        ({"name": 3}, "name=3 is not text or None"),
        ({"wide": 1}, "wide=1 is not true or false, e.g. False"),
    ],
    ids=lambda value: repr(value) if isinstance(value, dict) else "",
)
def test_other_values_are_told_in_one_line(value, line):
    with pytest.raises(UserError) as told:
        Sharpen(**value)
    assert str(told.value) == line


def test_a_class_that_is_no_options_can_be_checked_too():
    @dataclass
    class Plain:
        rule: RULES = "sum"
        made: list = field(default_factory=list)
        inner: str = field(default="", init=False)

    check_fields(Plain())
    with pytest.raises(UserError, match="rule='mean' is not one of"):
        check_fields(Plain(rule="mean"))


def test_a_subclass_checks_more():
    @dataclass(frozen=True, kw_only=True)
    class Twice(Sharpen):
        def __post_init__(self):
            super().__post_init__()
            if self.steps % 2:
                raise UserError(f"steps={self.steps} is odd; pass an even number")

    with pytest.raises(UserError, match="is odd"):
        Twice(steps=3)
    with pytest.raises(UserError, match="out of range"):
        Twice(steps=0)


def test_literals_of_functions_are_checked_when_they_are_called():
    @check_literals
    def combine(values, /, rule: RULES = "sum", *more, axis: Literal[0, 1] | None = None, of: tuple[RULES, ...] = ()):
        """Combine."""
        return values, rule, more, axis, of

    assert combine([1], "max", 2, axis=0, of=("sum",)) == ([1], "max", (2,), 0, ("sum",))
    assert combine([1]) == ([1], "sum", (), None, ())
    assert combine.__doc__ == "Combine."
    for wrong, line in (
        ({"rule": "foo"}, "rule='foo' is not one of sum, max"),
        ({"axis": 2}, "axis=2 is not one of 0, 1"),
        ({"of": ("sum", "foo")}, "of='foo' is not one of sum, max"),
    ):
        with pytest.raises(UserError) as told:
            combine([1], **wrong)
        assert str(told.value).startswith(line)
        assert "\n" not in str(told.value)
    with pytest.raises(TypeError):
        combine()


@pytest.mark.parametrize(
    ("limits", "text", "inside", "outside"),
    [
        (Range(least=1), "at least 1", [1, 2], [0.99]),
        (Range(above=0), "above 0", [0.01], [0, -1]),
        (Range(most=1), "at most 1", [1, -5], [1.01]),
        (Range(below=2**63), "below 9223372036854775808", [2**63 - 1], [2**63]),
        (Range(least=0, below=1), "in [0, 1)", [0, 0.99], [1, -0.1]),
        (Range(above=0.5, most=1_234_567), "in (0.5, 1234567]", [1_234_567, 0.51], [0.5, 1_234_568]),
    ],
    ids=str,
)
def test_ranges(limits, text, inside, outside):
    assert str(limits) == text
    assert all(map(limits.holds, inside))
    assert not any(map(limits.holds, [*outside, math.nan]))


def test_settings_are_what_json_has():
    made = Sharpen(room=Path("a") / "b", anything={"x": (1, Path("c"))})
    assert settings_of(made) == {
        "share": 0.25,
        "steps": 3,
        "rule": "sum",
        "sizes": [4, 8],
        "pair": [1, 0.5],
        "either": "auto",
        "some": ["sum"],
        "name": None,
        "wide": False,
        "room": "a/b",
        "anything": {"x": [1, "c"]},
    }

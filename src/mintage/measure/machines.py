"""The machines of a report: each once, with what differed between the runs on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mintage.measure.environment import device_name
from mintage.processor import limited_to

__all__ = ["Machine", "machine_key", "machines"]

_HARDWARE = ("platform", "cpu", "cores", "gpu")


@dataclass(frozen=True)
class Machine:
    """One machine and the letter that the page calls it by.

    Parameters
    ----------
    facts
        What all its runs have in common.
    columns, runs
        What differs between them, and one line for each distinct combination: its values and its number of rows.
    """

    letter: str
    name: str
    facts: dict[str, Any]
    columns: tuple[str, ...]
    runs: tuple[tuple[tuple[str, ...], int], ...]


def machine_key(environment: Mapping[str, Any]) -> str:
    """Return what two environments of one machine share; empty for a row that does not know its own.

    A processor limited to some of its instructions is a machine of its own.
    """
    return repr([*(environment.get(name) for name in _HARDWARE), limited_to(environment)]) if environment else ""


def machines(environments: Iterable[Mapping[str, Any]]) -> dict[str, Machine]:
    """Return the machines by `machine_key`, lettered in the order in which they appear."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for environment in environments:
        if environment:
            groups.setdefault(machine_key(environment), []).append(environment)
    return {key: _machine(_letters(place), group) for place, (key, group) in enumerate(groups.items())}


def _machine(letter: str, environments: Sequence[Mapping[str, Any]]) -> Machine:
    names = dict.fromkeys(name for environment in environments for name in environment if name != "time")
    values = {name: [_said(environment.get(name)) for environment in environments] for name in names}
    columns = tuple(name for name in names if len(set(values[name])) > 1)
    runs: dict[tuple[str, ...], int] = {}
    for line in zip(*(values[name] for name in columns), strict=True):
        runs[line] = runs.get(line, 0) + 1
    return Machine(
        letter,
        device_name(max(environments, key=lambda one: "instructions" in one)),
        {name: values[name][0] for name in names if name not in columns and values[name][0]},
        columns,
        tuple(sorted(runs.items(), key=lambda run: -run[1])),
    )


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _letters(place: int) -> str:
    """A to Z, then AA, AB, ..."""
    first, last = divmod(place, 26)
    return (_letters(first - 1) if first else "") + chr(ord("A") + last)

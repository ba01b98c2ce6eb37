"""The evidence that travels with the package: few rows of ``results/``, short enough to ship, readable like any others.

`compact` chooses and shortens them, `write_scoreboard` makes the file (``mintage report --scoreboard FILE``), and
`evidence` tells what was measured for a method wherever mintage is installed. Not here: which row comes first
(`mintage.measure.standing`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mintage
from mintage.catalog import Method, methods
from mintage.files import replace_file
from mintage.measure.advice import cited
from mintage.measure.figure import Figure
from mintage.measure.result import Result, newest, read_results, to_line
from mintage.measure.standing import Standing, method_name, standing

__all__ = ["SHIPPED", "MethodRecord", "compact", "evidence", "shipped_rows", "write_scoreboard"]

SHIPPED = Path(mintage.__file__).parent / "assets" / "scoreboard.jsonl"
"""Made by ``make readme`` from ``results/``; at most 300 kB."""

_ENVIRONMENT = ("time", "commit", "dirty", "mintage", "cpu", "cores", "instructions", "limits", "gpu")
_DIGITS = 5


@dataclass(frozen=True)
class MethodRecord:
    """What was measured for one method, and where its rows lie: a folder, or None for those that are shipped."""

    standing: Standing
    folder: Path | None


def compact(rows: Iterable[Result | Figure], catalogue: Sequence[Method] | None = None) -> list[Result]:
    """Return what of `rows` is shipped: the newest row of every claim of every method, and what its advice cites.

    Of the peers only the best stays, and any that is cited. A method that claims nothing keeps the row told first.
    """
    results = newest(row for row in rows if isinstance(row, Result))
    kept: dict[tuple[str, ...], Result] = {}
    named: dict[tuple[str, ...], set[str]] = {}
    for method in methods() if catalogue is None else catalogue:
        stands = standing(row for row in results if method_name(row) == method.name)
        headline = stands.headline
        chosen = list(stands.claims or ([headline] if headline else []))
        for number in cited(method.name, results):
            chosen.append(number.row)
            named.setdefault(number.row.identity, set()).add(number.of)
        kept |= {row.identity: row for row in chosen if row.identity not in kept}
    return [_short(row, named.get(identity, set())) for identity, row in kept.items()]


def _short(row: Result, named: set[str]) -> Result:
    best = row.best_peer()
    return dataclasses.replace(
        row,
        value=_rounded(row.value),
        interval=None if row.interval is None else (_rounded(row.interval[0]), _rounded(row.interval[1])),
        baseline={name: _rounded(value) for name, value in row.baseline.items()},
        peers={name: _rounded(v) for name, v in row.peers.items() if name in named or (best and name == best[0])},
        environment={name: row.environment[name] for name in _ENVIRONMENT if row.environment.get(name) is not None},
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def write_scoreboard(rows: Iterable[Result | Figure], out: str | Path) -> Path:
    """Write the rows of `compact` as a file that `mintage.measure.read_results` reads, and return `out`."""
    text = "".join(_line(row) + "\n" for row in compact(rows))
    with replace_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(out)


def _line(row: Result) -> str:
    """Write a row without what a reader fills in."""
    values = json.loads(to_line(row))
    optional = {"baseline", "peers", "interval", "claim", "model", "data", "settings", "command", "note"}
    kept = {name: value for name, value in values.items() if value or name not in optional}
    return json.dumps(kept, separators=(",", ":"))


@cache
def shipped_rows() -> tuple[Result, ...]:
    """Return the rows that came with the package."""
    return tuple(row for row in read_results(SHIPPED) if isinstance(row, Result))


def evidence(name: str, folder: Path) -> MethodRecord:
    """Return what was measured for the method `name`: in `folder`, unless what is shipped is newer.

    Raises
    ------
    UserError
        A file of `folder` is not one of results.
    """
    brought = standing(row for row in shipped_rows() if method_name(row) == name)
    if any(folder.glob("*.jsonl")):
        rows = (row for row in read_results(folder) if isinstance(row, Result))
        own = standing(row for row in rows if method_name(row) == name)
        if own.headline and own.time >= brought.time:
            return MethodRecord(own, folder)
    return MethodRecord(brought, None)

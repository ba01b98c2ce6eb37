"""Measured rows in the terminal: a table of what only informs, a line per tested claim."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["print_rows"]


def print_rows(rows: list[Any], *, as_json: bool) -> None:
    """Print result rows, as tables or as JSON lines; figures are for the report."""
    from mintage.measure import Result

    results = [row for row in rows if isinstance(row, Result)]
    if as_json:
        for row in results:
            typer.echo(json.dumps(dataclasses.asdict(row)))
        return
    console = Console()
    _table(console, [r for r in results if not r.claim])
    for row in (r for r in results if r.claim):
        colour = "green" if row.verdict == "holds" else "red"
        rivals = list(row.baseline.items())
        if (best := row.best_peer()) is not None:
            rivals.append(best)
        against = "".join(f", {escape(name)} {value:.3g}" for name, value in rivals)
        line = f"[{colour}]{row.verdict}[/{colour}]  {row.claim}: {_cell(row)} {row.unit}[dim]{against}[/dim]"
        console.print(line, highlight=False)


_COLUMN = 20  # characters of a column at most: a ratio with its interval


def _table(console: Console, results: list[Any]) -> None:
    """Print one line per arm and one column per metric, ratios with their interval; one table per temperature.

    Columns that do not fit beside each other go into a table below.
    """
    for heat in dict.fromkeys(r.settings.get("temperature") for r in results):
        rows = [r for r in results if r.settings.get("temperature") == heat]
        several = len({r.settings.get("temperature") for r in results}) > 1
        if several:
            console.print(f"temperature {heat:g}", style="bold")
        names = dict.fromkeys(name for r in rows for name in (*r.baseline, r.method))
        width = min(max(map(len, names)), 32)
        metrics = list(dict.fromkeys(r.metric for r in rows))
        at_once = max(1, (console.width - width - 2) // (_COLUMN + 2))
        for start in range(0, len(metrics), at_once):
            _columns(console, rows, metrics[start : start + at_once], width)


def _columns(console: Console, results: list[Any], metrics: list[str], width: int) -> None:
    table = Table(box=None, padding=(0, 1))
    table.add_column("", overflow="fold", width=width)
    for metric in metrics:
        table.add_column(metric, justify="right", overflow="fold", max_width=_COLUMN)
    cells: dict[str, dict[str, str]] = {}
    for row in results:
        if row.metric in metrics:
            for name, value in row.baseline.items():
                cells.setdefault(name, {})[row.metric] = f"[dim]{value:.3g}[/dim]"
            cells.setdefault(row.method, {})[row.metric] = _cell(row) if row.unit == "x" else f"{row.value:.3g}"
    for name, values in cells.items():
        table.add_row(escape(name), *(values.get(metric, "") for metric in metrics))
    console.print(table)


def _cell(row: Any) -> str:
    if row.interval is None or row.interval[0] == row.interval[1]:
        return f"{row.value:.3g}"
    return f"{row.value:.3g} [dim]({row.interval[0]:.3g}-{row.interval[1]:.3g})[/dim]"

"""``mintage show``: one method in full."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mintage import catalog


def show(
    name: Annotated[str, typer.Argument(help="A method, e.g. token-recycling.")],
    results: Annotated[Path, typer.Option(help="Where measured results lie.")] = Path("results"),
) -> None:
    """Show a method: paper, hyper-parameters with defaults, laws, and what was measured so far.

    [dim]Example[/dim]

      mintage show token-recycling

    Next: [bold]mintage bench token-recycling[/bold]
    """
    row = catalog.find(name)
    measured = _measured(row.name, results) if row.status == "ready" else []
    console = Console(highlight=False)
    console.print(f"[bold]{row.name}[/bold]  ({row.job}, {row.role}, {row.status})")
    console.print(escape(row.title))
    if row.arxiv:
        console.print(f"arXiv {row.arxiv}, {row.year}: https://arxiv.org/abs/{row.arxiv}")
    for text in (row.summary, f"Claim: {row.claim}" if row.claim else "", row.problem):
        if text:
            console.print(escape(text))
    if row.status != "ready":
        return
    method_class = row.load()
    console.print()
    console.print(_hyperparameters(name, method_class))
    _laws(console, row.job, method_class)
    _evidence(console, row.name, results, measured)


def _hyperparameters(name: str, method_class: type) -> Table:
    table = Table(title=f"Settings, e.g. {name}:key=value", title_justify="left", box=None)
    for column in ("setting", "type", "default"):
        table.add_column(column)
    for key, (kind, default) in catalog.hyperparameters(method_class).items():
        shown = "(required)" if default is dataclasses.MISSING else repr(default)
        table.add_row(key, escape(inspect.formatannotation(kind)), escape(shown))
    return table


def _laws(console: Console, job: str, method_class: type) -> None:
    from mintage.testing import laws

    console.print()
    console.print("Laws it passes (mintage.testing):")
    for law_name, law in laws(job, method_class).items():
        console.print(f"  [green]{law_name}[/green]  {escape(inspect.getdoc(law) or '')}")


def _evidence(console: Console, name: str, folder: Path, rows: list[Any]) -> None:
    console.print()
    if not rows:
        console.print(f"Nothing measured in {folder}/ yet; run: mintage bench {name}")
        return
    table = Table(title="Measured", title_justify="left", box=None)
    for column in ("metric", "here", "95% interval", "baseline", "n", "on"):
        table.add_column(column)
    for r in rows:
        interval = f"{r.interval[0]:.3g} to {r.interval[1]:.3g}" if r.interval else ""
        baseline = ", ".join(f"{k} {v:.3g}" for k, v in r.baseline.items())
        table.add_row(f"{r.method}: {r.metric}", f"{r.value:.3g} {r.unit}", interval, baseline, str(r.n), r.model)
    console.print(table)


def _measured(name: str, folder: Path) -> list[Any]:
    from mintage.measure import Result, newest, read_results

    if not any(folder.glob("*.jsonl")):
        return []
    rows = [r for r in newest(read_results(folder)) if isinstance(r, Result)]
    return [r for r in rows if r.method.split(":")[0].split(" ")[0] == name]

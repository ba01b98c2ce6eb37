"""``mintage show``: one method in full."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import mintage
from mintage import catalog

if TYPE_CHECKING:
    from mintage.measure import Result
    from mintage.measure.scoreboard import MethodRecord

OTHERS = 8
"""How many rows are shown of a method that claims nothing."""

_STYLE = {"holds": "green", "does not hold": "red", "measured": "dim"}


def show(
    name: Annotated[str, typer.Argument(help="A method, e.g. token-recycling.")],
    results: Annotated[Path, typer.Option(help="Your own rows; shown where newer than the shipped.")] = Path("results"),
) -> None:
    """Show a method: paper, hyper-parameters with defaults, laws, and what was measured.

    [dim]Example[/dim]

      mintage show token-recycling

    Next: [bold]mintage bench token-recycling[/bold]
    """
    from mintage.measure.advice import advise
    from mintage.measure.scoreboard import evidence, shipped_rows

    row = catalog.find(name)
    found = evidence(row.name, results)  # before the first line is printed: a broken file is one line
    console = Console(highlight=False)
    console.print(f"[bold]{row.name}[/bold]  ({row.job}, {row.role}, {row.status})")
    console.print(escape(row.title))
    if row.arxiv:
        console.print(f"arXiv {row.arxiv}, {row.year}: https://arxiv.org/abs/{row.arxiv}")
    for text in (row.summary, f"Claim: {row.claim}" if row.claim else "", row.problem):
        if text:
            console.print(escape(text))
    if advice := advise(row.name, shipped_rows()):
        console.print(escape(f"Pays when {advice.pays}."))
        console.print(escape(f"Does not pay when {advice.pays_not}."))
    if row.status != "ready":
        return
    method_class = row.load()
    console.print()
    console.print(_hyperparameters(name, row.load_settings()))
    _laws(console, row.job, method_class)
    _evidence(console, row.name, found)


def _hyperparameters(name: str, settings_class: type) -> Table:
    table = Table(title=f"Settings, e.g. {name}:key=value", title_justify="left", box=None)
    for column in ("setting", "type", "default"):
        table.add_column(column)
    for key, (kind, default) in catalog.hyperparameters(settings_class).items():
        shown = "(required)" if default is dataclasses.MISSING else repr(default)
        table.add_row(key, escape(inspect.formatannotation(kind)), escape(shown))
    return table


def _laws(console: Console, job: str, method_class: type) -> None:
    from mintage.testing import laws

    console.print()
    console.print("Laws it passes (mintage.testing):")
    for law_name, law in laws(job, method_class).items():
        console.print(f"  [green]{law_name}[/green]  {escape(inspect.getdoc(law) or '')}")


def _evidence(console: Console, name: str, found: MethodRecord) -> None:
    stands = found.standing
    console.print()
    if not stands.headline:
        console.print(f"Nothing measured yet; run: mintage bench {name}")
        return
    where = f"in {found.folder}/" if found.folder else f"shipped with mintage {mintage.__version__}"
    held = f": {stands.held} of {len(stands.claims)} claims hold" if stands.claims else ""
    console.print(escape(f"Measured ({where}, newest row of {stands.time[:10] or 'unknown date'}){held}"))
    rows = stands.claims or stands.others[:OTHERS]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    place = ""
    for row in rows:
        if _place(row) != place:
            place = _place(row)
            table.add_row("", f"[dim]{escape(place)}[/dim]")
        table.add_row(f"[{_STYLE[row.verdict]}]{row.verdict}[/]", escape(_told(row)))
    console.print(table)
    more = len(stands.claims) + len(stands.others) - len(rows)
    console.print(f"{f'{more} rows more: mintage report {found.folder}. ' if more else ''}Again: mintage bench {name}")


def _place(row: Result) -> str:
    commit = str(row.environment.get("commit") or "")[:7]
    time = str(row.environment.get("time", ""))[:10]
    model = " ".join(filter(None, [row.model, str(row.settings.get("dtype", ""))]))
    return "; ".join(filter(None, [model, row.data, row.device, time, commit and f"commit {commit}"]))


def _told(row: Result) -> str:
    """What was measured, and below it how much."""
    from mintage.measure.standing import method_name

    interval = f" ({row.interval[0]:.3g} to {row.interval[1]:.3g})" if row.interval else ""
    numbers = [f"{row.value:.3g} {row.unit}".rstrip() + interval + f", n={row.n}"]
    if row.baseline:
        numbers.append("baseline " + ", ".join(f"{name} {value:.3g}" for name, value in row.baseline.items()))
    if best := row.best_peer():
        numbers.append(f"best peer {best[0]} {best[1]:.3g}")
    what = row.claim or (row.metric if row.method == method_name(row) else f"{row.method}: {row.metric}")
    return f"{what}\n{'; '.join(numbers)}"

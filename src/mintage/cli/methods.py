"""``mintage methods``: what there is."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mintage import catalog

_STYLE = {"ready": "green", "planned": "dim", "broken": "red"}


def methods(
    job: Annotated[str | None, typer.Option(help=f"One of: {', '.join(catalog.JOBS)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Rows as JSON, for programs.")] = False,
) -> None:
    """List the methods: the 46 papers, their rivals, and plug-ins.

    [dim]Examples[/dim]

      mintage methods --job draft

      mintage methods --json | jq '.[].name'

    Next: [bold]mintage show token-recycling[/bold]
    """
    rows = catalog.methods(job)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) | {"status": row.status} for row in rows], indent=2))
        return
    console = Console()
    for one in catalog.JOBS if job is None else (job,):
        table = Table(title=f"[bold]{one}[/bold]  {catalog.job_summary(one)}", title_justify="left", box=None)
        for column in ("method", "status", "year", "what it does"):
            table.add_column(column, no_wrap=column != "what it does")
        for row in (r for r in rows if r.job == one):
            name = row.name if row.role == "paper" else f"[italic]{row.name}[/italic]"
            table.add_row(name, f"[{_STYLE[row.status]}]{row.status}[/]", str(row.year or ""), row.summary or row.title)
        console.print(table)
        console.print()
    for row in (r for r in rows if r.status == "broken"):
        console.print(row.problem, style="red", markup=False)
    papers = [r for r in rows if r.role == "paper"]
    ready = sum(r.status == "ready" for r in papers)
    console.print(f"{ready} of {len(papers)} papers ready; baselines and combinators in [italic]italics[/italic].")

"""``mintage data``: the data sets, what may be done with them, and how they get here."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="List, fetch and find data sets.")

_NAME = typer.Argument(help="A data set of mintage data list.")


@app.command("list")
def list_sets(as_json: Annotated[bool, typer.Option("--json", help="Rows as JSON, for programs.")] = False) -> None:
    """List the data sets: size, licence, origin, and whether they are on this machine.

    [dim]Examples[/dim]

      mintage data list

      mintage data list --json | jq '.[].name'

    Next: [bold]mintage data get NAME[/bold]
    """
    from mintage.data.sets import SETS, find_data

    here = {one.name: all(find_data(file.name) for file in one.files) for one in SETS.values()}
    if as_json:
        rows = [dataclasses.asdict(one) | {"size": one.size, "here": here[one.name]} for one in SETS.values()]
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)
    for one in SETS.values():
        state = "[green]here[/green]" if here[one.name] else "not here"
        console.print(f"[bold]{one.name}[/bold]  {one.kind}, {one.size / 1e6:.1f} MB, {state}, {one.licence}")
        console.print(f"  {one.about}")
        console.print(f"  from {one.origin}", style="dim", markup=False)


@app.command()
def get(
    name: Annotated[str, _NAME],
    source: Annotated[str, typer.Option("--from", help="A folder or URL with the files that mintage reads.")] = "",
) -> None:
    """Fetch a data set into $MINTAGE_DATA, else into mintage's cache: checked, and going on after a break.

    Without --from the whole set is taken from its public origin: its own files, in a folder of the set's name, or the
    hub, with pip install 'mintage\\[data]'. With it, the files that benches and trainings read, from where you say.

    [dim]Examples[/dim]

      mintage data get humaneval

      mintage data get cifar10 --from /mnt/data

    Next: [bold]mintage data where NAME[/bold]
    """
    from mintage.cli.progress import shown_progress
    from mintage.data.fetch import fetch_set
    from mintage.data.sets import find_set

    one = find_set(name)
    with shown_progress() as progress:
        found = fetch_set(one, source, progress=progress)
    for path in found:
        typer.echo(path)
    if not found:
        typer.echo(f"{one.hub} is in the cache of the library datasets")


@app.command()
def where(name: Annotated[str, _NAME]) -> None:
    """Print where the files of a data set are, one a line.

    [dim]Examples[/dim]

      mintage data where xquad

      mintage data where wikitext2 | xargs zcat | head

    Next: [bold]mintage bench segment[/bold]
    """
    from mintage.data.sets import data_file, find_data, find_set

    one = find_set(name)
    found = [path for file in (*one.files, *one.whole) if (path := find_data(file.name))]
    for path in found or [data_file(file.name) for file in one.files]:
        typer.echo(path)

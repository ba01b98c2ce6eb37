"""``mintage report``: the scoreboard as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[Path, typer.Argument(help="A folder of *.jsonl, or one file.")] = Path("results"),
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    scoreboard: Annotated[
        Path | None, typer.Option(help="Write no page but the few rows that travel with a package, as JSONL.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: the scoreboard of all 46 papers, tables, plots and pictures.

    [dim]Examples[/dim]

      mintage report

      mintage report results/draft.jsonl -o draft.html

      mintage report results --scoreboard scoreboard.jsonl

    Next: open the page in a browser
    """
    from mintage import catalog
    from mintage.files import check_writable
    from mintage.measure import read_results, write_report
    from mintage.measure.scoreboard import write_scoreboard

    check_writable(scoreboard or out)
    rows = read_results(results)
    made = write_scoreboard(rows, scoreboard) if scoreboard else write_report(rows, out, rows=catalog.methods())
    typer.echo(f"wrote {made.resolve()}")

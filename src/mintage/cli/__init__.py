"""The command line: one file per verb. Verbs import what they need when they run, so that ``--help`` stays light."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from mintage import __version__
from mintage.cli.audit import app as audit
from mintage.cli.bench import app as bench
from mintage.cli.calibrate import calibrate
from mintage.cli.data import app as data
from mintage.cli.generate import generate
from mintage.cli.methods import methods
from mintage.cli.report import report
from mintage.cli.retrofit import app as retrofit
from mintage.cli.segment import app as segment
from mintage.cli.show import show
from mintage.cli.train import app as train
from mintage.errors import UserError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]mintage methods[/bold], then [bold]mintage generate 'Tell me about tides'[/bold].",
)

app.command(rich_help_panel="Look")(methods)
app.command(rich_help_panel="Look")(show)
app.add_typer(data, name="data", rich_help_panel="Look")
app.command(rich_help_panel="Use")(generate)
app.add_typer(train, name="train", rich_help_panel="Use")
app.command(rich_help_panel="Use")(calibrate)
app.add_typer(segment, name="segment", rich_help_panel="Use")
app.add_typer(retrofit, name="retrofit", rich_help_panel="Use")
app.add_typer(audit, name="audit", rich_help_panel="Use")
app.add_typer(bench, name="bench", rich_help_panel="Measure")
app.command(rich_help_panel="Measure")(report)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"mintage {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Published methods about [bold]tokens[/bold] behind ten small contracts, each claim re-measured here."""


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 2."""
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; pass another path, or make that one writable")


def _fail(line: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"mintage: {line}", markup=False, style="red")
    sys.exit(2)

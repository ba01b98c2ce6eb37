"""The command line: one file per verb. Verbs import what they need when they run, so that ``--help`` stays light."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

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
from mintage.errors import Notice, UserError
from mintage.files import is_full

__all__ = ["app", "main"]

_GO_ON = {"bench", "data", "train"}
"""Verbs that keep what was done when they are stopped."""


class _Verbs(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_command(calibrate)

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; when it is stopped (Ctrl-C), say what that means."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            goes_on = "; the same command goes on where it was" if ctx.invoked_subcommand in _GO_ON else ""
            _say(f"mintage: stopped{goes_on}", "yellow")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Verbs,
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
    warnings.showwarning = _warn
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk
        if is_full(error):
            _fail(f"no room left to write{f' {error.filename}' if error.filename else ''}; make room on that disk")
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; pass another path, or make that one writable")
    except Exception as error:
        if not is_full(error):
            raise
        _fail(f"no room left on a disk ({str(error).splitlines()[0]}); make room")


def _fail(line: str) -> None:
    _say(f"mintage: {line}", "red")
    sys.exit(2)


def _warn(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print a warning of mintage's own as one line, others as they are."""
    if issubclass(category, Notice):
        _say(f"mintage: {message}", "yellow")
    else:
        _showwarning(message, category, *where, **more)


_showwarning = warnings.showwarning


def _say(line: str, style: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False, style=style)

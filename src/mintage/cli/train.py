"""``mintage train``: what can be trained, each a command made from the fields of its `mintage.train.Training`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mintage import catalog
from mintage.cli.fields import Lazy, LazyGroup, command_line, command_of
from mintage.cli.progress import shown_progress


class _Trainings(LazyGroup):
    def names(self) -> Sequence[str]:
        return list(catalog.trainings())

    def found(self, name: str) -> Any:
        training = catalog.trainings().get(name)
        return training and Lazy(name, training.summary, functools.partial(_command, training))


app = typer.Typer(
    cls=_Trainings,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Train what methods need trained. A killed run goes on: give the same command again.",
)


def _command(training: catalog.Trains) -> Any:
    kind: Any = catalog.load_training(training.name)
    file = f"{kind.name}{kind.suffix}"
    extra = [
        _option("out", Path(file), typer.Option("--out", "-o", help="File to write.")),
        _option("work", Path(".mintage") / kind.name, typer.Option(help="Keeps the run; a killed one goes on.")),
    ]

    from mintage.train.training import is_first

    def run(made: Any, out: Path, work: Path) -> None:
        with shown_progress() as progress:
            trained = made.run(out, work, command=command_line(), progress=progress)
        if is_first():
            line = made.summary(trained)
            typer.echo(f"wrote {out}: {line}" if line else f"wrote {out}")

    return command_of(kind, run, name=training.name, extra=extra, help=_help(kind))


def _option(name: str, default: Path, told: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[Path, told])


def _help(kind: Any) -> str:
    parts = [inspect.cleandoc(kind.__doc__ or "")]
    if kind.examples:
        parts += ["[dim]Examples[/dim]", *(f"  {line}" for line in kind.examples)]
    if kind.after:
        parts.append(f"Next: [bold]{kind.after}[/bold]")
    return "\n\n".join(parts)

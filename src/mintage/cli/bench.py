"""``mintage bench``: measure again. A job's comparison and a paper's claims are commands made from their own fields."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mintage import catalog
from mintage.cli.fields import Lazy, LazyGroup, command_line, command_of
from mintage.cli.progress import shown_progress, told
from mintage.errors import UserError

_JOBS, _PAPERS = "Compare the methods of a job, on your model and data", "Test a paper's claims again"


def _parameter(name: str, kind: Any, default: Any, told: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, told])


_SPECS = _parameter(
    "specs",
    list[str] | None,
    None,
    typer.Argument(help="Methods as name or name:key=value,...; none is the job's usual arms."),
)
_WRITING = (
    _parameter("out", Path, Path("results"), typer.Option(help="Folder that results are appended to.")),
    _parameter("as_json", bool, False, typer.Option("--json", help="Print the rows as JSON lines.")),
    _parameter("save", bool, True, typer.Option(help="Append the rows to the results folder.")),
)


class _Benches(LazyGroup):
    def names(self) -> Sequence[str]:
        return [*catalog.benches(), *(row.name for row in catalog.methods() if row.study)]

    def found(self, name: str) -> Any:
        if name in catalog.JOBS:
            summary = catalog.job_summary(name) if name in catalog.benches() else ""
            return Lazy(name, summary, functools.partial(_job_command, name), _JOBS)
        known = {row.name: row for row in catalog.methods()}
        row = known.get(_first(name)[0])
        return row and Lazy(name, row.title, functools.partial(_study_command, name), _PAPERS)


app = typer.Typer(
    cls=_Benches,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="""Measure methods beside their baseline and rivals in one run, and append the results.

    A job compares methods on a model and data of your own; a method runs its paper's claim check. A killed run goes on
    where it was: give the same command again. Each has its own options: mintage bench draft --help.

    [dim]Examples[/dim]

      mintage bench draft --limit 6

      mintage bench token-recycling

      mintage bench draft token-recycling:budget=16 prompt-lookup -t 0,0.7

      mintage bench draft --nodes 4,8,16,32 --draft-model rounded:4

      mintage bench keep --contexts 1024,4096 --room 4,16

      mintage bench reduce --model my-vit/ --images photos/

    Next: [bold]mintage report[/bold]
    """,
)


def _job_command(job: str) -> Any:
    from mintage.bench.run import bench_of

    kind = bench_of(job)

    def run(made: Any, specs: list[str] | None, **writing: Any) -> None:
        _measure(job, writing, lambda **asked: made.run(specs or [], **asked), kind.shorter)

    return command_of(kind, run, name=job, arguments=[_SPECS], extra=_WRITING, help=_help(kind, job))


def _first(spec: str) -> tuple[str, dict[str, str]]:
    """Return name and settings of a method, or of the first of several joined by +."""
    return catalog.parse_spec(spec.partition("+")[0])


def _study_command(name: str) -> Any:
    from mintage.bench.run import sources_of, study_of
    from mintage.measure.study import run_study

    method, settings = _first(name)
    row = catalog.find(method)
    if settings or "+" in name:
        raise UserError(
            f"{name!r} is an arm, not a paper: its claim check has options of its own (mintage bench {method} --help); "
            f"arms are compared by: mintage bench {row.job} {name!r}"
        )
    kind = study_of(method)

    def run(made: Any, **writing: Any) -> None:
        sources = sources_of(kind)
        _measure(row.job, writing, lambda **asked: run_study(made, sources=sources, **asked))

    return command_of(kind, run, name=method, extra=_WRITING, help=_help(kind, method))


def _help(kind: type, name: str) -> str:
    """Return a docstring as help: an example on a line of its own, and what comes next."""
    text = inspect.cleandoc(kind.__doc__ or "")
    text = re.sub(r"^Example: (mintage .*)$", r"[dim]Example[/dim]\n\n  \1", text, flags=re.MULTILINE)
    if "Example" not in text:
        text += f"\n\n[dim]Example[/dim]\n\n  mintage bench {name}"
    return text if "Next:" in text else f"{text}\n\nNext: [bold]mintage report[/bold]"


def _measure(job: str, writing: dict[str, Any], run: Callable[..., list[Any]], shorter: str = "") -> None:
    """Run, append, print."""
    from mintage.cli.tables import print_rows
    from mintage.files import check_writable

    file = writing["out"] / f"{job}.jsonl"
    if writing["save"]:
        check_writable(file)  # told before anything is measured
    console = Console(stderr=True)
    _hush_transformers()
    with shown_progress(console, shorter=shorter) as progress:
        rows = run(command=command_line(), progress=progress, note=told)
    if writing["save"]:
        from mintage.measure import append_results

        append_results(file, rows)
    print_rows(rows, as_json=writing["as_json"])
    if writing["save"] and not writing["as_json"]:
        console.print(f"appended {len(rows)} rows to {file}; next: mintage report", style="dim")


def _hush_transformers() -> None:
    """Keep transformers' advice on its own decoders out of the progress."""
    from transformers.utils import logging

    logging.set_verbosity_error()

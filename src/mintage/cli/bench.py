"""``mintage bench``: measure again."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mintage import catalog
from mintage.errors import UserError


def bench(
    names: Annotated[list[str], typer.Argument(help="A job (all its usual arms), or methods of one job.")],
    model: Annotated[
        str | None,
        typer.Option(help="A folder, a hub id, or the job's own (the default): smollm2, vit-tiny-cifar10, ..."),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="JSON lines with turns or prompt (Spec-Bench's format); default: bundled.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use this many prompts, spread over categories; 0 for all.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", "-n", help="Per answer.")] = None,
    temperature: Annotated[
        str | None, typer.Option("--temperature", "-t", help="0 is greedy; several as 0,0.6,1 are runs of their own.")
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Every method at each: nodes per tree (draft); 16 is room for 1/16 of the context (keep); "
            "percent of the multiply-adds (reduce)."
        ),
    ] = None,
    contexts: Annotated[str | None, typer.Option(help="Tokens read before bench keep compresses them.")] = None,
    images: Annotated[
        str | None, typer.Option(help="A folder of images (sub-folders are classes), for bench reduce.")
    ] = None,
    on_error: Annotated[str | None, typer.Option(help="A broken image: refuse (the default) or skip.")] = None,
    draft_model: Annotated[
        str | None, typer.Option(help="Draft model: a folder, a hub id, or rounded:BITS of the model.")
    ] = None,
    assisted: Annotated[
        bool | None, typer.Option("--assisted/--no-assisted", help="Run transformers' assisted generation too (slow).")
    ] = None,
    link_bandwidth: Annotated[
        float | None, typer.Option(help="GB/s at which modelled offloaded weights come; default 16 (PCIe 4.0 x16).")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Of the tokenizers that bench segment trains.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float32 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that results are appended to.")] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON lines.")] = False,
    save: Annotated[bool, typer.Option(help="Append the rows to the results folder.")] = True,
) -> None:
    """Measure methods beside their baseline and rivals in one run, and append the results.

    Naming a job measures its usual arms; naming one method runs its paper's claim check, greedy and sampling. A killed
    run goes on where it was: give the same command again.

    [dim]Examples[/dim]

      mintage bench draft --limit 6

      mintage bench token-recycling

      mintage bench token-recycling:budget=16 prompt-lookup -t 0,0.7

      mintage bench draft --budgets 4,8,16,32 --draft-model rounded:4

      mintage bench keep --contexts 1024,4096 --budgets 4,16

      mintage bench reduce --model my-vit/ --images photos/

      mintage bench token-recycling "token-recycling cold" "plain compiled" --prompts mine.jsonl

    Next: [bold]mintage report[/bold]
    """
    job, methods = _resolve(names)
    try:
        module = importlib.import_module(f"mintage.bench.{job}.joint")
    except ModuleNotFoundError as error:
        if error.name != f"mintage.bench.{job}.joint":
            raise
        raise UserError(f"the {job} job has no bench yet; ready: draft") from None
    given = {
        "model": model,
        "prompts": prompts,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "temperature": None if temperature is None else _numbers("temperature", temperature, float),
        "budgets": None if budgets is None else _numbers("budgets", budgets, int),
        "images": images,
        "on_error": on_error,
        "contexts": None if contexts is None else _numbers("contexts", contexts, int),
        "draft_model": draft_model,
        "assisted": assisted,
        "link_bandwidth": link_bandwidth,
        "vocab_size": vocab_size,
        "dtype": dtype,
        "device": device,
        "seed": seed,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if settings.get("limit") == 0:
        settings["limit"] = None
    known = inspect.signature(module.run).parameters
    for name in settings:
        if name not in known:
            raise UserError(f"bench {job} has no --{name.replace('_', '-')}")
    if save:
        out.mkdir(parents=True, exist_ok=True)  # told before anything is measured
    console = Console(stderr=True)
    command = "mintage bench " + " ".join(_quoted(a) for a in sys.argv[2:])
    with _progress(console) as progress:
        task = progress.add_task(f"bench {' '.join(names)}", total=None)

        def step(done: int, total: int, label: str) -> None:
            progress.update(task, completed=done, total=total, description=label)

        def note(text: str) -> None:
            progress.console.print(text, style="dim", highlight=False, markup=False)

        if "note" in known:
            settings["note"] = note
        _hush_transformers()
        rows = module.run(methods, progress=step, command=command, **settings)
    if save:
        from mintage.measure import append_results

        append_results(out / f"{job}.jsonl", rows)
    _print(rows, as_json=as_json)
    if save and not as_json:
        console.print(f"appended {len(rows)} rows to {out / f'{job}.jsonl'}; next: mintage report", style="dim")


def _hush_transformers() -> None:
    """Keep transformers' advice on its own decoders out of the progress bar."""
    from transformers.utils import logging

    logging.set_verbosity_error()


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    """Read ``4,8,16``."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        example = "0,0.6,1" if kind is float else "4,8,16"
        raise UserError(f"--{option} {text!r} is not a list of numbers; write e.g. {example}") from None


def _quoted(argument: str) -> str:
    return f'"{argument}"' if " " in argument else argument


def _resolve(names: list[str]) -> tuple[str, list[str]]:
    """Tell the job that `names` belong to; a leading job name stands for its usual arms."""
    if names[0] in catalog.JOBS:
        return names[0], names[1:]
    jobs = []
    for name in names:
        first = name.split(" ")[0].split("+")[0]  # words behind it say how it is run
        method = catalog.find(catalog.parse_spec(first)[0])
        if method.problem:
            raise UserError(method.problem)
        jobs.append(method.job)
    if len(set(jobs)) > 1:
        raise UserError(f"{', '.join(names)} belong to different jobs ({', '.join(jobs)}); bench one job at a time")
    return jobs[0], names


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _print(rows: list[Any], *, as_json: bool) -> None:
    from mintage.measure import Result

    results = [row for row in rows if isinstance(row, Result)]
    if as_json:
        import dataclasses

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

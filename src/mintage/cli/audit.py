"""``mintage audit``: ask a tokenizer or a model what it gives away. The commands are made from the audits' fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mintage import catalog
from mintage.cli.fields import Lazy, LazyGroup, command_of, parameters_of
from mintage.cli.progress import shown_progress, told
from mintage.errors import UserError
from mintage.options import DTYPES


class _Audits(LazyGroup):
    def names(self) -> Sequence[str]:
        return [row.name for row in catalog.methods("audit") if row.status == "ready"]

    def found(self, name: str) -> Any:
        if name not in self.names():
            return None
        return Lazy(name, catalog.find(name).summary, functools.partial(_command, name))


app = typer.Typer(cls=_Audits, no_args_is_help=True, help="Ask a tokenizer or a model what it gives away.")


def _parameter(name: str, kind: Any, told: Any, *default: Any) -> inspect.Parameter:
    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, told])
    return parameter.replace(default=default[0]) if default else parameter


_TOKENIZER = "tokenizer.json, its folder, a .tiktoken or .model file, a hub id, or smollm2."
_PATTERN = "Of a rank file: cl100k_base, o200k_base, ... or a regular expression."
_SUBJECTS = {
    "tokenizer": (
        [_parameter("tokenizer", str, typer.Argument(help=_TOKENIZER))],
        [_parameter("pattern", str | None, typer.Option(help=_PATTERN), None)],
    ),
    "model": (
        [],
        [
            _parameter("model", str, typer.Option(help="smollm2 (embedded), a folder, or a hub id."), "smollm2"),
            _parameter("dtype", str, typer.Option(help=DTYPES), "auto"),
            _parameter("device", str, typer.Option(help="cpu, cuda, ..."), "cpu"),
        ],
    ),
}
"""What is audited: arguments and options that say it."""

_CATEGORY = "NAME=PATH of a sample (text, .jsonl, .gz, a folder); repeat."
_OBJECTS = {
    "samples": [
        _parameter("category", list[str], typer.Option("--category", "-c", help=_CATEGORY)),
        _parameter("key", str, typer.Option(help="Field of the text in JSON lines."), "text"),
    ],
    "policy": [_parameter("keep", str | None, typer.Option(help="Cache policy: name[:key=value,...]."), None)],
}
"""Fields that hold objects, and the options that they are made of."""

_WRITING = [
    _parameter("as_json", bool, typer.Option("--json", help="Print the report as JSON."), False),
    _parameter("out", Path | None, typer.Option("--out", "-o", help="Write the report: .json, or .html."), None),
]


def _command(name: str) -> Any:
    kind: Any = catalog.find(name, "audit").load()
    arguments, options = _SUBJECTS[kind.subject]
    written = {parameter.name for parameter in parameters_of(kind)}
    held = [field.name for field in dataclasses.fields(kind) if field.name in _OBJECTS.keys() - written]

    def objects(values: dict[str, Any]) -> dict[str, Any]:
        _check_out(values["out"])
        made: dict[str, Any] = {}
        if "samples" in held:
            made["samples"] = _samples(values.pop("category"), values.pop("key"))
        if "policy" in held:
            made["policy"] = None if values["keep"] is None else catalog.build(values["keep"], "keep")
        return made

    def run(audit: Any, *, as_json: bool, out: Path | None, keep: str | None = None, **subject: Any) -> None:
        audited, called = _subject(kind.subject, **subject)
        with shown_progress() as progress:
            report = audit.run(audited, name=called if keep is None else f"{called} with {keep}", progress=progress)
        _show(report, as_json, out)

    extra = [*options, *(parameter for field in held for parameter in _OBJECTS[field]), *_WRITING]
    return command_of(kind, run, name=name, arguments=arguments, extra=extra, objects=objects)


def _subject(kind: str, **said: Any) -> tuple[Any, str]:
    """Load what is audited; return it with its name."""
    if kind == "model":
        from mintage.models import load_causal_lm

        lm = load_causal_lm(said["model"], dtype=said["dtype"], device=said["device"], note=told)
        return lm, lm.name
    from mintage.tokenizer_files import load_tokenizer

    return load_tokenizer(said["tokenizer"], pattern=said["pattern"]), Path(said["tokenizer"]).name


def _samples(categories: Sequence[str], key: str) -> dict[str, Any]:
    from mintage.data import Corpus

    samples: dict[str, Corpus] = {}
    for one in categories:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise UserError(f"--category {one!r} is not NAME=PATH; write e.g. --category de=german.txt")
        if name in samples:
            raise UserError(f"--category {name} comes twice; give a folder to join files")
        samples[name] = Corpus(path, key=key)
    return samples


@app.command("to-r2l")
def _to_r2l(
    tokenizer: Annotated[str, typer.Argument(help="tokenizer.json, its folder, a hub id, or smollm2.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the changed tokenizer.")],
    size: Annotated[int, typer.Option(help="Digits per group.")] = 3,
    digit_class: Annotated[
        str | None, typer.Option(help=r"\[0-9], \p{Nd} or \p{N}; default: as the tokenizer has it.")
    ] = None,
    fraction: Annotated[
        str | None, typer.Option(help="l2r: group the digits after a decimal point from the point on.")
    ] = None,
    only_if_longer_than: Annotated[int, typer.Option(help="Cut numbers of at most so many digits as before.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Also where the vocabulary lacks groups: to train a new one.")
    ] = False,
    pattern: Annotated[str | None, typer.Option(help=_PATTERN)] = None,
) -> None:
    """Make a tokenizer cut numbers from the right (10|642|122), with no new tokens; other text is cut as before.

    [dim]Examples[/dim]

      mintage audit to-r2l tokenizer.json --out r2l

      mintage audit to-r2l tokenizer.json --out r2l --only-if-longer-than 4

    Next: [bold]mintage audit number-tokens r2l[/bold]
    """
    from mintage import audit
    from mintage.tokenizer_files import load_tokenizer

    before = load_tokenizer(tokenizer, pattern=pattern)
    after = audit.to_r2l(
        before,
        size=size,
        digit_class=digit_class,
        fraction=fraction,
        only_if_longer_than=only_if_longer_than,
        allow_missing=allow_missing,
    )
    audit.save_tokenizer(after, out, _tokenizer_folder(tokenizer))
    example = "10642122"
    old, new = ("|".join(audit.tokenizer_cut(t, [example])[0]) for t in (before, after))
    typer.echo(f"{example}: {old} is now {new}")
    Console(stderr=True).print(f"wrote {out}", style="dim", markup=False, soft_wrap=True)


def _tokenizer_folder(source: str) -> Path:
    """Return the folder that holds a tokenizer's configuration and chat template."""
    if source == "smollm2":
        from mintage.models import embedded_folder

        return embedded_folder()
    path = Path(source)
    if path.exists():
        return path if path.is_dir() else path.parent
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=["tokenizer_config.json", "chat_template.jinja"]))


def _check_out(out: Path | None) -> None:
    """Refuse a format before the work is done, not after."""
    if out is not None and out.suffix not in (".json", ".html"):
        raise UserError(f"--out {out} is neither .json nor .html; name the file e.g. report.json")


def _show(report: Any, as_json: bool, out: Path | None) -> None:
    """Print a report, as tables and notes or as JSON, and write it to `out` (.json or .html)."""
    if out is not None and out.suffix == ".html":
        _write_html(report, out)
    elif out is not None:
        report.save(out)
    if as_json:
        typer.echo(report.to_json())
        return
    console = Console(highlight=False)
    title = f"[bold]{report.audit}[/bold]  {escape(report.subject)}"
    if report.table:
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for column, cell in report.table[0].items():
            table.add_column(column, justify="left" if isinstance(cell, str) else "right")
        for row in report.table:
            table.add_row(*(escape(_cell(cell)) for cell in row.values()))
        console.print(table)
    else:
        console.print(title)
    console.print("  ".join(f"{name} [bold]{escape(_cell(value))}[/bold]" for name, value in report.findings.items()))
    for note in report.notes:
        console.print(f"- {note}", style="dim", markup=False)
    if out is not None:
        Console(stderr=True).print(f"wrote {out}", style="dim", markup=False, soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_html(report: Any, out: Path) -> None:
    """Write the figures and the numbers found as one page."""
    from mintage import catalog
    from mintage.measure import Result, write_report
    from mintage.measure.environment import environment

    here = environment()
    rows: list[Any] = [
        Result(
            method=report.audit,
            job="audit",
            metric=name,
            value=float(value),
            unit="",
            higher_is_better=True,
            data=report.subject,
            environment=here,
            note=" ".join(report.notes),
        )
        for name, value in report.findings.items()
        if isinstance(value, int | float)
    ]
    write_report([*rows, *report.figures], out, rows=[catalog.find(report.audit, "audit")])

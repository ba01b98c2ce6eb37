"""``mintage audit``: ask a tokenizer or a model what it gives away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from mintage.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Ask a tokenizer or a model what it gives away.")


@app.command("data-mixture")
def data_mixture(
    tokenizer: Annotated[
        str, typer.Argument(help="tokenizer.json, its folder, a .tiktoken or .model file, a hub id, or smollm2.")
    ],
    category: Annotated[
        list[str], typer.Option("--category", "-c", help="NAME=PATH of a sample (text, .jsonl, .gz, a folder); repeat.")
    ],
    max_merges: Annotated[int, typer.Option(help="Use the first merges only.")] = 30_000,
    min_count: Annotated[int, typer.Option(help="Stop where most merges occur less often in the samples.")] = 20,
    unit: Annotated[str, typer.Option(help="Shares of bytes or of pairs.")] = "bytes",
    bootstrap: Annotated[int, typer.Option(help="Resamples for the intervals; 0 for none.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    processes: Annotated[int, typer.Option(help="That cut the samples into pre-tokens.")] = 1,
    key: Annotated[str, typer.Option(help="Field of the text in JSON lines.")] = "text",
    pattern: Annotated[
        str | None, typer.Option(help="Of a rank file: cl100k_base, o200k_base, ... or a regular expression.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder that keeps the counts; a killed audit goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the report: .json, or .html.")] = None,
) -> None:
    """Infer what a BPE tokenizer was trained on, from its merge list and a sample of every category.

    [dim]Examples[/dim]

      mintage audit data-mixture tokenizer.json --category de=german.txt --category code=src/

      mintage audit data-mixture cl100k_base.tiktoken -c en=en.jsonl -c code=src/ --max-merges 5000 --out report.html

    Next: [bold]mintage bench data-mixture[/bold]
    """
    from mintage.audit.data_mixture import DataMixture
    from mintage.data import Corpus
    from mintage.tokenizer_files import load_tokenizer

    samples: dict[str, Corpus] = {}
    for one in category:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise UserError(f"--category {one!r} is not NAME=PATH; write e.g. --category de=german.txt")
        if name in samples:
            raise UserError(f"--category {name} comes twice; give a folder to join files")
        samples[name] = Corpus(path, key=key)
    if unit not in ("bytes", "pairs"):
        raise UserError(f"--unit {unit!r} is unknown; pass bytes or pairs")
    _check_out(out)
    audit = DataMixture(
        samples=samples,
        max_merges=max_merges,
        min_count=min_count,
        unit="pairs" if unit == "pairs" else "bytes",
        bootstrap=bootstrap,
        seed=seed,
        processes=processes,
        work=work,
    )
    _run(audit, load_tokenizer(tokenizer, pattern=pattern), Path(tokenizer).name, as_json=as_json, out=out)


@app.command("number-tokens")
def number_tokens(
    tokenizer: Annotated[
        str, typer.Argument(help="tokenizer.json, its folder, a .tiktoken or .model file, a hub id, or smollm2.")
    ],
    size: Annotated[int, typer.Option(help="Digits per group that the directions are told for.")] = 3,
    max_length: Annotated[int, typer.Option(help="Digits of the longest number.")] = 15,
    samples: Annotated[int, typer.Option(help="Numbers per length.")] = 1000,
    prefix: Annotated[str, typer.Option(help="Text in front of every number, e.g. a space.")] = "",
    pattern: Annotated[
        str | None, typer.Option(help="Of a rank file: cl100k_base, o200k_base, ... or a regular expression.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the numbers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the report: .json, or .html.")] = None,
) -> None:
    """Report how a tokenizer cuts numbers: from the left, from the right, into digits, or irregularly.

    [dim]Examples[/dim]

      mintage audit number-tokens smollm2

      mintage audit number-tokens tokenizer.json --prefix " " --out report.html

    Next: [bold]mintage audit to-r2l tokenizer.json --out folder[/bold]
    """
    from mintage.audit.number_tokens import NumberTokens
    from mintage.tokenizer_files import load_tokenizer

    _check_out(out)
    audit = NumberTokens(size=size, max_length=max_length, samples=samples, prefix=prefix, seed=seed)
    _run(audit, load_tokenizer(tokenizer, pattern=pattern), Path(tokenizer).name, as_json=as_json, out=out)


@app.command("to-r2l")
def to_r2l(
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
) -> None:
    """Make a tokenizer cut numbers from the right (10|642|122), with no new tokens; other text is cut as before.

    [dim]Examples[/dim]

      mintage audit to-r2l tokenizer.json --out r2l

      mintage audit to-r2l tokenizer.json --out r2l --only-if-longer-than 4

    Next: [bold]mintage audit number-tokens r2l[/bold]
    """
    from mintage.audit import number_tokens as numbers
    from mintage.tokenizer_files import load_tokenizer

    before = load_tokenizer(tokenizer)
    after = numbers.to_r2l(
        before,
        size=size,
        digit_class=digit_class,
        fraction=fraction,
        only_if_longer_than=only_if_longer_than,
        allow_missing=allow_missing,
    )
    numbers.save_tokenizer(after, out, _tokenizer_folder(tokenizer))
    example = "10642122"
    old, new = ("|".join(numbers.tokenizer_cut(t, [example])[0]) for t in (before, after))
    typer.echo(f"{example}: {old} is now {new}")
    Console(stderr=True).print(f"wrote {out}", style="dim", markup=False, soft_wrap=True)


@app.command("needle")
def needle(
    model: Annotated[str, typer.Option(help="smollm2 (embedded, the default), a folder, or a hub id.")] = "smollm2",
    tasks: Annotated[
        str, typer.Option(help="Of single, multiple, conditional, thread, multi-thread; or all.")
    ] = "single,thread",
    pairs: Annotated[str, typer.Option(help="Sizes of the haystack; a pair of UUIDs has 80 characters.")] = "4,8,16",
    depths: Annotated[str, typer.Option(help="Where single needles lie, in percent.")] = "0,25,50,75,100",
    needles: Annotated[str, typer.Option(help="Keys asked for at once (multiple, conditional).")] = "2,4",
    steps: Annotated[str, typer.Option(help="Look-ups of a thread.")] = "2,3",
    threads: Annotated[int, typer.Option(help="Threads followed at once (multi-thread).")] = 1,
    repeats: Annotated[int, typer.Option(help="Haystacks for every setting.")] = 5,
    direction: Annotated[str, typer.Option(help="How threads run: forward, backward or random.")] = "forward",
    placement: Annotated[str, typer.Option(help="How several needles lie: random or clustered.")] = "random",
    hex_digits: Annotated[int, typer.Option(help="Short keys instead of UUIDs, a variant; 0: UUIDs.")] = 0,
    form: Annotated[
        str, typer.Option(help="question (the paper's), chat, or complete: for models that only continue a text.")
    ] = "question",
    keep: Annotated[str | None, typer.Option(help="Cache policy: name[:key=value,...].")] = None,
    threshold: Annotated[float, typer.Option(help="Score that a length within the limit must reach.")] = 0.75,
    seed: Annotated[int, typer.Option(help="Of the haystacks.")] = 0,
    dtype: Annotated[str, typer.Option(help="bfloat16, float32 or float16.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the report: .json, or .html.")] = None,
) -> None:
    """Find the length of text up to which a model still finds keys and follows threads of them.

    [dim]Examples[/dim]

      mintage audit needle --tasks single --pairs 4,8 --form complete

      mintage audit needle --tasks single --keep snapkv:budget=0.25 --form complete --out needles.html

    Next: [bold]mintage bench needle-threading[/bold]
    """
    from mintage import catalog
    from mintage.audit.needle_threading import NeedleThreading
    from mintage.data.haystack import TASKS
    from mintage.models import load_causal_lm

    _check_out(out)
    audit = NeedleThreading(
        tasks=TASKS if tasks == "all" else tuple(tasks.split(",")),
        pairs=_numbers("--pairs", pairs),
        depths=_numbers("--depths", depths),
        needles=_numbers("--needles", needles),
        steps=_numbers("--steps", steps),
        threads=threads,
        repeats=repeats,
        placement=_one("--placement", placement, "random", "clustered"),
        direction=_one("--direction", direction, "forward", "backward", "random"),
        hex_digits=hex_digits or None,
        form=_one("--form", form, "question", "chat", "complete"),
        threshold=threshold,
        policy=None if keep is None else catalog.build(keep, "keep"),
        seed=seed,
    )
    lm = load_causal_lm(model, dtype=dtype, device=device)
    _run(audit, lm, lm.name if keep is None else f"{lm.name} with {keep}", as_json=as_json, out=out)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r} is no list of whole numbers; write e.g. {option} 4,8,16") from None


def _one(option: str, text: str, *known: str) -> Any:
    if text not in known:
        raise UserError(f"{option} {text!r} is unknown; pass one of {', '.join(known)}")
    return text


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


def _run(audit: Any, subject: Any, name: str, *, as_json: bool, out: Path | None) -> None:
    """Run an audit under a progress bar and show what it found."""
    with _progress() as progress:
        report = audit.run(subject, name=name, progress=progress)
    _show(report, as_json, out)


@contextmanager
def _progress() -> Iterator[Any]:
    """Yield a ``progress(stage, done, of)`` that draws one bar per stage, where stderr is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def step(stage: str, done: int, of: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=of or None)
            bars.update(tasks[stage], completed=done, total=of or None)

        yield step


def _check_out(out: Path | None) -> None:
    """Refuse a format before the work is done, not after."""
    if out is not None and out.suffix not in (".json", ".html"):
        raise UserError(f"--out {out} is neither .json nor .html; name the file e.g. report.json")


def _show(report: Any, as_json: bool, out: Path | None) -> None:
    """Print a report, as tables and notes or as JSON, and write it to `out` (.json or .html)."""
    _check_out(out)
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

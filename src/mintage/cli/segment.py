"""``mintage segment``: train tokenizers, use them, and compare any."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mintage.cli.input import read_input
from mintage.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Train tokenizers, cut text with them, and compare any.")

_TOKENIZER = "A mintage folder, tokenizer.json or its folder, a .tiktoken or .model file, a tiktoken name, a hub id."


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="A method with its settings, e.g. bpe or lib:max_len=10.")],
    text: Annotated[list[str], typer.Option(help="Text, .jsonl, .gz, a folder, or hub:owner/name; repeat for more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    vocab_size: Annotated[int | None, typer.Option(help="Entries of the tokenizer; default: the method's.")] = None,
    key: Annotated[str, typer.Option(help="Field of the text in JSON lines.")] = "text",
    language: Annotated[
        str | None, typer.Option(help="Field of the language in JSON lines; parity-bpe balances languages.")
    ] = None,
    dev: Annotated[
        str | None, typer.Option(help="JSON lines with the same content in every language, to balance by.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Stop reading after about this many characters.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder that keeps what is done; a killed training goes on.")
    ] = None,
) -> None:
    """Train a tokenizer on text of any size, and write a folder that mintage (and Hugging Face) can load.

    Settings stand behind the method's name; mintage show METHOD lists them.

    [dim]Examples[/dim]

      mintage segment train bpe --text books.txt --vocab-size 8000 --out my-tokenizer

      mintage segment train superword-bpe:chunk=100 --text texts/ -o superwords

      mintage segment train parity-bpe --text web.jsonl --language lang -o fair

    Next: [bold]mintage segment compare my-tokenizer --text held-out.txt[/bold]
    """
    from mintage import catalog
    from mintage.segment.core.artefact import check_target

    settings: dict[str, Any] = {} if vocab_size is None else {"vocab_size": vocab_size}
    name, written = catalog.parse_spec(method)
    known = catalog.hyperparameters(catalog.find(name, "segment").load())
    if vocab_size is not None and "vocab_size" not in known:
        raise UserError(f"{name} has no vocabulary size to choose; leave out --vocab-size")
    if vocab_size is not None and "vocab_size" in written:
        raise UserError("the vocabulary size is given twice; leave out --vocab-size or the setting")
    trainer = catalog.build(method, "segment", **settings)
    check_target(out)
    corpus = _corpus(text, key, language, dev, limit)
    with _Stages() as stages:
        segmenter = trainer.train(corpus, work=work, progress=stages)
    segmenter.save(out)
    also = " (tokenizer.json beside it)" if (out / "tokenizer.json").exists() else ""
    typer.echo(f"wrote {out}: {name}, {segmenter.vocab_size} entries{also}")


def _corpus(text: list[str], key: str, language: str | None, dev: str | None, limit: int | None) -> Any:
    from mintage.data import Corpus

    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}; read at least 1 character")
    if language is None:
        if dev is not None:
            raise UserError("--dev balances languages; name their field too, e.g. --language lang")
        return Corpus(*text, key=key, limit=limit)
    from mintage.segment.baselines import ByLanguage

    wrong = [t for t in text if not t.removesuffix(".gz").endswith(".jsonl")]
    if wrong:
        raise UserError(f"--language reads JSON lines; {wrong[0]} is none, pass .jsonl files")
    names = list(dict.fromkeys(Corpus(*text, key=language)))
    share = None if limit is None else max(1, limit // len(names))
    texts = {name: Corpus(*text, key=key, where={language: name}, limit=share) for name in names}
    balance = {name: Corpus(dev, key=key, where={language: name}) for name in names} if dev else None
    return ByLanguage(texts, dev=balance)


@app.command()
def encode(
    tokenizer: Annotated[str, typer.Argument(help=_TOKENIZER)],
    text: Annotated[str, typer.Argument(help="The text, or - for standard input.")] = "-",
    ids: Annotated[bool, typer.Option("--ids", help="Print ids on one line (default where output is piped).")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print one line per token: id, tab, text in JSON.")] = False,
) -> None:
    """Cut text into tokens: coloured on a terminal, ids where the output is piped.

    [dim]Examples[/dim]

      mintage segment encode my-tokenizer "The sea has tides"

      mintage segment encode my-tokenizer "The sea has tides" --tokens

      git log | mintage segment encode my-tokenizer - --ids

    Next: [bold]mintage segment decode my-tokenizer 84 104 101[/bold]
    """
    from mintage.segment.core.adapters import open_segmenter

    if ids and tokens:
        raise UserError("--ids and --tokens exclude each other; pass one")
    segmenter = open_segmenter(tokenizer)
    data = read_input(text)
    console = Console(highlight=False, soft_wrap=True)
    if tokens or (console.is_terminal and not ids):
        pieces = _pieces(segmenter, data)
        if tokens:
            for number, piece in pieces:
                typer.echo(f"{number}\t{json.dumps(piece.decode('utf-8', 'replace'), ensure_ascii=False)}")
            return
        console.print(_coloured(pieces))
        size = len(data)
        Console(stderr=True, highlight=False).print(
            f"{len(pieces)} tokens, {size} bytes, {size / max(len(pieces), 1):.2f} bytes per token", style="dim"
        )
        return
    typer.echo(" ".join(map(str, segmenter.encode(data))))


def _pieces(segmenter: Any, data: bytes) -> list[tuple[int, bytes]]:
    """Return every id with the bytes that it covers."""
    numbers = segmenter.encode(data)
    vocabulary = segmenter.tokens()
    if vocabulary is not None:
        return [(number, vocabulary[number]) for number in numbers]
    tell = getattr(segmenter, "ends", None)
    ends = tell(data.decode("utf-8", "replace")) if tell else None
    if ends is None or len(ends) != len(numbers):
        raise UserError(f"ids of {segmenter.method} have no text of their own; print them with --ids")
    return [(n, data[begin:end]) for n, begin, end in zip(numbers, [0, *ends[:-1]], ends, strict=True)]


_COLOURS = ("on #214d72", "on #6b3a1e", "on #2f5d34", "on #5b2c5e")


def _coloured(pieces: list[tuple[int, bytes]]) -> Text:
    line = Text()
    for place, (_, piece) in enumerate(pieces):
        shown = piece.decode("utf-8", "replace").replace("\ufffd", "·")
        shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in shown)
        line.append(shown.replace("\n", "↵\n"), style=f"#ffffff {_COLOURS[place % len(_COLOURS)]}")
    return line


@app.command()
def decode(
    tokenizer: Annotated[str, typer.Argument(help=_TOKENIZER)],
    ids: Annotated[list[str] | None, typer.Argument(help="Ids, or nothing for standard input.")] = None,
) -> None:
    """Turn ids back into text: exactly the bytes that were encoded, so that the output can be compared with the input.

    [dim]Examples[/dim]

      mintage segment decode my-tokenizer 84 104 101

      mintage segment encode my-tokenizer sea | mintage segment decode my-tokenizer

    Next: [bold]mintage segment compare my-tokenizer --text held-out.txt[/bold]
    """
    from mintage.segment.core.adapters import open_segmenter

    segmenter = open_segmenter(tokenizer)
    words = ids if ids and ids != ["-"] else sys.stdin.read().split()
    numbers = []
    for word in (part for text in words for part in re.split(r"[\s,]+", text.strip("[] \n")) if part):
        if not re.fullmatch(r"-?\d{1,18}", word):
            raise UserError(f"{word[:40]!r} is not an id; pass whole numbers, e.g. 84 104 101")
        numbers.append(int(word))
    data = segmenter.decode_bytes(numbers)
    typer.echo(data, nl=sys.stdout.isatty())


@app.command()
def decompound(
    words: Annotated[list[str], typer.Argument(help="Words to split, or - for one per line of standard input.")],
    model: Annotated[Path, typer.Option(help="What mintage train decompounder wrote.")],
) -> None:
    """Split compounds into their constituents: one line per word, pieces joined by |.

    [dim]Examples[/dim]

      mintage segment decompound Haustürschlüssel Wasseruhr --model de.safetensors

      mintage segment decompound - --model de.safetensors < words.txt

    Next: [bold]mintage segment train compoundpiece:decompounder=de.safetensors --text german.txt -o pieces[/bold]
    """
    from mintage.segment.decompounder import Decompounder

    given = read_input("-").decode("utf-8", "replace").splitlines() if words == ["-"] else words
    for pieces in Decompounder.load(model).split_all(given):
        typer.echo("|".join(pieces))


@app.command()
def compare(
    tokenizers: Annotated[list[str], typer.Argument(help=f"{_TOKENIZER} NAME=... names one in the table.")],
    text: Annotated[list[str], typer.Option(help="Held-out text, .jsonl, .gz or a folder; repeat for more.")],
    key: Annotated[str, typer.Option(help="Field of the text in JSON lines.")] = "text",
    parallel: Annotated[
        str | None, typer.Option(help="JSON lines with lang, text and an id that rows of equal content share.")
    ] = None,
    reference: Annotated[str, typer.Option(help="Language of the parallel text whose premium is 1.")] = "en",
    morphology: Annotated[str | None, typer.Option(help="JSON lines with word and segments.")] = None,
    repeats: Annotated[int, typer.Option(help="Rounds of timing; 0 for none.")] = 5,
    limit: Annotated[int | None, typer.Option(help="Measure on about this many characters of the text.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON lines.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write table and figures: a .html page, or a results folder.")
    ] = None,
) -> None:
    """Compare tokenizers of any make on your text: length, spread, parity over languages, morphology, speed.

    [dim]Examples[/dim]

      mintage segment compare my-tokenizer smollm2 --text held-out.txt

      mintage segment compare old=tokenizer.json new=my-tokenizer --text held-out.txt

      mintage segment compare my-tokenizer --text held-out.txt --parallel parallel.jsonl

      mintage segment compare my-tokenizer --text held-out.txt --out compared.html

    Next: [bold]mintage bench segment[/bold]
    """
    from mintage.bench.segment.joint import compare as measure
    from mintage.data import Corpus
    from mintage.segment.core.adapters import Foreign, open_segmenter
    from mintage.segment.core.metrics import read_morphology, read_parallel

    if repeats < 0:
        raise UserError(f"--repeats {repeats}; pass rounds of timing, or 0 for none")
    _check_out(out)
    segmenters = {name: open_segmenter(spec) for name, spec in _named(tokenizers).items()}
    console = Console(stderr=True, highlight=False)
    for name, one in segmenters.items():
        if isinstance(one, Foreign) and (
            note := "; ".join(filter(None, (one.note, one.loss and f"lossy: {one.loss}")))
        ):
            console.print(f"{name}: {note}", style="yellow", markup=False, soft_wrap=True)
    pairs = {"": read_parallel(parallel, reference)} if parallel else None
    gold = read_morphology(morphology) if morphology else None
    texts = list(Corpus(*text, key=key, limit=limit))
    with _bar() as bar:
        task = bar.add_task("compare", total=None, count="")

        def step(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label, count=f"{done}/{total}")

        rows = measure(
            segmenters,
            texts,
            parallel=pairs,
            reference=reference,
            gold=gold,
            repeats=repeats,
            data=", ".join(Path(t).name for t in text),
            command="mintage " + " ".join(f'"{a}"' if " " in a else a for a in sys.argv[1:]),
            progress=step,
        )
    _show(rows, as_json=as_json)
    if out is not None:
        _write(rows, out)
        console.print(f"wrote {out}", style="dim", markup=False)


def _named(tokenizers: list[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for given in tokenizers:
        name, equals, spec = given.partition("=")
        if not equals or Path(given).exists():
            name, spec = Path(given).name.removesuffix(".json") or given, given
            if name == "tokenizer":
                name = Path(given).resolve().parent.name
        if not name or not spec:
            raise UserError(f"{given!r} is not NAME=TOKENIZER; write e.g. mine=my-tokenizer")
        if name in named:
            raise UserError(f"two tokenizers are called {name}; name them, e.g. other={spec}")
        named[name] = spec
    return named


def _show(rows: list[Any], *, as_json: bool) -> None:
    import dataclasses

    from mintage.measure import Result

    results = [row for row in rows if isinstance(row, Result)]
    if as_json:
        for row in results:
            typer.echo(json.dumps(dataclasses.asdict(row)))
        return
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for row in results:
        cells.setdefault((row.metric, row.unit), {})[row.method] = row
    names = list(dict.fromkeys(row.method for row in results))
    console = Console(highlight=False)
    width = max(len(metric) + len(unit) + 2 for metric, unit in cells)
    at_once = max(1, (console.width - width) // (max(10, *map(len, names)) + 2))
    for start in range(0, len(names), at_once):  # columns that do not fit go into a table below
        table = Table(box=None, padding=(0, 1))
        table.add_column("", no_wrap=True)
        for name in names[start : start + at_once]:
            table.add_column(escape(name), justify="right", overflow="fold")
        for (metric, unit), own in cells.items():
            choose = max if next(iter(own.values())).higher_is_better else min
            best = choose(row.value for row in own.values())
            shown = [_cell(own.get(name), best, len(own)) for name in names[start : start + at_once]]
            table.add_row(f"{metric} [dim]{unit}[/dim]", *shown)
        console.print(table)


def _cell(row: Any, best: float, rivals: int) -> str:
    if row is None:
        return "-"
    text = f"{row.value:,.0f}" if row.unit == "entries" else f"{row.value:.3g}"
    return f"[bold]{text}[/bold]" if rivals > 1 and row.value == best and row.unit != "entries" else text


def _check_out(out: Path | None) -> None:
    """Tell a place that cannot be written before anything is measured."""
    if out is None:
        return
    if out.suffix == ".html" and out.is_dir():
        raise UserError(f"{out} is a folder; pass another .html file")
    if out.suffix != ".html" and (out.is_file() or (out.suffix and not out.is_dir())):
        raise UserError(f"{out} is neither a .html page nor a folder; pass e.g. compared.html or results")


def _write(rows: list[Any], out: Path) -> None:
    from mintage import catalog
    from mintage.measure import append_results, write_report

    if out.suffix == ".html":
        write_report(rows, out, rows=catalog.methods())
    else:
        append_results(out / "segment.jsonl", rows)


# -- progress --------------------------------------------------------------------------------------------------------


def _bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class _Stages:
    """One progress bar per stage that a training reports."""

    def __init__(self) -> None:
        self._progress = _bar()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Stages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, of: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=of or None, count="")
        count = f"{done:,}/{of:,}" if of else f"{done:,}"
        self._progress.update(self._tasks[stage], completed=done, total=of or None, count=count)

"""``mintage segment``: train tokenizers, use them, and compare any."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mintage.cli.fields import callback_of, command_line, help_of
from mintage.cli.input import read_input
from mintage.cli.progress import shown_progress
from mintage.errors import UserError
from mintage.options import Options, option

app = typer.Typer(no_args_is_help=True, help="Train tokenizers, cut text with them, and compare any.")

_TOKENIZER = "A mintage folder, tokenizer.json, tekken.json, rank or SentencePiece file, tiktoken name, hub id."
_PATTERN = "How a rank file that does not tell cuts text: cl100k_base, llama3, ... or a regular expression."
_Pattern = Annotated[str | None, typer.Option("--pattern", help=_PATTERN)]


def _argument(name: str, kind: Any, text: str) -> list[inspect.Parameter]:
    annotation = Annotated[kind, typer.Argument(help=text)]
    return [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)]


# -- train -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Train(Options):
    """Train a tokenizer on text of any size, and write a folder that mintage (and Hugging Face) can load.

    Settings stand behind the method's name; mintage show METHOD lists them.

    [dim]Examples[/dim]

      mintage segment train bpe --text books.txt --vocab-size 8000 --out my-tokenizer

      mintage segment train superword-bpe:chunk=100 --text texts/ -o superwords

      mintage segment train parity-bpe --text web.jsonl --language lang -o fair

    Next: [bold]mintage segment compare my-tokenizer --text held-out.txt[/bold]
    """

    text: tuple[str, ...] = option(help="Text, .jsonl, .gz, a folder, or hub:owner/name; repeat for more.", repeat=True)
    out: Path = option(help="Folder to write.", short="-o")
    vocab_size: int | None = option(None, "Entries of the tokenizer; default: the method's.")
    key: str = option("text", "Field of the text in JSON lines.")
    language: str | None = option(None, "Field of the language in JSON lines; parity-bpe balances languages.")
    dev: str | None = option(None, "JSON lines with the same content in every language, to balance by.")
    limit: int | None = option(None, "Stop reading after about this many characters.", least=1)
    work: Path | None = option(None, "Folder that keeps what is done; a killed training goes on.")

    def run(self, method: str) -> None:
        """Train and save."""
        from mintage import catalog
        from mintage.segment.core.artefact import check_target

        settings: dict[str, Any] = {} if self.vocab_size is None else {"vocab_size": self.vocab_size}
        name, written = catalog.parse_spec(method)
        known = catalog.hyperparameters(catalog.find(name, "segment").load())
        if settings and "vocab_size" not in known:
            raise UserError(f"{name} has no vocabulary size to choose; leave out --vocab-size")
        if settings and "vocab_size" in written:
            raise UserError("the vocabulary size is given twice; leave out --vocab-size or the setting")
        trainer = catalog.build(method, "segment", **settings)
        check_target(self.out)
        corpus = self.corpus()
        with self._work_folder(), shown_progress() as progress:
            segmenter = trainer.train(corpus, work=self.work, progress=progress)
        segmenter.save(self.out)
        also = " (tokenizer.json beside it)" if (self.out / "tokenizer.json").exists() else ""
        typer.echo(f"wrote {self.out}: {name}, {segmenter.vocab_size} entries{also}")

    @contextmanager
    def _work_folder(self) -> Iterator[None]:
        """Hold the folder that keeps what is done: two trainings in one would take each other's for their own."""
        if self.work is None:
            yield
            return
        from filelock import FileLock, Timeout

        self.work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.work / "run.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"{self.work} is in use by another training; wait for it, or pass another --work") from None
        try:
            yield
        finally:
            lock.release()

    def corpus(self) -> Any:
        """Open the texts."""
        from mintage.data import Corpus

        if self.language is None:
            if self.dev is not None:
                raise UserError("--dev balances languages; name their field too, e.g. --language lang")
            return Corpus(*self.text, key=self.key, limit=self.limit)
        from mintage.segment import ByLanguage

        wrong = [t for t in self.text if not t.removesuffix(".gz").endswith(".jsonl")]
        if wrong:
            raise UserError(f"--language reads JSON lines; {wrong[0]} is none, pass .jsonl files")
        where = {name: {self.language: name} for name in Corpus(*self.text, key=self.language)}
        share = None if self.limit is None else max(1, self.limit // len(where))
        texts = {name: Corpus(*self.text, key=self.key, where=one, limit=share) for name, one in where.items()}
        dev = self.dev and {name: Corpus(str(self.dev), key=self.key, where=one) for name, one in where.items()}
        return ByLanguage(texts, dev=dev or None)


_METHOD = _argument("method", str, "A method with its settings, e.g. bpe or lib:max_len=10.")
app.command("train", help=help_of(Train))(callback_of(Train, Train.run, arguments=_METHOD))


# -- encode, decode, decompound --------------------------------------------------------------------------------------


@app.command()
def encode(
    tokenizer: Annotated[str, typer.Argument(help=_TOKENIZER)],
    text: Annotated[str, typer.Argument(help="The text, or - for standard input.")] = "-",
    ids: Annotated[bool, typer.Option("--ids", help="Print ids on one line (default where output is piped).")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print one line per token: id, tab, text in JSON.")] = False,
    pattern: _Pattern = None,
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
    segmenter = open_segmenter(tokenizer, pattern=pattern)
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
    for index, (_, piece) in enumerate(pieces):
        shown = piece.decode("utf-8", "replace").replace("\ufffd", "·")
        shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in shown)
        line.append(shown.replace("\n", "↵\n"), style=f"#ffffff {_COLOURS[index % len(_COLOURS)]}")
    return line


@app.command()
def decode(
    tokenizer: Annotated[str, typer.Argument(help=_TOKENIZER)],
    ids: Annotated[list[str] | None, typer.Argument(help="Ids, or nothing for standard input.")] = None,
    pattern: _Pattern = None,
) -> None:
    """Turn ids back into text: exactly the bytes that were encoded, so that the output can be compared with the input.

    [dim]Examples[/dim]

      mintage segment decode my-tokenizer 84 104 101

      mintage segment encode my-tokenizer sea | mintage segment decode my-tokenizer

    Next: [bold]mintage segment compare my-tokenizer --text held-out.txt[/bold]
    """
    from mintage.segment.core.adapters import open_segmenter

    segmenter = open_segmenter(tokenizer, pattern=pattern)
    words = ids if ids and ids != ["-"] else sys.stdin.read().split()
    numbers = []
    for word in (part for text in words for part in re.split(r"[\s,]+", text.strip("[] \n")) if part):
        if not re.fullmatch(r"-?\d{1,18}", word):
            raise UserError(f"{word[:40]!r} is not an id; pass whole numbers, e.g. 84 104 101")
        numbers.append(int(word))
    data = segmenter.decode_bytes(numbers)
    typer.echo(data, nl=sys.stdout.isatty())


@app.command("decompound")
def split_compounds(
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


# -- compare ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Compare(Options):
    """Compare tokenizers of any make on your text: length, spread, parity over languages, morphology, speed.

    [dim]Examples[/dim]

      mintage segment compare my-tokenizer smollm2 --text held-out.txt

      mintage segment compare old=tokenizer.json new=my-tokenizer --text held-out.txt

      mintage segment compare my-tokenizer --text held-out.txt --parallel parallel.jsonl

      mintage segment compare my-tokenizer --text held-out.txt --out compared.html

    Next: [bold]mintage bench segment[/bold]
    """

    text: tuple[str, ...] = option(help="Held-out text, .jsonl, .gz or a folder; repeat for more.", repeat=True)
    key: str = option("text", "Field of the text in JSON lines.")
    parallel: str | None = option(None, "JSON lines with lang, text and an id that rows of equal content share.")
    reference: str = option("en", "Language of the parallel text whose premium is 1.")
    morphology: str | None = option(None, "JSON lines with word and segments.")
    repeats: int = option(5, "Rounds of timing; 0 for none.", least=0)
    limit: int | None = option(None, "Measure on about this many characters of the text.")
    pattern: str | None = option(None, _PATTERN)
    out: Path | None = option(None, "Write table and figures: a .html page, or a results folder.", short="-o")

    def run(self, tokenizers: list[str], as_json: bool) -> None:
        """Measure, print and write."""
        from mintage.bench.segment.table import TokenizerTable
        from mintage.data import Corpus
        from mintage.segment.core.adapters import Foreign, open_segmenter
        from mintage.segment.core.metrics import read_morphology, read_parallel

        _check_out(self.out)
        segmenters = {name: open_segmenter(spec, pattern=self.pattern) for name, spec in _named(tokenizers).items()}
        console = Console(stderr=True, highlight=False)
        for name, one in segmenters.items():
            if isinstance(one, Foreign) and (
                note := "; ".join(filter(None, (one.note, one.loss and f"lossy: {one.loss}")))
            ):
                console.print(f"{name}: {note}", style="yellow", markup=False, soft_wrap=True)
        table = TokenizerTable(
            segmenters=segmenters,
            texts=list(Corpus(*self.text, key=self.key, limit=self.limit)),
            parallel={"": read_parallel(self.parallel, self.reference)} if self.parallel else {},
            reference=self.reference,
            gold=read_morphology(self.morphology) if self.morphology else None,
            repeats=self.repeats,
            said={"data": ", ".join(Path(t).name for t in self.text), "command": command_line()},
        )
        with shown_progress() as progress:
            rows = table.rows(progress)
        _show(rows, as_json=as_json)
        if self.out is not None:
            _write(rows, self.out)
            console.print(f"wrote {self.out}", style="dim", markup=False)


_JSON = Annotated[bool, typer.Option("--json", help="Print the rows as JSON lines.")]
app.command("compare", help=help_of(Compare))(
    callback_of(
        Compare,
        Compare.run,
        arguments=_argument("tokenizers", list[str], f"{_TOKENIZER} NAME=... names one in the table."),
        extra=[inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON)],
    )
)


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

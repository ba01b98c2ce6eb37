"""Text of any size as a stream that can be read again: files, folders, JSON lines, data sets of the hub."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mintage.errors import UserError, missing_extra
from mintage.files import parse_json

__all__ = ["Corpus", "Texts", "as_corpus"]

_LONGEST = 1 << 20  # characters of a line read at once
_HUB = "hub:"

Texts = Iterable[str]
"""Documents that can be read more than once: a list of strings, or a `Corpus`."""


class Corpus:
    """Documents read from their source at every pass, so that memory holds one at a time.

    Text files give their lines, newlines kept, so that the documents joined are the file; JSON lines give the field
    `key` of every row. ``.gz`` is read as what it holds. A folder gives all its text files, sorted by path.

    Parameters
    ----------
    *sources
        Files, folders, or data sets of the hub as ``"hub:owner/name"``, ``"hub:owner/name:split"`` (streamed with
        ``datasets``; the only thing here that uses the network).
    key
        Field of JSON rows and of data sets.
    where
        Keep only JSON rows in which these fields have these values, e.g. ``{"lang": "de"}``.
    limit
        Stop after about this many characters; None reads everything.

    Raises
    ------
    UserError
        No source, a source that does not exist or is empty, a file that is not UTF-8 text, a row without `key`.
    """

    def __init__(
        self,
        *sources: str | Path,
        key: str = "text",
        where: dict[str, Any] | None = None,
        limit: int | None = None,
    ) -> None:
        if not sources:
            raise UserError("no text given; name at least one file or folder")
        self.key, self.where, self.limit = key, where or {}, limit
        self.sources: list[str | Path] = []
        for source in sources:
            if str(source).startswith(_HUB):
                self.sources.append(str(source))
            else:
                self.sources += _files(Path(source))

    def __iter__(self) -> Iterator[str]:
        """Read from the beginning."""
        left = float("inf") if self.limit is None else self.limit
        for text in self._documents():
            if left <= 0:
                return
            yield text
            left -= len(text)

    def _documents(self) -> Iterator[str]:
        for source in self.sources:
            if isinstance(source, str):
                yield from _from_hub(source, self.key)
            elif _is_json_lines(source):
                yield from _rows(source, self.key, self.where)
            else:
                yield from _lines(source)

    @property
    def fingerprint(self) -> str:
        """Changes when a source, its size, its time stamp or the selection changes; what a resumed job compares."""
        parts: list[Any] = [self.key, sorted(self.where.items()), self.limit]
        for source in self.sources:
            stat = None if isinstance(source, str) else source.stat()
            parts.append([str(source), stat and stat.st_size, stat and stat.st_mtime_ns])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def as_corpus(texts: Iterable[str]) -> Texts:
    """Make `texts` readable more than once: a generator is read into a list, everything else is itself.

    Raises
    ------
    UserError
        `texts` is one string, whose documents would be its characters.
    """
    if isinstance(texts, (str, bytes)):
        raise UserError("a corpus is an iterable of texts, not one text; pass [text], or Corpus(path) for a file")
    return list(texts) if iter(texts) is texts else texts


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        if not found:
            raise UserError(f"{path} holds no files; pass a folder of text")
        return found
    if not path.exists():
        raise UserError(f"{path} does not exist; pass a text file, a .jsonl file or a folder")
    return [path]


def _is_json_lines(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".jsonl")


def _lines(path: Path, longest: int = _LONGEST) -> Iterator[str]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            while line := file.readline(longest):
                if "\0" in line:
                    raise UserError(f"{path} is not text (it holds NUL bytes); pass UTF-8 text")
                yield line
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it, e.g. with iconv") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _rows(path: Path, key: str, where: dict[str, Any]) -> Iterator[str]:
    for number, line in enumerate(_lines(path, longest=-1), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            known = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{path}, line {number}: no text in {key!r}; it has: {known}")
        if all(row.get(name) == value for name, value in where.items()):
            yield row[key]


def _from_hub(source: str, key: str) -> Iterator[str]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise missing_extra("datasets", "data") from None
    name, _, split = source.removeprefix(_HUB).partition(":")
    try:
        rows: Any = datasets.load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # the library's own errors, and those of the network, are many
        raise UserError(f"cannot open the data set {name!r}: {str(error).splitlines()[0]}") from None
    for row in rows:
        if not isinstance(row.get(key), str):
            raise UserError(f"{name}: no text in {key!r}; it has: {', '.join(row)}")
        yield row[key]


def gather(corpus: Iterable[str], size: int) -> Iterator[list[str]]:
    """Group documents into batches of about `size` characters, in order."""
    batch: list[str] = []
    held = 0
    for text in corpus:
        batch.append(text)
        held += len(text)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch

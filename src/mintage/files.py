"""Where files go, and how they are written: whole or not at all."""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mintage.errors import UserError

__all__ = [
    "append_line",
    "append_lines",
    "cache_dir",
    "check_writable",
    "is_full",
    "parse_json",
    "read_jsonl",
    "replace_file",
    "replace_folder",
]


def cache_dir() -> Path:
    """Return mintage's own cache: ``$MINTAGE_CACHE``, else ``$XDG_CACHE_HOME/mintage``, else ``~/.cache/mintage``."""
    if own := os.environ.get("MINTAGE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mintage"


def check_writable(path: str | Path) -> None:
    """Fail now, and not after hours of work, if a file cannot be written here.

    Raises
    ------
    UserError
        `path` is a folder, or its folder cannot be made or written to.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{target} is a folder; pass the file to write")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.filename}: {error.strerror}); pass another path") from None


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAID_FULL = re.compile(r"os error (28|122|27)\b|No space left on device")


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, the quota or the largest size of a file is reached.

    Libraries in Rust (safetensors, tokenizers) raise errors of their own; only their texts tell.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return not isinstance(error, UserError) and _SAID_FULL.search(str(error)) is not None


@contextmanager
def _told_when_full(path: Path) -> Iterator[None]:
    """Turn what a full disk makes a library raise into one line."""
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise UserError(f"no room left to write {path}; make room on that disk, or pass another path") from error
        raise


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving without an exception it takes the place of `path`.

    A reader sees the old file or the new one, never a part; after a kill the old one is still there.

    Raises
    ------
    UserError
        The disk is full.
    """
    target = Path(path)
    with _told_when_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on leaving without an exception it takes the place of `path`.

    Two processes that build the same folder must hold a lock around this (see `mintage.models`).

    Raises
    ------
    UserError
        The disk is full.
    """
    target = Path(path)
    with _told_when_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for file in filter(Path.is_file, temporary.rglob("*")):
                file.chmod(0o644)
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def append_line(path: str | Path, line: str) -> None:
    """Append one line, see `append_lines`."""
    append_lines(path, [line])


def append_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Append all of the lines or, where that fails, none.

    Writers in other processes never interleave, and a last line that a kill tore is closed first.

    Raises
    ------
    UserError
        The disk is full.
    """
    target = Path(path)
    data = "".join(f"{line}\n" for line in lines).encode()
    with _told_when_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"), target.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(-1, os.SEEK_END)
                data = data if file.read(1) == b"\n" else b"\n" + data  # a writer was killed in mid-line
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                if not end:
                    target.unlink()
                raise


_DEEPEST = 200  # levels of JSON; what reads it afterwards goes down by recursion
_HUGE = re.compile(r"\d{309}")  # digits of a whole number that no float holds
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, perhaps


def parse_json(text: str, where: str, then: str = "mend or delete that line") -> Any:
    """Parse JSON that comes from outside: anything that would fail later, and far from here, is refused.

    Parameters
    ----------
    text
        The JSON.
    where
        Begins the errors, e.g. ``"rows.jsonl, line 3"``.
    then
        Ends them: what to do.

    Raises
    ------
    UserError
        It is no JSON, is nested deeper than 200 levels, holds half of a surrogate pair (which is no text and cannot be
        written), or a whole number that no float holds.
    """
    try:
        value = json.loads(text)
        if text.count("[") + text.count("{") > _DEEPEST:
            _check_depth(value)
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        if _HUGE.search(text):
            json.loads(text, parse_int=_bounded)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}); {then}") from None
    except RecursionError:
        raise UserError(f"{where}: nested deeper than {_DEEPEST} levels; {then}") from None
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair (e.g. \\ud800), which is no text; {then}") from None
    except ValueError:
        raise UserError(f"{where}: holds a whole number of hundreds of digits; {then}") from None
    return value


def _bounded(digits: str) -> None:
    if math.isinf(float(digits)):
        raise ValueError(digits)


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [part for one in level if isinstance(one, dict | list) for part in _parts(one)]:
        depth += 1
        if depth > _DEEPEST:
            raise RecursionError


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object per line, from plain text or ``.gz``; blank lines are skipped.

    Raises
    ------
    UserError
        The file is missing, is not UTF-8 text, or a line is not a JSON object (file and line are named).
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; expected one JSON object per line") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows

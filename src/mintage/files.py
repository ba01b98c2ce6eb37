"""Where files go, and how they are written: whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from mintage.errors import UserError

__all__ = ["append_line", "cache_dir", "check_writable", "read_jsonl", "replace_file", "replace_folder"]


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
        raise UserError(f"{target} is a folder; pass the file to write, e.g. {target / 'made.safetensors'}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}; pass another path") from None


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving without an exception it takes the place of `path`.

    A reader sees the old file or the new one, never a part; after a kill the old one is still there.
    """
    target = Path(path)
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
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def append_line(path: str | Path, line: str) -> None:
    """Append one line so that writers in other processes never interleave and a torn last line is mended."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"), target.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a writer was killed in mid-line
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


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
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg}); mend or delete that line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        rows.append(row)
    return rows

"""Measurements kept on disk as they come, so that a killed bench goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mintage
from mintage.files import append_line
from mintage.processor import limits

__all__ = ["Memo", "fingerprint"]


_CODE = {".py", ".cpp"}
"""Suffixes of what measures, in a package."""

_BESIDE = {"cli", "testing"}
"""Rooms of mintage that measure nothing."""


@cache
def _own_code() -> bytes:
    room = Path(mintage.__file__).parent
    return _digest([f for f in _files(room) if f.relative_to(room).parts[0] not in _BESIDE])


def _files(source: Path) -> list[Path]:
    found = source.rglob("*") if source.is_dir() else [source]
    return sorted(file for file in found if file.suffix in _CODE)


def _digest(files: Sequence[Path]) -> bytes:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


def fingerprint(*sources: Path) -> str:
    """Return a hash of the code that measures: mintage's own, and what a plug-in brings (files or folders)."""
    return hashlib.sha256(_own_code() + b"".join(_digest(_files(source)) for source in sources)).hexdigest()


class Memo:
    """The measurements of one run, by key.

    Parameters
    ----------
    work
        Folder that holds the runs.
    definition
        Everything that defines the run, as JSON values; a run with another definition, or under other limits of the
        processor's instructions, starts afresh.
    sources
        Files or folders that measure and are not mintage's own; with other code, here or there, a run starts afresh.

    Attributes
    ----------
    folder
        For what does not fit into a line (trained weights, files of tokens): of this run alone, deleted with it.
    """

    def __init__(self, work: str | Path, definition: dict[str, Any], sources: Sequence[Path] = ()) -> None:
        text = json.dumps({**definition, "source": fingerprint(*sources), "limits": limits()}, sort_keys=True)
        self.path = Path(work) / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
        self.folder = self.path.with_suffix("")
        self._held: dict[str, Any] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # killed in mid-line: that one is measured again
                continue
            self._held[row["key"]] = row["value"]

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def __call__(self, key: str, measure: Callable[[], Any]) -> Any:
        """Return what is known under `key`, or measure and keep it (as JSON gives it back)."""
        if key not in self._held:
            text = json.dumps({"key": key, "value": measure()})
            append_line(self.path, text)
            self._held[key] = json.loads(text)["value"]
        return self._held[key]

    def delete(self) -> None:
        """Forget the run: it is over."""
        self.path.unlink(missing_ok=True)
        Path(f"{self.path}.lock").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.path.parent.exists() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

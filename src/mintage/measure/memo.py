"""Measurements kept on disk as they come, so that a killed bench goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mintage.files import append_line

__all__ = ["Memo"]


_CODE = {".py", ".cpp"}
"""Suffixes of what measures, in a package."""


class Memo:
    """The measurements of one run, by key.

    Parameters
    ----------
    work
        Folder that holds the runs.
    definition
        Everything that defines the run, as JSON values; a run with another definition starts afresh.
    sources
        Modules or packages (files or folders) that measure; with other code a run starts afresh, too.
    """

    def __init__(self, work: str | Path, definition: dict[str, Any], sources: Sequence[Path] = ()) -> None:
        files = sorted(f for s in sources for f in (s.rglob("*") if s.is_dir() else [s]) if f.suffix in _CODE)
        code = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
        text = json.dumps({**definition, "source": code}, sort_keys=True)
        self.path = Path(work) / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
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
        if self.path.parent.exists() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

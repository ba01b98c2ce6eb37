"""One file per checkpoint: tensors as safetensors, the run's state as JSON in the metadata, replaced in one rename."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mintage.errors import UserError
from mintage.files import read_jsonl, replace_file

__all__ = ["read_checkpoint", "trim_log", "write_checkpoint"]

_FORMAT = "mintage training checkpoint 1"


def write_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Replace the checkpoint at `path`; after a kill the old one or the new one is there, never a part."""
    with replace_file(path) as temporary:
        own = {name: t.cpu().contiguous() for name, t in tensors.items()}
        save_file(own, temporary, metadata={"format": _FORMAT, "state": json.dumps(state)})


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the state and the tensors.

    Raises
    ------
    UserError
        The file is damaged or no checkpoint of this format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UserError(f"{path} is {metadata.get('format')!r}, expected {_FORMAT!r}; use another folder")
            return json.loads(metadata["state"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to start the run again") from None


def trim_log(log: Path, step: int) -> None:
    """Drop rows newer than `step`, and a last line torn by a kill."""
    text = log.read_text()
    with replace_file(log) as temporary:
        temporary.write_text(text[: text.rfind("\n") + 1])
    kept = [row for row in read_jsonl(log) if row["step"] <= step]
    with replace_file(log) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

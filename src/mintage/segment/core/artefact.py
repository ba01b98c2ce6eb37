"""How a segmenter lies on disk: JSON and safetensors, written whole, with a tokenizer.json beside where one fits."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mintage.errors import UserError
from mintage.files import replace_folder

__all__ = ["check_target", "read_artefact", "write_artefact"]

FORMAT, VERSION = "mintage segmenter", 1
VALUES, ARRAYS = "segmenter.json", "segmenter.safetensors"
_OURS = {VALUES, ARRAYS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


def check_target(folder: Path) -> None:
    """Raise UserError unless `folder` is new, empty, or holds a segmenter."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; pass a folder")
    others = sorted({p.name for p in folder.iterdir()} - _OURS) if folder.exists() else []
    if others:
        raise UserError(f"{folder} holds other files (e.g. {others[0]}); pass a new folder, nothing was written")


def write_artefact(folder: Path, segmenter: Any) -> None:
    """Write `segmenter` to `folder`, which is new, empty, or holds a segmenter (see `Segmenter.save`)."""
    check_target(folder)
    values, arrays = segmenter.state()
    kind = type(segmenter)
    head = {"format": FORMAT, "version": VERSION, "method": segmenter.method}
    head["class"] = f"{kind.__module__}:{kind.__qualname__}"
    with replace_folder(folder) as temporary:
        text = json.dumps({**head, "values": values}, ensure_ascii=False)
        (temporary / VALUES).write_text(text, encoding="utf-8")
        if arrays:
            save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, temporary / ARRAYS)
        try:
            exported = segmenter.to_hf()
        except UserError:
            return  # no tokenizer.json can say it
        exported.save_pretrained(temporary)


def read_artefact(folder: Path) -> tuple[Any, dict[str, Any], dict[str, np.ndarray]]:
    """Return the segmenter's class, its values and its arrays."""
    path = folder / VALUES if folder.is_dir() or not folder.exists() else folder
    if not path.exists():
        raise UserError(f"{folder} holds no {VALUES}; pass a folder that Segmenter.save or mintage segment train wrote")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            raise KeyError("format")
        version, method, target, values = held["version"], held["method"], held["class"], held["values"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no segmenter, or damaged; train again") from None
    if version > VERSION:
        raise UserError(f"{path} is of version {version}, this mintage reads up to {VERSION}; upgrade mintage")
    kind = _class(path, method, target)
    try:
        arrays = load_file(path.with_name(ARRAYS)) if path.with_name(ARRAYS).exists() else {}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path.with_name(ARRAYS)} is damaged ({error}); train again") from None
    return kind, values, arrays


def _class(path: Path, method: str, target: str) -> Any:
    """Import the class, which must be a segmenter: a file does not choose what is run."""
    from mintage import catalog
    from mintage.segment.contract import Segmenter

    row = catalog.find(method, "segment")  # tells an unknown method, e.g. of a plug-in that is not installed
    module, _, name = target.partition(":")
    if module != row.entry.partition(":")[0]:
        raise UserError(f"{path}: {target} is not where {method} lives ({row.entry}); train again")
    kind = getattr(importlib.import_module(module), name, None)
    if not (isinstance(kind, type) and issubclass(kind, Segmenter)):
        raise UserError(f"{path}: {target} is no segmenter; train again")
    return kind

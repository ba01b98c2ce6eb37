"""How a segmenter lies on disk, and what a training keeps there while it is unfinished.

A segmenter is JSON and safetensors, written whole, with a tokenizer.json beside where one fits.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mintage.data import count_words
from mintage.errors import UserError
from mintage.files import parse_json, replace_file, replace_folder
from mintage.progress import Progress, silent

__all__ = ["SegmenterFile", "check_target", "counted", "read_segmenter", "read_work", "write_segmenter", "write_work"]

FORMAT, VERSION = "mintage segmenter", 1
VALUES, ARRAYS = "segmenter.json", "segmenter.safetensors"
_OURS = {VALUES, ARRAYS, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


class SegmenterFile(NamedTuple):
    """What a folder says: whose segmenter it is, where its class is (``"module:Class"``), and what it is made of."""

    path: Path
    method: str
    target: str
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


def check_target(folder: Path) -> None:
    """Raise UserError unless `folder` is new, empty, or holds a segmenter."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; pass a folder")
    others = sorted({p.name for p in folder.iterdir()} - _OURS) if folder.exists() else []
    if others:
        raise UserError(f"{folder} holds other files (e.g. {others[0]}); pass a new folder, nothing was written")


def write_segmenter(folder: Path, segmenter: Any) -> None:
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


def read_segmenter(folder: Path) -> SegmenterFile:
    """Read what `write_segmenter` wrote."""
    path = folder / VALUES if folder.is_dir() or not folder.exists() else folder
    if not path.exists():
        raise UserError(f"{folder} holds no {VALUES}; pass a folder that Segmenter.save or mintage segment train wrote")
    try:
        held = parse_json(path.read_text(encoding="utf-8"), str(path))
        if held["format"] != FORMAT:
            raise KeyError("format")
        version, method, target, values = held["version"], held["method"], held["class"], held["values"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no segmenter, or damaged; train again") from None
    if version > VERSION:
        raise UserError(f"{path} is of version {version}, this mintage reads up to {VERSION}; upgrade mintage")
    try:
        arrays = load_file(path.with_name(ARRAYS)) if path.with_name(ARRAYS).exists() else {}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path.with_name(ARRAYS)} is damaged ({error}); train again") from None
    return SegmenterFile(path, method, target, values, arrays)


# -- unfinished work -----------------------------------------------------------------------------------------------


def write_work(path: Path, mark: str, **values: Any) -> None:
    """Keep what a training has so far, whole or not at all; `mark` says of what text and settings it is."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps({"mark": mark, **values}, ensure_ascii=False), encoding="utf-8")


def read_work(path: Path, mark: str, *names: str) -> list[Any] | None:
    """Return the values of `write_work` in the order of `names`, or None where nothing was begun.

    Raises
    ------
    UserError
        The file is damaged, or of other text or settings.
    """
    if not path.exists():
        return None
    try:
        held = parse_json(path.read_text(encoding="utf-8"), str(path))
        of, values = held["mark"], [held[name] for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; delete it to begin again") from None
    if of != mark:
        raise UserError(f"{path} was begun on other text or with other settings; delete it, or pass another folder")
    return values


def counted(
    corpus: Iterable[str],
    words: Callable[[str], Iterable[str]],
    work: Path,
    progress: Progress = silent,
    *,
    processes: int = 1,
    max_words: int | None = None,
) -> Counter[str]:
    """Count words, or read the count of this corpus that a call finished in `work` before it was killed.

    Raises
    ------
    UserError
        `work` holds a damaged count.
    """
    mark = str(getattr(corpus, "fingerprint", ""))
    path = work / f"{words.__name__}-{zlib.crc32(mark.encode()):08x}.json"
    if (held := read_work(path, mark, "counts")) is not None:
        return Counter[str](held[0])
    stage = f"count {words.__name__.replace('_', ' ')}"
    counts = count_words(
        corpus,
        words,
        processes=processes,
        max_words=max_words,
        state=path.with_suffix(".begun"),
        progress=lambda done: progress(stage, done, 0),
    )
    write_work(path, mark, counts=counts)
    return counts

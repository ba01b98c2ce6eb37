"""Open a tokenizer without opening its model: a tokenizer.json, a folder, a hub id, or the embedded default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mintage.errors import UserError

__all__ = ["load_tokenizer", "merges"]


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Open a tokenizer.

    Parameters
    ----------
    source
        ``"smollm2"`` (the embedded model's), a ``tokenizer.json``, a folder that holds one, or a hub id.

    Raises
    ------
    UserError
        There is no such file, it is damaged or truncated, or a hub id cannot be reached.
    """
    path = Path(source)
    if str(source) == "smollm2":
        from mintage.models import embedded_folder

        path = embedded_folder()
    if path.is_dir():
        if not (path / "tokenizer.json").exists():
            raise UserError(f"{path} holds no tokenizer.json; pass a folder that save_pretrained wrote")
        path = path / "tokenizer.json"
    if path.exists():
        return _read(path)
    if path.suffix in (".json", ".model", ".tiktoken") or str(source).count("/") != 1:
        raise UserError(f"{source} does not exist; pass a tokenizer.json, its folder, or a hub id such as owner/name")
    try:
        return Tokenizer.from_pretrained(str(source))
    except Exception as error:  # the library's errors are plain Exceptions
        raise UserError(f"cannot get the tokenizer of {source}: {str(error).splitlines()[0]}") from None


def _read(path: Path) -> Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged or no tokenizer.json ({str(error).splitlines()[0]}); get it again"
        ) from None
    try:
        return Tokenizer.from_str(text)
    except Exception as error:
        raise UserError(f"{path} is no tokenizer that tokenizers can read: {str(error).splitlines()[0]}") from None


def merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the merge list of a BPE tokenizer, in order, as pairs of vocabulary strings.

    Raises
    ------
    UserError
        It is no BPE tokenizer, or a merge names a token that the vocabulary lacks.
    """
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    if model.get("type") != "BPE":
        raise UserError(f"this tokenizer's model is {model.get('type')}; a merge list belongs to BPE")
    parts = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    pairs = [(left, right) for left, right in parts]
    known = model["vocab"]
    for left, right in pairs:
        if left not in known or right not in known or left + right not in known:
            raise UserError(f"merge {left!r} + {right!r} names a token that the vocabulary lacks; the file is damaged")
    return pairs

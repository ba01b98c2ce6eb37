"""Published tokenizers that somebody put into a folder: what studies look at beside those trained here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mintage.errors import UserError

__all__ = ["published"]


def published(folder: Path | None, names: Iterable[str] = (), *, least: int = 1, needs: str = "") -> dict[str, Path]:
    """Find the tokenizer.json of every published tokenizer, or of `names` alone.

    Parameters
    ----------
    folder
        Holds a folder per tokenizer; without one there are none.
    names
        Part of the folders' names.
    least, needs
        How many there must be, and which among them.

    Raises
    ------
    UserError
        The folder does not hold them.
    """
    if folder is None:
        return {}
    wanted = list(names)
    if wanted:
        found = {name: file for name in wanted for file in sorted(folder.glob(f"*{name}*/**/tokenizer.json"))[:1]}
    else:
        found = {file.parent.name: file for file in sorted(folder.glob("*/tokenizer.json"))}
    if len(found) < least or (needs and needs not in found):
        raise UserError(
            f"{folder} holds {', '.join(found) or 'no'} tokenizers as NAME/tokenizer.json; it must have "
            + (f"{needs} and {least - 1} more" if needs else f"at least {least}")
            + (f" of {', '.join(wanted)}" if wanted else "")
        )
    return found

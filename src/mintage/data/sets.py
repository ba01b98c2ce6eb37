"""Every data set that mintage reads, by name: its files, their licence and origin, and where they lie on this machine.

A file is looked for in ``$MINTAGE_DATA``, then among what ``mintage data get`` has fetched, then in the folder ``data``
of a clone, where lie those that may be republished. How text sets are parted is in `mintage.data.corpora`; fetching is
in `mintage.data.fetch`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mintage.errors import UserError, did_you_mean
from mintage.files import cache_dir

__all__ = ["SETS", "DataFile", "DataSet", "data_file", "data_home", "find_data", "find_set"]


@dataclass(frozen=True)
class DataFile:
    """A file of a data set.

    Parameters
    ----------
    name
        Below a data folder.
    checksum
        ``sha256:`` and its hexadecimal digits, or ``git:`` and those of git's blob id.
    size
        In bytes; 0 where nobody has said.
    url
        Where the public has it; empty for files made here.
    """

    name: str
    checksum: str
    size: int = 0
    url: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Parameters
    ----------
    name
        What ``mintage data`` calls it.
    kind
        ``text``, ``images``, ``audio``, ``meshes``, ``dna`` or ``weights``.
    about
        What is in it.
    licence
        What its source states.
    origin
        Where it comes from: repository, commit and path.
    ships
        Whether `files` lie in a clone.
    files
        What mintage reads.
    whole
        The files of the public origin, of which `files` may be a part.
    hub
        The id of the data set on the hub, where it is taken with ``datasets``.
    """

    name: str
    kind: str
    about: str
    licence: str
    origin: str
    ships: bool
    files: tuple[DataFile, ...]
    whole: tuple[DataFile, ...] = ()
    hub: str = ""

    @property
    def size(self) -> int:
        """Bytes of the files that mintage reads."""
        return sum(file.size for file in self.files)

    @property
    def how(self) -> str:
        """The command that gets `files`, as errors say it."""
        get = f"mintage data get {self.name}"
        own = "; or pass images of your own, where the command has --images" if self.kind == "images" else ""
        if self.hub:
            return f"it is not shipped; run: {get} (from the hub), or {get} --from FOLDER-OR-URL{own}"
        if self.ships:
            return f"it lies in the folder data of mintage's repository; run: {get} --from FOLDER-OR-URL"
        return f"it is not shipped (made from {self.origin}); run: {get} --from FOLDER-OR-URL{own}"


# -- where files are ---------------------------------------------------------------------------------------------------


def data_home() -> Path:
    """Return the folder that ``mintage data get`` writes to: ``$MINTAGE_DATA``, else ``data`` in mintage's cache."""
    own = os.environ.get("MINTAGE_DATA")
    return Path(own) if own else cache_dir() / "data"


def _folders() -> list[Path]:
    """Where files are looked for, in this order."""
    clone = Path(__file__).resolve().parents[3]
    found = dict.fromkeys([data_home(), cache_dir() / "data"])
    if (clone / "pyproject.toml").is_file():  # not an installed package, whose neighbours are others'
        found[clone / "data"] = None
    return list(found)


def find_data(name: str) -> Path | None:
    """Return where a file is, or None."""
    return next((path for folder in _folders() if (path := folder / name).exists()), None)


def data_file(name: str) -> Path:
    """Return where a file of a data set is.

    Raises
    ------
    UserError
        It is nowhere; the line says how to get it.
    """
    if path := find_data(name):
        return path
    owner = next((one for one in SETS.values() if any(name == file.name for file in one.files)), None)
    how = owner.how if owner else f"set MINTAGE_DATA to a folder that holds {name}"
    own = os.environ.get("MINTAGE_DATA")
    raise UserError(f"{name} is not on this machine{f' (MINTAGE_DATA={own} lacks it)' if own else ''}; {how}")


def find_set(name: str) -> DataSet:
    """Return a data set by name.

    Raises
    ------
    UserError
        There is none of that name.
    """
    if name not in SETS:
        raise UserError(f"unknown data set {name!r}; {did_you_mean(name, SETS)}")
    return SETS[name]


# -- the list ----------------------------------------------------------------------------------------------------------


def _read(name: str, row: dict[str, Any]) -> DataSet:
    whole = row.pop("whole", {"at": "", "files": []})
    return DataSet(
        name,
        files=tuple(DataFile(file, f"sha256:{digits}", size) for file, size, digits in row.pop("files")),
        whole=tuple(
            DataFile(f"{name}/{file}", f"git:{blob}", url=f"{whole['at']}/{file}") for file, blob in whole["files"]
        ),
        **row,
    )


SETS: Mapping[str, DataSet] = {
    name: _read(name, row)
    for name, row in tomllib.loads((Path(__file__).parent / "sets.toml").read_text(encoding="utf-8")).items()
}
"""All data sets by name, from ``sets.toml``."""

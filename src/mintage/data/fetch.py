"""Fetch a data set: from its public origin, or from a folder or address that the user names.

A file is checked before it takes its place, and a download that broke off goes on where it stopped, if the server
knows ``Range``. The network is used for addresses that the user or the list of data sets names, never otherwise.

Not here: making mintage's own files from those of an origin.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from mintage.data.sets import DataFile, DataSet, data_home
from mintage.errors import UserError, missing_extra
from mintage.progress import Progress, silent

__all__ = ["fetch_file", "fetch_set"]

_CHUNK = 1 << 18
_TRIES = 5  # in a row that brought nothing new
_SECONDS = 30.0  # without a byte

_Told = Callable[[int, int], None]  # bytes that are there, and how many there will be; 0 where nobody knows


def fetch_set(one: DataSet, source: str = "", *, progress: Progress = silent) -> list[Path]:
    """Fetch a data set into `mintage.data.sets.data_home`.

    Parameters
    ----------
    one
        The set.
    source
        A folder, or an address that begins with ``http://`` or ``https://``, that holds the files that mintage reads;
        empty for the public origin's own files, which go to a folder of the set's name.
    progress
        Told the bytes of each file.

    Returns
    -------
    list of Path
        The files; none where the hub's library keeps them.

    Raises
    ------
    UserError
        The set has no public files, a file is missing, is not what it should be or cannot be written, or the network
        fails.
    """
    if not source and one.hub:
        _from_hub(one.hub)
        return []
    files = [(file, f"{source.rstrip('/')}/{file.name}") for file in one.files] if source else []
    files = files or [(file, file.url) for file in one.whole]
    if not files:
        wanted = ", ".join(file.name for file in one.files)
        raise UserError(
            f"{one.name} has no public file of this form (it was made from {one.origin}); run: mintage data get "
            f"{one.name} --from FOLDER, or a URL, that holds {wanted}"
        )
    found = []
    for file, at in files:
        target = data_home() / file.name
        fetch_file(file, at, target, progress=lambda done, of, name=file.name: progress(name, done, of))
        found.append(target)
    return found


def fetch_file(file: DataFile, source: str, target: Path, *, progress: _Told = lambda done, of: None) -> None:
    """Fetch one file to `target`, unless it is there already.

    Parameters
    ----------
    file
        Its size and checksum.
    source
        A path, or an address that begins with ``http://`` or ``https://``.
    target
        Where it goes; beside it lies ``.<name>.part`` until it is whole.
    progress
        Told the bytes that are there, and how many there will be.

    Raises
    ------
    UserError
        Another file of that name is there; the source lacks it, gives another one, or breaks off for good; the disk
        is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            if target.exists():
                if _checksum(target, file.checksum) != file.checksum:
                    raise UserError(f"{target} is another file of that name; move or delete it, then run this again")
                return
            part = target.with_name(f".{target.name}.part")
            if source.startswith(("http://", "https://")):
                _download(source, part, file.size, progress)
            else:
                _copy(Path(source), part)
            if (got := _checksum(part, file.checksum)) != file.checksum:
                part.unlink()
                raise UserError(f"{source} is not {file.name} as it should be: {got}, expected {file.checksum}")
            part.chmod(0o644)
            part.replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"no space left for {target}; make room, the same command goes on from there") from None
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; set MINTAGE_DATA to another folder"
        ) from None


def _checksum(path: Path, like: str) -> str:
    """Return the checksum of a file, of the kind that `like` is."""
    kind = like.partition(":")[0]
    found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        found.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return f"{kind}:{found.hexdigest()}"


def _copy(source: Path, part: Path) -> None:
    if not source.is_file():
        raise UserError(f"{source} does not exist; name a folder or a URL that holds {source.name}")
    try:
        shutil.copyfile(source, part)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _download(url: str, part: Path, size: int, told: _Told) -> None:
    """Download into `part`, from where it ends; try again as long as that brings something new."""
    failed, reason = 0, ""
    while failed < _TRIES:
        before = part.stat().st_size if part.exists() else 0
        if size and before == size:
            return
        try:
            _request(url, part, before, size, told)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing after what is there: it is whole, or wrong
                if before and not size:
                    return
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise UserError(f"{url}: {error.code} {error.reason}; check the address") from None
            reason = f"{error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
        except ValueError as error:  # urllib's word for an address that is none
            raise UserError(f"{url} is not an address ({error})") from None
        failed = 0 if part.exists() and part.stat().st_size > before else failed + 1
    raise UserError(f"{url}: {reason}; the same command goes on from there")


def _request(url: str, part: Path, start: int, size: int, told: _Told) -> None:
    headers = {"User-Agent": "mintage", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS) as answer:
        goes_on = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-")
        if answer.status == 206 and not goes_on:
            raise http.client.HTTPException("the server sent another part than was asked for")
        done = start if goes_on else 0
        whole = done + int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                told(done, size or whole)
                if size and done > size:
                    file.truncate(0)
                    raise UserError(f"{url} is longer than it should be ({size} bytes); check the address")
        if whole > done:  # a body that ends early is no error of `read` in blocks
            raise http.client.IncompleteRead(b"", whole - done)


def _from_hub(name: str) -> None:
    try:
        import datasets
    except ModuleNotFoundError:
        raise missing_extra("datasets", "data") from None
    try:
        made: Any = datasets.load_dataset
        made(name)
    except Exception as error:  # the library's own errors, and those of the network, are many
        raise UserError(f"cannot get the data set {name!r}: {str(error).splitlines()[0]}") from None

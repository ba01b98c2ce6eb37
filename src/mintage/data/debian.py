"""Text and word lists that Debian packages: manual pages, LibreOffice's help, dictionaries, thesauri.

Nothing is downloaded here; get the packages once with::

    mkdir -p .mintage/debian && cd .mintage/debian && apt-get download wngerman manpages-de libreoffice-help-de \\
        trans-de-en mythes-de fortunes-de libreoffice-help-hu mythes-hu dict-freedict-hun-eng libreoffice-help-en-us

or name another folder of .deb files in ``MINTAGE_DEBIAN``.
"""

from __future__ import annotations

import gzip
import html
import io
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mintage.errors import UserError

__all__ = ["LANGUAGES", "debian_texts", "german_words", "members"]


def _folder() -> Path:
    return Path(os.environ.get("MINTAGE_DEBIAN") or Path(".mintage") / "debian")


def members(package: str, wanted: str) -> Iterator[bytes]:
    """Yield the files of a Debian package whose path matches, unpacked, in the order of their paths.

    Raises
    ------
    UserError
        The package is not there, or dpkg-deb is not.
    """
    found = sorted(_folder().glob(f"{package}_*.deb"))
    if not found:
        raise UserError(
            f"{_folder()} holds no {package}_*.deb; get it with: apt-get download {package}, or set MINTAGE_DEBIAN"
        )
    try:
        archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(found[-1])], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"cannot unpack {found[-1]} ({error}); dpkg-deb is needed") from None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = sorted((m for m in tar if m.isfile() and re.search(wanted, m.name)), key=lambda m: m.name)
        for member in files:
            file = tar.extractfile(member)
            data = file.read() if file else b""
            yield gzip.decompress(data) if member.name.endswith((".gz", ".dz")) else data


def _manual(page: bytes) -> str:
    """Take the words out of a manual page's macros."""
    lines = []
    for line in page.decode("utf-8", "replace").split("\n"):
        if line.startswith((".", "'")):
            macro, _, line = line[1:].strip().partition(" ")
            if macro not in {"B", "I", "BR", "IR", "RB", "RI", "BI", "IB", "SH", "SS", "TP", "IP", "SM"}:
                continue
            line = line.replace('"', "")
        line = re.sub(r"\\f(\[\w*\]|\(..|.)|\\[&%/,:c]", "", line).replace(r"\-", "-").replace(r"\ ", " ")
        lines.append(line)
    return "\n".join(lines)


def _page(page: bytes) -> str:
    """Take the text out of HTML."""
    text = re.sub(r"(?s)<(script|style).*?</\1>", " ", page.decode("utf-8", "replace"))
    return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<(br|p|td|li|div|h\d)[^>]*>", "\n", text)))


def _thesaurus(data: bytes) -> str:
    encoding = data.split(b"\n", 1)[0].decode("ascii").strip()
    return re.sub(r"\([^)]*\)", "", data.decode(encoding, "replace")).replace("|", "\n")


def _dictionary(data: bytes, side: int) -> str:
    """Take one language of the German-English word list."""
    rows = (line.split(" :: ") for line in data.decode("utf-8").split("\n") if not line.startswith("#"))
    sides = (row[side] for row in rows if len(row) == 2)
    return "\n".join(re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text).replace("|", "\n") for text in sides)


def _plain(data: bytes) -> str:
    return data.decode("utf-8", "replace")


_PAGES = r"/text/.*\.html$"
_SOURCES: dict[str, tuple[tuple[str, str, Callable[[bytes], str]], ...]] = {
    "de": (
        ("manpages-de", r"/man/de/", _manual),
        ("libreoffice-help-de", _PAGES, _page),
        ("fortunes-de", r"/fortunes/de/[^.]*$", _plain),
        ("trans-de-en", r"/trans/de-en$", partial(_dictionary, side=0)),
        ("mythes-de", r"th_de_DE_v2\.dat$", _thesaurus),
    ),
    "hu": (
        ("libreoffice-help-hu", _PAGES, _page),
        ("mythes-hu", r"\.dat$", _thesaurus),
        ("dict-freedict-hun-eng", r"\.dict\.dz$", _plain),
    ),
    "en": (
        ("libreoffice-help-en-us", _PAGES, _page),
        ("trans-de-en", r"/trans/de-en$", partial(_dictionary, side=1)),
    ),
}
LANGUAGES = tuple(_SOURCES)
"""Languages that `debian_texts` knows."""


def debian_texts(language: str, characters: int | None = None) -> Iterator[str]:
    """Yield the texts of a language, one of `LANGUAGES`, until about so many characters are read."""
    left = float("inf") if characters is None else characters
    for package, wanted, read in _SOURCES[language]:
        for data in members(package, wanted):
            if left <= 0:
                return
            text = read(data)
            yield text
            left -= len(text)


def german_words() -> list[str]:
    """Return the words of wngerman, nouns with a capital."""
    return next(members("wngerman", r"/dict/ngerman$")).decode("utf-8").split()

"""Python files to learn from: found, decoded as Python decodes them, and without near-duplicates.

Near-duplicates are files of nearly the same words in the same order: the Jaccard similarity of their runs of five words
(names, numbers, signs), estimated by the 256 least of their hashes, reaches a threshold. No chance is in it; of those
that are alike the first in the order given is kept.
"""

from __future__ import annotations

import io
import re
import tokenize
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mintage.errors import UserError

__all__ = ["PythonFiles", "distinct", "python_files", "read_python"]

_WORD = re.compile(r"\w+|[^\w\s]")
_RUN, _HASHES = 5, 256


class PythonFiles(NamedTuple):
    """Python files that were read.

    Parameters
    ----------
    texts
        By path.
    left_out
        Why others are not there, by path.
    """

    texts: dict[str, str]
    left_out: dict[str, str]


def python_files(*sources: str | Path) -> PythonFiles:
    """Read files, and all ``.py`` files of folders, sorted by path.

    Raises
    ------
    UserError
        One does not exist, a folder has none, or not one of them is Python text.
    """
    if not sources:
        raise UserError("no code given; name at least one Python file or folder")
    paths: list[Path] = []
    for source in map(Path, sources):
        inside = sorted(p for p in source.rglob("*.py") if p.is_file()) if source.is_dir() else [source]
        if not inside:
            raise UserError(f"{source} holds no .py file; pass a folder of Python code")
        if not source.exists():
            raise UserError(f"{source} does not exist; pass a Python file or a folder")
        paths += inside
    found = PythonFiles({}, {})
    for path in paths:
        try:
            found.texts[str(path)] = read_python(path)
        except UserError as error:
            found.left_out[str(path)] = str(error)
    if not found.texts:
        raise UserError(next(iter(found.left_out.values())))
    return found


def read_python(path: str | Path) -> str:
    """Read one file in the encoding that it declares.

    Raises
    ------
    UserError
        It cannot be read, is not text in its encoding, or holds NUL bytes.
    """
    try:
        data = Path(path).read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; pass a Python file") from None
    except (SyntaxError, UnicodeDecodeError, LookupError):
        raise UserError(f"{path} is not text in the encoding that it declares; save it as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}, line {line} holds a NUL byte, so it is no Python; mend it, or leave it out")
    return text


def distinct(texts: Iterable[str], threshold: float | int = 0.7) -> list[bool]:
    """Return which texts are no near-duplicates of one before them.

    Parameters
    ----------
    texts
        In the order of preference.
    threshold
        Similarity from which on two are alike, in (0, 1].

    Raises
    ------
    UserError
        The threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"threshold={threshold} is out of range; pass a similarity in (0, 1], e.g. 0.7")
    holders: dict[int, list[int]] = defaultdict(list)  # of a hash: texts that are kept
    kept: list[bool] = []
    sketches: list[frozenset[int]] = []
    codes: dict[str, int] = {}
    for number, text in enumerate(texts):
        sketch = _sketch(_WORD.findall(text), codes)
        shared = Counter(other for one in sketch for other in holders[one])
        likely = [other for other, count in shared.items() if count >= 0.5 * threshold * len(sketch)]
        alike = any(_similarity(sketch, sketches[other]) >= threshold for other in likely)
        kept.append(not alike)
        sketches.append(sketch)
        if not alike:
            for one in sketch:
                holders[one].append(number)
    return kept


def _sketch(words: Sequence[str], codes: dict[str, int]) -> frozenset[int]:
    """Return the least hashes of the runs of words; `codes` remembers those of words."""
    for word in set(words) - codes.keys():
        codes[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
    held = np.array([codes[word] for word in words], np.uint64)
    count = max(len(words) - _RUN + 1, min(len(words), 1))
    total = np.zeros(count, np.uint64)
    for place in range(min(_RUN, len(words))):
        total = total * np.uint64(0x9E3779B97F4A7C15) + held[place : place + count]
    total ^= total >> np.uint64(29)
    total *= np.uint64(0xBF58476D1CE4E5B9)
    total ^= total >> np.uint64(32)
    return frozenset(np.unique(total)[:_HASHES].tolist())


def _similarity(a: frozenset[int], b: frozenset[int]) -> float:
    """Estimate the Jaccard similarity of what two sketches are of."""
    least = set(sorted(a | b)[:_HASHES])
    return len(least & a & b) / len(least)

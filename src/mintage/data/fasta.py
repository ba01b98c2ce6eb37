"""FASTA: nucleotide sequences read record by record, checked to the letter, and written.

Sequences keep their letters as the file has them: lower case (masked repeats), N and IUPAC's other codes (NC-IUB 1984).
What is no nucleotide, proteins above all, is refused with file and line.

Not here: alignments (gaps are refused), FASTQ.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mintage.data.corpus import Corpus
from mintage.errors import UserError
from mintage.files import replace_file

__all__ = ["BASES", "Fasta", "FastaRecord", "certain_runs", "reverse_complement", "write_fasta"]

BASES = "ACGT"
"""The letters of DNA that name one base; U is read as T."""

_CODES = "ACGTURYSWKMBDHVN"
_PAIRS = "TGCAAYRSWMKVHDBN"
_SUFFIXES = (".fa", ".fasta", ".fna", ".ffn", ".frn", ".fas")
_STRANGE = re.compile(f"[^{_CODES}]", re.IGNORECASE)
_VAGUE = re.compile("[RYSWKMBDHV]", re.IGNORECASE)
_CERTAIN = re.compile(f"[{BASES}]+")
_COMPLEMENT = str.maketrans(_CODES + _CODES.lower(), _PAIRS + _PAIRS.lower())
_RNA = str.maketrans("ACGUacgu", "UGCAugca")


class FastaRecord(NamedTuple):
    """One sequence.

    Parameters
    ----------
    name
        The first word of its header.
    sequence
        Its letters as they stand in the file.
    description
        The rest of the header.
    """

    name: str
    sequence: str
    description: str = ""


class Fasta:
    """Records read from their source at every pass, one in memory at a time.

    Parameters
    ----------
    *sources
        Files, ``.gz`` too, and folders: of a folder all files named ``.fa``, ``.fasta``, ``.fna``, ``.ffn``, ``.frn``
        or ``.fas``, perhaps with ``.gz``, sorted by path.

    Raises
    ------
    UserError
        A source does not exist, holds no FASTA, or holds what is no nucleotide; the line names file and line.
    """

    def __init__(self, *sources: str | Path) -> None:
        if not sources:
            raise UserError("no FASTA given; name at least one file or folder")
        self.sources: list[Path] = [path for source in sources for path in _files(Path(source))]

    def __iter__(self) -> Iterator[FastaRecord]:
        """Read from the beginning."""
        for path in self.sources:
            yield from _records(path)

    @property
    def fingerprint(self) -> str:
        """Changes when a source, its size or its time stamp changes; what a resumed job compares."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.sources]
        return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path} does not exist; pass a FASTA file or a folder of them")
        return [path]
    found = [p for p in sorted(path.rglob("*")) if p.is_file() and p.name.removesuffix(".gz").endswith(_SUFFIXES)]
    if not found:
        raise UserError(f"{path} holds no FASTA files ({', '.join(_SUFFIXES)}, or these with .gz); name the files")
    return found


def _records(path: Path) -> Iterator[FastaRecord]:
    header, begun, parts = "", 0, list[str]()
    number, fresh = 1, True  # very long lines come in pieces
    for piece in Corpus(path):
        ends, line = piece.endswith("\n"), piece.rstrip("\r\n")
        if fresh and line.startswith(">"):
            if begun:
                yield _record(path, header, begun, parts)
            header, begun, parts = line[1:].strip(), number, []
            if not header:
                raise UserError(f"{path}, line {number}: a record without a name; write one behind the >")
        elif line and not begun:
            if line.startswith("@"):
                raise UserError(f"{path}, line {number} begins with @, as FASTQ does; convert it to FASTA")
            raise UserError(f"{path}, line {number}: there is no > in front of the first sequence; pass FASTA")
        elif line:
            if strange := _STRANGE.search(line.rstrip()):
                raise UserError(f"{path}, line {number}: {_told(strange.group())}")
            parts.append(line.rstrip())
        number, fresh = number + ends, ends
    if not begun:
        raise UserError(f"{path} holds no record; pass FASTA")
    yield _record(path, header, begun, parts)


def _told(letter: str) -> str:
    if letter.isalpha() or letter == "*":
        return f"{letter!r} is no nucleotide (a protein?); pass DNA or RNA, in IUPAC's letters {_CODES}"
    if letter in "-.":
        return f"{letter!r} is a gap; pass sequences that are not aligned"
    return f"{letter!r} is no nucleotide; pass nothing but IUPAC's letters {_CODES}"


def _record(path: Path, header: str, line: int, parts: list[str]) -> FastaRecord:
    sequence = "".join(parts)
    name, _, description = header.partition(" ")
    if not sequence:
        raise UserError(f"{path}, line {line}: the record {name!r} has no sequence; take it out")
    if 2 * len(_VAGUE.findall(sequence)) > len(sequence):  # K, M, R, S, V and others name amino acids, too
        raise UserError(f"{path}, line {line}: most letters of {name!r} name no base (a protein?); pass DNA or RNA")
    return FastaRecord(name, sequence, description.strip())


def write_fasta(path: str | Path, records: Iterable[FastaRecord], width: int = 60) -> None:
    """Write records, whole or not at all; compressed where the name ends in ``.gz``.

    Parameters
    ----------
    path
        The file.
    records
        What `Fasta` gives.
    width
        Letters of a line.

    Raises
    ------
    UserError
        `width` is below 1, or a record has no name, no sequence, or letters that are no nucleotides.
    """
    if width < 1:
        raise UserError(f"width={width} leaves no room for a letter; pass e.g. 60")
    with replace_file(path) as temporary:
        opener = gzip.open if Path(path).suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8", newline="\n") as file:
            for record in records:
                header = f"{record.name} {record.description}".rstrip()
                if not record.name or len(record.name.split()) > 1 or len(header.splitlines()) > 1:
                    raise UserError(f"{record.name!r} cannot be the name of a record; pass one word")
                if not record.sequence or (strange := _STRANGE.search(record.sequence)):
                    told = _told(strange.group()) if record.sequence else "it is empty"  # pyright: ignore
                    raise UserError(f"the sequence of {record.name!r} cannot be written: {told}")
                file.write(f">{header}\n")
                for start in range(0, len(record.sequence), width):
                    file.write(f"{record.sequence[start : start + width]}\n")


def reverse_complement(sequence: str) -> str:
    """Return the other strand, read in its own direction; case and ambiguity codes are kept, RNA stays RNA.

    Raises
    ------
    UserError
        A letter is no nucleotide.
    """
    if strange := _STRANGE.search(sequence):
        raise UserError(f"no complement: {_told(strange.group())}")
    turned = sequence[::-1]
    if "U" in sequence.upper() and "T" not in sequence.upper():
        return turned.translate(_COMPLEMENT | _RNA)
    return turned.translate(_COMPLEMENT)


def certain_runs(sequence: str) -> Iterator[str]:
    """Yield the longest runs of A, C, G and T (U counts as T), in upper case: what lies between runs of N."""
    return (run.group() for run in _CERTAIN.finditer(sequence.upper().replace("U", "T")))

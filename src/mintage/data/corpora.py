"""Every named corpus and its split, in one list: `texts` opens them, and nobody else does.

``train`` is what trainings, calibrations and tokenizers learn from, ``held-out`` what claims are measured on; no text
is in both. ``all`` is both, in the order of the source, for a claim about something that has learnt from none of it:
who asks for it stands in `READS_BOTH` with the reason, and a test compares that table with the code. A study that
learns something of its own, at every run, may part what it reads itself.

    for text in texts("wikitext2", "train"): ...                          # strings, again at every pass
    for document in texts("xquad", "held-out", domain="de").documents():
        document.name, document.text, document.fields["qas"]

Who learns from which: drafters and PPD from xquad (English), wikitext2, gsm8k, speeches, shakespeare, tatoeba; the
composer from tatoeba, genesis (not English), wikitext2, python-library; ZeTT's hypernetwork from speeches, genesis,
shakespeare, tatoeba, python-library; double-sparsity's calibration from wikitext2. All of them from ``train``.

Texts of the user are read with `mintage.data.Corpus`; prompts that ship with `mintage.data.read_prompts`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from mintage.data.code import distinct
from mintage.data.corpus import Corpus
from mintage.data.fasta import Fasta
from mintage.data.sets import data_file
from mintage.errors import UserError, did_you_mean
from mintage.files import read_jsonl

__all__ = ["CORPORA", "READS_BOTH", "Document", "Split", "TextCorpus", "TextSplit", "is_held_out_word", "texts"]

Split = Literal["train", "held-out", "all"]


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Parameters
    ----------
    name
        Within its corpus: a file, an id, or language and number.
    domain
        Its language as the corpus writes it (ISO 639-1 in XQuAD, 639-3 in Tatoeba), ``code``, a species, or a task.
    text
        The text; ``fields`` has the rest.
    fields
        Everything else that the corpus says: questions, translation, score, file, ...
    """

    name: str
    domain: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)


Parted = Iterator[tuple[Document, bool]]
"""Documents in the order of the source, and whether each is held out."""


@dataclass(frozen=True)
class TextCorpus:
    """A corpus: where it comes from, how it is parted, how it is read.

    Parameters
    ----------
    name
        What `texts` takes.
    data
        The data set that holds it, as ``mintage data`` lists it; empty for the interpreter's own library.
    train, held_out
        What is in each split; empty where there is none.
    read
        Reads the splits asked for.
    """

    name: str
    data: str
    train: str
    held_out: str
    read: Callable[[Split], Parted]

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are not empty."""
        parts: list[Split] = []
        if self.train:
            parts.append("train")
        if self.held_out:
            parts.append("held-out")
        return (*parts, "all")


@dataclass(frozen=True)
class TextSplit:
    """A split of a corpus: an iterable of texts that is read from its source at every pass."""

    corpus: TextCorpus
    split: Split
    domains: frozenset[str] | None = None

    def __iter__(self) -> Iterator[str]:
        """Read the texts from the beginning."""
        return (document.text for document in self.documents())

    def documents(self) -> Iterator[Document]:
        """Read the texts with their names and fields.

        Raises
        ------
        UserError
            The data are not there, or hold nothing in these domains.
        """
        known: set[str] = set()
        for document, held_out in self.corpus.read(self.split):
            if self.split == "all" or held_out == (self.split == "held-out"):
                known.add(document.domain)
                if self.domains is None or document.domain in self.domains:
                    yield document
        if self.domains is not None and not known & self.domains:
            asked, there = (", ".join(sorted(some)) for some in (self.domains, known))
            raise UserError(f"{self.corpus.name}, {self.split}: no text in {asked}; it has: {there or 'none'}")

    @property
    def fingerprint(self) -> str:
        """Changes with what is read; what a resumed job compares."""
        found = hashlib.sha256(f"{self.corpus.name} {self.split} {sorted(self.domains or ())}".encode())
        for document in self.documents():
            found.update(json.dumps([document.name, document.text]).encode())
        return found.hexdigest()[:16]


def texts(name: str, split: Split | str, *, domain: str | Collection[str] | None = None) -> TextSplit:
    """Open a corpus.

    Parameters
    ----------
    name
        One of `CORPORA`.
    split
        ``"train"``, ``"held-out"`` or ``"all"``.
    domain
        Only these languages, as the corpus writes them.

    Raises
    ------
    UserError
        Unknown corpus or split, or the corpus has no such split. Absent data are told when they are read.
    """
    if name not in CORPORA:
        raise UserError(f"unknown corpus {name!r}; {did_you_mean(name, CORPORA)}")
    if split not in get_args(Split):
        raise UserError(f"unknown split {split!r}; {did_you_mean(split, get_args(Split))}")
    corpus = CORPORA[name]
    if split not in corpus.splits:
        raise UserError(f"{name} has no {split!r} split; it has: {', '.join(corpus.splits)}")
    domains = None if domain is None else frozenset([domain] if isinstance(domain, str) else domain)
    return TextSplit(corpus, split, domains)


# -- how they are read and parted --------------------------------------------------------------------------------------


def _wikitext(split: Split) -> Parted:
    for file, held_out in (("wikitext2_valid.txt.gz", False), ("wikitext2_test_head.txt.gz", True)):
        if split == "all" or held_out == (split == "held-out"):
            for number, line in enumerate(Corpus(data_file(file))):
                yield Document(f"line {number}", "en", line), held_out


def _rows(
    file: str,
    *,
    text: str | Callable[[dict[str, Any]], str] = "text",
    name: str = "",
    domain: str | Callable[[dict[str, Any]], str] = lambda row: "en",
    held_out: Callable[[dict[str, Any]], bool],
    where: Callable[[dict[str, Any]], bool] = lambda row: True,
) -> Callable[[Split], Parted]:
    """Read JSON lines; without the field `name`, a document is called by its domain and number there."""

    def read(split: Split) -> Parted:
        path, count = data_file(file), dict[str, int]()
        for row in filter(where, read_jsonl(path)):
            try:
                spoken = row[domain] if isinstance(domain, str) else domain(row)
                said = row[text] if isinstance(text, str) else text(row)
                number = count[spoken] = count.get(spoken, -1) + 1
                called = str(row[name]) if name else f"{spoken} {number}"
                held = held_out(row)
            except KeyError as error:
                raise UserError(f"{path}: a row lacks {error}; it has: {', '.join(row)}") from None
            if not isinstance(said, str):
                raise UserError(f"{path}: a row's text is a {type(said).__name__}, not a string")
            yield Document(called, spoken, said, row), held

    return read


_GENESIS = {
    "english-kjv.txt": "en",
    "english-web.txt": "en",
    "finnish.txt": "fi",
    "french.txt": "fr",
    "german.txt": "de",
    "portuguese.txt": "pt",
    "swedish.txt": "sv",
}


def _long(*corpora: str) -> Callable[[Split], Parted]:
    return _rows(
        "long_docs.jsonl.gz",
        name="file",
        domain=lambda row: _GENESIS.get(row["file"], "en"),
        held_out=lambda row: False,
        where=lambda row: row["corpus"] in corpora,
    )


def is_held_out_word(word: str) -> bool:
    """Part words into halves by their hash, whatever list they come from and however they are capitalised."""
    return hashlib.sha256(word.lower().encode()).digest()[0] % 2 == 1


def _library(split: Split) -> Parted:
    folder = Path(sysconfig.get_path("stdlib"))
    packages = (path for path in sorted(folder.glob("*/*.py")) if "test" not in path.parts[-2])
    for some, held_out in ((packages, False), (sorted(folder.glob("*.py")), True)):
        if split == "all" or held_out == (split == "held-out"):
            for path in some:
                text = path.read_text(encoding="utf-8", errors="replace")
                yield Document(path.relative_to(folder).as_posix(), "code", text), held_out


_NOT_LIBRARY = {"test", "tests", "site-packages", "dist-packages", "idlelib"}


def _library_files(split: Split) -> Parted:
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if _NOT_LIBRARY.isdisjoint(inside.parts):
            part = zlib.crc32(inside.as_posix().encode()) % 20
            if split == "all" or (part == 19) == (split == "held-out"):
                text = path.read_bytes().decode("utf-8", "replace")  # line ends as they are
                yield Document(inside.as_posix(), "code", text, {"part": part}), part == 19


_CHROMOSOMES = {"Chr5", "V", "2L"}  # one of A. thaliana, C. elegans and D. melanogaster each
_TAIL = 500_000  # last bases of E. coli


def _genomes(split: Split) -> Parted:
    for record in Fasta(data_file("genomes.fa.gz")):
        species, place, _ = record.name.split("|")
        end = len(record.sequence) - _TAIL if species == "ecoli" and len(record.sequence) > _TAIL else 0
        if end:
            yield Document(f"{record.name}, its tail", species, record.sequence[end:]), True
        yield Document(record.name, species, record.sequence[:end] if end else record.sequence), place in _CHROMOSOMES


def _is_held_out_site(row: dict[str, Any]) -> bool:
    if row["chrom"] is None:
        return zlib.crc32(str(row["seq"]).encode()) % 5 == 0
    return row["chrom"] in _CHROMOSOMES


@cache
def _distinct_library() -> tuple[tuple[Document, bool], ...]:
    """Modules that Python itself names, the held-out ones first: what is like one of them is not learnt from."""
    documents = [
        (document, zlib.crc32(document.name.encode()) % 10 == 9)
        for document, _ in _library_files("all")
        if document.name.partition("/")[0].removesuffix(".py") in sys.stdlib_module_names
    ]
    documents.sort(key=lambda one: (not one[1], one[0].name))
    kept = distinct(document.text for document, _ in documents)
    return tuple(one for one, keep in zip(documents, kept, strict=True) if keep)


def _code(split: Split) -> Parted:
    for document, held_out in _distinct_library():
        if split == "all" or held_out == (split == "held-out"):
            yield document, held_out


# -- the list ----------------------------------------------------------------------------------------------------------

_PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}'s own library"

CORPORA: Mapping[str, TextCorpus] = {
    corpus.name: corpus
    for corpus in (
        TextCorpus(
            "wikitext2",
            "wikitext2",
            "the valid split, by line",
            "the head of the test split (77 %), by line",
            _wikitext,
        ),
        TextCorpus(
            "xquad",
            "xquad",
            "English: paragraphs and questions (drafters learn to answer them)",
            "the eleven other languages",
            _rows("xquad.jsonl.gz", text="context", domain="lang", held_out=lambda row: row["lang"] != "en"),
        ),
        TextCorpus(
            "tatoeba",
            "tatoeba",
            "everything: sentences of 53 languages with their English translation (field eng)",
            "",
            _rows("tatoeba_parallel.jsonl.gz", domain="lang", held_out=lambda row: False),
        ),
        TextCorpus("speeches", "long-docs", "everything", "", _long("state_union", "inaugural")),
        TextCorpus("genesis", "long-docs", "everything: de en fi fr pt sv", "", _long("genesis")),
        TextCorpus("shakespeare", "long-docs", "everything: the first lines of seven plays", "", _long("shakespeare")),
        TextCorpus(
            "udhr",
            "udhr",
            "everything: one declaration in 318 languages, so none is news beside another",
            "",
            _rows("udhr.jsonl.gz", domain="lang", held_out=lambda row: False),
        ),
        TextCorpus(
            "humaneval",
            "humaneval",
            "",
            "everything: prompt and canonical solution; the fields have both, and the test",
            _rows(
                "humaneval.jsonl.gz",
                text=lambda row: row["prompt"] + row["canonical_solution"],
                name="task_id",
                domain=lambda row: "code",
                held_out=lambda row: True,
            ),
        ),
        TextCorpus(
            "gsm8k",
            "gsm8k",
            "questions of the published train split (2,500; field answer)",
            "questions of the published test split (886)",
            _rows("gsm8k.jsonl.gz", text="question", held_out=lambda row: row["split"] != "train"),
        ),
        TextCorpus(
            "spec-bench",
            "spec-bench",
            "",
            "everything: the first turn of 384 prompts (fields turns, category)",
            _rows(
                "spec_bench.jsonl.gz",
                text=lambda row: row["turns"][0],
                name="question_id",
                held_out=lambda row: True,
            ),
        ),
        TextCorpus(
            "sts",
            "sts",
            "STS-B train: the first sentence (fields s2, score, set)",
            "STS-B dev, STS12 to 16",
            _rows("sts.jsonl.gz", text="s1", held_out=lambda row: row["split"] != "train"),
        ),
        TextCorpus(
            "morph-segmentation",
            "morph-segmentation",
            "words whose lower-case SHA-256 begins with an even byte (fields segments, cat)",
            "the other words",
            _rows(
                "morph_segmentation.jsonl.gz",
                text="word",
                domain="lang",
                held_out=lambda row: is_held_out_word(row["word"]),
            ),
        ),
        TextCorpus(
            "genomes",
            "genomes",
            "FASTA records of E. coli, A. thaliana, C. elegans and D. melanogaster, but for:",
            "chromosomes Chr5, V and 2L, and the last 500 kb of E. coli",
            _genomes,
        ),
        TextCorpus(
            "dna-tasks",
            "dna-tasks",
            "by task (fields label, species): other chromosomes, or (human) a CRC-32 that 5 does not divide",
            "chromosomes Chr5, V and 2L, or a CRC-32 that 5 divides",
            _rows("dna_tasks.jsonl.gz", text="seq", domain="task", held_out=_is_held_out_site),
        ),
        TextCorpus(
            "python-library",
            "",
            f"{_PYTHON}: modules one folder down, tests left out",
            "modules at its top",
            _library,
        ),
        TextCorpus(
            "python-files",
            "",
            f"{_PYTHON} without tests, whole files: parts 0 to 18 of 20 by the CRC-32 of the path (field part)",
            "part 19",
            _library_files,
        ),
        TextCorpus(
            "python-code",
            "",
            f"{_PYTHON} without tests, whole files, near-duplicates (and those of held-out files) removed",
            "files whose path has a CRC-32 that ends in 9",
            _code,
        ),
    )
}
"""All corpora by name. ``python-library``, ``python-files`` and ``python-code`` are files of one library, parted for
different readers."""

_OWN = "what it measures it trains itself, at every run, on text that it parts from the rest"
_BARE = "measures the language model as it came; no policy of keep learns from text but double-sparsity (WikiText-2)"

READS_BOTH: Mapping[tuple[str, str], str] = {
    ("wikitext2", "mintage.bench.audit.mixtures"): _OWN,
    ("xquad", "mintage.bench.audit.mixtures"): _OWN,
    ("tatoeba", "mintage.bench.audit.mixtures"): _OWN,
    ("genesis", "mintage.bench.audit.mixtures"): _OWN,
    ("speeches", "mintage.bench.audit.mixtures"): _OWN,
    ("python-files", "mintage.bench.audit.mixtures"): _OWN,
    ("speeches", "mintage.bench.segment.lines"): _OWN + " (every fifth speech)",
    ("xquad", "mintage.bench.segment.lines"): _OWN + " (every fifth paragraph of Chinese and Thai)",
    ("xquad", "mintage.bench.segment.mix"): _OWN + " (the second half of the paragraph numbers)",
    ("tatoeba", "mintage.bench.segment.mix"): _OWN + " (other languages, and odd numbers)",
    ("morph-segmentation", "mintage.bench.segment.mix"): "the segmenters compared see no gold",
    ("morph-segmentation", "mintage.bench.segment.compounds"): "endings are counted on all, words parted as here",
    ("speeches", "mintage.bench.keep.inputs"): _BARE,
    ("genesis", "mintage.bench.keep.inputs"): _BARE,
    ("xquad", "mintage.bench.retrofit.measures"): "English; no embedding of retrofit has learnt from XQuAD",
    ("sts", "mintage.bench.retrofit.sentences"): "sentence embeddings of others, merged; nothing learns from scores",
    ("tatoeba", "mintage.bench.retrofit.search"): "a list of words to search among; their texts are not measured",
    ("tatoeba", "mintage.bench.audit.rewritten"): "a rewritten tokenizer must cut them as before; nothing learns",
}
"""Who reads both splits of a corpus: corpus and module, and why nothing measured there has learnt from it."""

"""Text by category, languages and code, and tokenizers trained on mixtures of it.

Not here: audits of these tokenizers (`mintage.bench.audit.controls`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage.data import texts

__all__ = ["CODE", "ENGLISH", "Documents", "Shares", "categories", "first_bytes", "halves", "mixture", "size_of"]

Documents = Mapping[str, Sequence[str]]
"""Texts by category."""

Shares = NDArray[np.float64]

LANGUAGES = {"ar": "ara", "de": "deu", "el": "ell", "es": "spa", "hi": "hin", "ro": "ron"}
LANGUAGES |= {"ru": "rus", "th": "tha", "tr": "tur", "vi": "vie", "zh": "cmn"}
"""Languages of XQuAD, as XQuAD and as Tatoeba write them."""

ENGLISH, CODE = "English", "Python"

OTHER_PACKAGES = ("asyncio", "email", "distutils", "unittest", "xml/dom", "multiprocessing", "ctypes")
"""Folders of Python's library; controls are trained on the modules at its top."""


# -- text --------------------------------------------------------------------------------------------------------------


def size_of(documents: Sequence[str]) -> int:
    """Return how many bytes the documents have in all."""
    return sum(len(text.encode()) for text in documents)


def first_bytes(documents: Sequence[str], size: int) -> list[str]:
    """Return the first documents that hold about `size` bytes."""
    total, out = 0, []
    for text in documents:
        if total >= size:
            break
        out.append(text)
        total += len(text.encode())
    return out


def paragraphs(language: str) -> list[str]:
    """Return the paragraphs and questions of XQuAD; a paragraph is cut at its full stops."""
    out: list[str] = []
    for document in texts("xquad", "all", domain=language).documents():
        cut = document.text.replace("। ", "।\n").replace(". ", ".\n").replace("。", "。\n")
        out += [line + "\n" for line in cut.split("\n") if line]
        out += [question["question"] + "\n" for question in document.fields["qas"]]
    return out


def spoken(language: str) -> list[str]:
    """Return what there is of a language of XQuAD: its paragraphs, and sentences of Tatoeba."""
    return paragraphs(language) + [text + "\n" for text in texts("tatoeba", "all", domain=LANGUAGES[language])]


def genesis(language: str) -> list[str]:
    """Return the verses of Genesis."""
    return _lines(texts("genesis", "all", domain=language))


def wikitext() -> list[str]:
    """Return the lines of WikiText-2."""
    return [line for line in texts("wikitext2", "all") if line.strip()]


def library(*folders: str) -> list[str]:
    """Return Python's own library in pieces of 30 lines; without folders, the modules at its top."""
    pieces = []
    for document in texts("python-files", "all").documents():
        if document.name.rpartition("/")[0] in (folders or ("",)):
            lines = document.text.splitlines(keepends=True)
            pieces += ["".join(lines[i : i + 30]) for i in range(0, len(lines), 30)]
    return pieces


def _lines(documents: Iterable[str]) -> list[str]:
    return [line + "\n" for text in documents for line in text.splitlines() if line.strip()]


def categories(size: int, generator: np.random.Generator) -> dict[str, list[str]]:
    """Return shuffled documents of every category, about `size` bytes of each."""
    every = {ENGLISH: wikitext(), CODE: library()} | {language: spoken(language) for language in LANGUAGES}
    every |= {language: genesis(language) for language in ("fi", "fr", "pt", "sv")}
    return {name: first_bytes(shuffled(documents, generator), size) for name, documents in every.items()}


def other_sources() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return documents of three categories, and documents of the same categories from other sources."""
    first = {ENGLISH: wikitext(), CODE: library(), "de": spoken("de")}
    return first, {ENGLISH: _lines(texts("speeches", "all")), CODE: library(*OTHER_PACKAGES), "de": genesis("de")}


def more_english(size: int) -> list[str]:
    """Return speeches, about `size` bytes, and the English paragraphs of XQuAD."""
    return [*first_bytes(_lines(texts("speeches", "all")), size), *paragraphs("en")]


def shuffled(documents: list[str], generator: np.random.Generator) -> list[str]:
    """Return the documents in a random order."""
    return [documents[i] for i in generator.permutation(len(documents))]


def halves(documents: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return training documents and sample documents; no text is in both."""
    distinct = list(dict.fromkeys(documents))
    return distinct[::2], distinct[1::2]


def mixture(parts: Documents, shares: Shares, most: int) -> tuple[list[str], Shares]:
    """Mix training documents in about these shares of at most `most` bytes; return them and the exact shares."""
    sizes = np.array([size_of(part) for part in parts.values()])
    total = min(most, float((sizes / np.maximum(shares, 1e-9)).min()))
    chosen = [first_bytes(part, int(share * total)) for part, share in zip(parts.values(), shares, strict=True)]
    got = np.array([size_of(part) for part in chosen], float)
    return [text for part in chosen for text in part], got / got.sum()


def trained(documents: Sequence[str], merges: int) -> Tokenizer:
    """Train byte-level BPE with GPT-2's cutting."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer

"""Samples cut into pre-tokens, counted in blocks of documents: the bootstrap draws blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from tokenizers import Tokenizer

from mintage.data import Texts, as_corpus, count_words
from mintage.errors import UserError
from mintage.progress import Progress
from mintage.tokenizer_files import PreTokens

__all__ = ["BLOCKS", "CountedSamples", "count_samples"]

BLOCKS = 20
"""Blocks that the documents of a category are dealt to; the bootstrap draws blocks."""


@dataclass(frozen=True, eq=False)
class CountedSamples:
    """The pre-tokens of all samples: how often each stands in each block of each category."""

    words: list[str]
    cells: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # category: word, block, count
    sizes: dict[str, int]  # category: bytes

    def weights(self, generator: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Count of every word in every category; with a generator, of a resample of its blocks."""
        out = {}
        for name, (word, block, count) in self.cells.items():
            times = np.ones(BLOCKS, np.int64)
            if generator is not None and self.resampled(name):
                full = np.unique(block)
                times[:] = 0
                times[full] = generator.multinomial(len(full), np.full(len(full), 1 / len(full)))
            out[name] = np.bincount(word, weights=count * times[block], minlength=len(self.words)).astype(np.int64)
        return out

    def resampled(self, name: str) -> bool:
        """Whether the sample has documents in enough blocks."""
        return len(np.unique(self.cells[name][1])) >= BLOCKS // 2


class _InBlocks:
    """Cut a document into pre-tokens, each with a letter before it for the block that the document belongs to."""

    def __init__(self, cut: PreTokens) -> None:
        self._cut = cut

    def __call__(self, text: str) -> list[str]:
        letter = chr(ord("a") + crc32(text.encode("utf-8", "surrogatepass")) % BLOCKS)
        return [letter + word for word in self._cut(text)]


class _Measured:
    """A corpus that knows, after a pass, how many bytes it gave."""

    def __init__(self, texts: Texts) -> None:
        self._texts, self.size = texts, 0
        self.fingerprint = str(getattr(texts, "fingerprint", ""))

    def __iter__(self) -> Iterator[str]:
        self.size = 0
        for text in self._texts:
            self.size += len(text.encode("utf-8", "surrogatepass"))
            yield text


def count_samples(
    samples: Mapping[str, Texts], tokenizer: Tokenizer, *, processes: int, work: str | Path | None, progress: Progress
) -> CountedSamples:
    """Cut all samples into pre-tokens, as the tokenizer does.

    Raises
    ------
    UserError
        A sample is empty.
    """
    cut = _InBlocks(PreTokens(tokenizer))
    mark = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:12]
    number: dict[str, int] = {}
    cells, sizes = {}, {}
    for name, texts in samples.items():
        corpus = _Measured(as_corpus(texts))
        key = hashlib.sha256(name.encode()).hexdigest()[:12]
        state = Path(work) / f"{mark}-{key}.json" if work else None
        stage = f"cutting {name}"
        counts = count_words(
            corpus, cut, processes=processes, state=state, progress=lambda n, stage=stage: progress(stage, n, 0)
        )
        if not counts:
            raise UserError(f"the sample of {name!r} is empty; pass text of that category")
        word = np.fromiter((number.setdefault(w[1:], len(number)) for w in counts), np.int64, len(counts))
        block = np.fromiter((ord(w[0]) - ord("a") for w in counts), np.int64, len(counts))
        cells[name] = word, block, np.fromiter(counts.values(), np.int64, len(counts))
        sizes[name] = corpus.size
    return CountedSamples(list(number), cells, sizes)

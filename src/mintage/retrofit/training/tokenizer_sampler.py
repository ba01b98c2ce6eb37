"""Tokenizers drawn at random: frequent pieces of text, their scores disturbed by noise (arXiv 2405.07883)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, models

from mintage.errors import UserError
from mintage.options import Options, option
from mintage.retrofit.core.token_bytes import TokenBytes

__all__ = ["ReadTwice", "TokenizerSampler", "ZettSettings", "passage", "read_in_both"]

_LONGEST = 16  # bytes of a sampled token
_COUNTED = 2048  # texts that pieces are counted in (section 4.1)


@dataclass(frozen=True, kw_only=True)
class ZettSettings(Options):
    """What is drawn for a batch, and what its loss is made of."""

    warmup: int = option(0, "Steps on the model's own vocabulary alone; --residual none needs some.", least=0)
    rows: int = option(4, "Texts per step.", least=1)
    tokens: int = option(64, "New tokens that are read of each.", least=2)
    size: int = option(4096, "Tokens of a sampled vocabulary, as often half and twice as many.", least=1)
    spread: float = option(2.0, "How much the noise on their scores varies (the paper: 4).", least=0)
    lexical: float = option(0.1, "Weight of known tokens staying as they are (the paper: 0.5).", least=0)
    distil: float = option(1.0, "Weight of the model's states being as in its own tokens (the paper: 0).", least=0)


class TokenizerSampler:
    """Draws tokenizers from texts (section 3.3, algorithm 1).

    Parameters
    ----------
    vocabulary
        Of the model; its pre-tokenizer cuts the texts.
    texts
        What pieces are counted in.
    largest
        Most tokens that a vocabulary shall have, the 256 bytes among them.
    spread
        Standard deviation of the log of the noise, whose median is 1e-5 (section 4.1: 4).

    Raises
    ------
    UserError
        The model's tokenizer is not byte-level, or the texts have no words.
    """

    def __init__(
        self, vocabulary: TokenBytes, texts: Sequence[str], *, largest: int = 8192, spread: float | int = 4.0
    ) -> None:
        if vocabulary.letters is None:
            raise UserError(
                "tokenizers are sampled over bytes; pass a model whose tokenizer is byte-level (GPT-2, Llama 3)"
            )
        self.spread = spread
        self._pre: Any = vocabulary.backend.pre_tokenizer
        self.letters = [vocabulary.letters[byte] for byte in range(256)]
        some = np.random.default_rng(0).permutation(len(texts))[:_COUNTED].tolist()
        words = Counter(word for place in some for word in self.cut(texts[int(place)]))
        pieces: Counter[str] = Counter()
        for word, count in words.items():
            for start in range(len(word)):
                for end in range(start + 2, min(start + _LONGEST, len(word)) + 1):
                    pieces[word[start:end]] += count
        kept = pieces.most_common(20 * largest)
        if not kept:
            raise UserError("the texts have no word of two bytes or more to make tokens of; pass more text")
        self._pieces = [piece for piece, _ in kept]
        score = np.array([count * len(piece) for piece, count in kept], float)
        self._score = score / score.sum()

    def cut(self, text: str) -> list[str]:
        """Cut a text into words, in the letters of the byte-level alphabet."""
        return [word for word, _ in self._pre.pre_tokenize_str(text)]

    def draw(self, generator: np.random.Generator, size: int) -> tuple[list[str], Tokenizer]:
        """Return a vocabulary of `size` tokens, in letters, and its tokenizer of single words.

        There are 257 at least, and as many as the texts have pieces at most.
        """
        size = min(max(size, 257), 256 + len(self._pieces))
        noise = generator.lognormal(math.log(1e-5), self.spread) * generator.standard_normal(len(self._score))
        score = self._score + noise
        chosen = np.argpartition(-score, size - 257)[: size - 256]
        kept = np.log(np.clip(score[chosen], 1e-9, None))
        floor = float(kept.min()) - 2.0
        entries = [(letter, floor) for letter in self.letters]
        entries += [(self._pieces[place], float(value)) for place, value in zip(chosen, kept, strict=True)]
        return [name for name, _ in entries], Tokenizer(models.Unigram(entries, unk_id=None, byte_fallback=False))


class ReadTwice(NamedTuple):
    """A text in new tokens and in the model's own, positions after which both have read the same, and its bytes."""

    ids: list[int]
    original: list[int]
    aligned: list[tuple[int, int]]
    bytes: int


def read_in_both(words: Sequence[str], tokenizer: Tokenizer, own_model: Any, most: int) -> ReadTwice:
    """Cut words into new tokens, at most `most`, and into those of a model's own tokenizer."""
    ids: list[int] = []
    ends, original, own_ends = [0], [], [0]
    for word in words:
        new, own = tokenizer.model.tokenize(word), own_model.tokenize(word)
        if len(ids) + len(new) > most:
            if ids:
                break
            new = new[:most]  # the whole text is one word
        for pieces, held, bounds in ((new, ids, ends), (own, original, own_ends)):
            held += [piece.id for piece in pieces]
            bounds += (bounds[-1] + np.cumsum([len(piece.value) for piece in pieces])).tolist()
    _, one, other = np.intersect1d(ends[:-1], own_ends, return_indices=True)
    return ReadTwice(ids, original, list(zip(one.tolist(), other.tolist(), strict=True)), ends[-1])


def passage(texts: Sequence[str], characters: int, draw: np.random.Generator) -> str:
    """Draw a text, and more where it is short."""
    found = texts[int(draw.integers(len(texts)))]
    while len(found) < characters:
        found += "\n" + texts[int(draw.integers(len(texts)))]
    return found

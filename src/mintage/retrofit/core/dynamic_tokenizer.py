"""A tokenizer whose tokens grow with the batch (arXiv 2411.18553, section 3.1)."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from mintage.errors import UserError
from mintage.retrofit.core.merging import Boundary, MergeRule, Merging, Symbols, pair_rule
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.tokenizer_files import PreTokens

__all__ = ["DynamicBatch", "DynamicTokenizer", "Token"]

_PUNCTUATION = b".,!?;:()-\"'\\/`$%&*+<=>@[]^_{|}~"
_PAIRS_KEPT = 1 << 17


class Token(NamedTuple):
    """One distinct token of a batch.

    Attributes
    ----------
    surface
        Its bytes; empty for a special token.
    id
        The token of the original vocabulary that it is; None for one that is in no vocabulary.
    """

    surface: bytes
    id: int | None


class DynamicBatch(NamedTuple):
    """What `DynamicTokenizer.encode_batch` returns.

    Attributes
    ----------
    tokens
        Per text, places in `unique`.
    unique
        The distinct tokens of the batch.
    starts
        Per text, where each token's first part stands among the text's original tokens (labels of words go there).
    merges
        What was joined, in order; give it to another batch to have it cut alike.
    base_length
        Tokens of all texts before merging.
    """

    tokens: list[list[int]]
    unique: list[Token]
    starts: list[list[int]]
    merges: list[tuple[bytes, bytes]]
    base_length: int

    @property
    def length(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.tokens))

    @property
    def reduction(self) -> float:
        """Share of the original tokens that is gone."""
        return 1 - self.length / max(self.base_length, 1)

    def surfaces(self, text: int) -> list[bytes]:
        """Return the tokens of one text as bytes."""
        return [self.unique[place].surface for place in self.tokens[text]]


class DynamicTokenizer:
    """A tokenizer whose tokens grow with the batch.

    Parameters
    ----------
    tokenizer
        A fast tokenizer of transformers, or one of ``tokenizers``.
    boundary
        What merged tokens may not cross, see `pair_rule`.

    Raises
    ------
    UserError
        The boundary is unknown, or the tokenizer's tokens cannot be read as bytes.
    """

    def __init__(self, tokenizer: Any, boundary: Boundary = "pretokens") -> None:
        self.tokenizer, self.boundary = tokenizer, boundary
        self.vocabulary = TokenBytes(tokenizer)
        cut, prefix = PreTokens(self.vocabulary.backend), self.vocabulary.prefix
        digits = set(b"0123456789")
        punctuation = frozenset(
            token for token in self.vocabulary.ids if set(_PUNCTUATION).intersection(token) and not digits & set(token)
        )
        # a tokenizer that puts a space before a text would put a second one here
        rule = pair_rule(boundary, lambda text: cut(text.removeprefix(prefix)), punctuation)
        self.valid: MergeRule = lru_cache(maxsize=_PAIRS_KEPT)(rule)

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        reduction: float | int | None = None,
        n_merges: int | None = None,
        merges: Sequence[tuple[bytes, bytes]] | None = None,
        max_length: int | None = None,
        special_tokens: bool = True,
    ) -> DynamicBatch:
        """Tokenize texts together.

        The same text is cut differently in other company. One text at a time, or a frozen list of merges, repeats.

        Parameters
        ----------
        texts
            A batch.
        reduction
            Share, 0 to 1, of what can be saved at this boundary: 0 is the original tokenization, 1 joins all that may
            be joined.
        n_merges
            Or: the number of merges.
        merges
            Or: join these pairs, in this order (`DynamicBatch.merges` of another batch).
        max_length
            Cut every text after this many original tokens, before merging.
        special_tokens
            Whether the tokenizer adds its special tokens. They are never joined.

        Raises
        ------
        UserError
            There is no text, none or several of the three are given, or one is out of range.
        """
        if isinstance(texts, str) or not len(texts):
            raise UserError("a batch is a list of at least one text; pass [text]")
        return self.merge_ids(
            self.ids(texts, max_length=max_length, special_tokens=special_tokens),
            reduction=reduction,
            n_merges=n_merges,
            merges=merges,
        )

    def ids(self, texts: Sequence[str], *, max_length: int | None = None, special_tokens: bool = True) -> list[Any]:
        """Return the original tokens of every text."""
        if isinstance(self.tokenizer, Tokenizer):
            plain = self.vocabulary.backend
            found = [e.ids for e in plain.encode_batch(list(texts), add_special_tokens=special_tokens)]
            return [ids if max_length is None else ids[:max_length] for ids in found]
        cut = {} if max_length is None else {"truncation": True, "max_length": max_length}
        return self.tokenizer(list(texts), add_special_tokens=special_tokens, **cut)["input_ids"]

    def merge_ids(
        self,
        ids: Sequence[Sequence[int]],
        *,
        reduction: float | int | None = None,
        n_merges: int | None = None,
        merges: Sequence[tuple[bytes, bytes]] | None = None,
    ) -> DynamicBatch:
        """Merge sequences of original tokens, e.g. those of a chat template; see `encode_batch`."""
        if sum(given is not None for given in (reduction, n_merges, merges)) != 1:
            raise UserError("pass one of reduction, n_merges and merges, e.g. reduction=0.5")
        if reduction is not None and not 0 <= reduction <= 1:
            raise UserError(f"reduction={reduction} is outside [0, 1]; 1 joins all that may be joined, 0 nothing")
        if n_merges is not None and n_merges < 0:
            raise UserError(f"n_merges={n_merges} is negative; pass 0 for the base tokenization, or more")
        valid = self.valid
        if merges is not None:
            listed = {(bytes(a), bytes(b)) for a, b in merges}
            valid = lambda a, b: (a, b) in listed  # noqa: E731
        symbols, sequences, original = self.symbols(ids, valid)
        merging = Merging(sequences, symbols.join)
        if merges is not None:
            for a, b in merges:
                merging.merge((symbols.of(bytes(a)), symbols.of(bytes(b))))
        else:
            merging.run(n_merges)
        done = len(merging.merges) if reduction is None else _steps(merging.lengths, reduction)
        tokens, starts = merging.at(done)
        return self._batch(symbols, original, tokens, starts, merging, done)

    def curve(self, ids: Sequence[Sequence[int]]) -> list[int]:
        """Return the total length of a batch after 0, 1, 2, ... merges, until nothing may be joined."""
        symbols, sequences, _ = self.symbols(ids, self.valid)
        return Merging(sequences, symbols.join).run().lengths

    def merges_for(self, texts: Sequence[str], reduction: float | int, batch_size: int = 32) -> int:
        """Return the number of merges that gives a reduction on average over batches, as the authors set it.

        Parameters
        ----------
        texts
            A sample of the data.
        reduction
            Share, 0 to 1, of the largest possible reduction.
        batch_size
            Texts that are merged together, now and later.
        """
        if not 0 <= reduction <= 1:
            raise UserError(f"reduction={reduction} is outside [0, 1]; 1 joins all that may be joined, 0 nothing")
        if not len(texts) or batch_size < 1:
            raise UserError(f"{len(texts)} texts in batches of {batch_size}; pass at least one text and 1 per batch")
        curves = [self.curve(self.ids(texts[i : i + batch_size])) for i in range(0, len(texts), batch_size)]
        longest = max(map(len, curves))
        total = np.sum([curve + curve[-1:] * (longest - len(curve)) for curve in curves], axis=0)
        return _steps(total.tolist(), reduction)

    def symbols(
        self, ids: Sequence[Sequence[int]], valid: MergeRule
    ) -> tuple[Symbols, list[list[int]], dict[int, int]]:
        """Return sequences as symbols for `Merging`, and the original token that each symbol is."""
        symbols, tokens, original = Symbols(valid), self.vocabulary.tokens, {}
        sequences = []
        for sequence in ids:
            row = []
            for place in map(int, sequence):
                surface = tokens[place] if place < len(tokens) else b""
                symbol = symbols.of(surface or place, surface)
                original.setdefault(symbol, place)
                row.append(symbol)
            sequences.append(row)
        return symbols, sequences, original

    def _batch(
        self,
        symbols: Symbols,
        original: dict[int, int],
        tokens: list[list[int]],
        starts: list[list[int]],
        merging: Merging,
        done: int,
    ) -> DynamicBatch:
        places: dict[int, int] = {}
        numbered = [[places.setdefault(symbol, len(places)) for symbol in row] for row in tokens]
        unique = []
        for symbol in places:
            surface = symbols.surfaces[symbol]
            unique.append(Token(surface, original.get(symbol, self.vocabulary.ids.get(surface))))
        pairs = [(symbols.surfaces[a], symbols.surfaces[b]) for a, b in merging.merges[:done]]
        return DynamicBatch(numbered, unique, starts, pairs, merging.lengths[0])


def _steps(lengths: Sequence[int], reduction: float | int) -> int:
    """Merges after which `reduction` of the possible shortening is reached."""
    wanted = lengths[0] - reduction * (lengths[0] - lengths[-1])
    return bisect.bisect_left([-length for length in lengths], -wanted - 1e-9)

"""Merge subwords within a batch: byte-pair encoding over tokens, started anew for every batch.

Count adjacent pairs, join the most frequent one everywhere, repeat; a boundary sets what may be joined. Section 3.1
of *Retrofitting Large Language Models with Dynamic Tokenization* (arXiv 2411.18553). Where the authors count all pairs
again before every merge, here the pairs know their places.

Not here: what becomes of the merged tokens (`mintage.retrofit.dynamic_tokens`).
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Container, Hashable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from mintage.errors import UserError, did_you_mean
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.tokenizer_files import PreTokens

__all__ = [
    "Boundary",
    "DynamicBatch",
    "DynamicTokenizer",
    "Merging",
    "Token",
    "dynamic_merge",
    "pair_rule",
]

Boundary = Literal["pretokens", "word", "word_hyphen", "sentence"]
"""What a merged token may not cross."""

Pair = tuple[int, int]
Rule = Callable[[bytes, bytes], bool]

_SPACES = b" \t\n"
_PUNCTUATION = b".,!?;:()-\"'\\/`$%&*+<=>@[]^_{|}~"
_PAIRS_KEPT = 1 << 17


# -- merging -----------------------------------------------------------------------------------------------------------


class Merging:
    """The adjacent pairs of a batch with their places, kept up to date from merge to merge.

    Every pair knows where it stands and where it stands first, so that a merge costs as much as it replaces, not as
    much as the batch is long.

    Parameters
    ----------
    sequences
        Symbols.
    join
        The symbol that two symbols become, or None where they may not be joined.
    weights
        How often each sequence counts; default once.

    Attributes
    ----------
    merges
        Pairs joined so far, in order.
    lengths
        Total length of all sequences before the first merge and after each.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        join: Callable[[int, int], int | None],
        weights: Sequence[int] | None = None,
    ) -> None:
        self.join = join
        self._start = [symbol for sequence in sequences for symbol in sequence]
        self._lengths = [len(sequence) for sequence in sequences]
        self._symbols = list(self._start)
        count = len(self._symbols)
        self._left, self._right = list(range(-1, count - 1)), list(range(1, count + 1))
        place = 0
        for length in self._lengths:
            if length:
                self._left[place], self._right[place + length - 1] = -1, -1
            place += length
        self._weights = None if weights is None else np.repeat(weights, self._lengths).tolist()
        self._places: dict[Pair, set[int]] = {}
        self._counts: dict[Pair, int] = {}
        self._first: dict[Pair, list[int]] = {}  # heaps; entries that are no places any more are dropped when met
        self._queue: list[tuple[int, int, Pair]] = []  # likewise: minus the count, first place
        self._touched: set[Pair] = set()
        for place in range(count):
            self._add(place)
        self._settle()
        self.merges: list[Pair] = []
        self.lengths = [count]
        self._events: list[tuple[int, int, int]] = []  # place, its new symbol, the place that went into it

    def best(self) -> Pair | None:
        """Return the most frequent pair, the first seen of equals; None if no pair may be joined."""
        while self._queue:
            count, first, pair = self._queue[0]
            if pair in self._places and self._counts[pair] == -count and self._first_of(pair) == first:
                return pair
            heapq.heappop(self._queue)
        return None

    def pairs(self) -> list[Pair]:
        """Return the pairs that may be joined."""
        return list(self._places)

    def merge(self, pair: Pair) -> int:
        """Join a pair everywhere, from left to right, and return in how many places."""
        symbol, before = self.join(*pair), len(self._events)
        if symbol is None:
            raise UserError(f"the pair {pair} may not be joined; pass one of pairs()")
        for place in sorted(self._places.get(pair, ())):
            if place not in self._places.get(pair, ()):  # in "aaa", the second pair went with the first
                continue
            right = self._right[place]
            left, after = self._left[place], self._right[right]
            for changed in (left, place, right):
                self._drop(changed)
            self._symbols[place], self._right[place] = symbol, after
            if after >= 0:
                self._left[after] = place
            self._add(left)
            self._add(place)
            self._events.append((place, symbol, right))
        self._settle()
        self.merges.append(pair)
        self.lengths.append(self.lengths[0] - len(self._events))
        return len(self._events) - before

    def run(self, merges: int | None = None) -> Merging:
        """Join the most frequent pair until this was done `merges` times or no pair is left; return self."""
        while (merges is None or len(self.merges) < merges) and (pair := self.best()) is not None:
            self.merge(pair)
        return self

    def at(self, merges: int) -> tuple[list[list[int]], list[list[int]]]:
        """Return the sequences as they were after some merges, and where each token's first part stood."""
        symbols, gone = list(self._start), set()
        done = self.lengths[0] - self.lengths[merges]
        for place, symbol, absorbed in self._events[:done]:
            symbols[place] = symbol
            gone.add(absorbed)
        sequences, starts, place = [], [], 0
        for length in self._lengths:
            kept = [i for i in range(place, place + length) if i not in gone]
            sequences.append([symbols[i] for i in kept])
            starts.append([i - place for i in kept])
            place += length
        return sequences, starts

    # -- bookkeeping --

    def _pair(self, place: int) -> Pair | None:
        right = self._right[place] if place >= 0 else -1
        return (self._symbols[place], self._symbols[right]) if right >= 0 else None

    def _add(self, place: int) -> None:
        pair = self._pair(place)
        if pair is not None and self.join(*pair) is not None:
            self._places.setdefault(pair, set()).add(place)
            self._counts[pair] = self._counts.get(pair, 0) + (1 if self._weights is None else self._weights[place])
            heapq.heappush(self._first.setdefault(pair, []), place)
            self._touched.add(pair)

    def _drop(self, place: int) -> None:
        pair = self._pair(place)
        if pair is None or place not in self._places.get(pair, ()):
            return
        self._places[pair].remove(place)
        self._counts[pair] -= 1 if self._weights is None else self._weights[place]
        self._touched.add(pair)

    def _settle(self) -> None:
        """Queue the pairs that changed, and forget those that are nowhere."""
        for pair in self._touched:
            if self._places[pair]:
                heapq.heappush(self._queue, (-self._counts[pair], self._first_of(pair), pair))
            else:
                del self._places[pair], self._counts[pair], self._first[pair]
        self._touched.clear()

    def _first_of(self, pair: Pair) -> int:
        heap, places = self._first[pair], self._places[pair]
        while heap[0] not in places:
            heapq.heappop(heap)
        return heap[0]


def pair_rule(
    boundary: Boundary | str,
    pretokens: Callable[[str], Sequence[Any]] | None = None,
    punctuation: Container[bytes] = frozenset(),
) -> Rule:
    """Return the rule that says whether two tokens may become one.

    A token never holds white space behind its first character unless it is white space only; two newlines stay two
    tokens. What is no UTF-8 text yet may be joined, since a character is being completed. Else the boundary decides:

    ``pretokens``
        The two together are one piece for the pre-tokenizer: tokens grow to what the vocabulary could have held.
    ``word``
        They hold one word between white space.
    ``word_hyphen``
        Likewise; of punctuation only a hyphen is joined to what is none.
    ``sentence``
        Anything.

    Parameters
    ----------
    boundary
        One of these.
    pretokens
        Cuts a text as the tokenizer does; needed for ``pretokens``.
    punctuation
        Tokens of the vocabulary that hold punctuation and no digit; for ``word_hyphen``.

    Raises
    ------
    UserError
        The boundary is unknown, or a pre-tokenizer is needed and not given.
    """
    if boundary not in get_args(Boundary):
        raise UserError(f"unknown boundary {boundary!r}; {did_you_mean(str(boundary), get_args(Boundary))}")
    if boundary == "pretokens" and pretokens is None:
        raise UserError("boundary 'pretokens' needs the tokenizer's pre-tokenizer; pass pretokens, or boundary='word'")
    words = pre_tokenizers.WhitespaceSplit().pre_tokenize_str

    def valid(left: bytes, right: bytes) -> bool:
        both = left + right
        if any(byte in _SPACES for byte in both[1:]) and (both == b"\n\n" or both.strip(_SPACES)):
            return False
        if boundary == "sentence":
            return True
        try:
            text = both.decode()
        except UnicodeDecodeError:
            return True
        if boundary == "pretokens" and pretokens is not None:
            return len(pretokens(text)) == 1
        if len(words(text)) != 1:
            return False
        if boundary == "word_hyphen" and left not in punctuation and right in punctuation:
            return right == b"-"
        return True

    return valid


def dynamic_merge(
    token_lists: Sequence[Sequence[bytes]], n_merges: int | None, valid: Rule
) -> tuple[list[list[bytes]], list[tuple[bytes, bytes]]]:
    """Join the most frequent pair of neighbours up to `n_merges` times (None: while there is one).

    Parameters
    ----------
    token_lists
        Tokens of every sequence of the batch, as bytes.
    n_merges
        Merges at most; fewer where no pair is left that may be joined. Pairs that occur once are joined, too.
    valid
        From `pair_rule`.

    Returns
    -------
    list of list of bytes
        The sequences with joined tokens; each joins to the same bytes as before.
    list of pairs
        What was joined, in order.

    Raises
    ------
    UserError
        `n_merges` is negative.
    """
    if n_merges is not None and n_merges < 0:
        raise UserError(f"n_merges={n_merges} is negative; pass 0 for the base tokenization, or more")
    symbols = _Symbols(valid)
    merging = Merging([[symbols.of(token) for token in tokens] for tokens in token_lists], symbols.join).run(n_merges)
    names = symbols.surfaces
    sequences, _ = merging.at(len(merging.merges))
    return [[names[s] for s in sequence] for sequence in sequences], [(names[a], names[b]) for a, b in merging.merges]


class _Symbols:
    """Numbers for the distinct tokens of one batch: those with bytes by their bytes, special ones by their id."""

    def __init__(self, valid: Rule) -> None:
        self.surfaces: list[bytes] = []
        self._valid, self._known = valid, {}
        self._joined: dict[Pair, int | None] = {}

    def of(self, key: Hashable, surface: bytes | None = None) -> int:
        place = self._known.get(key)
        if place is None:
            place = self._known[key] = len(self.surfaces)
            self.surfaces.append(key if surface is None else surface)  # type: ignore[arg-type]
        return place

    def join(self, left: int, right: int) -> int | None:
        try:
            return self._joined[left, right]
        except KeyError:
            a, b = self.surfaces[left], self.surfaces[right]
            joined = self.of(a + b) if a and b and self._valid(a, b) else None
            self._joined[left, right] = joined
            return joined


# -- a tokenizer that merges -------------------------------------------------------------------------------------------


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

    def __init__(self, tokenizer: Any, boundary: Boundary | str = "pretokens") -> None:
        self.tokenizer, self.boundary = tokenizer, boundary
        self.vocabulary = TokenBytes(tokenizer)
        cut, prefix = PreTokens(self.vocabulary.backend), self.vocabulary.prefix
        digits = set(b"0123456789")
        punctuation = frozenset(
            token for token in self.vocabulary.ids if set(_PUNCTUATION).intersection(token) and not digits & set(token)
        )
        # a tokenizer that puts a space before a text would put a second one here
        rule = pair_rule(boundary, lambda text: cut(text.removeprefix(prefix)), punctuation)
        self.valid: Rule = lru_cache(maxsize=_PAIRS_KEPT)(rule)

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

    def symbols(self, ids: Sequence[Sequence[int]], valid: Rule) -> tuple[_Symbols, list[list[int]], dict[int, int]]:
        """Return sequences as symbols for `Merging`, and the original token that each symbol is."""
        symbols, tokens, original = _Symbols(valid), self.vocabulary.tokens, {}
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
        symbols: _Symbols,
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

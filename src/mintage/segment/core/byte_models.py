"""Byte models for arithmetic coding: integer frequencies of the next byte, the same on every machine, in every batch.

An arithmetic coder decodes only if both sides hold bit-identical frequencies. `ByteNGram` keeps counts and uses nothing
but elementwise IEEE arithmetic on them. `ByteGRU` is trained in floating point and then rounded once: its matrix
products are sums of integers below 2**53 in float64, exact in any order and hence in any batch, and its nonlinearities
are integer tables. `ByteModel.checksum` tells a machine, or a file, that differs all the same.

Not here: Transformers (a Transformer fits the `ByteModel` contract, but softmax attention has no such exact form), and
adaptive models, which learn while they code.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer, Num, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mintage.errors import UserError
from mintage.files import parse_json, replace_file
from mintage.options import Options, option
from mintage.progress import Progress, silent
from mintage.segment.contract import as_bytes

__all__ = ["ByteGRU", "ByteModel", "ByteNGram", "GRUSettings", "bits_needed", "quantise_probabilities"]

Bounds = Callable[[int, int], tuple[int, int]]
"""``bounds(begin, position)``: cumulative frequencies below and up to the symbol there, in a window from `begin` on."""

States = Shaped[np.ndarray, "windows ..."]
"""What a model remembers of each window, one row a window."""

_BLOCK = 1 << 22  # bytes of corpus counted at once
_SAVE_EVERY = 16  # blocks
_ROWS = 2048  # frequency rows made at once: 2 MB of cumulative counts a thousand


def quantise_probabilities(
    probabilities: Float[np.ndarray, "*rows alphabet"], total: int
) -> Int[np.ndarray, "*rows alphabet"]:
    """Turn probabilities into integer frequencies of at least 1 that sum to `total`.

    ``floor(p * (total - alphabet)) + 1``; what is missing to `total` goes to the likeliest symbol, the first of equals.

    Raises
    ------
    UserError
        `total` is below the size of the alphabet, or a probability is negative or not finite.
    """
    alphabet = probabilities.shape[-1]
    if total < alphabet:
        raise UserError(f"a total of {total} cannot give {alphabet} symbols a frequency each; use longer windows")
    p = np.asarray(probabilities, dtype=np.float64)
    if not (np.isfinite(p).all() and (p >= 0).all()):
        raise UserError("a probability is negative or not finite; a byte model must give a distribution")
    frequencies = np.floor(p * (total - alphabet)).astype(np.int64) + 1
    likeliest = p.argmax(-1)[..., None]
    missing = total - frequencies.sum(-1, keepdims=True)
    np.put_along_axis(frequencies, likeliest, np.take_along_axis(frequencies, likeliest, -1) + missing, -1)
    return frequencies


def bits_needed(frequencies: Num[np.ndarray, " symbols"], total: int) -> float:
    """Return the ideal code length in bits of symbols that had these frequencies out of `total`."""
    return float(-np.log2(np.asarray(frequencies, dtype=np.float64) / total).sum())


class ByteModel(ABC):
    """The first model (M1): what byte comes next, as integer frequencies.

    Subclasses must give `frequencies`; the vectorised functions have plain defaults made of it, which a fast model
    overrides. They work on *states*: what is known about the text of many windows, one row of an array per window.

    Attributes
    ----------
    total
        What the frequencies of a context sum to.
    alphabet
        How many symbols there are.
    """

    total: int
    alphabet: int = 256

    def reset(self) -> None:  # noqa: B027  # most models have nothing to do
        """Forget the text so far: a window begins."""

    @abstractmethod
    def frequencies(self, context: bytes) -> Int[np.ndarray, " alphabet"]:
        """Return the frequencies of the symbol that follows `context`, the text of the window so far."""

    def start(self, windows: int) -> States:
        """Return the states of windows that begin."""
        states = np.empty(windows, dtype=object)
        states[:] = b""
        return states

    def advance(self, states: States, symbols: Int[np.ndarray, " windows"]) -> States:
        """Return the states after one more symbol in each window."""
        after = np.empty(len(states), dtype=object)
        after[:] = [state + bytes([symbol]) for state, symbol in zip(states, symbols.tolist(), strict=True)]
        return after

    def cumulative(self, states: States) -> Int[np.ndarray, "windows edges"]:
        """Return 0 and the running sums of the frequencies, one row a window."""
        return accumulate(np.stack([self.frequencies(state) for state in states]))

    def states(self, data: bytes) -> Iterator[States]:
        """Yield, in blocks, the state before every byte of `data` read as one window without end."""
        state = self.start(1)
        for begin in range(0, len(data), _ROWS):
            rows = []
            for symbol in data[begin : begin + _ROWS]:
                rows.append(state)
                state = self.advance(state, np.array([symbol]))
            yield np.concatenate(rows)

    def bounds(self, data: bytes) -> Bounds:
        """Return a function that tells the cumulative frequencies around ``data[position]`` in any window."""

        def bounds(begin: int, position: int) -> tuple[int, int]:
            if position == begin:
                self.reset()
            row = self.frequencies(data[begin:position])
            below = int(row[: data[position]].sum())
            return below, below + int(row[data[position]])

        return bounds

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what the model is made of; `checksum` covers it."""
        return {}

    def checksum(self) -> str:
        """Return 16 hexadecimal digits of the model's arrays and of the frequencies that they give on this machine."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        state = self.start(1)
        digest.update(self.cumulative(state).astype("<i8").tobytes())
        symbols = np.arange(self.alphabet)
        state = np.repeat(state, self.alphabet, axis=0)
        for step in (1, 7, 31):
            state = self.advance(state, symbols * step % self.alphabet)
            digest.update(self.cumulative(state).astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def accumulate(frequencies: Int[np.ndarray, "rows alphabet"]) -> Int[np.ndarray, "rows edges"]:
    """Put a 0 before the running sums of each row."""
    edges = np.zeros((len(frequencies), frequencies.shape[1] + 1), dtype=np.int64)
    np.cumsum(frequencies, axis=1, out=edges[:, 1:])
    return edges


def blocks(texts: Iterable[str | bytes], size: int = _BLOCK) -> Iterator[bytes]:
    """Yield the texts, end to end, in blocks of `size` bytes, the last one shorter.

    Raises
    ------
    UserError
        `texts` is one text, or holds a lone surrogate.
    """
    if isinstance(texts, str | bytes):
        raise UserError("a corpus is an iterable of texts, not one text; pass [text], or Corpus(path) for a file")
    held = bytearray()
    for text in texts:
        held += as_bytes(text)
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def mark_of(texts: Any, **settings: Any) -> str:
    """Return what a resumed job compares: the corpus and these settings."""
    return json.dumps([getattr(texts, "fingerprint", ""), sorted(settings.items())])


# -- n-grams -------------------------------------------------------------------------------------------------------


class ByteNGram(ByteModel):
    """The last `order` bytes predict the next one; Witten-Bell interpolation down to the uniform distribution.

    ``p(s | c) = (count(cs) + types(c) p(s | c')) / (count(c) + types(c))``, where ``c'`` is `c` without its first byte
    and ``types(c)`` is how many different bytes followed `c` (Witten and Bell 1991). A string of bytes is the integer
    that a 1 and the bytes after it spell, so that strings of every length have their own numbers.

    Parameters
    ----------
    grams, counts
        Strings of 1 to ``order + 1`` bytes that were seen, as sorted integers, and how often.
    order
        Bytes of context, at most 6.
    total
        What frequencies sum to.
    """

    _MEMO = 1 << 15  # contexts whose frequencies are remembered: 34 MB

    def __init__(
        self, grams: Int[np.ndarray, " grams"], counts: Integer[np.ndarray, " grams"], order: int, total: int
    ) -> None:
        self.grams, self.counts, self.order, self.total = grams, counts, order, total
        if order and (len(grams) != len(counts) or not len(grams) or (np.diff(grams) <= 0).any()):
            raise ValueError("the table of strings is not sorted")
        begins = np.flatnonzero(np.r_[True, np.diff(grams >> 8) > 0])
        self._contexts = grams[begins] >> 8
        self._begins = np.r_[begins, len(grams)]
        self._seen = np.add.reduceat(counts.astype(np.int64), begins)
        self._symbols = grams & 0xFF
        self._forget()

    @classmethod
    def train(
        cls,
        texts: Iterable[str | bytes],
        *,
        order: int = 3,
        total: int = 1 << 15,
        max_strings: int = 16_000_000,
        work: str | Path | None = None,
        progress: Progress = silent,
    ) -> ByteNGram:
        """Count a corpus of any size; documents are read end to end, as one text.

        Parameters
        ----------
        texts
            Documents.
        order, total
            See the class.
        max_strings
            Keep at most about this many of the longest strings: whenever twice as many are held, the rarest are
            dropped there (shorter strings keep their exact counts). Bounds memory: some 50 bytes a string.
        work
            A folder that keeps the counts so far.
        progress
            Told ``("count", bytes, 0)``.

        Raises
        ------
        UserError
            The corpus is empty, `order` is outside 0..6, or `work` belongs to another corpus or order.
        """
        if not 0 <= order <= 6:
            raise UserError(f"order={order} is outside 0..6; pass e.g. 3")
        if max_strings < 1:
            raise UserError(f"max_strings={max_strings}; pass at least 1, e.g. 16000000")
        path = Path(work) / "counts.safetensors" if work else None
        mark = mark_of(texts, order=order, max_strings=max_strings)
        tally = _Tally.read(path, mark) if path and path.exists() else _Tally(order, max_strings)
        for number, block in enumerate(blocks(texts)):
            if number < tally.blocks:
                continue
            tally.count(block)
            progress("count", tally.bytes, 0)
            if path and tally.blocks % _SAVE_EVERY == 0:
                tally.write(path, mark)
        if not tally.bytes:
            raise UserError("the corpus is empty; pass at least one byte of text")
        grams, counts = tally.all_orders()
        if path:
            path.unlink(missing_ok=True)
        return cls(grams, np.minimum(counts, 2**32 - 1).astype(np.uint32), order, total)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the strings and their counts."""
        return {"grams": self.grams, "counts": self.counts}

    def frequencies(self, context: bytes) -> Int[np.ndarray, " alphabet"]:
        """Return the frequencies of the byte after `context`."""
        last = context[-self.order :] if self.order else b""
        return np.diff(self.cumulative(np.array([int.from_bytes(b"\1" + last, "big")]))[0])

    def start(self, windows: int) -> States:
        """Return the number of the empty string for each window."""
        return np.ones(windows, dtype=np.int64)

    def advance(self, states: States, symbols: Int[np.ndarray, " windows"]) -> States:
        """Append a byte to each context, of which the last `order` bytes are kept."""
        return self._last((states << 8) | symbols, self.order)

    @staticmethod
    def _last(keys: Int[np.ndarray, " keys"], length: int) -> Int[np.ndarray, " keys"]:
        """Keep the last `length` bytes of strings that are longer."""
        one = 1 << 8 * length
        return np.where(keys >= one << 8, (keys & (one - 1)) | one, keys)

    def cumulative(self, states: States) -> Int[np.ndarray, "windows edges"]:
        """Return the running sums of frequencies; each different context is worked out once."""
        contexts, inverse = np.unique(states, return_inverse=True)
        known, place = np.unique(self._known(contexts), return_inverse=True)
        return self._remembered(known)[place[inverse]]

    def _known(self, contexts: Int[np.ndarray, " contexts"]) -> Int[np.ndarray, " contexts"]:
        """Shorten contexts until they have been seen; what is not known about the rest changes nothing."""
        contexts = contexts.copy()
        for length in range(self.order, 0, -1):
            places = np.flatnonzero(contexts >= 1 << 8 * length)
            unseen = places[self._find(contexts[places]) < 0]
            contexts[unseen] = self._last(contexts[unseen], length - 1)
        return contexts

    def _find(self, contexts: Int[np.ndarray, " contexts"]) -> Int[np.ndarray, " contexts"]:
        """Return places in the table, -1 for contexts that are not there."""
        places = np.searchsorted(self._contexts, contexts)
        there = self._contexts[np.minimum(places, len(self._contexts) - 1)] == contexts
        return np.where(there, places, -1)

    def _forget(self) -> None:
        self._place: dict[int, int] = {}
        self._memo = np.empty((self._MEMO, self.alphabet + 1), dtype=np.int32)

    def _remembered(self, contexts: Int[np.ndarray, " contexts"]) -> Int[np.ndarray, "contexts edges"]:
        """Return the rows of different contexts, from memory where they have been needed before."""
        missing = [key for key in contexts.tolist() if key not in self._place]
        if len(self._place) + len(missing) > self._MEMO:
            self._forget()
            missing = contexts.tolist()
        rows = [self._row(np.array(missing[i : i + _ROWS])) for i in range(0, len(missing), _ROWS)]
        if len(missing) > self._MEMO:
            return np.concatenate(rows).astype(np.int64)  # too many to remember; these are all that was asked for
        for number, made in enumerate(rows):
            first, keys = len(self._place), missing[number * _ROWS :][: len(made)]
            self._memo[first : first + len(made)] = made
            self._place.update(zip(keys, range(first, first + len(made)), strict=True))
        return self._memo[[self._place[key] for key in contexts.tolist()]].astype(np.int64)

    def _row(self, contexts: Int[np.ndarray, " contexts"]) -> Int[np.ndarray, "contexts edges"]:
        p = np.full((len(contexts), self.alphabet), 1 / self.alphabet)
        for length in range(self.order + 1):
            rows = np.flatnonzero(contexts >= 1 << 8 * length)
            places = self._find(self._last(contexts[rows], length))
            rows, places = rows[places >= 0], places[places >= 0]
            begins, sizes = self._begins[places], self._begins[places + 1] - self._begins[places]
            which = np.repeat(np.arange(len(rows)), sizes)
            entries = np.arange(sizes.sum()) + np.repeat(begins - np.r_[0, np.cumsum(sizes)[:-1]], sizes)
            types = sizes[:, None].astype(np.float64)
            mixed = types * p[rows]
            mixed[which, self._symbols[entries]] += self.counts[entries].astype(np.float64)
            p[rows] = mixed / (self._seen[places][:, None] + types)
        return accumulate(quantise_probabilities(p, self.total)).astype(np.int32)

    def states(self, data: bytes) -> Iterator[States]:
        """Yield the contexts before every byte."""
        for begin in range(0, len(data), _ROWS):
            yield self._contexts_before(data, begin, min(begin + _ROWS, len(data)), self.order)

    def _contexts_before(self, data: bytes, begin: int, end: int, length: int) -> Int[np.ndarray, " positions"]:
        """Return what stands before positions `begin` to `end`: `length` bytes, fewer only at the start of `data`."""
        first = max(begin - length, 0)
        values = np.frombuffer(data, dtype=np.uint8, count=end - first, offset=first).astype(np.int64)
        keys = np.ones(end - begin, dtype=np.int64)
        for back in range(length, 0, -1):
            positions = np.arange(begin, end) - back
            there = positions >= 0
            keys[there] = (keys[there] << 8) | values[positions[there] - first]
        return keys

    def bounds(self, data: bytes) -> Bounds:
        """Work out the bounds of a stretch of bytes for every length of context at once."""
        stretch, last = 1 << 16, self.order
        begins, ends = -1, -1
        below: list[list[int]] = []
        above: list[list[int]] = []

        def load(position: int) -> None:
            nonlocal begins, ends, below, above
            begins, ends = position, min(position + stretch, len(data))
            symbols = np.frombuffer(data, dtype=np.uint8, count=ends - begins, offset=begins).astype(np.int64)
            below, above = [], []
            for length in range(last + 1):
                low, high = self._around(self._contexts_before(data, begins, ends, length), symbols)
                below.append(low.tolist())
                above.append(high.tolist())

        def bounds(begin: int, position: int) -> tuple[int, int]:
            if not begins <= position < ends:
                load(position)
            length = position - begin
            if length > last:
                length = last
            position -= begins
            return below[length][position], above[length][position]

        return bounds

    def _around(
        self, contexts: Int[np.ndarray, " positions"], symbols: Int[np.ndarray, " positions"]
    ) -> tuple[Int[np.ndarray, " positions"], Int[np.ndarray, " positions"]]:
        """Return the cumulative frequencies below and up to each symbol after its context."""
        different, inverse = np.unique(contexts, return_inverse=True)
        known, place = np.unique(self._known(different), return_inverse=True)
        inverse = place[inverse]
        low, high = np.empty(len(symbols), dtype=np.int64), np.empty(len(symbols), dtype=np.int64)
        order = np.argsort(inverse, kind="stable")
        ends = np.searchsorted(inverse[order], np.arange(0, len(known) + _ROWS, _ROWS))
        for number, first in enumerate(range(0, len(known), _ROWS)):
            rows = self._remembered(known[first : first + _ROWS])
            chosen = order[ends[number] : ends[number + 1]]
            low[chosen] = rows[inverse[chosen] - first, symbols[chosen]]
            high[chosen] = rows[inverse[chosen] - first, symbols[chosen] + 1]
        return low, high


def _merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Int[np.ndarray, " merged"], Int[np.ndarray, " merged"]]:
    """Add up counts of the same strings; sorted."""
    keys = np.concatenate([k for k, _ in parts])
    counts = np.concatenate([c for _, c in parts])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    begins = np.flatnonzero(np.r_[True, np.diff(keys) > 0]) if len(keys) else np.empty(0, dtype=np.int64)
    return keys[begins], np.add.reduceat(counts, begins) if len(keys) else counts


def _without_first(keys: Int[np.ndarray, " keys"], length: int) -> Int[np.ndarray, " keys"]:
    """Drop the first byte of strings of `length` bytes."""
    one = 1 << 8 * (length - 1)
    return (keys & (one - 1)) | one


_NOTHING = np.empty(0, dtype=np.int64)


class _Tally:
    """Counts so far: of the longest strings, and of those that were dropped there, one byte shorter."""

    def __init__(self, order: int, max_strings: int) -> None:
        self.order, self.max_strings = order, max_strings
        self.bytes = self.blocks = 0
        self.head = self.tail = b""  # the first bytes of the corpus, and the last
        self.longest = self.dropped = (_NOTHING, _NOTHING)

    def count(self, block: bytes) -> None:
        length = self.order + 1
        self.head = (self.head + block)[:length] if len(self.head) < length else self.head
        data = np.frombuffer(self.tail + block, dtype=np.uint8).astype(np.int64)
        if len(data) >= length:
            keys = np.ones(len(data) - self.order, dtype=np.int64)
            for begin in range(length):
                keys = (keys << 8) | data[begin : begin + len(keys)]
            found, counts = np.unique(keys, return_counts=True)
            self.longest = _merge([self.longest, (found, counts.astype(np.int64))])
        self.tail = (self.tail + block)[-self.order :] if self.order else b""
        self.bytes, self.blocks = self.bytes + len(block), self.blocks + 1
        keys, counts = self.longest
        if self.order and len(keys) > 2 * self.max_strings:
            kept = np.zeros(len(keys), dtype=bool)
            kept[np.argsort(-counts, kind="stable")[: self.max_strings]] = True
            rare = _without_first(keys[~kept], length), counts[~kept]
            self.longest, self.dropped = (keys[kept], counts[kept]), _merge([self.dropped, rare])

    def all_orders(self) -> tuple[Int[np.ndarray, " grams"], Int[np.ndarray, " grams"]]:
        """Return strings of every length. All but the corpus's first bytes end a longer string, too."""
        keys, counts = self.longest
        found = [(keys, counts)]
        for length in range(self.order, 0, -1):
            parts = [_merge([(_without_first(keys, length + 1), counts)])]
            if length == self.order:
                parts.append(self.dropped)
            if len(self.head) >= length:
                first = int.from_bytes(b"\1" + self.head[:length], "big")
                parts.append((np.array([first]), np.array([1])))
            keys, counts = _merge(parts)
            found.append((keys, counts))
        return _merge(found)

    def write(self, path: Path, mark: str) -> None:
        names = ("keys", "counts", "dropped", "dropped_counts")
        arrays: dict[str, np.ndarray] = dict(zip(names, (*self.longest, *self.dropped), strict=True))
        state = {"mark": mark, "order": self.order, "max_strings": self.max_strings, "bytes": self.bytes}
        state |= {"blocks": self.blocks, "head": self.head.hex(), "tail": self.tail.hex()}
        with replace_file(path) as temporary:
            save_file(arrays, temporary, metadata={"state": json.dumps(state)})

    @classmethod
    def read(cls, path: Path, mark: str) -> _Tally:
        try:
            with safe_open(path, framework="np") as file:
                state = parse_json(file.metadata()["state"], str(path))
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tally = cls(state["order"], state["max_strings"])
            tally.bytes, tally.blocks = state["bytes"], state["blocks"]
            tally.head, tally.tail = bytes.fromhex(state["head"]), bytes.fromhex(state["tail"])
            tally.longest = arrays["keys"], arrays["counts"]
            tally.dropped = arrays["dropped"], arrays["dropped_counts"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            raise UserError(f"{path} is not a count that was begun; delete it to start again") from None
        if state["mark"] != mark:
            raise UserError(f"{path} was begun on another corpus or order; delete it, or pass another folder")
        return tally


# -- a recurrent network in integers -------------------------------------------------------------------------------

_ONE = 15  # states and gates are in units of 2**-15
_WEIGHT = 12  # weights in 2**-12, so products and sums in 2**-27
_GRID = 10  # arguments of the tables in 2**-10
_REACH = 8  # beyond it sigmoid and tanh are flat
_DEEPEST = 16  # nats below the likeliest symbol at which a probability stops falling


@dataclass(frozen=True, kw_only=True)
class GRUSettings(Options):
    """Sizes and training of the recurrent network (`mintage.segment.train_byte_gru`)."""

    hidden_size: int = option(512, "Of the network; with embedding_size 64, 1.0 M weights.", least=1)
    embedding_size: int = option(64, "Of the network.", least=1)
    sequence_length: int = option(128, "Of the network: bytes of a training sequence; windows are shorter.", least=1)
    batch_size: int = option(32, "Of the network: sequences per step.", least=1)
    steps: int = option(2000, "Of the network: steps of training.", least=1)
    lr: float = option(2e-3, "Of the network: peak learning rate.", above=0)
    seed: int = option(0, "Of the network.", least=0, below=2**63)


class ByteGRU(ByteModel):
    """A gated recurrent unit (Cho et al. 2014) over bytes, rounded to integers.

    Parameters
    ----------
    arrays
        ``inputs`` (256, 3 hidden) and ``bias`` (3 hidden), in units of 2**-27: what each byte, and nothing, adds to
        reset gate, update gate and candidate; ``recurrent`` (hidden, 3 hidden) and ``output`` (hidden, 256) in units
        of 2**-12; ``output_bias`` (256).
    total
        What frequencies sum to.
    """

    def __init__(self, arrays: dict[str, np.ndarray], total: int) -> None:
        self.total, self._arrays = total, dict(arrays)
        self.inputs, self.bias = arrays["inputs"].astype(np.int64), arrays["bias"].astype(np.int64)
        self.output_bias = arrays["output_bias"].astype(np.int64)
        # integers, held as float64 so that the products run in BLAS: every sum stays below 2**53, hence exact
        self.recurrent, self.output = arrays["recurrent"].astype(np.float64), arrays["output"].astype(np.float64)
        self.hidden_size = len(self.recurrent)
        wide = 3 * self.hidden_size
        shapes = self.inputs.shape, self.bias.shape, self.recurrent.shape, self.output.shape, self.output_bias.shape
        if shapes != ((256, wide), (wide,), (self.hidden_size, wide), (self.hidden_size, 256), (256,)):
            raise ValueError("the arrays of the recurrent model do not fit together")
        arguments = [i / 2**_GRID for i in range(-_REACH << _GRID, (_REACH << _GRID) + 1)]
        self._sigmoid = _table(arguments, lambda x: 1 / (1 + math.exp(-x)), _ONE)
        self._tanh = _table(arguments, math.tanh, _ONE)
        self._exp = _table([-i / 2**_GRID for i in range((_DEEPEST << _GRID) + 1)], math.exp, 30)
        self.reset()

    @classmethod
    def from_float(cls, weights: dict[str, np.ndarray], total: int) -> ByteGRU:
        """Round the weights of ``torch.nn.Embedding``, ``GRU`` (one layer) and ``Linear``, named as in a state dict."""
        w = {name: array.astype(np.float64) for name, array in weights.items()}
        inputs = w["embedding.weight"] @ w["gru.weight_ih_l0"].T + w["gru.bias_ih_l0"]
        fine = _ONE + _WEIGHT
        return cls(
            {
                "inputs": _rounded(inputs, fine, np.int64),
                "bias": _rounded(w["gru.bias_hh_l0"], fine, np.int64),
                "recurrent": _rounded(w["gru.weight_hh_l0"].T, _WEIGHT, np.int16),
                "output": _rounded(w["output.weight"].T, _WEIGHT, np.int16),
                "output_bias": _rounded(w["output.bias"], fine, np.int64),
            },
            total,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the integer weights."""
        return dict(self._arrays)

    def reset(self) -> None:
        """Forget the window that `frequencies` was last asked about."""
        self._context, self._state = b"", self.start(1)

    def frequencies(self, context: bytes) -> Int[np.ndarray, " alphabet"]:
        """Return the frequencies of the byte after `context`; one step where it continues the last call's."""
        if not context.startswith(self._context):
            self.reset()
        for symbol in context[len(self._context) :]:
            self._state = self.advance(self._state, np.array([symbol]))
        self._context = context
        return np.diff(self.cumulative(self._state)[0])

    def start(self, windows: int) -> States:
        """Return empty states, in units of 2**-15."""
        return np.zeros((windows, self.hidden_size), dtype=np.int64)

    def advance(self, states: States, symbols: Int[np.ndarray, " windows"]) -> States:
        """Take one step of the network."""
        given = self.inputs[symbols]
        recalled = (states.astype(np.float64) @ self.recurrent).astype(np.int64) + self.bias
        wide = 2 * self.hidden_size
        gates = self._look_up(self._sigmoid, given[:, :wide] + recalled[:, :wide])
        reset, update = gates[:, : self.hidden_size], gates[:, self.hidden_size :]
        new = self._look_up(self._tanh, given[:, wide:] + (reset * recalled[:, wide:] >> _ONE))
        return (((1 << _ONE) - update) * new + update * states + (1 << _ONE - 1)) >> _ONE

    def _look_up(self, table: Int[np.ndarray, " arguments"], x: Int[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
        reach = _REACH << _GRID
        return table[np.clip(_shifted(x), -reach, reach) + reach]

    def cumulative(self, states: States) -> Int[np.ndarray, "windows edges"]:
        """Return the running sums of frequencies."""
        logits = _shifted((states.astype(np.float64) @ self.output).astype(np.int64) + self.output_bias)
        below = np.minimum(logits.max(-1, keepdims=True) - logits, _DEEPEST << _GRID)
        weights = self._exp[below]
        return accumulate(quantise_probabilities(weights / weights.sum(-1, keepdims=True), self.total))


def _table(arguments: list[float], function: Callable[[float], float], bits: int) -> Int[np.ndarray, " arguments"]:
    return np.array([round(function(x) * 2**bits) for x in arguments], dtype=np.int64)


def _shifted(x: Int[np.ndarray, "*any"]) -> Int[np.ndarray, "*any"]:
    """Round from units of 2**-27 to those of the tables."""
    by = _ONE + _WEIGHT - _GRID
    return (x + (1 << by - 1)) >> by


def _rounded(values: Float[np.ndarray, "*any"], bits: int, dtype: Any) -> Int[np.ndarray, "*any"]:
    info = np.iinfo(dtype)
    return np.clip(np.rint(values * 2.0**bits), info.min, info.max).astype(dtype)

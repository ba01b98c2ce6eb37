"""Equal-Info windows: text as arithmetic code that starts again every `window_bits` bits, so that a model can learn it.

A byte model (M1) predicts the next byte from the text of the current window; an arithmetic coder turns bytes into bits
until the next byte no longer fits into the window; then model and coder both start afresh. Every window is a number of
`window_bits` bits that decodes by itself, and is cut into tokens of `token_bits` bits for a second language model (M2).

The paper leaves open how a window ends. Here the top point of the interval is always kept free as a stop mark. This
makes the numbers of a window and the strings that fit into one a one-to-one map, and the set of these strings closed
under taking prefixes. So coding a text is *greedy longest match* over them: for windows of up to 16 bits all strings
are worked out once, whatever the model, and encoding never asks the model again. Where a window is one token
(16 and 16 bits, the default) that is a tokenizer of 65,536 entries, which `to_hf` writes as a tokenizer.json.

Not here: the second model (any causal language model over the ids), a symbol for the end of a text (the number of
windows says it), and models that see past the window.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt16
from safetensors import SafetensorError, safe_open

from mintage.errors import UserError, missing_extra
from mintage.files import replace_file
from mintage.segment.contract import Progress, Segmenter, Trainer, as_bytes, silent
from mintage.segment.core.byte_models import Bounds, ByteGRU, ByteModel, ByteNGram, bits_needed
from mintage.segment.core.hf import BYTE_CHARS, to_byte_chars

__all__ = [
    "ArithmeticCodec",
    "EqualInfo",
    "EqualInfoSegmenter",
    "GzipCodec",
    "bits_per_byte",
    "code_windows",
    "decode_windows",
    "ideal_bits",
    "read_tokens",
    "total_frequency",
    "window_strings",
    "write_tokens",
]

_TREE_BITS = 16  # windows up to this size: all strings are worked out
_CHUNK = 2048  # windows decoded, or nodes expanded, at once


def total_frequency(window_bits: int) -> int:
    """Return what frequencies sum to: little enough that every symbol fits into an empty window."""
    return 2 ** min(16, window_bits - 1)


# -- the window coder ----------------------------------------------------------------------------------------------


def code_windows(
    bounds: Bounds, start: int, stop: int, window_bits: int, total: int | None = None
) -> tuple[list[int], list[int]]:
    """Code symbols `start` to `stop` into windows, in exact integers.

    An empty window owns the numbers 0 to ``2**window_bits - 1``. A symbol whose cumulative frequencies are `a` to `b`
    takes ``low + a n // total`` to ``low + b n // total - 1`` of the ``n = high - low`` numbers below the top one. The
    window ends before a symbol that would take none, and after one that takes one; its code is its top number.

    Parameters
    ----------
    bounds
        ``bounds(begin, position)``: cumulative frequencies below and up to the symbol at `position`, in a window that
        begun at `begin`.
    start, stop
        Positions.
    window_bits
        Size of a window; any.
    total
        What frequencies sum to, a power of two; default `total_frequency`.

    Returns
    -------
    codes, ends
        One number per window, and the position after its last symbol.
    """
    shift = (total or total_frequency(window_bits)).bit_length() - 1
    top = (1 << window_bits) - 1
    codes, ends = [], []
    begin = start
    while begin < stop:
        low, high, position = 0, top, begin
        while low < high and position < stop:
            below, above = bounds(begin, position)
            n = high - low
            edge, after = low + (below * n >> shift), low + (above * n >> shift)
            if edge == after:
                break
            low, high = edge, after - 1
            position += 1
        codes.append(high)
        ends.append(position)
        begin = position
    return codes, ends


def decode_windows(
    codes: Sequence[int] | np.ndarray, model: ByteModel, window_bits: int
) -> tuple[Int[np.ndarray, " symbols"], Int[np.ndarray, " windows"]]:
    """Decode windows side by side: each needs nothing but itself.

    Returns
    -------
    symbols, lengths
        The symbols of all windows, end to end, and how many are in each.
    """
    pieces = [_decode_chunk(codes[i : i + _CHUNK], model, window_bits) for i in range(0, len(codes), _CHUNK)]
    if not pieces:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    return np.concatenate([s for s, _ in pieces]), np.concatenate([n for _, n in pieces])


def _decode_chunk(
    codes: Sequence[int] | np.ndarray, model: ByteModel, window_bits: int
) -> tuple[Int[np.ndarray, " symbols"], Int[np.ndarray, " windows"]]:
    shift, top = model.total.bit_length() - 1, (1 << window_bits) - 1
    exact: Any = np.int64 if window_bits + shift < 63 else object  # beyond 63 bits in Python's own integers
    code: Any = np.array([int(c) for c in codes], dtype=exact)
    low: Any = np.zeros(len(code), dtype=exact)
    high: Any = np.full(len(code), top, dtype=exact)
    window = np.flatnonzero((code != high).astype(bool))
    states = model.start(len(window))
    found: list[np.ndarray] = []
    where: list[np.ndarray] = []
    while len(window):
        a, n = low[window], high[window] - low[window]
        # the last symbol whose edge, low + C n >> shift, is not above the code
        reach = (((code[window] - a + 1) << shift) - 1) // n
        edges = model.cumulative(states)
        symbols = (edges[:, 1:] <= reach.astype(np.int64)[:, None]).sum(1)
        rows = np.arange(len(window))
        low[window] = a + (edges[rows, symbols].astype(exact) * n >> shift)
        high[window] = a + (edges[rows, symbols + 1].astype(exact) * n >> shift) - 1
        found.append(symbols)
        where.append(window)
        going = ((low[window] < high[window]) & (code[window] != high[window])).astype(bool)
        states, window = model.advance(states[going], symbols[going]), window[going]
    if not found:
        return np.empty(0, dtype=np.int64), np.zeros(len(code), dtype=np.int64)
    windows = np.concatenate(where)
    lengths = np.bincount(windows, minlength=len(code))
    return np.concatenate(found)[np.argsort(windows, kind="stable")], lengths


def window_strings(model: ByteModel, window_bits: int) -> list[bytes]:
    """Work out the string of every code, level by level; that of the last code is empty.

    Every code is the top number of exactly one reachable interval, and every interval of exactly one string, so no two
    codes share one; and dropping the last byte of a string gives the interval around it.
    """
    shift, top = model.total.bit_length() - 1, (1 << window_bits) - 1
    strings = [b""] * (top + 1)
    low, high, states = np.zeros(1, dtype=np.int64), np.full(1, top), model.start(1)
    while len(low):
        levels = []
        for first in range(0, len(low), _CHUNK):
            rows = slice(first, first + _CHUNK)
            n = (high[rows] - low[rows])[:, None]
            edges = low[rows][:, None] + (model.cumulative(states[rows]) * n >> shift)
            parent, symbol = np.nonzero(edges[:, 1:] > edges[:, :-1])
            below, above = edges[parent, symbol], edges[parent, symbol + 1] - 1
            for code, of, byte in zip(above.tolist(), high[rows][parent].tolist(), symbol.tolist(), strict=True):
                strings[code] = strings[of] + bytes((byte,))
            inner = below < above
            after = model.advance(states[rows][parent[inner]], symbol[inner])
            levels.append((below[inner], above[inner], after))
        low, high, states = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    return strings


# -- the segmenter -------------------------------------------------------------------------------------------------


class EqualInfoSegmenter(Segmenter):
    """Bytes to tokens of equal information and back.

    Parameters
    ----------
    model
        The byte model, whose frequencies sum to ``total_frequency(window_bits)``.
    window_bits, token_bits
        Size of a window, and of the tokens that it is cut into, first bits first.

    Raises
    ------
    UserError
        The sizes do not fit together.
    """

    method = "equal-info"

    def __init__(self, model: ByteModel, window_bits: int = 16, token_bits: int = 16) -> None:
        _check_sizes(window_bits, token_bits)
        if model.total != total_frequency(window_bits):
            raise UserError(
                f"the model's frequencies sum to {model.total}, windows of {window_bits} bits need "
                f"{total_frequency(window_bits)}; train the model for these windows"
            )
        self.model, self.window_bits, self.token_bits = model, window_bits, token_bits

    @property
    def vocab_size(self) -> int:
        """Two to the power of `token_bits`."""
        return 1 << self.token_bits

    @property
    def tokens_per_window(self) -> int:
        """How many ids make a window."""
        return self.window_bits // self.token_bits

    @cached_property
    def _strings(self) -> list[bytes]:
        return window_strings(self.model, self.window_bits)

    @cached_property
    def _matcher(self) -> Any:
        try:
            import ahocorasick_rs
        except ModuleNotFoundError:
            raise missing_extra("ahocorasick_rs", "segment") from None
        # the last string is empty and never coded; the others stand at their codes
        return ahocorasick_rs.BytesAhoCorasick(self._strings[:-1], matchkind=ahocorasick_rs.MatchKind.LeftmostLongest)

    def tokens(self) -> list[bytes] | None:
        """Return the string of every id where a window is one token (up to 16 bits), else None.

        The last id's is empty: a window that stops before its first byte, which encoding never gives.
        """
        whole = self.tokens_per_window == 1 and self.window_bits <= _TREE_BITS
        return list(self._strings) if whole else None

    def _windows(self, data: bytes, cuts: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
        """Yield the codes and ends of the windows of each stretch between `cuts`."""
        if self.window_bits <= _TREE_BITS:
            for start, stop in pairwise(cuts):
                found = self._matcher.find_matches_as_indexes(data[start:stop])
                yield [code for code, _, _ in found], [start + end for _, _, end in found]
            return
        bounds = self.model.bounds(data)
        for start, stop in pairwise(cuts):
            yield code_windows(bounds, start, stop, self.window_bits, self.model.total)

    def encode_windows(self, data: str | bytes) -> list[int]:
        """Return the number of each window, below ``2**window_bits``."""
        data = as_bytes(data)
        return next(iter(self._windows(data, [0, len(data)])))[0]

    def window_spans(self, data: str | bytes) -> list[tuple[int, int]]:
        """Return the first byte of each window and the one after its last. Characters may straddle windows."""
        data = as_bytes(data)
        ends = next(iter(self._windows(data, [0, len(data)])))[1]
        return list(zip([0, *ends], ends, strict=False))

    def encode_bytes(self, data: bytes) -> list[int]:
        """Code bytes; the last window may be only partly used."""
        return self._ids(self.encode_windows(data))

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """Code many texts, each from an empty window."""
        batch = [as_bytes(text) for text in texts]
        cuts = np.cumsum([0, *map(len, batch)]).tolist()
        return [self._ids(codes) for codes, _ in self._windows(b"".join(batch), cuts)]

    def _ids(self, codes: list[int]) -> list[int]:
        if self.tokens_per_window == 1:
            return codes
        mask, bits = self.vocab_size - 1, self.token_bits
        shifts = range(self.window_bits - bits, -1, -bits)
        return [code >> by & mask for code in codes for by in shifts]

    def _codes(self, ids: Sequence[int]) -> list[int]:
        self.check_ids(ids)
        size = self.tokens_per_window
        if len(ids) % size:
            raise UserError(f"{len(ids)} ids are no whole windows of {size}; pass a multiple of {size}")
        codes = []
        for begin in range(0, len(ids), size):
            code = 0
            for token in ids[begin : begin + size]:
                code = code << self.token_bits | int(token)
            codes.append(code)
        return codes

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes. Windows are independent: ids from a model, too, decode to something.

        Raises
        ------
        UserError
            An id is not in the vocabulary, or the last window is not whole.
        """
        codes = self._codes(ids)
        if self.window_bits <= _TREE_BITS:
            return b"".join(map(self._strings.__getitem__, codes))
        return decode_windows(codes, self.model, self.window_bits)[0].astype(np.uint8).tobytes()

    def decode_window(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of one window, by itself.

        Raises
        ------
        UserError
            `ids` are not one window.
        """
        if len(ids) != self.tokens_per_window:
            raise UserError(f"{len(ids)} ids are not one window; a window is {self.tokens_per_window}")
        return self.decode_bytes(ids)

    def to_hf(self) -> Any:
        """Return a fast tokenizer with the same ids, where a window is one token of up to 16 bits.

        One regular expression spells the tree of all strings, so that its matches are the longest ones.
        """
        strings = self.tokens()
        if strings is None:
            raise UserError(
                f"windows of {self.window_bits} bits in tokens of {self.token_bits} have no tokenizer.json: an id "
                "means nothing by itself; use window_bits=16 and token_bits=16"
            )
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {to_byte_chars(string): code for code, string in enumerate(strings)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
        try:
            split = pre_tokenizers.Split(Regex(_longest_match(strings)), behavior="isolated")
        except Exception as error:  # the library raises plain Exceptions
            reason = str(error).splitlines()[0]
            raise UserError(f"the strings of these windows are too long for a tokenizer.json ({reason})") from None
        bytes_first = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([bytes_first, split])
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the sizes, the byte model and its checksum."""
        if isinstance(self.model, ByteNGram):
            about: dict[str, Any] = {"model": "ngram", "order": self.model.order}
        elif isinstance(self.model, ByteGRU):
            about = {"model": "gru"}
        else:
            raise UserError(f"a {type(self.model).__name__} cannot be saved; save it yourself and make this again")
        sizes = {"window_bits": self.window_bits, "token_bits": self.token_bits}
        return {**sizes, **about, "checksum": self._checksum}, self.model.arrays()

    @cached_property
    def _checksum(self) -> str:
        return self.model.checksum()

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> EqualInfoSegmenter:
        """Make the segmenter again, and check that its model gives the frequencies that it gave where it was saved."""
        total = total_frequency(values["window_bits"])
        model: ByteModel
        if values["model"] == "ngram":
            model = ByteNGram(arrays["grams"], arrays["counts"], values["order"], total)
        else:
            model = ByteGRU(arrays, total)
        segmenter = cls(model, values["window_bits"], values["token_bits"])
        if segmenter._checksum != values["checksum"]:
            raise UserError(
                f"the byte model has checksum {segmenter._checksum} here, {values['checksum']} where it was saved; the "
                "file is damaged, or this machine computes otherwise: what was coded there cannot be decoded here"
            )
        return segmenter


def _check_sizes(window_bits: int, token_bits: int) -> None:
    if window_bits < 10:
        raise UserError(f"window_bits={window_bits} is below 10, too little for a byte; pass e.g. 16")
    if not 1 <= token_bits <= 16 or window_bits % token_bits:
        raise UserError(
            f"token_bits={token_bits} does not cut windows of {window_bits} bits; pass a divisor of up to 16, e.g. 8"
        )


def _longest_match(strings: list[bytes]) -> str:
    """Write a tree of strings as a regular expression: after each byte, one of its continuations if any fits."""
    children: dict[bytes, list[int]] = {}
    for string in sorted(strings):
        if string:
            children.setdefault(string[:-1], []).append(string[-1])
    patterns: dict[bytes, str] = {}
    for string in sorted(children, key=len, reverse=True):  # from the leaves to the root
        leaves, branches = "", []
        for byte in children[string]:
            more = patterns.pop(string + bytes((byte,)), None)
            char = re.escape(BYTE_CHARS[byte])
            if more is None:
                leaves += char
            else:
                branches.append(f"{char}(?:{more})?")
        patterns[string] = "|".join([*branches, f"[{leaves}]"] if leaves else branches)
    return patterns[b""]


# -- the trainer ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EqualInfo(Trainer):
    """Train a byte model and code text with it in windows of equal information.

    The paper's model is a Transformer of 3 M weights trained on sequences of 1024 bytes. Here an n-gram is the default,
    which trains in seconds and codes exactly; a recurrent network is the alternative.

    Parameters
    ----------
    window_bits
        Bits of a window; the paper tries 16, 32, 64 and 128 and recommends 16.
    token_bits
        Bits of a token, a divisor of `window_bits`: 16, or 8 for a vocabulary of 256.
    model
        ``"ngram"`` or ``"gru"``.
    order, max_strings
        Of the n-gram: bytes of context, and the bound on its table.
    hidden_size, embedding_size, sequence_length, batch_size, steps, lr, seed
        Of the recurrent network and its training.

    Raises
    ------
    UserError
        A size is out of range.
    """

    window_bits: int = 16  # the paper tries 16, 32, 64 and 128 and recommends 16
    token_bits: int = 16  # 16, or 8 for a vocabulary of 256
    model: Literal["ngram", "gru"] = "ngram"
    order: int = 3  # n-gram: bytes of context
    max_strings: int = 16_000_000  # n-gram: bound on the table
    hidden_size: int = 512  # gru: these and the next make 1.0 M weights
    embedding_size: int = 64  # gru
    sequence_length: int = 128  # gru: bytes of text per training sequence; windows are shorter
    batch_size: int = 32  # gru
    steps: int = 2000  # gru
    lr: float = 2e-3  # gru
    seed: int = 0  # gru

    def __post_init__(self) -> None:
        _check_sizes(self.window_bits, self.token_bits)
        if self.model not in ("ngram", "gru"):
            raise UserError(f"model={self.model!r} is unknown; use 'ngram' or 'gru'")
        if not 0 <= self.order <= 6:
            raise UserError(f"order={self.order} is outside 0..6; pass e.g. 3")

    def train(
        self, texts: Iterable[str], *, work: str | Path | None = None, progress: Progress = silent
    ) -> EqualInfoSegmenter:
        """Train the byte model; see `ByteNGram.train` and `ByteGRU.train` for `work`, `progress` and errors."""
        total = total_frequency(self.window_bits)
        model: ByteModel
        if self.model == "ngram":
            model = ByteNGram.train(
                texts, order=self.order, max_strings=self.max_strings, total=total, work=work, progress=progress
            )
        else:
            names = ("hidden_size", "embedding_size", "sequence_length", "batch_size", "steps", "lr", "seed")
            settings = {name: getattr(self, name) for name in names}
            model = ByteGRU.train(texts, total=total, work=work, progress=progress, **settings)
        return EqualInfoSegmenter(model, self.window_bits, self.token_bits)

    @classmethod
    def tiny(cls) -> EqualInfo:
        """Two bytes of context."""
        return cls(order=2)


# -- the baselines: one code without windows, and gzip -------------------------------------------------------------


@dataclass(frozen=True)
class ArithmeticCodec:
    """Plain arithmetic coding: one code for a whole text, the model never reset (range coder of ``constriction``).

    Parameters
    ----------
    model
        A byte model.
    token_bits
        8 or 16.
    """

    model: ByteModel
    token_bits: int = 8

    def __post_init__(self) -> None:
        if self.token_bits not in (8, 16):
            raise UserError(f"token_bits={self.token_bits}; the coder's 32-bit words are cut into 8 or 16")

    @property
    def vocab_size(self) -> int:
        """256 or 65,536."""
        return 1 << self.token_bits

    def encode(self, text: str | bytes) -> list[int]:
        """Code a text or bytes; decoding needs to know how many bytes they were."""
        stream, family = _constriction()
        data, done = as_bytes(text), 0
        encoder = stream.queue.RangeEncoder()
        for states in self.model.states(data):
            rows = np.diff(self.model.cumulative(states)) / self.model.total
            symbols = np.frombuffer(data, dtype=np.uint8, count=len(rows), offset=done).astype(np.int32)
            encoder.encode(symbols, family, rows.astype(np.float32))  # exact: 16 bits fit into float32
            done += len(rows)
        words = encoder.get_compressed() if data else np.empty(0, dtype=np.uint32)
        return np.frombuffer(words.astype(">u4").tobytes(), dtype=f">u{self.token_bits // 8}").tolist()

    def decode(self, ids: Sequence[int], length: int) -> bytes:
        """Return the `length` bytes that were coded."""
        return self.decode_batch([ids], [length])[0]

    def decode_batch(self, batch: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[bytes]:
        """Decode texts side by side: within one, every byte waits for the byte before.

        Raises
        ------
        UserError
            An id is not in the vocabulary, or a text is not whole 32-bit words.
        """
        stream, _ = _constriction()
        decoders = []
        for ids in batch:
            if len(ids) and not 0 <= min(ids) <= max(ids) < self.vocab_size:
                raise UserError(f"an id is outside this vocabulary of {self.vocab_size}")
            raw = np.array(ids, dtype=f">u{self.token_bits // 8}").tobytes()
            if len(raw) % 4:
                raise UserError(f"{len(ids)} ids are no whole 32-bit words; pass all ids of a text")
            decoders.append(stream.queue.RangeDecoder(np.frombuffer(raw, dtype=">u4").astype(np.uint32)))
        texts = [bytearray() for _ in decoders]
        going = np.flatnonzero(np.array(lengths) > 0)
        states = self.model.start(len(going))
        while len(going):
            rows = (np.diff(self.model.cumulative(states)) / self.model.total).astype(np.float32)
            symbols = [
                decoders[text].decode(stream.model.Categorical(row, perfect=False))
                for text, row in zip(going.tolist(), rows, strict=True)
            ]
            for text, symbol in zip(going.tolist(), symbols, strict=True):
                texts[text].append(symbol)
            more = np.array([len(texts[text]) < lengths[text] for text in going.tolist()])
            states, going = self.model.advance(states[more], np.array(symbols)[more]), going[more]
        return [bytes(text) for text in texts]


def _constriction() -> tuple[Any, Any]:
    try:
        from constriction import stream  # type: ignore[attr-defined]  # a compiled module
    except ModuleNotFoundError:
        raise missing_extra("constriction", "segment") from None
    return stream, stream.model.Categorical(perfect=False)


class GzipCodec:
    """gzip's algorithm (DEFLATE, level 9) as a code over 256 ids: the compressor that needs no model."""

    vocab_size = 256

    def encode(self, text: str | bytes) -> list[int]:
        """Compress a text or bytes."""
        return list(zlib.compress(as_bytes(text), 9, wbits=-15))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes again.

        Raises
        ------
        UserError
            `ids` are no whole text that was compressed.
        """
        try:
            return zlib.decompress(bytes(ids), wbits=-15)
        except (zlib.error, ValueError):
            raise UserError("these ids are no compressed text; pass all ids of one text") from None


def ideal_bits(model: ByteModel, data: str | bytes) -> float:
    """Return the code length of `data` under the model without windows: what plain arithmetic coding comes close to."""
    data, bits, done = as_bytes(data), 0.0, 0
    for states in model.states(data):
        edges = model.cumulative(states)
        rows = np.arange(len(edges))
        symbols = np.frombuffer(data, dtype=np.uint8, count=len(rows), offset=done).astype(np.int64)
        bits += bits_needed(edges[rows, symbols + 1] - edges[rows, symbols], model.total)
        done += len(rows)
    return bits


# -- what a second model is trained on -----------------------------------------------------------------------------


def bits_per_byte(loss: float, n_tokens: int, n_bytes: int) -> float:
    """Turn the mean loss of a model over tokens, in nats, into bits per byte of the text that they stand for.

    Raises
    ------
    UserError
        There are no bytes.
    """
    if n_bytes < 1 or n_tokens < 0:
        raise UserError(f"{n_tokens} tokens for {n_bytes} bytes; count the tokens of at least one byte")
    return loss / float(np.log(2)) * n_tokens / n_bytes


_HEADER = 1024  # bytes kept for the header, which is known only at the end


def write_tokens(
    segmenter: Any,
    texts: Iterable[str | bytes],
    path: str | Path,
    *,
    document_bytes: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
    """Tokenise a corpus of any size into one safetensors file: ``ids`` (uint16) and ``starts`` (int64, of documents).

    Its metadata say ``tokens``, ``bytes`` and ``vocab_size``, which is what `bits_per_byte` needs.

    Parameters
    ----------
    segmenter
        Anything with ``encode(text) -> ids`` and ``vocab_size``, at most 65,536.
    texts
        Documents.
    path
        File to write, whole or not at all.
    document_bytes
        Join texts to documents of about this many bytes, where they are lines of something; None keeps each by itself.
    progress
        Told how many bytes are done.

    Returns
    -------
    tokens, bytes
        How many there are.

    Raises
    ------
    UserError
        The vocabulary is too large, or there is no text.
    """
    if segmenter.vocab_size > 1 << 16:
        raise UserError(f"a vocabulary of {segmenter.vocab_size} does not fit into 16 bits; use at most 65536 ids")
    if document_bytes is not None and document_bytes < 1:
        raise UserError(f"document_bytes={document_bytes}; pass at least 1, or None")
    starts: list[int] = []
    tokens = size = 0
    with replace_file(path) as temporary, temporary.open("wb") as file:
        file.write(bytes(_HEADER))
        for document in _documents(texts, document_bytes):
            ids = segmenter.encode(document)
            starts.append(tokens)
            file.write(np.asarray(ids, dtype="<u2").tobytes())
            tokens, size = tokens + len(ids), size + len(document)
            progress(size)
        if not size:
            raise UserError("the corpus is empty; pass at least one byte of text")
        gap = -2 * tokens % 8  # tensors begin at multiples of their size
        first = 2 * tokens
        if gap:
            file.write(bytes(gap))
        file.write(np.array(starts, dtype="<i8").tobytes())
        told = {"tokens": tokens, "bytes": size, "vocab_size": segmenter.vocab_size}
        header: dict[str, Any] = {"__metadata__": {name: str(value) for name, value in told.items()}}
        header["ids"] = {"dtype": "U16", "shape": [tokens], "data_offsets": [0, first]}
        if gap:  # the format allows no holes
            header["gap"] = {"dtype": "U8", "shape": [gap], "data_offsets": [first, first + gap]}
        begin = first + gap
        header["starts"] = {"dtype": "I64", "shape": [len(starts)], "data_offsets": [begin, begin + 8 * len(starts)]}
        text = json.dumps(header).encode()
        file.seek(0)
        file.write(struct.pack("<Q", _HEADER - 8) + text.ljust(_HEADER - 8))
    return tokens, size


def _documents(texts: Iterable[str | bytes], size: int | None) -> Iterable[bytes]:
    held: list[bytes] = []
    length = 0
    for text in texts:
        held.append(as_bytes(text))
        length += len(held[-1])
        if size is None or length >= size:
            yield b"".join(held)
            held, length = [], 0
    if held:
        yield b"".join(held)


def read_tokens(path: str | Path) -> tuple[UInt16[np.ndarray, " tokens"], dict[str, int]]:
    """Read the ids that `write_tokens` wrote, and its numbers of ``tokens`` and ``bytes`` and the ``vocab_size``.

    Raises
    ------
    UserError
        There is no such file, or it is something else.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            return file.get_tensor("ids"), {name: int(metadata[name]) for name in ("tokens", "bytes", "vocab_size")}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no file of tokens ({error}); write it with write_tokens") from None

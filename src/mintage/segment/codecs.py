"""Codes to set beside Equal-Info windows: plain arithmetic coding, gzip, and the length that no code falls below."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mintage.errors import UserError, missing_extra
from mintage.segment.contract import as_bytes
from mintage.segment.core.byte_models import ByteModel, bits_needed

__all__ = ["ArithmeticCodec", "GzipCodec", "ideal_bits"]


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

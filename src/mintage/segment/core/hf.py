"""One segmenter for everything that a byte-level `tokenizers.Tokenizer` can say: baselines and exporting methods.

The vocabulary is written in the 256 ByteLevel characters (GPT-2's printable stand-ins for bytes) and holds each of them
alone, so that nothing is ever unknown. The library reads only text; bytes that are not UTF-8 become single-byte tokens
here, between the runs of text around them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers

from mintage.errors import UserError
from mintage.segment.contract import Segmenter, as_bytes
from mintage.tokenizer_files.letters import BYTE_CHARS

__all__ = ["HFSegmenter", "byte_level", "from_byte_chars", "to_byte_chars"]


_BYTE_OF = {char: byte for byte, char in enumerate(BYTE_CHARS)}
_NOT_UTF8 = re.compile("([\udc80-\udcff]+)")


def to_byte_chars(data: str | bytes) -> str:
    """Write bytes, or the UTF-8 of a text, in ByteLevel characters."""
    return "".join(map(BYTE_CHARS.__getitem__, as_bytes(data)))


def from_byte_chars(token: str) -> bytes:
    """Read a vocabulary string back; a KeyError names a character that stands for no byte."""
    return bytes(map(_BYTE_OF.__getitem__, token))


def byte_level(model: Any, *splits: Any, regex: bool = False) -> Tokenizer:
    """Put a model into a byte-level tokenizer.

    Parameters
    ----------
    model
        A model of `tokenizers.models` over ByteLevel characters.
    *splits
        Pre-tokenizers that cut the text before its bytes become characters.
    regex
        Whether to cut with GPT-2's pattern (words with the space before them, numbers, punctuation, white space).
    """
    tokenizer = Tokenizer(model)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


class HFSegmenter(Segmenter):
    """A byte-level `tokenizers.Tokenizer` under the contract. A method's own class sets `method`.

    Parameters
    ----------
    tokenizer
        Made with `byte_level`: no normalizer, no added tokens, and all 256 ByteLevel characters in the vocabulary.

    Raises
    ------
    UserError
        The vocabulary lacks a byte, holds a string that is not written in ByteLevel characters, or has gaps in its ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise UserError("the vocabulary's ids have gaps; number them from 0")
        absent = [b for b in range(256) if BYTE_CHARS[b] not in vocabulary]
        if absent:
            raise UserError(
                f"the vocabulary lacks byte 0x{absent[0]:02x}; a lossless one holds all 256 ByteLevel characters"
            )
        try:
            by_id = sorted(vocabulary, key=vocabulary.__getitem__)
            self._tokens = [from_byte_chars(token) for token in by_id]
        except KeyError as error:
            raise UserError(f"the vocabulary holds {error}, which is no ByteLevel character") from None
        self._byte_ids = [vocabulary[char] for char in BYTE_CHARS]

    @property
    def vocab_size(self) -> int:
        """Entries, the 256 bytes included."""
        return len(self._tokens)

    def tokens(self) -> list[bytes]:
        """Return the bytes of every id."""
        return list(self._tokens)

    def encode(self, text: str | bytes) -> list[int]:
        """Cut a text, or bytes."""
        if isinstance(text, bytes):
            return self.encode_bytes(text)
        as_bytes(text)  # tells a lone surrogate
        return self._encode_texts([text])[0]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Cut bytes: what is UTF-8 in them as text, the rest into single bytes."""
        text = data.decode("utf-8", errors="surrogateescape")
        parts = _NOT_UTF8.split(text)
        if len(parts) == 1:
            return self._encode_texts([text])[0]
        ids: list[int] = []
        for place, cut in enumerate(self._encode_texts(parts[::2])):
            ids += cut
            if 2 * place + 1 < len(parts):
                ids += [self._byte_ids[ord(char) - 0xDC00] for char in parts[2 * place + 1]]
        return ids

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """Cut many texts at once, on as many threads as tokenizers is allowed (``RAYON_NUM_THREADS``)."""
        batch = list(texts)
        if any(isinstance(text, bytes) for text in batch):
            return [self.encode(text) for text in batch]
        for text in batch:
            as_bytes(text)
        return self._encode_texts(batch)

    def _encode_texts(self, texts: Sequence[Any]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Join the ids' bytes."""
        self.check_ids(ids)
        return b"".join(map(self._tokens.__getitem__, ids))

    def to_hf(self) -> Any:
        """Return a ``transformers.PreTrainedTokenizerFast`` with the same ids; it reads text, not bytes."""
        from transformers import PreTrainedTokenizerFast

        copy = Tokenizer.from_str(self._json)
        return PreTrainedTokenizerFast(tokenizer_object=copy, clean_up_tokenization_spaces=False)

    @cached_property
    def _json(self) -> str:
        return self.tokenizer.to_str()

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the tokenizer.json."""
        return {"tokenizer": json.loads(self._json)}, {}

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> HFSegmenter:
        """Read the tokenizer.json again."""
        held = json.dumps(values["tokenizer"])
        try:
            tokenizer = Tokenizer.from_str(held)
        except Exception as error:  # the library raises plain Exceptions
            raise ValueError(str(error).splitlines()[0]) from None
        return cls(tokenizer)

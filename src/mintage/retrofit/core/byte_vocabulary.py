"""The tokens of a tokenizer as bytes, its canonical encodings of bytes, and which tokens may follow one."""

from __future__ import annotations

import bisect
import codecs
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from mintage.errors import UserError
from mintage.retrofit.contract import END
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.core.validity import ASK, Validity
from mintage.tokenizer_files import without_dropout

__all__ = ["ByteVocabulary", "Tokens", "ends_a_character"]

Tokens = tuple[int, ...]

_SEPARATORS = 2  # words of context in which an encoding is checked
_KEPT = 512  # masks remembered
_FOLLOWERS = (b"a", b"0", b"(")
"""What may follow white space: a letter, a digit, anything else."""


class ByteVocabulary:
    """The tokens of a tokenizer as bytes, and its canonical encoding of bytes.

    Parameters
    ----------
    tokenizer
        Encodes text; special tokens written in a text are text.
    tokens
        Bytes of every token; empty for one that stands for none.
    decode
        From bytes to the tokenizer's text; raises `UnicodeDecodeError` on bytes that are no text.
    prefix
        Bytes that the tokenizer puts in front of every text (a space, in some SentencePiece models).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: Sequence[bytes],
        decode: Callable[[bytes], str] = bytes.decode,
        prefix: bytes = b"",
    ) -> None:
        self.tokenizer = without_dropout(Tokenizer.from_str(tokenizer.to_str()))
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokens, self.decode, self.prefix = list(tokens), decode, prefix
        self.length = np.array([len(token) for token in tokens])
        self.first = np.array([token[0] if token else END for token in tokens])
        self._flat = np.frombuffer(b"".join(tokens), np.uint8)
        self._offset = np.concatenate(([0], self.length.cumsum()[:-1]))
        pairs = sorted((token, i) for i, token in enumerate(tokens) if token)
        self._sorted, self._ids = [token for token, _ in pairs], np.array([i for _, i in pairs])
        self._blank = np.array([token.isspace() for token in tokens])
        self.longest = int(self.length.max())
        self._cuts = None if self.tokenizer.normalizer is not None else self.tokenizer.pre_tokenizer
        self._masks: OrderedDict[Tokens, NDArray[np.int8]] = OrderedDict()

    @cached_property
    def _validity(self) -> Validity | None:
        if self.decode is not bytes.decode:
            return None
        return Validity.of(self.tokenizer, self.tokens, self._completions)

    @classmethod
    def of(cls, tokenizer: Any) -> ByteVocabulary:
        """Read a fast tokenizer of transformers, or one of ``tokenizers``.

        Raises
        ------
        UserError
            It is neither byte-level nor has a byte fallback.
        """
        held = TokenBytes(tokenizer)
        if not held.writes_all:
            raise UserError(
                "this tokenizer is neither byte-level nor has a byte fallback, so it cannot write every text; pass a "
                "byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) or SentencePiece with byte fallback (Llama 2, Gemma)"
            )
        return cls(held.backend, held.tokens, prefix=held.prefix.encode())

    @classmethod
    def tiny(cls) -> ByteVocabulary:
        """Make one of words over the letters ``a`` and ``b``."""
        names = ["a", "b", "ab", "ba", "aba", "bb"]
        merges = [("a", "b"), ("b", "a"), ("ab", "a"), ("b", "b")]
        tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
        return cls(tokenizer, [name.encode() for name in names])

    @property
    def missing(self) -> list[int]:
        """Bytes that no token ends or begins with alone: texts that need them have probability 0."""
        return sorted(set(range(256)) - {token[0] for token in self.tokens if len(token) == 1})

    # -- canonical encodings --

    def encode(self, text: bytes) -> Tokens | None:
        """Return the canonical encoding, or None where none ends at the last byte (within a character)."""
        if not text:
            return ()
        found = (self._begin(whole, len(text)) for whole in self._completions(text))
        return next((tokens for tokens in found if tokens is not None), None)

    def encodings(self, text: bytes) -> list[Tokens]:
        """Return what encodings of longer texts begin with that end where this one does, the canonical one first.

        There are others where white space is cut otherwise when something follows: GPT-2's pattern leaves the last of
        several line breaks, and of several spaces, to what comes after them.
        """
        tokens = self.encode(text)
        found = [] if tokens is None else [tokens]
        for follower in _FOLLOWERS if text[-2:].isspace() and len(text) > 1 else ():
            other = self._encoded_before(text, follower)[0]
            if other is not None and other not in found:
                found.append(other)
        return found

    def _encoded_before(self, text: bytes, follower: bytes) -> tuple[Tokens | None, bool]:
        """Encode a text that goes on so, up to where it ends; and whether a word starts there, or did before."""
        try:
            string = self.decode(text.removeprefix(self.prefix))
        except UnicodeDecodeError:
            return None, False
        if not self._cuts:
            return None, False
        whole = string + follower.decode()
        start = max(at for _, (at, _) in self._cuts.pre_tokenize_str(whole) if at <= len(string))
        rest = string[start:].encode()
        head = self._begin(whole, len(text) - len(rest)) if len(text) > len(rest) else ()
        tail = self.encode(rest)
        return (None if head is None or tail is None else (*head, *tail)), not rest

    def _begin(self, whole: str, size: int) -> Tokens | None:
        ids = self.tokenizer.encode(whole, add_special_tokens=False).ids
        ends = self.length[ids].cumsum() if ids else np.zeros(0, int)
        last = int(np.searchsorted(ends, size))
        return tuple(ids[: last + 1]) if last < len(ends) and ends[last] == size else None

    def _completions(self, text: bytes) -> list[str]:
        """Return the text, or, where its last character is cut, texts that complete it."""
        text = text.removeprefix(self.prefix)  # which the tokenizer puts back
        try:
            return [self.decode(text)]
        except UnicodeDecodeError:
            pass
        found = []
        for back in range(1, 4):
            lead = text[-back] if back <= len(text) else 0
            wanted = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 0
            for byte in (0x80, 0xA9, 0xBF) if wanted > back else ():
                try:
                    found.append(self.decode(text + bytes([byte]) * (wanted - back)))
                except UnicodeDecodeError:
                    continue
        return found

    def unwritable(self, text: bytes) -> list[int]:
        """Positions of the bytes that no encoding has: those that are no UTF-8, and those without a token.

        An unfinished character at the end is none of them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        letters, missing = decoder.decode(text), set(self.missing)
        begun = decoder.getstate()[0]
        found, position = [], 0
        for letter in [*letters, begun]:
            held = letter if isinstance(letter, bytes) else letter.encode("utf-8", "surrogateescape")
            if (isinstance(letter, str) and "\ud800" <= letter <= "\udfff") or not missing.isdisjoint(held):
                found += range(position, position + len(held))
            position += len(held)
        return found

    def forced(self, text: bytes) -> tuple[Tokens, bytes]:
        """Read a text up to the last unwritable byte as fixed tokens, and return them and the rest.

        Such a byte is its own token, or where there is none U+FFFD, as where bytes are decoded with replacement.

        Raises
        ------
        UserError
            There are no tokens for U+FFFD either.
        """
        own = {token[0]: index for index, token in enumerate(self.tokens) if len(token) == 1}
        tokens: Tokens = ()
        begin = 0
        for position in self.unwritable(text):
            before = self.encode(self.prefix + text[begin:position]) if position > begin else ()
            byte = (own[text[position]],) if text[position] in own else self.encode(self.prefix + "\ufffd".encode())
            if before is None or byte is None:
                raise UserError(
                    f"the model's tokens cannot write {text[: position + 1][-8:]!r}, nor U+FFFD in its place; bytes "
                    f"without a token: {', '.join(f'0x{byte:02x}' for byte in self.missing)}"
                )
            tokens, begin = (*tokens, *before, *byte), position + 1
        return tokens, text[begin:]

    def starting(self, prefix: bytes) -> NDArray[np.int64]:
        """Return the tokens that begin with `prefix` and are longer."""
        low = bisect.bisect_right(self._sorted, prefix)
        high = bisect.bisect_left(self._sorted, prefix + b"\xff" * (self.longest + 1))
        return self._ids[low:high]

    def byte_at(self, ids: NDArray[np.int64], position: int) -> NDArray[np.uint8]:
        """Return the byte of each token at a position."""
        return self._flat[self._offset[ids] + position]

    def may_follow(self, left: Tokens, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say of each token whether `left` and it together are what an encoding can begin with."""
        tail = self.last_words(left)
        mask = self._masks.get(tail)
        if mask is None:
            mask = self._masks[tail] = self._after(tail)
            if len(self._masks) > _KEPT:
                self._masks.popitem(last=False)
        self._masks.move_to_end(tail)
        unknown = ids[mask[ids] == ASK]
        if len(unknown):
            before = self._text(tail)
            texts: list[str] = []
            owners: list[int] = []
            for token in unknown:
                for text in self._completions(before + self.tokens[token]):
                    texts.append(text)
                    owners.append(int(token))
            mask[unknown] = 0
            number, wanted = len(tail) + 1, list(tail)
            for owner, found in zip(owners, self._batch(texts), strict=True):
                if found[:number] == [*wanted, owner]:
                    mask[owner] = 1
            for token in unknown[self._blank[unknown] & (mask[unknown] == 0)] if before[-1:].isspace() else ():
                text, whole = before + self.tokens[token], (*tail, int(token))
                mask[token] = any(self._encoded_before(text, follower)[0] == whole for follower in _FOLLOWERS)
        return mask[ids] == 1

    def _after(self, tail: Tokens) -> NDArray[np.int8]:
        """Say of every token whether it may follow the last words of an encoding: 1, 0 or ASK, [V]."""
        told, text = np.full(len(self.tokens), ASK, np.int8), self._text(tail)
        if self._validity is None:
            return told
        if text[-2:].isspace() and self.encode(text) != tail:  # only before what does not go on with white space
            others = [self._encoded_before(text, follower) for follower in _FOLLOWERS]
            return self._validity.after(tail, before=[cut if tokens == tail else None for tokens, cut in others])
        told = self._validity.after(tail)
        if text[-1:].isspace():
            told[self._blank & (told == 0)] = ASK
        return told

    def _batch(self, texts: list[str]) -> Iterator[list[int]]:
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield encoding.ids

    def complete(self, tokens: Tokens) -> bool:
        """Whether a text may end after an encoding: not where it is one only because of what follows."""
        tail = self.last_words(tokens)
        text = self._text(tail)
        return not text[-2:].isspace() or self.encode(text) == tail

    def last_words(self, left: Tokens) -> Tokens:
        """Return the last words of an encoding: what comes before them does not bear on what follows."""
        words = 0
        for index in range(len(left) - 1, -1, -1):
            token = self.tokens[left[index]]
            if token[:1] == b" " and token[1:2].isalnum():
                words += 1
                if words == _SEPARATORS:
                    return left[index:] if left[index:] in self.encodings(self._text(left[index:])) else left
        return left

    def _text(self, tokens: Tokens) -> bytes:
        return b"".join(self.tokens[t] for t in tokens)


def ends_a_character(text: bytes) -> bool:
    """Whether a text does not end within a character."""
    try:
        text[-4:].decode(errors="strict")
        return True
    except UnicodeDecodeError as error:
        return error.end <= len(text[-4:]) and error.reason != "unexpected end of data"

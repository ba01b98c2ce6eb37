"""The tokens of a tokenizer as the bytes that they stand for, whatever it writes them with."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer

from mintage.errors import UserError
from mintage.tokenizer_files.letters import BYTE_CHARS

__all__ = ["TokenBytes"]


class TokenBytes:
    """The bytes of a vocabulary's tokens, and the vocabulary's own tokens of any bytes.

    Byte-level tokens are their bytes, SentencePiece's are UTF-8 with a space for ``▁``, WordPiece's likewise with a
    space before all that does not begin with ``##``.

    Parameters
    ----------
    tokenizer
        A fast tokenizer of transformers, or one of ``tokenizers``.

    Attributes
    ----------
    tokens
        Bytes of every token; empty for special ones and the one for what is unknown.
    ids
        Tokens by their bytes.
    prefix
        What the tokenizer puts in front of every text: a space, or nothing.
    writes_all
        Whether it writes any text, byte by byte if need be.

    Raises
    ------
    UserError
        The tokenizer is none of these, or is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not isinstance(backend, Tokenizer):
            raise UserError(f"{type(tokenizer).__name__} has no tokenizer.json; pass a fast tokenizer")
        self.backend = backend
        held = json.loads(backend.to_str())
        kind = held["model"]["type"]
        decoders = held.get("decoder") or {}
        kinds = {step["type"] for step in [decoders, *decoders.get("decoders", ())] if "type" in step}
        if "ByteLevel" in kinds:
            self.bytes_of, self.letters = _byte_level, dict(enumerate(BYTE_CHARS))
        elif kind == "WordPiece":
            self._mark = held["model"]["continuing_subword_prefix"]
            self.bytes_of, self.letters = self._of_wordpiece, None
        elif kind == "Unigram" or kinds & {"Metaspace", "ByteFallback"} or held["model"].get("byte_fallback"):
            self.bytes_of, self.letters = _of_sentencepiece, None
        else:
            raise UserError(
                f"tokens of this {kind} tokenizer cannot be read as bytes; pass a byte-level BPE (GPT-2, Llama 3, "
                "Qwen, SmolLM2), SentencePiece (Llama 2, Gemma, XLM-R) or WordPiece tokenizer (BERT)"
            )
        self._wordpiece = kind == "WordPiece"
        self.writes_all = bool(kinds & {"ByteLevel", "ByteFallback"} or held["model"].get("byte_fallback"))
        unknown = held["model"].get("unk_token")
        if isinstance(held["model"].get("unk_id"), int):
            unknown = held["model"]["vocab"][held["model"]["unk_id"]][0]
        self.unknown = None if unknown is None else backend.token_to_id(unknown)
        added = {t["id"]: t for t in held.get("added_tokens", [])}
        learnt = backend.get_vocab(with_added_tokens=False)  # Gemma adds runs of spaces that its model has, too
        names = backend.get_vocab(with_added_tokens=True)
        self.tokens = [b""] * (max(names.values()) + 1)
        for name, place in names.items():
            if place != self.unknown and not (place in added and added[place]["special"]):
                self.tokens[place] = self.bytes_of(name) if name in learnt else name.encode()
        self.ids: dict[bytes, int] = {}
        for place, token in enumerate(self.tokens):
            if token and (token not in self.ids or len(self.tokens[self.ids[token]]) > len(token)):
                self.ids[token] = place
        prefix = _first_space(backend) if not self._wordpiece else False
        self.prefix = " " if prefix else ""

    def _of_wordpiece(self, name: str) -> bytes:
        return name.removeprefix(self._mark).encode() if name.startswith(self._mark) else b" " + name.encode()

    def parts(self, token: bytes) -> list[int]:
        """Return the original tokens that the bytes of a new one are cut into, without pre-tokenizing."""
        known = self.ids.get(token)
        if known is not None:
            return [known]
        if self.letters is not None:
            text = token.decode("latin-1").translate(self.letters)
        else:
            try:
                text = token.decode()
            except UnicodeDecodeError:
                return [place for byte in token if (place := self.ids.get(bytes([byte]))) is not None]
            if self._wordpiece:
                text = text[1:] if text.startswith(" ") else self._mark + text
            else:
                text = text.replace(" ", "\u2581")
        found = [piece.id for piece in self.backend.model.tokenize(text)] if text else []
        return [place for place in found if place != self.unknown]


_BYTES = {letter: byte for byte, letter in enumerate(BYTE_CHARS)}


def _byte_level(name: str) -> bytes:
    return bytes(_BYTES[c] for c in name) if all(c in _BYTES for c in name) else name.encode()


def _of_sentencepiece(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace("\u2581", " ").encode()


def _first_space(backend: Tokenizer) -> bool:
    """Whether the tokenizer puts a space before a text."""
    plain = Tokenizer.from_str(backend.to_str())
    if plain.normalizer is not None:
        text = plain.normalizer.normalize_str("a")
    else:
        text = "a"
    if plain.pre_tokenizer is not None:
        text = "".join(piece for piece, _ in plain.pre_tokenizer.pre_tokenize_str(text))
    return text[0] in "\u2581\u0120 "

"""Open tokenizers that others made under this contract: Hugging Face, tiktoken, sentencepiece; and mintage's own.

They may lose text, which mintage's own never do: `Foreign.loss` says what was found lost. They cannot be saved from
here, because their file is already theirs.
"""

from __future__ import annotations

import json
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mintage.errors import UserError, did_you_mean, missing_extra
from mintage.segment.contract import Segmenter, as_bytes, load
from mintage.segment.core.artefact import VALUES
from mintage.segment.core.hf import from_byte_chars
from mintage.tokenizer_files import RankFile, load_tokenizer, read_tokenizer, without_dropout
from mintage.tokenizer_files.letters import BYTE_CHARS

__all__ = ["Foreign", "HFTokenizer", "SentencePiece", "Tiktoken", "open_segmenter"]

PROBES = (
    "The sea, THE SEA",
    " leading",
    "trailing ",
    "two  spaces   three",
    "\ttab\nline\r\n",
    "e\u0301 é ﬁ ½ Å",
    "潮汐 พระจันทร์ द्वारा",
    "👩‍👩‍👧‍👦",
    "\ufeffmark \x00 nul \x7f",
    "<s> [UNK] ▁ Ġ ## don't , . !",
)
"""Texts that tell what a tokenizer loses."""


class Foreign(Segmenter):
    """A tokenizer made elsewhere."""

    kind: str
    """What it is, in a word or two."""

    note: str = ""
    """What had to be assumed to open it."""

    @property
    def loss(self) -> str:
        """Name the first probe that does not come back, or nothing; a text that was not probed may still be lost."""
        for probe in PROBES:
            back = self.decode(self.encode(probe))
            if back != probe:
                return f"{probe!r} comes back as {back!r}"
        return ""

    def ends(self, text: str) -> list[int] | None:
        """Return where in the UTF-8 of `text` every token ends; None where that cannot be told."""
        return None

    def encode(self, text: str | bytes) -> list[int]:
        """Cut a text; bytes must be UTF-8."""
        if isinstance(text, bytes):
            return self.encode_bytes(text)
        as_bytes(text)
        return self._encode(text)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Cut bytes that are UTF-8.

        Raises
        ------
        UserError
            They are not.
        """
        try:
            return self._encode(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"this {self.kind} reads text only, and byte {error.start} is not UTF-8; decode the input first"
            ) from None

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Cut a text without lone surrogates."""

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Refuse: there is nothing that mintage could write better than the file it was read from."""
        raise UserError(f"this {self.kind} is not mintage's to save; copy the file that it was opened from")

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Segmenter:
        """Refuse, as `state` does."""
        raise ValueError("a tokenizer of others is opened with open_segmenter")


_MARK = "\U0010fffd"  # no vocabulary has this


class HFTokenizer(Foreign):
    """Any ``tokenizers.Tokenizer``; special tokens in a text are read as text, none are added."""

    method, kind = "hf", "Hugging Face tokenizer"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer = without_dropout(tokenizer)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self._size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        self._tokens = _byte_tokens(tokenizer, self._size)

    @property
    def vocab_size(self) -> int:
        """The largest id and one, added tokens included."""
        return self._size

    def tokens(self) -> list[bytes] | None:
        """Return the bytes of every id of a byte-level tokenizer, else None."""
        return list(self._tokens) if self._tokens else None

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """Cut many texts at once."""
        batch = [text.decode("utf-8") if isinstance(text, bytes) else text for text in texts]
        for text in batch:
            as_bytes(text)
        return [e.ids for e in self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Join the ids' bytes where they have some, else ask the tokenizer's decoder."""
        self.check_ids(ids)
        if self._tokens:
            return b"".join(map(self._tokens.__getitem__, ids))
        return self.tokenizer.decode(list(ids), skip_special_tokens=False).encode("utf-8", "replace")

    def ends(self, text: str) -> list[int] | None:
        """Return the tokens' ends by the offsets that the tokenizer keeps; None where it joins over what it drops."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        pairs = list(zip(found.ids, found.offsets, strict=True))
        if self._marking is not None:
            marked = self._marking.encode(text, add_special_tokens=False)
            pairs = [pair for pair in zip(marked.ids, marked.offsets, strict=True) if pair[0] != self._size]
            if [number for number, _ in pairs] != found.ids:
                return None
        place = [0, *accumulate(len(char.encode()) for char in text)]
        return [place[end] for _, (_, end) in pairs]

    @cached_property
    def _marking(self) -> Tokenizer | None:
        """A copy with a token for what is unknown, where there is none: offsets behind what is dropped are wrong."""
        held = json.loads(self.tokenizer.to_str())
        model = held["model"]
        if model["type"] != "BPE" or model.get("unk_token") is not None:
            return None
        if self._tokens and model["vocab"].keys() >= set(BYTE_CHARS):
            return None  # every byte has a token
        model["vocab"][_MARK], model["unk_token"], model["fuse_unk"] = self._size, _MARK, False
        marking = Tokenizer.from_str(json.dumps(held))
        marking.encode_special_tokens = True
        return marking

    def to_hf(self) -> Any:
        """Return it as a ``transformers.PreTrainedTokenizerFast``."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(self.tokenizer.to_str()))


def _byte_tokens(tokenizer: Tokenizer, size: int) -> list[bytes] | None:
    """Return the bytes of every id where the decoder is ByteLevel, else None."""
    held = json.loads(tokenizer.to_str())
    decoder = held.get("decoder") or {}
    kinds = [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))]
    if [kind for kind in kinds if kind not in (None, "Sequence")] != ["ByteLevel"]:
        return None
    added = {token["id"]: token["content"].encode() for token in held["added_tokens"]}
    found = [b""] * size
    try:
        for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
            found[number] = added[number] if number in added else from_byte_chars(token)
    except KeyError:
        return None
    return found


class Tiktoken(Foreign):
    """A tiktoken encoding; special tokens in a text are read as text."""

    method, kind = "tiktoken", "tiktoken encoding"

    def __init__(self, encoding: Any, note: str = "", *, composed: bool = False) -> None:
        self.encoding, self.note, self._composed = encoding, note, composed

    @classmethod
    def of(cls, ranks: RankFile) -> Tiktoken:
        """Hand a rank file to tiktoken."""
        return cls(ranks.encoding(), ranks.note, composed=ranks.composed)

    @property
    def vocab_size(self) -> int:
        """The largest id and one, special tokens included."""
        return self.encoding.n_vocab

    def tokens(self) -> list[bytes]:
        """Return the bytes of every id; ids that stand for nothing have none."""
        found = [b""] * self.vocab_size
        for number in range(self.vocab_size):
            try:
                found[number] = self.encoding.decode_single_token_bytes(number)
            except KeyError:
                continue
        return found

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """Cut texts one after the other."""
        return [self.encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        return self.encoding.encode_ordinary(unicodedata.normalize("NFC", text) if self._composed else text)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Join the ids' bytes."""
        self.check_ids(ids)
        try:
            return self.encoding.decode_bytes(list(ids))
        except KeyError:
            odd = next(i for i in ids if not self.tokens()[i])
            raise UserError(f"id {odd} stands for nothing in this tiktoken encoding") from None


class SentencePiece(Foreign):
    """A sentencepiece model. Most of them normalise, so lose text: see `loss`."""

    method, kind = "sentencepiece", "sentencepiece model"

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    @property
    def vocab_size(self) -> int:
        """Pieces, control pieces included."""
        return self.processor.get_piece_size()

    def _encode(self, text: str) -> list[int]:
        return self.processor.encode(text, out_type=int)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Decode to text, and return its UTF-8."""
        self.check_ids(ids)
        return self.processor.decode(list(ids)).encode("utf-8", "replace")

    def ends(self, text: str) -> list[int]:
        """Return the pieces' ends by the offsets that the model keeps."""
        place = [0, *accumulate(len(char.encode()) for char in text)]
        return [place[end] for _, end in self.processor.encode_as_offset_mapping(text)["offsets"]]


def open_segmenter(spec: str | Path, *, pattern: str | None = None) -> Segmenter:
    """Open a tokenizer, whoever made it. Files are told apart by what they hold.

    Parameters
    ----------
    spec
        A folder that `Segmenter.save` or ``mintage segment train`` wrote; a Hugging Face folder, ``tokenizer.json``,
        hub id or ``"smollm2"`` (the embedded model's); a rank file (``.tiktoken``, Llama 3's ``tokenizer.model``),
        Mistral's ``tekken.json`` or the name of an encoding of tiktoken (fetched by tiktoken unless it has it); a
        SentencePiece model.
    pattern
        How a rank file cuts text where neither its content nor its name tells, see `load_tokenizer`.

    Raises
    ------
    UserError
        There is none, it is damaged, or the library that reads it is not installed.
    """
    path = Path(spec)
    if path.is_dir() and (path / VALUES).exists():
        return load(path)
    if path.name == VALUES and path.is_file():
        return load(path.parent)
    if path.exists():
        file = read_tokenizer(path, fallback=pattern)
        if file.kind == "ranks":
            return Tiktoken.of(file.held)
        return SentencePiece(file.processor()) if file.kind == "pieces" else HFTokenizer(file.tokenizer())
    if known := _tiktoken_names(str(spec)):
        return _tiktoken_named(str(spec).removeprefix("tiktoken:"), known)
    if str(spec).count("/") != 1 and str(spec) != "smollm2" and not path.suffix:
        raise UserError(
            f"{spec} does not exist; pass a mintage folder, tokenizer.json, .tiktoken or .model file, smollm2, "
            "a tiktoken name such as cl100k_base, or a hub id such as owner/name"
        )
    return HFTokenizer(load_tokenizer(spec))


def _tiktoken() -> Any:
    try:
        import tiktoken
    except ModuleNotFoundError:
        raise missing_extra("tiktoken", "segment") from None
    return tiktoken


def _tiktoken_names(spec: str) -> list[str]:
    """Return the encodings that tiktoken knows if `spec` is meant to be one."""
    if spec.startswith("tiktoken:"):
        return _tiktoken().list_encoding_names()
    try:
        known = _tiktoken().list_encoding_names()
    except UserError:  # whoever has not installed tiktoken means something else
        return []
    return known if spec in known else []


def _tiktoken_named(name: str, known: list[str]) -> Tiktoken:
    if name not in known:
        raise UserError(f"tiktoken has no encoding {name!r}; {did_you_mean(name, known)}")
    try:
        return Tiktoken(_tiktoken().get_encoding(name))
    except Exception as error:  # whatever the network says
        raise UserError(
            f"tiktoken cannot get {name} ({type(error).__name__}); connect once, or pass its .tiktoken file"
        ) from None

"""Open a tokenizer without opening its model: a tokenizer.json, its folder, a rank or model file, a hub id.

Files are told apart by what they hold, not by what they are called. All jobs open tokenizers here.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from mintage.errors import Notice, UserError
from mintage.files import parse_json
from mintage.tokenizer_files.pieces import open_sentencepiece, tokenizer_of_pieces
from mintage.tokenizer_files.ranks import (
    PATTERNS,
    RankFile,
    last_pieces,
    looks_like_ranks,
    read_ranks,
    read_tekken,
    recover_merges,
)

__all__ = [
    "PATTERNS",
    "PreTokens",
    "RankFile",
    "TokenizerFile",
    "clean_merges",
    "load_tokenizer",
    "merges",
    "read_tokenizer",
    "recover_merges",
    "without_dropout",
]

_NAMES = ("tokenizer.json", "tekken.json", "tokenizer.model", "*.tiktoken", "tokenizer.model.*", "*.model", "*.spm")
"""What a folder's tokenizer may be called; the first that is there counts."""


class TokenizerFile(NamedTuple):
    """A file that holds a tokenizer, and what kind of one.

    Attributes
    ----------
    path
        The file.
    kind
        ``"json"`` (tokenizer.json), ``"ranks"`` (a rank file or tekken.json) or ``"pieces"`` (SentencePiece).
    held
        The text of a tokenizer.json, a `RankFile`, or the bytes of a SentencePiece model.
    """

    path: Path
    kind: Literal["json", "ranks", "pieces"]
    held: Any

    def tokenizer(self) -> Tokenizer:
        """Write it for ``tokenizers``, with its own library's ids."""
        if self.kind == "ranks":
            return self.held.tokenizer()
        if self.kind == "pieces":
            return tokenizer_of_pieces(self.path, self.held)
        try:
            tokenizer = Tokenizer.from_str(self.held)
        except Exception as error:  # the library's errors are plain Exceptions
            raise UserError(f"{self.path} is no tokenizer that tokenizers can read: {_first_line(error)}") from None
        return without_dropout(tokenizer, str(self.path))

    def processor(self) -> Any:
        """Open a SentencePiece model with its own library."""
        return open_sentencepiece(self.path, self.held)


def load_tokenizer(source: str | Path, *, pattern: str | None = None) -> Tokenizer:
    """Open a tokenizer.

    Parameters
    ----------
    source
        ``"smollm2"`` (the embedded model's), a ``tokenizer.json``, Mistral's ``tekken.json``, a rank file
        (``.tiktoken``, or Meta's ``tokenizer.model`` of Llama 3), a SentencePiece model (``tokenizer.model``,
        ``.model.v3``: BPE, Unigram or characters; needs the extra ``audit`` or ``segment``), a folder that holds one of
        these, or a hub id. A rank file holds no special tokens, so neither does what is made from it.
    pattern
        For a rank file: a name of `PATTERNS`, or the regular expression that cuts text into pre-tokens, as tiktoken
        writes it. Default: that of the published file with this content, else by the name of the file.

    Raises
    ------
    UserError
        There is no such file, it is damaged or truncated, its pattern is unknown, no ``tokenizers.Tokenizer`` gives its
        ids, or a hub id cannot be reached.
    """
    if str(source) == "smollm2":
        from mintage.models import embedded_folder

        source = embedded_folder()
    path = Path(source)
    if path.exists():
        return read_tokenizer(path, pattern=pattern).tokenizer()
    if path.suffix in (".json", ".model", ".tiktoken") or str(source).count("/") != 1:
        raise UserError(f"{source} does not exist; pass a tokenizer.json, its folder, or a hub id such as owner/name")
    try:
        return without_dropout(Tokenizer.from_pretrained(str(source)), str(source))
    except Exception as error:  # the library's errors are plain Exceptions
        raise UserError(f"cannot get the tokenizer of {source}: {_first_line(error)}") from None


def read_tokenizer(path: Path, *, pattern: str | None = None, fallback: str | None = None) -> TokenizerFile:
    """Read a file, or that of a folder, and say what it is.

    Parameters
    ----------
    path
        It exists.
    pattern
        See `load_tokenizer`.
    fallback
        A pattern that counts only where neither content nor name of a rank file tell one.

    Raises
    ------
    UserError
        It cannot be read, is no tokenizer, or is damaged; a pattern is given for what says itself how it cuts text.
    """
    if path.is_dir():
        inside = (found for name in _NAMES for found in sorted(path.glob(name)) if found.is_file())
        first = next(inside, None)
        if first is None:
            raise UserError(
                f"{path} holds no tokenizer.json (nor tekken.json, tokenizer.model or .tiktoken file); "
                "pass a folder that save_pretrained wrote, or the file"
            )
        path = first
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if looks_like_ranks(data) or path.suffix == ".tiktoken":
        return TokenizerFile(path, "ranks", read_ranks(path, data, pattern, fallback))
    if pattern is not None:
        raise UserError(f"{path} is no rank file and says itself how it cuts text; leave out the pattern")
    if path.suffix == ".json" or data.lstrip()[:1] == b"{":
        return _of_json(path, data)
    return TokenizerFile(path, "pieces", data)


def _of_json(path: Path, data: bytes) -> TokenizerFile:
    damaged = f"{path} is damaged or no tokenizer.json"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{damaged} (no UTF-8 text); get it again") from None
    held = parse_json(text, damaged, "get it again")
    if isinstance(held, dict) and "config" in held and "vocab" in held:
        return TokenizerFile(path, "ranks", read_tekken(path, held))
    return TokenizerFile(path, "json", text)


def without_dropout(tokenizer: Tokenizer, name: str = "this tokenizer") -> Tokenizer:
    """Return a tokenizer that cuts the same text the same way each time; where one did not, a copy, and it is said.

    Dropout is a setting of training that files keep; what is measured or compared has to repeat.
    """
    if getattr(tokenizer.model, "dropout", None):
        told = f"{name} drops {tokenizer.model.dropout:g} of its merges at random; read without that"
        warnings.warn(told, Notice, stacklevel=3)
        tokenizer, special = Tokenizer.from_str(tokenizer.to_str()), tokenizer.encode_special_tokens
        tokenizer.model.dropout, tokenizer.encode_special_tokens = None, special
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# -- what a tokenizer was trained on, and in which order -------------------------------------------------------------


def merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the merge list of a BPE tokenizer, in order, as pairs of vocabulary strings.

    Raises
    ------
    UserError
        It is no BPE tokenizer, or a merge names a token that the vocabulary lacks.
    """
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    if model.get("type") != "BPE":
        raise UserError(f"this tokenizer's model is {model.get('type')}; a merge list belongs to BPE")
    parts = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    pairs = [(left, right) for left, right in parts]
    known, prefix = model["vocab"], model.get("continuing_subword_prefix") or ""
    for left, right in pairs:
        if left not in known or right not in known or left + right[len(prefix) :] not in known:
            raise UserError(f"merge {left!r} + {right!r} names a token that the vocabulary lacks; the file is damaged")
    return pairs


def clean_merges(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Keep what the trainer did: one merge for every token, and no merges that were placed by hand at the head.

    Lists made from SentencePiece models or rank files give every way to split a token. Of these stays the one that the
    tokens before it leave (`recover_merges`), and where that is none of them, the one whose parts, and their parts,
    were made earliest (of equals, the one with the longer left part). A head of runs of one character, as Gemma's
    white space, is dropped if its tokens do not stand in the order in which they could be made.
    """
    ways: dict[str, list[tuple[str, str]]] = {}
    for left, right in pairs:
        ways.setdefault(left + right, []).append((left, right))
    ranks = {token: rank for rank, token in enumerate(ways)}
    if len(ways) == len(pairs):
        kept = dict(zip(ways, pairs, strict=True))
    else:
        kept = {}
        for token, candidates in ways.items():
            last = tuple(last_pieces(token, ranks)) if len(candidates) > 1 else candidates[0]
            kept[token] = last if last in candidates else min(candidates, key=lambda way: _ancestry(way, ranks, kept))
    head = 0
    ordered = list(kept.items())
    while head < len(ordered) and len(set(ordered[head][0])) == 1:
        head += 1
    made: set[str] = set()
    by_hand = False
    for token, parts in ordered[:head]:
        by_hand |= any(len(part) > 1 and part not in made for part in parts)
        made.add(token)
    return [parts for _, parts in ordered[head if by_hand else 0 :]]


def _ancestry(
    way: tuple[str, str], ranks: Mapping[str, int], kept: Mapping[str, tuple[str, str]]
) -> tuple[list[int], int]:
    """Ranks of the tokens that a merge builds on, the latest first, and its right part's length."""
    found, open_ = [], list(way)
    while open_:
        token = open_.pop()
        if token in ranks:
            found.append(ranks[token])
            open_ += kept.get(token, ())
    return sorted(found, reverse=True), len(way[1])


class PreTokens:
    """Cut texts as a tokenizer's training did: its normaliser, its pre-tokenizer, nothing else.

    Tokenizers made from SentencePiece models leave the cutting out of the file, because their vocabulary holds nothing
    that crosses a word. It is done here: before every ``▁``, and around every digit where no token holds two.

    Objects can be pickled and so work in `mintage.data.count_words` with several processes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cut: re.Pattern[str] | None = None
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        starts = sum(token.startswith("▁") for token in vocabulary)
        crossing = sum("▁" in token.lstrip("▁") for token in vocabulary)
        if starts > 0.01 * len(vocabulary) and crossing < 0.001 * len(vocabulary):
            numbers = any(re.fullmatch(r"▁?[0-9]{2,}", token) for token in vocabulary)
            self._cut = re.compile(r"▁?[^▁]+|▁" if numbers else r"▁?[^▁0-9]+|[0-9]|▁")

    def __call__(self, text: str) -> list[str]:
        """Cut one text."""
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        if self._tokenizer.pre_tokenizer is None:
            pieces = [text]
        else:
            pieces = [piece for piece, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        if self._cut is not None:
            pieces = [part for piece in pieces for part in self._cut.findall(piece)]
        return pieces

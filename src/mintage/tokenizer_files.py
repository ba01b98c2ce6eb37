"""Open a tokenizer without opening its model: a tokenizer.json, its folder, a rank or model file, a hub id."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mintage.errors import UserError, missing_extra

__all__ = ["PATTERNS", "PreTokens", "clean_merges", "load_tokenizer", "merges", "recover_merges"]

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PATTERNS: dict[str, str] = {
    "gpt2": _GPT2,
    "r50k_base": _GPT2,
    "p50k_base": _GPT2,
    "p50k_edit": _GPT2,
    "cl100k_base": _GPT4,
    "o200k_base": _GPT4O,
    "o200k_harmony": _GPT4O,
    "llama3": _GPT4,
    "qwen": _GPT4.replace("{1,3}", ""),
}
"""How well-known rank files cut text into pre-tokens: name of the file to regular expression."""


def load_tokenizer(source: str | Path, *, pattern: str | None = None) -> Tokenizer:
    """Open a tokenizer.

    Parameters
    ----------
    source
        ``"smollm2"`` (the embedded model's), a ``tokenizer.json``, a folder that holds one, a rank file
        (``.tiktoken``, or Meta's ``tokenizer.model`` of Llama 3), a SentencePiece ``.model`` (BPE or Unigram; needs
        the extra ``audit`` or ``segment``), or a hub id. A rank file holds no special tokens, so neither does what is
        made from it.
    pattern
        For a rank file: a name of `PATTERNS`, or the regular expression that cuts text into pre-tokens. Default: by
        the name of the file.

    Raises
    ------
    UserError
        There is no such file, it is damaged or truncated, its pattern is unknown, or a hub id cannot be reached.
    """
    path = Path(source)
    if str(source) == "smollm2":
        from mintage.models import embedded_folder

        path = embedded_folder()
    if path.is_dir():
        if not (path / "tokenizer.json").exists():
            raise UserError(f"{path} holds no tokenizer.json; pass a folder that save_pretrained wrote, or the file")
        path = path / "tokenizer.json"
    if path.exists():
        return _read(path, pattern)
    if path.suffix in (".json", ".model", ".tiktoken") or str(source).count("/") != 1:
        raise UserError(f"{source} does not exist; pass a tokenizer.json, its folder, or a hub id such as owner/name")
    try:
        return Tokenizer.from_pretrained(str(source))
    except Exception as error:  # the library's errors are plain Exceptions
        raise UserError(f"cannot get the tokenizer of {source}: {_first_line(error)}") from None


def _read(path: Path, pattern: str | None) -> Tokenizer:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if path.suffix == ".tiktoken" or (path.suffix == ".model" and _RANK_LINE.match(data)):
        return _from_ranks(path, data, pattern)
    if path.suffix == ".model":
        return _from_sentencepiece(path, data)
    try:
        text = data.decode("utf-8")
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or no tokenizer.json ({_first_line(error)}); get it again") from None
    try:
        return Tokenizer.from_str(text)
    except Exception as error:
        raise UserError(f"{path} is no tokenizer that tokenizers can read: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# -- rank files -------------------------------------------------------------------------------------------------------

_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def _from_ranks(path: Path, data: bytes, pattern: str | None) -> Tokenizer:
    """Make a tokenizer of a rank file: a token in base64 and its rank in every line."""
    if pattern is None:
        if path.stem not in PATTERNS:
            raise UserError(
                f"{path} does not say how it cuts text; pass the pattern (one of {', '.join(PATTERNS)}, or a regex)"
            )
        pattern = path.stem
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(f"{path}, line {number}: not a base64 token and its rank; get the file again") from None
    if not ranks:
        raise UserError(f"{path} holds no ranks; get it again")
    if len(set(ranks.values())) < len(ranks):
        raise UserError(f"{path} gives a rank to two tokens; get it again")
    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    tokenizer = Tokenizer(
        models.BPE(
            vocab={spell(token): rank for token, rank in ranks.items()},
            merges=[(spell(left), spell(right)) for left, right in recover_merges(ranks)],
            ignore_merges=True,  # a pre-token that is a token stays whole
        )
    )
    try:
        cut = Regex(PATTERNS.get(pattern, pattern))
    except Exception as error:
        raise UserError(f"pattern {pattern!r} is no regular expression: {_first_line(error)}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(cut, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_letters() -> list[str]:
    """Letter of every byte in byte-level vocabularies: itself where it prints, else one from U+0100 on."""
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


Token = TypeVar("Token", str, bytes)


def recover_merges(ranks: Mapping[Token, int]) -> list[tuple[Token, Token]]:
    """Recover the merge list of a BPE vocabulary that only says in which order its tokens were made.

    A token was made of the two pieces that are left when the tokens before it are applied to it. Tokens for which that
    leaves more than two pieces were placed by hand; they have no merge.

    Parameters
    ----------
    ranks
        Token to rank, lower made earlier; tokens of one symbol count as given.
    """
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pieces = _last_pieces(token, ranks)
        if len(pieces) == 2:
            found.append((pieces[0], pieces[1]))
    return found


def _last_pieces(token: Token, ranks: Mapping[Token, int]) -> list[Token]:
    """Cut `token` with the tokens of lower rank alone."""
    limit = ranks[token]
    pieces = [token[i : i + 1] for i in range(len(token))]
    joined = [ranks.get(a + b, limit) for a, b in pairwise(pieces)]
    while len(pieces) > 2 and (best := min(joined)) < limit:
        at = joined.index(best)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        del joined[at]
        if at:
            joined[at - 1] = ranks.get(pieces[at - 1] + pieces[at], limit)
        if at < len(joined):
            joined[at] = ranks.get(pieces[at] + pieces[at + 1], limit)
    return pieces


# -- SentencePiece ----------------------------------------------------------------------------------------------------

_CONTROL, _USER_DEFINED, _NORMAL = 3, 4, 1
_UNIGRAM, _BPE = 1, 2


def _from_sentencepiece(path: Path, data: bytes) -> Tokenizer:
    """Make a tokenizer of a SentencePiece model, with the steps that transformers uses for such models."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ModuleNotFoundError as error:  # sentencepiece itself, or the protobuf that it needs for this
        missing = "protobuf" if (error.name or "").startswith("google") else "sentencepiece"
        raise missing_extra(missing, "audit") from None
    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError
        raise UserError(f"{path} is damaged or no SentencePiece model ({_first_line(error)}); get it again") from None
    pieces, trainer, spec = proto.pieces, proto.trainer_spec, proto.normalizer_spec
    if not pieces:
        raise UserError(f"{path} is no SentencePiece model (it holds no pieces); get it again")
    if trainer.model_type == _UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        model: Any = models.Unigram(scores, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    elif trainer.model_type == _BPE:
        made = [piece for piece in pieces if piece.type == _NORMAL and len(piece.piece) > 1]
        order = {piece.piece: rank for rank, piece in enumerate(sorted(made, key=lambda p: -p.score))}
        model = models.BPE(
            vocab={piece.piece: number for number, piece in enumerate(pieces)},
            merges=recover_merges(order),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    else:
        raise UserError(f"{path} is a SentencePiece model of words or characters; pass one of BPE or Unigram")
    tokenizer = Tokenizer(model)
    for piece in pieces:
        if piece.type in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)])
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tail: list[Any] = []
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
        tail.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail])
    return tokenizer


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
            last = tuple(_last_pieces(token, ranks)) if len(candidates) > 1 else candidates[0]
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

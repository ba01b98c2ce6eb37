"""SentencePiece models for ``tokenizers``: with sentencepiece's ids, or refused.

How sentencepiece reads what a tokenizer.json has no word for:

- a control piece (``</s>``), the unknown piece and a byte's name in a text are text. Byte-pair models never join them;
  in a Unigram model, which looks up all pieces, they weigh so little that any other cut wins, and where a letter of
  theirs is in no other piece, text is cut next to it first;
- user-defined pieces are found before normalisation changes them. A Unigram model gives them the score that
  sentencepiece gives them; for byte-pair models text is cut at them first;
- the white space that stands for a word's bound goes before the text or behind it.

Whatever else may differ is looked for: the tokenizer is compared with the model on texts made of its own pieces.
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mintage.errors import Notice, UserError, missing_extra
from mintage.tokenizer_files.charsmap import keys_of, rewriting
from mintage.tokenizer_files.letters import longest_match_pattern
from mintage.tokenizer_files.ranks import splits

__all__ = ["open_sentencepiece", "tokenizer_of_pieces"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE, _WORD, _CHAR = 1, 2, 3, 4
_NEVER = -1e4  # score of a piece that any other cut beats
_SPACE = "▁"
_BONUS: tuple[Callable[[int, float], float], ...] = (
    lambda size, most: 0.1 * size - 0.1,
    lambda size, most: size * most - 0.1,
)
"""Score of a user-defined piece of so many bytes in a Unigram model: of sentencepiece 0.2.2 and later, and before."""

_OVERLAPS = 2000  # texts tried
_TIE = 1e-3  # what sums of float32 may lose

_END = "\U000ffffd"  # a private letter, where the text ends
_STANDS_IN = 0xF0000  # private letters that keep user-defined pieces from being normalised

_TEXTS = (
    "The sea, THE SEA",
    " leading and trailing ",
    "two  spaces   three",
    "\ttab\nline\r\n\nlines",
    "",
    " ",
    "é ﬁ ½ 潮汐 Привет 👩‍👩‍👧 don't 3.14 1234567",
    "▁ ▁▁ a▁b <s> </s> <unk> <0x41>",
)


def _cannot(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}, which no tokenizer.json can say; use it through sentencepiece (mintage segment)")


def open_sentencepiece(path: Path, data: bytes) -> Any:
    """Open a model with its own library: a ``SentencePieceProcessor``.

    Raises
    ------
    UserError
        It is damaged, or sentencepiece is not installed.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise missing_extra("sentencepiece", "segment") from None
    try:
        if not data:  # which the library takes for "load later"
            raise RuntimeError
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except Exception:  # RuntimeError from the library
        raise UserError(f"{path} is damaged or no SentencePiece model; get it again") from None


class _Model(NamedTuple):
    """What a file says."""

    path: Path
    kind: int
    pieces: list[Any]
    spec: Any
    byte_fallback: bool
    suffix: bool
    """Whether the bound of a word stands behind it."""

    def of(self, *types: int) -> list[str]:
        return [piece.piece for piece in self.pieces if piece.type in types]


def _read(path: Path, data: bytes) -> _Model:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ModuleNotFoundError as error:  # sentencepiece itself, or the protobuf that it needs for this
        missing = "protobuf" if (error.name or "").startswith("google") else "sentencepiece"
        raise missing_extra(missing, "audit") from None
    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError
        told = (str(error).splitlines() or ["protobuf"])[0]
        raise UserError(f"{path} is damaged or no SentencePiece model ({told}); get it again") from None
    if not proto.pieces:
        raise UserError(f"{path} is damaged or no SentencePiece model (it holds no pieces); get it again")
    trainer = proto.trainer_spec
    model = _Model(
        path,
        trainer.model_type,
        list(proto.pieces),
        proto.normalizer_spec,
        trainer.byte_fallback,
        trainer.treat_whitespace_as_suffix,
    )
    if model.kind == _WORD:
        raise _cannot(path, "it is a model of whole words, unknown ones of which become one in a row")
    if unused := [piece for piece in model.of(_UNUSED) if len(piece) > 1]:
        raise _cannot(path, f"it has unused pieces ({unused[0]!r})")
    if proto.denormalizer_spec.precompiled_charsmap:
        raise _cannot(path, "it rewrites what it decodes")
    if single := [piece for piece in model.of(_CONTROL, _UNKNOWN) if len(piece) == 1]:
        raise _cannot(path, f"its control piece {single[0]!r} is a letter")
    return model


def tokenizer_of_pieces(path: Path, data: bytes) -> Tokenizer:
    """Write a SentencePiece model (Unigram, BPE, characters) for ``tokenizers``.

    Raises
    ------
    UserError
        It is damaged, a library is missing, or no tokenizer.json gives its ids.
    """
    model = _read(path, data)
    theirs = open_sentencepiece(path, data)
    user = sorted(model.of(_USER_DEFINED), key=len, reverse=True)
    for bonus in _BONUS:
        tokenizer = _assembled(model, user, bonus)
        wrong, tied = _differing(tokenizer, theirs, model, user)
        if wrong is None:
            tied = tied or _run(model)
            if tied is not None:
                told = f"{path}: some cuts weigh the same, e.g. of {tied!r}; sentencepiece lets its rounding decide"
                warnings.warn(f"{told}, so ids may differ there", Notice, stacklevel=3)
            return tokenizer
    raise _cannot(path, f"it cuts {wrong!r} in a way of its own")


def _run(model: _Model) -> str | None:
    """Return spaces in a row, or a user-defined piece, that a Unigram model can cut in ways that weigh the same."""
    user = model.of(_USER_DEFINED) if model.kind == _UNIGRAM else []
    spaces = [piece for piece in model.of(_NORMAL) if model.kind == _UNIGRAM and set(piece) == {_SPACE}]
    return next((piece + piece[0] for piece in [*user, *spaces] if len(piece) > 1 and len(set(piece)) == 1), None)


def _differing(tokenizer: Tokenizer, theirs: Any, model: _Model, user: Sequence[str]) -> tuple[str | None, str | None]:
    """Find a text with other ids, and one whose other ids are a cut of a Unigram model that weighs the same."""
    tied = None
    weights = [score for _, score in json.loads(tokenizer.to_str())["model"]["vocab"]] if model.kind == _UNIGRAM else []
    for text in _probes(model, user):
        ours, ids = tokenizer.encode(text, add_special_tokens=False).ids, theirs.encode(text)
        if ours != ids:
            if not weights or abs(sum(weights[i] for i in ours) - sum(weights[i] for i in ids)) > _TIE:
                return text, None
            tied = text
    return None, tied


def _assembled(model: _Model, user: Sequence[str], bonus: Callable[[int, float], float]) -> Tokenizer:
    unigram = model.kind == _UNIGRAM
    tokenizer = Tokenizer(_unigram(model, bonus) if unigram else _merging(model, whole=bool(user)))
    tokenizer.normalizer = _normalizer(model, user)
    tokenizer.decoder = _decoder(model)
    cuts = _cuts_at_names(model) if unigram else _cuts_at_pieces(model, user)
    if cuts:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(p), how) for p, how in cuts])
    control = [AddedToken(name, normalized=False, special=True) for name in model.of(_CONTROL)]
    tokenizer.add_special_tokens(control)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _probes(model: _Model, user: Sequence[str]) -> Iterator[str]:
    yield from _TEXTS
    yield from (f"a{key}b" for key in keys_of(model.spec.precompiled_charsmap))
    for name in [*model.of(_CONTROL, _UNKNOWN)[:20], *user[:20], *user[20 :: 1 + len(user) // 20]]:
        yield from (name, f"the {name} sea", f"a{name}b", f"{name}{name} {name}")
    learnt = [piece.replace(_SPACE, " ") for piece in model.of(_NORMAL)]
    yield from (f"a{_SPACE * length}b" for length in range(2, 40))
    yield from itertools.islice(_overlaps(model), _OVERLAPS)
    for start in range(64):
        some = learnt[start :: 1 + len(learnt) // 50]
        yield ("" if start % 2 else " ").join(some)


def _overlaps(model: _Model) -> Iterator[str]:
    """Texts in which two pieces of one score overlap: sentencepiece joins the left one first, merge lists any."""
    tied: dict[float, list[str]] = {}
    for piece in model.pieces if model.kind == _BPE else ():
        if piece.type == _NORMAL and len(piece.piece) > 1:
            tied.setdefault(piece.score, []).append(piece.piece)
    for same in tied.values():
        after: dict[str, list[str]] = {}
        for piece in same:
            after.setdefault(piece[0], []).append(piece)
        for piece in reversed(same):
            yield from (f"{piece}{other[1:]}" for other in after.get(piece[-1], ())[:3] if other != piece)


# -- models ------------------------------------------------------------------------------------------------------------


def _unigram(model: _Model, bonus: Callable[[int, float], float]) -> models.Unigram:
    most = max((piece.score for piece in model.pieces if piece.type == _NORMAL), default=0.0)
    vocabulary = []
    for piece in model.pieces:
        score = piece.score if piece.type == _NORMAL else _NEVER
        if piece.type == _USER_DEFINED:
            score = bonus(len(piece.piece.encode()), most)
        vocabulary.append((piece.piece, score))
    unknown = next((n for n, piece in enumerate(model.pieces) if piece.type == _UNKNOWN), None)
    return models.Unigram(vocabulary, unk_id=unknown, byte_fallback=model.byte_fallback)


def _merging(model: _Model, *, whole: bool) -> models.BPE:
    """Join neighbours as byte-pair models do, or nothing (a model of characters)."""
    joined = [piece for piece in model.pieces if piece.type == _NORMAL and len(piece.piece) > 1]
    merges: list[tuple[str, str]] = []
    if model.kind == _BPE:
        order = {piece.piece: -piece.score for piece in model.pieces if piece.type in (_NORMAL, _USER_DEFINED)}
        merges = [parts for piece in sorted(joined, key=lambda p: -p.score) for parts in splits(piece.piece, order)]
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(model.pieces)},
        merges=merges,
        unk_token=next(iter(model.of(_UNKNOWN)), None),
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=whole,  # a user-defined piece, cut out of the text, is looked up
    )


# -- what is done to a text first --------------------------------------------------------------------------------------


def _normalizer(model: _Model, user: Sequence[str]) -> normalizers.Normalizer:
    spec, steps = model.spec, list[Any]()
    mark = _SPACE if spec.escape_whitespaces else " "
    if spec.precompiled_charsmap:
        rewrites = normalizers.Sequence(rewriting(spec.precompiled_charsmap))
        kept = [piece for piece in user if rewrites.normalize_str(piece) != piece]
        letters = [chr(_STANDS_IN + number) for number in range(len(kept))]
        steps += [normalizers.Replace(piece, letter) for piece, letter in zip(kept, letters, strict=True)]
        steps += rewriting(spec.precompiled_charsmap)
        steps += [normalizers.Replace(letter, piece) for piece, letter in zip(kept, letters, strict=True)]
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        behind = normalizers.Replace(Regex(r"(?<=[\s\S])\z"), _END)
        steps.append(behind if model.suffix else normalizers.Prepend(mark))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _SPACE))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"{mark}+(?={_END}?\z)"), ""))
    if spec.add_dummy_prefix and model.suffix:
        steps.append(normalizers.Replace(_END, mark))
    return normalizers.Sequence(steps)


def _decoder(model: _Model) -> decoders.Decoder:
    spec = model.spec
    spaces = [decoders.Replace(_SPACE, " ")] if spec.escape_whitespaces else []
    last = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix and not model.suffix else []
    return decoders.Sequence([*spaces, decoders.ByteFallback(), decoders.Fuse(), *last])


def _cuts_at_pieces(model: _Model, user: Sequence[str]) -> list[tuple[str, str]]:
    """Cut out user-defined pieces, and what is left where the model would look it up as a whole."""
    if not user:
        return []
    plain = Tokenizer(_merging(model, whole=False))
    whole: dict[str, list[str]] = {}
    for piece in model.pieces:
        if piece.type != _USER_DEFINED and len(piece.piece) > 1:
            found = plain.model.tokenize(piece.piece)
            if len(found) > 1 or (found and found[0].value != piece.piece):
                first = piece.piece[: found[0].offsets[1]] if len(found) > 1 else piece.piece[:1]
                whole.setdefault(first, []).append(piece.piece[len(first) :])
    cuts = [(longest_match_pattern(user), "isolated")]
    if whole:
        ways = [f"{_written([first])}(?={_written(rests)}\\z)" for first, rests in whole.items()]
        cuts.append((rf"\A(?:{'|'.join(ways)})", "isolated"))
    return cuts


def _cuts_at_names(model: _Model) -> list[tuple[str, str]]:
    """Cut the names of pieces that are no text next to a letter that no piece has, so that none is ever found."""
    letters = {piece for piece in model.of(_NORMAL, _USER_DEFINED) if len(piece) == 1}
    cuts: dict[str, list[str]] = {}
    for name in model.of(_CONTROL, _UNKNOWN, _BYTE):
        unknown = [letter not in letters for letter in name]
        if any(unknown):
            # two unknown letters in a row are one unknown piece, unless bytes stand for them
            places = [
                i for i in range(1, len(name)) if (unknown[i - 1] != unknown[i]) or (model.byte_fallback and unknown[i])
            ]
            if not places:
                raise _cannot(model.path, f"its control piece {name!r} has letters that no other piece has")
            cuts.setdefault(name[: places[0]], []).append(name[places[0] :])
    if not cuts:
        return []
    ways = [f"{_written([first])}(?={_written(rests)})" for first, rests in cuts.items()]
    return [("|".join(ways), "merged_with_previous")]


def _written(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(_escaped, words))})"


def _escaped(word: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", lambda found: f"\\x{{{ord(found[0]):x}}}", word)

"""Hard compounds (CompoundPiece, section 2): those whose constituents a tokenizer hides inside a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mintage.errors import UserError
from mintage.segment.contract import Segmenter

__all__ = ["hard_compound_rate", "hard_compounds"]


def hard_compounds(tokenizer: Segmenter, gold: Mapping[str, Sequence[str]], *, prefix: str = " ") -> list[bool]:
    """Tell of every compound whether a constituent boundary is inside a token, where a model cannot see it.

    Parameters
    ----------
    tokenizer
        A segmenter whose ids mean bytes.
    gold
        Word to its pieces, two or more.
    prefix
        What stands before the word; a space, as inside a text.

    Raises
    ------
    UserError
        `gold` is empty, pieces do not make up their word, or ids have no bytes of their own.
    """
    tokens = tokenizer.tokens()
    if tokens is None:
        raise UserError(f"the ids of {tokenizer.method} do not mean bytes; token boundaries are not defined")
    if not gold:
        raise UserError("no gold compounds; pass a mapping such as {'Haustür': ['Haus', 'tür']}")
    hard = []
    for word, ids in zip(gold, tokenizer.encode_batch([prefix + word for word in gold]), strict=True):
        if "".join(gold[word]) != word or len(gold[word]) < 2:
            raise UserError(f"gold pieces {list(gold[word])} do not make up {word!r}; pass two or more pieces of it")
        wanted = _boundaries([prefix.encode() + gold[word][0].encode(), *(p.encode() for p in gold[word][1:])])
        hard.append(not wanted <= _boundaries([tokens[i] for i in ids]))
    return hard


def hard_compound_rate(tokenizer: Segmenter, gold: Mapping[str, Sequence[str]], *, prefix: str = " ") -> float:
    """Share of hard compounds, see `hard_compounds`."""
    hard = hard_compounds(tokenizer, gold, prefix=prefix)
    return sum(hard) / len(hard)


def _boundaries(pieces: Sequence[bytes]) -> set[int]:
    """Byte offsets between pieces."""
    ends, total = set(), 0
    for piece in pieces[:-1]:
        total += len(piece)
        ends.add(total)
    return ends

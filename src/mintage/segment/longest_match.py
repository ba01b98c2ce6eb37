"""Greedy longest match over a lexicon: what Less-is-Better's tokenizer does with text and with bytes.

Encoding runs in a compiled automaton over the tokens' bytes; exporting writes the lexicon as one regular expression.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from mintage.errors import UserError, missing_extra
from mintage.segment.contract import Segmenter
from mintage.segment.core.hf import byte_level, to_byte_chars
from mintage.tokenizer_files.letters import BYTE_CHARS, longest_match_pattern

__all__ = ["LiBSegmenter"]

_WINDOW = 1 << 13  # bytes cut at once


class LiBSegmenter(Segmenter):
    """Greedy longest match over a lexicon; a character that is no unit is cut into its bytes.

    Ids are the 256 bytes, then the units of more than one byte in rank order, then characters that have lost their
    rank.

    Parameters
    ----------
    units
        In rank order, best first.
    alphabet
        Characters that are tokens whether ranked or not.

    Raises
    ------
    ValueError
        A unit is empty or stands there twice.
    """

    method: ClassVar[str] = "lib"

    def __init__(self, units: Sequence[str], alphabet: Sequence[str] = ()) -> None:
        self.units, self.alphabet = list(units), list(alphabet)
        self._ranks = {unit: rank for rank, unit in enumerate(self.units)}
        if len(self._ranks) < len(self.units) or not all(self.units) or any(len(char) != 1 for char in self.alphabet):
            raise ValueError("units are not distinct and of at least one character")
        words = (word.encode() for word in dict.fromkeys(self.units + self.alphabet))
        self._tokens = [bytes([b]) for b in range(256)] + [word for word in words if len(word) > 1]
        self._longest = max(map(len, self._tokens))

    @property
    def vocab_size(self) -> int:
        """Entries, the 256 bytes included."""
        return len(self._tokens)

    def tokens(self) -> list[bytes]:
        """Return the bytes of every id."""
        return list(self._tokens)

    @cached_property
    def _matcher(self) -> Any:
        """Leftmost-longest matches of the tokens' bytes: every byte is one, so they tile the text, greedily.

        UTF-8 synchronises itself: no unit begins or ends inside a character of valid text.
        """
        try:
            from ahocorasick_rs import BytesAhoCorasick, MatchKind
        except ModuleNotFoundError:
            raise missing_extra("ahocorasick-rs", "segment") from None
        return BytesAhoCorasick(self._tokens, matchkind=MatchKind.LeftmostLongest)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Cut bytes, UTF-8 or not."""
        find = self._matcher.find_matches_as_indexes
        ids: list[int] = []
        start, ahead = 0, _WINDOW + self._longest
        while len(data) - start > ahead:  # short windows: millions of matches at once are three times slower
            matches = find(data[start : start + ahead])
            while matches[-1][1] >= _WINDOW:  # might be longer with what comes
                matches.pop()
            ids += [match[0] for match in matches]
            start += matches[-1][2]
        return ids + [match[0] for match in find(data[start:])]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Join the ids' bytes."""
        self.check_ids(ids)
        return b"".join(map(self._tokens.__getitem__, ids))

    def decompose(self, unit: str) -> tuple[str, ...]:
        """Cut a unit into up to four sub-units of better rank; a unit without such parts is returned whole.

        Raises
        ------
        UserError
            `unit` is not in the lexicon.
        """
        if unit not in self._ranks:
            raise UserError(f"{unit!r} is no unit of this lexicon; pass one of its units")
        return tuple(part for half in self._halves(unit) for part in self._halves(half))

    def _halves(self, unit: str) -> tuple[str, ...]:
        ranks = self._ranks
        cuts = [(unit[:k], unit[k:]) for k in range(len(unit) - 1, 0, -1)]
        known = [(ranks[a], ranks[b]) for a, b in cuts if a in ranks and b in ranks]
        if not known or max(min(known)) >= ranks[unit]:
            return (unit,)
        first, second = min(known)
        return self.units[first], self.units[second]

    def to_hf(self) -> Any:
        """Return a ``transformers.PreTrainedTokenizerFast`` with the same ids, for text.

        Its pre-tokenizer is one pattern that matches the longest unit, a trie written as a regular expression; the
        model, BPE without merges, looks units up whole and cuts what lies between them into bytes. It takes linear
        time, where WordPiece's greedy match takes more than quadratic time in the length of a line.
        """
        from tokenizers import Regex, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = [token.decode() for token in self._tokens[256:]]
        ids = {char: byte for byte, char in enumerate(BYTE_CHARS)}
        ids |= {to_byte_chars(word): 256 + place for place, word in enumerate(words)}
        splits = [pre_tokenizers.Split(Regex(longest_match_pattern(words)), "isolated")] if words else []
        model = models.BPE(vocab=ids, merges=[], ignore_merges=True)
        return PreTrainedTokenizerFast(tokenizer_object=byte_level(model, *splits), clean_up_tokenization_spaces=False)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the units in rank order and the alphabet."""
        return {"units": self.units, "alphabet": self.alphabet}, {}

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> LiBSegmenter:
        """Make the segmenter again."""
        return cls(values["units"], values["alphabet"])

    def __reduce__(self) -> Any:
        return type(self), (self.units, self.alphabet)  # the matcher cannot travel to other processes

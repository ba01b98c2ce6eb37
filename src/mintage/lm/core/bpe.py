"""Byte-level BPE on any bytes: what is no UTF-8 is cut into single bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mintage.errors import UserError

__all__ = ["BytePairs"]

_VALID = re.compile(
    rb"(?:[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})+"
)
"""Runs of whole characters (Unicode 15, table 3-7)."""


@cache
def _letters() -> dict[str, int]:
    """Bytes by the letters that byte-level tokenizers write them as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


class BytePairs:
    """A byte-level BPE tokenizer.

    Parameters
    ----------
    text
        Its tokenizer.json.
    """

    def __init__(self, text: str) -> None:
        try:
            self.tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library's own errors have no class of their own
            raise UserError(f"the tokenizer of this model is damaged ({error}); train it again") from None
        letters = _letters()
        vocabulary = self.tokenizer.get_vocab()
        self.tokens = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, index in vocabulary.items():
            self.tokens[index] = bytes(letters[letter] for letter in token)
        self.of_byte = {token[0]: index for index, token in enumerate(self.tokens) if len(token) == 1}

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> BytePairs:
        """Learn `size` tokens, the 256 bytes among them.

        Raises
        ------
        UserError
            `size` is below 256.
        """
        if size < 256:
            raise UserError(f"a vocabulary of {size} has no room for the 256 bytes; pass e.g. 4096")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
        tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)  # pyright: ignore
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str())

    def encode(self, data: bytes) -> list[int]:
        """Cut bytes into tokens."""
        found: list[int] = []
        done = 0
        for run in _VALID.finditer(data):
            found += [self.of_byte[byte] for byte in data[done : run.start()]]
            found += self.tokenizer.encode(run.group().decode(), add_special_tokens=False).ids
            done = run.end()
        return found + [self.of_byte[byte] for byte in data[done:]]

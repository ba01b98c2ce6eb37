"""Equal-Info windows: text as arithmetic code that starts again every `window_bits` bits, so that a model can learn it.

A byte model (M1) predicts the next byte from the text of the current window; an arithmetic coder turns bytes into bits
until the next byte no longer fits into the window; then model and coder both start afresh. Every window is a number of
`window_bits` bits that decodes by itself, and is cut into tokens of `token_bits` bits for a second language model (M2).

How a window ends makes coding a *greedy longest match* over the strings that fit into one
(`mintage.segment.window_coder`): for windows of up to 16 bits all strings are worked out once, and encoding never asks
the model again. Where a window is one token (16 and 16 bits, the default) that is a tokenizer of 65,536 entries, which
`to_hf` writes as a tokenizer.json.

Trainer and segmenter share this file because they are one setting, the size of windows and tokens, at both ends. Not
here: the second model (any causal language model over the ids), a symbol for the end of a text (the number of
windows says it), and models that see past the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mintage.errors import UserError, missing_extra
from mintage.options import option
from mintage.progress import Progress, silent
from mintage.segment.contract import Segmenter, Trainer, as_bytes
from mintage.segment.core.byte_models import ByteGRU, ByteModel, ByteNGram, GRUSettings
from mintage.segment.core.hf import to_byte_chars
from mintage.segment.window_coder import code_windows, decode_windows, total_frequency, window_strings
from mintage.tokenizer_files.letters import longest_match_pattern

__all__ = ["EqualInfo", "EqualInfoSegmenter"]

_TREE_BITS = 16  # windows up to this size: all strings are worked out


@dataclass(frozen=True, kw_only=True)
class EqualInfo(GRUSettings, Trainer):
    """Train a byte model and code text with it in windows of equal information.

    The paper's model is a Transformer of 3 M weights trained on sequences of 1024 bytes. Here an n-gram is the default,
    which trains in seconds and codes exactly; a recurrent network is the alternative.
    """

    window_bits: int = option(16, "Bits of a window; the paper tries 16, 32, 64 and 128 and recommends 16.", least=10)
    token_bits: int = option(
        16, "Bits of a token, a divisor of window_bits: 16, or 8 for a vocabulary of 256.", least=1, most=16
    )
    model: Literal["ngram", "gru"] = option("ngram", "The byte model: an n-gram or a recurrent network.")
    order: int = option(3, "Of the n-gram: bytes of context.", least=0, most=6)
    max_strings: int = option(16_000_000, "Of the n-gram: bound on its table.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_sizes(self.window_bits, self.token_bits)

    def train(
        self, texts: Iterable[str], *, work: str | Path | None = None, progress: Progress = silent
    ) -> EqualInfoSegmenter:
        """Train the byte model; see `ByteNGram.train` and `train_byte_gru` for `work`, `progress` and errors."""
        total = total_frequency(self.window_bits)
        model: ByteModel
        if self.model == "ngram":
            model = ByteNGram.train(
                texts, order=self.order, max_strings=self.max_strings, total=total, work=work, progress=progress
            )
        else:
            from mintage.segment import train_byte_gru

            model = train_byte_gru(texts, self, total=total, work=work, progress=progress)
        return EqualInfoSegmenter(model, self.window_bits, self.token_bits)

    @classmethod
    def tiny(cls) -> EqualInfo:
        """Two bytes of context."""
        return cls(order=2)


class EqualInfoSegmenter(Segmenter):
    """Bytes to tokens of equal information and back.

    Parameters
    ----------
    model
        The byte model, whose frequencies sum to ``total_frequency(window_bits)``.
    window_bits, token_bits
        Size of a window, and of the tokens that it is cut into, first bits first.

    Raises
    ------
    UserError
        The sizes do not fit together.
    """

    method = "equal-info"

    def __init__(self, model: ByteModel, window_bits: int = 16, token_bits: int = 16) -> None:
        _check_sizes(window_bits, token_bits)
        if model.total != total_frequency(window_bits):
            raise UserError(
                f"the model's frequencies sum to {model.total}, windows of {window_bits} bits need "
                f"{total_frequency(window_bits)}; train the model for these windows"
            )
        self.model, self.window_bits, self.token_bits = model, window_bits, token_bits

    @property
    def vocab_size(self) -> int:
        """Two to the power of `token_bits`."""
        return 1 << self.token_bits

    @property
    def tokens_per_window(self) -> int:
        """How many ids make a window."""
        return self.window_bits // self.token_bits

    @cached_property
    def _strings(self) -> list[bytes]:
        return window_strings(self.model, self.window_bits)

    @cached_property
    def _matcher(self) -> Any:
        try:
            import ahocorasick_rs
        except ModuleNotFoundError:
            raise missing_extra("ahocorasick_rs", "segment") from None
        # the last string is empty and never coded; the others stand at their codes
        return ahocorasick_rs.BytesAhoCorasick(self._strings[:-1], matchkind=ahocorasick_rs.MatchKind.LeftmostLongest)

    def tokens(self) -> list[bytes] | None:
        """Return the string of every id where a window is one token (up to 16 bits), else None.

        The last id's is empty: a window that stops before its first byte, which encoding never gives.
        """
        whole = self.tokens_per_window == 1 and self.window_bits <= _TREE_BITS
        return list(self._strings) if whole else None

    def _windows(self, data: bytes, cuts: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
        """Yield the codes and ends of the windows of each stretch between `cuts`."""
        if self.window_bits <= _TREE_BITS:
            for start, stop in pairwise(cuts):
                found = self._matcher.find_matches_as_indexes(data[start:stop])
                yield [code for code, _, _ in found], [start + end for _, _, end in found]
            return
        bounds = self.model.bounds(data)
        for start, stop in pairwise(cuts):
            yield code_windows(bounds, start, stop, self.window_bits, self.model.total)

    def encode_windows(self, data: str | bytes) -> list[int]:
        """Return the number of each window, below ``2**window_bits``."""
        data = as_bytes(data)
        return next(iter(self._windows(data, [0, len(data)])))[0]

    def window_spans(self, data: str | bytes) -> list[tuple[int, int]]:
        """Return the first byte of each window and the one after its last. Characters may straddle windows."""
        data = as_bytes(data)
        ends = next(iter(self._windows(data, [0, len(data)])))[1]
        return list(zip([0, *ends], ends, strict=False))

    def encode_bytes(self, data: bytes) -> list[int]:
        """Code bytes; the last window may be only partly used."""
        return self._ids(self.encode_windows(data))

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """Code many texts, each from an empty window."""
        batch = [as_bytes(text) for text in texts]
        cuts = np.cumsum([0, *map(len, batch)]).tolist()
        return [self._ids(codes) for codes, _ in self._windows(b"".join(batch), cuts)]

    def _ids(self, codes: list[int]) -> list[int]:
        if self.tokens_per_window == 1:
            return codes
        mask, bits = self.vocab_size - 1, self.token_bits
        shifts = range(self.window_bits - bits, -1, -bits)
        return [code >> by & mask for code in codes for by in shifts]

    def _codes(self, ids: Sequence[int]) -> list[int]:
        self.check_ids(ids)
        size = self.tokens_per_window
        if len(ids) % size:
            raise UserError(f"{len(ids)} ids are no whole windows of {size}; pass a multiple of {size}")
        codes = []
        for begin in range(0, len(ids), size):
            code = 0
            for token in ids[begin : begin + size]:
                code = code << self.token_bits | int(token)
            codes.append(code)
        return codes

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes. Windows are independent: ids from a model, too, decode to something.

        Raises
        ------
        UserError
            An id is not in the vocabulary, or the last window is not whole.
        """
        codes = self._codes(ids)
        if self.window_bits <= _TREE_BITS:
            return b"".join(map(self._strings.__getitem__, codes))
        return decode_windows(codes, self.model, self.window_bits)[0].astype(np.uint8).tobytes()

    def decode_window(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of one window, by itself.

        Raises
        ------
        UserError
            `ids` are not one window.
        """
        if len(ids) != self.tokens_per_window:
            raise UserError(f"{len(ids)} ids are not one window; a window is {self.tokens_per_window}")
        return self.decode_bytes(ids)

    def to_hf(self) -> Any:
        """Return a fast tokenizer with the same ids, where a window is one token of up to 16 bits.

        One regular expression spells the tree of all strings, so that its matches are the longest ones.
        """
        strings = self.tokens()
        if strings is None:
            raise UserError(
                f"windows of {self.window_bits} bits in tokens of {self.token_bits} have no tokenizer.json: an id "
                "means nothing by itself; use window_bits=16 and token_bits=16"
            )
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {to_byte_chars(string): code for code, string in enumerate(strings)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
        try:
            split = pre_tokenizers.Split(Regex(longest_match_pattern(filter(None, vocabulary))), behavior="isolated")
        except Exception as error:  # the library raises plain Exceptions
            reason = str(error).splitlines()[0]
            raise UserError(f"the strings of these windows are too long for a tokenizer.json ({reason})") from None
        bytes_first = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([bytes_first, split])
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the sizes, the byte model and its checksum."""
        if isinstance(self.model, ByteNGram):
            about: dict[str, Any] = {"model": "ngram", "order": self.model.order}
        elif isinstance(self.model, ByteGRU):
            about = {"model": "gru"}
        else:
            raise UserError(f"a {type(self.model).__name__} cannot be saved; save it yourself and make this again")
        sizes = {"window_bits": self.window_bits, "token_bits": self.token_bits}
        return {**sizes, **about, "checksum": self._checksum}, self.model.arrays()

    @cached_property
    def _checksum(self) -> str:
        return self.model.checksum()

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> EqualInfoSegmenter:
        """Make the segmenter again, and check that its model gives the frequencies that it gave where it was saved."""
        total = total_frequency(values["window_bits"])
        model: ByteModel
        if values["model"] == "ngram":
            model = ByteNGram(arrays["grams"], arrays["counts"], values["order"], total)
        else:
            model = ByteGRU(arrays, total)
        segmenter = cls(model, values["window_bits"], values["token_bits"])
        if segmenter._checksum != values["checksum"]:
            raise UserError(
                f"the byte model has checksum {segmenter._checksum} here, {values['checksum']} where it was saved; the "
                "file is damaged, or this machine computes otherwise: what was coded there cannot be decoded here"
            )
        return segmenter


def _check_sizes(window_bits: int, token_bits: int) -> None:
    if window_bits < 10:
        raise UserError(f"window_bits={window_bits} is below 10, too little for a byte; pass e.g. 16")
    if not 1 <= token_bits <= 16 or window_bits % token_bits:
        raise UserError(
            f"token_bits={token_bits} does not cut windows of {window_bits} bits; pass a divisor of up to 16, e.g. 8"
        )

"""Fill in the middle: prompts of a model that was trained to write what stands between two texts.

Not here: models without control tokens for it; they see what comes before, never what comes after.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from mintage.errors import UserError

__all__ = ["FimTokens", "Order", "infill_prompt"]

Order = Literal["psm", "spm"]
"""Prefix, suffix, middle; or suffix, then the prefix with the middle behind it."""

_USUAL = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ""),  # StarCoder, SantaCoder
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"),  # Qwen Coder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ""),
    ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),  # Code Llama
    ("<PRE>", "<SUF>", "<MID>", "<EOT>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ""),  # noqa: RUF001  DeepSeek Coder
)


@dataclass(frozen=True, kw_only=True)
class FimTokens:
    """Ids of the tokens that say which text follows.

    Parameters
    ----------
    prefix, suffix, middle
        Stand before each part.
    end
        Further tokens that end the middle.
    """

    prefix: int
    suffix: int
    middle: int
    end: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> FimTokens:
        """Find the usual ones in a tokenizer.

        Parameters
        ----------
        tokenizer
            Has ``get_vocab()``.

        Raises
        ------
        UserError
            It has none.
        """
        vocabulary = tokenizer.get_vocab()
        for *parts, end in _USUAL:
            if all(name in vocabulary for name in parts):
                ends = (vocabulary[end],) if end in vocabulary else ()
                before, after, middle = (vocabulary[name] for name in parts)
                return cls(prefix=before, suffix=after, middle=middle, end=ends)
        raise UserError(
            "this model has no tokens to fill in the middle with, such as <fim_prefix>; "
            "pass FimTokens(prefix=, suffix=, middle=), or take a model that was trained for it, such as StarCoder"
        )


def infill_prompt(
    encode: Any, fim: FimTokens, prefix: bytes, suffix: bytes, order: Order
) -> tuple[tuple[int, ...], bytes]:
    """Return the tokens up to the last control token, and the text behind it that the middle goes on from.

    The last word of the prefix stands behind the last control token in either order, so that what completes it is
    summed over; no token reaches over a control token.

    Parameters
    ----------
    encode
        From bytes to canonical tokens, or None where there are none.

    Raises
    ------
    UserError
        Unknown order; a part that has no encoding.
    """
    if order == "spm":
        before, last = (fim.prefix, fim.suffix, *_encoded(encode, suffix), fim.middle), prefix
    elif order == "psm":
        match = re.search(rb"\s*\S*\Z", prefix)
        cut = match.start() if match else len(prefix)
        head = _encoded(encode, prefix[:cut])
        before, last = (fim.prefix, *head, fim.suffix, *_encoded(encode, suffix), fim.middle), prefix[cut:]
    else:
        raise UserError(f"unknown order {order!r}; pass psm or spm")
    return before, last


def _encoded(encode: Any, text: bytes) -> tuple[int, ...]:
    tokens = encode(text)
    if tokens is None:
        raise UserError(f"{text[-8:]!r} ends within a character; cut the text at a whole one")
    return tokens

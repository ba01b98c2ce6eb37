"""Fill in the middle: prompts of a model that was trained to write what stands between two texts.

Not here: models without control tokens for it; they see what comes before, never what comes after.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from mintage.errors import UserError
from mintage.options import check_literals
from mintage.retrofit.exact_bytes import ByteLM

__all__ = ["FimTokens", "Order", "infill", "infill_prompt", "infilling"]

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


def infilling(
    model: ByteLM, prefix: bytes, suffix: bytes, *, fim: FimTokens | None = None, order: Order = "psm"
) -> tuple[ByteLM, bytes]:
    """Return a model with a fill-in-the-middle prompt before it, and the text that the middle goes on from.

    Parameters
    ----------
    model
        Was trained for it.
    prefix, suffix
        What the middle stands between; the prefix may end within a word.
    fim
        The model's control tokens; default: the usual ones, where its tokenizer has them.
    order
        ``"psm"`` or ``"spm"``, as the model was trained.

    Raises
    ------
    UserError
        The model has no such tokens.
    """
    fim = FimTokens.of(model.vocabulary.tokenizer) if fim is None else fim

    def encode(text: bytes) -> tuple[int, ...] | None:
        fixed, rest = model.vocabulary.forced(text)
        free = model.vocabulary.encode(rest)
        return None if free is None else (*fixed, *free)

    before, last = infill_prompt(encode, fim, prefix, suffix, order)
    end = (*model.end, *(token for token in fim.end if token not in model.end))
    return replace(model, context=(*model.context, *before), end=end), last


def infill(
    model: ByteLM,
    prefix: bytes,
    suffix: bytes,
    max_bytes: int = 64,
    *,
    fim: FimTokens | None = None,
    order: Order = "psm",
    **settings: Any,
) -> bytes:
    """Write what stands between two texts; `settings` are those of `ByteSampler.stream`, the others of `infilling`."""
    ready, last = infilling(model, prefix, suffix, fim=fim, order=order)
    return ready.generate(last, max_bytes, **settings)


@check_literals
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
        return (fim.prefix, fim.suffix, *_encoded(encode, suffix), fim.middle), prefix
    match = re.search(rb"\s*\S*\Z", prefix)
    cut = match.start() if match else len(prefix)
    before = (fim.prefix, *_encoded(encode, prefix[:cut]), fim.suffix, *_encoded(encode, suffix), fim.middle)
    return before, prefix[cut:]


def _encoded(encode: Any, text: bytes) -> tuple[int, ...]:
    tokens = encode(text)
    if tokens is None:
        raise UserError(f"{text[-8:]!r} ends within a character; cut the text at a whole one")
    return tokens

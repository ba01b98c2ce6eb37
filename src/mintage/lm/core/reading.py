"""From logits to a `Reading`: what bytes and the ends of words cost."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from mintage.errors import UserError
from mintage.lm.contract import ByteLanguageModel, LMConfig, Reading
from mintage.lm.core.words import Words

__all__ = ["END", "byte_reading", "lengths_of", "real", "seeded", "word_logits", "word_reading"]

END = 256
"""The symbol behind the last byte of a word."""

_NOTHING = -100
"""Of places that predict no symbol."""

Model = TypeVar("Model", bound=ByteLanguageModel)


def seeded(kind: type[Model], config: LMConfig, seed: int = 0) -> Model:
    """Make a model whose weights follow from the seed alone, in `eval` mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config).eval()


def lengths_of(ids: Int[Tensor, "batch bytes"], mask: Tensor | None) -> Int[Tensor, " batch"]:
    """Return the bytes of each row.

    Raises
    ------
    UserError
        A row is filled elsewhere than at its end, or something is no byte.
    """
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) > 255):
        raise UserError(f"ids from {int(ids.min())} to {int(ids.max())} are no bytes; pass 0 to 255")
    if mask is None:
        return torch.full((len(ids),), ids.shape[1], device=ids.device)
    lengths = mask.long().sum(1)
    if not torch.equal(mask.bool(), real(lengths, ids.shape[1])):
        raise UserError("the mask has a 0 before a 1; rows are filled at their ends here")
    return lengths


def real(lengths: Int[Tensor, " batch"], width: int) -> Bool[Tensor, "batch width"]:
    """Whether a place of a row is not filling."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def byte_reading(
    logits: Float[Tensor, "batch bytes symbols"],
    ids: Int[Tensor, "batch bytes"],
    lengths: Int[Tensor, " batch"],
    extra: Tensor | float = 0.0,
    **told: float,
) -> Reading:
    """Make a reading from the logits of every byte; `extra` joins the loss."""
    nats = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), reduction="none").view(ids.shape)
    seen = real(lengths, ids.shape[1])
    nats = torch.where(seen, nats, 0.0)
    loss = nats.sum() / lengths.sum().clamp(min=1) + extra
    return Reading(loss=loss, nats=nats, right=(logits.argmax(-1) == ids) & seen, told=told)


def word_logits(logits: Float[Tensor, "places 257"], words: Words, most: int) -> Float[Tensor, "places 257"]:
    """Forbid the end of an empty word, and anything but the end behind `most` bytes."""
    place = words.places - (words.lead - 1)  # bytes of the word so far, at the places that predict
    logits = logits.float()
    nothing, all_ = (torch.nonzero(found)[:, 0] for found in (place <= 0, place >= most))
    logits = logits.index_put((nothing, nothing.new_tensor(END)), logits.new_tensor(-torch.inf))
    if not len(all_):
        return logits
    only_end = torch.full_like(logits[0], -torch.inf)
    only_end[END] = 0
    return logits.index_put((all_,), only_end)


def word_reading(
    logits: Float[Tensor, "places 257"],
    flat: Int[Tensor, all],
    words: Words,
    seen: Bool[Tensor, "batch bytes"],
    extra: Tensor | float = 0.0,
    **told: float,
) -> Reading:
    """Make a reading of packed words.

    Parameters
    ----------
    logits
        Of bytes and `END` at every place, as `word_logits` leaves them; those of all leading places but the last of
        each word are not looked at.
    flat
        The batch's bytes, in order.
    words
        Where they stand.
    seen
        Where they stand in rows.
    extra, told
        As in `byte_reading`.
    """
    before_byte = torch.nonzero(words.is_byte)[:, 0] - 1
    target = torch.full_like(words.word, END)
    target[before_byte] = flat
    target[words.places < words.lead - 1] = _NOTHING
    nats = F.cross_entropy(logits, target, reduction="none", ignore_index=_NOTHING)
    right = logits.argmax(-1) == target
    at_end = words.ends - 1
    closed = ~words.is_last
    by_byte, good = nats[before_byte], right[before_byte]
    first = words.lengths.cumsum(0)[closed]  # number of the byte behind a closed word
    by_byte = by_byte.index_add(0, first, nats[at_end][closed])
    good = good.index_put((first,), good[first] & right[at_end][closed])
    full = torch.zeros(seen.shape, device=seen.device).masked_scatter(seen, by_byte)
    symbols = len(flat) + int(closed.sum())
    loss = by_byte.sum() / max(symbols, 1) + extra
    hit = torch.zeros_like(seen).masked_scatter(seen, good)
    return Reading(loss=loss, nats=full, right=hit, told=told)

"""What trainings make of a model: its first blocks, pieces of texts in its tokens, tokens cut at random places."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import nn

from mintage.errors import UserError
from mintage.models import CausalLM
from mintage.retrofit.core.token_bytes import TokenBytes

__all__ = ["HELD_OUT", "cut_vocabulary", "first_blocks", "pieces_of_texts"]

_CUT = 20_000  # tokens of the vocabulary that are cut

HELD_OUT = 20
"""Every so many-th piece of text is not trained on."""


def first_blocks(model: Any, layers: int) -> Any:
    """Return the model's first blocks and its last norm, as a model of its own that shares the weights.

    Raises
    ------
    UserError
        The model has no ``layers``, or not as many.
    """
    base = model.base_model
    blocks = getattr(base, "layers", None)
    if blocks is None:
        raise UserError(f"the blocks of {type(model).__name__} are not known; supported: models with model.layers")
    if not 1 <= layers <= len(blocks):
        raise UserError(f"layers={layers} is outside 1..{len(blocks)}, the blocks of the model")
    if layers == len(blocks):
        return base
    cut = copy.copy(base)
    cut._modules = dict(base._modules)
    cut.config = copy.copy(base.config)
    cut.config.num_hidden_layers = layers
    cut.layers = nn.ModuleList(blocks[:layers])
    return cut


def pieces_of_texts(lm: CausalLM, texts: Iterable[str], tokens: int = 160) -> list[list[int]]:
    """Return the beginnings of texts, the opening token before each; texts of less than a quarter are left out.

    Raises
    ------
    UserError
        There are fewer than twenty.
    """
    opening = [] if lm.opening is None else [lm.opening]
    found = []
    texts = list(texts)
    tokenizer: Any = lm.tokenizer
    for first in range(0, len(texts), 1024):
        encoded = tokenizer(texts[first : first + 1024], add_special_tokens=False)["input_ids"]
        found += [[*opening, *ids[: tokens - 1]] for ids in encoded if len(ids) >= tokens // 4]
    if len(found) < HELD_OUT:
        raise UserError(f"only {len(found)} texts have {tokens // 4} tokens; pass at least {HELD_OUT}, one per line")
    return found


def cut_vocabulary(vocabulary: TokenBytes, longest: int, seed: int) -> tuple[list[int], list[list[int]]]:
    """Cut tokens of the vocabulary at one to three random places, and cut what falls out as the tokenizer does."""
    draw = np.random.default_rng(seed)
    tokens = [token for token in vocabulary.ids if len(token) > 2]
    whole, parts = [], []
    for index in draw.permutation(len(tokens))[:_CUT]:
        token = tokens[index]
        cuts = sorted(1 + draw.choice(len(token) - 1, min(len(token) - 1, int(draw.integers(1, 4))), replace=False))
        ends = zip([0, *cuts], [*cuts, len(token)], strict=True)
        made = [part for start, end in ends for part in vocabulary.parts(token[start:end])]
        if 2 <= len(made) <= longest:
            whole.append(vocabulary.ids[token])
            parts.append(made)
    if not whole:
        raise UserError("no token of this vocabulary is made of others, so nothing can be learnt from it")
    return whole, parts

"""The next-token distribution of a model, its cache reused from call to call; and a small one, known to the end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mintage.errors import UserError
from mintage.models import with_cache

__all__ = ["ModelDistribution", "TokenDistribution", "croppable_cache", "enumerated", "with_croppable_cache"]

Tokens = tuple[int, ...]
TokenDistribution = Callable[[Tokens], NDArray[np.float64]]
"""Log-probabilities of the next token, [V], after these tokens."""

_KEPT = 64  # distributions remembered
_AT_ONCE = 6  # distributions taken from one forward
_NO_CONTEXT = "a model needs one token to start from; pass a context, e.g. its end-of-text token"


def croppable_cache(model: Any) -> Any:
    """Make a key-value cache that can be cut back to any length; None for models that keep other states.

    Layers with a window forget what left it; here they keep all, and the model's own mask hides it.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    made = DynamicCache(config=model.config)
    kinds = {type(layer) for layer in made.layers}
    if kinds <= {DynamicLayer}:
        return made
    return DynamicCache() if kinds <= {DynamicLayer, DynamicSlidingWindowLayer} else None


def with_croppable_cache(model: Any) -> dict[str, Any]:
    """Return the keyword argument that passes a new `croppable_cache`; nothing where there is none."""
    made = croppable_cache(model)
    return {} if made is None else with_cache(model, made)


class ModelDistribution:
    """Of a Hugging Face model, whose key-value cache is cut back and reused where it has one that can be."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.forwards = 0
        self._read: list[int] = []
        self._cache: Any = None
        self._known: OrderedDict[Tokens, NDArray[np.float64]] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, tokens: Tokens) -> NDArray[np.float64]:
        """Return the log-probabilities after `tokens`, at least one."""
        if tokens in self._known:
            self._known.move_to_end(tokens)
            return self._known[tokens]
        if not tokens:
            raise UserError(_NO_CONTEXT)
        if self._cache is None:
            self._cache = croppable_cache(self.model)
        same = next((i for i, (a, b) in enumerate(zip(self._read, tokens[:-1], strict=False)) if a != b), None)
        same = min(len(self._read), len(tokens) - 1) if same is None else same
        if self._cache is None:
            same, given = 0, {"use_cache": False}
        else:
            self._cache.crop(same - len(self._read))
            given = {**with_cache(self.model, self._cache), "use_cache": True}
        ids = torch.tensor([tokens[same:]], device=self.model.device)
        kept = min(len(tokens) - same, _AT_ONCE)
        logits = self.model(ids, **given, logits_to_keep=kept).logits[0]
        self._read = list(tokens)
        self.forwards += 1
        rows = logits.double().log_softmax(-1).cpu().numpy()
        for back, row in enumerate(rows[::-1]):  # those of shorter encodings come with it, and covers begin with them
            self._known[tokens[: len(tokens) - back]] = row
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        self._known.move_to_end(tokens)
        return self._known[tokens]

    @torch.inference_mode()
    def score(self, tokens: Tokens, first: int) -> float:
        """Return the log-probability of the tokens from number `first` on, given those before, in one forward."""
        if first >= len(tokens):
            return 0.0
        if not first:
            raise UserError(_NO_CONTEXT)
        logits = self.model(torch.tensor([tokens], device=self.model.device)).logits[0, first - 1 : -1]
        wanted = torch.tensor(tokens[first:], device=logits.device)
        self.forwards += 1
        return float(logits.double().log_softmax(-1).gather(1, wanted[:, None]).sum())


def enumerated(encode: Callable[[str], Sequence[int]], vocabulary: int, seed: int = 0) -> TokenDistribution:
    """Make a random distribution over all texts of up to five letters ``a`` and ``b``; every mass is known.

    Parameters
    ----------
    encode
        From a text to its tokens, below `vocabulary`; that number itself is the end of the text.
    """
    draw = np.random.default_rng(seed)
    mass: dict[Tokens, NDArray[np.float64]] = {}
    for size in range(6):
        for letters in product("ab", repeat=size):
            tokens = tuple(encode("".join(letters)))
            weight = draw.random() * 0.5**size
            for length in range(len(tokens) + 1):
                row = mass.setdefault(tokens[:length], np.zeros(vocabulary + 1))
                row[tokens[length] if length < len(tokens) else vocabulary] += weight

    def distribution(tokens: Tokens) -> NDArray[np.float64]:
        row = mass.get(tokens)
        if row is None:
            return np.full(vocabulary + 1, -np.inf)
        with np.errstate(divide="ignore"):
            return np.log(row / row.sum())

    return distribution

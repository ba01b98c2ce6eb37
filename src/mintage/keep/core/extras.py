"""What a model hands to its attention function besides queries, keys, values and mask, and what becomes of it.

While a layer is whole the model's own function gets everything as it came. Over other entries it is the model's own
function, too, wherever something is passed that changes scores or weights, so that sinks, caps and dropout are the
model's; `KNOWN` says of every argument that transformers' decoders pass what it means to a choice of entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mintage.errors import UserError

__all__ = ["KNOWN", "Extras"]

KNOWN = {
    "scaling": "served: factor of the scores",
    "dropout": "served: the model's own function draws it",
    "softcap": "served: the model's own function caps, and scores of policies that look at attention are capped",
    "s_aux": "served: learned sinks take their share of every softmax, that of the scores, too",
    "sinks": "served, as s_aux",
    "position_bias": "served: the columns of the entries read; refused by policies that look at attention",
    "sliding_window": "served: the mask holds it",
    "is_causal": "served: the mask holds it",
    "cu_seq_lens_q": "served: as plain sdpa and eager, which leave it unread",
    "cu_seq_lens_k": "served: as plain sdpa and eager, which leave it unread",
    "max_length_q": "served: as plain sdpa and eager, which leave it unread",
    "max_length_k": "served: as plain sdpa and eager, which leave it unread",
    "position_ids": "served: the model has rotated by them",
    "output_attentions": "served with eager attention, over all tokens read: what was dropped weighs 0; else refused",
    "indices": "refused: another choice of tokens, made by the model itself",
    "block_indices": "refused: another choice of tokens, made by the model itself",
}
"""Arguments of transformers' attention functions. What is not here: a tensor is refused by name, else passed on."""

_REFUSED = {"indices", "block_indices"}
_ACTING = {"softcap", "position_bias"} | _REFUSED


class _Grouped:
    """A module as its attention function sees it, with another number of query heads per key-value head."""

    def __init__(self, module: Any, share: int) -> None:
        self.__module, self.num_key_value_groups = module, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__module, name)


@dataclass(frozen=True, eq=False)
class Extras:
    """The model's own attention function, bound to what it was passed."""

    own: Any
    module: Any
    eager: bool
    passed: dict[str, Any] = field(default_factory=dict)

    def scaling(self, query: Tensor) -> float:
        """Factor of the scores."""
        given = self.passed.get("scaling")
        return query.shape[-1] ** -0.5 if given is None else given

    @property
    def plain(self) -> bool:
        """Whether nothing but the scaling acts on scores and weights, so that any attention to the entries will do."""
        acting = self.passed.get("dropout") or any(
            value is not None and (name in _ACTING or (isinstance(value, Tensor) and name not in KNOWN))
            for name, value in self.passed.items()
        )
        return self.own is sdpa_attention_forward and not acting

    @property
    def softcap(self) -> float | None:
        """Bound of the scores."""
        return self.passed.get("softcap")

    @property
    def sinks(self) -> Tensor | None:
        """Learned logit of each query head that takes a share of every softmax; plain sdpa leaves it unread."""
        if not self.eager:
            return None
        given = self.passed.get("s_aux")
        return self.passed.get("sinks") if given is None else given

    def check(self, *, looks: bool = False) -> None:
        """Refuse what cannot be brought together with a choice of entries; `looks` where their weights are to be known.

        Raises
        ------
        UserError
            It names the argument.
        """
        for name, value in self.passed.items():
            odd = isinstance(value, Tensor) and (name not in KNOWN or name in _REFUSED)
            if odd or (looks and name == "position_bias" and value is not None):
                raise UserError(
                    f"{type(self.module).__name__} passes {name!r} to its attention, which does not go with a policy "
                    f"that {'looks at attention' if looks else 'reads some entries only'}; use full-cache"
                )

    def call(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Run the model's own function as it was called."""
        return self.own(self.module, query, key, value, mask, **self.passed)

    def over(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run the model's own function over some entries.

        Parameters
        ----------
        mask
            Boolean or additive, [B, heads of keys or 1, Q, M].
        tokens
            Which token each entry is, [B or 1, heads of keys or 1, M].
        """
        heads, batch = query.shape[1], query.shape[0]
        share = heads // key.shape[1]
        module = self.module
        if getattr(module, "num_key_value_groups", 1) != share:
            module = _Grouped(module, share)

        def spread(states: Tensor) -> Tensor:
            return states if states.shape[1] == 1 else states.repeat_interleave(heads // states.shape[1], 1)

        if self.eager and mask.dtype == torch.bool:  # eager attention adds the mask, and would add True as 1
            lowest = torch.finfo(query.dtype).min
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill_(~mask, lowest)
        passed = dict(self.passed)
        bias = passed.get("position_bias")
        if bias is not None:
            index = spread(tokens.clamp(min=0).long())[:, :, None]
            wide = torch.broadcast_shapes(bias.shape[:2], index.shape[:2])
            bias = bias.expand(*wide, *bias.shape[2:])
            passed["position_bias"] = bias.gather(3, index.expand(*wide, bias.shape[2], -1))
        return self.own(module, query, key, value, spread(mask.expand(batch, -1, -1, -1)), **passed)

"""ZeTT: a hypernetwork predicts the embeddings of any tokenizer's tokens for a trained model.

*Zero-Shot Tokenizer Transfer*, Minixhofer, Ponti and Vulić, NeurIPS 2024, arXiv 2405.07883. A token of the new
tokenizer is cut into at most seven tokens of the old one (its surface form); a small transformer
(`mintage.retrofit.core.hypernetwork`) reads their embeddings, and its first state gives the token's input embedding,
output embedding and output bias. The tokens' texts are all that it sees, so one hypernetwork serves every tokenizer.

A deviation, on by default: what is predicted is added to the mean of the parts' embeddings (``residual="mean"``), so
that minutes of training start from FVT rather than from nothing; ``residual="none"`` is the paper's network.

Not here: training (`mintage.retrofit.training.zett`), language embeddings of the multilingual hypernetworks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from mintage.errors import UserError
from mintage.options import option
from mintage.retrofit.core.embeddings import Composed, EmbeddingTransfer, Parts, mean_row
from mintage.retrofit.core.hypernetwork import (
    Hypernetwork,
    HypernetworkShape,
    embeddings_of,
    load_hypernetwork,
    surface_forms,
)

__all__ = ["Zett"]

_AT_ONCE = 4096  # tokens per forward
_LENGTH = 7  # parts of a token that published networks read


@dataclass(frozen=True, kw_only=True, eq=False)
class Zett(EmbeddingTransfer):
    """Embeddings by a hypernetwork."""

    copies: ClassVar[bool] = False

    weights: str | None = option(None, "File of mintage train zett; none takes what ships, for the embedded model.")
    net: Any = option(None, "A network in memory, in its place.")
    official: Any = option(None, "Instead: weights and sizes that the authors publish, see `from_official`.")

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Any], config: Any = None) -> Zett:
        """Take a hypernetwork that the authors publish; it belongs to the model that they name.

        Parameters
        ----------
        state_dict
            Weights of their ``ZettHypernet``, by their names.
        config
            Its ``config.json`` as a mapping, or the object; left out, the sizes that the authors use: tokens of the
            model's own number, a head for 64 dimensions, 7 parts of a token.
        """
        told = dict(config if isinstance(config, Mapping) else getattr(config, "to_dict", dict)())
        return cls(official=(dict(state_dict), told))

    @cached_property
    def _net(self) -> Hypernetwork:
        if self.official is not None:
            raise UserError(
                "published weights are read when the model is known; call fitted(source, tokens, texts) first"
            )
        return self.net or load_hypernetwork(self.weights)

    @property
    def length(self) -> int:
        """Parts of a token that are read."""
        return self._net.shape.length

    def fitted(self, source: Parts, tokens: Sequence[bytes], texts: Sequence[Sequence[int]]) -> EmbeddingTransfer:
        """Check that the network was made for this model."""
        if self.official is not None:
            state, told = self.official
            net = Hypernetwork.from_official(
                state,
                vocabulary=told.get("original_vocab_size") or len(source.input),
                heads=told.get("hn_num_attention_heads"),
                length=told.get("hn_surface_maxlen") or _LENGTH,
            )
            return replace(self, net=net, official=None).fitted(source, tokens, texts)
        if self.net is None:
            return replace(self, net=load_hypernetwork(self.weights, source))
        made, mine = self.net.shape, (len(source.input), source.input.shape[1], source.tied)
        if (made.vocabulary, made.width, made.tied) != mine:
            raise UserError("the hypernetwork was made for other embeddings; make one with mintage train zett")
        return self

    @torch.no_grad()
    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens, in float32; ones of bytes that the model lacks get the mean row."""
        net = self._net.to(source.input.device)
        parts = source.of(tokens)
        surface = surface_forms(parts, net.shape.length, pad=net.pad, empty=net.shape.vocabulary)
        read = embeddings_of(source)
        made = [net(some, read) for some in surface.to(source.input.device).split(_AT_ONCE)]
        first, second, bias = (torch.cat([getattr(m, name) for m in made]) for name in Composed._fields)
        empty = torch.tensor([not row for row in parts], device=first.device)
        first[empty], second[empty] = mean_row(source.input), mean_row(source.output)
        return Composed(first, first if source.tied else second, bias)

    @classmethod
    def tiny(cls) -> Zett:
        """Make an untrained one, for models of width 32 over 256 or more tokens; it is FVT, as it starts there."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            shape = HypernetworkShape(vocabulary=257, width=32, hidden=16, inner=16, layers=1, heads=2)
            return cls(net=Hypernetwork(shape).eval())

"""Small models for laws: exact, offline, and honest about masks, positions and caches."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mintage.models import TINY_VOCABULARY

__all__ = ["TableLM"]

WIDTH = 32
"""Width of the toys' input embeddings; `mintage.models.tiny_causal_lm` has the same."""

_UNKNOWN = -1


class TableLM(PreTrainedModel, GenerationMixin):
    """A language model whose next-token logits are ``table[previous, current]``: a known law to test against.

    It finds the previous token through its key-value cache, its mask and its positions, as attention would, so a wrong
    mask, position or cache row changes the output. Before the first token, previous counts as token 0.

    Inputs may also be embeddings. A row that is no token's embedding is an unknown token: whatever is said at it or
    right after it is uniform, so an ordinary token that wrongly sees a probe gives itself away.

    Parameters
    ----------
    table
        Logits of shape (vocabulary, vocabulary, vocabulary), or (vocabulary, vocabulary) for a first-order law.
    """

    config_class = PreTrainedConfig
    _supports_sdpa = True

    def __init__(self, table: Float[Tensor, "*order vocabulary"]) -> None:
        size = table.shape[-1]
        settings: dict[str, Any] = {"vocab_size": size, "num_hidden_layers": 1, "eos_token_id": None}
        super().__init__(PreTrainedConfig(**settings))
        self.config._attn_implementation = "sdpa"
        self.table = nn.Parameter(table.expand(size, size, size).clone(), requires_grad=False)
        self.embedding = nn.Embedding(size, WIDTH)

    @classmethod
    def random(cls, *, seed: int = 0, size: int = TINY_VOCABULARY, scale: float = 1.5, order: int = 2) -> TableLM:
        """Make a random law; larger `scale` is more peaked."""
        shape = (size,) * (order + 1)
        return cls(torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale)

    def get_input_embeddings(self) -> nn.Module:
        """Tell where inputs live."""
        return self.embedding

    def get_output_embeddings(self) -> None:
        """Tell that there is no head."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Look up the visible token at the position before each input."""
        ids = self._tokens_of(inputs_embeds) if input_ids is None else input_ids
        batch, new = ids.shape
        cache = past_key_values if cache is None else cache  # transformers before 5.24 passes it by the older name
        past = 0 if cache is None else cache.get_seq_length()
        places = torch.arange(past, past + new, device=ids.device)[None] if position_ids is None else position_ids
        state = torch.stack([ids.double(), places.expand(batch, -1).double()], -1)[:, None]
        if cache is not None:
            state, _ = cache.update(state, state, 0)
        tokens, positions = state[:, 0, :, 0].long(), state[:, 0, :, 1].long()
        visible = torch.ones(new, tokens.shape[1], dtype=torch.bool).tril(tokens.shape[1] - new)[None]
        if attention_mask is not None and attention_mask.ndim == 4:
            visible = attention_mask[:, 0]
        elif attention_mask is not None:
            visible = visible & attention_mask[:, None, :].bool()
        before = visible & (positions[:, None, :] == places[:, :, None] - 1)
        column = before.int().argmax(-1)
        previous = torch.where(before.any(-1), tokens.gather(1, column), 0)
        known = (previous != _UNKNOWN) & (ids != _UNKNOWN)
        logits = self.table[previous, ids] * known[..., None]
        name = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"
        return CausalLMOutputWithPast(logits=logits[:, -logits_to_keep:], **{name: cache})

    def _tokens_of(self, embedded: Tensor | None) -> Tensor:
        """Recognise tokens by their embeddings."""
        assert embedded is not None, "pass input_ids or inputs_embeds"
        equal = (embedded[:, :, None] == self.embedding.weight.to(embedded.dtype)).all(-1)
        return torch.where(equal.any(-1), equal.int().argmax(-1), _UNKNOWN)

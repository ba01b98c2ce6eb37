"""Words scored in the original vocabulary, after a text that is read in any tokens which keep their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mintage.models import CausalLM
from mintage.retrofit.core.dynamic_tokenizer import DynamicBatch
from mintage.retrofit.core.embeddings import Parts, Provider

__all__ = ["WordNLL", "composed_rows", "word_nll"]


class WordNLL(NamedTuple):
    """Negative log-likelihood of the first part of every word but the first, in nats, and how many there are."""

    nats: float
    words: int


@torch.no_grad()
def word_nll(
    lm: CausalLM, ids: Sequence[int], words: Sequence[int], starts: Sequence[int], embeds: Tensor | None = None
) -> WordNLL:
    """Score the first part of words, in the original vocabulary, after a text in any tokens that keep their bounds.

    Parameters
    ----------
    ids
        Original tokens of the text.
    words
        Where in `ids` the scored words start; each must be in `starts`.
    starts
        Where in `ids` each token that is read starts.
    embeds
        What is read, [tokens, width]; None reads `ids`.
    """
    model: Any = lm.model
    device = model.device
    index = {start: number for number, start in enumerate(starts)}
    before = torch.tensor([index[word] - 1 for word in words], device=device)
    given = {"input_ids": torch.tensor([ids], device=device)} if embeds is None else {"inputs_embeds": embeds[None]}
    states = model.base_model(**given, use_cache=False).last_hidden_state[0, before]
    logp = model.get_output_embeddings()(states).float().log_softmax(-1)
    targets = torch.tensor([ids[word] for word in words], device=device)
    return WordNLL(float(-logp.gather(-1, targets[:, None]).double().sum()), len(words))


def composed_rows(source: Parts, provider: Provider, batch: DynamicBatch) -> Float[Tensor, "tokens width"]:
    """Return the embeddings of a batch's distinct tokens: originals, and the provider's for new ones."""
    rows = source.input[[0 if t.id is None else t.id for t in batch.unique]].clone()
    new = [index for index, token in enumerate(batch.unique) if token.id is None]
    if new:
        rows[new] = provider.rows(source, [batch.unique[index].surface for index in new]).input.to(rows)
    return rows

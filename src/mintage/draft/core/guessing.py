"""What a model guesses at prompt tokens after a text, and how often it is right.

Not here: the prompt tokens (`mintage.draft.core.prompt_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.draft.core.continuations import Continuation
from mintage.draft.core.prompt_tokens import PromptTokens, describe
from mintage.draft.core.target import Target
from mintage.models import CausalLM
from mintage.progress import Progress, silent

__all__ = ["guess_accuracy", "guess_logits", "text_initialised"]


def guess_logits(
    target: Target,
    ids: Int[Tensor, "batch length"],
    cuts: Int[Tensor, "batch cuts"],
    embeddings: Float[Tensor, "distances copies width"],
) -> tuple[Float[Tensor, "batch cuts distances vocabulary"], Float[Tensor, "batch length vocabulary"]]:
    """Append the prompt tokens at every cut of every text.

    Parameters
    ----------
    target
        The frozen model.
    ids
        Texts, padded on the right.
    cuts
        Prefix lengths; the prompt tokens after a cut see the prefix and the ones before them of the same copy.
    embeddings
        The prompt tokens.

    Returns
    -------
    guesses, own
        Logits at the prompt tokens, averaged over copies (differentiable), and the model's own at every token.
    """
    batch, length = ids.shape
    distances, copies, width = embeddings.shape
    count = cuts.shape[1]
    cache = target.new_cache(batch, length + count * copies * distances)
    columns = torch.arange(length, device=ids.device)
    with torch.no_grad():
        causal = (columns <= columns[:, None]).expand(batch, -1, -1)
        own = target.extend(ids, columns.expand(batch, -1), causal, cache)
    new = count * copies * distances
    prefix = cuts.repeat_interleave(copies * distances, dim=1)
    chains = torch.ones(distances, distances, dtype=torch.bool, device=ids.device).tril()
    among = torch.block_diag(*[chains] * (count * copies)).bool().expand(batch, -1, -1)
    lineage = torch.cat([columns < prefix[..., None], among], dim=-1)
    step = torch.arange(distances, device=ids.device).repeat(count * copies)
    positions = torch.cat([columns.expand(batch, -1), prefix + step], dim=1)
    rows = embeddings.transpose(0, 1).expand(batch, count, -1, -1, -1).reshape(batch, new, width)
    rows = rows.to(target.model.get_input_embeddings().weight.dtype)
    logits = target.extend(ids.new_zeros(batch, new), positions, lineage, cache, rows)
    return logits.view(batch, count, copies, distances, -1).float().mean(2), own


def text_initialised(lm: CausalLM, *, distances: int = 3, copies: int = 1) -> PromptTokens:
    """Start from words, as the paper does: the mean embedding of "Next 2 word" and so on (copies: of its parts)."""
    weight: Any = lm.model.get_input_embeddings().weight
    table: Tensor = weight.detach().float()
    rows = []
    for i in range(1, distances + 1):
        ids = lm.tokenizer(f"Next {i + 1} word", add_special_tokens=False)["input_ids"]
        ids = torch.tensor((ids * copies)[: max(len(ids), copies)], device=table.device)
        rows.append(torch.stack([part.mean(0) for part in table[ids].tensor_split(copies)]))
    target = Target(lm.model)
    return PromptTokens(
        torch.stack(rows), vocabulary=target.vocabulary, model=lm.name, architecture=describe(target)
    ).to(target.device)


@torch.no_grad()
def guess_accuracy(
    target: Target,
    tokens: PromptTokens,
    texts: Sequence[Continuation],
    *,
    ranks: int = 10,
    progress: Progress = silent,
) -> Float[Tensor, "distances ranks"]:
    """How often the r-th ranked guess at each distance is the token that came, over all cuts of the texts."""
    hits = torch.zeros(tokens.distances, ranks, dtype=torch.float64)
    total = 0
    for done, text in enumerate(texts):
        if cuts := text.cuts(tokens.distances + 1):
            ids = torch.tensor(text.ids, device=target.device)
            where = torch.tensor(cuts, device=target.device)
            guesses = guess_logits(target, ids[None], where[None], tokens())[0][0].topk(ranks, dim=-1).indices
            truth = ids[where[:, None] + torch.arange(1, tokens.distances + 1, device=target.device)]
            hits += (guesses == truth[..., None]).double().sum(0).cpu()
            total += len(cuts)
        progress("calibrate", done + 1, len(texts))
    return hits / max(total, 1)

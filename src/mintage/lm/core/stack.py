"""Transformer stacks over vectors: transformers' Llama blocks, over whole rows or inside packed words.

A stack has no vocabulary: it takes ``inputs_embeds`` and gives hidden states. One that works *inside words* takes all
words of a batch behind one another, without padding, and positions that restart in every word; only its attention,
which costs little, sees them as rows (`Words.groups`).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from mintage.errors import UserError
from mintage.lm.core.words import Words
from mintage.models import with_cache

__all__ = ["INSIDE", "block_flops", "check_heads", "inside_words", "over_rows", "stack", "stack_flops"]

INSIDE = "mintage_words"
"""Name of the attention inside packed words."""


def stack(width: int, layers: int, heads: int, *, inside: bool = False, causal: bool = True) -> LlamaModel:
    """Make a stack of Llama blocks with a final RMSNorm.

    Parameters
    ----------
    width, layers, heads
        Sizes; the feed-forward is 8/3 of the width, as Llama's.
    inside
        Whether it works inside packed words (`inside_words`), else over rows (`over_rows`).
    causal
        Whether a position sees only those before it.

    Raises
    ------
    UserError
        The heads do not divide the width into even sizes.
    """
    check_heads(width, heads)
    config = LlamaConfig(
        vocab_size=1,
        hidden_size=width,
        intermediate_size=-(-8 * width // 24) * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1 << 20,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = INSIDE if inside else "sdpa"
    made = LlamaModel(config)
    made.embed_tokens = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    attentions: list[Any] = [layer.self_attn for layer in made.layers]
    for attention in attentions:
        attention.is_causal = causal
    return made


def check_heads(width: int, heads: int) -> None:
    """Refuse heads that do not divide the width into even sizes.

    Raises
    ------
    UserError
        They do not.
    """
    if width % heads or width // heads % 2:
        raise UserError(f"a width of {width} is no even multiple of {heads} heads; pass e.g. {64 * heads}")


def over_rows(blocks: Any, hidden: Float[Tensor, "batch places width"], cache: Any = None) -> Tensor:
    """Run a causal stack over rows that begin at place 0 (or where `cache` ends); padding stands at their ends."""
    if not hidden.shape[1]:
        return hidden
    return blocks(inputs_embeds=hidden, use_cache=cache is not None, **with_cache(blocks, cache)).last_hidden_state


def inside_words(blocks: LlamaModel, hidden: Float[Tensor, "places width"], words: Words) -> Tensor:
    """Run a stack inside every word of a batch, all at once; shape as `hidden`."""
    if not len(hidden):
        return hidden
    return blocks(
        inputs_embeds=hidden[None], position_ids=words.places[None], use_cache=False, words=words
    ).last_hidden_state[0]


def _attention(
    module: nn.Module,
    query: Float[Tensor, "1 heads places size"],
    key: Float[Tensor, "1 heads all size"],
    value: Float[Tensor, "1 heads all size"],
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    words: Words | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend inside words: packed places become rows, and packed places again. Without words a row is one word."""
    if words is None:  # of a causal stack that goes on behind its cache: new places see the old ones
        whole = query.shape[2] == key.shape[2]
        mask = None if whole else torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
        mask = None if mask is None else mask.tril(key.shape[2] - query.shape[2])
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=whole, scale=scaling)
        return out.transpose(1, 2), None
    # torch's own attention is several times slower on thousands of rows this short, in bfloat16 most of all
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    parts = []
    for group in words.groups:
        q, k, v = (t[0][:, group.rows] for t in (query, key, value))  # heads words longest size
        scores = (q @ k.transpose(-1, -2)).float() * scale
        if module.is_causal:  # what a row is filled with stands behind what it holds
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        else:
            hidden = ~group.valid[:, None]
        out = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(v.dtype) @ v
        parts.append(out.permute(1, 2, 0, 3)[group.valid])
    return torch.cat(parts)[words.order][None], None  # 1 places heads size


ALL_ATTENTION_FUNCTIONS.register(INSIDE, _attention)


def stack_flops(blocks: Any, places: float, attended: float) -> float:
    """Count floating point operations of one forward: two for every multiply-add.

    Parameters
    ----------
    blocks
        The stack.
    places
        Positions that it runs over.
    attended
        How many positions one attends to, on average.
    """
    its = blocks.config
    width = its.num_attention_heads * (getattr(its, "head_dim", None) or its.hidden_size // its.num_attention_heads)
    return block_flops(blocks, width, its.num_hidden_layers, places, attended)


def block_flops(blocks: nn.Module, width: int, layers: int, places: float, attended: float) -> float:
    """Count the same for any blocks; their embeddings cost nothing."""
    linear = sum(m.weight.numel() for m in blocks.modules() if isinstance(m, nn.Linear | Conv1D))
    return places * (2 * linear + 4 * attended * width * layers)

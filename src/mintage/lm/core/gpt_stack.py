"""Stacks of word-pool's own blocks: GPT-2's (before-norm, GELU) and, to pool, BERT's (after-norm, ReLU)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import BertConfig, GPT2Config, GPT2Model
from transformers.models.bert.modeling_bert import BertEncoder

from mintage.errors import UserError
from mintage.lm.core.stack import INSIDE
from mintage.lm.core.words import Words
from mintage.models import with_cache

__all__ = ["gpt_inside_words", "gpt_over_rows", "gpt_stack", "pooling_stack"]


def gpt_stack(width: int, layers: int, heads: int, places: int, *, inside: bool = False) -> GPT2Model:
    """Make causal GPT-2 blocks with learnt positions for so many places; those inside words have no last norm.

    Raises
    ------
    UserError
        The heads do not divide the width.
    """
    _check(width, heads)
    config = GPT2Config(
        vocab_size=1,
        n_positions=places,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = INSIDE if inside else "sdpa"
    made = GPT2Model(config)
    made.wte = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    if inside:
        made.ln_f = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return made


def pooling_stack(width: int, layers: int, heads: int, feed_forward: int) -> BertEncoder:
    """Make bidirectional blocks inside words, as torch's ``TransformerEncoderLayer`` has them by default."""
    _check(width, heads)
    config = BertConfig(
        vocab_size=1,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        hidden_act="relu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
    )
    config._attn_implementation = INSIDE
    return BertEncoder(config)


def _check(width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"a width of {width} is no multiple of {heads} heads; pass e.g. {64 * heads}")


def gpt_over_rows(blocks: GPT2Model, hidden: Float[Tensor, "batch places width"], cache: Any = None) -> Tensor:
    """Run causal blocks over rows that begin at place 0 (or where `cache` ends); padding stands at their ends."""
    if not hidden.shape[1]:
        return hidden
    return blocks(inputs_embeds=hidden, use_cache=cache is not None, **with_cache(blocks, cache)).last_hidden_state


def gpt_inside_words(blocks: GPT2Model, hidden: Float[Tensor, "places width"], words: Words) -> Tensor:
    """Run causal blocks inside every word of a batch, all at once; shape as `hidden`."""
    if not len(hidden):
        return hidden
    places: Any = words.places[None]
    return blocks(inputs_embeds=hidden[None], position_ids=places, use_cache=False, words=words).last_hidden_state[0]

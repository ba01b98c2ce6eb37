"""A small Llama with a BPE tokenizer of its own texts, for whoever has no model to begin with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mintage.lm.core.bpe import BytePairs

__all__ = ["small_llama"]


def small_llama(
    texts: Iterable[str], vocabulary: int, width: int, layers: int, seed: int
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Make a model with random weights, tied embeddings and four heads, and a tokenizer learnt from `texts`."""
    learnt = BytePairs.train(texts, vocabulary)
    config = LlamaConfig(
        vocab_size=len(learnt.tokens),
        hidden_size=width,
        intermediate_size=-(-8 * width // 24) * 8,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=learnt.tokenizer)

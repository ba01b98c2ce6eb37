"""Models that forget: sliding windows, and states that cannot be cut back, under what goes back and forth in a text."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Lfm2Config,
    MambaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
)

from mintage.models import CausalLM
from mintage.retrofit import ByteLM, DynamicTokens
from mintage.retrofit.core.next_token import ModelDistribution, croppable_cache

SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 257,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "initializer_range": 0.3,
}
CONFIGS = {
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=6),
    "gemma2": lambda: Gemma2Config(**SIZES, sliding_window=6, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, sliding_window=6, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8
    ),
    "lfm2": lambda: Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "mamba": lambda: MambaConfig(
        vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=257, eos_token_id=256
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def lm(request):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="<s>")
    torch.manual_seed(0)
    return CausalLM(AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval(), tokenizer, request.param)


def whole(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1).numpy()


def test_a_text_that_goes_back_and_forth_gets_the_models_own_distributions(lm):
    law, draw = ModelDistribution(lm.model), np.random.default_rng(0)
    tokens = [256]
    for _ in range(12):
        tokens = (
            tokens[: int(draw.integers(1, len(tokens) + 1))] + draw.integers(0, 256, int(draw.integers(1, 9))).tolist()
        )
        np.testing.assert_allclose(law(tuple(tokens)), whole(lm.model, tokens)[-1], atol=2e-5)
    assert len(tokens) > 6


def test_bytes_behind_the_window_have_the_models_probabilities(lm):
    text = b"the sea and the moon"
    exact = ByteLM.of(lm, tolerance=0.0)
    state = exact.start(text[:3])
    for byte in text[3:]:
        state = state.advance(byte)
    ids = [lm.opening, *lm.tokenizer(text.decode(), add_special_tokens=False)["input_ids"]]
    p = np.exp(whole(lm.model, ids)[-1])
    want = np.array([p[lm.tokenizer.convert_tokens_to_ids(c)] for c in "sea t".replace(" ", "Ġ")])
    got = np.exp(state.logprobs())[list(b"sea t")]
    np.testing.assert_allclose(got / got.sum(), want / want.sum(), atol=1e-5)


def test_answers_behind_the_window_are_scored_as_the_model_does(lm):
    prompt, answers = "the sea and the moon", [" tides", " go", "!"]
    dynamic = DynamicTokens(n_merges=0, provider="mean")(lm)
    found = dynamic.logprobs(prompt, answers, special_tokens=False)
    before = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for answer, got in zip(answers, found, strict=True):
        ids = lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
        rows = whole(lm.model, [*before, *ids])[len(before) - 1 : -1]
        assert got == pytest.approx(rows[np.arange(len(ids)), ids].sum(), abs=1e-3)


def test_only_what_can_be_cut_back_is_reused(lm):
    assert (croppable_cache(lm.model) is None) == (lm.name in ("lfm2", "mamba"))

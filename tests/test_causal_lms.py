"""The zoo of tiny causal language models: all there, seeded, small, sharp, and able to generate."""

import pytest
import torch
import transformers
from served import skip_if_new_and_broken
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mintage.testing.causal_lms import UNBUILT, VOCABULARY, build_tiny, class_of, names

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]])


def test_every_class_of_the_mapping_is_built_or_listed_with_its_reason():
    assert set(names()) | UNBUILT.keys() >= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not set(names()) & UNBUILT.keys()
    assert len(names()) >= 40
    assert all(reason and "\n" not in reason for reason in UNBUILT.values())


@pytest.mark.parametrize("name", names())
@torch.no_grad()
def test_a_model_of_the_zoo_is_small_seeded_and_generates(name):
    skip_if_new_and_broken(name)
    model = build_tiny(name)
    assert type(model).__name__ == class_of(name)
    assert sum(p.numel() for p in model.parameters()) < 500_000
    assert not model.training
    logits = model(input_ids=IDS).logits[0, -1]
    assert logits.isfinite().all()
    assert logits.shape[0] == VOCABULARY or name == "moshi"
    assert logits.std() > 1e-3
    written = model.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert written.shape[1] == IDS.shape[1] + 4  # no end token


def test_a_seed_is_a_model_and_torchs_own_generator_is_left_alone():
    state = torch.get_rng_state()
    first, again, other = (build_tiny("gpt_oss", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for mine, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, same)
        assert not torch.equal(mine, different)


def test_settings_override_the_configurations():
    model = build_tiny("mistral", attention="eager", sliding_window=3, num_hidden_layers=1)
    assert isinstance(model, transformers.MistralForCausalLM)
    assert (model.config.sliding_window, len(model.model.layers), model.config._attn_implementation) == (3, 1, "eager")

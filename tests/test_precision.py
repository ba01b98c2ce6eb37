"""dtype="auto": what was measured decides; it is kept, said in one line, and never in the way."""

import copy
import json

import pytest
import torch

from mintage import models, precision
from mintage.models import load_causal_lm, tiny_causal_lm
from mintage.precision import fastest_dtype, forward_seconds


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dtype"


@pytest.fixture
def config():
    return tiny_causal_lm().config


@pytest.fixture
def taking(monkeypatch):
    """Let forwards take so long; count how often they are measured."""
    asked = []

    def take(float32, bfloat16):
        monkeypatch.setattr(precision, "_measured", lambda config: asked.append(config) or {
            "float32": float32, "bfloat16": bfloat16})  # fmt: skip
        return asked

    return take


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [
        ((0.114, 0.188), (0.059, 0.269), torch.bfloat16),  # one token counts as much as eight
        ((0.100, 0.150), (0.059, 0.269), torch.float32),
        ((0.100, 0.150), (0.050, 0.060), torch.bfloat16),
    ],
)
def test_the_lower_geometric_mean_decides_once_and_is_told_in_one_line(config, taking, float32, bfloat16, chosen):
    asked, said = taking(float32, bfloat16), []
    assert fastest_dtype(config, note=said.append) == chosen
    assert fastest_dtype(copy.deepcopy(config), note=said.append) == chosen
    assert len(asked) == 1
    assert said[0] == said[1]
    assert said[0].startswith(f"dtype auto is {str(chosen).removeprefix('torch.')}: ")
    assert f"{1000 * float32[0]:.3g} and {1000 * float32[1]:.3g} ms" in said[0]
    assert "\n" not in said[0]


def test_another_kind_of_model_and_other_threads_are_measured_anew(config, taking):
    asked = taking((1.0, 1.0), (2.0, 2.0))
    forward_seconds(config)
    wider = copy.deepcopy(config)
    wider.hidden_size = 64
    forward_seconds(wider)
    renamed = copy.deepcopy(config)
    renamed._name_or_path = "elsewhere"
    forward_seconds(renamed)
    assert len(asked) == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        forward_seconds(config)
    finally:
        torch.set_num_threads(threads)
    assert len(asked) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"float32": [1]}', '{"float32": [0, 1], "bfloat16": [1, 1]}'])
def test_a_damaged_note_is_measured_anew(config, taking, cache, text):
    asked = taking((1.0, 1.0), (2.0, 2.0))
    forward_seconds(config)
    (kept,) = cache.iterdir()
    kept.write_text(text)
    assert forward_seconds(config) == {"float32": (1.0, 1.0), "bfloat16": (2.0, 2.0)}
    assert len(asked) == 2
    assert json.loads(kept.read_text())["bfloat16"] == [2.0, 2.0]


def test_really_measured_on_a_part_of_the_model(config, monkeypatch):
    monkeypatch.setattr(precision, "_PARAMETERS", 1)
    config.num_hidden_layers, config.vocab_size, config.layer_types = 5, 9000, ["full_attention"] * 5
    part = precision._part(config)
    assert len(part.model.layers) == 1
    assert part.config.vocab_size == 4096
    assert (config.num_hidden_layers, config.vocab_size, len(config.layer_types)) == (5, 9000, 5), "the given one stays"
    assert part(torch.ones(1, 8, dtype=torch.long)).logits.isfinite().all()
    found = forward_seconds(config)
    assert set(found) == {"float32", "bfloat16"}
    assert all(0 < second < 60 for pair in found.values() for second in pair)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "gemma3_text", "mamba", "qwen2_moe", "opt"])
def test_other_kinds_of_models_are_measured_or_told_but_never_in_the_way(kind):
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind)
    names = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32, "moe_intermediate_size": 16}
    for name, value in (names | {"shared_expert_intermediate_size": 16, "vocab_size": 64, "ffn_dim": 32}).items():
        if hasattr(config, name):
            setattr(config, name, value)
    said = []
    assert fastest_dtype(config, note=said.append) in (torch.float32, torch.bfloat16)
    assert len(said) == 1


def test_a_model_too_large_for_float32_is_not_measured(config, taking, monkeypatch):
    asked, said = taking((1.0, 1.0), (2.0, 2.0)), []
    monkeypatch.setattr(precision, "_memory", lambda: 1000)
    assert fastest_dtype(config, note=said.append) == torch.bfloat16
    assert said == ["dtype auto is bfloat16: float32 would take more than half of this machine's memory"]
    assert not asked


def test_a_gpu_is_asked_and_not_measured(config, taking, monkeypatch):
    asked = taking((1.0, 1.0), (2.0, 2.0))
    for able, chosen in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert fastest_dtype(config, "cuda") == chosen
    assert fastest_dtype(config, "mps") == torch.bfloat16
    assert not asked


def test_a_model_is_loaded_in_what_was_chosen_and_explicit_dtypes_stay(monkeypatch, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tiny_causal_lm().save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({str(n): n for n in range(12)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    for chosen in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(models, "fastest_dtype", lambda config, device, note, chosen=chosen: chosen)
        for given in ({}, {"dtype": "auto"}):
            assert load_causal_lm(str(tmp_path), **given).model.dtype == chosen
        assert load_causal_lm(str(tmp_path), dtype="float16").model.dtype == torch.float16
        assert load_causal_lm(str(tmp_path), dtype=torch.float32).model.dtype == torch.float32

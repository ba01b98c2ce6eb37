"""Blocks of a pretrained model as the backbone of a HAT: taken over as they are, trained or frozen, carried along."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from mintage.errors import UserError
from mintage.lm.core import backbone
from mintage.lm.core.backbone import PretrainedBlocks, over_words
from mintage.lm.core.folder import load_byte_lm
from mintage.lm.core.stack import stack, stack_flops
from mintage.lm.core.windows import byte_windows, hold_out
from mintage.lm.hat import ConnectorHatConfig, Hat, HatConfig
from mintage.lm.training.hat import HatTraining
from mintage.models import tiny_causal_lm
from mintage.testing import laws

TEXT = "The moon pulls the water of the sea, and the sea follows the moon; twice a day there are tides. " * 30
SMALL: dict[str, Any] = {
    "byte_width": 16,
    "byte_layers": 1,
    "byte_heads": 2,
    "steps": 4,
    "window": 64,
    "rows": 2,
    "warmup": 1,
}
WINDOWS = hold_out(byte_windows([TEXT], 64))


@pytest.fixture
def llama(tmp_path):
    """A folder with a tiny Llama, without a tokenizer."""
    tiny_causal_lm().save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return str(tmp_path / "text.txt")


def refused(name):
    with pytest.raises(UserError) as told:
        PretrainedBlocks.load(str(name))
    assert "\n" not in str(told.value)
    return str(told.value)


def test_blocks_are_the_models_own(llama):
    held = PretrainedBlocks.load(llama)
    rows = torch.randn(2, 5, 32)
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(llama).model(inputs_embeds=rows).last_hidden_state
        assert torch.equal(over_words(held.blocks, rows), whole)
    embedded = AutoModelForCausalLM.from_pretrained(llama).get_input_embeddings().weight
    assert held.scale == pytest.approx(float(embedded.detach().square().mean().sqrt()), rel=0.05)
    assert llama not in json.dumps(held.settings)


@pytest.mark.parametrize("style", ["words", "connectors"])
@pytest.mark.parametrize("freeze", [False, True])
def test_a_trained_model_needs_no_other_and_frozen_blocks_stay_as_they_were(style, freeze, llama, text, tmp_path):
    training = HatTraining(texts=(text,), backbone=llama, freeze_backbone=freeze, style=style, **SMALL)
    before = PretrainedBlocks.load(llama).blocks.state_dict()
    model = training.run(tmp_path / "model", tmp_path / "work")
    for path in (tmp_path / "llama").iterdir():
        path.unlink()
    again = load_byte_lm(tmp_path / "model")
    assert again.score(TEXT[:50]) == model.score(TEXT[:50])
    assert (again.config.width, again.config.layers, again.config.heads) == (32, 2, 4)
    same = [torch.equal(before[name], held) for name, held in again.backbone.state_dict().items()]
    assert all(same) if freeze else not any(same)
    assert not any("embed" in name for name in again.state_dict())


@pytest.mark.parametrize("style", ["words", "connectors"])
def test_the_laws_hold_with_a_pretrained_backbone(style, llama):
    model = HatTraining(backbone=llama, style=style, **SMALL).build(WINDOWS).eval()
    for name, law in laws("lm", type(model)).items():
        if name in ("later_bytes_change_nothing", "a_cache_changes_nothing", "every_weight_learns", "scores_add_up"):
            law(model)


@pytest.mark.parametrize("style", ["words", "connectors"])
def test_words_begin_as_large_as_the_vectors_that_the_blocks_know(style, llama):
    model, seen = HatTraining(backbone=llama, style=style, **SMALL).build(WINDOWS), []
    model.backbone.layers[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model.read([TEXT.encode()])
    scale = PretrainedBlocks.load(llama).scale
    assert float(seen[0].square().mean().sqrt()) == pytest.approx(scale, rel=0.2)


def test_operations_of_pretrained_blocks_are_counted(llama):
    from torch.utils.flop_counter import FlopCounterMode

    blocks = PretrainedBlocks.load(llama).blocks
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        blocks(inputs_embeds=torch.randn(1, 1, 32))
    assert stack_flops(blocks, 1.0, 1.0) == pytest.approx(counted.get_total_flops(), rel=0.05)
    ids, costs = torch.tensor([list(TEXT.encode()[:64])]), []
    model: Any = HatTraining(backbone=llama, **SMALL).build(WINDOWS)
    words = len(model.cuts(TEXT.encode()[:64]))
    for made in (blocks, stack(32, 1, 4)):
        model.backbone = made
        costs.append(model.flops(ids) - stack_flops(made, words / 64, (words + 1) / 2))
    assert costs[0] == pytest.approx(costs[1])


def test_positions_in_a_table_are_as_many_words(tmp_path):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40}
    GPT2LMHeadModel(GPT2Config(vocab_size=20, **sizes, bos_token_id=None, eos_token_id=None)).save_pretrained(
        tmp_path / "gpt2"
    )
    model = HatTraining(backbone=str(tmp_path / "gpt2"), **SMALL).build(WINDOWS).eval()
    model.save(tmp_path / "model", {})
    again = load_byte_lm(tmp_path / "model")
    assert again.score("one two three") == model.score("one two three") > 0
    for call in (lambda: model.score("a " * 50), lambda: model.write("a " * 50)):
        with pytest.raises(UserError, match="more than the 40 words"):
            call()


def test_what_is_no_causal_decoder_is_refused(tmp_path, llama, monkeypatch):
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert")
    with pytest.raises(ValueError, match="sees what comes behind"):
        backbone._try(stack(32, 1, 4, causal=False), 32)
    broken = tiny_causal_lm()
    broken.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    assert "NaN" in refused(tmp_path / "broken")
    assert "neither a folder nor" in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty")

    def forward(self, input_ids=None, cache=None, use_cache=None):
        raise AssertionError("never called")

    monkeypatch.setattr(type(tiny_causal_lm().model), "forward", forward)
    assert "inputs_embeds" in refused(llama)


def test_what_contradicts_a_backbone_is_told(llama):
    for settings in ({"width": 64}, {"layers": 1}, {"heads": 2}):
        with pytest.raises(UserError, match="has its own sizes"):
            HatTraining(backbone="smollm2", **settings)
    with pytest.raises(UserError, match="nothing to freeze"):
        HatTraining(freeze_backbone=True)
    blocks = PretrainedBlocks.load(llama).settings
    for kind, wrong in ((HatConfig, {"width": 48}), (ConnectorHatConfig, {"blocks": {"model_type": "nothing"}})):
        with pytest.raises(UserError) as told:
            kind(**{"blocks": blocks, **wrong})
        assert "\n" not in str(told.value)
    assert Hat(HatConfig(blocks=blocks)).config.width == 32

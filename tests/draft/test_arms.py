"""The decoders of a bench: what is measured by default, shapes of equal size, and llama.cpp beside."""

import functools
import importlib.util
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from mintage.bench.draft import engines
from mintage.bench.draft.arm import Arm
from mintage.bench.draft.arms import (
    ASSISTED,
    ASSISTED_SAME,
    DEFAULT,
    GENERATE,
    LOOKUP,
    WITH_DRAFT_MODEL,
    at_nodes,
    default_arms,
    default_specs,
)
from mintage.bench.draft.engines import LLAMA_CPP, OPENVINO, OPENVINO_LOOKUP
from mintage.draft.union import Union
from mintage.errors import UserError
from mintage.models import EMBEDDED, CausalLM, load_causal_lm, tiny_causal_lm

TREES = ["token-recycling", "token-recycling+prompt-lookup", "speculative", "specinfer", "rsd", "spectr", "dyspec"]


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_causal_lm(tiny_folder, dtype="float32")


# -- which ---------------------------------------------------------------------------------------------------------


def test_drafters_with_a_draft_model_join_when_there_is_one(lm):
    assert default_specs(lm, draft_model=False) == list(DEFAULT)
    assert default_specs(lm, draft_model=True) == [*DEFAULT, *WITH_DRAFT_MODEL]


def test_the_draft_model_at_hand_serves_every_arm(lm):
    small = tiny_causal_lm(seed=1, vocab_size=257)
    made = {arm.name: arm for arm in default_arms(lm, ["plain", *WITH_DRAFT_MODEL], draft_model=small)}
    assert list(made) == [GENERATE, LOOKUP, ASSISTED_SAME, "plain", *WITH_DRAFT_MODEL]
    for name in (ASSISTED_SAME, *WITH_DRAFT_MODEL):
        assert made[name].draft_model is small
    for name in (GENERATE, LOOKUP, "plain"):
        assert made[name].draft_model is None


def test_one_stand_in_is_made_when_it_is_needed(lm):
    asked = []

    def stand_in():
        asked.append(1)
        return tiny_causal_lm(seed=1, vocab_size=257)

    default_arms(lm, ["plain"], assisted=False, stand_in=stand_in)
    assert not asked
    names = [a.name for a in default_arms(lm, list(WITH_DRAFT_MODEL), stand_in=stand_in)]
    assert ASSISTED in names
    assert len(asked) == 1


def test_a_fresh_decoder_has_learned_nothing(lm):
    ids = lm.encode("Tell me about tides.")
    (hot,) = [a for a in default_arms(lm, ["token-recycling"], assisted=False) if a.drafter]
    first = hot.decode(ids, 0.0, 48, 0)[1].rounds
    assert hot.decode(ids, 0.0, 48, 0)[1].rounds < first
    assert hot.fresh()(ids, 0.0, 48, 0)[1].rounds == first


def test_no_hook_stays_on_the_model(lm):
    small = tiny_causal_lm(seed=1, vocab_size=257)
    for arm in default_arms(lm, [], draft_model=small):
        arm.decode(lm.encode("tides"), 0.0, 4, 0)
    assert not lm.model._forward_hooks
    assert not small._forward_hooks
    (plain, *_) = default_arms(lm, [], assisted=False)
    with pytest.raises(ValueError, match="max_new_tokens"):
        plain.decode(lm.encode("tides"), 0.0, -1, 0)
    assert not lm.model._forward_hooks


def test_what_transformers_reads_is_counted(lm):
    ids = lm.encode("Sum up: the tide, the tide, the tide.")
    small = tiny_causal_lm(seed=1, vocab_size=257, max_position_embeddings=4096)
    plain, lookup, assisted = default_arms(lm, [], draft_model=small)
    stats = plain.decode(ids, 0.0, 16, 0)[1]
    assert (stats.tree_nodes, stats.rounds, stats.draft_forwards) == (16, 16, 0)
    assert lookup.decode(ids, 0.0, 16, 0)[1].tree_nodes > 16  # it drafts, and some of it in vain
    stats = assisted.decode(ids, 0.0, 16, 0)[1]
    assert stats.draft_forwards > 0
    assert stats.draft_tokens >= ids.shape[1] + stats.draft_forwards - 1  # the prompt, then a token at least each


def test_learners_are_found_in_unions_too():
    union = Union.from_spec("token-recycling+prompt-lookup")
    arm = functools.partial(Arm, name="", decode=lambda *asked: asked, fresh=lambda: print)
    assert arm(drafter=union).learners == [union.drafters[0]]
    assert arm(drafter=Union.from_spec("prompt-lookup")).learners == arm().learners == []


# -- nodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 4, 8, 16, 30, 32])
def test_no_tree_is_larger_than_its_nodes_nor_much_smaller(lm, nodes):
    small = tiny_causal_lm(seed=1, vocab_size=257)
    for spec, _, count in at_nodes(TREES, [nodes]):
        assert count == nodes
        drafter = Union.from_spec(spec, draft_model=small)
        limit = next(
            getattr(drafter, name) for name in ("budget", "length", "num_drafts") if hasattr(drafter, name)
        ) * getattr(drafter, "draft_len", 1)
        assert nodes - math.isqrt(nodes) < limit <= nodes, spec


def test_fixed_trees_fill_the_same_rectangle():
    specs = {line: spec for spec, line, _ in at_nodes(TREES, [16])}
    assert specs == {
        "token-recycling": "token-recycling:budget=16",
        "token-recycling+prompt-lookup": "token-recycling:budget=16+prompt-lookup:length=16+budget=16",
        "speculative chain": "speculative:length=16",
        "SpecInfer": "specinfer:branching=4x1x1x1",
        "RSD-C": "rsd:branching=4x1x1x1",
        "RSD-S": "rsd:width=4,depth=4",
        "SpecTr": "spectr:num_drafts=4,draft_len=4",
        "dyspec": "dyspec:budget=16",
    }
    assert at_nodes(["ppd"], [1, 8]) == [("ppd:limit=2", "PPD", 1), ("ppd:limit=8", "PPD", 8)]


def test_nodes_are_sorted_and_come_once():
    assert [n for _, _, n in at_nodes(["dyspec"], [8, 4, 8])] == [4, 8]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["dyspec:budget=8"], "'dyspec:budget=8' has its shape already; with --nodes give bare names"),
        (["token-recycling cold"], "has its shape already"),
        (["plain"], "plain has no shape that follows a number of nodes"),
        (["plan"], "unknown method 'plan'"),
    ],
)
def test_nodes_that_cannot_be_had(names, line):
    with pytest.raises(UserError) as error:
        at_nodes(names, [4])
    assert line in str(error.value)


# -- other engines -------------------------------------------------------------------------------------------------


class FakeLlama:
    """Counts up from the prompt's length; the real one runs in the end-to-end tests."""

    def __init__(self, path, **settings):
        self.path, self.settings, self.resets = path, settings, 0

    def reset(self):
        self.resets += 1

    def generate(self, tokens, **settings):
        assert settings == {"temp": 0.0, "repeat_penalty": 1.0}
        yield from range(len(tokens), 10**6)


class FakePipeline:
    """Counts up from the prompt's length, for as many tokens as were asked for."""

    def __init__(self, path, device, **settings):
        assert (path, device, settings.pop("INFERENCE_NUM_THREADS")) == ("model.gguf", "CPU", torch.get_num_threads())
        self.settings = settings

    def generate(self, ids, settings):
        assert (settings.do_sample, settings.apply_chat_template) == (False, False)
        assert hasattr(settings, "max_ngram_size") == bool(self.settings)
        return SimpleNamespace(tokens=[list(range(ids.shape[1], ids.shape[1] + settings.max_new_tokens))])


@pytest.fixture
def embedded(lm, monkeypatch):
    """The tiny model under the embedded one's name, both engines installed."""
    monkeypatch.setattr(engines, "embedded_gguf", lambda: "model.gguf")
    monkeypatch.setattr(engines, "version", lambda name: "0")
    fakes = {
        "llama_cpp": SimpleNamespace(Llama=FakeLlama, __version__="0", __spec__=1),
        "openvino_genai": SimpleNamespace(LLMPipeline=FakePipeline, GenerationConfig=SimpleNamespace, __spec__=1),
        "openvino": SimpleNamespace(Tensor=lambda array: array, __spec__=1),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return CausalLM(lm.model, lm.tokenizer, EMBEDDED)


@pytest.mark.parametrize("name", [LLAMA_CPP, OPENVINO, OPENVINO_LOOKUP])
def test_other_engines_decode_the_same_prompts(embedded, name):
    def made():
        (arm,) = [a for a in default_arms(embedded, [], assisted=False, engines=True) if a.name == name]
        return arm

    tokens, stats = made().decode(torch.tensor([[5, 6, 7]]), 0.0, 4, 0)
    assert tokens.tolist() == [3, 4, 5, 6]
    assert (stats.new_tokens, stats.rounds, stats.tree_nodes) == (4, 4, 0)
    assert "Q4_1" in made().note
    embedded.model.generation_config.eos_token_id = 4
    try:
        assert made().decode(torch.tensor([[5, 6, 7]]), 0.0, 4, 0)[0].tolist() == [3, 4]
    finally:
        embedded.model.generation_config.eos_token_id = None


@pytest.mark.parametrize(("module", "extra"), [("llama_cpp", "llamacpp"), ("openvino_genai", "openvino")])
def test_without_an_engine_one_line_tells_how(embedded, monkeypatch, module, extra):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name))
    told = []
    made = default_arms(embedded, [], assisted=False, engines=True, note=told.append)
    assert len(made) == (4 if module == "llama_cpp" else 3)
    assert len(told) == 1
    assert f"mintage[{extra}]" in told[0]


def test_other_engines_are_for_the_embedded_model_alone(lm):
    told = []
    made = default_arms(lm, [], assisted=False, engines=True, note=told.append)
    assert [arm.name for arm in made] == [GENERATE, LOOKUP]
    assert not told


def test_words_behind_a_spec_say_how_it_is_run():
    from mintage.bench.draft.arms import bare, is_cold

    assert bare("plain compiled") == bare("plain cold compiled") == "plain"
    assert is_cold("plain cold compiled")
    assert not is_cold("plain compiled")
    with pytest.raises(UserError, match="not known"):
        bare("plain warm")

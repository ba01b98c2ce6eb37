"""The decoders of a bench: what is measured by default, shapes of equal size, and llama.cpp beside."""

import functools
import importlib.util
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from mintage.bench.draft import arms as room
from mintage.bench.draft.arms import (
    ASSISTED,
    ASSISTED_SAME,
    DEFAULT,
    GENERATE,
    LLAMA_CPP,
    LOOKUP,
    WITH_DRAFT_MODEL,
    Arm,
    at_nodes,
    default_arms,
    default_specs,
)
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


# -- llama.cpp -----------------------------------------------------------------------------------------------------


class FakeLlama:
    """Counts up from the prompt's length; the real one runs in the end-to-end tests."""

    def __init__(self, path, **settings):
        self.path, self.settings, self.resets = path, settings, 0

    def reset(self):
        self.resets += 1

    def generate(self, tokens, **settings):
        assert settings == {"temp": 0.0, "repeat_penalty": 1.0}
        yield from range(len(tokens), 10**6)


@pytest.fixture
def embedded(lm, monkeypatch):
    """The tiny model under the embedded one's name."""
    monkeypatch.setattr(room, "embedded_gguf", lambda: "model.gguf")
    return CausalLM(lm.model, lm.tokenizer, EMBEDDED)


def test_llama_cpp_decodes_the_same_prompts(embedded, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=FakeLlama, __version__="0", __spec__=1))
    (arm,) = [a for a in default_arms(embedded, [], assisted=False, llama_cpp=True) if a.name == LLAMA_CPP]
    tokens, stats = arm.decode(torch.tensor([[5, 6, 7]]), 0.0, 4, 0)
    assert tokens.tolist() == [3, 4, 5, 6]
    assert (stats.new_tokens, stats.rounds, stats.tree_nodes) == (4, 4, 0)
    assert "another quantisation and other arithmetic" in arm.note
    embedded.model.generation_config.eos_token_id = 4
    try:
        ended = next(a for a in default_arms(embedded, [], assisted=False, llama_cpp=True) if a.name == LLAMA_CPP)
        assert ended.decode(torch.tensor([[5, 6, 7]]), 0.0, 4, 0)[0].tolist() == [3, 4]
    finally:
        embedded.model.generation_config.eos_token_id = None


def test_without_llama_cpp_one_line_tells_how(embedded, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llama_cpp" else find(name))
    told = []
    made = default_arms(embedded, [], assisted=False, llama_cpp=True, note=told.append)
    assert LLAMA_CPP not in [arm.name for arm in made]
    assert len(told) == 1
    assert "mintage[llamacpp]" in told[0]


def test_llama_cpp_is_for_the_embedded_model_alone(lm):
    told = []
    made = default_arms(lm, [], assisted=False, llama_cpp=True, note=told.append)
    assert [arm.name for arm in made] == [GENERATE, LOOKUP]
    assert not told


def test_words_behind_a_spec_say_how_it_is_run():
    from mintage.bench.draft.arms import bare, is_cold

    assert bare("plain compiled") == bare("plain cold compiled") == "plain"
    assert is_cold("plain cold compiled")
    assert not is_cold("plain compiled")
    with pytest.raises(UserError, match="not known"):
        bare("plain warm")

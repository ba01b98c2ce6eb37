"""The C++ step: the same logits as torch, over prompts, trees and ragged batches; refused where it would be wrong."""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from mintage.draft import Plain, PromptLookup, generate
from mintage.draft.core.engine import engine_seconds, target_for
from mintage.draft.core.native import NativeTarget
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.errors import UserError

SIZES = {"vocab_size": 67, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "eos_token_id": None}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0}


def small(kind=LlamaForCausalLM, config=LlamaConfig, dtype=torch.float32, **more):
    torch.manual_seed(5)
    model = kind(config(**SIZES, **HEADS, **more)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(3) if weight.ndim > 1 else weight.add_(
                0.1 * torch.randn_like(weight)
            ) if "norm" in name else None
    return model.to(dtype)


MODELS = {
    "llama": lambda: small(),
    "llama with biases": lambda: small(attention_bias=True),
    "llama with scaled rotation": lambda: small(rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "tied": lambda: small(tie_word_embeddings=True),
    "qwen2": lambda: small(Qwen2ForCausalLM, Qwen2Config),
    "qwen3": lambda: small(Qwen3ForCausalLM, Qwen3Config, head_dim=32),
}

TREES = (
    TokenTree(tokens=torch.tensor([20, 21, 22, 23, 24]), topology=Topology((-1, 0, 0, 1, 3))),
    TokenTree(tokens=torch.tensor([30, 31]), topology=Topology((-1, 0))),
)


@torch.no_grad()
def scored(target: Target) -> list[torch.Tensor]:
    """Logits over a ragged prompt and two rounds of trees, after paths that move columns."""
    cache = target.new_cache(2, 4)
    found = [target.prefill(torch.tensor([[1, 5, 7, 9, 11], [3, 4, 5, 0, 0]]), [5, 3], cache, all_logits=True)[0]]
    found += target.score(TREES, cache)
    cache.commit([[0, 1, 3], [0]])
    found += target.score(TREES[::-1], cache)
    cache.commit([[0], [0, 2]])
    return found + target.score(TREES, cache)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_torchs(name):
    model = MODELS[name]()
    for mine, own in zip(scored(NativeTarget(model)), scored(Target(model)), strict=True):
        torch.testing.assert_close(mine, own, atol=2e-4, rtol=2e-4)


def test_a_long_prompt_is_read_in_pieces():
    model = small()
    ids = torch.randint(67, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, own = (
            t.prefill(ids, [200], t.new_cache(1, 8), all_logits=True) for t in (NativeTarget(model), Target(model))
        )
    torch.testing.assert_close(mine, own, atol=2e-4, rtol=2e-4)


def test_bfloat16_weights_are_read_exactly():
    model = small(dtype=torch.bfloat16)
    exact = copy.deepcopy(model).float()
    for mine, own in zip(scored(NativeTarget(model)), scored(Target(exact)), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, own, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("drafter", [Plain(), PromptLookup()], ids=["plain", "look-up"])
def test_generation_says_what_torch_says(drafter):
    model = small()
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6], [0, 0, 9, 8, 9, 8, 9, 8]])
    mask = (ids != 0).long()
    wanted = generate(model, ids, drafter, attention_mask=mask, max_new_tokens=24)
    found = generate(model, ids, drafter, attention_mask=mask, max_new_tokens=24, engine="native")
    assert torch.equal(found.sequences, wanted.sequences)


def test_changed_weights_are_read_again():
    model = small()
    before = scored(NativeTarget(model))[0]
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    after = scored(NativeTarget(model))[0]
    assert (before - after).abs().max() > 1e-2
    torch.testing.assert_close(after, scored(Target(model))[0], atol=2e-4, rtol=2e-4)


def test_weights_put_in_the_place_of_others_are_read_again():
    """Without a change of version: ``weight.data = ...`` keeps it."""
    model = small()
    before = scored(NativeTarget(model))[0]
    weight = model.model.layers[0].mlp.down_proj.weight
    version = weight._version
    weight.data = weight.data * 2
    assert weight._version == version
    torch.testing.assert_close(scored(NativeTarget(model))[0], scored(Target(model))[0], atol=2e-4, rtol=2e-4)
    assert (before - scored(NativeTarget(model))[0]).abs().max() > 1e-2


def test_threads_that_share_a_model_do_not_share_a_cache():
    model = small()
    prompts = [torch.randint(1, 67, (1, 5 + 30 * k), generator=torch.Generator().manual_seed(k)) for k in range(2)]
    wanted = [generate(model, ids, Plain(), max_new_tokens=60).sequences for ids in prompts]
    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(generate, model, i, Plain(), max_new_tokens=60, engine="native") for i in prompts]
        assert all(torch.equal(run.result().sequences, ids) for run, ids in zip(runs, wanted, strict=True))


def test_two_targets_of_a_model_point_at_their_own_caches():
    model = small()
    ids = torch.tensor([[1, 5, 7, 9, 11]])
    one, other = NativeTarget(model), NativeTarget(model)
    with torch.no_grad():
        caches = one.new_cache(1, 8), other.new_cache(1, 8)  # both stay: a freed address may be given again
        one.prefill(ids, [5], caches[0])
        held = [layer.keys for layer in one._layers]
        other.prefill(ids, [5], caches[1])
    assert held == [layer.keys for layer in one._layers]
    assert held != [layer.keys for layer in other._layers]


class Adapted(torch.nn.Module):
    """Beside a part of the model something that is nothing yet, as a fresh adapter; what it learns has to count."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight = base, base.weight
        self.bias, self.variance_epsilon = getattr(base, "bias", None), 1e-6

    def forward(self, x):
        return self.base(x)


PARTS = [f"model.layers.1.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")]
PARTS += [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")]
PARTS += ["model.layers.2.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm", "lm_head"]


@pytest.mark.parametrize("part", PARTS)
def test_whatever_is_wrapped_is_run_by_torch(part):
    model = MODELS["qwen3"]()
    model.set_submodule(part, Adapted(model.get_submodule(part)))
    with pytest.raises(UserError, match="wrapped"):
        NativeTarget(model)
    assert type(target_for(model, "auto")) is Target


def test_auto_without_a_compiler_says_so_once_and_goes_on_with_torch(monkeypatch, tmp_path):
    from mintage.draft.core import native

    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    fresh = native.Native(native.NATIVE.source, native.NATIVE.instead)
    monkeypatch.setattr("mintage.draft.core.engine.NATIVE", fresh)
    model, ids = small(), torch.tensor([[1, 2, 3]])
    with pytest.warns(UserWarning, match="'no-such-compiler' is not on PATH.*decoding goes on with torch") as told:
        generate(model, ids, Plain(), max_new_tokens=2, engine="auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, ids, Plain(), max_new_tokens=2, engine="auto")
    assert len(told) == 1
    assert "\n" not in str(told[0].message)


def replaced():
    model = small()
    inner = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda x: inner(x)
    return model


def hooked():
    model = small()
    model.model.layers[1].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: small(hidden_act="gelu"), "its activation is gelu"),
        (hooked, "it has forward hooks"),
        (replaced, "a forward in it was replaced"),
        (lambda: small().half(), "neither float32 nor bfloat16"),
        (lambda: small(Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, max_window_layers=1), "attends"),
    ],
    ids=["gelu", "hooks", "replaced", "float16", "window"],
)
def test_what_it_cannot_run_is_refused_and_auto_runs_it_by_torch(make, reason):
    model = make()
    with pytest.raises(UserError, match=reason):
        NativeTarget(model)
    assert type(target_for(model, "auto")) is Target


def test_auto_takes_the_faster_one_by_a_measurement_that_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))
    model = small()
    from mintage.draft.core import engine

    monkeypatch.setattr(engine, "_measured", lambda targets: {"torch": (1.0, 2.0), "native": (0.9, 1.0)})
    assert type(target_for(model, "auto")) is NativeTarget
    monkeypatch.setattr(engine, "_measured", lambda targets: pytest.fail("measured twice"))
    assert type(target_for(model, "auto")) is NativeTarget
    (file,) = (tmp_path / "latency").glob("engines-*.json")
    file.write_text("{damaged")
    monkeypatch.setattr(engine, "_measured", lambda targets: {"torch": (0.5, 0.5), "native": (0.9, 1.0)})
    assert type(target_for(model, "auto")) is Target


def test_both_are_measured_on_one_and_eight_tokens(monkeypatch, tmp_path):
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))
    model = small()
    seconds = engine_seconds({"torch": Target(model), "native": NativeTarget(model)})
    assert all(0 < value < 60 for pair in seconds.values() for value in pair)


def test_an_unknown_engine_and_two_ways_at_once_are_refused():
    with pytest.raises(UserError, match="engine='onnx' is not one of auto, torch, native"):
        target_for(small(), "onnx")
    with pytest.raises(UserError, match="two ways to run a step"):
        generate(small(), torch.tensor([[1, 2]]), Plain(), compile=True, engine="native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_any_number_of_tokens_is_one_product(dtype):
    """Tiles take one to six tokens, more are split: every split gives torch's logits."""
    exact = small().to(dtype).float()  # what the stored weights are
    model = small(dtype=dtype)
    for count in range(1, 21):
        ids = torch.arange(3, 3 + count)[None]
        target = NativeTarget(model)
        mine = target.prefill(ids, [count], target.new_cache(1, count), all_logits=True)
        with torch.no_grad():
            wanted = exact(input_ids=ids).logits
        assert torch.allclose(mine, wanted, atol=2e-4, rtol=1e-4), count


def test_weights_that_are_bfloat16_in_float32_are_read_in_half_the_bytes():
    rounded = small(dtype=torch.bfloat16).float()
    target, ids = NativeTarget(rounded), torch.arange(3, 12)[None]
    assert {getattr(layer, name).format for layer in target._layers for name in ("query", "down")} == {1}
    assert NativeTarget(small())._layers[0].query.format == 0
    with torch.no_grad():
        wanted = rounded(input_ids=ids).logits
    mine = target.prefill(ids, [9], target.new_cache(1, 9), all_logits=True)
    assert torch.allclose(mine, wanted, atol=2e-4, rtol=1e-4)

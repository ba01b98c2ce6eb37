import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.keep.core.attention import attend
from mintage.keep.core.labels import pack, unpack
from mintage.keep.core.prefetch import Ahead
from mintage.keep.core.step import Geometry, Step
from mintage.keep.core.storage import KeptLayer
from mintage.keep.double_sparsity import (
    ChannelOrder,
    DoubleSparsity,
    calibrate_channels,
    channel_scores,
    prefetch_rate,
    quantise,
)
from mintage.models import cache_of, load_causal_lm, tiny_causal_lm, with_cache
from mintage.testing.keep import models
from mintage.testing.settings import without_shape_checks
from mintage.weights import Artefact

VECTORS = Path(__file__).parents[1] / "vectors" / "double-sparsity"


def vectors(case):
    held = np.load(VECTORS / f"{case}.npz")
    return {name: torch.tensor(held[name]) for name in held}


def filled(policy, query, key, value, mask=None):
    """A layer with these states, and the step of this query."""
    geometry = Geometry("Test", 1, query.shape[1], key.shape[1], key.shape[3], None, "test")
    policy.check(geometry)
    layer = KeptLayer(0, policy)
    layer.geometry = geometry
    policy.store(layer, key, value)
    positions = torch.arange(query.shape[2])[None]
    return layer, Step(query, mask, key.shape[3] ** -0.5, positions, geometry, lambda: torch.zeros(0))


@pytest.mark.parametrize("case", ["decode_gqa", "decode_gqa_label4bit", "prefill_mha"])
def test_parity_with_the_authors(case):
    held = vectors(case)
    policy = DoubleSparsity(
        top_k=int(held["top_k"]), label_channels=int(held["num_label_channels"]), label_bits=int(held["label_bits"]),
        dense_layers=0, channels=ChannelOrder.of_order(held["channel_order"][None]), sparse_prefill=True,
    )  # fmt: skip
    layer, step = filled(policy, held["query"], held["key"], held["value"])
    torch.testing.assert_close(policy.attend(layer, step), held["output"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("rule", ["qk", "q", "k"])
def test_calibration_parity(rule):
    held = vectors("calibration_gqa")
    query, key = ("query", "key") if rule == "qk" else ("query_pre_rope", "key_pre_rope")
    score = channel_scores(held[query], held[key], rule)
    torch.testing.assert_close(score, held[f"score_{rule}"], atol=1e-5, rtol=0)
    order = ChannelOrder(score[None]).order[0]
    gaps = held[f"score_{rule}"].gather(1, held[f"order_{rule}"]).diff(dim=1).abs() > 1e-5
    if gaps.all():
        assert torch.equal(order, held[f"order_{rule}"])


def made(seed, heads=4, groups=2, entries=40, dim=16):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, heads, 1, dim, generator=generator)
    key, value = torch.randn(2, 2, groups, entries, dim, generator=generator)
    return query, key, value


@given(st.integers(0, 99), st.sampled_from(["head", "group"]), st.integers(1, 39))
@settings(max_examples=30, deadline=None)
def test_all_channels_choose_the_true_best(seed, per, top_k):
    query, key, value = made(seed)
    order = ChannelOrder(torch.rand(1, 4, 16))
    policy = DoubleSparsity(top_k=top_k, label_channels=16, dense_layers=0, per=per, channels=order)
    layer, step = filled(policy, query, key, value)
    chosen = policy.select(layer, step)
    scores = (query.unflatten(1, (2, 2)) @ key[:, :, None].transpose(-1, -2))[..., 0, :]
    if per == "head":
        wanted = scores.flatten(1, 2).topk(top_k).indices
    else:
        wanted = (scores / 4).softmax(-1).sum(2).topk(top_k).indices
    assert torch.equal(chosen.sort(-1).values, wanted.sort(-1).values)


@given(st.integers(0, 99), st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_the_order_of_tokens_does_not_matter(seed, top_k):
    query, key, value = made(seed)
    policy = DoubleSparsity(top_k=top_k, label_channels=8, dense_layers=0, channels=ChannelOrder(torch.rand(1, 4, 16)))
    mixed = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    one = policy.attend(*filled(policy, query, key, value))
    two = policy.attend(*filled(policy, query, key[:, :, mixed], value[:, :, mixed]))
    assert torch.allclose(one, two, atol=1e-6)


def test_grouped_heads_equal_repeated_ones():
    query, key, value = made(0)
    order = ChannelOrder(torch.rand(1, 4, 16))
    policy = DoubleSparsity(top_k=7, label_channels=8, dense_layers=0, channels=order)
    grouped = policy.attend(*filled(policy, query, key, value))
    repeated = policy.attend(*filled(policy, query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)))
    assert torch.allclose(grouped, repeated, atol=1e-6)


def test_hidden_tokens_are_never_read():
    query, key, value = made(1)
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[0, ..., :37] = False  # three tokens are visible, seven are asked for
    key[0, :, :37] *= 100
    policy = DoubleSparsity(top_k=7, label_channels=8, dense_layers=0, channels=ChannelOrder(torch.rand(1, 4, 16)))
    got = policy.attend(*filled(policy, query, key, value, mask))
    wanted = attend(query[:1], key[:1, :, 37:], value[:1, :, 37:], scaling=0.25)
    assert torch.allclose(got[:1], wanted, atol=1e-6)


def test_more_channels_find_more_of_the_best():
    found = []
    for channels in (2, 4, 8, 16):
        shares = []
        for seed in range(12):
            query, key, value = made(seed)
            order = ChannelOrder(channel_scores(query.expand(-1, -1, 40, -1), key)[None])
            exact, some = (
                DoubleSparsity(top_k=8, label_channels=n, dense_layers=0, channels=order) for n in (16, channels)
            )
            a, b = (p.select(*filled(p, query, key, value)) for p in (exact, some))
            shares.append((a[..., None] == b[..., None, :]).any(-1).float().mean())
        found.append(torch.stack(shares).mean().item())
    assert found == sorted(found)
    assert found[-1] == 1


@given(st.integers(0, 99), st.sampled_from([2, 4]))
@settings(max_examples=20, deadline=None)
def test_labels_are_rounded_within_half_a_step_and_packed_without_loss(seed, bits):
    labels = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed))
    codes, step, least = quantise(labels, bits)
    assert ((codes * step + least - labels).abs() <= step / 2 + 1e-6).all()
    packed = pack(codes, bits)
    assert packed.shape == (3, 5, bits)
    assert torch.equal(unpack(packed, bits).float(), codes)
    same, step, least = quantise(torch.full((2, 8), 3.5), bits)
    assert torch.equal(same * step + least, torch.full((2, 8), 3.5))


@pytest.mark.parametrize(("bits", "per"), [(16, "head"), (16, "group"), (4, "head"), (2, "group")])
def test_labels_take_the_bytes_they_say(bits, per):
    query, key, value = made(0)
    policy = DoubleSparsity(
        top_k=7, label_channels=8, label_bits=bits, dense_layers=0, per=per, channels=ChannelOrder(torch.rand(1, 4, 16))
    )
    layer, step = filled(policy, query, key, value)
    sets = 2 if per == "head" else 1
    label = layer["label"]
    assert label.numel() * label.element_size() == 2 * 2 * 40 * sets * (8 * 4 if bits == 16 else 8 * bits // 8)
    assert ("step" in layer) == (bits < 16)
    policy.attend(layer, step)
    rows = 2 * 2 * (4 if per == "head" else 2) * 7 * 16
    assert layer.reads == rows + label.numel() * label.element_size() // 2


def test_offloaded_rows_are_counted():
    query, key, value = made(0)
    order = ChannelOrder(torch.rand(1, 4, 16))
    plain, away = (
        DoubleSparsity(top_k=7, label_channels=8, dense_layers=0, channels=order, offload=o) for o in (False, True)
    )
    here, there = filled(plain, query, key, value), filled(away, query, key, value)
    assert torch.equal(plain.attend(*here), away.attend(*there))
    assert here[0].host_bytes() == here[0].moved == 0
    assert there[0].host_bytes() == 2 * key.numel() * 4
    assert there[0].nbytes() - there[0].host_bytes() == there[0]["label"].numel() * 4  # what the device holds
    assert there[0].moved == 2 * 2 * 4 * 7 * 16 * 4  # keys and values of 7 rows for 2 x 4 heads


def decoded(model, policy, ids, mask=None):
    """Logits of the last four tokens, read one by one, and what each step moved."""
    logits, moved = [], []
    with policy(model), torch.inference_mode():
        seen = None if mask is None else mask[:, :-4]
        cache = cache_of(model(ids[:, :-4], attention_mask=seen, use_cache=True))
        for i in range(ids.shape[1] - 4, ids.shape[1]):
            seen = None if mask is None else mask[:, : i + 1]
            logits.append(model(ids[:, i : i + 1], attention_mask=seen, **with_cache(model, cache)).logits)
            moved.append(cache.moved())
    return torch.cat(logits, 1), moved, cache


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("per", ["head", "group"])
@pytest.mark.parametrize("dense", [0, 1])
def test_prefetching_changes_no_bit_and_its_bytes_are_counted(name, per, dense):
    model = models()[name]
    ids = torch.randperm(127, generator=torch.Generator().manual_seed(0))[:64].view(2, 32) + 1
    mask = torch.ones(2, 32, dtype=torch.long)
    mask[0, :9] = 0
    channels = ChannelOrder(torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0)))
    plain = DoubleSparsity(top_k=6, label_channels=4, dense_layers=dense, per=per, channels=channels, offload=True)
    ahead = replace(plain, prefetch=True)
    wanted, fetched, _ = decoded(model, plain, ids, mask)
    got, moved, cache = decoded(model, ahead, ids, mask)
    assert torch.equal(got, wanted)
    rows = 2 * 6 * (4 if per == "head" else 2)  # of one layer, both sequences
    size = 2 * 8 * 4  # a key and a value of 8 numbers in float32
    assert fetched == [(2 - dense) * rows * size] * 4
    rate = prefetch_rate(cache)
    first = 0 if dense else rows * 4  # nothing was fetched for the first layer
    assert sum(moved) == size * (first + rows * 4 + round((1 - rate) * rows * 4))
    assert not any("ahead" in layer.state for layer in cache.kept_layers)  # used up
    assert np.isnan(prefetch_rate(decoded(model, plain, ids, mask)[2]))


def test_a_guess_is_exact_where_the_layer_between_adds_nothing():
    """The first layer adds nothing to the hidden states, so that the second asks exactly what was guessed."""
    model = copy.deepcopy(models()["llama"])
    layer = model.model.layers[0]
    for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
        torch.nn.init.zeros_(last.weight)
    policy = DoubleSparsity(
        top_k=6,
        label_channels=4,
        dense_layers=0,
        channels=ChannelOrder(torch.rand(2, 4, 8)),
        offload=True,
        prefetch=True,
    )
    _, _, cache = decoded(model, policy, torch.randperm(127)[None, :32] + 1)
    assert prefetch_rate(cache) > 0.8  # all but the newest token, which was not there yet
    before = {name: len(m._forward_pre_hooks) for name, m in model.named_modules()}
    assert not any(before.values())  # nothing stays behind


def test_wrong_guesses_are_made_good(monkeypatch):
    model = models()["llama"]
    ids = torch.randperm(127, generator=torch.Generator().manual_seed(0))[None, :32] + 1
    plain = DoubleSparsity(
        top_k=3, label_channels=4, dense_layers=0, channels=ChannelOrder(torch.rand(2, 4, 8)), offload=True
    )
    wanted, _, _ = decoded(model, plain, ids)
    real = Ahead.query
    monkeypatch.setattr(Ahead, "query", lambda *a: None if (q := real(*a)) is None else -q)
    got, _, cache = decoded(model, replace(plain, prefetch=True), ids)
    assert prefetch_rate(cache) < 0.5
    assert torch.equal(got, wanted)


def test_models_that_cannot_be_looked_into_are_refused():
    model = models()["gpt2"]
    order = ChannelOrder(torch.rand(2, 4, 8))
    with pytest.raises(UserError, match="looking ahead moves rotary positions, which GPT2LMHeadModel lacks"):
        DoubleSparsity(label_channels=4, channels=order, offload=True, prefetch=True)(model)


def test_blocks_may_come_in_any_order():
    model = tiny_causal_lm(vocab_size=64)
    blocks = [torch.randperm(63)[None, :20] + 1 for _ in range(4)]
    for rule in ("qk", "q", "k"):
        one, two = calibrate_channels(model, blocks, rule), calibrate_channels(model, blocks[::-1], rule)
        assert torch.equal(one.score, two.score)
        assert one.score.shape == (2, 2 if rule == "k" else 4, 8)
        assert torch.equal(one.order.sort(-1).values, torch.arange(8).expand_as(one.order))
        assert (one.fingerprint, one.tokens) == ("llama, 2 layers, 4/2 heads of 8", 80)


def test_rules_without_rotation_see_the_projections():
    model = tiny_causal_lm(vocab_size=64)
    ids = torch.randperm(63)[None, :20] + 1
    grabbed = {}
    attention = model.model.layers[0].self_attn
    hooks = [
        getattr(attention, n).register_forward_hook(lambda m, i, o, n=n: grabbed.update({n: o}))
        for n in ("q_proj", "k_proj")
    ]
    order = calibrate_channels(model, [ids], "q")
    keys = calibrate_channels(model, [ids], "k")
    for hook in hooks:
        hook.remove()
    for found, name, heads in ((order, "q_proj", 4), (keys, "k_proj", 2)):
        wanted = grabbed[name].unflatten(-1, (heads, 8)).abs().mean((0, 1))
        assert torch.allclose(found.score[0], wanted, atol=1e-5)


def test_a_calibration_comes_back_and_belongs_to_its_model(tmp_path):
    model, other = tiny_causal_lm(vocab_size=64), models()["qwen2"]
    order = calibrate_channels(model, [torch.randperm(63)[None, :20] + 1])
    order.save(tmp_path / "mine.safetensors")
    again = ChannelOrder.load(tmp_path / "mine.safetensors")
    assert torch.equal(again.score, order.score)
    assert (again.rule, again.fingerprint, again.tokens) == (order.rule, order.fingerprint, 20)
    path = str(tmp_path / "mine.safetensors")
    with DoubleSparsity(top_k=6, label_channels=4, channels=path)(model):
        model.generate(torch.randperm(63)[None, :20] + 1, max_new_tokens=3, do_sample=False, pad_token_id=0)
    with pytest.raises(UserError, match=r"is of another model \(llama, 2 layers.*, not qwen2, 2 layers"):
        DoubleSparsity(label_channels=4, channels=path)(other)
    with pytest.raises(UserError, match="the shipped calibration is of another model"):
        DoubleSparsity()(model)


@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", b"\xff" * 100], ids=["empty", "pickle", "huge"])
def test_what_is_no_calibration_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*; make it with: mintage calibrate") as caught:
        ChannelOrder.load(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="does not exist; make it with: mintage calibrate"):
        ChannelOrder.load(tmp_path / "y.safetensors")


def test_another_artefact_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"score": torch.zeros(1, 2, 3)}, tmp_path / "x.safetensors", {"format": "of 2099"})
    with pytest.raises(UserError, match=r"is .of 2099., expected .mintage double-sparsity 2.; make it with"):
        ChannelOrder.load(tmp_path / "x.safetensors")


def test_what_holds_no_scores_is_refused(tmp_path):
    Artefact({"other": torch.zeros(1, 2, 3)}).save(tmp_path / "x.safetensors", "mintage double-sparsity 2")
    with pytest.raises(UserError, match="is no calibration of double-sparsity; make one with: mintage calibrate"):
        ChannelOrder.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top_k": 0}, "top_k=0 is out of range; pass a number above 0, e.g. 0.0625"),
        ({"top_k": 1.5}, r"top_k=1.5 is no share in \(0, 1\]"),
        ({"label_bits": 3}, "label_bits=3 is not one of 2, 4, 16"),
        ({"label_channels": 0}, "label_channels=0 is out of range"),
        ({"dense_layers": -1}, "dense_layers=-1 is out of range"),
        ({"kernel": "compiled", "label_bits": 4}, "takes labels of 16 bits, not 4"),
        ({"prefetch": True}, "prefetch=true has nothing to fetch; pass offload=true"),
    ],
    ids=["none", "share", "bits", "labels", "layers", "packed", "prefetch"],
)
def test_bad_settings_are_one_line(settings, said):
    with without_shape_checks(), pytest.raises(UserError, match=said):
        DoubleSparsity(**settings)


def test_there_must_be_text():
    with pytest.raises(UserError, match="there is no text to calibrate on"):
        calibrate_channels(tiny_causal_lm(), [])


@pytest.mark.e2e
def test_the_shipped_calibration_finds_a_pass_key_that_a_window_loses():
    from mintage.keep import StreamingLLM

    lm = load_causal_lm(dtype="bfloat16")
    filler = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
    said = f"{filler * 12}The pass key is 71432. Remember it. 71432 is the pass key. {filler * 18}"
    ids = lm.tokenizer(f"{said}What is the pass key? The pass key is", return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 600

    def answer(policy):
        with policy(lm.model), torch.inference_mode():
            cache = cache_of(lm.model(ids[:, :-1], use_cache=True, logits_to_keep=1))
            found, token = [], ids[:, -1:]
            for _ in range(6):
                token = lm.model(token, **with_cache(lm.model, cache), use_cache=True).logits[:, -1:].argmax(-1)
                found.append(token.item())
        return lm.tokenizer.decode(found)

    assert "71432" in answer(DoubleSparsity(top_k=64))
    assert "71432" in answer(DoubleSparsity(top_k=64, per="group"))
    assert "71432" not in answer(StreamingLLM(budget=64))

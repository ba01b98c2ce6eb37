from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.keep.core.attention import attend
from mintage.keep.core.step import Geometry, Rotary, Step
from mintage.keep.core.storage import KeptLayer
from mintage.keep.token_select import TokenSelect, hit_rate, mean_query, select_tokens, votes
from mintage.models import cache_of, load_causal_lm, with_cache
from mintage.testing.keep import models, padding_changes_nothing, the_same_twice

VECTORS = Path(__file__).parents[1] / "vectors" / "token-select"


class Turning:
    """The rotary embedding of a model, with this base."""

    rope_type = "default"

    def __init__(self, dim, base=10000.0):
        self.frequencies = base ** (-torch.arange(0, dim, 2) / dim)

    def __call__(self, x, position_ids):
        angles = torch.cat((position_ids[..., None].float() * self.frequencies,) * 2, -1)
        return angles.cos(), angles.sin()


@pytest.mark.parametrize("case", ["decode_gqa", "prefill_chunk_mha", "short_context_keeps_all"])
def test_parity_with_the_authors(case):
    held = dict(np.load(VECTORS / f"{case}.npz"))
    query, key = torch.tensor(held["query"]), torch.tensor(held["key"])
    rotate = Rotary(Turning(query.shape[2], float(held["rope_base"]))).near if held["rotate_query"] else None
    n_init, n_local, top_k = (int(held[name]) for name in ("n_init", "n_local", "top_k"))
    mean = mean_query(query.transpose(0, 1)[None], rotate, n_local)
    torch.testing.assert_close(mean[0], torch.tensor(held["query_mean"]), atol=1e-5, rtol=0)
    if "vote" in held:
        candidates = key[n_init : len(key) - n_local].repeat_interleave(query.shape[1] // key.shape[1], 1)
        cast = votes(torch.einsum("hd,nhd->hn", mean[0], candidates)[None])[0]
        torch.testing.assert_close(cast, torch.tensor(held["vote"]), atol=1e-5 * held["vote"].max(), rtol=0)
    pool = max(int(held["pool_kernel"]), 0)
    chosen = select_tokens(query, key, n_init=n_init, n_local=n_local, top_k=top_k, rotate=rotate, pool=pool)
    assert torch.equal(chosen, torch.tensor(held["selected"]))


@given(st.integers(0, 999), st.integers(1, 5), st.floats(-20, 20))
@settings(max_examples=40, deadline=None)
def test_every_head_has_one_vote(seed, heads, shift):
    scores = 5 * torch.randn(2, heads, 17, generator=torch.Generator().manual_seed(seed))
    cast = votes(scores)
    assert torch.allclose(cast.sum(-1), torch.full((2,), float(heads)), atol=1e-4)
    shifted = scores.clone()
    shifted[:, 0] += shift
    assert torch.allclose(votes(shifted), cast, atol=1e-4)
    assert torch.allclose(votes(scores.flip(1)), cast, atol=1e-5)
    hard = votes(scores, "hard", 4)
    assert torch.allclose(hard.floor().sum(-1), torch.full((2,), 4.0 * heads))


@pytest.mark.parametrize("seed", range(4))
def test_votes_are_counted_in_float32_whatever_the_keys_are(seed):
    """Scores near 300 would be rounded to whole numbers in bfloat16, and a softmax tells tenths apart."""
    draw = torch.Generator().manual_seed(seed)
    query = 6 * torch.randn(1, 4, 32, generator=draw).bfloat16()
    key = 6 * torch.randn(400, 2, 32, generator=draw).bfloat16()
    sizes = {"n_init": 2, "n_local": 8, "top_k": 24}
    assert torch.equal(select_tokens(query, key, **sizes), select_tokens(query.float(), key.float(), **sizes))


@given(st.integers(0, 999), st.integers(0, 4), st.integers(1, 6), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_the_choice_is_sorted_whole_and_blind_to_the_order_of_candidates(seed, n_init, n_local, top_k):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(1, 4, 8, generator=generator), torch.randn(40, 2, 8, generator=generator)
    sizes = {"n_init": n_init, "n_local": n_local, "top_k": top_k, "rotate": Rotary(Turning(8)).near}
    chosen = select_tokens(query, key, **sizes)
    assert len(chosen) == min(n_init + n_local + top_k, 40)
    assert (chosen.diff() > 0).all()
    assert set(range(n_init)) | set(range(40 - n_local, 40)) <= set(chosen.tolist())
    mixed = torch.arange(40)
    mixed[n_init : 40 - n_local] = n_init + torch.randperm(40 - n_local - n_init, generator=generator)
    again = select_tokens(query, key[mixed], **sizes)
    assert set(mixed[again].tolist()) == set(chosen.tolist())


def filled(policy, tokens=40, queries=1, seed=0, batch=1):
    """A layer with random states and the step of its last queries; keys without rotation beside."""
    generator = torch.Generator().manual_seed(seed)
    rotary = Rotary(Turning(8))
    geometry = Geometry("Test", 1, 4, 2, 8, rotary, "test")
    plain, value = torch.randn(2, batch, 2, tokens, 8, generator=generator)
    query = torch.randn(batch, 4, queries, 8, generator=generator)
    places = torch.arange(tokens)[None]
    layer = KeptLayer(0, policy)
    layer.geometry, layer.position_ids = geometry, places
    policy.store(layer, rotary(plain, places), value)
    layer.position_ids = places[:, -queries:]
    turned = rotary(query, layer.position_ids)
    step = Step(turned, None, 8**-0.5, layer.position_ids, geometry, lambda: torch.zeros(0))
    return layer, step, query, plain, value, rotary


@pytest.mark.parametrize("queries", [1, 4])
def test_a_step_reads_the_chosen_tokens_at_neighbouring_places(queries):
    policy = TokenSelect(n_init=2, n_local=5, top_k=6, chunk=4)
    layer, step, query, plain, value, rotary = filled(policy, queries=queries)
    sizes = {"n_init": 2, "n_local": 5, "top_k": 6, "rotate": rotary.near}
    chosen = select_tokens(query[0].transpose(0, 1), plain[0].transpose(0, 1), **sizes)
    keys = rotary(plain[:, :, chosen], torch.arange(13)[None])
    own = torch.arange(13 - queries, 13)
    visible = (torch.arange(13) <= own[:, None])[None, None]
    wanted = attend(rotary(query, own[None]), keys, value[:, :, chosen], scaling=8**-0.5, visible=visible)
    assert torch.allclose(policy.attend(layer, step), wanted, atol=1e-5)
    assert layer.reads == 13 * 2 * 2 * 8 + (40 - 7) * 2 * 8  # rows read, and candidates scored


def test_a_step_may_read_tokens_where_they_stand():
    policy = TokenSelect(n_init=2, n_local=5, top_k=6, chunk=5, reassign=False)
    layer, step, query, plain, value, rotary = filled(policy)
    sizes = {"n_init": 2, "n_local": 5, "top_k": 6, "rotate": rotary.near}
    chosen = select_tokens(query[0].transpose(0, 1), plain[0].transpose(0, 1), **sizes)
    keys = rotary(plain[:, :, chosen], chosen[None])
    wanted = attend(rotary(query, torch.tensor([[39]])), keys, value[:, :, chosen], scaling=8**-0.5)
    assert torch.allclose(policy.attend(layer, step), wanted, atol=1e-5)


def test_no_query_of_a_chunk_reads_a_later_token():
    policy = TokenSelect(n_init=2, n_local=8, top_k=6, chunk=8)
    layer, step, *_ = filled(policy, queries=8)
    before = policy.attend(layer, step)
    layer["value"][:, :, -3:] += 100
    after = policy.attend(layer, step)
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.allclose(before[:, :, 5:], after[:, :, 5:], atol=1)


@pytest.mark.parametrize("chunk", [1, 3, 5])
@pytest.mark.parametrize("theta", [-1, 0.5, 1.01])
def test_rows_of_a_padded_batch_are_read_as_alone(chunk, theta):
    policy = TokenSelect(n_init=2, n_local=5, top_k=6, chunk=chunk, theta=theta)
    padding_changes_nothing(policy)
    the_same_twice(policy)


def decode(policy, tokens=24, seed=1):
    """Logits of a text read one by one behind a prompt, and the cache."""
    model = models()["llama"]
    ids = torch.randint(1, 127, (2, 20 + tokens), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode(), policy(model) as session:
        past = cache_of(model(ids[:, :20], use_cache=True))
        logits = [model(ids[:, i : i + 1], **with_cache(model, past)).logits for i in range(20, 20 + tokens)]
    return torch.cat(logits, 1), session.cache


def test_the_selection_cache():
    never = TokenSelect(n_init=2, n_local=6, top_k=6, chunk=1, theta=1.01)
    always = replace(never, theta=-1)
    once = replace(always, close_gap=False)
    logits, cache = decode(never)
    assert hit_rate(cache) == 0
    _, cache = decode(always)
    assert 0.5 < hit_rate(cache) < 1  # chosen anew when half of the newest have left
    _, cache = decode(once)
    assert hit_rate(cache) == pytest.approx(23 / 24)  # the prompt is not counted
    other, cache = decode(replace(never, theta=0.3))
    assert 0 < hit_rate(cache) < 1
    assert not torch.equal(logits, other)


@pytest.mark.parametrize("close_gap", [True, False])
def test_tokens_that_leave_the_newest_are_still_read(close_gap):
    policy = TokenSelect(n_init=2, n_local=6, top_k=6, chunk=1, theta=-1, close_gap=close_gap)
    layer, step, query, *_ = filled(policy)
    rotary = step.geometry.rotary
    read = []
    for length in (40, 41, 42, 43):
        start = torch.zeros(1, dtype=torch.long)
        read.append(policy._choose(layer, query, rotary, start, length, torch.tensor([True]))[0].tolist())
        assert len(read[-1]) == len(set(read[-1])) == 14
        assert read[-1] == sorted(read[-1])
        assert set(range(length - 6, length)) <= set(read[-1])
    assert ({34, 35} <= set(read[2])) == close_gap
    if close_gap:  # three tokens have left: chosen anew, and the last choice's candidates end where the newest begin
        assert layer.state["since"].tolist() == [43]


def test_a_cropped_cache_chooses_anew():
    model = models()["llama"]
    policy = TokenSelect(n_init=2, n_local=5, top_k=6, chunk=1, theta=-1)
    ids = torch.randint(1, 127, (1, 30), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode(), policy(model):
        past = cache_of(model(ids[:, :24], use_cache=True))
        first = model(ids[:, 24:25], **with_cache(model, past)).logits
        past.crop(-1)
        assert torch.allclose(model(ids[:, 24:25], **with_cache(model, past)).logits, first, atol=1e-5)
        past.crop(-15)  # to ten tokens, which are all read again
        got = model(ids[:, 10:11], **with_cache(model, past)).logits
    wanted = model(ids[:, :11]).logits[:, 10:]
    assert torch.allclose(got, wanted, atol=1e-3)


def test_rotation_is_taken_off_and_put_back():
    rotary = Rotary(Turning(8))
    x = torch.randn(2, 3, 20, 8)
    places = torch.arange(20)[None] + torch.tensor([[0], [7]])
    assert torch.allclose(rotary.undo(rotary(x, places), places), x, atol=1e-5)
    assert torch.allclose(rotary.near(x, places), rotary(x, places), atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"top_k": 0}, {"n_local": 0}, {"n_init": -1}, {"chunk": 600}, {"chunk": 0}, {"pool": 4}]
)
def test_wrong_settings_are_told(wrong):
    with pytest.raises(UserError) as told:
        TokenSelect(**wrong)
    assert "\n" not in str(told.value)


def test_models_without_rotary_positions_are_refused():
    with pytest.raises(UserError, match="GPT2LMHeadModel lacks"):
        TokenSelect()(models()["gpt2"])


@pytest.mark.e2e
def test_on_the_real_model_a_third_of_the_tokens_say_nearly_the_same():
    lm = load_causal_lm("smollm2", dtype="bfloat16")
    text = "The lighthouse keeper wrote down the weather every morning, and the wind every night. " * 30
    ids = lm.tokenizer(text, return_tensors="pt").input_ids[:, :420]
    with torch.inference_mode():
        full = lm.model(ids).logits
        with TokenSelect(n_init=4, n_local=64, top_k=60, chunk=64)(lm.model) as session:
            past = cache_of(lm.model(ids[:, :400], use_cache=True))
            got = torch.cat(
                [lm.model(ids[:, i : i + 1], **with_cache(lm.model, past)).logits for i in range(400, 420)], 1
            )
    agree = (got.argmax(-1) == full[:, 400:].argmax(-1)).float().mean().item()
    assert agree >= 0.8
    assert session.cache.reads() < 2 * 30 * 3 * 64 * 420

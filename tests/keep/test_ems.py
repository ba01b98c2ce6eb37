from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mintage.errors import UserError
from mintage.keep.core.attention import attend
from mintage.keep.ems import EMS, combine_scores, evict_then_merge, global_local_score
from mintage.models import cache_of, tiny_causal_lm, with_cache

VECTORS = Path(__file__).parents[1] / "vectors" / "ems"


def made(seed=0, batch=1, groups=2, entries=30, dim=8, clusters=6):
    """Keys and values in clusters, so that some are similar enough to be merged."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, clusters, dim, generator=generator, dtype=torch.double)
    which = torch.randint(clusters, (batch, groups, entries), generator=generator)
    noise = 0.3 * torch.randn(2, batch, groups, entries, dim, generator=generator, dtype=torch.double)
    key, value = centres[0][which] + noise[0], centres[1][which] + noise[1]
    score = torch.rand(batch, groups, entries, generator=generator, dtype=torch.double) ** 3
    return key, value, score


@pytest.mark.parametrize("case", ["gqa", "all_zero_class"])
def test_parity_with_the_reference(case):
    held = np.load(VECTORS / f"{case}.npz")
    query, key, value = (torch.tensor(held[n]).double()[None] for n in ("query", "key", "value"))
    window, budget = int(held["n_local"]), int(held["budget"])
    glo, loc, score = global_local_score(query, key, window)
    merged = evict_then_merge(
        key, value, score, window=window, budget=budget,
        irrelevant_mass=float(held["irrelevant_mass"]), tau=float(held["tau"]),
    )  # fmt: skip
    for got, name in (
        (glo, "score_global"), (loc, "score_local"), (score, "score_gl"), (merged.key, "key_out"),
        (merged.value, "value_out"), (merged.member_count, "member_count"),
    ):  # fmt: skip
        np.testing.assert_allclose(got[0].numpy(), held[name], atol=1e-5, err_msg=name)
    for name in ("centre_index", "category", "assignment"):
        np.testing.assert_array_equal(getattr(merged, name)[0].numpy(), held[name])


def loops(key, value, score, window, budget, mass, tau):
    """One head, token by token, as the definitions read."""
    older, centres = len(score), budget - window
    order = sorted(range(older), key=lambda j: (-score[j], j))
    chosen = sorted(order[:centres])
    label, running, total = {}, 0.0, sum(score)
    for j in reversed(order[centres:]):
        running += score[j]
        if running / total <= mass:
            label[j] = -1
            continue
        similar = []
        for m in chosen:
            a = functional.cosine_similarity(key[j], key[m], dim=0).item()
            b = functional.cosine_similarity(value[j], value[m], dim=0).item()
            similar.append(a * b if a > 0 and b > 0 else 0.0)
        best = max(range(centres), key=lambda s: (similar[s], -s))
        label[j] = best if similar[best] >= tau else centres
    members = [[m, *(j for j in label if label[j] == s)] for s, m in enumerate(chosen)]
    keys = torch.stack([key[own].mean(0) for own in members])
    values = torch.stack([value[own].mean(0) for own in members])
    return torch.cat((keys, key[older:])), torch.cat((values, value[older:])), [len(own) for own in members]


@given(
    st.integers(0, 999), st.integers(1, 6), st.integers(1, 12), st.sampled_from([0.0, 0.05, 0.3]),
    st.sampled_from([-1.0, 0.2, 0.6, 2.0]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_all_heads_at_once_equal_head_by_head(seed, window, centres, mass, tau):
    key, value, score = made(seed, batch=2)
    older = 30 - window
    merged = evict_then_merge(
        key, value, score[..., :older], window=window, budget=window + centres, irrelevant_mass=mass, tau=tau
    )
    for b in range(2):
        for g in range(2):
            wanted = loops(key[b, g], value[b, g], score[b, g, :older].tolist(), window, window + centres, mass, tau)
            assert torch.allclose(merged.key[b, g], wanted[0], atol=1e-10)
            assert torch.allclose(merged.value[b, g], wanted[1], atol=1e-10)
            assert merged.member_count[b, g].tolist() == wanted[2]


@given(st.integers(0, 999), st.sampled_from(["both", "values"]))
@settings(max_examples=30, deadline=None)
def test_what_is_merged_is_conserved(seed, merge):
    key, value, score = made(seed)
    count = torch.randint(1, 5, (1, 2, 26), generator=torch.Generator().manual_seed(seed)).double()
    merged = evict_then_merge(key, value, score[..., :26], window=4, budget=12, merge=merge, count=count)
    stays = ((merged.assignment >= 0) & (merged.assignment < 8)).double() * count
    centres = merged.member_count[..., None] * merged.value[:, :, :8]
    assert torch.allclose(centres.sum(2), (stays[..., None] * value[:, :, :26]).sum(2), atol=1e-10)
    assert torch.equal(merged.member_count.sum(-1), stays.sum(-1))
    if merge == "both":
        centres = merged.member_count[..., None] * merged.key[:, :, :8]
        assert torch.allclose(centres.sum(2), (stays[..., None] * key[:, :, :26]).sum(2), atol=1e-10)
    else:
        index = merged.centre_index[..., None].expand(1, 2, 8, 8)
        assert torch.equal(merged.key[:, :, :8], key.gather(2, index))


def test_the_window_stays_bit_for_bit_and_centres_ascend():
    key, value, score = made()
    merged = evict_then_merge(key, value, score[..., :25], window=5, budget=11)
    assert torch.equal(merged.key[:, :, 6:], key[:, :, 25:])
    assert torch.equal(merged.value[:, :, 6:], value[:, :, 25:])
    assert (merged.centre_index.diff(dim=-1) > 0).all()
    assert merged.key.shape == (1, 2, 11, 8)


def test_above_one_nothing_is_merged():
    key, value, score = made()
    merged = evict_then_merge(key, value, score[..., :25], window=5, budget=11, tau=1.5)
    top = score[..., :25].topk(6).indices.sort(-1).values
    assert torch.equal(merged.centre_index, top)
    assert torch.equal(merged.key[:, :, :6], key.gather(2, top[..., None].expand(1, 2, 6, 8)))
    assert (merged.member_count == 1).all()


def test_without_thresholds_nothing_is_lost():
    key, value, score = made()
    merged = evict_then_merge(key, value, score[..., :25], window=5, budget=11, irrelevant_mass=0, tau=0)
    assert (merged.assignment >= 0).all()
    assert (merged.assignment < 6).all()
    assert (merged.member_count.sum(-1) == 25).all()


@given(st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_the_scale_of_the_scores_does_not_matter(factor):
    key, value, score = made()
    one = evict_then_merge(key, value, score[..., :25], window=5, budget=11)
    two = evict_then_merge(key, value, factor * score[..., :25], window=5, budget=11)
    assert torch.equal(one.assignment, two.assignment)


def test_duplicates_merge_without_loss_under_mass_correction():
    key, value, score = made(entries=8)
    key, value = key.repeat_interleave(3, 2), value.repeat_interleave(3, 2)
    score = score.repeat_interleave(3, 2)
    score[..., ::3] += 10  # the first of each three becomes a centre
    window = torch.randn(2, 1, 2, 2, 8, dtype=torch.double)
    key, value = torch.cat((key, window[0]), 2), torch.cat((value, window[1]), 2)
    merged = evict_then_merge(key, value, score, window=2, budget=10, irrelevant_mass=0, tau=0.999)
    assert (merged.member_count == 3).all()
    query = torch.randn(1, 4, 1, 8, dtype=torch.double)
    bias = torch.cat((merged.member_count, torch.ones(1, 2, 2, dtype=torch.double)), -1).log()
    got = attend(query, merged.key, merged.value, scaling=0.4, bias=bias)
    assert torch.allclose(got, attend(query, key, value, scaling=0.4), atol=1e-6)


def test_scores_add_up_and_are_aligned():
    query, key = torch.randn(1, 4, 20, 8), torch.randn(1, 2, 20, 8)
    glo, loc, combined = global_local_score(query, key, 5)
    assert torch.allclose(glo.sum(-1), torch.full((1, 2), 20.0), atol=1e-4)
    assert torch.allclose(loc.sum(-1), torch.full((1, 2), 5.0), atol=1e-4)
    assert combined.shape == (1, 2, 15)
    aligned = combine_scores(glo[..., :15], loc[..., :15], "sum") - loc[..., :15]
    assert torch.allclose(aligned.mean(-1), loc[..., :15].mean(-1), atol=1e-6)


def test_padding_is_dropped_before_everything():
    key, value, score = made()
    dead = torch.zeros(1, 2, 25, dtype=torch.bool)
    dead[..., :6] = True
    score[..., :6] = 100
    merged = evict_then_merge(key, value, score[..., :25], window=5, budget=11, irrelevant_mass=0, tau=0, dead=dead)
    assert (merged.assignment[..., :6] == -1).all()
    assert (merged.centre_index >= 6).all()


def test_entries_are_merged_again_in_decoding():
    model = tiny_causal_lm(vocab_size=64)
    ids = torch.randperm(63)[None, :40] + 1
    with EMS(budget=12, window=4, every=2, irrelevant_mass=0, tau=0)(model) as session:
        model.generate(ids, max_new_tokens=30, do_sample=False, pad_token_id=0)
    for layer in session.cache.kept_layers:
        assert layer.entries <= 12
        assert (layer["count"].sum(-1) == layer.seen).all()  # nothing was dropped, so every token is counted
        assert (layer["count"][..., -4:] == 1).all()


def test_options_reach_the_cache():
    model = tiny_causal_lm(vocab_size=64)
    ids = torch.randperm(63)[None, :40] + 1
    said = set()
    for changed in ({}, {"combine": "sum"}, {"weights": "score"}, {"merge": "values"}, {"correct_mass": True}):
        with EMS(budget=12, window=4, tau=0.0, **changed)(model), torch.inference_mode():
            cache = cache_of(model(ids, use_cache=True))
            said.add(round(model(ids[:, :1], **with_cache(model, cache), use_cache=True).logits.sum().item(), 5))
    assert len(said) == 5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"irrelevant_mass": 1.0}, r"irrelevant_mass=1.0 is out of range; pass a number in \[0, 1\)"),
        ({"irrelevant_mass": -0.1}, "irrelevant_mass=-0.1 is out of range"),
        ({"tau": float("nan")}, "tau=nan is not a number, e.g. 0.5"),
        ({"window": 0}, "window=0 is out of range; pass a number at least 1, e.g. 32"),
    ],
    ids=["all", "negative", "nan", "window"],
)
def test_bad_settings_are_one_line(settings, said):
    with pytest.raises(UserError, match=said):
        EMS(**settings)


def test_a_budget_without_centres_is_refused():
    key, value, score = made()
    with pytest.raises(UserError, match="leaves 0 centres of 25 older entries; pass 6 or more"):
        evict_then_merge(key, value, score[..., :25], window=5, budget=5)

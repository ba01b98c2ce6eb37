"""Zero-TPrune: equality with the reference, PageRank's laws, the three stages, and settings for every depth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage import catalog
from mintage.errors import UserError
from mintage.reduce.contract import Anatomy
from mintage.reduce.zero_tprune import (
    ZeroTPrune,
    combine_heads,
    most_similar,
    similarity_prune,
    weighted_page_rank,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "zero-tprune"
DEIT_S = Anatomy(layers=12, dim=384, hidden=1536, patches=196, prefix=1, heads=6)
SMALL = Anatomy(layers=8, dim=128, hidden=256, patches=64, prefix=1, heads=4, fixed=2_000_000)


def attention_of(seed, batch=2, heads=3, tokens=17, sharp=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(batch, heads, tokens, tokens, generator=generator, dtype=torch.double)).softmax(-1)


def keys_of(seed, batch=2, tokens=17, dim=8):
    return torch.randn(batch, tokens, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def plain(**settings):
    return ZeroTPrune(layers=(0,), retention=(0.5,), **settings)


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", ["layer", "uniform_init_no_s_stage", "all_heads_filtered"])
def test_parity_with_the_reference(case, dtype, tolerance):
    held = np.load(VECTORS / f"{case}.npz")
    attention, keys = (torch.tensor(held[name]).to(dtype) for name in ("attention", "keys"))
    boost, r, rounds = bool(held["cls_boost"]), int(held["similarity_pruned"]), int(held["iterations"])
    filters = float(held["v_min"]), float(held["v_max"])
    pre = combine_heads(weighted_page_rank(attention, 1, class_boost=boost), *filters)
    np.testing.assert_allclose(pre.numpy(), held["pre_importance"], atol=tolerance)
    lesser, similarity, match = (x.numpy() for x in most_similar(pre[:, 1:], keys[:, 1:]))
    wanted = np.full_like(held["best_similarity"], np.nan)
    matched = np.full_like(held["best_match"], -1)
    np.put_along_axis(wanted, lesser + 1, similarity.astype(float), 1)
    np.put_along_axis(matched, lesser + 1, match + 1, 1)
    np.testing.assert_allclose(wanted, held["best_similarity"], atol=tolerance)
    np.testing.assert_array_equal(matched, held["best_match"])
    left = similarity_prune(pre[:, 1:], keys[:, 1:], r).numpy() + 1
    np.testing.assert_array_equal(left, held["s_stage_kept"][:, 1:])

    stays = torch.tensor(held["s_stage_kept"])
    among = torch.stack([a[:, s][:, :, s] for a, s in zip(attention, stays, strict=True)])
    scores = weighted_page_rank(among / among.sum(-1, keepdim=True), rounds, class_boost=boost)
    np.testing.assert_allclose(scores.numpy(), held["head_scores"], atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(scores.var(-1, correction=0).numpy(), held["head_variance"], atol=tolerance, rtol=1e-4)
    importance = combine_heads(scores, *filters).numpy()
    np.testing.assert_allclose(importance, held["importance"], atol=tolerance, rtol=tolerance)
    method = plain(class_boost=boost, v_min=filters[0], v_max=filters[1])
    kept = int(held["importance_kept"])
    chosen = method.choose(attention, keys, kept, similar=r, iterations=rounds, prefix=1)
    np.testing.assert_array_equal(chosen.numpy() + 1, held["kept"][:, 1:])


# -- votes -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(1, 40), st.booleans())
@settings(max_examples=40, deadline=None)
def test_votes_are_conserved_and_not_negative(seed, rounds, boost):
    scores = weighted_page_rank(attention_of(seed), rounds, class_boost=boost)
    assert (scores >= 0).all()
    torch.testing.assert_close(scores.mean(-1), torch.ones(2, 3, dtype=torch.double))


def test_uniform_attention_makes_uniform_scores_in_one_round():
    attention = torch.full((1, 2, 9, 9), 1 / 9, dtype=torch.double)
    torch.testing.assert_close(weighted_page_rank(attention, 1), torch.ones(1, 2, 9, dtype=torch.double))


def test_many_rounds_end_at_the_left_eigenvector_whatever_the_start():
    attention = attention_of(0, batch=1, heads=1)
    found = weighted_page_rank(attention, 300)
    torch.testing.assert_close(found, weighted_page_rank(attention, 300, class_boost=False))
    values, vectors = torch.linalg.eig(attention[0, 0].T)
    perron = vectors[:, values.real.argmax()].real
    torch.testing.assert_close(found[0, 0], perron / perron.mean())


def test_the_class_token_starts_with_the_root_of_the_number_of_tokens():
    attention = torch.eye(16, dtype=torch.double)[None, None]  # everyone votes for itself
    scores = weighted_page_rank(attention, 1)[0, 0]
    assert scores[0] / scores[1] == pytest.approx(4)


def test_heads_outside_the_filter_do_not_count():
    even = torch.ones(6, dtype=torch.double)
    mild = torch.tensor([0.5, 1.5] * 3, dtype=torch.double)  # variance 0.25
    wild = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 6.0], dtype=torch.double)
    scores = torch.stack([even, mild, wild])[None]
    torch.testing.assert_close(combine_heads(scores)[0], mild)
    every = (scores.square().mean(1)).sqrt()
    torch.testing.assert_close(combine_heads(scores, 0, float("inf")), every)
    torch.testing.assert_close(combine_heads(scores[:, ::2]), scores[:, ::2].square().mean(1).sqrt())  # none passes
    torch.testing.assert_close(combine_heads(scores, 0, float("inf"), mean="plain"), scores.mean(1))


# -- stages ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(2, 17), st.data())
@settings(max_examples=50, deadline=None)
def test_likeness_drops_from_the_less_important_half_only(seed, patches, data):
    r = data.draw(st.integers(0, patches // 2))
    importance = torch.rand(2, patches, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    stays = similarity_prune(importance, keys_of(seed, tokens=patches), r)
    half = importance.argsort(dim=1, descending=True)[:, : patches - patches // 2]
    for image in range(2):
        assert len(stays[image]) == patches - r
        assert stays[image].tolist() == sorted(set(stays[image].tolist()))
        assert set(half[image].tolist()) <= set(stays[image].tolist())


def test_a_copy_of_an_important_token_is_dropped_first():
    importance = torch.linspace(1, 0, 10, dtype=torch.double)[None]
    keys = keys_of(4, batch=1, tokens=10)
    keys[:, 8] = 3 * keys[:, 1]
    assert 8 not in similarity_prune(importance, keys, 1)[0].tolist()
    with pytest.raises(UserError, match="r=6 of 10 patches; the S stage drops 5 at most"):
        similarity_prune(importance, keys, 6)


@pytest.mark.parametrize("order", ["ISI", "IS", "I"])
@given(st.integers(0, 999), st.integers(1, 15), st.integers(0, 8), st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_counts_are_those_asked_for_and_permuting_permutes(order, seed, keep, similar, prefix):
    attention, keys = attention_of(seed, tokens=16 + prefix), keys_of(seed, tokens=16 + prefix)
    method = plain(order=order)
    similar = min(similar, 16 - keep, keep if order == "IS" else 8)
    given_ = {"similar": similar, "iterations": 5, "prefix": prefix}
    chosen = method.choose(attention, keys, keep, **given_)
    assert chosen.shape == (2, keep)
    assert all(row == sorted(set(row)) for row in chosen.tolist())
    patches = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    permuted = torch.cat([torch.arange(prefix), patches + prefix])
    moved = method.choose(attention[:, :, permuted][:, :, :, permuted], keys[:, permuted], keep, **given_)
    assert torch.equal(patches[moved].sort(dim=1).values, chosen)


def test_i_alone_keeps_the_most_important_by_votes():
    attention, keys = attention_of(2), keys_of(2)
    method = plain(order="I")
    importance = combine_heads(weighted_page_rank(attention, 30))[:, 1:]
    wanted = importance.topk(6).indices.sort(dim=1).values
    assert torch.equal(method.choose(attention, keys, 6, similar=4, iterations=30, prefix=1), wanted)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_deit_s_and_scale():
    assert ZeroTPrune().settings(12, 196) == {
        1: (1.0, 10, 30), 3: (0.9, 10, 5), 6: (0.8, 10, 5), 9: (0.7, 10, 1), 11: (1.0, 10, 1),
    }  # fmt: skip
    assert list(ZeroTPrune().settings(8, 64)) == [1, 2, 4, 6, 7]
    assert {similar for _, similar, _ in ZeroTPrune().settings(8, 64).values()} == {3}
    assert ZeroTPrune().settings(2, 16).keys() == {0, 1}  # places coincide
    assert ZeroTPrune().kept(DEIT_S) == (196, 186, 186, 159, 159, 159, 120, 120, 120, 77, 77, 67)


def test_nothing_is_dropped_at_full_strength_zero():
    assert ZeroTPrune(retention=(1.0,), similar=(0,)).kept(DEIT_S) == (196,) * 12
    assert ZeroTPrune().unreduced().kept(SMALL) == (64,) * 8


@pytest.mark.parametrize("anatomy", [DEIT_S, SMALL])
@pytest.mark.parametrize("hook", ["block", "attention"])
@pytest.mark.parametrize("share", [0.95, 0.8, 0.65, 0.5])
def test_a_share_of_the_multiply_adds_is_met(anatomy, hook, share):
    method = ZeroTPrune(hook=hook).at(share, anatomy)
    kept = method.kept(anatomy)
    assert anatomy.macs(kept, hook=hook) / anatomy.full == pytest.approx(share, abs=0.02)
    assert list(kept) == sorted(kept, reverse=True)
    assert kept[-1] >= 1


def test_a_share_out_of_reach_is_refused():
    with pytest.raises(UserError, match=r"macs=0.1 cannot be reached in layers 1x3x6x9x11; the least is macs=0\."):
        ZeroTPrune().at(0.1, DEIT_S)
    with pytest.raises(UserError, match="outside"):
        ZeroTPrune().at(1.5, DEIT_S)


def test_settings_are_written_in_a_spec():
    method = catalog.build("zero-tprune:layers=1x3,retention=0.8,similar=2x0,iterations=9,order=IS", "reduce")
    assert method.settings(4, 16) == {1: (0.8, 2, 9), 3: (0.8, 0, 9)}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layers": (3, 1), "retention": (0.5,)}, "ascending"),
        ({"layers": (), "retention": (0.5,)}, "ascending"),
        ({"layers": (1,)}, "needs retention"),
        ({"retention": (0.0,)}, "out of range"),
        ({"retention": (1.2,)}, "out of range"),
        ({"similar": (-1,)}, "at least 0"),
        ({"iterations": (0,)}, "at least 1"),
        ({"v_min": 0.8}, "v_min <= v_max"),
    ],
)
def test_mistakes(wrong, said):
    with pytest.raises(UserError, match=said):
        ZeroTPrune(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layers": (12,), "retention": (0.5,)}, "layer 12 does not exist; this model has layers 0 to 11"),
        ({"retention": (0.5, 0.6)}, "retention has 2 numbers for 5 layers"),
    ],
)
def test_mistakes_that_show_on_a_model(wrong, said):
    with pytest.raises(UserError, match=said):
        ZeroTPrune(**wrong).kept(DEIT_S)


def test_keys_and_attention_in_half_precision_are_lifted():
    attention, keys = attention_of(6).float(), keys_of(6).bfloat16().float()
    wanted = plain().choose(attention, keys, 7, similar=3, iterations=30, prefix=1)
    assert torch.equal(plain().choose(attention, keys.bfloat16(), 7, similar=3, iterations=30, prefix=1), wanted)


@pytest.mark.parametrize(("keep", "similar"), [(2, 5), (6, 3), (9, 0), (4, -1)])
def test_more_than_half_is_refused_not_cut(keep, similar):
    attention, keys = torch.softmax(torch.randn(1, 2, 9, 9), -1), torch.randn(1, 9, 4)
    rest = {"iterations": 1, "prefix": 1}
    assert ZeroTPrune().choose(attention, keys, 4, similar=4, **rest).shape == (1, 4)
    with pytest.raises(UserError, match=f"similar={similar} and keep={keep} of 8 patches"):
        ZeroTPrune().choose(attention, keys, keep, similar=similar, **rest)
    with pytest.raises(UserError, match="similar 0 to 2"):
        ZeroTPrune(order="IS").choose(attention, keys, 2, similar=3, **rest)

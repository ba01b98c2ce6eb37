import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from mintage.errors import UserError
from mintage.keep.core.attention import attend, attention_weights, group, ungroup, weights_by_column
from mintage.keep.core.step import Geometry
from mintage.models import tiny_causal_lm


def made(batch=2, heads=6, groups=2, queries=5, entries=9, dim=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, queries, dim, generator=generator)
    key, value = torch.randn(2, batch, groups, entries, dim, generator=generator)
    visible = torch.rand(batch, groups, queries, entries, generator=generator) < 0.6
    visible[..., 0] = True
    return query, key, value, visible


def reference(query, key, value, scaling, visible=None, bias=None):
    """One head after the other, in float64."""
    batch, heads, queries, _ = query.shape
    share = heads // key.shape[1]
    out, weights = torch.zeros(query.shape, dtype=torch.double), []
    for b in range(batch):
        for h in range(heads):
            scores = query[b, h].double() @ key[b, h // share].double().T * scaling
            if bias is not None:
                scores = scores + bias[b, h // share].double()
            if visible is not None:
                scores = scores.masked_fill(~visible[b, h // share if visible.shape[1] > 1 else 0], -torch.inf)
            weights.append(scores.softmax(-1))
            out[b, h] = weights[-1] @ value[b, h // share].double()
    return out, torch.stack(weights).reshape(batch, heads, queries, -1)


@given(
    st.sampled_from([(4, 4), (4, 2), (6, 2), (3, 1)]),
    st.sampled_from([1, 2, 5]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_grouped_attention_equals_one_head_after_the_other(shape, queries, masked, biased, seed):
    heads, groups = shape
    query, key, value, visible = made(heads=heads, groups=groups, queries=queries, seed=seed)
    visible = visible if masked else None
    bias = torch.rand(2, groups, 9) if biased else None
    wanted, weights = reference(query, key, value, 0.3, visible, bias)
    got = attend(query, key, value, scaling=0.3, visible=visible, bias=bias)
    assert torch.allclose(got.double(), wanted, atol=1e-5)
    own = attention_weights(query, key, scaling=0.3, visible=visible, bias=bias)
    assert torch.allclose(own.flatten(1, 2).double(), weights, atol=1e-5)


def test_one_mask_serves_all_groups():
    query, key, value, visible = made()
    shared = visible[:, :1]
    wanted, _ = reference(query, key, value, 1.0, shared)
    assert torch.allclose(attend(query, key, value, scaling=1.0, visible=shared).double(), wanted, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_columns_add_up_whatever_the_chunks(chunk):
    query, key, _, visible = made()
    whole = attention_weights(query, key, scaling=0.5, visible=visible).sum(3).mean(2)
    got = weights_by_column(query, key, scaling=0.5, visible=lambda a, b: visible[:, :, a:b], chunk=chunk)
    assert torch.allclose(got, whole, atol=1e-6)
    assert torch.allclose(got.sum(-1), torch.full((2, 2), 5.0), atol=1e-5)  # every query spends 1


def test_a_query_that_sees_nothing_weighs_nothing():
    query, key, _, visible = made()
    visible[0, :, 2] = False
    weights = attention_weights(query, key, scaling=1.0, visible=visible)
    assert (weights[0, :, :, 2] == 0).all()
    assert weights.isfinite().all()


def test_grouping_is_undone():
    query, *_ = made()
    assert torch.equal(ungroup(group(query, 2), 5), query)


def test_rotation_is_the_models_and_can_be_undone():
    model = tiny_causal_lm()
    rotary = Geometry.of(model).need_rotary("this")
    x, positions = torch.randn(2, 4, 7, 8), torch.tensor([[3, 4, 5, 6, 7, 100, 101], [0, 1, 2, 3, 4, 5, 6]])
    cos, sin = model.model.rotary_emb(x, positions)
    wanted, _ = apply_rotary_pos_emb(x, x, cos, sin)
    assert torch.allclose(rotary(x, positions), wanted, atol=1e-6)
    assert torch.allclose(rotary.undo(wanted, positions), x, atol=1e-5)


def test_scaled_rotations_can_be_undone():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    model = tiny_causal_lm(rope_parameters=scaling)
    rotary = Geometry.of(model).need_rotary("this")
    assert model.model.rotary_emb.attention_scaling > 1
    x, positions = torch.randn(1, 4, 5, 8), torch.arange(50, 55)[None]
    assert torch.allclose(rotary.undo(rotary(x, positions), positions), x, atol=1e-5)


def test_models_without_a_known_rotation_are_named():
    from transformers import AutoModelForCausalLM, GPT2Config

    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"^that moves rotary positions, which GPT2LMHeadModel lacks; .*llama"):
        Geometry.of(model).need_rotary("that")

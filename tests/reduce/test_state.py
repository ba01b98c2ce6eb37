"""Tokens on their way: dropping, merging, mixing, against loops over single tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.reduce import Evidence, TokenState


def state(batch=2, patches=6, prefix=1, dim=3, seed=0, **given):
    generator = torch.Generator().manual_seed(seed)
    tokens = prefix + patches
    fields = {
        "x": torch.randn(batch, tokens, dim, generator=generator),
        "size": torch.randint(1, 5, (batch, tokens, 1), generator=generator).float(),
        "source": torch.eye(tokens).expand(batch, -1, -1),
    }
    return TokenState(**fields | given, prefix=prefix, layer=0, layers=2)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 99), st.data())
def test_merging_is_a_weighted_mean(patches, prefix, seed, data):
    count = data.draw(st.integers(1, patches))
    rows = []
    for _ in range(2):  # every slot once, then anything, -1 drops
        rest = data.draw(st.lists(st.integers(-1, count - 1), min_size=patches - count, max_size=patches - count))
        rows.append(data.draw(st.permutations([*range(count), *rest])))
    before = state(patches=patches, prefix=prefix, seed=seed)
    after = before.merge(torch.tensor(rows), count)
    assert after.x.shape == (2, prefix + count, 3)
    assert torch.equal(after.x[:, :prefix], before.x[:, :prefix])
    assert after.positions is None
    for b, row in enumerate(rows):
        for slot in range(count):
            members = [prefix + i for i, s in enumerate(row) if s == slot]
            sizes = before.size[b, members]
            torch.testing.assert_close(after.size[b, prefix + slot], sizes.sum(0))
            mean = (before.x[b, members] * sizes).sum(0) / sizes.sum()
            torch.testing.assert_close(after.x[b, prefix + slot], mean)
            assert after.source[b, prefix + slot].nonzero().flatten().tolist() == members


def test_a_mean_without_sizes_and_a_gain_of_its_own():
    before = state(batch=1, patches=3, prefix=0)
    after = before.merge(torch.tensor([[0, 0, 1]]), 2, weighted=False, gain=torch.tensor([[1.0, 5.0, 2.0]]))
    torch.testing.assert_close(after.x[0, 0], before.x[0, :2].mean(0))
    assert after.size.flatten().tolist() == [6.0, 2.0]


def test_keeping_follows_the_order_and_remembers_places():
    before = state(prefix=2)
    once = before.keep(torch.tensor([[4, 1, 0], [5, 3, 2]]))
    assert once.positions.tolist() == [[0, 1, 6, 3, 2], [0, 1, 7, 5, 4]]
    assert torch.equal(once.x[0], before.x[0, [0, 1, 6, 3, 2]])
    twice = once.keep(torch.tensor([[1], [2]]))
    assert twice.positions.tolist() == [[0, 1, 3], [0, 1, 4]]
    assert twice.source[1].nonzero()[:, 1].tolist() == [0, 1, 4]
    assert twice.patches == 1


def test_mixing_weighs_patches_and_starts_sizes_again():
    before = state(prefix=1)
    weights = torch.rand(2, 4, 6).softmax(-1)
    after = before.mix(weights)
    torch.testing.assert_close(after.x[:, 1:], weights @ before.x[:, 1:])
    torch.testing.assert_close(after.source[:, 1:, 1:], weights)
    assert (after.size == 1).all()
    assert torch.equal(after.x[:, :1], before.x[:, :1])


def test_nothing_is_traced_unless_asked():
    before = state(source=None)
    assert before.merge(torch.zeros(2, 6, dtype=torch.long), 1).source is None
    assert before.keep(torch.zeros(2, 1, dtype=torch.long)).source is None


def test_gradients_pass_through_a_merge():
    x = torch.randn(1, 5, 2, requires_grad=True)
    state(batch=1, patches=4, x=x).merge(torch.tensor([[0, 1, 0, 1]]), 2).x.sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_evidence_is_what_attention_computes(biased):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 4, generator=generator)
    bias = torch.randn(2, 1, 1, 5, generator=generator) if biased else None
    evidence = Evidence(query=query, key=key, value=value, scaling=0.5, bias=bias)
    scores = query @ key.transpose(2, 3) * 0.5 + (bias if biased else 0)
    torch.testing.assert_close(evidence.attention(), scores.softmax(-1))
    torch.testing.assert_close(evidence.row(3), scores.softmax(-1)[:, :, 3])
    mask = None if bias is None else bias.expand(-1, -1, 5, -1)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.5)
    torch.testing.assert_close(evidence.output(), wanted)
    torch.testing.assert_close(evidence.metric(), key.mean(1))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(evidence.attention(), scores.softmax(-1))

"""ToMe against its paper, token by token; what random, class-attention and pooling reducers do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage import catalog
from mintage.errors import UserError
from mintage.reduce import Anatomy, AveragePool, ClassAttention, Evidence, RandomDrop, TokenState, ToMe
from mintage.reduce.baselines import bipartite_matching, received_attention

TINY = Anatomy(layers=4, dim=16, hidden=32, patches=16, prefix=1)


def token_by_token(metric, remove, prefix):
    """Steps 1 to 5 of ToMe's section 3 for one image: groups of patches, in the order of their slots."""
    patches = range(prefix, len(metric))
    first, second = [i for i in patches if i % 2 == 0], [i for i in patches if i % 2]

    def cosine(i, j):
        return torch.cosine_similarity(metric[i], metric[j], dim=0).item()

    best = {i: max(second, key=lambda j: cosine(i, j)) for i in first}
    merged = sorted(first, key=lambda i: -cosine(i, best[i]))[:remove]
    return [[i] for i in first if i not in merged] + [[j, *(i for i in sorted(merged) if best[i] == j)] for j in second]


@settings(deadline=None)
@given(st.integers(2, 13), st.integers(0, 5), st.integers(0, 999), st.data())
def test_matching_is_that_of_the_paper(patches, prefix, seed, data):
    remove = data.draw(st.integers(0, patches // 2))
    metric = torch.randn(2, prefix + patches, 4, generator=torch.Generator().manual_seed(seed))
    slots = bipartite_matching(metric, remove, prefix=prefix)
    for image, slot in zip(metric, slots.tolist(), strict=True):
        groups = [sorted(g) for g in token_by_token(image, remove, prefix)]
        assert len(groups) == patches - remove
        assert [[prefix + i for i, s in enumerate(slot) if s == g] for g in range(len(groups))] == groups


def test_identical_tokens_merge_first():
    metric = torch.eye(7)[None].clone()
    metric[0, 4] = metric[0, 5]
    assert bipartite_matching(metric, 1, prefix=1)[0].tolist() == [2, 0, 3, 4, 4, 1]


@pytest.mark.parametrize("method", [ToMe, lambda **k: ToMe(**k, proportional_attention=False)], ids=["on", "off"])
def test_tome_cannot_more_than_halve(method):
    with pytest.raises(UserError, match="layer 1 merges 8 tokens into 3; pairs can halve them at most"):
        method(schedule="counts=8x3x3x3").kept(TINY)


def given_state(patches, prefix=1, batch=2, seed=0, **fields):
    generator = torch.Generator().manual_seed(seed)
    tokens = prefix + patches
    query, key, value = torch.randn(3, batch, 2, tokens, 8, generator=generator)
    made = TokenState(
        x=torch.randn(batch, tokens, 16, generator=generator),
        size=torch.ones(batch, tokens, 1),
        prefix=prefix,
        layer=0,
        layers=4,
        source=torch.eye(tokens).expand(batch, -1, -1),
        **fields,
    )
    return made, Evidence(query=query, key=key, value=value, scaling=8**-0.5)


def left(state):
    """Which patches are left, by image."""
    return [sorted(row.nonzero()[:, 1].sub(state.prefix).tolist())[state.prefix :] for row in state.source]


def test_every_patch_is_as_likely_to_be_dropped_as_any_other():
    state, evidence = given_state(16, batch=4000)
    after = RandomDrop().reduce(state, evidence, 4)
    share = after.source[:, :, 1:].sum((0, 1)) / 4000
    assert share.sub(0.25).abs().max() < 0.035  # five standard deviations
    pairs = after.source[:, 1:, 1:].sum(1)
    together = (pairs.T @ pairs / 4000)[~torch.eye(16, dtype=torch.bool)]
    assert together.sub(4 * 3 / (16 * 15)).abs().max() < 0.03


def test_a_blank_image_loses_patches_all_over():
    """Equal keys, as of a plain background, do not make chance equal."""
    state, evidence = given_state(64, batch=1)
    blank = Evidence(**{k: torch.ones_like(getattr(evidence, k)) for k in ("query", "key", "value")}, scaling=1.0)
    rows = torch.tensor(left(RandomDrop(seed=3).reduce(state, blank, 32))[0]) // 8
    assert rows.unique().numel() == 8


def test_another_seed_or_layer_drops_others():
    state, evidence = given_state(64)
    chosen = {str(left(RandomDrop(seed=seed).reduce(state, evidence, 32))) for seed in range(20)}
    assert len(chosen) == 20
    assert left(RandomDrop().reduce(state, evidence, 32))[0] != left(RandomDrop().reduce(state, evidence, 32))[1]


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_most_attended_patches_stay_in_order(prefix):
    state, evidence = given_state(9, prefix)
    attention = (evidence.query @ evidence.key.transpose(2, 3) * 8**-0.5).softmax(-1).mean(1)
    received = (attention[:, 0] if prefix else attention.mean(1))[:, prefix:]
    torch.testing.assert_close(received_attention(evidence, prefix), received)
    after = ClassAttention().reduce(state, evidence, 4)
    assert after.positions[:, prefix:].sub(prefix).tolist() == received.topk(4).indices.sort(1).values.tolist()


@pytest.mark.parametrize("side", [4, 6, 14])
def test_a_quarter_pools_squares_of_two_by_two(side):
    state, evidence = given_state(side**2, inputs=side**2 + 1)
    grid = state.x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    wanted = torch.nn.functional.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
    once = AveragePool().reduce(state, evidence, side**2 // 4)
    twice = AveragePool().reduce(AveragePool().reduce(state, evidence, side**2 // 2), evidence, side**2 // 4)
    for after in (once, twice):
        distance = torch.cdist(after.x[:, 1:], wanted, compute_mode="donot_use_mm_for_euclid_dist")
        assert distance.min(1).values.max() < 1e-4
        assert (after.size[:, 1:] == 4).all()


@settings(deadline=None)
@given(st.integers(2, 40), st.data())
def test_windows_are_as_even_as_can_be(patches, data):
    keep = data.draw(st.integers(1, patches - 1))
    state, evidence = given_state(patches, inputs=patches + 1)
    sizes = AveragePool().reduce(state, evidence, keep).size[:, 1:]
    assert set(sizes.flatten().tolist()) <= {patches // keep, -(-patches // keep)}


@pytest.mark.parametrize("name", ["tome", "random-drop", "class-attention", "average-pool"])
def test_the_front_door_builds_it(name):
    made = catalog.build(f"{name}:schedule=ratio=0.5@1x2", "reduce")
    assert made.kept(TINY) == (16, 8, 4, 4)
    with pytest.raises(UserError, match=r"ratio=2 is outside \(0, 1\]"):
        catalog.build(f"{name}:schedule=ratio=2", "reduce")

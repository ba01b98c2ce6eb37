"""RSD: the reference vectors, the laws of drawing without replacement, and the trees that it grows."""

from collections import Counter
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mintage import catalog
from mintage.draft import RSD, PromptLookup, Union, Warp, generate
from mintage.draft.contract import Context
from mintage.draft.core.target import Target
from mintage.draft.rsd import beam_step, gumbel_noise, gumbel_top_k, stochastic_beam_step
from mintage.errors import UserError
from mintage.models import TINY_VOCABULARY, tiny_causal_lm
from mintage.testing.settings import without_shape_checks
from mintage.testing.toys import TableLM

VECTORS = Path(__file__).parents[1] / "vectors" / "rsd"
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def vectors(name):
    with np.load(VECTORS / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def log_probs(seed, *shape, scale=1.5):
    logits = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
    return logits.log_softmax(-1)


def noise(seed, *shape):
    return gumbel_noise(torch.zeros(shape), torch.Generator().manual_seed(seed))


def begun(drafter, model, *, temperature=1.0, room=8, seed=0, **warp):
    context = Context(
        ids=IDS[0],
        prompt_length=IDS.shape[1],
        room=room,
        warp=Warp(temperature=temperature, **warp),
        generator=torch.Generator().manual_seed(seed),
    )
    drafter.begin(Target(model), context)
    return context


def recorded(drafter, model, run):
    """Run, and return every tree that `drafter` proposed with the tokens committed before it."""
    kept, propose = [], type(drafter).propose

    class Spy(type(drafter)):
        def propose(self, context):
            tree = propose(self, context)
            kept.append((context.ids.clone(), tree))
            return tree

    object.__setattr__(drafter, "__class__", Spy)
    try:
        return run(), kept
    finally:
        object.__setattr__(drafter, "__class__", Spy.__bases__[0])


# -- reference vectors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["level_small_exact", "level_edge_identical"])
def test_gumbel_top_k_vectors(name):
    wanted = vectors(name)
    tokens, perturbed = gumbel_top_k(wanted["q_f64"].log(), wanted["gumbel_f64"], wanted["tokens"].shape[1])
    assert torch.equal(tokens, wanted["tokens"])
    assert (perturbed.diff(dim=-1) <= 0).all()


def test_stochastic_beam_vectors():
    wanted = vectors("stochastic_beam")
    for level in range(int(wanted["n_levels"])):
        inputs = (wanted[f"{name}{level}{end}"] for name, end in zip(("phi_in", "G_in"), ("_f64",) * 2, strict=True))
        logq, gumbel = wanted[f"logp{level}_f64"], wanted[f"gumbel{level}_f64"]
        parents, tokens, phi, score = stochastic_beam_step(*inputs, logq, gumbel, int(wanted["K"]))
        assert torch.equal(parents, wanted[f"parent{level}"])
        assert torch.equal(tokens, wanted[f"token{level}"])
        assert torch.allclose(phi, wanted[f"phi_out{level}_f64"], rtol=0, atol=1e-9)
        assert torch.allclose(score, wanted[f"G_out{level}_f64"], rtol=0, atol=1e-9)


# -- drawing without replacement ------------------------------------------------------------------------------------


def test_gumbel_noise_is_finite_and_gumbel():
    drawn = noise(0, 200_000)
    assert drawn.isfinite().all()
    assert float(drawn.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(drawn.var()) == pytest.approx(np.pi**2 / 6, abs=0.03)


def test_gumbel_noise_is_spent_on_what_can_be_drawn_alone():
    logq = torch.tensor([[0.0, -torch.inf, -3.0], [-torch.inf, -torch.inf, -1.0]], dtype=torch.float64)
    spent, alone = gumbel_noise(logq, torch.Generator().manual_seed(1)), noise(1, 3)
    assert spent[logq > -torch.inf].tolist() == alone.tolist()
    assert (spent[logq == -torch.inf] == 0).all()
    assert gumbel_top_k(logq, spent, 3)[1][1, 1:].tolist() == [-torch.inf] * 2


def test_gumbel_top_k_draws_in_turn_without_replacement():
    logq, n = log_probs(0, 4), 40_000
    tokens, _ = gumbel_top_k(logq.expand(n, -1), noise(1, n, 4), 2)
    q = logq.exp().tolist()
    counts = Counter(map(tuple, tokens.tolist()))
    orders = list(permutations(range(4), 2))
    expected = [n * q[a] * q[b] / (1 - q[a]) for a, b in orders]
    assert chisquare([counts[order] for order in orders], expected).pvalue > 1e-4


def test_impossible_tokens_are_never_drawn():
    logq = torch.tensor([[0.5, 0.0, 0.5, 0.0]], dtype=torch.float64).log()
    tokens, perturbed = gumbel_top_k(logq, noise(0, 1, 4), 4)
    assert sorted(tokens[0, :2].tolist()) == [0, 2]
    assert (perturbed[0, 2:] == -torch.inf).all()
    zero = torch.zeros(1, dtype=torch.float64)
    parents, tokens, phi, score = stochastic_beam_step(zero, zero, logq, noise(0, 1, 4), 4)
    assert sorted(tokens.tolist()) == [0, 2]
    assert parents.tolist() == [0, 0]
    assert score.isfinite().all()
    assert phi.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10_000), st.floats(0.1, 40))
def test_the_best_child_inherits_its_parents_score(beam, vocabulary, seed, scale):
    phi = -torch.rand(beam, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
    score = phi + noise(seed + 1, beam)
    logq = log_probs(seed + 2, beam, vocabulary, scale=scale)
    parents, tokens, phi_out, score_out = stochastic_beam_step(
        phi, score, logq, noise(seed + 3, beam, vocabulary), beam * vocabulary
    )
    assert len({*zip(parents.tolist(), tokens.tolist(), strict=True)}) == beam * vocabulary == len(tokens)
    assert (score_out.diff() <= 0).all()
    assert torch.allclose(phi_out, phi[parents] + logq[parents, tokens])
    for parent in range(beam):
        assert float(score_out[parents == parent].max()) == pytest.approx(float(score[parent]), abs=1e-12)


def test_a_wide_beam_holds_every_sequence():
    vocabulary, depth = 3, 3
    tables = [log_probs(level, vocabulary**level, vocabulary) for level in range(depth)]
    phi = score = torch.zeros(1, dtype=torch.float64)
    paths = [()]
    for level, table in enumerate(tables):
        rows = [int("0" + "".join(map(str, path)), vocabulary) for path in paths]
        parents, tokens, phi, score = stochastic_beam_step(
            phi, score, table[rows], noise(level, len(rows), vocabulary), vocabulary**depth
        )
        paths = [(*paths[p], t) for p, t in zip(parents.tolist(), tokens.tolist(), strict=True)]
    assert sorted(paths) == list(product(range(vocabulary), repeat=depth))
    assert float(phi.exp().sum()) == pytest.approx(1)


def test_the_beams_first_sequence_is_a_sample_of_the_draft_and_later_siblings_do_not_know_their_score():
    """Truncation over parents must not tell which token the last kept sibling has; exactness rests on it."""
    root, below = log_probs(3, 1, 3), log_probs(4, 3, 3)
    firsts, second, n, width = Counter(), {a: Counter() for a in range(3)}, 6000, 3
    generator = torch.Generator().manual_seed(5)
    zero = torch.zeros(1, dtype=torch.float64)
    for _ in range(n):
        _, tokens, phi, score = stochastic_beam_step(zero, zero, root, gumbel_noise(root, generator), 2)
        level = below[tokens]
        parents, leaves, _, _ = stochastic_beam_step(phi, score, level, gumbel_noise(level, generator), width)
        firsts[int(tokens[parents[0]]), int(leaves[0])] += 1
        mine = leaves[parents == 0].tolist()  # the first parent's: their number is random
        if tokens[0] == 1 and len(mine) > 1:
            second[mine[0]][mine[1]] += 1
    joint = (root[0][:, None] + below).exp() * n
    cells = list(product(range(3), repeat=2))
    assert chisquare([firsts[cell] for cell in cells], [float(joint[cell]) for cell in cells]).pvalue > 1e-4
    q = below[1].exp().tolist()
    for a, counts in second.items():
        others = [b for b in range(3) if b != a]
        expected = [counts.total() * q[b] / (1 - q[a]) for b in others]
        if min(expected) > 5:
            assert chisquare([counts[b] for b in others], expected).pvalue > 1e-4


def test_plain_beam_takes_the_likeliest():
    logq = log_probs(0, 2, 5)
    phi = torch.tensor([-0.3, -0.1], dtype=torch.float64)
    parents, tokens, out = beam_step(phi, logq, 4)
    everything = (phi[:, None] + logq).flatten()
    assert torch.equal(out, everything.sort(descending=True).values[:4])
    assert torch.equal(out, everything[parents * 5 + tokens])


# -- trees ----------------------------------------------------------------------------------------------------------

SHAPES = [{"branching": (3, 2, 1)}, {"width": 4, "depth": 3}]
NAMES = ["RSD-C", "RSD-S"]


@pytest.mark.parametrize("warp", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}, {"temperature": 0.0}])
@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
@torch.no_grad()
def test_trees_state_the_distributions_that_were_sampled(shape, warp):
    """In every round, alone and inside a union: distributions equal the draft model's, read afresh along each path."""
    model, small = tiny_causal_lm(), tiny_causal_lm(seed=1)
    warp = {"temperature": 1.0} | warp
    mine = RSD(draft_model=small, **shape)
    for drafter in (mine, Union(drafters=(mine, PromptLookup.tiny()), budget=5)):
        _, kept = recorded(mine, model, lambda d=drafter: generate(model, IDS, d, max_new_tokens=10, seed=1, **warp))
        assert len(kept) > 1
        for ids, tree in kept:
            assert len(tree) - 1 <= mine.budget
            assert (tree.distributions is None) == (warp["temperature"] == 0)
            logp = {0: 0.0}
            for node, below in enumerate(tree.topology.children):
                path = tree.tokens[tree.topology.path(node)[1:]]
                if not below:
                    continue
                probs = Warp(**warp).probabilities(small(torch.cat([ids, path])[None]).logits[0, -1])
                tokens = tree.tokens[list(below)]
                assert len(set(tokens.tolist())) == len(below)
                if tree.distributions is not None:
                    assert torch.allclose(tree.distribution(node), probs, rtol=0, atol=1e-5)
                    assert (tree.distribution(node)[tokens] > 0).all()
                else:
                    assert sorted(probs[tokens].tolist(), reverse=True) == probs.topk(len(below)).values.tolist()
                for child, share in zip(below, probs[tokens].tolist(), strict=True):
                    logp[child] = logp[node] + np.log(share)
            assert np.allclose(tree.confidence, np.exp([logp[n] for n in range(len(tree))]), rtol=1e-3)


def test_fixed_branching_gives_the_full_tree():
    model = TableLM.random()
    drafter = RSD(draft_model=TableLM.random(seed=1), branching=(3, 2, 1))
    assert drafter.budget == 15
    tree = drafter.propose(begun(drafter, model))
    assert [len(below) for below in tree.topology.children] == [3] + [2] * 3 + [1] * 6 + [0] * 6
    assert tree.distribution_of == (0, *range(1, 10), *[-1] * 6)


def test_beams_have_their_width_at_every_level():
    model = TableLM.random()
    drafter = RSD(draft_model=TableLM.random(seed=1), width=5, depth=3)
    assert drafter.budget == 15
    depths = Counter(drafter.propose(begun(drafter, model)).topology.depth)
    assert depths == {0: 1, 1: 5, 2: 5, 3: 5}


@pytest.mark.parametrize("shape", [{"branching": (99, 2)}, {"width": 99, "depth": 2}], ids=NAMES)
def test_wide_trees_stop_at_what_the_distribution_holds(shape):
    model = TableLM.random()
    drafter = RSD(draft_model=TableLM.random(seed=1), **shape)
    for warp, first in (({}, TINY_VOCABULARY), ({"top_k": 2}, 2), ({"temperature": 0.0}, TINY_VOCABULARY)):
        tree = drafter.propose(begun(drafter, model, **warp))
        assert len(tree.topology.children[0]) == first


@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_levels_are_limited_by_the_room(shape):
    model = TableLM.random()
    drafter = RSD(draft_model=TableLM.random(seed=1), **shape)
    for room in range(5):
        context = begun(drafter, model, room=room)
        assert max(drafter.propose(context).topology.depth) == min(room, 3) == context.draft_forwards


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_a_round_costs_one_target_forward_and_one_draft_forward_per_level(shape, temperature):
    model, small = TableLM.random(), TableLM.random(seed=1)
    Target(model), Target(small)  # toys are checked once, by forwards that do not count
    calls, read = Counter(), Counter()

    def count(name, module):
        def hook(_, args, kwargs):
            calls[name] += 1
            read[name] += kwargs["input_ids"].numel()

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    handles = [count("target", model), count("draft", small)]
    drafter = RSD(draft_model=small, **shape)
    out, kept = recorded(
        drafter, model, lambda: generate(model, IDS, drafter, max_new_tokens=30, temperature=temperature, seed=0)
    )
    for handle in handles:
        handle.remove()
    stats = out.stats
    assert calls["target"] == stats.target_forwards + 1 == stats.rounds + 1  # and the prefill
    assert calls["draft"] == stats.draft_forwards == sum(max(tree.topology.depth) for _, tree in kept)
    inner = sum(sum(0 < d < max(tree.topology.depth) for d in tree.topology.depth) for _, tree in kept)
    assert read["draft"] <= inner + len(kept[-1][0])  # leaves are read only if accepted, inner nodes never twice


def test_a_perfect_draft_model_is_always_believed():
    model, shape = TableLM.random(), SHAPES[0]  # a beam may leave an accepted node without children
    for temperature in (0.0, 1.0):
        out = generate(model, IDS, RSD(draft_model=model, **shape), max_new_tokens=40, temperature=temperature, seed=0)
        assert out.stats.rounds == 10


def test_without_replacement_beats_one_chain():
    model, small = TableLM.random(scale=2.5), TableLM.random(seed=1, scale=2.5)
    speed = {}
    for name, branching in (("chain", (1, 1, 1)), ("tree", (4, 2, 1))):
        drafter = RSD(draft_model=small, branching=branching)
        stats = generate(model, IDS, drafter, max_new_tokens=100, temperature=1.0, seed=0).stats
        speed[name] = stats.tokens_per_forward
    assert speed["tree"] > speed["chain"] + 0.3


def test_the_seed_fixes_the_tree():
    model = TableLM.random()
    drafter = RSD(draft_model=TableLM.random(seed=1), width=4, depth=3)
    a, b, c = (drafter.propose(begun(drafter, model, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(a.tokens, b.tokens)
    assert a.topology.parent == b.topology.parent
    assert not torch.equal(a.tokens, c.tokens)


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"branching": (2, 0)}, "branching=0 is out of range"),
        ({"branching": ()}, r"branching=\(\)"),
        ({"width": 0}, "width=0"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_impossible_shapes_are_refused(fields, message):
    with pytest.raises(UserError, match=message) as error:
        RSD(draft_model=None, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("branching", [3, (2, 1.5), "4x2"])
def test_a_branching_of_another_type_is_refused(branching):
    with without_shape_checks(), pytest.raises(UserError, match=r"branching=.* is not "):
        RSD(draft_model=None, branching=branching)


@pytest.mark.parametrize(
    ("draft_model", "message"),
    [
        (lambda: tiny_causal_lm(vocab_size=16), "16 tokens, the target 12"),
        (lambda: tiny_causal_lm().to("meta"), "on meta, the target on cpu"),
        (lambda: tiny_causal_lm(max_position_embeddings=10), "draft model's context 10"),
        (lambda: None, "NoneType, expected a causal LM"),
    ],
)
def test_unfit_draft_models_are_refused(draft_model, message):
    with pytest.raises(UserError, match=message) as error:
        generate(tiny_causal_lm(), IDS, RSD(draft_model=draft_model()), max_new_tokens=8, temperature=1.0)
    assert "\n" not in str(error.value)


def test_a_negative_temperature_is_refused():
    with pytest.raises(UserError, match="temperature=-1"):
        generate(tiny_causal_lm(), IDS, RSD.tiny(), max_new_tokens=8, temperature=-1.0)


def test_a_draft_model_of_nan_is_refused():
    broken = tiny_causal_lm(seed=1)
    broken.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="draft model returned NaN"):
        generate(TableLM.random(), IDS, RSD(draft_model=broken), max_new_tokens=8, temperature=1.0)


def test_specs_read_the_branching():
    small = tiny_causal_lm(seed=1)
    assert catalog.build("rsd:branching=4x2x1", "draft", draft_model=small).branching == (4, 2, 1)
    assert catalog.build("rsd:width=3,depth=2", "draft", draft_model=small).budget == 6

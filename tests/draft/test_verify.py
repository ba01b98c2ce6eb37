"""Recursive rejection: the authors' equations, and the exact output distribution by enumeration."""

from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.draft import TokenTree, Topology, Warp
from mintage.draft.core.acceptance import exact_acceptance
from mintage.draft.core.verify import (
    GreedyMatch,
    RecursiveRejection,
    SampleAndDescend,
    TargetProbs,
    after_rejection,
    recursive_rejection,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "rsd"


def vectors(name):
    with np.load(VECTORS / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def distribution(*weights):
    weights = torch.tensor(weights, dtype=torch.float64)
    return weights / weights.sum()


def random_probs(seed, size, scale=1.5, zeros=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, dtype=torch.float64, generator=generator) * scale
    logits[logits.argsort()[:zeros]] = -torch.inf
    return logits.softmax(-1)


def trace(p, q, tokens, *, replacement=False):
    """Return theta of every child, and P before the first and after each, as if all were rejected."""
    thetas, residuals = [], [p]
    for token in tokens:
        thetas.append(float((p[token] / q[token]).clamp_max(1)))
        p, q = after_rejection(p, q, torch.tensor(token), replacement=replacement)
        residuals.append(p)
    return thetas, residuals


def draws(q, k, replacement):
    """Yield every ordered draw of k siblings and its probability; fewer where the distribution has fewer tokens."""
    support = q.nonzero().flatten().tolist()
    if replacement:
        for tokens in product(support, repeat=k):
            yield tokens, float(np.prod([float(q[t]) for t in tokens]))
        return
    for tokens in permutations(support, min(k, len(support))):
        probability, left = 1.0, q.clone()
        for token in tokens:
            probability *= float(left[token] / left.sum())
            left[token] = 0
        yield tokens, probability


def output_probs(p, q, k, replacement):
    """Enumerate the draws and integrate the uniforms: distribution of the emitted token, share of accepted ones."""
    emitted, accepted = torch.zeros_like(p), 0.0
    for tokens, probability in draws(q, k, replacement):
        thetas, residuals = trace(p, q, tokens, replacement=replacement)
        for token, theta in zip(tokens, thetas, strict=True):
            emitted[token] += probability * theta
            accepted += probability * theta
            probability *= 1 - theta
        emitted += probability * residuals[-1]
    return emitted, accepted


# -- the authors' equations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["level_small_exact", "level_edge_identical"])
def test_vectors(name):
    given_ = vectors(name)
    tokens, uniforms = given_["tokens"], given_["u_f64"]
    for row, (p, q) in enumerate(zip(given_["p_f64"], given_["q_f64"], strict=True)):
        thetas, residuals = trace(p, q, tokens[row].tolist())
        assert np.allclose(thetas, given_["theta_f64"][row], rtol=0, atol=1e-9)
        assert torch.allclose(torch.stack(residuals), given_["residuals_f64"][row], rtol=0, atol=1e-9)
        index, residual = recursive_rejection(p, q, tokens[row].tolist(), uniforms[row].tolist())
        assert index == given_["accepted_index"][row]
        if index < 0:
            assert torch.allclose(residual, given_["residuals_f64"][row, -1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["level_small_exact", "level_edge_identical"])
def test_vectors_acceptance(name):
    given_ = vectors(name)
    got = exact_acceptance(given_["p_f64"], given_["q_f64"], given_["tokens"].shape[1], "rsd")
    assert torch.allclose(got, given_["exact_accept_prob_f64"], rtol=0, atol=1e-9)


# -- the output distribution ----------------------------------------------------------------------------------------

CASES = {
    "random": (random_probs(0, 5), random_probs(1, 5)),
    "peaked": (random_probs(2, 5, 4.0), random_probs(3, 5, 4.0)),
    "identical": (random_probs(4, 5), random_probs(4, 5)),
    "almost identical": (
        random_probs(4, 5),
        distribution(*(random_probs(4, 5) + 1e-11 * torch.tensor([1, -1, 1, -1, 0])).tolist()),
    ),
    "disjoint": (distribution(1, 2, 0, 0, 0), distribution(0, 0, 3, 1, 1)),
    "one-hot target": (distribution(0, 0, 1, 0, 0), random_probs(5, 5)),
    "one-hot draft": (random_probs(6, 5), distribution(0, 1, 0, 0, 0)),
    "both one-hot": (distribution(0, 1, 0, 0, 0), distribution(0, 1, 0, 0, 0)),
    "top-p zeros": (random_probs(7, 5, zeros=2), random_probs(8, 5, zeros=3)),
    "zeros in the target": (random_probs(9, 5, zeros=2), random_probs(10, 5)),
    "zeros in the draft": (random_probs(11, 5), random_probs(12, 5, zeros=2)),
    "almost one-hot draft": (random_probs(13, 5), distribution(1, 1e-12, 2e-13, 1e-14, 1e-30)),
    "two tokens": (distribution(0.3, 0.7), distribution(0.9, 0.1)),
}


@pytest.mark.parametrize("replacement", [False, True], ids=["without replacement", "with replacement"])
@pytest.mark.parametrize("case", CASES)
def test_the_output_distribution_is_the_target(case, replacement):
    p, q = CASES[case]
    for k in range(1, len(p) + 1):
        emitted, accepted = output_probs(p, q, k, replacement)
        assert torch.allclose(emitted, p, rtol=0, atol=1e-12), k
        wanted = exact_acceptance(p[None], q[None], k, "specinfer" if replacement else "rsd")
        assert accepted == pytest.approx(float(wanted), abs=1e-12)


@pytest.mark.parametrize(("size", "k"), [(6, 6), (7, 4)])
def test_the_output_distribution_is_the_target_for_larger_vocabularies(size, k):
    p, q = random_probs(20, size, 3.0), random_probs(21, size, 2.0, zeros=1)
    emitted, _ = output_probs(p, q, k, replacement=False)
    assert torch.allclose(emitted, p, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 4).flatmap(
        lambda n: st.tuples(*[st.lists(st.floats(-8, 8) | st.just(-np.inf), min_size=n, max_size=n)] * 2)
    ),
    st.integers(1, 4),
    st.booleans(),
)
def test_the_output_distribution_is_the_target_whatever_the_distributions(logits, k, replacement):
    for row in logits:
        row[0] = max(row[0], 0.0)  # no distribution without a token
    p, q = (torch.tensor(row, dtype=torch.float64).softmax(-1) for row in logits)
    emitted, _ = output_probs(p, q, k, replacement)
    assert torch.allclose(emitted, p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_child_is_accepted_just_below_its_theta(case, replacement):
    """Ties the enumeration above, which integrates over thetas, to the rule that is run."""
    p, q = CASES[case]
    for tokens, _ in draws(q, 3, replacement):
        thetas, residuals = trace(p, q, tokens, replacement=replacement)
        above = [theta + 1e-9 for theta in thetas]
        index, residual = recursive_rejection(p, q, tokens, above, replacement=replacement)
        if all(theta < 1 - 1e-9 for theta in thetas):
            assert index == -1
            assert torch.allclose(residual, residuals[-1], rtol=0, atol=1e-9)
        for k, theta in enumerate(thetas):
            if theta > 1e-6 and all(t < 1 - 1e-9 for t in thetas[:k]):
                uniforms = [*above[:k], theta * (1 - 1e-6), *[0.5] * (len(tokens) - k - 1)]
                assert recursive_rejection(p, q, tokens, uniforms, replacement=replacement)[0] == k


# -- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_one_child_is_standard_speculative_sampling(case):
    p, q = CASES[case]
    acceptance = float(torch.minimum(p, q).sum())
    for rule in ("chain", "rsd", "specinfer"):
        assert float(exact_acceptance(p[None], q[None], 1, rule)) == pytest.approx(acceptance, abs=1e-12)
    rest = (p - q).clamp_min(0)
    if rest.sum() > 1e-6:
        (theta,), (_, residual) = trace(p, q, [int(q.argmax())])
        assert theta == pytest.approx(min(1.0, float(p[q.argmax()] / q.max())))
        assert torch.allclose(residual, rest / rest.sum())


@pytest.mark.parametrize("rule", ["rsd", "specinfer"])
@pytest.mark.parametrize("case", CASES)
def test_acceptance_never_falls_with_more_children(case, rule):
    p, q = CASES[case]
    values = [float(exact_acceptance(p[None], q[None], k, rule)) for k in range(1, len(p) + 1)]
    assert all(b >= a - 1e-12 for a, b in pairwise(values))


def test_all_children_of_full_support_are_always_enough():
    for seed in range(5):
        p, q = random_probs(seed, 5, 3.0), random_probs(seed + 50, 5, 3.0)
        assert float(exact_acceptance(p[None], q[None], 5, "rsd")) == pytest.approx(1, abs=1e-12)


def test_an_almost_certain_draft_distribution_keeps_its_other_siblings():
    """At low temperature the second sibling has 1e-12 of the draft distribution and may have most of the target's."""
    p, q = distribution(0.1, 0.8, 0.1), distribution(1, 1e-12, 1e-13)
    index, _ = recursive_rejection(p, q, [0, 1], [0.5, 0.5])
    assert index == 1


def test_a_used_up_draft_distribution_stops():
    p, q = distribution(1, 2, 3), distribution(0, 1, 0)
    index, residual = recursive_rejection(p, q, [1, 0], [0.9, 0.0])
    assert index == -1
    assert torch.allclose(residual, distribution(1, 0, 3))


def test_equal_distributions_accept_the_first_child_and_never_divide_by_zero():
    p = random_probs(0, 6)
    assert recursive_rejection(p, p, [3, 1], [1 - 1e-16, 0.5])[0] == 0
    after, left = after_rejection(p, p, torch.tensor(3))
    assert torch.equal(after, p)
    assert left[3] == 0
    assert float(left.sum()) == pytest.approx(1)


def test_distributions_in_half_precision_give_finite_residuals():
    p, q = random_probs(0, 6).bfloat16(), random_probs(0, 6).half()
    _, residual = recursive_rejection(p, q, [0, 1, 2, 3, 4, 5], [1.0] * 6)
    assert residual.isfinite().all()
    assert float(residual.sum()) == pytest.approx(1)


# -- whole trees ----------------------------------------------------------------------------------------------------


def distributions_of(*rows):
    logits = torch.stack(rows).log()
    return TargetProbs(logits, logits.argmax(-1), Warp(temperature=1.0))


def test_recursive_rejection_walks_down_with_each_nodes_own_distribution():
    sure = [distribution(*np.eye(4)[i]) for i in range(4)]
    tree = TokenTree(
        tokens=torch.tensor([0, 2, 1, 3]),
        topology=Topology([-1, 0, 0, 2]),
        distributions=torch.stack([random_probs(0, 4), random_probs(1, 4)]),
        distribution_of=(0, -1, 1, -1),
    )
    verdict = RecursiveRejection().verify(tree, distributions_of(sure[1], sure[0], sure[3], sure[2]), None)
    assert list(verdict.path) == [0, 2, 3]
    assert verdict.token == 2
    verdict = RecursiveRejection().verify(tree, distributions_of(sure[1], sure[0], sure[0], sure[2]), None)
    assert list(verdict.path) == [0, 2]
    assert verdict.token == 0


def test_a_tree_without_draft_distributions_cannot_be_verified_by_rejection():
    tree = TokenTree(tokens=torch.tensor([0, 1]), topology=Topology([-1, 0]))
    with pytest.raises(ValueError, match="no draft distribution at node 0"):
        RecursiveRejection().verify(tree, distributions_of(random_probs(0, 4), random_probs(1, 4)), None)


def test_matching_takes_the_deepest_path():
    sure = [distribution(*np.eye(4)[i]) for i in range(4)]
    tree = TokenTree(tokens=torch.tensor([0, 1, 1, 2, 3]), topology=Topology([-1, 0, 0, 2, 1]))
    target = distributions_of(sure[1], sure[2], sure[2], sure[0], sure[0])
    for verifier in (GreedyMatch(), SampleAndDescend()):
        verdict = verifier.verify(tree, target, None)
        assert verdict.token in (0, 2)
        assert [int(tree.tokens[n]) for n in verdict.path[1:]] in ([1], [1, 2])
    assert list(GreedyMatch().verify(tree, target, None).path) == [0, 2, 3]

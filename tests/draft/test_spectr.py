"""SpecTr: K-SEQ against an independent reference, exact enumeration and the optimal plan; the drafter's trees."""

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from mintage.draft import PromptLookup, SpecTr, TokenTree, Topology, Union, Warp, generate, spectr
from mintage.draft.contract import Context
from mintage.draft.core.kseq import kseq_residual, kseq_rho, kseq_select
from mintage.draft.core.target import Target
from mintage.draft.core.verify import TargetProbs
from mintage.draft.spectr import KSEQ
from mintage.errors import UserError
from mintage.models import TINY_VOCABULARY, tiny_causal_lm
from mintage.testing.toys import TableLM

VECTORS = Path(__file__).parent.parent / "vectors" / "spectr"
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def distribution(seed, *shape, scale=1.5):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).softmax(-1)


def first_accepted(p, q, tokens, rho):
    """Probabilities that each candidate is the accepted one, over the uniforms."""
    accept = np.minimum(1, p[tokens] / (rho * q[tokens]))
    return accept * np.cumprod([1, *(1 - accept[:-1])])


# -- the rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in VECTORS.glob("*.npz")))
def test_reference_vectors(name):
    data = dict(np.load(VECTORS / f"{name}.npz"))
    k, p, q = int(data["k"]), torch.tensor(data["p_f64"]), torch.tensor(data["q_f64"])
    rate = kseq_rho(p, q, k)
    np.testing.assert_allclose(rate.rho, data["rho_star_f64"], atol=1e-7, rtol=0)
    np.testing.assert_allclose(rate.accept_prob, data["accept_prob_f64"], atol=1e-8, rtol=0)
    # where q = p the reference stops its bisection at rho = 1 + 1.5e-8, which also shows in beta and theta
    near = 1e-8 + np.abs(data["rho_star_f64"] - rate.rho.numpy())
    assert (np.abs(rate.beta.numpy() - data["beta_f64"]) < near).all()
    needed = data["accept_prob_f64"] < 1 - 1e-12
    residual = kseq_residual(p, q, k)
    np.testing.assert_allclose(residual[needed], data["residual_f64"][needed], atol=1e-8, rtol=0)
    for i, (tokens, uniforms) in enumerate(zip(data["tokens"], data["u_f64"], strict=True)):
        theta = np.minimum(1, p[i, tokens].numpy() / (rate.rho[i].item() * q[i, tokens].numpy()))
        assert (np.abs(theta - data["theta_f64"][i]) < near[i]).all()
        index, rest = kseq_select(p[i], q[i], tokens.tolist(), uniforms.tolist())
        assert index == data["accepted_index"][i]
        torch.testing.assert_close(rest, residual[i], rtol=0, atol=0)
    if "lp_opt_f64" in data:
        optimum = data["lp_opt_f64"]
        assert (rate.accept_prob.numpy() <= optimum + 1e-9).all()
        assert (rate.accept_prob.numpy() >= (1 - (1 - 1 / k) ** k) * optimum - 1e-9).all()


def edge_cases():
    p, q = distribution(0, 5), distribution(1, 5)
    one_hot, other = torch.eye(5, dtype=torch.float64)[:2]
    left, right = torch.tensor([0.3, 0.7, 0, 0, 0]).double(), torch.tensor([0, 0, 0.5, 0.25, 0.25]).double()
    truncated = torch.where(q > q.median(), q, 0)
    return {
        "random": (p, q),
        "peaked": (distribution(2, 5, scale=5), distribution(3, 5, scale=5)),
        "equal": (p, p),
        "nearly equal": (p, (p + 1e-9 * q) / (1 + 1e-9)),
        "disjoint": (left, right),
        "one-hot target": (one_hot, q),
        "one-hot draft": (p, one_hot),
        "both one-hot": (one_hot, one_hot),
        "different one-hot": (one_hot, other),
        "zeros in the draft": (p, truncated / truncated.sum()),
        "zeros in the target": (truncated / truncated.sum(), p),
        "hardly any overlap": ((left + 1e-12 * right) / (1 + 1e-12), right),
        "uniform": (torch.full((5,), 0.2), torch.full((5,), 0.2)),  # float32: they add up to more than 1,
    }


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("case", edge_cases())
def test_output_distribution_is_the_targets_over_all_drafts(case, k):
    p, q = edge_cases()[case]
    rate = kseq_rho(p, q, k)
    residual = kseq_residual(p, q, k, rate.rho)
    assert residual.min() >= -1e-12
    assert residual.sum().item() == pytest.approx(1, abs=1e-12)
    assert 1 <= rate.rho <= k
    p, q = p.double() / p.double().sum(), q.double() / q.double().sum()
    emitted, accepted = np.zeros(5), 0.0
    for tokens in product(np.flatnonzero(q.numpy()), repeat=k):
        tokens = np.array(tokens)
        chance = float(q[tokens].prod())
        first = first_accepted(p.numpy(), q.numpy(), tokens, float(rate.rho))
        np.add.at(emitted, tokens, chance * first)
        emitted += chance * (1 - first.sum()) * residual.numpy()
        accepted += chance * first.sum()
    np.testing.assert_allclose(emitted, p, atol=1e-9, rtol=0)
    assert accepted == pytest.approx(float(rate.accept_prob), abs=1e-12)


def test_one_candidate_is_standard_speculative_sampling():
    p, q = distribution(4, 50, 30), distribution(5, 50, 30)
    rate = kseq_rho(p, q, 1)
    assert (rate.rho == 1).all()
    torch.testing.assert_close(rate.accept_prob, torch.minimum(p, q).sum(-1))
    rest = (p - q).clamp_min(0)
    torch.testing.assert_close(kseq_residual(p, q, 1), rest / rest.sum(-1, keepdim=True))


def test_equal_and_disjoint_distributions():
    p = distribution(6, 2000, scale=4)
    rate = kseq_rho(p, p, 8)
    assert (rate.rho, rate.accept_prob) == (1, 1)
    left, right = torch.zeros(2, 6).double()
    left[:3], right[3:] = distribution(7, 3), distribution(8, 3)
    rate = kseq_rho(left, right, 8)
    assert (rate.rho, rate.beta, rate.accept_prob) == (1, 0, 0)
    torch.testing.assert_close(kseq_residual(left, right, 8), left)


def test_tiny_overlap_keeps_its_digits():
    p, q = torch.tensor([1.0, 0.0]).double(), torch.tensor([1e-14, 1 - 1e-14]).double()
    rate = kseq_rho(p, q, 4, tol=1e-12)
    assert rate.beta.item() == pytest.approx(1e-14, rel=1e-9)
    assert rate.accept_prob.item() == pytest.approx(4e-14, rel=1e-9)
    assert rate.rho.item() == pytest.approx(4, abs=1e-6)


def test_positions_do_not_influence_each_other():
    p, q = distribution(9, 3, 4, 20), distribution(10, 3, 4, 20)
    together = kseq_rho(p, q, 5)
    residual = kseq_residual(p, q, 5)
    for i, j in product(range(3), range(4)):
        for whole, alone in zip(together, kseq_rho(p[i, j], q[i, j], 5), strict=True):
            torch.testing.assert_close(whole[i, j], alone, rtol=1e-12, atol=0)
        torch.testing.assert_close(residual[i, j], kseq_residual(p[i, j], q[i, j], 5), rtol=1e-9, atol=1e-12)


def optimum(p, q, k):
    """Mass of the best plan: pi(tuple, y) for y in the tuple, within the tuples' and the target's masses."""
    size = len(p)
    tuples = list(product(range(size), repeat=k))
    pairs = [(row, token) for row, tokens in enumerate(tuples) for token in sorted(set(tokens))]
    limits = np.zeros((len(tuples) + size, len(pairs)))
    for column, (row, token) in enumerate(pairs):
        limits[row, column] = limits[len(tuples) + token, column] = 1
    bounds = [*(float(q[list(tokens)].prod()) for tokens in tuples), *p.tolist()]
    solution = linprog(-np.ones(len(pairs)), A_ub=limits, b_ub=bounds, method="highs")
    assert solution.success
    return -solution.fun


def independent_recursive_rejection(p, q, k):
    """Acceptance of SpecInfer's rule for independent drafts."""
    rejected = 1.0
    for _ in range(k):
        rest = (p - q).clamp_min(0)
        rejected *= float(rest.sum())
        p = rest / rest.sum()
    return 1 - rejected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scale", [0.7, 1.5, 4])
def test_acceptance_beside_the_optimum_and_the_rival_rule(seed, scale):
    p, q = distribution(seed, 4, scale=scale), distribution(100 + seed, 4, scale=scale)
    accepted = [float(kseq_rho(p, q, k).accept_prob) for k in range(1, 9)]
    assert all(b >= a - 1e-9 for a, b in pairwise(accepted))
    for k in (1, 2, 3):
        best = optimum(p, q, k)
        assert (1 - (1 - 1 / k) ** k) * best - 1e-7 <= accepted[k - 1] <= best + 1e-7
        assert accepted[k - 1] >= independent_recursive_rejection(p, q, k) - 1e-9


@st.composite
def pairs_of_distributions(draw):
    size = draw(st.integers(2, 9))
    weight = st.one_of(st.just(0.0), st.floats(1e-9, 1.0))
    weights = st.lists(weight, min_size=size, max_size=size).filter(any)
    p, q = (torch.tensor(draw(weights), dtype=torch.float64) for _ in range(2))
    return p / p.sum(), q / q.sum()


@settings(max_examples=150, deadline=None)
@given(pairs_of_distributions(), st.integers(1, 12))
def test_properties_of_rho_and_residual(pair, k):
    p, q = pair
    rho, beta, accept = kseq_rho(p, q, k)
    assert 1 <= rho <= k
    assert accept - rho * beta <= 1e-13  # f(rho) <= 0, to rounding
    if rho > 1 + 1e-6:  # and rho is the smallest such
        overlap = torch.minimum(q, p / (rho - 1e-6)).sum()
        assert 1 - (1 - overlap) ** k - (rho - 1e-6) * overlap > -1e-14
    residual = kseq_residual(p, q, k, rho)
    assert residual.min() >= -1e-12
    assert residual.sum().item() == pytest.approx(1, abs=1e-12)
    assert (residual[p == 0] == 0).all()
    overlap = torch.minimum(q, p / rho)
    emitted = overlap * (accept / beta if beta > 0 else 0) + (1 - accept) * residual
    torch.testing.assert_close(emitted, p, rtol=0, atol=1e-12)
    assert accept <= torch.minimum(p, 1 - (1 - q) ** k).sum() + 1e-12  # no plan accepts more
    assert kseq_rho(p, q, k + 1).accept_prob >= accept - 1e-9


@settings(max_examples=60, deadline=None)
@given(pairs_of_distributions(), st.integers(1, 5), st.integers(0, 2**32), st.floats(1, 2))
def test_selection_takes_the_first_candidate_under_its_threshold(pair, k, seed, looser):
    p, q = pair
    rng = np.random.default_rng(seed)
    tokens, uniforms = rng.choice(len(q), k, p=q.numpy()), rng.random(k)
    rho = min(float(kseq_rho(p, q, k).rho) * looser, float(k))  # any larger rho is valid too
    index, _ = kseq_select(p, q, tokens.tolist(), uniforms.tolist(), rho)
    below = np.flatnonzero(uniforms * rho * q[tokens].numpy() < p[tokens].numpy())
    assert index == (below[0] if len(below) else -1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: kseq_rho(p, p, 0), "k=0"),
        (lambda p: kseq_rho(p, p, 2, tol=0.0), "tol=0.0"),
        (lambda p: kseq_rho(p, p[:-1], 2), "one vocabulary"),
        (lambda p: kseq_residual(p, p, 0), "k=0"),
        (lambda p: kseq_residual(p, p.flip(0), 3, rho=1.0), "rho=1"),
        (lambda p: kseq_select(p, p, [], []), "k=0"),
        (lambda p: kseq_select(p, p, [1, 2], [0.5]), "one uniform per candidate"),
        (lambda p: kseq_select(p, p, [1, 6], [0.5, 0.5]), "vocabulary of 6"),
        (lambda p: kseq_select(p, p, [1, -1], [0.5, 0.5]), "vocabulary of 6"),
        (lambda p: SpecTr(draft_model=None, num_drafts=0), "num_drafts=0"),
        (lambda p: SpecTr(draft_model=None, draft_len=0), "draft_len=0"),
        (lambda p: SpecTr(draft_model=None, tolerance=0.0), "tolerance=0"),
        (lambda p: generate(tiny_causal_lm(vocab_size=16), PROMPT, SpecTr.tiny(), max_new_tokens=2), "vocabulary"),
    ],
)
def test_bad_input_is_told_in_one_line(call, words):
    with pytest.raises(UserError) as caught:
        call(distribution(11, 6))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# -- sequences -----------------------------------------------------------------------------------------------------


def request(drafter, model, *, warp, prompt=PROMPT, room=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = Context(ids=prompt[0], prompt_length=prompt.shape[1], room=room, warp=warp, generator=generator)
    drafter.begin(Target(model), context)
    return context


class Enumeration:
    """Runs the real drafter and the real verifier once per outcome of their randomness, with its probability."""

    def __init__(self, monkeypatch, target, draft, warp, cut=None):
        self.target, self.warp, self.cut = target, warp, cut
        self.drafter = SpecTr(draft_model=draft, num_drafts=2, draft_len=2, tolerance=1e-3)  # exact at any
        self.draft_probs = warp.probabilities(draft.table[0]).numpy()
        self.size = len(self.draft_probs)
        self.rand, self.select = torch.rand, spectr.first_accepted
        monkeypatch.setattr(torch, "rand", self.scripted_rand)
        monkeypatch.setattr(spectr, "first_accepted", self.scripted_select)
        monkeypatch.setattr(spectr, "draw", self.scripted_draw)
        self.monkeypatch = monkeypatch

    def scripted_rand(self, *shape, **kwargs):
        if len(shape) == 1:  # the verifier's, which scripted_select replaces
            return torch.full(shape, 0.5, dtype=torch.float64)
        tokens = self.levels.pop(0)
        above = self.above
        self.above = tokens
        mass = np.cumsum(self.draft_probs, -1)
        middle = [(mass[a, t] - self.draft_probs[a, t] / 2) for a, t in zip(above, tokens, strict=True)]
        return torch.tensor(middle)[:, None]

    def scripted_select(self, p, q, tokens, uniforms, rate):
        chances = first_accepted(p.numpy(), q.numpy(), np.array(tokens), float(rate.rho))
        options = [*chances, 1 - chances.sum()]
        if len(self.script) == len(self.options):
            self.script.append(0)
        choice = self.script[len(self.options)]
        self.options.append(options)
        self.weight *= max(options[choice], 0)
        if self.weight < 1e-15:
            return choice if choice < len(tokens) else -1
        wanted = choice if choice < len(tokens) else -1
        scripted = [0.0 if i == choice else 1.0 for i in range(len(tokens))]
        assert self.select(p, q, tokens, scripted, rate) == wanted
        return wanted

    def scripted_draw(self, probs, generator):
        self.last = (probs / probs.sum()).numpy()
        return 0

    def outcomes(self, root):
        """Yield probability, drafted tokens emitted, and the distribution of the token after them."""
        prompt = torch.tensor([[0, root]])
        for drafts in product(product(range(self.size), repeat=2), repeat=2):
            chance = np.prod([self.draft_probs[root, a] * self.draft_probs[a, b] for a, b in drafts])
            if not chance:
                continue
            context = request(self.drafter, self.target, warp=self.warp, prompt=prompt)
            self.levels, self.above = [list(level) for level in zip(*drafts, strict=True)], [root, root]
            tree = self.drafter.propose(context)
            spelled = tuple(tuple(tree.tokens[list(draft)].tolist()) for draft in tree.drafts)
            assert spelled == drafts
            if self.cut:
                tree = tree.cut(self.cut)
            logits = self.target.table[0, tree.tokens]
            self.script = []
            while True:
                self.options, self.weight = [], 1.0
                distributions = TargetProbs(logits, logits.argmax(-1), self.warp)
                verdict = self.drafter.verifier.verify(tree, distributions, context.generator)
                yield chance * self.weight, tree.tokens[list(verdict.path[1:])].tolist(), self.last
                while self.script and self.script[-1] + 1 == len(self.options[len(self.script) - 1]):
                    self.script.pop()
                if not self.script:
                    break
                self.script[-1] += 1


@pytest.mark.parametrize("warp", [Warp(temperature=1.0), Warp(temperature=0.7, top_k=2)], ids=["plain", "top-k"])
@pytest.mark.parametrize("cut", [None, 1])
def test_first_two_tokens_have_the_targets_distribution_exactly(monkeypatch, warp, cut):
    target, draft = TableLM.random(size=3, order=1, seed=3), TableLM.random(size=3, order=1, seed=4)
    Target(target), Target(draft)
    runs = Enumeration(monkeypatch, target, draft, warp, cut)
    wanted = warp.probabilities(target.table[0]).numpy()
    outcomes = [list(runs.outcomes(root)) for root in range(3)]
    first = np.zeros((3, 3))
    for root, cases in enumerate(outcomes):
        assert sum(weight for weight, _, _ in cases) == pytest.approx(1, abs=1e-12)
        for weight, emitted, last in cases:
            first[root] += weight * (np.eye(3)[emitted[0]] if emitted else last)
    np.testing.assert_allclose(first, wanted, atol=1e-9, rtol=0)
    for root, cases in enumerate(outcomes):
        joint = np.zeros((3, 3))
        for weight, emitted, last in cases:
            if len(emitted) == 2:
                joint[emitted[0], emitted[1]] += weight
            elif emitted:
                joint[emitted[0]] += weight * last
            else:  # the second token is the next round's first
                joint += weight * last[:, None] * first
        np.testing.assert_allclose(joint, wanted[root][:, None] * wanted, atol=1e-9, rtol=0)


def unmerged(tree):
    """Give every sequence a chain of its own."""
    tokens, parents, distributions, drafts = [tree.tokens[0]], [-1], [0], []
    for draft in tree.drafts:
        start = len(tokens)
        tokens += [tree.tokens[node] for node in draft]
        parents += [0, *range(start, start + len(draft) - 1)]
        distributions += [tree.distribution_of[node] for node in draft]
        drafts.append(tuple(range(start, start + len(draft))))
    return TokenTree(
        tokens=torch.stack(tokens),
        topology=Topology(parents),
        distributions=tree.distributions,
        distribution_of=tuple(distributions),
        drafts=tuple(drafts),
    )


def test_merging_equal_prefixes_changes_nothing():
    target, draft = TableLM.random(order=1, scale=2.0), TableLM.random(order=1, scale=2.0, seed=5)
    warp = Warp(temperature=1.0)
    drafter = SpecTr(draft_model=draft, num_drafts=6, draft_len=3)
    saved = 0
    for seed in range(60):
        context = request(drafter, target, warp=warp, seed=seed)
        tree = drafter.propose(context)
        apart = unmerged(tree)
        saved += len(apart) - len(tree)
        said = []
        for each in (tree, apart):
            logits = target.table[0, each.tokens]
            generator = torch.Generator().manual_seed(seed)
            verdict = drafter.verifier.verify(each, TargetProbs(logits, logits.argmax(-1), warp), generator)
            assert all(each.topology.parent[b] == a for a, b in pairwise(verdict.path))
            said.append((each.tokens[list(verdict.path)].tolist(), verdict.token))
        assert said[0] == said[1]
    assert saved > 100


def test_equal_drafts_stay_candidates(monkeypatch):
    tree = TokenTree(
        tokens=torch.tensor([0, 1]),
        topology=Topology.chain(1),
        distributions=torch.tensor([[0.5, 0.5, 0.0]]).double(),
        distribution_of=(0, -1),
        drafts=((1,), (1,)),
    )
    offered = []

    def refuse(p, q, tokens, uniforms, rate):
        offered.append((tokens, len(uniforms), rate))
        return -1

    monkeypatch.setattr(spectr, "first_accepted", refuse)
    logits = torch.tensor([0.1, 0.3, 0.6]).double().log().expand(2, 3)
    KSEQ().verify(tree, TargetProbs(logits, logits.argmax(-1), Warp(temperature=1.0)), None)
    ((tokens, uniforms, rate),) = offered
    assert (tokens, uniforms) == ([1, 1], 2)
    assert rate == kseq_rho(logits[0].exp(), tree.distribution(0), 2)


def test_a_tree_without_its_drafts_is_refused():
    distributions = TargetProbs(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), Warp(temperature=1.0))
    with pytest.raises(ValueError, match="needs TokenTree"):
        KSEQ().verify(TokenTree(tokens=torch.tensor([0, 1]), topology=Topology.chain(1)), distributions, None)
    verdict = KSEQ().verify(TokenTree.root_only(torch.tensor(0)), distributions, None)
    assert list(verdict.path) == [0]


# -- the drafter ---------------------------------------------------------------------------------------------------


def test_trees_hold_the_drafts_and_read_each_prefix_once():
    drafter = SpecTr(draft_model=tiny_causal_lm(seed=1), num_drafts=8, draft_len=4)
    context = request(drafter, tiny_causal_lm(), warp=Warp(temperature=1.0))
    tree = drafter.propose(context)
    assert [len(draft) for draft in tree.drafts] == [4] * 8
    assert {node for draft in tree.drafts for node in draft} == set(range(1, len(tree)))
    for draft in tree.drafts:
        assert tree.topology.path(draft[-1]) == [0, *draft]
    spelled = [tuple(tree.tokens[tree.topology.path(node)].tolist()) for node in range(len(tree))]
    assert len(set(spelled)) == len(tree) < 1 + 8 * 4
    inner = sum(depth < 4 for depth in tree.topology.depth)
    assert (context.draft_forwards, context.draft_tokens) == (4, PROMPT.shape[1] + inner - 1)
    assert [row >= 0 for row in tree.distribution_of] == [depth < 4 for depth in tree.topology.depth]
    for node, above in enumerate(tree.topology.parent[1:], start=1):
        chance = tree.confidence[above] * tree.distribution(above)[tree.tokens[node]]
        assert tree.confidence[node].item() == pytest.approx(chance.item(), rel=1e-5)


def test_cut_shortens_the_drafts():
    drafter = SpecTr(draft_model=tiny_causal_lm(seed=1), num_drafts=5, draft_len=4)
    tree = drafter.propose(request(drafter, tiny_causal_lm(), warp=Warp(temperature=1.0)))
    short = tree.cut(2)
    assert max(short.topology.depth) == 2
    for before, after in zip(tree.drafts, short.drafts, strict=True):
        assert torch.equal(tree.tokens[list(before[:2])], short.tokens[list(after)])
        assert short.topology.path(after[-1]) == [0, *after]
    for node in {0, *(draft[0] for draft in short.drafts)}:
        assert torch.equal(
            short.distribution(node), tree.distribution(node)
        )  # nodes of upper levels keep their numbers


def test_drafts_no_deeper_than_there_is_room():
    drafter = SpecTr.tiny()
    for room in (1, 2, 3, 9):
        tree = drafter.propose(request(drafter, tiny_causal_lm(), warp=Warp(temperature=1.0), room=room))
        assert max(tree.topology.depth) == min(room, drafter.draft_len)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_draft_model_keeps_in_step_over_rounds(temperature):
    draft, target = tiny_causal_lm(seed=1), tiny_causal_lm()
    warp = Warp(temperature=temperature)
    seen = []

    class Spy(SpecTr):
        def propose(self, context):
            tree = super().propose(context)
            seen.append((context.ids.clone(), tree))
            return tree

    generate(target, PROMPT, Spy(draft_model=draft, draft_len=3), max_new_tokens=30, temperature=temperature, seed=2)
    assert len(seen) > 5
    for ids, tree in seen:
        inner = [node for node, below in enumerate(tree.topology.children) if below]
        for node in inner:
            path = torch.cat([ids[:-1], tree.tokens[tree.topology.path(node)]])
            wanted = warp.probabilities(draft(path[None]).logits[0, -1].detach())
            below = list(tree.topology.children[node])
            if temperature:
                torch.testing.assert_close(tree.distribution(node), wanted, rtol=0, atol=1e-5)
            else:
                chances = tree.confidence[below] / tree.confidence[node]
                torch.testing.assert_close(chances, wanted[tree.tokens[below]], rtol=1e-3, atol=1e-6)


def test_greedy_drafts_are_distinct():
    draft = TableLM.random(order=1)
    drafter = SpecTr(draft_model=draft, num_drafts=5, draft_len=3)
    tree = drafter.propose(request(drafter, TableLM.random(), warp=Warp()))
    assert tree.distributions is None
    likeliest = draft.table[0, PROMPT[0, -1]].topk(5).indices
    for token, path in zip(likeliest, tree.drafts, strict=True):
        assert tree.tokens[path[0]] == token
        for above, below in pairwise(path):
            assert tree.tokens[below] == draft.table[0, tree.tokens[above]].argmax()
    many = SpecTr(draft_model=draft, num_drafts=100, draft_len=1)
    tree = many.propose(request(many, TableLM.random(), warp=Warp()))
    assert sorted(tree.tokens[1:].tolist()) == list(range(TINY_VOCABULARY))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_perfect_draft_model_is_always_accepted(temperature):
    model = TableLM.random()
    drafter = SpecTr(draft_model=model, num_drafts=2, draft_len=4)
    stats = generate(model, PROMPT, drafter, max_new_tokens=25, temperature=temperature, seed=0).stats
    assert stats.tokens_per_forward == 5
    assert stats.draft_forwards == 5 * 4


def test_serves_in_a_union():
    model = tiny_causal_lm()
    union = Union(drafters=(SpecTr.tiny(), PromptLookup.tiny()), budget=6)
    wanted = model.generate(PROMPT, max_new_tokens=30, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(model, PROMPT, union, max_new_tokens=30).sequences, wanted)
    assert generate(model, PROMPT, union, max_new_tokens=30, temperature=1.0, seed=0).stats.new_tokens == 30

"""DySpec: the reference vectors, the laws of the paper's builders, and the exact output distribution by enumeration."""

import heapq
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.draft import DySpec, Topology, Union, generate
from mintage.draft.baselines import PromptLookup
from mintage.draft.core.calibration import calibration, tried
from mintage.draft.core.tree import TokenTree, depth_first
from mintage.draft.core.verify import RecursiveRejection, TargetProbs, recursive_rejection
from mintage.draft.core.warp import Warp
from mintage.draft.dyspec import SlotGrowth, grow_best_first, grow_threshold
from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.testing.toys import TableLM

VECTORS = Path(__file__).parents[1] / "vectors" / "dyspec"
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


class Table:
    """A first-order draft: row = current token. Counts forwards, and checks what it is asked."""

    def __init__(self, table):
        self.table, self.asked, self.forwards = torch.as_tensor(table, dtype=torch.float64), set(), 0

    def __call__(self, nodes, tokens, parents):
        assert (list(nodes) == [0]) == (self.forwards == 0), "the root comes first and alone"
        assert not self.asked & set(nodes), "no node is asked about twice"
        assert all(parent in self.asked for parent in parents if parent >= 0)
        self.asked |= set(nodes)
        self.forwards += 1
        return self.table[list(tokens)]


class PathDraft(Table):
    """A draft whose distribution depends on the whole path, so that no two nodes tie."""

    def __init__(self, size, seed, scale):
        super().__init__(torch.zeros(size, size))
        self.seed, self.scale, self.paths = seed, scale, {-1: ()}

    def distribution(self, path):
        logits = np.random.default_rng([self.seed, *path]).standard_normal(len(self.table)) * self.scale
        probs = np.exp(logits - logits.max())
        return probs / probs.sum()

    def __call__(self, nodes, tokens, parents):
        for node, token, parent in zip(nodes, tokens, parents, strict=True):
            self.paths[node] = (*self.paths[parent], token)
        super().__call__(nodes, tokens, parents)
        return torch.from_numpy(np.stack([self.distribution(self.paths[node]) for node in nodes]))


def random_table(size, seed=0, scale=1.5):
    logits = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (logits * scale).softmax(-1)


def uniforms(seed=0):
    generator = np.random.default_rng(seed)
    while True:
        yield float(generator.random())


# -- reference vectors ---------------------------------------------------------------------------------------------


def cases():
    for name in ("best_first", "edge_budget1"):
        runs = int(np.load(VECTORS / f"{name}.npz")["n_runs"])
        yield from ((name, run) for run in range(runs))


@pytest.mark.parametrize(("name", "run"), cases())
def test_best_first_vectors(name, run):
    data = np.load(VECTORS / f"{name}.npz")
    growth = grow_best_first(
        Table(data["draft_f64"]), int(data[f"root{run}"]), int(data["budget"]), iter(data[f"u_grow{run}_f64"].tolist())
    )
    assert growth.tokens == data[f"tokens{run}"].tolist()
    assert growth.parent == data[f"parent{run}"].tolist()
    assert growth.depth == data[f"depth{run}"].tolist()
    np.testing.assert_allclose(growth.value, data[f"value{run}_f64"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(growth.slot_value, data[f"slot_value{run}_f64"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "run"), cases())
def test_threshold_vectors(name, run):
    data = np.load(VECTORS / f"{name}.npz")
    growth = grow_threshold(
        Table(data["draft_f64"]),
        int(data[f"root{run}"]),
        float(data["threshold_f64"]),
        iter(data[f"u_grow{run}_f64"].tolist()),
        max_depth=12,
        max_nodes=4 * int(data["budget"]),
    )
    assert growth.tokens == data[f"thr_tokens{run}"].tolist()
    assert growth.parent == data[f"thr_parent{run}"].tolist()
    assert growth.depth == data[f"thr_depth{run}"].tolist()
    np.testing.assert_allclose(growth.value, data[f"thr_value{run}_f64"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("reorder", [lambda tree: tree, depth_first], ids=["drawn", "blocks"])
@pytest.mark.parametrize(("name", "run"), cases())
def test_verification_vectors(name, run, reorder, monkeypatch):
    """The verifier class itself, fed the vectors' uniforms: each node's own, whatever the node order."""
    data = np.load(VECTORS / f"{name}.npz")
    growth = grow_best_first(
        Table(data["draft_f64"]), int(data[f"root{run}"]), int(data["budget"]), iter(data[f"u_grow{run}_f64"].tolist())
    )
    drawn = growth.tree()
    tree = reorder(drawn)
    old = {spelling(drawn, node): node for node in range(len(drawn))}
    accept, bonus, at = data[f"u_accept{run}_f64"], {}, [0]

    def rejection(probs, draft, tokens, _, **rule):
        below = tree.topology.children[at[-1]]
        own = [float(accept[old[spelling(tree, child)]]) for child in below]
        index, rest = recursive_rejection(probs, draft, tokens, own, **rule)
        at.append(below[index])
        return index, rest

    def draw(probs, _):
        bonus["distribution"] = probs
        mass = probs.cumsum(-1)
        return int(torch.searchsorted(mass, float(data[f"u_bonus{run}_f64"]) * mass[-1], right=True))

    monkeypatch.setattr("mintage.draft.core.verify.recursive_rejection", rejection)
    monkeypatch.setattr("mintage.draft.core.verify.draw", draw)
    logits = torch.as_tensor(data["target_f64"]).log()[tree.tokens]
    target = TargetProbs(logits, logits.argmax(-1), Warp(temperature=1.0))
    verdict = RecursiveRejection().verify(tree, target, None)
    assert [old[spelling(tree, node)] for node in verdict.path] == data[f"accepted_path{run}"].tolist()
    np.testing.assert_allclose(bonus["distribution"], data[f"bonus_dist{run}_f64"], rtol=0, atol=1e-9)
    assert verdict.token == int(data[f"bonus_token{run}"])


def spelling(tree, node):
    return tuple(tree.tokens[tree.topology.path(node)].tolist())


# -- laws of the builders ------------------------------------------------------------------------------------------


def naive_best_first(probs, root, budget, draws):
    """The paper's loop word for word: one distribution per popped slot, residuals renormalised."""
    paths, parent, value, slots, order = [(root,)], [-1], [1.0], [], itertools.count(1)
    heap = [(-1.0, 0, 0, probs((root,)))]
    while heap and len(paths) <= budget:
        negative, _, node, residual = heapq.heappop(heap)
        mass = np.cumsum(residual)
        token = int(np.searchsorted(mass, next(draws) * mass[-1], side="right"))
        slots.append(-negative)
        paths.append((*paths[node], token))
        parent.append(node)
        value.append(-negative * residual[token])
        heapq.heappush(heap, (-value[-1], next(order), len(paths) - 1, probs(paths[-1])))
        rest = residual.copy()
        rest[token] = 0
        if rest.sum() > 1e-12:
            miss = -negative * (1 - residual[token])
            heapq.heappush(heap, (-miss, next(order), node, rest / rest.sum()))
    return [path[-1] for path in paths], parent, value, slots


def check_values(growth: SlotGrowth):
    """Values are conditional draft probabilities times the misses of earlier siblings, which telescopes to products."""
    for node in range(1, len(growth)):
        above = growth.parent[node]
        product = growth.value[above] * float(growth.distributions[above][growth.tokens[node]])
        assert growth.value[node] == pytest.approx(product, rel=1e-9, abs=1e-12)
    for node, below in growth.children.items():
        drawn = [growth.tokens[child] for child in below]
        assert len(set(drawn)) == len(drawn)
        assert sum(growth.value[child] for child in below) <= growth.value[node] + 1e-12
        slot = growth.value[node]
        for child in below:
            assert growth.slot_value[child - 1] == pytest.approx(slot, rel=1e-6, abs=1e-12)
            slot -= growth.value[child]


drafts = {"seed": st.integers(0, 10_000), "size": st.integers(2, 9), "scale": st.floats(0.1, 6)}


@settings(max_examples=40, deadline=None)
@given(**drafts, budget=st.integers(1, 40))
def test_best_first_is_the_papers_loop(seed, size, scale, budget):
    """Asking about several nodes in one forward changes no draw, and never costs more rows than draws."""
    draft = PathDraft(size, seed, scale)
    growth = grow_best_first(draft, 0, budget, uniforms(seed))
    tokens, parent, value, slots = naive_best_first(draft.distribution, 0, budget, uniforms(seed))
    assert (growth.tokens, growth.parent) == (tokens, parent)
    np.testing.assert_allclose(growth.value, value, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(growth.slot_value, slots, rtol=1e-6, atol=1e-12)
    assert draft.forwards <= len(draft.asked) <= budget
    check_values(growth)


@settings(max_examples=40, deadline=None)
@given(**drafts, budget=st.integers(1, 40), depth=st.integers(1, 6))
def test_best_first_distributions(seed, size, scale, budget, depth):
    growth = grow_best_first(PathDraft(size, seed, scale), 0, budget, uniforms(seed), max_depth=depth)
    assert len(growth) - 1 == min(budget, sum(size**d for d in range(1, depth + 1)))
    assert max(growth.depth) <= depth
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(growth.slot_value))
    check_values(growth)
    free = grow_best_first(PathDraft(size, seed, scale), 0, budget, uniforms(seed))
    assert len(free) == budget + 1
    assert min(free.slot_value) >= 1 / budget - 1e-9


@settings(max_examples=40, deadline=None)
@given(**drafts, threshold=st.floats(0.01, 0.9), depth=st.integers(1, 6), nodes=st.integers(1, 60))
def test_threshold_distributions(seed, size, scale, threshold, depth, nodes):
    draft = PathDraft(size, seed, scale)
    growth = grow_threshold(draft, 0, threshold, uniforms(seed), max_depth=depth, max_nodes=nodes)
    assert 1 <= len(growth) - 1 <= nodes
    assert all(slot > threshold for slot in growth.slot_value)
    assert draft.forwards == max(growth.depth) <= depth, "one draft forward per layer"
    assert growth.parent == sorted(growth.parent), "layer by layer, parent by parent"
    check_values(growth)
    if len(growth) - 1 < nodes:  # nothing above the threshold was left out
        for node, value in enumerate(growth.value):
            drawn = [growth.value[c] for c in growth.children.get(node, ())]
            if growth.depth[node] < depth and len(drawn) < size:
                assert value - sum(drawn) <= threshold + 1e-12


def test_certain_draft_gives_a_chain():
    size = 5
    shift = torch.eye(size).roll(1, 1)
    growth = grow_best_first(Table(shift), 0, 7, uniforms())
    assert growth.tree().topology.parent == Topology.chain(7).parent
    assert growth.value == [1.0] * 8
    growth = grow_threshold(Table(shift), 0, 0.1, uniforms(), max_depth=7, max_nodes=64)
    assert growth.parent == list(range(-1, 7))


def test_flat_draft_is_filled_breadth_first():
    size = 6
    flat = torch.full((size, size), 1 / size)
    growth = grow_best_first(Table(flat), 0, 20, uniforms())
    # the last sibling ties with its elder siblings' children, so size - 1 come surely first
    assert growth.depth[1:size] == [1] * (size - 1)
    assert max(growth.depth) == 2
    assert growth.depth.count(1) == size
    growth = grow_threshold(Table(flat), 0, 1 / size - 1e-6, uniforms(), max_depth=2, max_nodes=64)
    assert [growth.depth.count(d) for d in (1, 2)] == [6, 6]  # each of six nodes is above the threshold once


def test_budget_of_one_is_ordinary_speculation():
    for seed in range(20):
        table = random_table(7, seed)
        growth = grow_best_first(Table(table), 3, 1, uniforms(seed))
        mass = table[3].cumsum(-1)
        assert growth.tokens == [3, int(torch.searchsorted(mass, next(uniforms(seed)) * mass[-1], right=True))]
        assert growth.slot_value == [1.0]


def test_impossible_tokens_are_never_drawn():
    table = torch.tensor([[0.0, 0.7, 0.3, 0.0], [0.5, 0.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    for seed in range(50):
        growth = grow_best_first(Table(table), 0, 12, uniforms(seed))
        for node in range(1, len(growth)):
            assert table[growth.tokens[growth.parent[node]], growth.tokens[node]] > 0
    edge = grow_best_first(Table(table), 0, 2, iter([1 - 2**-53, 1 - 2**-53]), max_depth=1)
    assert edge.tokens == [0, 2, 1]


def test_block_order_makes_dense_blocks_and_keeps_the_rest():
    growth = grow_best_first(Table(random_table(8, 3)), 0, 40, uniforms(3))
    drawn = growth.tree()
    blocks = depth_first(drawn)
    assert {spelling(drawn, n) for n in range(len(drawn))} == {spelling(blocks, n) for n in range(len(blocks))}
    place = {spelling(blocks, n): n for n in range(len(blocks))}
    for node in range(len(drawn)):
        there = place[spelling(drawn, node)]
        assert drawn.confidence[node] == blocks.confidence[there]
        below = [spelling(drawn, c) for c in drawn.topology.children[node]]
        assert below == [spelling(blocks, c) for c in blocks.topology.children[there]], "siblings in drawing order"
        if below:
            assert torch.equal(drawn.distribution(node), blocks.distribution(there))

    def occupied(tree, size=8):
        lineage = tree.topology.on(torch.device("cpu"))[2]
        side = -(-len(tree) // size) * size
        padded = torch.zeros(side, side)
        padded[: len(tree), : len(tree)] = lineage
        return int((padded.view(side // size, size, side // size, size).sum((1, 3)) > 0).sum())

    assert occupied(blocks) <= occupied(drawn)


# -- exact output distribution by enumeration -----------------------------------------------------------------------


def all_trees(grow, budget):
    """Every tree with its probability; `grow(uniforms, count)` makes at most `count` draws."""

    def extend(chosen, probability):
        if len(chosen) == budget:
            yield grow(iter(chosen), budget), probability
            return
        probe = grow(iter([*chosen, 0.0]), len(chosen) + 1)
        if len(probe) - 1 == len(chosen):  # the builder stopped by itself
            yield probe, probability
            return
        node = probe.parent[-1]
        residual = probe.distributions[node].clone()
        residual[[probe.tokens[child] for child in probe.children[node][:-1]]] = 0
        residual /= residual.sum()
        mass = residual.cumsum(-1)
        for token in residual.nonzero().squeeze(-1).tolist():
            middle = float(mass[token] - residual[token] / 2)
            yield from extend([*chosen, middle], probability * float(residual[token]))

    yield from extend([], 1.0)


def two_tokens(tree: TokenTree, target, root):
    """Distribution of the first two emitted tokens given the tree, by the equations; later rounds sample the target."""

    def outcomes(node):
        """Distribution of (accepted child or None, token emitted instead)."""
        p = target[int(tree.tokens[node])].clone()
        below, reach = tree.topology.children[node], 1.0
        if not below:
            return [], p
        q, accepted = tree.distribution(node).clone(), []
        for child in below:
            token = int(tree.tokens[child])
            theta = min(1.0, float(p[token] / q[token]))
            accepted.append((child, reach * theta))
            reach *= 1 - theta
            rest = (p - q).clamp_min(0)
            p = rest / rest.sum() if rest.sum() > 1e-12 else p
            q[token] = 0
            if q.sum() < 1e-12:
                break
            q /= q.sum()
        return accepted, reach * p

    joint = torch.zeros_like(target)
    accepted, residual = outcomes(0)
    joint += residual[:, None] * target
    for child, chance in accepted:
        below, rest = outcomes(child)
        token = int(tree.tokens[child])
        joint[token] += chance * rest
        for grandchild, share in below:
            joint[token, int(tree.tokens[grandchild])] += chance * share
    return joint


DRAFTS = {
    "apart": random_table(3, 1),
    "equal": random_table(3, 2),
    "zeros": torch.tensor([[0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.3, 0.0, 0.7]], dtype=torch.float64),
}
BUILDERS = {
    "best-first": lambda table, draws, nodes: grow_best_first(Table(table), 0, nodes, draws),
    "best-first-2": lambda table, draws, nodes: grow_best_first(Table(table), 0, nodes, draws, max_depth=2),
    "threshold": lambda table, draws, nodes: grow_threshold(Table(table), 0, 0.3, draws, max_depth=3, max_nodes=nodes),
}


@pytest.mark.parametrize("budget", [1, 2, 3, 4])
@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("builder", BUILDERS)
def test_output_distribution_is_exact(builder, draft, budget):
    target, probs, total = random_table(3, 2), torch.zeros(3, 3, dtype=torch.float64), 0.0
    for growth, probability in all_trees(lambda u, n: BUILDERS[builder](DRAFTS[draft], u, n), budget):
        tree = growth.tree()
        joint = two_tokens(tree, target, 0)
        assert torch.allclose(joint, two_tokens(depth_first(tree), target, 0), atol=1e-12)
        probs += probability * joint
        total += probability
    assert total == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(probs, target[0][:, None] * target, rtol=0, atol=1e-9)


@pytest.mark.parametrize("builder", BUILDERS)
def test_pruning_by_drawn_value_would_be_caught(builder):
    """The enumeration has teeth: dropping nodes of low drawn value changes the output distribution."""
    draft, target, probs = random_table(3, 1), random_table(3, 2), torch.zeros(3, 3, dtype=torch.float64)
    for growth, probability in all_trees(lambda u, n: BUILDERS[builder](draft, u, n), 3):
        tree = growth.tree()
        kept = [0]
        for node in range(1, len(tree)):
            if tree.topology.parent[node] in kept and tree.confidence[node] > 0.25:
                kept.append(node)
        probs += probability * two_tokens(tree.keep(kept), target, 0)
    assert (probs - target[0][:, None] * target).abs().max() > 1e-3


@pytest.mark.parametrize("builder", BUILDERS)
def test_values_are_the_acceptance_of_a_target_equal_to_the_draft(builder):
    """p = q: the values sum to the mean number of accepted tokens when the target's own samples are matched."""
    table = random_table(3, 5)
    for growth, _ in all_trees(lambda u, n: BUILDERS[builder](table, u, n), 4):
        tree = growth.tree()

        def mean_accepted(node, tree=tree):
            probs, tokens = table[int(tree.tokens[node])], tree.tokens.tolist()
            return sum(float(probs[tokens[c]]) * (1 + mean_accepted(c)) for c in tree.topology.children[node])

        assert sum(growth.value[1:]) == pytest.approx(mean_accepted(0), abs=1e-12)


# -- the drafter in the loop ---------------------------------------------------------------------------------------

VARIANTS = {
    "best-first": {"budget": 9},
    "best-first-blocks": {"budget": 9, "block_order": True},
    "threshold": {"budget": 12, "threshold": 0.05},
    "threshold-blocks": {"budget": 12, "threshold": 0.05, "block_order": True},
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_draft_distributions_are_those_of_the_paths(variant, temperature):
    """With the target as its own draft model, every distribution must be the target's: cache, mask, positions."""
    seen = []

    class Spy(DySpec):
        def observe(self, context, tree, logits, path):
            warp = context.warp if temperature else Warp(temperature=self.draft_temperature)
            for node, row in enumerate(tree.distribution_of or ()):
                if row >= 0:
                    torch.testing.assert_close(
                        tree.distributions[row], warp.probabilities(logits[node]), rtol=0, atol=1e-4
                    )
            seen.append((len(tree) - 1, len(path)))
            super().observe(context, tree, logits, path)

    model = tiny_causal_lm(initializer_range=0.3)
    drafter = Spy(draft_model=model, max_depth=5, **VARIANTS[variant])
    settings = {"temperature": temperature, "top_p": 0.95} if temperature else {}
    generate(model, PROMPT, drafter, max_new_tokens=40, seed=3, **settings)
    assert max(nodes for nodes, _ in seen) <= drafter.budget
    assert max(length for _, length in seen) > 2


@pytest.mark.parametrize("threshold", [None, 0.05])
def test_block_order_changes_nothing_that_is_emitted(threshold):
    model, draft = TableLM.random(seed=2), TableLM.random(seed=2, order=1)
    for temperature in (0.0, 1.0):
        outputs = [
            generate(
                model,
                PROMPT,
                DySpec(draft_model=draft, budget=10, threshold=threshold, block_order=blocks),
                max_new_tokens=60,
                temperature=temperature,
                seed=5,
            )
            for blocks in (False, True)
        ]
        assert torch.equal(outputs[0].sequences, outputs[1].sequences)
        assert outputs[0].stats.accepted == outputs[1].stats.accepted


def test_greedy_decoding_leaves_the_global_generator_alone():
    model, drafters = TableLM.random(), [DySpec.tiny(), DySpec.tiny()]
    before = torch.get_rng_state()
    stats = [generate(model, PROMPT, drafter, max_new_tokens=20).stats for drafter in drafters]
    assert torch.equal(before, torch.get_rng_state())
    assert stats[0].accepted == stats[1].accepted


def test_in_a_union():
    model = tiny_causal_lm()
    both = Union(drafters=(DySpec(draft_model=model, budget=6), PromptLookup()), budget=8)
    plain = model.generate(PROMPT, max_new_tokens=30, do_sample=False, pad_token_id=0)
    out = generate(model, PROMPT, both, max_new_tokens=30)
    assert torch.equal(out.sequences, plain)
    assert out.stats.tokens_per_forward > 1.5


def test_an_accurate_draft_model_pays():
    model = tiny_causal_lm()
    stats = generate(
        model, PROMPT, DySpec(draft_model=model, budget=8), max_new_tokens=60, temperature=0.5, seed=0
    ).stats
    assert stats.tokens_per_forward > 2
    assert stats.draft_forwards <= stats.rounds * 9


# -- calibration ---------------------------------------------------------------------------------------------------


def test_tried_reads_conditional_probabilities():
    tree = TokenTree(
        tokens=torch.tensor([0, 1, 2, 3]),
        topology=Topology((-1, 0, 0, 2)),
        confidence=torch.tensor([1.0, 0.6, 0.3, 0.03], dtype=torch.float64),
    )
    assert tried(tree, [0, 2]) == [(0.6, False), (pytest.approx(0.75), True), (pytest.approx(0.1), False)]
    assert tried(tree, [0, 1]) == [(0.6, True)]
    assert tried(tree, [0]) == [(0.6, False), (pytest.approx(0.75), False)]


def test_calibration_of_calibrated_values_is_the_diagonal():
    generator = np.random.default_rng(0)
    values = generator.random(40_000)
    bins = calibration(values.tolist(), (generator.random(40_000) < values).tolist())
    assert [b.nodes for b in bins] == [4000] * 10
    assert all(a.predicted < b.predicted for a, b in itertools.pairwise(bins))
    assert max(abs(b.predicted - b.observed) for b in bins) < 0.03
    assert calibration([0.5], [True]) == [(0.5, 1.0, 1)]
    assert calibration([], []) == []


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget=0"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"max_depth": 0}, "max_depth=0"),
        ({"draft_temperature": 0.0}, "draft_temperature=0.0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        DySpec(draft_model=tiny_causal_lm(), **settings)
    assert "\n" not in str(caught.value)


def test_bad_draft_models():
    model = tiny_causal_lm()
    broken = tiny_causal_lm()
    broken.lm_head.weight.data.fill_(float("nan"))
    for draft, message in (
        (tiny_causal_lm(vocab_size=17), "17"),
        ("smollm2", "draft_model is str"),
        (broken, "NaN"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            generate(model, PROMPT, DySpec(draft_model=draft), max_new_tokens=8)
        assert "\n" not in str(caught.value)

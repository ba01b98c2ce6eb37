from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import LogitsProcessorList
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from mintage.draft import RSD, Chain, Plain, PromptLookup, SpecInfer, TokenTree, Topology, generate
from mintage.draft.baselines import _PRIOR, independent_draws
from mintage.draft.contract import Context
from mintage.draft.core.target import Target
from mintage.draft.core.verify import TargetProbs, after_rejection, recursive_rejection
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.testing.toys import TableLM

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
texts = st.lists(st.integers(0, 4), min_size=1, max_size=30)


def context_of(drafter, ids):
    context = Context(ids=torch.tensor(ids), prompt_length=len(ids), room=20, warp=Warp())
    drafter.begin(Target(TableLM.random()), context)
    return context


def occurrences(ids, size):
    """Where the last `size` tokens stood before, followed by something."""
    return [i for i in range(len(ids) - size) if ids[i : i + size] == ids[-size:]]


def looked_up(ids, length, ngram):
    """The definition: what followed the latest earlier occurrence of the longest n-gram, and that n-gram's size."""
    for size in range(min(ngram, len(ids) - 1), 0, -1):
        if found := occurrences(ids, size):
            return ids[found[-1] + size :][:length], size
    return [], 0


# -- plain ----------------------------------------------------------------------------------------------------------


def test_plain_is_one_token_per_forward():
    model = tiny_causal_lm()
    out = generate(model, IDS, Plain(), max_new_tokens=20)
    assert torch.equal(out.sequences, model.generate(IDS, max_new_tokens=20, do_sample=False, pad_token_id=0))
    assert out.stats.target_forwards == out.stats.tree_nodes == 20
    assert out.stats.tokens_per_forward == 1
    assert out.stats.offered == out.stats.accepted == []


# -- prompt lookup --------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(texts, st.integers(1, 6), st.integers(1, 4))
def test_the_continuation_of_the_last_occurrence_is_drafted(ids, length, ngram):
    drafter = PromptLookup(length=length, ngram=ngram)
    tree = drafter.propose(context_of(drafter, ids))
    wanted, size = looked_up(ids, length, ngram)
    assert tree.tokens.tolist() == [ids[-1], *wanted]
    assert tree.topology.parent == tuple(range(-1, len(wanted)))
    share = _PRIOR[min(size, 3) - 1]
    assert tree.confidence.tolist() == pytest.approx([share**depth for depth in range(len(wanted) + 1)])


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 6), st.integers(1, 4))
def test_where_there_is_one_occurrence_it_drafts_what_transformers_drafts(ids, length, ngram):
    _, size = looked_up(ids, length, ngram)
    if len(occurrences(ids, size)) != 1 or not size:
        return
    theirs = PromptLookupCandidateGenerator(
        eos_token_id=None,
        num_output_tokens=length,
        max_matching_ngram_size=ngram,
        max_length=1000,
        logits_processor=LogitsProcessorList(),
        vocab_size=5,
    )
    drafter = PromptLookup(length=length, ngram=ngram)
    tree = drafter.propose(context_of(drafter, ids))
    candidates, _ = theirs.get_candidates(torch.tensor([ids]))
    assert candidates[0, len(ids) :].tolist() == tree.tokens[1:].tolist()


def test_it_learns_how_far_a_match_can_be_trusted():
    drafter = PromptLookup(length=4)
    context = context_of(drafter, [7, 8, 9, 1, 2, 3, 0, 7, 8, 9])
    tree = drafter.propose(context)
    assert tree.tokens.tolist() == [9, 1, 2, 3, 0]
    logits = torch.zeros(5, 12)
    prior = context.memory[drafter][2].copy()
    drafter.observe(context, tree, logits, [0, 1, 2])  # two came true, the third did not
    assert context.memory[drafter][2] == [prior[0] + 2, prior[1] + 3]
    drafter.observe(context, drafter.propose(context), logits, [0, 1, 2, 3, 4])  # all four did
    assert context.memory[drafter][2] == [prior[0] + 6, prior[1] + 7]
    drafter.observe(context, drafter.propose(context), logits, [0])
    assert context.memory[drafter][2] == [prior[0] + 6, prior[1] + 8]
    for other in (0, 1):
        assert context.memory[drafter][other] == [_PRIOR[other] * 5, 5]
    assert float(drafter.propose(context).confidence[1]) == pytest.approx((prior[0] + 6) / (prior[1] + 8))


def test_a_repeating_text_is_drafted_in_one_go():
    table = torch.full((12, 12), -5.0)
    table[torch.arange(12), (torch.arange(12) + 1) % 12] = 5.0  # counts up, forever
    ids = torch.arange(15)[None] % 12
    stats = generate(TableLM(table), ids, PromptLookup(length=10), max_new_tokens=44).stats
    assert stats.target_forwards == 4
    assert stats.acceptance_by_depth == [1.0] * 10


@pytest.mark.parametrize("wrong", [{"length": 0}, {"ngram": 0}])
def test_nothing_to_look_for_is_refused(wrong):
    with pytest.raises(UserError, match="=0 is out of range; pass a number at least 1"):
        PromptLookup(**wrong)


# -- a draft model: one chain, independent siblings -----------------------------------------------------------------


def sampling(drafter, *, seed=0, room=8, **warp):
    context = Context(
        ids=IDS[0],
        prompt_length=IDS.shape[1],
        room=room,
        warp=Warp(**({"temperature": 1.0} | warp)),
        generator=torch.Generator().manual_seed(seed),
    )
    drafter.begin(Target(TableLM.random()), context)
    return context


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_chain_is_rsd_with_one_child_per_node(temperature):
    small = TableLM.random(seed=1)
    trees = []
    for drafter in (Chain(draft_model=small, length=3), RSD(draft_model=small, branching=(1, 1, 1))):
        context = sampling(drafter, temperature=temperature)
        trees.append(drafter.propose(context))
        assert context.draft_forwards == 3
    one, other = trees
    assert one.topology.parent == (-1, 0, 1, 2) == other.topology.parent
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.confidence, other.confidence)
    assert one.distribution_of == other.distribution_of


def test_a_chain_drafts_as_transformers_accepts():
    """Accepted per drafted token: the overlap of the two distributions, as speculative sampling has it."""
    model, small = TableLM.random(order=1), TableLM.random(seed=1, order=1)
    stats = generate(model, IDS, Chain(draft_model=small, length=1), max_new_tokens=600, temperature=1.0, seed=0).stats
    p, q = model.table[0].softmax(-1), small.table[0].softmax(-1)
    power = torch.linalg.matrix_power(p, 60)[0]  # the target's chain in its long run
    overlap = float((power * torch.minimum(p, q).sum(-1)).sum())
    assert stats.acceptance_by_depth[0] == pytest.approx(overlap, abs=0.1)


def test_independent_draws_follow_each_row():
    probs = torch.tensor([[0.5, 0.0, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0], [0.1, 0.2, 0.7, 0.0]])
    counts = [20_000, 5, 10_000]
    rows, tokens = independent_draws(probs, counts, torch.Generator().manual_seed(0))
    assert torch.bincount(rows).tolist() == counts
    for row, count in enumerate(counts):
        seen = torch.bincount(tokens[rows == row], minlength=4)
        assert (seen[probs[row] == 0] == 0).all()
        some = probs[row] > 0
        if some.sum() > 1:
            assert chisquare(seen[some], probs[row][some].double() / probs[row].double().sum() * count).pvalue > 1e-4


@pytest.mark.parametrize("seed", range(8))
def test_every_draw_is_a_node_and_repeats_are_leaves(seed):
    drafter = SpecInfer(draft_model=TableLM.random(seed=1, scale=2.5), branching=(3, 2, 2))
    context = sampling(drafter, seed=seed)
    tree = drafter.propose(context)
    assert len(tree) - 1 == drafter.budget == 3 + 6 + 12
    assert context.draft_forwards == 3
    assert context.draft_tokens == len(IDS[0]) + sum(len(b) > 0 for b in tree.topology.children[1:])
    for node, below in enumerate(tree.topology.children):
        depth, times = tree.topology.depth[node], Counter(tree.tokens[list(below)].tolist())
        if depth == 2:
            continue
        met = set()
        for child in below:
            token = int(tree.tokens[child])
            wanted = 0 if token in met else times[token] * drafter.branching[depth + 1]
            assert len(tree.topology.children[child]) == wanted
            met.add(token)


def test_specinfer_at_temperature_zero_drafts_distinct_tokens():
    drafter = SpecInfer(draft_model=TableLM.random(seed=1), branching=(3, 2))
    tree = drafter.propose(sampling(drafter, temperature=0.0))
    assert len(tree) == 10
    assert tree.distributions is None
    for below in tree.topology.children:
        assert len(set(tree.tokens[list(below)].tolist())) == len(below)


def test_two_levels_of_repeats_keep_the_targets_distribution_exactly():
    """Enumerate all draws of a (2, 1) tree with pooled repeats and both levels' coins: the first two tokens."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 2, 2, generator=generator, dtype=torch.float64) * 2).softmax(-1)[:2].unbind(0)
    first_p, first_q = torch.tensor([[0.2, 0.8], [0.7, 0.3]], dtype=torch.float64)

    def emitted(p, q, tokens):
        """Distribution of (accepted child or None, token) at one node."""
        probs, reached = {}, 1.0
        for k, token in enumerate(tokens):
            theta = float((p[token] / q[token]).clamp_max(1))
            probs[k, token] = probs.get((k, token), 0) + reached * theta
            reached *= 1 - theta
            p, q = after_rejection(p, q, torch.tensor(token), replacement=True)
        for token in range(2):
            probs[None, token] = reached * float(p[token])
        return probs

    joint = torch.zeros(2, 2, dtype=torch.float64)
    for pair in product(range(2), repeat=2):
        chance = float(first_q[pair[0]] * first_q[pair[1]])
        for (k, token), share in emitted(first_p, first_q, pair).items():
            if k is None:  # the round ends; the next one starts with the target's distribution
                joint[token] += chance * share * p[token]
                continue
            times = Counter(pair)[token]
            for below in product(range(2), repeat=times):
                drawn = chance * share * float(q[token][list(below)].prod())
                for (_, second), part in emitted(p[token], q[token], below).items():
                    joint[token, second] += drawn * part
    assert torch.allclose(joint, first_p[:, None] * p, rtol=0, atol=1e-12)


def test_specinfer_verifies_repeats_as_candidates_of_their_own():
    p, q = torch.tensor([0.1, 0.9]).double(), torch.tensor([0.9, 0.1]).double()
    assert recursive_rejection(p, q, [0, 0, 1], [0.5, 0.0, 0.0], replacement=True)[0] == 2
    tree = TokenTree(
        tokens=torch.tensor([0, 0, 0, 1]),
        topology=Topology([-1, 0, 0, 0]),
        distributions=q[None],
        distribution_of=(0, -1, -1, -1),
    )
    logits = torch.tensor([[0.0, 50.0]] * 4, dtype=torch.float64)
    verdict = SpecInfer.verifier.verify(tree, TargetProbs(logits, logits.argmax(-1), Warp(temperature=1.0)), None)
    assert list(verdict.path) == [0, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain(draft_model=None, length=0), "length=0 is out of range"),
        (lambda: SpecInfer(draft_model=None, branching=(2, 0)), "branching=0 is out of range"),
        (lambda: SpecInfer(draft_model=None, branching=()), r"branching=\(\)"),
    ],
)
def test_impossible_drafts_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("method", [Chain, SpecInfer])
def test_draft_models_must_share_the_vocabulary(method):
    with pytest.raises(UserError, match="16 tokens, the target 12") as error:
        generate(tiny_causal_lm(), IDS, method(draft_model=tiny_causal_lm(vocab_size=16)), max_new_tokens=8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [Chain, SpecInfer])
def test_the_last_token_needs_no_draft(method):
    drafter = method.tiny()
    context = sampling(drafter, room=0)
    assert len(drafter.propose(context)) == 1
    assert context.draft_forwards == 0

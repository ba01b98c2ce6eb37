from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.draft import Drafter, Plain, PromptLookup, TokenRecycling, TokenTree, Topology, Union, generate
from mintage.draft import union as module
from mintage.draft.contract import Context
from mintage.draft.core.latency import LatencyCurve
from mintage.draft.core.target import Target
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.testing.toys import TableLM

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
ROOT = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Scripted(Drafter):
    """Proposes one given tree and remembers what it is shown."""

    tree: TokenTree

    def begin(self, target, context):
        context.memory[self] = []

    def propose(self, context):
        return self.tree

    def observe(self, context, tree, logits, path):
        context.memory[self].append((tree, logits, list(path)))

    @classmethod
    def tiny(cls):
        return cls(tree=TokenTree.root_only(torch.tensor(ROOT)))


def tree_of(parent, tokens, shares):
    """Build a tree whose nodes come true with these shares of their parents' chance."""
    confidence = [1.0]
    for above, share in zip(parent[1:], shares, strict=True):
        confidence.append(confidence[above] * share)
    return TokenTree(
        tokens=torch.tensor([ROOT, *tokens]), topology=Topology(parent), confidence=torch.tensor(confidence)
    )


@st.composite
def trees(draw):
    size = draw(st.integers(1, 9))
    parent = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, size))]
    tokens = [draw(st.integers(0, 2)) for _ in range(size - 1)]
    return tree_of(parent, tokens, [draw(st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0])) for _ in tokens])


def united(drafted, budget, room=20):
    drafters = tuple(Scripted(tree=tree) for tree in drafted)
    union = Union(drafters=drafters, budget=budget)
    context = Context(ids=IDS[0], prompt_length=8, room=room, warp=Warp())
    union.begin(Target(TableLM.random()), context)
    return union, context


def words(tree):
    """Return the tokens from the root to every node."""
    return [tuple(tree.tokens[tree.topology.path(node)[1:]].tolist()) for node in range(len(tree))]


def beliefs(drafted):
    """Return every distinct path with the chance that at least one of those who drafted it is right."""
    doubts = {}
    for tree in drafted:
        first = {}
        for node, word in enumerate(words(tree)):
            first.setdefault(word, float(tree.confidence[node]))
        for word, confidence in first.items():
            doubts[word] = doubts.get(word, 1.0) * (1 - confidence)
    belief = {word: 1 - doubt for word, doubt in doubts.items()}
    for word in sorted(belief, key=len):
        if word:
            belief[word] = min(belief[word], belief[word[:-1]])
    return belief


@settings(max_examples=80, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=3), st.integers(1, 12), st.integers(1, 6))
def test_the_budget_goes_to_the_likeliest_paths_each_once(drafted, budget, room):
    union, context = united(drafted, budget, room)
    tree = union.propose(context)
    spelled = words(tree)
    belief = {word: value for word, value in beliefs(drafted).items() if len(word) <= room}
    assert len(set(spelled)) == len(spelled)
    assert set(spelled) <= belief.keys()
    assert len(tree) == 1 + min(budget, len(belief) - 1)
    best = sorted(belief.values(), reverse=True)[: len(tree)]
    assert sorted((belief[word] for word in spelled), reverse=True) == pytest.approx(best)
    assert tree.confidence.tolist() == pytest.approx([belief[word] for word in spelled])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_drafter_is_shown_what_became_of_its_own_draft(data):
    drafted = data.draw(st.lists(trees(), min_size=1, max_size=3))
    union, context = united(drafted, data.draw(st.integers(1, 12)))
    tree = union.propose(context)
    path = tree.topology.path(data.draw(st.integers(0, len(tree) - 1)))
    logits = torch.randn(len(tree), 12)
    union.observe(context, tree, logits, path)
    at = {word: node for node, word in enumerate(words(tree))}
    accepted = {words(tree)[node] for node in path}
    for drafter, own in zip(union.drafters, drafted, strict=True):
        ((part, seen, lived),) = context.memory[drafter]
        kept = [node for node, word in enumerate(words(own)) if word in at]
        assert words(part) == [words(own)[node] for node in kept]
        assert torch.equal(part.confidence, own.confidence[kept])
        assert torch.equal(seen, logits[[at[word] for word in words(part)]])
        assert lived == [node for node, word in enumerate(words(part)) if word in accepted]


def test_agreement_counts_as_evidence_but_not_within_one_drafter():
    one, two = tree_of((-1, 0, 0), [4, 4], [0.5, 0.5]), tree_of((-1, 0), [4], [0.6])
    union, context = united([one, two], 10)
    assert union.propose(context).tokens.tolist() == [ROOT, 4]
    assert float(union.propose(context).confidence[1]) == pytest.approx(1 - 0.5 * 0.4)


def test_the_prompt_is_shown_to_every_drafter_as_it_is():
    union, context = united([tree_of((-1,), [], []), tree_of((-1, 0), [1], [0.5])], 4)
    chain, logits = TokenTree(tokens=IDS[0, :3], topology=Topology.chain(2)), torch.randn(3, 12)
    union.observe(context, chain, logits, range(3))
    for drafter in union.drafters:
        ((tree, seen, path),) = context.memory[drafter]
        assert (tree is chain, seen is logits, path) == (True, True, [0, 1, 2])


@pytest.mark.parametrize("price", [0.0, 0.05, 2.0])
def test_the_automatic_budget_maximises_tokens_per_second(monkeypatch, price):
    curve = LatencyCurve((1, 100), (1.0, 1.0 + 99 * price))
    monkeypatch.setattr(module, "latency_curve", lambda target: curve)
    drafted = [tree_of((-1, 0, 1, 2), [1, 2, 0], [0.9, 0.8, 0.1]), tree_of((-1, 0, 0), [1, 2], [0.3, 0.2])]
    union, context = united(drafted, "auto")
    best = sorted(beliefs(drafted).values(), reverse=True)[1:]
    speed = [(1 + sum(best[:n])) / float(curve(1 + n)) for n in range(len(best) + 1)]
    assert len(union.propose(context)) == 1 + int(np.argmax(speed))


@pytest.mark.parametrize("budget", [1, 6, 40])
def test_greedy_text_is_greedy_and_the_budget_holds_in_every_round(budget):
    drafters = (TokenRecycling(), PromptLookup(), TokenRecycling(k=3, budget=4, recycle_prompt=True))
    union = Union(drafters=drafters, budget=budget)
    for model in (tiny_causal_lm(), TableLM.random()):
        for drafter in drafters:
            if isinstance(drafter, TokenRecycling):
                drafter.reset()
        for _ in range(2):
            out = generate(model, IDS, union, max_new_tokens=40)
            assert torch.equal(out.sequences, model.generate(IDS, max_new_tokens=40, do_sample=False, pad_token_id=0))
            assert out.stats.tree_nodes <= out.stats.rounds * (1 + budget)


def test_together_they_draft_no_worse_than_apart():
    model = TableLM.random()
    parts = [TokenRecycling(), PromptLookup()]

    def forwards(drafter):
        return [generate(model, IDS, drafter, max_new_tokens=60).stats.target_forwards for _ in range(2)][1]

    assert forwards(Union(drafters=(TokenRecycling(), PromptLookup()), budget=90)) <= min(map(forwards, parts))


# -- specifications and refusals ------------------------------------------------------------------------------------


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_specification_names_one_drafter_or_a_union():
    alone = Union.from_spec("prompt-lookup:length=4")
    assert isinstance(alone, PromptLookup)
    assert alone.length == 4
    union = Union.from_spec(" token-recycling:k=6,budget=12 + prompt-lookup + budget=24 ")
    assert isinstance(union, Union)
    assert union.budget == 24
    recycling, lookup = union.drafters
    assert (type(recycling), recycling.k, recycling.budget) == (TokenRecycling, 6, 12)
    assert (type(lookup), lookup.length) == (PromptLookup, 10)
    assert Union.from_spec("plain+prompt-lookup").budget == "auto"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("token-recicling", "did you mean 'token-recycling'?"),
        ("plain+nothing-like-it", "unknown method 'nothing-like-it'"),
        ("plain+prompt-lookup+budget=0", "budget=0 is out of range; pass a number at least 1"),
        ("plain+prompt-lookup+size=3", "union has no setting 'size'"),
        ("plain+prompt-lookup:length=x", "prompt-lookup: length='x' is not int"),
        ("plain+", "unknown method ''"),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line(spec, said):
    assert said in refusal(lambda: Union.from_spec(spec))


def test_a_union_of_nothing_or_of_no_nodes_is_refused():
    assert "at least one drafter, e.g. token-recycling+prompt-lookup" in refusal(lambda: Union(drafters=()))
    assert "budget=0 is out of range; pass a number at least 1" in refusal(lambda: Union(drafters=(Plain(),), budget=0))


def test_a_drafter_that_states_no_confidence_is_refused_by_name():
    silent = Scripted(tree=TokenTree(tokens=torch.tensor([ROOT, 1]), topology=Topology((-1, 0))))
    union = Union(drafters=(Plain(), silent), budget=4)
    line = refusal(lambda: generate(tiny_causal_lm(), IDS, union, max_new_tokens=4))
    assert line == "Scripted does not state its nodes' confidence; it cannot be merged"

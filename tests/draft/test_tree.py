import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.draft.core.tree import TokenTree, Topology

CPU = torch.device("cpu")


@st.composite
def parents(draw, largest=12):
    size = draw(st.integers(1, largest))
    return [-1, *(draw(st.integers(0, node - 1)) for node in range(1, size))]


@st.composite
def prefix_closed(draw, parent):
    """Ascending nodes, the root among them, each with its parent."""
    kept = [0]
    for node, above in enumerate(parent[1:], start=1):
        if above in kept and draw(st.booleans()):
            kept.append(node)
    return kept


def path_up(parent, node):
    """The definition, by recursion."""
    return [0] if node == 0 else [*path_up(parent, parent[node]), node]


@pytest.mark.parametrize(
    ("parent", "said"),
    [
        ([], "starts with its root"),
        ([0], "starts with its root"),
        ([0, -1], "starts with its root"),
        ([-1, -1], "parent[1]=-1"),
        ([-1, 1], "parent[1]=1"),
        ([-1, 0, 3, 0], "parent[2]=3"),
        ([-1, 0, -2], "parent[2]=-2"),
    ],
)
def test_a_node_stands_after_its_parent_and_there_is_one_root(parent, said):
    with pytest.raises(ValueError, match=r"root|parent") as caught:
        Topology(parent)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(parents())
def test_paths_depths_children_and_ancestors_follow_from_the_parents(parent):
    topology = Topology(parent)
    paths = [path_up(parent, node) for node in range(len(parent))]
    assert len(topology) == len(parent)
    assert [topology.path(node) for node in range(len(parent))] == paths
    assert list(topology.depth) == [len(path) - 1 for path in paths]
    assert [list(c) for c in topology.children] == [
        [child for child, above in enumerate(parent) if above == node] for node in range(len(parent))
    ]
    above, depth, lineage = topology.on(CPU)
    assert above.tolist() == parent
    assert depth.tolist() == list(topology.depth)
    assert lineage.tolist() == [[node in path for node in range(len(parent))] for path in paths]
    assert topology.on(CPU)[2] is lineage  # a fixed shape computes its mask once


@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_chain_is_a_root_and_one_node_per_level(length):
    chain = Topology.chain(length)
    assert chain.parent == tuple(range(-1, length))
    assert chain.depth == tuple(range(length + 1))
    assert torch.equal(chain.on(CPU)[2], torch.ones(length + 1, length + 1, dtype=torch.bool).tril())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_kept_sub_tree_carries_what_its_nodes_carried(data):
    parent = data.draw(parents())
    size = len(parent)
    kept = data.draw(prefix_closed(parent))
    topology = Topology(parent)
    leaves = [node for node, below in enumerate(topology.children) if not below]
    tree = TokenTree(
        tokens=torch.arange(100, 100 + size),
        topology=topology,
        confidence=0.5 ** torch.tensor(topology.depth),
        distributions=torch.eye(size),
        distribution_of=tuple(range(size)),
        drafts=tuple(tuple(topology.path(leaf)[1:]) for leaf in leaves),
    )
    part = tree.keep(kept)
    assert part.tokens.tolist() == [100 + node for node in kept]
    assert [[kept[n] for n in part.topology.path(i)] for i in range(len(part))] == [path_up(parent, n) for n in kept]
    assert torch.equal(part.confidence, tree.confidence[kept])
    for new, old in enumerate(kept):
        assert torch.equal(part.distribution(new), tree.distribution(old))
    assert len(part.drafts) == len(tree.drafts)
    # every sequence stays, cut where it leaves the part
    for draft, whole in zip(part.drafts, tree.drafts, strict=True):
        assert [kept[n] for n in draft] == [n for n in whole if n in kept]
        assert [part.topology.parent[n] for n in draft] == [0, *draft][: len(draft)]


@settings(max_examples=40, deadline=None)
@given(parents(), st.integers(0, 5))
def test_a_cut_looks_at_depth_alone(parent, depth):
    tree = TokenTree(tokens=torch.arange(len(parent)), topology=Topology(parent))
    cut = tree.cut(depth)
    assert cut.tokens.tolist() == [n for n in range(len(parent)) if len(path_up(parent, n)) - 1 <= depth]
    if max(tree.topology.depth) <= depth:
        assert cut is tree


def test_distributions_belong_to_nodes_and_a_missing_one_is_an_error():
    distributions = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    tree = TokenTree(
        tokens=torch.arange(3), topology=Topology((-1, 0, 1)), distributions=distributions, distribution_of=(0, 1, -1)
    )
    assert torch.equal(tree.distribution(1), distributions[1])
    with pytest.raises(ValueError, match="no draft distribution at node 2"):
        tree.distribution(2)
    with pytest.raises(ValueError, match="no draft distribution at node 0"):
        TokenTree.root_only(torch.tensor(1)).distribution(0)


def test_probes_keep_their_embeddings():
    # two probes under the root and one under node 1
    tree = TokenTree(
        tokens=torch.tensor([5, 6, -1, -1, -1]),
        topology=Topology((-1, 0, 0, 2, 1)),
        embeddings=torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]),
    )
    assert tree.keep([0, 1, 2, 4]).embeddings.tolist() == [[1, 1], [3, 3]]
    assert tree.keep([0, 1]).embeddings is None
    assert tree.cut(1).embeddings.tolist() == [[1, 1]]


def test_root_only_drafts_nothing():
    tree = TokenTree.root_only(torch.tensor(7))
    assert len(tree) == 1
    assert tree.tokens.tolist() == [7]
    assert tree.confidence.tolist() == [1]


def test_tokens_and_nodes_must_agree():
    with pytest.raises(ValueError, match="3 tokens for 2 nodes"):
        TokenTree(tokens=torch.arange(3), topology=Topology((-1, 0)))

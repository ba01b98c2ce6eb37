import hashlib
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mintage.draft import TokenRecycling, generate
from mintage.draft import token_recycling as module
from mintage.draft.contract import Context
from mintage.draft.core.latency import LatencyCurve
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.draft.core.verify import GreedyMatch, TargetProbs
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.testing.settings import without_shape_checks
from mintage.testing.toys import TableLM

VECTORS = Path(__file__).parents[1] / "vectors" / "token-recycling"
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
SUMS = {"order1_cold": "1565753f6db2", "order2_hot_two_calls": "215647a45bc8", "tree_static": "a71ad8262d08"}
PATHS = sorted((tuple(map(int, path)) for path in module.TEMPLATES["2.2.2"].split()), key=lambda p: (len(p), p))


def begin(drafter, model, ids=IDS, room=30):
    context = Context(ids=ids[0], prompt_length=ids.shape[1], room=room, warp=Warp())
    drafter.begin(Target(model), context)
    return context


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- parity with the authors' code ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static():
    return np.load(VECTORS / "tree_static.npz")


def test_the_vectors_are_the_ones_that_were_given():
    sums = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in VECTORS.glob("*.npz")}
    assert sums == SUMS


def test_the_template_is_the_authors_tree(static):
    plan = module._Template("2.2.2", torch.device("cpu"))
    template = [[rank for rank in row if rank >= 0] for row in static["template"].tolist()]
    assert template == [list(path) for path in PATHS]
    parent, depth, lineage = plan.topology.on(torch.device("cpu"))
    assert parent.tolist() == static["parent"].tolist()
    assert depth.tolist() == static["depth"].tolist()
    assert lineage.int().tolist() == static["tree_mask"].tolist()
    assert plan.ranks[1:].tolist() == static["cand_rank"][1:].tolist()
    starts = static["level_starts"].tolist()
    assert [(level.start, level.stop) for level in plan.levels] == list(pairwise(starts))


def test_the_template_s_paths_are_the_authors_paths(static):
    topology = module._Template("2.2.2", torch.device("cpu")).topology
    leaves = {tuple(topology.path(node)) for node, below in enumerate(topology.children) if not below}
    assert leaves == {tuple(n for n in row if n >= 0) for row in static["paths"].tolist()}


@pytest.mark.parametrize("name", ["order1_cold", "order2_hot_two_calls"])
def test_rounds_and_matrix_are_the_authors(name):
    data = np.load(VECTORS / f"{name}.npz")
    table, limit = torch.from_numpy(data["logits_table"]), int(data["max_new_tokens"])
    model, drafter = TableLM(table), TokenRecycling(k=int(data["k"]))
    for call in range(int(data["n_calls"])):
        prompt = torch.from_numpy(data[f"prompt{call}"])
        context = begin(drafter, model, prompt[None])
        accepted, committed = [], 0
        while True:
            tree = drafter.propose(context)
            before = tree.tokens[torch.tensor(tree.topology.parent)]
            before[0] = context.ids[-2]
            logits = table[before, tree.tokens]
            verdict = GreedyMatch().verify(tree, TargetProbs(logits, logits.argmax(-1), Warp()), None)
            accepted.append(len(verdict.path))
            context.ids = torch.cat([context.ids, tree.tokens[list(verdict.path[1:])], torch.tensor([verdict.token])])
            committed = sum(accepted) - 1  # the first root is the prompt's
            if committed > limit:
                break  # the authors leave before the update
            drafter.observe(context, tree, logits, verdict.path)
        new = context.ids[len(prompt) :].tolist()
        assert accepted == data[f"accept_len{call}"].tolist()
        assert new[:committed] == data[f"output{call}"].tolist()
        assert new == data[f"greedy{call}"].tolist()[: len(new)]
        assert drafter.matrix.tolist() == data[f"matrix_after{call}"].tolist()


def test_the_loop_gives_the_vectors_greedy_text():
    data = np.load(VECTORS / "order2_hot_two_calls.npz")
    model, drafter = TableLM(torch.from_numpy(data["logits_table"])), TokenRecycling()
    for call in range(2):
        prompt, wanted = torch.from_numpy(data[f"prompt{call}"])[None], data[f"greedy{call}"].tolist()
        out = generate(model, prompt, drafter, max_new_tokens=len(wanted))
        assert out.sequences[0, prompt.shape[1] :].tolist() == wanted


# -- the matrix -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_last_node_of_a_token_wins_and_other_rows_stay(data):
    size, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 14))
    parent = [-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, size))]
    tokens = data.draw(st.lists(st.integers(0, 11), min_size=size, max_size=size))
    topology = Topology(parent)
    path = topology.path(data.draw(st.integers(0, size - 1)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(size, 12, generator=generator) * 2
    drafter = TokenRecycling(k=k, budget=5)
    context = begin(drafter, TableLM.random(order=1))
    drafter.matrix.copy_(torch.randint(0, 12, drafter.matrix.shape, generator=generator))
    wanted, bins = drafter.matrix.clone(), drafter._learned["bins"].clone()
    for node, token in enumerate(tokens):  # the definition: one node after the other
        top = logits[node].topk(min(k, 12))
        wanted[token, : min(k, 12)] = top.indices.int()
        sure = top.values.softmax(-1)
        bins[token, : min(k, 12)] = torch.tensor([1 + sum(edge < p for edge in module._EDGES) for p in sure]).byte()
    drafter.observe(context, TokenTree(tokens=torch.tensor(tokens), topology=topology), logits, path)
    assert torch.equal(drafter.matrix, wanted)
    assert torch.equal(drafter._learned["bins"], bins)


def test_the_drafter_counts_how_often_its_successors_come_true():
    model = TableLM.random(order=1)
    drafter = TokenRecycling(k=3, budget=4)
    context = begin(drafter, model)
    prior = drafter._rates.clone()
    assert torch.equal(prior[:, 0], torch.zeros(3, dtype=torch.float64))
    tree = TokenTree.root_only(torch.tensor(6))
    for _ in range(50):  # token 6's best successor is always confirmed, its others never
        drafter.observe(context, tree, model.table[0, 6][None], [0])
    bins = drafter._learned["bins"][6].tolist()
    assert drafter._rates[0, bins[0]] > 0.9
    for rank in (1, 2):
        assert drafter._rates[rank, bins[rank]] < 0.1 * prior[rank, bins[rank]]
    assert (drafter._learned["came"] <= drafter._learned["tried"]).all()


def test_memory_is_the_table_s_and_never_grows():
    model, drafter = tiny_causal_lm(vocab_size=40), TokenRecycling(k=8)
    held = set()
    for length in (2, 30, 60, 5):
        generate(model, torch.arange(length)[None] % 40, drafter, max_new_tokens=20)
        held.add(sum(t.untyped_storage().nbytes() for t in drafter._learned.values()))
    assert drafter.matrix.untyped_storage().nbytes() == 40 * 8 * 4
    assert held == {40 * 8 * (4 + 1) + 2 * 8 * 9 * 8}  # successors, how sure the target was, and the record


def test_a_first_order_distribution_seen_once_is_drafted_to_the_template_s_depth():
    model, drafter = TableLM.random(order=1), TokenRecycling()
    context = begin(drafter, model)
    visit = TokenTree(tokens=torch.arange(12), topology=Topology.chain(11))
    drafter.observe(context, visit, model.table[0], [0])
    stats = generate(model, IDS, drafter, max_new_tokens=70).stats
    assert stats.tokens_per_forward == 7
    assert stats.acceptance_by_depth == [1.0] * 6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["template", 1, 12]))
def test_greedy_text_is_greedy_whatever_the_table_holds(seed, budget):
    model, drafter = TableLM.random(), TokenRecycling(budget=budget)
    begin(drafter, model)
    generator = torch.Generator().manual_seed(seed)
    drafter.matrix.copy_(torch.randint(0, 12, drafter.matrix.shape, generator=generator))
    drafter._learned["bins"].copy_(torch.randint(0, 9, drafter.matrix.shape, generator=generator))
    wanted = model.generate(IDS, max_new_tokens=30, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(model, IDS, drafter, max_new_tokens=30).sequences, wanted)


def test_hot_is_better_than_cold_and_reading_the_prompt_helps():
    model = TableLM.random()

    def forwards(drafter):
        return generate(model, IDS, drafter, max_new_tokens=40).stats.target_forwards

    drafter = TokenRecycling()
    cold, hot = forwards(drafter), forwards(drafter)
    assert hot < cold
    assert forwards(TokenRecycling(recycle_prompt=True)) <= cold
    drafter.reset()
    assert forwards(drafter) == cold


def test_a_vocabulary_smaller_than_k_is_served():
    model = TableLM.random(size=5)
    ids = torch.tensor([[1, 2, 3]])
    wanted = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    for budget in ("template", 6):
        assert torch.equal(generate(model, ids, TokenRecycling(budget=budget), max_new_tokens=20).sequences, wanted)


# -- trees of chosen size -------------------------------------------------------------------------------------------


def taught(k, budget, seed=0):
    """Return a drafter with a random table and record, its context, and the value of every path of ranks."""
    model, drafter = TableLM.random(order=1), TokenRecycling(k=k, budget=budget)
    context = begin(drafter, model, room=3)
    generator = torch.Generator().manual_seed(seed)
    drafter.matrix.copy_(torch.randint(0, 12, drafter.matrix.shape, generator=generator))
    drafter._learned["bins"].copy_(torch.randint(0, 9, drafter.matrix.shape, generator=generator))
    drafter._learned["came"].mul_(torch.rand(k, 9, generator=generator, dtype=torch.float64))
    return drafter, context


def every_path(drafter, context):
    """Enumerate all paths of up to `room` successors with the estimated chance that they come true."""
    rates, bins, found = drafter._rates, drafter._learned["bins"].long(), []

    def walk(token, value, tokens):
        if len(tokens) == context.room:
            return
        for rank in range(drafter.k):
            here = value * float(rates[rank, bins[token, rank]])
            if here > 0:
                below = [*tokens, int(drafter.matrix[token, rank])]
                found.append((here, below))
                walk(below[-1], here, below)

    walk(int(context.root), 1.0, [])
    return sorted(found, key=lambda entry: -entry[0])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [1, 5, 20])
def test_a_budget_keeps_the_most_promising_paths(budget, seed):
    drafter, context = taught(3, budget, seed)
    tree = drafter.propose(context)
    best = every_path(drafter, context)[:budget]
    assert len(tree) == 1 + budget
    assert tree.tokens[0] == context.root
    assert max(tree.topology.depth) <= context.room
    assert sorted(tree.confidence[1:].tolist()) == pytest.approx(sorted(value for value, _ in best))
    spelled = {tuple(tree.tokens[tree.topology.path(node)[1:]].tolist()) for node in range(1, len(tree))}
    assert spelled == {tuple(tokens) for _, tokens in best}
    parents = torch.tensor(tree.topology.parent[1:])
    assert (tree.confidence[1:] <= tree.confidence[parents]).all()


def test_a_large_budget_is_not_cut_short():
    drafter, context = taught(6, 150)
    assert len(drafter.propose(context)) == min(150, len(every_path(drafter, context))) + 1 > 100


@pytest.mark.parametrize("price", [0.0, 0.01, 0.1, 1.0])
def test_the_automatic_size_maximises_tokens_per_second(monkeypatch, price):
    curve = LatencyCurve((1, 100), (1.0, 1.0 + 99 * price))
    monkeypatch.setattr(module, "latency_curve", lambda target: curve)
    drafter, context = taught(3, "auto", seed=2)
    values = [value for value, _ in every_path(drafter, context) if value > module._NEGLIGIBLE][: module._LARGEST]
    speed = [(1 + sum(values[:n])) / float(curve(1 + n)) for n in range(len(values) + 1)]
    tree = drafter.propose(context)
    assert len(tree) - 1 == int(np.argmax(speed))
    if price == 1.0:
        assert len(tree) == 1  # nothing is worth a second forward's time


def test_a_cold_table_drafts_nothing_where_the_size_is_free():
    drafter = TokenRecycling(budget=10)
    assert len(drafter.propose(begin(drafter, TableLM.random()))) == 1


def test_template_trees_state_the_same_confidence_as_free_ones():
    drafter, context = taught(8, "template", seed=1)
    tree = drafter.propose(context)
    assert tree.tokens[1:].tolist() == [int(spell(drafter.matrix, int(context.root), path)[-1]) for path in PATHS]
    for node, path in enumerate(PATHS, start=1):
        tokens = [int(context.root), *spell(drafter.matrix, int(context.root), path)]
        bins = drafter._learned["bins"].long()
        value = np.prod([float(drafter._rates[r, bins[t, r]]) for t, r in zip(tokens, path, strict=False)])
        assert float(tree.confidence[node]) == pytest.approx(value, rel=1e-4)


def spell(matrix, root, path):
    tokens = [root]
    for rank in path:
        tokens.append(int(matrix[tokens[-1], rank]))
    return tokens[1:]


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hot():
    drafter = TokenRecycling()
    generate(tiny_causal_lm(), IDS, drafter, max_new_tokens=30)
    return drafter


def test_a_saved_table_comes_back(hot, tmp_path):
    path = tmp_path / "deep" / "table.safetensors"
    hot.save(path)
    again = TokenRecycling()
    again.load(path)
    assert again._learned.keys() == hot._learned.keys()
    assert all(torch.equal(again._learned[name], hot._learned[name]) for name in hot._learned)
    assert [p.name for p in path.parent.iterdir()] == ["table.safetensors"]
    model = tiny_causal_lm()
    first, second = (generate(model, IDS, d, max_new_tokens=30).stats.target_forwards for d in (hot, again))
    assert first == second


def test_a_save_that_fails_leaves_the_old_file(hot, tmp_path, monkeypatch):
    path = tmp_path / "table.safetensors"
    hot.save(path)
    before = path.read_bytes()

    def torn(tensors, target, metadata):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        hot.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_store_is_read_at_the_first_request_and_only_then(hot, tmp_path):
    path = tmp_path / "table.safetensors"
    drafter = TokenRecycling(store=str(path))
    begin(drafter, tiny_causal_lm())
    assert not drafter.matrix.any()  # no file yet: cold
    hot.save(path)
    begin(drafter, tiny_causal_lm())
    assert not drafter.matrix.any()  # it has its own table by now
    late = TokenRecycling(store=str(path))
    begin(late, tiny_causal_lm())
    assert torch.equal(late.matrix, hot.matrix)
    late.matrix.zero_()
    late.save()
    assert not load_file(path)["matrix"].any()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_refused_and_not_opened(tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "table.safetensors"
    for write in (pickle.dump, lambda thing, file: torch.save({"matrix": thing}, file)):
        with path.open("wb") as file:
            write(Bomb(sprung), file)
        assert "is not a token-recycling table" in refusal(lambda: TokenRecycling().load(path))
        model = tiny_causal_lm()
        drafter = TokenRecycling(store=str(path))
        assert "delete it to start cold" in refusal(lambda: generate(model, IDS, drafter, max_new_tokens=2))  # noqa: B023
    assert not sprung.exists()


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(hot, tmp_path, left):
    path = tmp_path / "table.safetensors"
    hot.save(path)
    path.write_bytes(path.read_bytes()[:left])
    assert "is not a token-recycling table" in refusal(lambda: TokenRecycling().load(path))


def test_missing_files_folders_and_other_tensors_are_refused(tmp_path):
    drafter = TokenRecycling()
    assert "is not a token-recycling table" in refusal(lambda: drafter.load(tmp_path / "none.safetensors"))
    assert "is not a token-recycling table" in refusal(lambda: drafter.load(tmp_path))
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    assert "other.safetensors is None, expected 'mintage token-recycling table 1'" in refusal(
        lambda: drafter.load(path)
    )
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": module._FORMAT})
    assert "is not a token-recycling table" in refusal(lambda: drafter.load(path))


def test_another_k_or_vocabulary_is_refused(hot, tmp_path):
    path = tmp_path / "table.safetensors"
    hot.save(path)
    assert "keeps k=8 successors, the drafter k=10" in refusal(lambda: TokenRecycling(k=10).load(path))
    drafter, other = TokenRecycling(store=str(path)), tiny_causal_lm(vocab_size=20)
    line = refusal(lambda: generate(other, IDS, drafter, max_new_tokens=2))
    assert "has 12 rows, the model 20 tokens; use one drafter per model, or reset()" in line


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("matrix", lambda t: t.fill_(12)),
        ("matrix", lambda t: t.fill_(-1)),
        ("matrix", lambda t: t.long()),
        ("matrix", lambda t: t[:0]),
        ("matrix", lambda t: t.flatten()),
        ("bins", lambda t: t.fill_(9)),
        ("bins", lambda t: t[:3]),
        ("bins", lambda t: t.float()),
        ("came", lambda t: t.fill_(torch.nan)),
        ("came", lambda t: t.fill_(torch.inf)),
        ("came", lambda t: t - 100),
        ("came", lambda t: t[:, :4]),
        ("tried", lambda t: t.zero_()),
        ("tried", lambda t: t.float()),
    ],
)
def test_values_that_would_lead_outside_the_table_are_refused(hot, tmp_path, name, change):
    path = tmp_path / "table.safetensors"
    hostile = {n: t.clone() for n, t in hot._learned.items()}
    hostile[name] = change(hostile[name]).contiguous()
    save_file(hostile, path, metadata={"format": module._FORMAT})
    drafter = TokenRecycling()
    assert "holds values that no token-recycling table has" in refusal(lambda: drafter.load(path))
    assert not drafter._learned


def test_saving_needs_a_place_and_something_learned(hot, tmp_path):
    assert "nowhere to save the table; pass a path or set store=" in refusal(hot.save)
    line = refusal(lambda: TokenRecycling().save(tmp_path / "table.safetensors"))
    assert "generate something first" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"k": 0}, "k=0 is out of range; pass a number at least 1, e.g. 8"),
        ({"k": 4}, "k=4 is too small for template '2.2.2', which takes successor 7"),
        ({"template": "9.9"}, "template='9.9' is not one of 2.2.2"),
        ({"template": []}, "template=[] is no list of different paths; pass e.g. ['0', '1', '00']"),
        ({"template": ["0", ""]}, "is no list of different paths"),
        ({"template": ["0", "x"]}, "is no list of different paths"),
        ({"template": ["0", "0"]}, "is no list of different paths"),
        ({"template": [(0,), (-1,)]}, "is no list of different paths"),
        ({"template": [0, 1]}, "is no list of different paths"),
        ({"template": [(0,), (1, 0)]}, "template holds (1, 0) but not (1,), under which it hangs; add it"),
        ({"template": [(0,), (8,)]}, "k=8 is too small for template [(0,), (8,)], which takes successor 8"),
        ({"budget": 0}, "budget=0 is out of range; pass a number at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, said):
    with without_shape_checks():
        assert said in refusal(lambda: TokenRecycling(**wrong))


def test_a_small_k_is_enough_for_a_tree_of_chosen_size():
    assert TokenRecycling(k=2, budget=8).k == 2


@pytest.mark.parametrize(
    "template", [["0", "00", "1", "01"], [(0,), (0, 0), (1,), (0, 1)], ((1,), (0,), [0, 1], "00")], ids=str
)
def test_a_template_may_be_a_list_of_paths(template):
    model = TableLM.random(order=1)
    ids = torch.tensor([[1, 2, 3]])
    drafter = TokenRecycling(template=template, k=2)
    wanted = generate(model, ids, TokenRecycling(), max_new_tokens=30).sequences
    for _ in range(2):
        out = generate(model, ids, drafter, max_new_tokens=30)
        assert torch.equal(out.sequences, wanted)
    assert out.stats.tree_nodes / out.stats.rounds > 4  # a root and four nodes, but where the end cuts them

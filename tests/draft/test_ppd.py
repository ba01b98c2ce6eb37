"""PPD: parity with the authors' code, the card's "must hold" laws, artefacts, training on a toy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mintage.bench.draft.guesses import frequency_accuracy
from mintage.draft import PPD, TokenTree, Union, generate
from mintage.draft import ppd as module
from mintage.draft.contract import Context
from mintage.draft.core import prompt_tokens
from mintage.draft.core.continuations import Continuation, continuations
from mintage.draft.core.guessing import guess_accuracy, guess_logits, text_initialised
from mintage.draft.core.latency import LatencyCurve
from mintage.draft.core.prompt_tokens import PromptTokens
from mintage.draft.core.prompt_tree import best_paths, build_tree_buffers, choose_limit, optimise_dynamic_tree
from mintage.draft.core.target import Target
from mintage.draft.core.tree import Topology
from mintage.draft.core.verify import GreedyMatch, TargetProbs
from mintage.draft.core.warp import Warp
from mintage.draft.training.ppd import PPDTraining
from mintage.draft.training.prompt_tokens import PromptTokenRecipe, distill_loss
from mintage.errors import UserError
from mintage.models import TINY_VOCABULARY, CausalLM, load_causal_lm, tiny_causal_lm
from mintage.testing.toys import TableLM
from mintage.train import Settings, train
from mintage.weights import Artefact

VECTORS = Path(__file__).parent.parent / "vectors" / "ppd"
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def vectors(name):
    return dict(np.load(VECTORS / f"{name}.npz"))


def rank_paths(rows):
    return [tuple(int(rank) for rank in row if rank != -9) for row in rows]


def random_accuracies(seed, distances=3, ranks=10, miss=0.3):
    shares = np.random.default_rng(seed).dirichlet(np.full(ranks + 1, 0.5), size=distances)
    return -np.sort(-shares[:, :ranks], axis=1) * (1 - miss)


def random_tokens(seed=0, distances=3, copies=1, **settings):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(distances, copies, 32, generator=generator)
    return PromptTokens(embeddings, vocabulary=TINY_VOCABULARY, **settings)


# -- parity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distances", [2, 3])
def test_tree_buffers_are_the_authors(distances):
    given = vectors(f"tree_buffers_S{distances}")
    paths, values = best_paths(given["accuracies_f64"], int(given["n_candidates"]))
    assert paths == rank_paths(given["paths"])
    np.testing.assert_allclose(values, given["path_acc_f64"], atol=1e-4)
    buffers = build_tree_buffers(paths, given["n_special"].tolist(), distances)
    for name in ("tree_mask", "position_ids", "tree_indices", "normal_token_indices", "retrieve_indices"):
        np.testing.assert_array_equal(getattr(buffers, name), given[name], err_msg=name)
    np.testing.assert_array_equal(buffers.special_token_indices[:, 0], given["special_token_indices"])


@pytest.mark.parametrize("distances", [2, 3])
def test_verification_accepts_what_the_authors_accept(distances):
    given = vectors(f"tree_buffers_S{distances}")
    buffers = build_tree_buffers(rank_paths(given["paths"]), given["n_special"].tolist(), distances)
    normal = buffers.normal_token_indices.tolist()
    tokens = torch.full((len(buffers.topology),), -1)
    tokens[normal] = torch.tensor(given["node_tokens"])
    logits = torch.zeros(len(tokens), given["node_logits"].shape[1])
    logits[normal] = torch.tensor(given["node_logits"])
    tree = TokenTree(tokens=tokens, topology=buffers.topology)
    verdict = GreedyMatch().verify(tree, TargetProbs(logits, logits.argmax(-1), Warp()), None)
    path = [normal.index(position) for position in verdict.path]
    assert len(path) - 1 == int(given["accept_length"])
    # made-up siblings may carry equal tokens: among paths of equal tokens the authors take the first row
    said = given["node_tokens"][path].tolist()
    rows = [given["node_tokens"][row[: len(path)]].tolist() for row in buffers.retrieve_indices.numpy()]
    assert rows.index(said) == int(given["best_candidate"])


@pytest.mark.parametrize("limit", vectors("dynamic_tree")["limits"].tolist())
def test_dynamic_tree_is_the_authors(limit):
    given = vectors("dynamic_tree")
    tree = optimise_dynamic_tree(given["accuracies_f64"], limit, empty_step=True)
    assert tree.tau == pytest.approx(float(given[f"expected_tau{limit}_f64"]), abs=1e-3)
    for state, mine in tree.states.items():
        prefix = f"L{limit}_state{state}"
        assert list(mine.paths) == rank_paths(given[f"{prefix}_paths"])
        np.testing.assert_allclose(mine.probability, given[f"{prefix}_prob_f64"], atol=1e-5)
        np.testing.assert_array_equal(mine.n_special, given[f"{prefix}_n_special"])


def test_loss_is_the_authors():
    given = vectors("kd_loss")
    loss = distill_loss(torch.tensor(given["student_logits"]), torch.tensor(given["teacher_logits"]))
    assert loss.item() == pytest.approx(float(given["loss_f64"]), abs=1e-5)


# -- the loss ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(-5, 5))
@settings(max_examples=30, deadline=None)
def test_loss_is_zero_iff_student_is_teacher(seed, shift):
    generator = torch.Generator().manual_seed(seed)
    teacher, other = torch.randn(2, 2, 3, 7, generator=generator, dtype=torch.float64)
    assert distill_loss(teacher + shift, teacher).item() == pytest.approx(0, abs=1e-12)
    assert distill_loss(other, teacher).item() > 1e-6


# -- the tree ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 40), st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_dynamic_trees_keep_their_laws(seed, distances, limit, copies):
    limit = max(limit, 1 + copies)
    accuracies = random_accuracies(seed, distances)
    tree = optimise_dynamic_tree(accuracies, limit, copies=copies)
    assert sorted(tree.states) == list(range(1, distances + 1))
    for state, mine in tree.states.items():
        assert len(set(mine.paths)) == len(mine.paths) >= 1
        assert all(len(path) <= state and (len(path) == 1 or path[:-1] in mine.paths) for path in mine.paths)
        assert all(1 <= s <= distances for s in mine.n_special)
        assert copies * sum(mine.n_special) <= limit - len(mine.paths)
        products = [np.prod([accuracies[d, r] for d, r in enumerate(path)]) for path in mine.paths]
        assert mine.value == pytest.approx(sum(products))
        nothing = 1 - accuracies[0, [path[0] for path in mine.paths if len(path) == 1]].sum()
        assert sum(mine.probability) + nothing == pytest.approx(1)
        depths = [len(path) for path in mine.paths]
        assert np.dot(mine.probability, depths) == pytest.approx(mine.value)
        buffers = build_tree_buffers(mine.paths, mine.n_special, distances, copies=copies)
        assert len(buffers.topology) <= 1 + copies * distances + limit
    assert optimise_dynamic_tree(accuracies, limit, copies=copies, empty_step=True).tau <= tree.tau + 1e-9


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_value_grows_with_state_and_size(seed):
    accuracies = random_accuracies(seed)
    values = np.array([np.cumsum(best_paths(accuracies[:m], 30)[1])[:10] for m in (1, 2, 3)])
    assert (np.diff(values, axis=0) >= -1e-12).all()
    assert (np.diff(values, axis=1) >= 0).all()


def test_tau_is_what_the_rounds_would_accept():
    """A simulation of the rounds agrees with ours (0.91), not with the authors' count of empty steps (0.72)."""
    accuracies = vectors("dynamic_tree")["accuracies_f64"]
    tree = optimise_dynamic_tree(accuracies, 26)
    random = np.random.default_rng(0)
    state, accepted, rounds = 3, 0, 40_000
    right = [random.choice(11, size=rounds, p=[*shares, 1 - shares.sum()]) for shares in accuracies]
    for ranks in zip(*right, strict=True):
        mine, path = tree.states[state], ()
        while (longer := (*path, ranks[len(path)])) in mine.paths:
            path = longer
            if len(path) == 3:
                break
        accepted += len(path)
        state = mine.n_special[mine.paths.index(path)] if path else 3
    assert accepted / rounds == pytest.approx(tree.tau, abs=0.02)
    assert tree.tau == pytest.approx(0.910, abs=1e-3)


def test_limit_follows_the_hardware():
    accuracies = random_accuracies(1)
    flat = LatencyCurve((1, 100), (1.0, 1.0001))
    gentle = LatencyCurve((1, 8, 100), (1.0, 1.1, 4.0))
    steep = LatencyCurve((1, 100), (1.0, 100.0))
    chosen = [choose_limit(accuracies, curve, limits=(2, 8, 16, 30)) for curve in (flat, gentle, steep)]
    assert chosen[0] == 30 > chosen[1] > chosen[2] == 0


def test_on_flat_hardware_the_limit_grows_to_the_papers_largest_trees():
    accuracies = random_accuracies(1)
    assert choose_limit(accuracies, LatencyCurve((1, 100), (1.0, 1.0001))) == 285
    middle = choose_limit(accuracies, LatencyCurve((1, 101), (1.0, 1.04)))
    assert 64 < middle < 285


@pytest.mark.parametrize(
    ("paths", "special", "message"),
    [
        ([(0, 0)], [1], "the tree holds (0, 0) but not (0,)"),
        ([(0,)], [0], "node (0,) with 0 prompt tokens does not fit S=2 and 10 ranks"),
        ([(11,)], [1], "node (11,) with 1 prompt tokens does not fit"),
    ],
)
def test_bad_trees_are_refused(paths, special, message):
    with pytest.raises(UserError) as error:
        build_tree_buffers(paths, special, 2)
    assert str(error.value).startswith(message)


def test_bad_accuracies_and_limits_are_refused():
    for accuracies, limit, message in (
        (random_accuracies(0), 1, "limit=1 leaves no room"),
        (random_accuracies(0) * 2, 20, "accuracies must be"),
    ):
        with pytest.raises(UserError, match=message):
            optimise_dynamic_tree(accuracies, limit)
    with pytest.raises(UserError, match="limit=1 is out of range; pass a number at least 2"):
        PPD(limit=1)


# -- masks ---------------------------------------------------------------------------------------------------------


def proposed(model, drafter, state=3):
    """A tree of a state whose guesses are made up."""
    context = Context(ids=PROMPT[0], prompt_length=8, room=20, warp=Warp())
    drafter.begin(Target(model), context)
    context.memory[drafter].guesses = torch.stack([torch.randperm(12)[:10] for _ in range(state)])
    return drafter.propose(context)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("make", [tiny_causal_lm, lambda: tiny_causal_lm(attn_implementation="eager"), TableLM.random])
@torch.no_grad()
def test_ordinary_tokens_never_see_prompt_tokens(make, copies):
    model = make()
    target = Target(model)
    tree = proposed(model, PPD(prompt_tokens=random_tokens(copies=copies), limit=30))
    ordinary = (tree.tokens >= 0).nonzero().squeeze(-1).tolist()
    assert 0 < len(ordinary) < len(tree)
    scores = []
    for part in (tree, tree.keep(ordinary)):
        cache = target.new_cache(1, 64)
        target.prefill(PROMPT[:, :-1], [7], cache)
        scores.append(target.score([part], cache)[0])
    torch.testing.assert_close(scores[0][ordinary], scores[1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_toy_notices_a_leak():
    """The law above has teeth: hang an ordinary node under a prompt token, and the toy's logits change."""
    model = TableLM.random()
    target, embeddings = Target(model), torch.randn(1, 32)
    said = []
    for parent, tokens in (((-1, 0, 1), [6, -1, 4]), ((-1, 0, 0), [6, -1, 4])):
        cache = target.new_cache(1, 64)
        target.prefill(PROMPT[:, :-1], [7], cache)
        tree = TokenTree(tokens=torch.tensor(tokens), topology=Topology(parent), embeddings=embeddings)
        said.append(target.score([tree], cache)[0])
    assert torch.equal(said[0][0], said[1][0])
    assert (said[0][1] == 0).all()
    assert (said[0][2] - said[1][2]).abs().max() > 0.1


# -- drafting ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 2), st.integers(4, 40))
@settings(max_examples=12, deadline=None)
def test_greedy_output_is_plain_whatever_the_embeddings(seed, distances, copies, limit):
    model = tiny_causal_lm(seed=seed % 3)
    tokens = random_tokens(seed, distances, copies, accuracies=torch.tensor(random_accuracies(seed, distances)))
    got = generate(model, PROMPT, PPD(prompt_tokens=tokens, limit=limit), max_new_tokens=24).sequences
    assert torch.equal(got, model.generate(PROMPT, max_new_tokens=24, do_sample=False, pad_token_id=0))


def test_first_round_only_asks():
    model = tiny_causal_lm()
    drafter = PPD.tiny()
    context = Context(ids=PROMPT[0], prompt_length=8, room=9, warp=Warp())
    drafter.begin(Target(model), context)
    tree = drafter.propose(context)
    assert tree.tokens.tolist() == [6, -1, -1, -1]
    assert tree.topology.parent == (-1, 0, 1, 2)
    assert torch.equal(tree.embeddings, drafter.tokens.embeddings.detach()[:, 0])
    logits = torch.randn(4, 12)
    drafter.observe(context, tree, logits, [0])
    assert torch.equal(context.memory[drafter].guesses, logits[1:].topk(10).indices)
    short = tree.cut(1)
    drafter.observe(context, short, logits[:2], [0])
    assert len(context.memory[drafter].guesses) == 1
    drafter.observe(context, tree.cut(0), logits[:1], [0])
    assert drafter.propose(context).tokens.tolist() == [6, -1, -1, -1]


def test_guesses_fill_the_tree_by_rank():
    tree = proposed(TableLM.random(), drafter := PPD.tiny(), state=2)
    plan = optimise_dynamic_tree(drafter.tokens.accuracies.numpy(), 24).states[2]
    real = (tree.tokens >= 0).nonzero().squeeze(-1).tolist()
    assert len(real) == 1 + len(plan.paths)
    assert len(tree.embeddings) == 3 + sum(plan.n_special) == len(tree) - len(real)


def test_where_no_tree_pays_it_decodes_plainly(monkeypatch):
    monkeypatch.setattr(module, "latency_curve", lambda target: LatencyCurve((1, 100), (1.0, 100.0)))
    stats = generate(tiny_causal_lm(), PROMPT, PPD(prompt_tokens=random_tokens()), max_new_tokens=9).stats
    assert stats.rounds == stats.tree_nodes == 9


def test_statistics_do_not_count_prompt_tokens_as_offers():
    stats = generate(tiny_causal_lm(), PROMPT, PPD.tiny(), max_new_tokens=20).stats
    assert stats.offered[0] == stats.rounds - 2  # the first round only asks, the last one has no room
    assert len(stats.offered) <= 3


def test_union_is_refused_in_one_line():
    with pytest.raises(UserError, match="PPD does not state its nodes' confidence"):
        generate(tiny_causal_lm(), PROMPT, Union(drafters=(PPD.tiny(),), budget=8), max_new_tokens=4)


# -- artefacts -----------------------------------------------------------------------------------------------------


def test_artefact_survives_the_file(tmp_path):
    tokens = random_tokens(model="toy", architecture="llama, 2 layers", notes={"command": "make"})
    tokens.save(tmp_path / "a.safetensors")
    again = PromptTokens.load(tmp_path / "a.safetensors")
    assert torch.equal(again.embeddings, tokens.embeddings)
    assert torch.equal(again.accuracies, tokens.accuracies)
    assert (again.model, again.architecture, again.notes) == ("toy", "llama, 2 layers", {"command": "make"})
    drafter = PPD(prompt_tokens=str(tmp_path / "a.safetensors"), limit=12)
    assert generate(tiny_causal_lm(), PROMPT, drafter, max_new_tokens=5).sequences.shape == (1, 13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 16}, "width 32, vocabulary 12), this model has llama, 2 layers, width 32, vocabulary 16"),
        ({"num_hidden_layers": 1}, "this model has llama, 1 layers, width 32, vocabulary 12; train its own"),
        ({"hidden_size": 64}, "this model has llama, 2 layers, width 64, vocabulary 12"),
    ],
)
def test_another_model_is_refused_in_one_line(settings, message):
    tokens = random_tokens(model="toy", architecture="llama, 2 layers")
    with pytest.raises(UserError) as error:
        generate(tiny_causal_lm(**settings), PROMPT, PPD(prompt_tokens=tokens, limit=8), max_new_tokens=4)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["absent", "text", "pickle", "foreign", "version", "shape", "sizes"])
def test_damaged_artefacts_are_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    if damage == "text":
        path.write_text("nothing")
    elif damage == "pickle":
        torch.save({"embeddings": torch.zeros(3, 1, 32)}, path)
    elif damage == "foreign":
        save_file({"a": torch.zeros(2)}, path)
    elif damage == "version":
        save_file({"a": torch.zeros(2)}, path, metadata={"format": "mintage ppd prompt tokens 1"})
    elif damage == "shape":
        tensors = {"embeddings": torch.zeros(3, 1, 32), "accuracies": torch.zeros(2, 10)}
        Artefact(tensors, {"model": "", "architecture": "", "vocabulary": 12}).save(path, prompt_tokens._FORMAT)
    elif damage == "sizes":
        tensors = {"embeddings": torch.zeros(3, 1, 32), "accuracies": torch.zeros(3, 10)}
        Artefact(tensors, {"model": "", "width": 32}).save(path, prompt_tokens._FORMAT)
    with pytest.raises(UserError) as error:
        PPD(prompt_tokens=str(path)).tokens  # noqa: B018
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="accuracies have shape"):
        random_tokens(accuracies=torch.zeros(2, 10))
    with pytest.raises(UserError, match="accuracies have shape"):
        random_tokens(accuracies=torch.zeros(3, 13))


# -- training ------------------------------------------------------------------------------------------------------


def own_texts(model, count=12, new=20):
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 12, (count, 5), generator=generator)
    settings = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompts)}
    return [Continuation(tuple(row), 5) for row in model.generate(prompts, max_new_tokens=new, **settings).tolist()]


def test_training_sees_what_drafting_sees():
    """Logits at prompt tokens after a cut, all cuts in one forward, are those of a draft tree at that place."""
    for model in (tiny_causal_lm(), tiny_causal_lm(attn_implementation="eager")):
        target, tokens = Target(model), random_tokens(copies=2)
        ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 0, 0, 0]])
        cuts = torch.tensor([[3, 8], [2, 5]])
        with torch.no_grad():
            guesses, own = guess_logits(target, ids, cuts, tokens())
            for row in range(2):
                for column, cut in enumerate(cuts[row].tolist()):
                    cache = target.new_cache(1, 32)
                    target.prefill(ids[row : row + 1, : cut - 1], [cut - 1], cache)
                    plan = module._Plan(None, tokens, torch.device("cpu"))
                    tree = plan.fill(ids[row, cut - 1], torch.zeros(0, 10, dtype=torch.long))
                    logits = target.score([tree], cache)[0]
                    drafter = PPD(prompt_tokens=tokens, limit=8)
                    context = Context(ids=ids[row, :cut], prompt_length=1, room=9, warp=Warp())
                    drafter.begin(target, context)
                    drafter.observe(context, tree, logits, [0])
                    torch.testing.assert_close(own[row, cut - 1], logits[0], atol=1e-4, rtol=1e-4)
                    best = guesses[row, column].topk(10).indices
                    assert torch.equal(context.memory[drafter].guesses, best)


def test_training_teaches_and_leaves_the_model_alone(tmp_path):
    model = tiny_causal_lm().requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    tokens, texts = random_tokens(), own_texts(model)
    assert sum(p.numel() for p in tokens.parameters()) == 3 * 1 * 32
    recipe = PromptTokenRecipe(Target(model), tokens, texts, batch_texts=3, batch_cuts=8)
    untrained = guess_accuracy(Target(model), tokens, texts)
    first = recipe.loss(tokens, recipe.batch(0))[0].item()
    train(recipe, tmp_path, Settings(steps=60, lr=3e-2, clip=0.0), device="cpu")
    assert recipe.loss(tokens, recipe.batch(0))[0].item() < 0.9 * first
    trained = guess_accuracy(Target(model), tokens, texts)
    assert trained[0, 0] > untrained[0, 0]
    assert (trained.sum(1) <= 1).all()
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_teacher_is_the_model_after_its_own_tokens():
    model = tiny_causal_lm()
    text = own_texts(model, count=1)[0]
    ids = torch.tensor([text.ids])
    with torch.no_grad():
        own = guess_logits(Target(model), ids, torch.tensor([[9]]), random_tokens()())[1]
        for i in (1, 2, 3):  # after y1 .. yi
            alone = model(ids[:, : 9 + i]).logits[0, -1]
            torch.testing.assert_close(own[0, 9 + i - 1], alone, atol=1e-4, rtol=1e-4)


def test_batches_are_functions_of_their_index():
    model = tiny_causal_lm()
    texts = own_texts(model)
    one, other = (PromptTokenRecipe(Target(model), random_tokens(), texts) for _ in range(2))
    for index in (5, 0, 17):
        for mine, its in zip(one.batch(index), other.batch(index), strict=True):
            assert torch.equal(mine, its)
    ids, cuts = one.batch(3)
    assert ids.shape[0] == 2
    assert ((cuts >= 5) & (cuts <= 25 - 3)).all()


EMBEDDINGS_SUM, ACCURACIES = 6.381743497215211, [0.8333333333333333, 0.8333333333333334, 0.8888888888888888]


def toy_lm():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate("abcdefghijk?")}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return CausalLM(tiny_causal_lm(), PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?"), "toy")


class Killed(Exception):
    pass


@pytest.fixture
def toy_training(tmp_path):
    """A training on prompts of letters, to which settings may be added."""
    lm, letters = toy_lm(), "abcdefghijk"
    lm.model.save_pretrained(tmp_path / "toy")
    lm.tokenizer.save_pretrained(tmp_path / "toy")

    def make(prompts=20, backwards=False, **settings):
        texts = [" ".join(letters[(i * k + i) % 11] for k in range(4)) for i in range(prompts)]
        path = tmp_path / f"prompts{prompts}{backwards}.jsonl"
        rows = [{"prompt": text} for text in (texts[::-1] if backwards else texts)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"new_tokens": 12, "steps": 30, "batch_cuts": 4, "dtype": "float32"}
        return PPDTraining(model=str(tmp_path / "toy"), prompts=str(path), **given | settings)

    return make


def test_a_killed_training_goes_on_to_the_same_artefact(toy_training, tmp_path):
    whole = toy_training().run(tmp_path / "whole.st", tmp_path / "one", command="mintage train ppd")

    def kill(stage, done, of):
        if stage == "train" and done == 25:
            raise Killed

    with pytest.raises(Killed):
        toy_training().run(tmp_path / "parts.st", tmp_path / "two", progress=kill)
    assert not (tmp_path / "parts.st").exists()
    stages = []
    progress = lambda stage, done, of: stages.append((stage, done))  # noqa: E731
    parts = toy_training().run(tmp_path / "parts.st", tmp_path / "two", progress=progress)
    assert ("continue", 0) not in stages
    assert min(done for stage, done in stages if stage == "train") == 21
    assert torch.equal(whole.embeddings, parts.embeddings)
    loaded = PromptTokens.load(tmp_path / "whole.st")
    assert torch.equal(loaded.accuracies, whole.accuracies)
    assert loaded.architecture == "llama, 2 layers"
    assert json.loads(loaded.notes["last"])["step"] == 30
    assert loaded.notes["command"] == "mintage train ppd"
    assert json.loads(loaded.notes["settings"])["lr"] == 0.01


def test_a_folder_of_another_training_is_refused(toy_training, tmp_path):
    toy_training(steps=1).run(tmp_path / "x.st", tmp_path / "work")
    with pytest.raises(UserError, match="holds a run with steps=1, not 2"):
        toy_training(steps=2).run(tmp_path / "x.st", tmp_path / "work")
    with pytest.raises(UserError, match="holds a run with prompts="):
        toy_training(steps=1, backwards=True).run(tmp_path / "x.st", tmp_path / "work")
    lm, store = toy_lm(), tmp_path / "work" / "continuations.jsonl"
    with pytest.raises(UserError, match="other prompts"):
        continuations(lm, ["a b"], new_tokens=12, store=store)


def test_weights_are_those_of_before(toy_training, tmp_path):
    """The numbers are those of the old functions, to the bit; other machines round differently."""
    tokens = toy_training().run(tmp_path / "x.st", tmp_path / "work")
    assert tokens.embeddings.double().sum().item() == pytest.approx(EMBEDDINGS_SUM, rel=1e-4)
    assert tokens.accuracies.sum(1).tolist() == pytest.approx(ACCURACIES, abs=1e-3)


def test_bad_training_input_is_refused_in_one_line(toy_training, tmp_path):
    with pytest.raises(UserError, match="3 prompts are too few; pass at least 10, better 240"):
        toy_training(prompts=3).run(tmp_path / "x.st", tmp_path / "work")
    with pytest.raises(UserError, match="no continuation is longer than 3"):
        PromptTokenRecipe(Target(tiny_causal_lm()), random_tokens(), [Continuation((1, 2, 3), 2)])
    for name, value in {"steps": 0, "lr": 0.0, "count": 0, "batch_cuts": 0, "copies": 0, "distances": -1}.items():
        with pytest.raises(UserError, match=f"{name}=.* is out of range"):
            toy_training(**{name: value})


def test_words_start_the_prompt_tokens():
    lm = toy_lm()
    one, three = text_initialised(lm), text_initialised(lm, distances=2, copies=3)
    assert one.embeddings.shape == (3, 1, 32)
    assert three.embeddings.shape == (2, 3, 32)


def test_frequency_baseline_by_hand():
    known = [Continuation((1, 2, 3, 1, 2, 4, 1, 2, 3), 1)]
    text = [Continuation((5, 1, 2, 3), 2)]  # one cut: after 5 1, at distance 2 comes 3
    hits = frequency_accuracy(known, text, distances=1, ranks=2)
    assert hits.tolist() == [[1.0, 0.0]]  # two after a 1 came 3, 4, 3


# -- the shipped artefact ------------------------------------------------------------------------------------------


def test_shipped_artefact_says_what_it_is():
    tokens = PromptTokens.load("smollm2")
    assert (tokens.distances, tokens.copies, tokens.width, tokens.vocabulary) == (3, 1, 576, 49152)
    assert tokens.model == "smollm2"
    assert tokens.accuracies[:, 0].min() > 0.01
    assert "mintage train ppd" in tokens.notes["command"]


@pytest.mark.e2e
def test_shipped_artefact_drafts_for_smollm2():
    lm = load_causal_lm("smollm2", dtype="float32")
    ids = lm.encode("How do I boil an egg?")
    out = generate(lm.model, ids, PPD(prompt_tokens="smollm2", limit=16), max_new_tokens=48)
    wanted = generate(lm.model, ids, PPD(prompt_tokens="smollm2", limit=2), max_new_tokens=48)
    plain = lm.model.generate(ids, max_new_tokens=48, do_sample=False)
    assert torch.equal(out.sequences, plain)
    assert torch.equal(wanted.sequences, plain)
    assert out.stats.tokens_per_forward > 1.15

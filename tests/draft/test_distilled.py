"""The distilled drafter: head, file, answers, loss, training on a toy, and what drafters make of probability 0."""

import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mintage.data import read_prompts
from mintage.draft import RSD, Chain, DySpec, SpecInfer, SpecTr, generate
from mintage.draft.core.agreement import drafter_accuracy, step_cost
from mintage.draft.core.answers import Answers, answer, write_answers
from mintage.draft.core.distilled import (
    DistilledDrafter,
    cut_drafter,
    describe_shapes,
    load_draft_model,
    load_drafter,
    shipped_drafter,
)
from mintage.draft.core.divergence import divergence
from mintage.draft.core.target import Target
from mintage.draft.training.distillation import DrafterRecipe
from mintage.draft.training.distilled import DrafterTraining
from mintage.errors import UserError
from mintage.models import TINY_VOCABULARY, CausalLM, load_causal_lm, tiny_causal_lm
from mintage.train import Settings, train

PROMPTS = [f"{word} {number}" for number in range(9) for word in ("count", "say", "ask", "tell", "write")]


@pytest.fixture(scope="module")
def tiny(save_tiny_model, tmp_path_factory):
    """A target of four blocks with a chat template, float32."""
    folder = save_tiny_model(tmp_path_factory.mktemp("target"), num_hidden_layers=4, initializer_range=0.1)
    return load_causal_lm(folder, dtype="float32")


@pytest.fixture(scope="module")
def answered(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    return folder, write_answers(tiny, PROMPTS, folder, new_tokens=12)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def known_tokens(lm, count=40):
    return torch.arange(3, 3 + count)


# -- the model -----------------------------------------------------------------------------------------------------


def test_embeddings_are_shared_and_blocks_are_not(tiny):
    drafter = cut_drafter(tiny.model, [0, -1], known_tokens(tiny))
    assert drafter.get_input_embeddings().weight is tiny.model.get_input_embeddings().weight
    assert drafter.lm_head.weight is tiny.model.get_output_embeddings().weight
    first, last = tiny.model.model.layers[0], tiny.model.model.layers[-1]
    for copied, own in zip(drafter.model.layers, (first, last), strict=True):
        assert torch.equal(copied.mlp.up_proj.weight, own.mlp.up_proj.weight)
        assert copied.mlp.up_proj.weight.data_ptr() != own.mlp.up_proj.weight.data_ptr()
    assert [block.self_attn.layer_idx for block in drafter.model.layers] == [0, 1]
    assert len(tiny.model.model.layers) == 4
    assert tiny.model.config.num_hidden_layers == 4


def test_a_drafter_of_all_blocks_is_the_target_on_the_tokens_it_knows(tiny):
    tokens = torch.tensor([7, 100, 3, 250])
    drafter = cut_drafter(tiny.model, range(4), tokens)
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, own = drafter(ids).logits, tiny.model(ids).logits
    assert torch.allclose(mine[..., tokens], own[..., tokens], atol=1e-5)
    rest = torch.ones(own.shape[-1], dtype=torch.bool).index_fill(0, tokens, False)
    assert (mine[..., rest] == -torch.inf).all()


@pytest.mark.parametrize("layers", [[], [4], [0, -5]])
def test_blocks_that_the_target_lacks_are_refused(tiny, layers):
    with pytest.raises(UserError, match="4 blocks"):
        cut_drafter(tiny.model, layers, known_tokens(tiny))


@pytest.mark.parametrize("tokens", [[], [1, 1], [-1], [100_000]])
def test_a_head_of_impossible_tokens_is_refused(tiny, tokens):
    with pytest.raises(UserError, match="different ids"):
        cut_drafter(tiny.model, [0], torch.tensor(tokens, dtype=torch.long))


def test_other_architectures_are_refused_in_one_line(tiny):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    lm = CausalLM(model, tiny.tokenizer, "a GPT-2")
    for attempt in (lambda: cut_drafter(model, [0], torch.tensor([1])), lambda: load_drafter(lm)):
        with pytest.raises(UserError, match="GPT2LMHeadModel; supported: llama") as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral"])
def test_other_llama_style_models_can_be_cut(kind):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    drafter = cut_drafter(model, [0, 2], torch.arange(2, 20))
    ids = torch.tensor([[3, 5, 7, 9]])
    plain = generate(model, ids, Chain(draft_model=drafter, length=3), max_new_tokens=12).sequences
    assert torch.equal(plain, model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0))


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny, tmp_path):
    drafter = cut_drafter(tiny.model, [1, 2], known_tokens(tiny))
    with torch.no_grad():
        drafter.model.norm.weight.mul_(1.5)
    path = tmp_path / "drafter.safetensors"
    DistilledDrafter(drafter, tiny).save(path, {"command": "mintage train drafter"})
    return drafter, path


def test_a_drafter_comes_back_from_its_file(tiny, saved):
    drafter, path = saved
    again = load_drafter(tiny, path)
    assert again.get_input_embeddings().weight is tiny.model.get_input_embeddings().weight
    ids = torch.tensor([[4, 8, 15, 16]])
    with torch.no_grad():
        a, b = drafter(ids).logits, again(ids).logits
    known = a.isfinite()
    assert torch.equal(known, b.isfinite())
    assert torch.allclose(a[known], b[known], rtol=0.05, atol=0.05)  # kept in bfloat16
    assert not any("embed" in name or "lm_head" in name for name in load_file(path))


def rewrite(path, change=lambda tensors: None, **metadata):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        kept = dict(file.metadata())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={**kept, **metadata})


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param({"format": "mintage drafter 99"}, id="another format"),
        pytest.param({"sizes": '{"target": "x", "shapes": "llama, 99 layers"}'}, id="another model"),
        pytest.param({"change": drop("norm.weight")}, id="no norm"),
        pytest.param({"change": drop("tokens")}, id="no tokens"),
        pytest.param({"change": drop("layers.1.mlp.up_proj.weight")}, id="a weight missing"),
        pytest.param({"change": put("tokens", torch.tensor([5, 5], dtype=torch.int32))}, id="a token twice"),
        pytest.param({"change": put("tokens", torch.tensor([10**6], dtype=torch.int32))}, id="a token out of range"),
        pytest.param({"change": put("tokens", torch.tensor([[5]], dtype=torch.int32))}, id="tokens in a table"),
        pytest.param({"change": put("tokens", torch.tensor([5.0]))}, id="tokens that are no integers"),
        pytest.param({"change": put("norm.weight", torch.full((32,), torch.nan))}, id="not a number"),
        pytest.param({"change": put("layers.1000000.mlp.up_proj.weight", torch.zeros(1))}, id="a layer too many"),
        pytest.param({"change": put("model.embed_tokens.weight", torch.zeros(1))}, id="an unknown weight"),
    ],
)
def test_a_harmed_file_is_refused_in_one_line(tiny, saved, harm):
    _, path = saved
    rewrite(path, **harm)
    with pytest.raises(UserError) as caught:
        load_drafter(tiny, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", b"\xff" * 64, "torn"])
def test_what_is_no_safetensors_file_is_refused_in_one_line(tiny, saved, content):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-100] if content == "torn" else content)
    with pytest.raises(UserError, match="cannot read") as caught:
        load_drafter(tiny, path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_what_makes_it(tiny, tmp_path):
    with pytest.raises(UserError, match="mintage train drafter --out"):
        load_drafter(tiny, tmp_path / "none.safetensors")


def test_what_ships_is_called_after_its_model():
    assert shipped_drafter().name == "drafter-smollm2.safetensors"


def test_draft_model_specs(tiny, saved, tmp_path):
    _, path = saved
    assert load_draft_model(str(path), tiny).model.config.num_hidden_layers == 2
    assert load_draft_model(None, tiny).label == "4-bit-rounded copy"  # nothing ships for this target
    assert load_draft_model("rounded", tiny).label == "4-bit-rounded copy"
    assert load_draft_model("rounded:8", tiny).label == "8-bit-rounded copy"
    assert load_draft_model(tiny.name, tiny).label == tiny.name
    with pytest.raises(UserError, match="rounded:BITS"):
        load_draft_model("rounded:few", tiny)
    with pytest.raises(UserError, match=r"outside 2\.\.8"):
        load_draft_model("rounded:9", tiny)


def test_the_shipped_drafter_is_refused_by_a_model_it_was_not_made_for(tiny):
    with pytest.raises(UserError, match=r"drafts for smollm2 \(llama, 30 layers.*mintage train drafter") as caught:
        load_drafter(tiny)
    assert describe_shapes(tiny.model) in str(caught.value)


# -- answers -------------------------------------------------------------------------------------------------------


def test_answers_are_what_the_target_would_say_and_think(tiny):
    prompts = [tiny.encode(text)[0].tolist() for text in ("hi", "a longer prompt", "mid one")]
    got = answer(tiny, prompts, new_tokens=10, generator=torch.Generator().manual_seed(0))
    rows = got["ids"].long().split(got["length"].tolist())
    hidden = got["hidden"].split((got["length"] - got["given"]).tolist())
    totals = got["log_total"].split((got["length"] - got["given"]).tolist())
    assert got["sampled"].tolist() == [False] * 3 + [True] * 3
    for row, ids in enumerate(rows):
        start = int(got["given"][row])
        assert ids[:start].tolist() == prompts[row % 3]
        with torch.no_grad():
            out = tiny.model(ids[None], output_hidden_states=True)
        assert torch.allclose(hidden[row], out.hidden_states[-1][0, start - 1 : -1], atol=1e-4)
        assert torch.allclose(totals[row], out.logits[0, start - 1 : -1].logsumexp(-1), atol=1e-4)
        if row < 3:
            assert ids[start:].tolist() == out.logits[0, start - 1 : -1].argmax(-1).tolist()


def test_rows_that_end_early_leave_the_others_as_they_were(tiny, monkeypatch):
    prompts = [tiny.encode(text)[0].tolist() for text in ("hi", "a longer prompt", "mid one", "x")]
    whole = answer(tiny, prompts, new_tokens=14)
    new = [ids[given:] for ids, given in zip(
        whole["ids"].split(whole["length"].tolist()), whole["given"].tolist(), strict=True)]  # fmt: skip
    end = int(new[0][4])
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", end)
    cut = answer(tiny, prompts, new_tokens=14)
    for row in range(4):  # the greedy ones; samples depend on how many rows draw
        mine = cut["ids"].split(cut["length"].tolist())[row][int(cut["given"][row]) :]
        stop = new[row].tolist().index(end) + 1 if end in new[row] else 14
        assert mine.tolist() == new[row][:stop].tolist()
    assert len(cut["hidden"]) == int((cut["length"] - cut["given"]).sum())


def test_samples_follow_the_targets_distribution(tiny):
    model = tiny_causal_lm(initializer_range=0.3)
    lm = CausalLM(model, tiny.tokenizer, "toy")
    many = 4000
    got = answer(lm, [[3, 1, 4]] * many, new_tokens=1, generator=torch.Generator().manual_seed(1))
    firsts = got["ids"].long().split(got["length"].tolist())[many:]
    seen = torch.stack([row[3] for row in firsts]).bincount(minlength=TINY_VOCABULARY) / many
    with torch.no_grad():
        probs = model(torch.tensor([[3, 1, 4]])).logits[0, -1].softmax(-1)
    assert float((seen - probs).abs().sum()) / 2 < 3 * math.sqrt(TINY_VOCABULARY / many)


def test_answers_are_kept_and_written_once(tiny, answered, monkeypatch):
    folder, paths = answered
    before = {path: path.stat().st_mtime_ns for path in paths}
    paths[-1].unlink()
    again = write_answers(tiny, PROMPTS, folder, new_tokens=12)
    assert again == paths
    assert len(paths) == 2
    assert paths[0].stat().st_mtime_ns == before[paths[0]]
    answers = Answers(paths)
    assert sorted(answers.prompt) == sorted([*range(len(PROMPTS)), *range(len(PROMPTS))])
    with pytest.raises(UserError, match="answers to other prompts"):
        write_answers(tiny, PROMPTS, folder, new_tokens=11)
    with pytest.raises(UserError, match="answers to other prompts"):
        write_answers(tiny, PROMPTS[::-1], folder, new_tokens=12)


def test_a_damaged_file_of_answers_is_named(tiny, tmp_path):
    (path,) = write_answers(tiny, PROMPTS[:3], tmp_path, new_tokens=2)
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged"):
        write_answers(tiny, PROMPTS[:3], tmp_path, new_tokens=2)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="expected 'mintage drafter answers 1'"):
        write_answers(tiny, PROMPTS[:3], tmp_path, new_tokens=2)


def test_frequent_tokens_are_those_of_the_answers(answered):
    answers = Answers(answered[1])
    everything = torch.cat([answers.answer(row) for row in range(len(answers))]).long()
    tokens, covered = answers.frequent(range(len(answers)), 20)
    assert tokens.tolist() == sorted(set(tokens.tolist()))
    assert len(tokens) == 20
    counts = everything.bincount()
    assert covered == pytest.approx(float(counts.sort(descending=True).values[:20].sum()) / len(everything))
    assert covered == pytest.approx(float(torch.isin(everything, tokens).float().mean()))
    assert answers.frequent(range(len(answers)), 10**6)[1] == 1


# -- the loss ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), overlap=st.sampled_from([0.0, 0.25, 1.0]), places=st.integers(1, 6))
def test_the_distance_and_its_gradient_are_the_definitions(seed, overlap, places):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(places, 9, generator=generator, requires_grad=True)
    log_p = torch.randn(places, 12, generator=generator).mul(2).log_softmax(-1)[:, :9]  # less than all of its mass
    loss, parts = divergence(student, log_p, overlap)
    (gradient,) = torch.autograd.grad(loss, student)
    log_q, p = student.log_softmax(-1), log_p.exp()
    forward = (p * (log_p - log_q)).sum(-1).mean()
    accept = torch.minimum(p, log_q.exp()).sum(-1).mean()
    wanted = (1 - overlap) * forward + overlap * (1 - accept)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert parts["accept"] == pytest.approx(accept.item(), abs=1e-5)
    assert parts["divergence"] == pytest.approx(forward.item(), abs=1e-5)
    assert torch.allclose(gradient, torch.autograd.grad(wanted, student)[0], atol=1e-6)


def test_the_target_is_its_own_best_drafter(tiny, answered):
    answers = Answers(answered[1])
    everything = torch.arange(tiny.model.config.vocab_size)
    drafter = cut_drafter(tiny.model, range(4), everything)
    recipe = DrafterRecipe(tiny.model, drafter, answers, range(len(answers)), batch_rows=4)
    loss, parts = recipe.loss(recipe.module, recipe.batch(0))
    assert abs(loss.item()) < 1e-4
    assert parts["agree"] == 1
    assert parts["accept"] == pytest.approx(1, abs=1e-4)


def test_every_answer_is_learnt_from_once_an_epoch(tiny, answered):
    answers = Answers(answered[1])
    drafter = cut_drafter(tiny.model, [0], known_tokens(tiny))
    recipe = DrafterRecipe(tiny.model, drafter, answers, range(len(answers)), batch_rows=9)
    epochs = [[row for place in range(10) for row in recipe._epoch(epoch)[place]] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(answers)))
    assert epochs[0] != epochs[1]
    batch = recipe.batch(13)
    assert all(torch.equal(batch[name], again) for name, again in recipe.batch(13).items())
    flat = batch["ids"].flatten()[batch["positions"] + 1]  # what stands after each position is what was answered
    rows = recipe._epoch(1)[3]
    assert flat.tolist() == torch.cat([answers.answer(row) for row in rows]).tolist()


@pytest.mark.parametrize("overlap", [-0.1, 1.1])
def test_a_share_outside_the_unit_interval_is_refused(tiny, answered, overlap):
    drafter = cut_drafter(tiny.model, [0], known_tokens(tiny))
    with pytest.raises(UserError, match="overlap"):
        DrafterRecipe(tiny.model, drafter, Answers(answered[1]), [0, 1], overlap=overlap)


# -- training ------------------------------------------------------------------------------------------------------


def teach(tiny, paths, folder, steps, **more):
    answers = Answers(paths)
    tokens, _ = answers.frequent(range(len(answers)), 200)
    drafter = cut_drafter(tiny.model, [0], tokens)
    recipe = DrafterRecipe(tiny.model, drafter, answers, range(len(answers)), batch_rows=8)
    train(recipe, folder, Settings(steps=steps, lr=5e-3, log_every=5, save_every=5, **more), device="cpu")
    recipe.finish()
    return drafter


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_lowers_the_divergence_and_leaves_the_target_alone(tiny, answered, tmp_path):
    before = {name: p.clone() for name, p in tiny.model.state_dict().items()}
    teach(tiny, answered[1], tmp_path, 60)
    log = rows_of(tmp_path)
    assert log[-1]["divergence"] < 0.7 * log[0]["divergence"]
    assert log[-1]["agree"] > log[0]["agree"]
    assert all(torch.equal(before[name], p) for name, p in tiny.model.state_dict().items())


def training(tiny, tmp_path, prompts=None, **settings):
    path = tmp_path / "prompts.jsonl"
    write_rows(path, [{"prompt": text} for text in PROMPTS[:prompts]])
    given = {"vocabulary": 50, "new_tokens": 6, "steps": 60, "batch_rows": 4, "layers": (0,), "dtype": "float32"}
    return DrafterTraining(model=tiny.name, prompts=str(path), **given | settings)


@pytest.fixture
def few_prompts(monkeypatch):
    """Let drafters be measured on one of the bundled prompts."""
    monkeypatch.setattr("mintage.draft.training.distilled.read_prompts", lambda: read_prompts()[:1])


_KILLED = """
import os, sys
from mintage.draft.training.distilled import DrafterTraining
model, prompts, output, folder = sys.argv[1:]
def progress(stage, done, of):
    if stage == "train" and done >= of // 2:
        os.kill(os.getpid(), 9)
DrafterTraining(model=model, prompts=prompts, vocabulary=50, new_tokens=6, steps=60, batch_rows=4, layers=(0,),
                dtype="float32").run(output, folder, progress=progress)
"""


def test_a_killed_run_ends_as_if_it_had_not_been(tiny, few_prompts, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    once = training(tiny, tmp_path)
    arguments = [once.model, once.prompts, str(killed), str(tmp_path / "b")]
    code = subprocess.run([sys.executable, "-c", _KILLED, *arguments], capture_output=True).returncode
    assert code == -9
    assert not killed.exists()
    once.run(whole, tmp_path / "a")
    once.run(killed, tmp_path / "b")
    a, b = load_file(whole), load_file(killed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_whole_training_writes_a_drafter_that_says_what_it_is(tiny, few_prompts, tmp_path):
    from safetensors import safe_open

    out = tmp_path / "drafter.safetensors"
    settings = {"layers": (0, -1), "vocabulary": 60, "new_tokens": 8}
    made = training(tiny, tmp_path, steps=30, **settings).run(out, tmp_path / "work", command="mintage train drafter")
    with safe_open(out, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["command"] == "mintage train drafter"
    assert json.loads(metadata["settings"])["layers"] == [0, -1]
    assert json.loads(metadata["sizes"]) == {"target": tiny.name, "shapes": describe_shapes(tiny.model)}
    held_out, test = json.loads(metadata["held out"]), json.loads(metadata["test"])
    assert held_out["prompts"] == 3
    assert test["prompts"] == 1
    assert held_out["low, share, high within k"].keys() == {"1", "2", "4", "8"}
    assert json.loads(metadata["log"].splitlines()[-1])["step"] == 30
    again = load_drafter(tiny, out)
    with torch.no_grad():
        a, b = made.model(torch.tensor([[5, 6]])).logits, again(torch.tensor([[5, 6]])).logits
    assert torch.equal(a.isfinite(), b.isfinite())
    assert a.isfinite().sum() == 2 * len(again.lm_head.tokens) <= 120
    with pytest.raises(UserError, match="holds a run with steps=30, not 31; pass another --work"):
        training(tiny, tmp_path, steps=31, **settings).run(out, tmp_path / "work")


def test_weights_are_those_of_before(tmp_path):
    """The numbers are those of the old functions, to the bit; other machines round differently."""
    words = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate("abcdefghijk?")}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "toy")
    tiny_causal_lm().save_pretrained(tmp_path / "toy")
    prompts = [{"prompt": " ".join("abcdefghijk"[(i * k + i) % 11] for k in range(4))} for i in range(20)]
    write_rows(tmp_path / "letters.jsonl", prompts)
    settings = {"layers": (0,), "vocabulary": 9, "new_tokens": 6, "steps": 60, "batch_rows": 4, "overlap": 0.25}
    files = {"model": str(tmp_path / "toy"), "prompts": str(tmp_path / "letters.jsonl"), "dtype": "float32"}
    DrafterTraining(**files, **settings).run(tmp_path / "made", tmp_path / "work")
    made = load_file(tmp_path / "made")
    assert made.pop("tokens").tolist() == [0, 2, 3, 4, 5, 7, 8, 9, 10]
    assert sum(float(t.double().sum()) for t in made.values()) == pytest.approx(57.63579618930817, rel=1e-3)


def test_what_cannot_be_trained_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="5 prompts are too few"):
        training(tiny, tmp_path, prompts=5).run(tmp_path / "x", tmp_path / "work")
    with pytest.raises(UserError, match="4 blocks"):
        training(tiny, tmp_path, layers=(9,)).run(tmp_path / "x", tmp_path / "other")
    for name, value in {"vocabulary": 0, "overlap": 1.5, "steps": 0, "batch_rows": 0, "new_tokens": 0}.items():
        with pytest.raises(UserError, match=f"{name}={value} is out of range"):
            training(tiny, tmp_path, **{name: value})


# -- accuracy and cost ---------------------------------------------------------------------------------------------


def test_accuracy_counts_the_targets_choices_among_the_guesses(tiny):
    every = cut_drafter(tiny.model, range(4), torch.arange(tiny.model.config.vocab_size))
    exact = drafter_accuracy(tiny, every, ["hello", "good day"], new_tokens=10, within=(1, 3))
    assert [interval.value for interval in exact.within.values()] == [1, 1]
    assert exact.tokens == 20
    assert exact.prompts == 2
    blind = cut_drafter(tiny.model, range(4), torch.tensor([0, 1, 2]))
    assert drafter_accuracy(tiny, blind, ["hello"], new_tokens=10).within[8].value <= 1
    one = cut_drafter(tiny.model, [0], torch.arange(tiny.model.config.vocab_size))
    some = drafter_accuracy(tiny, one, PROMPTS[:4], new_tokens=10)
    shares = [some.within[k].value for k in (1, 2, 4, 8)]
    assert shares == sorted(shares)
    assert shares[0] < 1


def test_one_block_costs_less_than_all(tiny):
    one = cut_drafter(tiny.model, [0], known_tokens(tiny))
    assert step_cost(tiny, one, context=32, rounds=10).value < 0.9


# -- probability 0 in other drafters -------------------------------------------------------------------------------

KNOWN = torch.tensor([1, 3, 4, 7, 9])


def sparse(target):
    return cut_drafter(target, [0], KNOWN)


DRAFTERS = {
    "chain": lambda model: Chain(draft_model=model, length=3),
    "rsd-c": lambda model: RSD(draft_model=model, branching=(8, 2)),
    "rsd-s": lambda model: RSD(draft_model=model, width=9, depth=3),
    "specinfer": lambda model: SpecInfer(draft_model=model, branching=(8, 2)),
    "spectr": lambda model: SpecTr(draft_model=model, num_drafts=8, draft_len=3),
    "dyspec": lambda model: DySpec(draft_model=model, budget=12),
    "dyspec by layers": lambda model: DySpec(draft_model=model, budget=12, threshold=0.02),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampling"])
@pytest.mark.parametrize("name", DRAFTERS)
def test_tokens_without_probability_are_never_drafted(name, temperature, monkeypatch):
    target = tiny_causal_lm()
    drafter, trees = DRAFTERS[name](sparse(target)), []
    propose = type(drafter).propose
    monkeypatch.setattr(
        type(drafter), "propose", lambda self, context: trees.append(propose(self, context)) or trees[-1]
    )
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    out = generate(target, prompt, drafter, max_new_tokens=40, temperature=temperature, seed=0)
    drafted = {token for tree in trees for token in tree.tokens[1:].tolist()}
    assert drafted
    assert drafted <= set(KNOWN.tolist())
    assert all(tree.confidence is None or tree.confidence.isfinite().all() for tree in trees)
    assert all(tree.distributions is None or not tree.distributions.isnan().any() for tree in trees)
    assert out.sequences.shape[1] == 45


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_output_is_the_targets(name):
    target = tiny_causal_lm()
    prompt = torch.tensor([[3, 1, 4, 1, 5, 9]])
    wanted = target.generate(prompt, do_sample=False, max_new_tokens=60, pad_token_id=0)
    got = generate(target, prompt, DRAFTERS[name](sparse(target)), max_new_tokens=60).sequences
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", DRAFTERS)
def test_sampled_output_has_the_targets_distribution(name):
    target = tiny_causal_lm(initializer_range=0.3)
    prompt, drafter, many = torch.tensor([[3, 1, 4]]), DRAFTERS[name](sparse(target)), 200
    seen = torch.zeros(TINY_VOCABULARY)
    for seed in range(many):
        out = generate(target, prompt, drafter, max_new_tokens=2, temperature=1.0, seed=seed)
        seen[out.sequences[0, 3]] += 1
    with torch.no_grad():
        probs = target(prompt).logits[0, -1].softmax(-1)
    statistic = float(((seen - many * probs) ** 2 / (many * probs)).sum())
    assert statistic < 31.3  # chi-square, 11 degrees of freedom, p = 0.001


def test_transformers_takes_it_as_an_assistant():
    target = tiny_causal_lm()
    prompt = torch.tensor([[3, 1, 4, 1, 5, 9]])
    wanted = target.generate(prompt, do_sample=False, max_new_tokens=30, pad_token_id=0)
    mask = torch.ones_like(prompt)
    got = target.generate(
        prompt, attention_mask=mask, do_sample=False, max_new_tokens=30, pad_token_id=0, assistant_model=sparse(target)
    )
    assert torch.equal(got, wanted)
    torch.manual_seed(0)
    sampled = target.generate(
        prompt, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=30, pad_token_id=0,
        assistant_model=sparse(target),
    )  # fmt: skip
    assert sampled.shape == (1, 36)


def test_a_drafter_is_a_target_like_any_other():
    assert Target(sparse(tiny_causal_lm())).vocabulary == TINY_VOCABULARY

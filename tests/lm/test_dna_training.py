"""Trainings of encoders of DNA: what they learn from, that they go on after a kill, LoRA, and what they refuse."""

import json
import random
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from mintage.data.fasta import reverse_complement
from mintage.errors import UserError
from mintage.lm.core.dna_folder import DNAModel, masked_score
from mintage.lm.core.dna_tokens import DNATokenizer, kmer_tokenizer
from mintage.lm.core.dna_windows import LabelledDNA, MaskedRecipe, dna_windows, framed, mask_runs, read_labelled
from mintage.lm.dnabert2 import DNABERT2ForMaskedLM, DNABERT2ForSequenceClassification
from mintage.lm.training.dna_classifier import DNAClassifierTraining
from mintage.lm.training.dna_tokenizer import DNATokenizerTraining
from mintage.lm.training.dnabert2 import DNABERT2Training, Sequences
from mintage.train.training import Work

SMALL = {"width": 16, "layers": 1, "heads": 2, "steps": 4, "rows": 4, "warmup": 1, "vocabulary": 60}


def dna(count, seed=0):
    return "".join(random.Random(seed).choices("ACGT", k=count))


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genome.fa").write_text(f">one\n{dna(3000)}\nNNNN\n{dna(3000, 1).lower()}\n>two\n{dna(500, 2)}\n")


def masked(**settings):
    return DNABERT2Training(**{"texts": ("genome.fa",), "window": 24, **SMALL, **settings})


def classes(**settings):
    return DNAClassifierTraining(**{"texts": ("task",), **SMALL, **settings})


@pytest.fixture
def task(tmp_path):
    """Sequences of mostly one kind of bases, or of the other."""
    drawn = random.Random(4)
    folder = tmp_path / "task"
    folder.mkdir()
    for name, count in (("train", 40), ("test", 20)):
        lines = ["sequence,label"]
        for number in range(count):
            weights = (5, 1, 1, 5) if number % 2 else (1, 5, 5, 1)
            lines.append(f"{''.join(drawn.choices('ACGT', weights, k=30))},{number % 2}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


# -- windows and masks -------------------------------------------------------------------------------------------------


def test_windows_hold_all_tokens_of_every_run():
    tokenizer, sequence = kmer_tokenizer(1), dna(100)
    windows = dna_windows(tokenizer, [sequence[:70] + "NNN" + sequence[70:], "ACGTACG", "nnn"], 22)
    assert windows.shape == (6, 22)
    assert (windows[:, 0] == 1).all()
    assert [(row == 2).sum() for row in windows] == [1] * 6
    assert "".join(tokenizer.decode(row.tolist()) for row in windows) == sequence  # seven bases alone are no window
    assert (windows[3] == 3).sum() == 10
    with pytest.raises(UserError, match="no 8 tokens in a row"):
        dna_windows(tokenizer, ["ACGTNACGT"], 22)


@pytest.mark.parametrize("run", [1, 3, 6])
def test_whole_runs_are_masked_and_as_many_as_asked(run):
    ids = torch.randint(5, 50, (300, 200), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 150], ids[:, 151:] = 1, 2, 3
    read, labels = mask_runs(ids, 50, 0.15, run, torch.Generator().manual_seed(1))
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(read[~chosen], ids[~chosen])
    assert not chosen[ids < 5].any()
    assert float(chosen[:, 1:150].float().mean()) == pytest.approx(0.15, abs=0.01)
    assert float((read == 4)[chosen].float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((read == ids)[chosen].float().mean()) == pytest.approx(0.1, abs=0.03)
    for row in range(20):
        places = chosen[row].nonzero()[:, 0].tolist()
        begins = [at for at in places if at - 1 not in places]
        for at in begins:
            end = next(end for end in range(at, 200) if end not in places)
            assert (end - at) % run == 0 or at == 1 or end == 150
            for start in range(at, end - run + 1, run):
                marks = (read[row, start : start + run] == 4).tolist()
                assert at == 1 or len(set(marks)) == 1 or run == 1


def test_something_is_always_masked_and_a_batch_follows_from_its_index():
    ids = torch.tensor([[1, 7, 8, 2]])
    for seed in range(30):
        assert (mask_runs(ids, 9, 1e-6, 2, torch.Generator().manual_seed(seed))[1] != -100).sum() == 1
    windows = dna_windows(kmer_tokenizer(1), [dna(2000)], 22)
    model = masked(tokenizer="bases").begin(DNABERT2ForMaskedLM, [], Path(".")).model
    recipe = MaskedRecipe(model, windows, 4, 3, 0.15, 1)
    first, again, later = recipe.batch(5), recipe.batch(5), recipe.batch(5 + 25)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["labels"], later["labels"])


def test_rows_of_sequences_are_framed_and_filled():
    made = framed([[5, 6, 7], [8], []])
    assert made["input_ids"].tolist() == [[1, 5, 6, 7, 2], [1, 8, 2, 3, 3], [1, 2, 3, 3, 3]]
    assert made["attention_mask"].sum(1).tolist() == [5, 3, 2]


# -- masked language models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["bpe", "kmers", "overlapping", "bases"])
def test_the_command_writes_a_folder_that_auto_classes_load(tokenizer):
    training = masked(tokenizer=tokenizer, k=2)
    made = training.run("out", command="mintage train dnabert2")
    assert training.summary(made).endswith("M parameters")
    model, theirs = AutoModelForMaskedLM.from_pretrained("out"), AutoTokenizer.from_pretrained("out")
    assert isinstance(model, DNABERT2ForMaskedLM)
    assert json.loads(model.config.notes["settings"])["texts"] == ["genome.fa"]
    assert 0 < model.config.held_out["bits_per_base"] < 10
    again = DNAModel.load("out", DNABERT2ForMaskedLM)
    windows = dna_windows(again.tokenizer, [dna(400, 9)], 24)
    assert masked_score(again, windows) == masked_score(made, windows)
    if tokenizer != "overlapping":
        ids = theirs("acgtacgtt", return_tensors="pt")["input_ids"]
        assert ids[0].tolist() == [1, *again.tokenizer.encode("ACGTACGTT"), 2]
    went_on = masked(model="out", width=None, layers=None, heads=None).run("more", "more.work")
    assert went_on.tokenizer.pieces == made.tokenizer.pieces


def test_a_killed_training_goes_on_bit_by_bit(tmp_path, monkeypatch):
    training = masked(steps=6)
    whole = training.learn(Work(tmp_path / "whole"))
    taken = [0]
    real = MaskedRecipe.loss

    def dies(self, module, batch):
        taken[0] += 1
        if taken[0] == 4:
            raise KeyboardInterrupt
        return real(self, module, batch)

    monkeypatch.setattr(type(training), "loop_settings", lambda self: replace(LOOP(self), save_every=2))
    monkeypatch.setattr(MaskedRecipe, "loss", dies)
    with suppress(KeyboardInterrupt):
        training.learn(Work(tmp_path / "killed"))
    monkeypatch.setattr(MaskedRecipe, "loss", real)
    again = training.learn(Work(tmp_path / "killed"))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


LOOP = DNABERT2Training.loop_settings


def test_it_learns_to_read_around_what_is_masked():
    """Windows hold A and T alone, or C and G: who reads no context pays ln 4, who does ln 2."""
    drawn = random.Random(0)
    runs = ["".join(drawn.choices(kind, k=22)) for _ in range(150) for kind in ("AT", "CG")]
    Path("runs.fa").write_text(">x\n" + "N".join(runs) + "\n")
    training = masked(texts=("runs.fa",), tokenizer="bases", steps=60, rows=8, width=32, lr=1e-2, dropout=0.0)
    assert training.learn(Work(Path("work"))).model.config.held_out["nats"] < 1.25


def test_both_strands_are_read():
    one, both = (list(Sequences(("genome.fa",), strands)) for strands in (False, True))
    assert both == [strand for sequence in one for strand in (sequence, reverse_complement(sequence))]


def test_overlapping_k_mers_are_masked_in_runs_of_k(monkeypatch, tmp_path):
    seen = []
    real = MaskedRecipe.__init__
    monkeypatch.setattr(MaskedRecipe, "__init__", lambda self, *a: (seen.append(a[5]), real(self, *a))[1])
    masked(tokenizer="overlapping", k=3, steps=1).learn(Work(tmp_path / "a"))
    masked(tokenizer="bases", steps=1).learn(Work(tmp_path / "b"))
    masked(tokenizer="overlapping", k=3, run_length=1, steps=1).learn(Work(tmp_path / "c"))
    assert dict.fromkeys(seen) == {3: None, 1: None}
    assert seen[0] == 3


# -- tokenizers --------------------------------------------------------------------------------------------------------


def test_a_tokenizer_is_learnt_and_used():
    told = []
    training = DNATokenizerTraining(texts=("genome.fa",), vocabulary=50)
    made = training.run("tokens", progress=lambda *step: told.append(step))
    assert len(made) == 50
    assert told[-1] == ("bases read", 6504, 0)
    assert training.summary(made).startswith("50 tokens, ")
    loaded = DNATokenizer.load("tokens")
    assert loaded.pieces == made.pieces
    assert json.loads((Path("tokens") / "notes.json").read_text())["settings"]
    trained = masked(tokenizer="tokens", steps=1).run("out")
    assert trained.tokenizer.pieces == made.pieces
    DNATokenizerTraining(texts=("genome.fa",), vocabulary=40).run("tokens", "again")  # takes its place


# -- classifiers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [0, 2])
def test_a_model_is_tuned_on_a_folder_laid_out_as_gues(task, lora):
    masked(tokenizer="bases", dropout=0.0).run("base")
    before = DNABERT2ForMaskedLM.from_pretrained("base")
    sizes = dict.fromkeys(("width", "layers", "heads"))
    training = classes(model="base", lora=lora, steps=5 if lora else 40, lr=1e-2, **sizes)
    with pytest.warns(UserWarning, match="no weights for"):
        made = training.run("out", "work")
    found = made.model.config.held_out
    assert found["sequences"] == 20
    assert lora or found["mcc"] > 0.8
    assert training.summary(made).startswith(f"MCC {found['mcc']:.3f}")
    loaded = AutoModelForSequenceClassification.from_pretrained("out").eval()
    assert isinstance(loaded, DNABERT2ForSequenceClassification)
    sequences = read_labelled(task / "test.csv").sequences
    assert (DNAModel(loaded, DNATokenizer.load("out")).classify(sequences, 7) == made.classify(sequences)).all()
    moved = {
        name
        for name, weight in loaded.bert.named_parameters()
        if name in dict(before.bert.named_parameters()) and not torch.allclose(weight, before.bert.get_parameter(name))
    }
    if lora:
        assert moved == {"encoder.layer.0.attention.self.Wqkv.weight"}
    else:
        assert {"embeddings.word_embeddings.weight", "encoder.layer.0.mlp.wo.weight"} <= moved


def test_a_killed_tuning_by_lora_goes_on_bit_by_bit(task, tmp_path):
    training = classes(tokenizer="bases", lora=2, steps=4)
    whole = training.learn(Work(tmp_path / "whole"))
    half = replace(training, steps=4)
    real = type(training).loop_settings
    taken = []

    def dies(stage, done, of):
        taken.append(done)
        if done == 2 * 4:
            raise KeyboardInterrupt

    type(training).loop_settings = lambda self: replace(real(self), save_every=1)
    try:
        with suppress(KeyboardInterrupt):
            half.learn(Work(tmp_path / "killed", progress=dies))
    finally:
        type(training).loop_settings = real
    again = training.learn(Work(tmp_path / "killed"))
    assert len(taken) == 2
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_without_peft_lora_names_the_extra(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft is not installed; run: pip install 'mintage\[lm\]'"):
        classes(tokenizer="bases", lora=2).run("out")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "it needs sequence and label"),
        ("seq,label\nACGT,1\n", "has the columns seq, label; it needs sequence and label"),
        ("sequence,label\nACGT,1\nACGT,yes\n", "line 3: the label 'yes' is no class"),
        ("sequence,label\nACGT,-1\n", "line 2: the label '-1' is no class"),
        ("sequence,label\nACGT\n", "line 2: the label '' is no class"),
        ("sequence,label\nACGT,0\nMKVLE,1\n", "line 3: 'L' is no nucleotide .a protein"),
        ("sequence,label\n,0\n", "line 2 has no sequence"),
        ("sequence,label\nACGT,1\nAC,1\n", "has 1 classes"),
    ],
)
def test_tables_that_cannot_be_learnt_from_are_told(tmp_path, text, line):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=line) as told:
        read_labelled(tmp_path / "x.csv")
    assert "\n" not in str(told.value)


def test_parts_of_labelled_sequences():
    every = LabelledDNA(["A", "C", "G"], np.array([0, 1, 2]))
    assert every.part(np.array([True, False, True])) == LabelledDNA(["A", "G"], pytest.approx(np.array([0, 2])))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "line"),
    [
        (lambda: masked(texts=("nowhere.fa",)), "nowhere.fa does not exist"),
        (lambda: masked(vocabulary=5000), "bases give .* not vocab_size=5000"),
        (lambda: masked(tokenizer="nowhere"), "holds no tokenizer.json"),
        (lambda: masked(heads=3), "num_attention_heads=3 does not divide hidden_size=16"),
        (lambda: masked(model="nowhere", width=None, layers=None, heads=None), "cannot load nowhere"),
        (lambda: masked(model="nowhere"), "width=16, but nowhere has its own sizes"),
        (lambda: classes(texts=("a", "b")), "learns from one folder; leave out b"),
        (lambda: classes(texts=(), task="promoters"), "unknown task 'promoters'; did you mean 'promoter_tss'"),
        (lambda: classes(texts=("nowhere",)), "cannot read nowhere"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(training, line):
    with pytest.raises(UserError, match=line) as told:
        training().run("out")
    assert "\n" not in str(told.value)


def test_sequences_longer_than_the_window_are_refused(task):
    with pytest.raises(UserError, match="a sequence has 32 tokens, window=20; cut it, or pass --window 32"):
        classes(tokenizer="bases", window=20).run("out")


def test_other_folders_are_not_replaced(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for training in (masked(), DNATokenizerTraining(texts=("genome.fa",), vocabulary=40)):
        with pytest.raises(UserError, match="full holds other files"):
            training.run(tmp_path / "full")
    small = masked(tokenizer="bases").begin(DNABERT2ForMaskedLM, [], tmp_path).model
    with pytest.raises(UserError, match="the tokenizer has 69 tokens, the model 9"):
        DNAModel(small, kmer_tokenizer(3))

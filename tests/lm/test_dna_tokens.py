"""Tokens of DNA: what a BPE of bases, k-mers and single bases promise, and how they are compared."""

import json
import random
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mintage.errors import UserError
from mintage.lm.core.dna_report import NeighbourLookup, edit_stability, genome_report, matthews, recoverable
from mintage.lm.core.dna_tokens import DNABPETrainer, DNATokenizer, kmer_tokenize, kmer_tokenizer


def dna(count, seed=0):
    return "".join(random.Random(seed).choices("ACGT", k=count))


@pytest.fixture(scope="module")
def bpe():
    motifs = [dna(12, seed) for seed in range(40)]
    return DNABPETrainer(vocab_size=200).train(["".join(random.Random(9).choices(motifs, k=2000))])


@pytest.fixture(scope="module")
def every(bpe):
    return {
        "bpe": bpe,
        "k-mers": kmer_tokenizer(3, overlap=False),
        "bases": kmer_tokenizer(1),
        "all": kmer_tokenizer(4),
    }


# -- reading and writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bpe", "k-mers", "bases", "all"])
def test_dna_is_cut_and_put_together_again(every, name):
    tokenizer = every[name]
    for length in (0, 1, 2, 3, 4, 5, 17, 500, 5003):
        sequence = dna(length, length)
        ids = tokenizer.encode(sequence)
        whole = length >= tokenizer.overlap  # shorter than a k-mer there is none
        assert tokenizer.decode(ids) == (sequence if whole else "")
        assert tokenizer.encode(sequence.lower().replace("t", "u")) == ids
        assert min(ids, default=5) >= 5
        if not tokenizer.overlap:
            assert [tokenizer.pieces[i] for i in ids] == tokenizer.tokenizer.encode(sequence).tokens[1:-1]
            assert tokenizer.lengths[ids].sum() == length


def test_what_is_no_base_is_unknown(every):
    assert every["bpe"].encode("ACNNNNRYGT").count(0) == 1
    assert every["bases"].encode("ANNC") == [5, 0, 0, 6]
    assert every["k-mers"].encode("ACGNNTACG") == [*every["k-mers"].encode("ACG"), 0, *every["k-mers"].encode("ACG")]
    assert every["all"].encode("ACGTNACGT").count(0) == 4
    offsets = every["bpe"].tokenizer.encode("acNNNgt").offsets[1:-1]
    assert (offsets[0][0], offsets[-1][1]) == (0, 7)
    assert all(first[1] == then[0] for first, then in pairwise(offsets))


@pytest.mark.parametrize("name", ["bpe", "k-mers", "bases", "all"])
def test_a_saved_tokenizer_is_one_of_transformers(every, name, tmp_path):
    tokenizer, sequence = every[name], dna(300, 5)
    tokenizer.save(tmp_path / "it", {"command": "made by a test"})
    again = DNATokenizer.load(tmp_path / "it")
    assert again.encode(sequence) == tokenizer.encode(sequence)
    assert again.overlap == tokenizer.overlap
    assert DNATokenizer.load(tmp_path / "it" / "tokenizer.json").pieces == tokenizer.pieces
    assert json.loads((tmp_path / "it" / "notes.json").read_text()) == {"command": "made by a test"}
    theirs = AutoTokenizer.from_pretrained(tmp_path / "it")
    text = " ".join(kmer_tokenize(sequence, 4)) if tokenizer.overlap else sequence
    assert theirs(text)["input_ids"] == [1, *tokenizer.encode(sequence), 2]
    assert (theirs.pad_token_id, theirs.mask_token_id, theirs.unk_token_id) == (3, 4, 0)
    if not tokenizer.overlap:
        assert theirs.decode(theirs(sequence)["input_ids"], skip_special_tokens=True) == sequence
    batch = theirs([text, text[:40]], padding=True)
    assert batch["input_ids"][1][-1] == 3
    assert batch["attention_mask"][1][-1] == 0


def test_other_tokenizers_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        DNATokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        DNATokenizer.load(tmp_path)
    other = Tokenizer.from_str(kmer_tokenizer(1).tokenizer.to_str().replace("[CLS]", "<s>"))
    with pytest.raises(UserError, match=r"token 1 of this tokenizer is not \[CLS\]"):
        DNATokenizer(other)


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_is_exact_in_size_and_repeats_itself(bpe):
    assert len(bpe) == 200
    assert bpe.pieces[5:9] == list("ACGT")
    motifs = [dna(12, seed) for seed in range(40)]
    text = "".join(random.Random(9).choices(motifs, k=2000))
    again = DNABPETrainer(vocab_size=200).train(iter([text.lower()]))
    assert again.tokenizer.to_str() == bpe.tokenizer.to_str()
    assert len(DNABPETrainer(vocab_size=9).train([text])) == 9


def test_the_most_frequent_pair_comes_first():
    learnt = DNABPETrainer(vocab_size=11, chunk=40).train(["ACAG" * 50 + "T"])
    assert learnt.pieces[9:] == ["AC", "AG"]


def test_tokens_are_no_longer_than_asked_and_do_not_cross_what_is_unknown():
    text = dna(3000)
    short = DNABPETrainer(vocab_size=100, max_token_length=4).train([text])
    assert max(short.lengths) == 4
    with pytest.raises(UserError, match=r"give \d+ tokens of at most 2 bases, not vocab_size=30; pass more DNA"):
        DNABPETrainer(vocab_size=30, max_token_length=2).train([text])
    parted = DNABPETrainer(vocab_size=11).train(["ACNGT" * 100])
    assert set(parted.pieces[9:]) == {"AC", "GT"}


def test_long_repeats_do_not_explode():
    tracemalloc.start()
    tokenizer = DNABPETrainer(vocab_size=40).train([dna(200_000) + "A" * 300_000 + "AC" * 100_000])
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert max(tokenizer.lengths) <= 32
    assert tokenizer.decode(tokenizer.encode("A" * 1000)) == "A" * 1000


@pytest.mark.parametrize(
    ("settings", "sequences", "line"),
    [
        ({"vocab_size": 8}, ["ACGT"], "vocab_size=8 is out of range"),
        ({"chunk": 1}, ["ACGT"], "chunk=1 is out of range"),
        ({}, [], "hold no A, C, G or T"),
        ({}, ["NNNN", ""], "hold no A, C, G or T"),
        ({}, ["ACGTACGT"], "8 bases give"),
    ],
)
def test_what_cannot_be_learnt_is_told(settings, sequences, line):
    with pytest.raises(UserError, match=line):
        DNABPETrainer(**settings).train(sequences)


# -- k-mers ------------------------------------------------------------------------------------------------------------


def test_k_mers_overlap_or_stand_side_by_side():
    assert kmer_tokenize("ACGTA", 3) == ["ACG", "CGT", "GTA"]
    assert kmer_tokenize("ACGTA", 3, overlap=False) == ["ACG", "T", "A"]
    assert kmer_tokenize("AC", 3) == []
    assert kmer_tokenize("AC", 3, overlap=False) == ["A", "C"]
    assert kmer_tokenize("", 3) == []
    assert len(kmer_tokenizer(3)) == 64 + 5
    assert len(kmer_tokenizer(3, overlap=False)) == 64 + 5 + 4
    assert len(kmer_tokenizer(1)) == 9
    for k in (0, 9):
        with pytest.raises(UserError, match=f"k={k} is out of range"):
            kmer_tokenizer(k)
    with pytest.raises(UserError, match="k=0 is no length"):
        kmer_tokenize("ACGT", 0)


# -- what tokens are worth ---------------------------------------------------------------------------------------------


def test_a_deletion_upsets_k_mers_and_not_bpe(every):
    sequences = [dna(600, seed) for seed in range(20)]
    found = {name: genome_report(tokenizer, sequences) for name, tokenizer in every.items()}
    assert found["bases"].bases_per_token == 1
    assert found["k-mers"].bases_per_token == 3
    assert found["all"].bases_per_token == pytest.approx(600 / 597)
    assert found["bpe"].bases_per_token > 2
    assert found["k-mers"].edit_stability < 0.7 < 0.97 < found["bpe"].edit_stability
    assert found["bases"].edit_stability == pytest.approx(599 / 600)
    assert found["all"].vocabulary_use == 1.0
    assert 0 < found["bpe"].vocabulary_use <= 1
    assert genome_report(every["bases"], ["ACNG"]).unknown == 0.25
    with pytest.raises(UserError, match="no sequence to report on"):
        genome_report(every["bases"], ["A"])


def test_survival_is_counted_in_tokens():
    bases = kmer_tokenizer(1)
    assert edit_stability(bases, "ACGT", 1) == 0.75
    assert edit_stability(kmer_tokenizer(2, overlap=False), "AACCGGTT", 0) == 0.0


def test_overlapping_k_mers_are_read_off_their_neighbours():
    masked = np.zeros((1, 9), bool)
    masked[0, [0, 3, 4, 8]] = True
    found = recoverable(masked, 3)
    # the first base is in the first k-mer alone, the last base in the last one
    assert found.tolist() == [[False, False, False, True, True, False, False, False, False]]
    masked[0, 2:6] = True  # four in a row: a base of the second and third is in no other
    assert recoverable(masked, 3)[0, 2:6].tolist() == [False] * 4
    assert not recoverable(masked, 1).any()
    drawn = np.random.default_rng(0).random((200, 200)) < 0.15
    assert 0.9 < recoverable(drawn, 3).sum() / drawn.sum() < 0.96


def test_lookups_know_what_stood_between():
    lookup = NeighbourLookup([[1, 2, 3], [1, 2, 3], [1, 4, 3]])
    assert lookup.right([1, 2, 3], [False, True, False]) == (1, 1)
    assert lookup.right([1, 4, 3], [False, True, False]) == (0, 1)
    assert lookup.right([1, 2, 3, 9], [True, True, False, False]) == (0, 1)


def test_matthews_correlation():
    truth = np.array([0, 0, 1, 1, 1, 0])
    assert matthews(truth, truth) == 1.0
    assert matthews(truth, 1 - truth) == -1.0
    assert matthews(truth, np.zeros(6, int)) == 0.0
    said = np.array([0, 1, 1, 1, 0, 0])
    tp, tn, fp, fn = 2, 2, 1, 1
    wanted = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert matthews(truth, said) == pytest.approx(wanted)
    assert matthews(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 2])) == 1.0

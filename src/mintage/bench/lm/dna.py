"""What the study of DNABERT-2 measures: tokens of genomes, encoders trained on them, and how long a trainer takes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, trainers

from mintage.bench.lm.trained import trained_folder
from mintage.data import texts
from mintage.errors import UserError
from mintage.lm.core.dna_folder import DNAModel, masked_score
from mintage.lm.core.dna_report import NeighbourLookup, edit_stability, matthews, recoverable
from mintage.lm.core.dna_tokens import SPECIAL, DNABPETrainer, DNATokenizer, kmer_tokenizer
from mintage.lm.core.dna_windows import ClassRecipe, LabelledDNA, dna_windows
from mintage.lm.dnabert2 import DNABERT2ForMaskedLM, DNABERT2ForSequenceClassification
from mintage.lm.training.dna_classifier import DNAClassifierTraining
from mintage.lm.training.dnabert2 import DNABERT2Training, Sequences
from mintage.measure.statistics import Interval, bootstrap_ratio
from mintage.measure.study import Run
from mintage.measure.timing import timed

__all__ = [
    "LENGTHS",
    "Genomes",
    "along_a_genome",
    "classified",
    "cut",
    "learnt_once",
    "neighbours_told",
    "percent",
    "read_at_lengths",
    "step_seconds",
    "time_to_learn",
]

BASES = 500
"""Of a window in which one base is deleted."""

LENGTHS = (64, 256, 512)
"""Tokens of rows that masked tokens are found in."""

MASKED = 0.15


class Genomes:
    """Tokenizers, and windows of genomes that nothing has learnt from.

    Parameters
    ----------
    vocabulary
        Tokens of BPE.
    folder
        Where what is learnt is kept.
    """

    def __init__(self, vocabulary: int, folder: Path) -> None:
        self.vocabulary, self.folder = vocabulary, folder
        self.made: dict[str, DNATokenizer] = {}

    @cached_property
    def mark(self) -> str:
        """What changes with what is learnt from."""
        return texts("genomes", "train").fingerprint

    @cached_property
    def held_out(self) -> list[str]:
        """Sequences that are measured on."""
        return list(texts("genomes", "held-out"))

    @cached_property
    def lookup(self) -> NeighbourLookup:
        """What stood between two tokens of BPE in what is learnt from."""
        return NeighbourLookup(self.tokenizer("BPE").encode_all(list(Sequences(()))))

    def tokenizer(self, name: str) -> DNATokenizer:
        """Return the one that is called ``BPE``, ``bases``, ``6-mers`` or ``overlapping 6-mers``."""
        if name not in self.made:
            self.made[name] = self._make(name)
        return self.made[name]

    def _make(self, name: str) -> DNATokenizer:
        if name == "BPE":
            place = self.bpe
            if not place.exists():
                DNABPETrainer(vocab_size=self.vocabulary).train(texts("genomes", "train")).save(place)
            return DNATokenizer.load(place)
        if name == "bases":
            return kmer_tokenizer(1)
        return kmer_tokenizer(int(name.removesuffix("-mers")[-1]), overlap=name.startswith("overlapping"))

    @property
    def bpe(self) -> Path:
        """Where BPE is kept."""
        return self.folder / f"dna-bpe-{self.vocabulary}-{self.mark[:8]}"

    def windows(self, count: int, seed: int, bases: int = BASES) -> Iterator[tuple[str, int]]:
        """Yield windows of certain bases, and a place in each."""
        drawn = np.random.default_rng([seed, 0xD7A])
        sizes = np.array([max(len(sequence) - bases, 0) for sequence in self.held_out], float)
        if not sizes.sum():
            raise UserError(
                f"no held-out sequence has more than {bases} bases; get the genomes: mintage data get genomes"
            )
        while count:
            sequence = self.held_out[int(drawn.choice(len(sizes), p=sizes / sizes.sum()))]
            at, place = int(drawn.integers(len(sequence) - bases)), int(drawn.integers(bases))
            window = sequence[at : at + bases]
            if set(window) <= set("ACGT"):
                count -= 1
                yield window, place


def cut(run: Run, name: str, count: int, seed: int) -> dict[str, Any]:
    """Cut windows, and cut them with one base deleted: percent of the tokens kept, bases and tokens."""
    genomes: Genomes = run.subject
    tokenizer, windows = genomes.tokenizer(name), list(genomes.windows(count, seed))
    kept = [100 * edit_stability(tokenizer, window, place) for window, place in windows]
    return {"kept": kept, "tokens": [len(tokenizer.encode(window)) for window, _ in windows], "bases": [BASES] * count}


def neighbours_told(run: Run, name: str, count: int, seed: int) -> dict[str, Any]:
    """Mask single tokens of windows, and look them up by their neighbours: how many are right, of how many.

    An overlapping k-mer is read off base by base; one of BPE is what stood most often between the same two.
    """
    genomes: Genomes = run.subject
    tokenizer, drawn = genomes.tokenizer(name), np.random.default_rng([seed, 0x1EA])
    rows = [tokenizer.encode(window) for window, _ in genomes.windows(count, seed)]
    masks = [drawn.random(len(row)) < MASKED for row in rows]
    if tokenizer.overlap:
        found = [(int(recoverable(mask[None], tokenizer.overlap).sum()), int(mask.sum())) for mask in masks]
    else:
        found = [genomes.lookup.right(row, mask.tolist()) for row, mask in zip(rows, masks, strict=True)]
    right, of = np.array(found, float).T
    return {"told": right, "masked": np.maximum(of, 1)}


def trained_dna(run: Run, training: Any, kind: Any, fit: Any) -> DNAModel:
    """Load a model, or train it; a killed training goes on."""
    genomes: Genomes = run.subject
    place, _ = trained_folder(training, genomes.mark, fit, genomes.folder, run.progress)
    return DNAModel.load(place, kind)


def read_at_lengths(run: Run, training: DNABERT2Training, rows: int) -> dict[str, Any]:
    """Train on short rows, and find masked tokens in longer ones: nats per masked token, by length."""
    made = trained_dna(run, training, DNABERT2ForMaskedLM, training.learn)
    found = {}
    for length in LENGTHS:
        windows = dna_windows(made.tokenizer, run.subject.held_out, length)
        whole = windows[(windows != 3).all(1)]
        chosen = np.random.default_rng(0).permutation(len(whole))[: max(rows * LENGTHS[0] // length, 1)]
        found[f"nats, {length}"] = masked_score(made, whole[chosen]).nats
    return found


def classified(run: Run, training: DNAClassifierTraining) -> dict[str, Any]:
    """Train a classifier from scratch, and tell held-out sequences apart: Matthews' correlation."""
    read = list(texts("dna-tasks", "held-out", domain=training.task).documents())
    learnt, measured = training.sequences()
    every = LabelledDNA([*learnt.sequences, *measured.sequences], np.concatenate([learnt.labels, measured.labels]))
    made = trained_dna(
        run, training, DNABERT2ForSequenceClassification, lambda work: training.fit(every, measured, work)
    )
    said = made.classify([document.text for document in read])
    return {"mcc": matthews(np.array([document.fields["label"] for document in read]), said)}


def step_seconds(run: Run, training: DNAClassifierTraining) -> dict[str, float]:
    """Take one step of training: seconds."""
    learnt, _ = training.sequences()
    made = training.begin(DNABERT2ForSequenceClassification, learnt.sequences, run.subject.folder, num_labels=2)
    few = learnt.part(slice(0, training.rows))
    recipe = ClassRecipe(made.model.train(), made.tokenizer.encode_all(few.sequences), few.labels, training.rows, 0)

    def step() -> None:
        recipe.loss(recipe.module, recipe.batch(0))[0].backward()

    step()
    return {"seconds": timed(step)[1]}


# -- how long a trainer takes ------------------------------------------------------------------------------------------


def learnt_once(how: str, bases: int, vocabulary: int) -> None:
    """Learn BPE of so many bases, from chunks or as the plain trainer does, and print seconds and peak megabytes."""
    sequences, left = [], bases
    for sequence in Sequences((), both_strands=True):
        sequences.append(sequence[:left])
        left -= len(sequences[-1])
        if not left:
            break
    began = time.perf_counter()
    if how == "chunks":
        DNABPETrainer(vocab_size=vocabulary).train(sequences)
    else:
        trainer: Any = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)  # pyright: ignore
        Tokenizer(models.BPE(unk_token=SPECIAL[0])).train_from_iterator(sequences, trainer)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds to learn": seconds, "megabytes": peak / 1e6}))


def time_to_learn(how: str, bases: int, vocabulary: int, limit: float) -> Mapping[str, float]:
    """Run `learnt_once` in a process of its own; one that takes more than `limit` seconds is stopped and has these."""
    code = f"from mintage.bench.lm.dna import learnt_once; learnt_once({how!r}, {bases}, {vocabulary})"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"seconds to learn": limit, "megabytes": 0.0}
    if done.returncode:
        raise UserError(f"a tokenizer of {bases} bases was not learnt: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


# -- numbers and a picture ---------------------------------------------------------------------------------------------


def percent(top: Any, bottom: Any) -> Interval:
    """Return a ratio of sums in percent."""
    return Interval(*(100 * bound for bound in bootstrap_ratio(top, bottom)))


def along_a_genome(tokenizer: DNATokenizer, sequence: str, step: int) -> dict[str, list[tuple[float, float]]]:
    """Return bases per token and tenfold share of G and C, by thousands of bases from the beginning."""
    ids = tokenizer.encode(sequence)
    ends = np.maximum(tokenizer.lengths[ids], 1).cumsum()
    found: dict[str, list[tuple[float, float]]] = {"bases per token": [], "10 x share of G and C": []}
    for at in range(0, len(sequence) - step + 1, step):
        count = int(((ends > at) & (ends <= at + step)).sum())
        letters = sequence[at : at + step].upper()
        found["bases per token"].append((at / 1000, step / max(count, 1)))
        found["10 x share of G and C"].append((at / 1000, 10 * (letters.count("G") + letters.count("C")) / step))
    return found

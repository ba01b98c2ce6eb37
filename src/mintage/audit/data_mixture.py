"""Data mixture inference: read from a BPE merge list which data the tokenizer was trained on.

A BPE trainer merges, step after step, the pair of tokens that is most frequent in *its* data. So every merge says: at
this moment no other pair was more frequent. Given a sample of every category of data, the merges are replayed on the
samples, and the shares of the categories are found that make every merge the most frequent pair of its step, or break
that rule by as little as possible: a linear program.

Source: Hayase et al., "Data Mixture Inference", arXiv 2407.16607, section 3. In `mintage.audit.core`: the replay
(`merge_replay`), the program (`mixture_program`), the samples (`mixture_samples`), the report (`mixture_report`).
Longer than 200 lines: the paper's loop of section 3.3 can be called without the audit, and says all that it takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage.audit.contract import Audit, Report, tokenizer_of
from mintage.audit.core.merge_replay import Transcript, merge_pair_counts, replay
from mintage.audit.core.mixture_program import MixtureEstimate, Program, violated
from mintage.audit.core.mixture_report import mixture_report
from mintage.audit.core.mixture_samples import CountedSamples, count_samples
from mintage.data import Texts
from mintage.errors import UserError
from mintage.options import check_literals, option
from mintage.progress import Progress, silent
from mintage.tokenizer_files import clean_merges, merges

__all__ = ["DataMixture", "infer_mixture", "merge_pair_counts"]


@check_literals
def infer_mixture(
    transcript: Transcript,
    *,
    unit: Literal["bytes", "pairs"] = "pairs",
    sample_bytes: Mapping[str, int] | None = None,
    batch: int = 10,
    rows_per_round: int = 500,
    tol: float = 1e-9,
    active: Integer[np.ndarray, "2 rows"] | None = None,
    progress: Progress = silent,
) -> MixtureEstimate:
    """Find the shares that the merges contradict least (section 3.2), adding constraints as they are violated (3.3).

    Minimise ``sum_t v_t + sum_p w_p`` such that at every step t and for every pair p ::

        sum_i a_i (c_i(t, m_t) - c_i(t, p)) / d_i + v_t + w_p >= 0,    sum_i a_i = 1,    a, v, w >= 0

    Merges that occur in no sample at their step say nothing and are skipped.

    Parameters
    ----------
    transcript
        What `merge_pair_counts` returns.
    unit, sample_bytes
        Shares of what; ``"bytes"`` needs the size of every sample in bytes.
    batch
        Constraints added per step and round, the worst first.
    rows_per_round
        Constraints added before the program is solved again.
    tol
        A constraint violated by less, as a share of pairs, is not added (the paper's is 1e-6; this one makes the
        result the optimum of the full program to 1e-8).
    active
        Constraints to begin with, from the estimate of a similar transcript.
    progress
        Told the number of constraints so far.

    Raises
    ------
    UserError
        A setting is out of range, no merge occurs in the samples, or highspy is not installed.
    """
    for name, value, least in (("batch", batch, 1), ("rows_per_round", rows_per_round, 1), ("tol", tol, 1e-12)):
        if not value >= least:
            raise UserError(f"{name}={value} is too small; pass at least {least}")
    merge_entry = transcript.merge_entry
    present = (merge_entry >= 0) & transcript.merge_counts.any(axis=1)
    if not present.any():
        raise UserError("none of the merges occurs in the samples; pass text of the data the tokenizer was trained on")
    shares_of = transcript.counts / transcript.denominators
    program = Program(shares_of, transcript, merge_entry)
    if active is not None:
        program.add(active[0][present[active[1]]], active[1][present[active[1]]])
        program.solve()
    rounds = 0
    while True:
        entry, step = violated(program, transcript, present, tol, batch, rows_per_round)
        if not len(entry):
            break
        program.add(entry, step)
        program.solve()
        rounds += 1
        progress("adding constraints", program.rows, 0)
    shares = program.shares
    if unit == "bytes":
        if sample_bytes is None:
            raise UserError("unit='bytes' needs sample_bytes, the size of every sample; or pass unit='pairs'")
        shares = shares * [sample_bytes[name] for name in transcript.categories] / transcript.denominators
    shares = shares / shares.sum()
    return MixtureEstimate(
        shares=dict(zip(transcript.categories, shares.tolist(), strict=True)),
        objective=program.objective,
        merge_slack=program.merge_slack,
        pair_slack=program.pair_slack,
        rows=program.rows,
        rounds=rounds,
        active=program.active,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class DataMixture(Audit):
    """Infer what a BPE tokenizer was trained on, from its merge list and a sample of every category.

    Take samples of what the trainer is likely to have seen: as much as you have, 1 GB each in the paper, a few hundred
    kB still serve.

    [dim]Examples[/dim]

      mintage audit data-mixture tokenizer.json -c de=german.txt -c code=src/

      mintage audit data-mixture cl100k_base.tiktoken -c en=en.jsonl -o page.html

    Next: [bold]mintage bench data-mixture[/bold]
    """

    samples: Mapping[str, Texts]
    """A sample of every category, by name: the documents, e.g. a list of texts or a `mintage.data.Corpus`."""
    max_merges: int = option(30_000, "Use the first merges only (T of the paper).", least=1)
    min_count: int = option(
        20, "Stop at the first hundred merges of which half occur less often in all samples together.", least=0
    )  # their order says more about the samples than about the mixture
    unit: Literal["bytes", "pairs"] = option("bytes", "Shares of bytes, or of pairs (the unit of the program).")
    batch: int = option(10, "Constraints added per step and round, the worst first.", least=1)
    rows_per_round: int = option(500, "Constraints added before the program is solved again.", least=1)
    tol: float = option(1e-9, "A constraint violated by less is not added.", least=1e-12)  # 1e-6 stops short: ours
    bootstrap: int = option(20, "Resamples of blocks of documents for the 95% intervals; 0 for none.", least=0)
    seed: int = option(0, "Of the resamples.", least=0, below=2**63)
    processes: int = option(1, "That cut the samples into pre-tokens.", least=1)
    work: Path | str | None = option(None, "Folder that keeps the counts; a killed audit goes on.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.samples:
            raise UserError("no category given; pass a sample of at least one")

    def run(self, subject: Any, *, name: str = "", progress: Progress = silent) -> Report:
        """Infer the mixture behind a BPE tokenizer (`tokenizers.Tokenizer`, or transformers' fast tokenizers).

        Raises
        ------
        UserError
            `subject` is no BPE tokenizer, its merges do not occur in the samples, or a sample is empty.
        """
        tokenizer = tokenizer_of(subject)
        listed = merges(tokenizer)
        organic = clean_merges(listed)
        counted = count_samples(self.samples, tokenizer, processes=self.processes, work=self.work, progress=progress)
        model = json.loads(tokenizer.to_str())["model"]
        replayed = replay(
            counted.words,
            organic[: self.max_merges],
            alphabet=model["vocab"],
            prefix=model.get("continuing_subword_prefix") or "",
            suffix=model.get("end_of_word_suffix") or "",
            progress=progress,
        )
        transcript = replayed.counts(counted.weights())
        transcript = transcript.first(_useful(transcript, self.min_count))
        estimate = self._infer(transcript, counted, progress=progress)
        draws = []
        generator = np.random.default_rng(self.seed)
        resamples = self.bootstrap if any(counted.resampled(category) for category in self.samples) else 0
        for number in range(resamples):
            again = replayed.counts(counted.weights(generator)).first(transcript.steps)
            draws.append(list(self._infer(again, counted, active=estimate.active).shares.values()))
            progress("bootstrap", number + 1, resamples)
        spread = np.std(draws, axis=0, ddof=1) if resamples > 1 else None
        notes = []
        if len(organic) < len(listed):
            notes.append(
                f"{len(listed) - len(organic)} of {len(listed)} merges were left out: other ways to make the same "
                "token, or placed by hand."
            )
        if transcript.steps < (most := min(len(organic), self.max_merges)):
            notes.append(
                f"Of {most} merges the first {transcript.steps} were used: most later ones occur fewer than "
                f"{self.min_count} times in the samples."
            )
        return mixture_report(
            estimate, transcript, counted, spread, name=name, unit=self.unit, resamples=self.bootstrap, notes=notes
        )

    def _infer(self, transcript: Transcript, counted: CountedSamples, **settings: Any) -> MixtureEstimate:
        return infer_mixture(
            transcript,
            unit=self.unit,
            sample_bytes=counted.sizes,
            batch=self.batch,
            rows_per_round=self.rows_per_round,
            tol=self.tol,
            **settings,
        )

    @classmethod
    def tiny(cls) -> DataMixture:
        """Make an audit of two categories of a few lines."""
        return cls(samples=_TINY, min_count=0, bootstrap=3)

    @classmethod
    def tiny_subject(cls) -> Tokenizer:
        """Train 60 merges on two parts words, one part numbers."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=256 + 60, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator([*_TINY["words"], *_TINY["words"], *_TINY["numbers"]], trainer)
        return tokenizer


_TINY = {
    "words": [
        f"the {a} tide {b} the {c} shore" for a in ("low", "high") for b in ("met", "left") for c in ("far", "near")
    ],
    "numbers": [f"{a * 37} plus {a * 11} is {a * 48}" for a in range(3, 11)],
}


def _useful(transcript: Transcript, min_count: int, run: int = 100) -> int:
    """Number of merges up to the first run of which half occur less often than `min_count` in all samples together."""
    counts = transcript.merge_counts.sum(axis=1)
    for start in range(run, transcript.steps, run):
        found = counts[start : start + run]
        found = found[found > 0]  # the others are of data that no sample covers, and are skipped
        if not len(found) or np.median(found) < min_count:
            return start
    return transcript.steps

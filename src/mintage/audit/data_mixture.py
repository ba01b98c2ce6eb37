"""Data mixture inference: read from a BPE merge list which data the tokenizer was trained on.

A BPE trainer merges, step after step, the pair of tokens that is most frequent in *its* data. So every merge says: at
this moment no other pair was more frequent. Given a sample of every category of data, the merges are replayed on the
samples, and the shares of the categories are found that make every merge the most frequent pair of its step, or break
that rule by as little as possible: a linear program.

Source: Hayase et al., "Data Mixture Inference", arXiv 2407.16607, section 3. Not here: Gurobi, which the authors use
(HiGHS finds the same optimum).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from jaxtyping import Float, Integer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage.audit.contract import Audit, Progress, Report, silent
from mintage.audit.core.merge_replay import Transcript, merge_pair_counts, replay
from mintage.data import Texts, as_corpus, count_words
from mintage.errors import UserError, missing_extra
from mintage.measure.figure import Figure
from mintage.tokenizer_files import PreTokens, clean_merges, merges

__all__ = ["DataMixture", "MixtureEstimate", "infer_mixture", "merge_pair_counts"]

BLOCKS = 20
"""Blocks that the documents of a category are dealt to; the bootstrap draws blocks."""

_SCALE = 1e4  # of rows and slacks, so that the solver's tolerance of 1e-9 means shares of 1e-13
_TIGHT = 1e-10  # a constraint with less to spare holds with equality
_CANDIDATES = 20  # violated constraints looked at for one that is added

Ints = Integer[np.ndarray, " _"]  # of any length


# -- the linear program -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class MixtureEstimate:
    """The optimum of the linear program.

    Parameters
    ----------
    shares
        Share of every category, of pairs (bytes: `infer_mixture` with ``unit="bytes"``).
    objective
        Sum of all slacks: by how much the merges contradict the samples, as a share of all pairs.
    merge_slack
        How far each merge is out of place (v).
    pair_slack
        By how much each pair of the transcript was passed over at all steps (w).
    rows, rounds
        Constraints that were needed, and how often the program was solved.
    active
        Entry and step of the constraints that hold with equality, for a warm start of a similar program.
    """

    shares: dict[str, float]
    objective: float
    merge_slack: Float[np.ndarray, " steps"]
    pair_slack: Float[np.ndarray, " pairs"]
    rows: int
    rounds: int
    active: Integer[np.ndarray, "2 rows"]


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
    program = _Program(shares_of, transcript, merge_entry)
    if active is not None:
        program.add(active[0][present[active[1]]], active[1][present[active[1]]])
        program.solve()
    rounds = 0
    while True:
        entry, step = _violated(program, transcript, present, tol, batch, rows_per_round)
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
    elif unit != "pairs":
        raise UserError(f"unit={unit!r} is unknown; pass 'bytes' or 'pairs'")
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


def _violated(
    program: _Program, transcript: Transcript, present: np.ndarray, tol: float, batch: int, limit: int
) -> tuple[Ints, Ints]:
    """Find the worst violated constraints: entries and steps.

    The count of a pair is constant over an entry, so the entry is violated worst at the step whose merge has the least
    count. A table of minima finds that step without a walk over all; left and right of it the search goes on until
    there are enough candidates.
    """
    mixed = program.shares_of @ program.shares
    bound = np.where(present, mixed[program.merge_entry] + program.merge_slack, np.inf)
    value = mixed - program.pair_slack[transcript.pair]
    least = _argmin_tables(bound)
    entry, first, last = np.arange(len(value)), transcript.start, transcript.end
    entries, steps, found = [], [], 0
    while len(entry) and found < _CANDIDATES * limit:
        step = _argmin(bound, least, first, last)
        broken = value[entry] - bound[step] > tol
        entry, first, last, step = entry[broken], first[broken], last[broken], step[broken]
        entries.append(entry)
        steps.append(step)
        found += len(entry)
        left, right = first < step, step + 1 < last
        entry = np.concatenate([entry[left], entry[right]])
        first, last = (
            np.concatenate([first[left], step[right] + 1]),
            np.concatenate([step[left], last[right]]),
        )
    entry, step = np.concatenate(entries), np.concatenate(steps)
    order = np.argsort(bound[step] - value[entry], kind="stable")
    entry, step = entry[order], step[order]
    turn = np.argsort(step, kind="stable")  # within a step, the worst stay first
    opens = np.flatnonzero(np.diff(step[turn], prepend=-1))
    place = np.arange(len(turn)) - np.repeat(opens, np.diff(np.append(opens, len(turn))))
    chosen = np.sort(turn[place < batch])[:limit]
    return entry[chosen], step[chosen]


def _argmin_tables(values: np.ndarray) -> list[np.ndarray]:
    """Row k, place i: where the least value among i .. i + 2**k - 1 is."""
    tables = [np.arange(len(values))]
    while 2 ** len(tables) <= len(values):
        half = 2 ** (len(tables) - 1)
        left, right = tables[-1][:-half], tables[-1][half:]
        tables.append(np.where(values[right] < values[left], right, left))
    return tables


def _argmin(values: np.ndarray, tables: list[np.ndarray], first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Where the least value among first .. last - 1 is, for many spans."""
    level = np.frexp(last - first)[1] - 1
    out = np.empty(len(first), np.int64)
    for k, table in enumerate(tables):
        at = np.flatnonzero(level == k)
        left, right = table[first[at]], table[last[at] - 2**k]
        out[at] = np.where(values[right] < values[left], right, left)
    return out


class _Program:
    """The linear program in HiGHS, which keeps its basis while rows are added."""

    def __init__(self, shares_of: np.ndarray, transcript: Transcript, merge_entry: np.ndarray) -> None:
        self.shares_of, self.merge_entry, self.pair = shares_of, merge_entry, transcript.pair
        self._solver = solver = _highs()
        for option, value in (
            ("output_flag", False),
            ("threads", 1),
            ("random_seed", 0),
            ("primal_feasibility_tolerance", 1e-9),
            ("dual_feasibility_tolerance", 1e-9),
        ):
            solver.setOptionValue(option, value)
        n = shares_of.shape[1]
        none = np.empty(0, np.int32)
        solver.addCols(n, np.zeros(n), np.zeros(n), np.ones(n), 0, none, none, np.empty(0))
        solver.addRow(1.0, 1.0, n, np.arange(n, dtype=np.int32), np.ones(n))
        self.columns, self.rows = n, 0
        self._column_of_step = np.full(transcript.steps, -1)  # v and w exist where a row needs them
        self._column_of_pair = np.full(len(transcript.pairs), -1)
        self._entries: list[np.ndarray] = []
        self._steps: list[np.ndarray] = []
        self.shares = np.full(n, 1 / n)
        self.merge_slack = np.zeros(transcript.steps)
        self.pair_slack = np.zeros(len(transcript.pairs))
        self.objective = 0.0

    @property
    def active(self) -> np.ndarray:
        """Entries and steps of the rows that hold with equality."""
        entry, step = (np.concatenate([*many, np.empty(0, np.int64)]) for many in (self._entries, self._steps))
        left = (self.shares_of[self.merge_entry[step]] - self.shares_of[entry]) @ self.shares
        tight = left + self.merge_slack[step] + self.pair_slack[self.pair[entry]] < _TIGHT
        return np.stack([entry[tight], step[tight]])

    def add(self, entry: np.ndarray, step: np.ndarray) -> None:
        """Add one row per entry and step, and the slacks that they need."""
        pair = self.pair[entry]
        self._new_columns(self._column_of_step, step)
        self._new_columns(self._column_of_pair, pair)
        n, rows = self.shares_of.shape[1], len(entry)
        difference = self.shares_of[self.merge_entry[step]] - self.shares_of[entry]
        values = np.concatenate([_SCALE * difference, np.ones((rows, 2))], axis=1)
        columns = np.concatenate(
            [
                np.tile(np.arange(n), (rows, 1)),
                self._column_of_step[step][:, None],
                self._column_of_pair[pair][:, None],
            ],
            axis=1,
        )
        starts = np.arange(rows) * (n + 2)
        self._solver.addRows(
            rows,
            np.zeros(rows),
            np.full(rows, np.inf),
            rows * (n + 2),
            starts.astype(np.int32),
            columns.ravel().astype(np.int32),
            values.ravel(),
        )
        self._entries.append(entry)
        self._steps.append(step)
        self.rows += rows

    def _new_columns(self, column_of: np.ndarray, wanted: np.ndarray) -> None:
        new = np.unique(wanted[column_of[wanted] < 0])
        column_of[new] = self.columns + np.arange(len(new))
        none = np.empty(0, np.int32)
        count = len(new)
        self._solver.addCols(count, np.ones(count), np.zeros(count), np.full(count, np.inf), 0, none, none, np.empty(0))
        self.columns += count

    def solve(self) -> None:
        """Solve from the basis of the last time."""
        self._solver.run()
        status = self._solver.modelStatusToString(self._solver.getModelStatus())
        if status != "Optimal":
            raise UserError(f"HiGHS could not solve the program ({status}); use fewer merges (max_merges)")
        solution = np.array(self._solver.getSolution().col_value)
        self.shares = np.clip(solution[: self.shares_of.shape[1]], 0, None)
        self.shares /= self.shares.sum()
        for slack, column in (
            (self.merge_slack, self._column_of_step),
            (self.pair_slack, self._column_of_pair),
        ):
            slack[column >= 0] = np.maximum(solution[column[column >= 0]], 0) / _SCALE
        self.objective = float(self._solver.getInfo().objective_function_value) / _SCALE


def _highs() -> Any:
    """Make a solver without the banner that HiGHS prints on standard output."""
    try:
        import highspy
    except ModuleNotFoundError:
        raise missing_extra("highspy", "audit") from None
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        return highspy.Highs()
    finally:
        os.dup2(kept, 1)
        os.close(kept)


# -- the audit --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class DataMixture(Audit):
    """What share of its training data came from each category, by the merge list of a BPE tokenizer.

    Parameters
    ----------
    samples
        A sample of every category, by name: the documents, e.g. a list of texts or a `mintage.data.Corpus`. Take what
        the trainer is likely to have seen: as much as you have, 1 GB each in the paper, a few hundred kB still serve.
    max_merges
        Use the first merges only (T of the paper).
    min_count
        Stop earlier, at the first hundred merges of which half occur less often than this in all samples together:
        their order says more about the samples than about the mixture. 0 goes on to `max_merges`.
    unit
        Shares of ``"bytes"`` or of ``"pairs"`` (of adjacent symbols, the unit of the linear program).
    batch, rows_per_round, tol
        As in `infer_mixture`.
    bootstrap
        Resamples for the 95% intervals (normal, from their standard deviation): each draws, in every category, as many
        of its 20 blocks of documents as there are. 0 gives no intervals.
    seed
        Of the resamples.
    processes
        How many cut the samples into pre-tokens.
    work
        A folder that keeps the count of pre-tokens so far; the same audit goes on from there after a kill.

    Raises
    ------
    UserError
        A setting is out of range, or there is no category.
    """

    samples: Mapping[str, Texts]
    max_merges: int = 30_000
    min_count: int = 20
    unit: Literal["bytes", "pairs"] = "bytes"
    batch: int = 10
    rows_per_round: int = 500
    tol: float = 1e-9  # the paper's 1e-6 stops short of the optimum
    bootstrap: int = 20
    seed: int = 0
    processes: int = 1
    work: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.samples:
            raise UserError("no category given; pass a sample of at least one")
        if self.unit not in ("bytes", "pairs"):
            raise UserError(f"unit={self.unit!r} is unknown; pass 'bytes' or 'pairs'")
        for name, least in (("max_merges", 1), ("min_count", 0), ("bootstrap", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} is too small; pass at least {least}")

    def run(self, subject: Any, *, name: str = "", progress: Progress = silent) -> Report:
        """Infer the mixture behind a BPE tokenizer (`tokenizers.Tokenizer`, or transformers' fast tokenizers).

        Raises
        ------
        UserError
            `subject` is no BPE tokenizer, its merges do not occur in the samples, or a sample is empty.
        """
        tokenizer = getattr(subject, "backend_tokenizer", subject)
        if not isinstance(tokenizer, Tokenizer):
            raise UserError(
                f"a {type(subject).__name__} is no tokenizer; pass what mintage.tokenizer_files.load_tokenizer returns"
            )
        listed = merges(tokenizer)
        organic = clean_merges(listed)
        counted = _count(self, tokenizer, progress)
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
        return _report(self, name, estimate, transcript, counted, spread, len(listed), len(organic))

    def _infer(self, transcript: Transcript, counted: _Counted, **settings: Any) -> MixtureEstimate:
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


@dataclass(frozen=True, eq=False)
class _Counted:
    """The pre-tokens of all samples: how often each stands in each block of each category."""

    words: list[str]
    cells: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # category: word, block, count
    sizes: dict[str, int]  # category: bytes

    def weights(self, generator: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """Count of every word in every category; with a generator, of a resample of its blocks."""
        out = {}
        for name, (word, block, count) in self.cells.items():
            times = np.ones(BLOCKS, np.int64)
            if generator is not None and self.resampled(name):
                full = np.unique(block)
                times[:] = 0
                times[full] = generator.multinomial(len(full), np.full(len(full), 1 / len(full)))
            out[name] = np.bincount(word, weights=count * times[block], minlength=len(self.words)).astype(np.int64)
        return out

    def resampled(self, name: str) -> bool:
        """Whether the sample has documents in enough blocks."""
        return len(np.unique(self.cells[name][1])) >= BLOCKS // 2


class _InBlocks:
    """Cut a document into pre-tokens, each with a letter before it for the block that the document belongs to."""

    def __init__(self, cut: PreTokens) -> None:
        self._cut = cut

    def __call__(self, text: str) -> list[str]:
        letter = chr(ord("a") + crc32(text.encode("utf-8", "surrogatepass")) % BLOCKS)
        return [letter + word for word in self._cut(text)]


class _Measured:
    """A corpus that knows, after a pass, how many bytes it gave."""

    def __init__(self, texts: Texts) -> None:
        self._texts, self.size = texts, 0
        self.fingerprint = str(getattr(texts, "fingerprint", ""))

    def __iter__(self) -> Iterator[str]:
        self.size = 0
        for text in self._texts:
            self.size += len(text.encode("utf-8", "surrogatepass"))
            yield text


def _count(audit: DataMixture, tokenizer: Tokenizer, progress: Progress) -> _Counted:
    cut = _InBlocks(PreTokens(tokenizer))
    mark = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:12]
    number: dict[str, int] = {}
    cells, sizes = {}, {}
    for name, texts in audit.samples.items():
        corpus = _Measured(as_corpus(texts))
        key = hashlib.sha256(name.encode()).hexdigest()[:12]
        state = Path(audit.work) / f"{mark}-{key}.json" if audit.work else None
        stage = f"cutting {name}"
        counts = count_words(
            corpus, cut, processes=audit.processes, state=state, progress=lambda n, stage=stage: progress(stage, n, 0)
        )
        if not counts:
            raise UserError(f"the sample of {name!r} is empty; pass text of that category")
        word = np.fromiter((number.setdefault(w[1:], len(number)) for w in counts), np.int64, len(counts))
        block = np.fromiter((ord(w[0]) - ord("a") for w in counts), np.int64, len(counts))
        cells[name] = word, block, np.fromiter(counts.values(), np.int64, len(counts))
        sizes[name] = corpus.size
    return _Counted(list(number), cells, sizes)


def _useful(transcript: Transcript, min_count: int, run: int = 100) -> int:
    """Number of merges up to the first run of which half occur less often than `min_count` in all samples together."""
    counts = transcript.merge_counts.sum(axis=1)
    for start in range(run, transcript.steps, run):
        found = counts[start : start + run]
        found = found[found > 0]  # the others are of data that no sample covers, and are skipped
        if not len(found) or np.median(found) < min_count:
            return start
    return transcript.steps


def _report(
    audit: DataMixture,
    name: str,
    estimate: MixtureEstimate,
    transcript: Transcript,
    counted: _Counted,
    spread: np.ndarray | None,
    listed: int,
    organic: int,
) -> Report:
    shares = np.array(list(estimate.shares.values()))
    low = high = [None] * len(shares)
    if spread is not None:
        low = np.clip(shares - 1.96 * spread, 0, 1).tolist()
        high = np.clip(shares + 1.96 * spread, 0, 1).tolist()
    in_pairs = shares if audit.unit == "pairs" else shares * transcript.denominators / list(counted.sizes.values())
    in_pairs = in_pairs / in_pairs.sum()
    weights = counted.weights()
    table = [
        {
            "category": category,
            f"share of {audit.unit}": share,
            "low": below,
            "high": above,
            **({"share of pairs": float(pairs)} if audit.unit == "bytes" else {}),
            "sample bytes": counted.sizes[category],
            "pre-tokens": int(weights[category].sum()),
        }
        for category, share, below, above, pairs in zip(
            transcript.categories, shares.tolist(), low, high, in_pairs, strict=True
        )
    ]
    absent = int((~transcript.merge_counts.any(axis=1)).sum())
    notes = [
        "A category of the training data that has no sample here is absorbed by the samples nearest to it.",
        f"The objective, {estimate.objective:.3f}, is by how much the merges contradict the samples: compare it between"
        " sets of samples; one several times larger means that these samples, or the way text is cut, fit less well.",
    ]
    if organic < listed:
        notes.append(
            f"{listed - organic} of {listed} merges were left out: other ways to make the same token, or "
            "placed by hand."
        )
    if transcript.steps < min(organic, audit.max_merges):
        notes.append(
            f"Of {min(organic, audit.max_merges)} merges the first {transcript.steps} were used: most later "
            f"ones occur fewer than {audit.min_count} times in the samples."
        )
    if absent:
        notes.append(f"{absent} of the {transcript.steps} merges used occur in no sample and say nothing.")
    worst = np.argsort(-estimate.pair_slack)[:3]
    passed = [transcript.pairs[p] for p in worst if estimate.pair_slack[p] > 1e-3]
    if passed:
        pairs = ", ".join(f"{left!r} + {right!r}" for left, right in passed)
        notes.append(f"Frequent in the samples, but passed over by the trainer: {pairs}.")
    fixed = [category for category in transcript.categories if not counted.resampled(category)]
    if audit.bootstrap and fixed:
        left_out = "the intervals leave their noise out" if spread is not None else "there are no intervals"
        notes.append(f"Too few documents to resample: {', '.join(fixed)}; {left_out}.")
    series: dict[str, Any] = {"name": "inferred", "y": shares.tolist()}
    if spread is not None:
        series |= {"low": low, "high": high}
    figure = Figure(
        job="audit",
        name=f"data-mixture-{name or 'tokenizer'}",
        title=f"What {name or 'the tokenizer'} was trained on",
        caption=f"Inferred share of {audit.unit} by category, from {transcript.steps} merges"
        + (f"; bars: 95% of {audit.bootstrap} resamples of the documents." if spread is not None else "."),
        kind="bars",
        method="data-mixture",
        data={"y_label": f"share of {audit.unit}", "categories": list(transcript.categories), "series": [series]},
    )
    findings: dict[str, Any] = {
        "largest share": max(estimate.shares, key=lambda category: estimate.shares[category]),
        "objective": estimate.objective,
        "merges used": transcript.steps,
        "constraints": estimate.rows,
    }
    return Report(audit="data-mixture", subject=name, findings=findings, table=table, figures=[figure], notes=notes)

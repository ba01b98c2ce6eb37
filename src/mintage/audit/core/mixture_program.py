"""The linear program of data mixture inference: which constraints are violated, and HiGHS, which solves it.

Rows are added to the program round by round (Hayase et al., arXiv 2407.16607, section 3.3). Not here: Gurobi, which the
authors use (HiGHS finds the same optimum).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from mintage.audit.core.merge_replay import Transcript
from mintage.errors import UserError, missing_extra

__all__ = ["MixtureEstimate", "Program", "violated"]

_SCALE = 1e4  # of rows and slacks, so that the solver's tolerance of 1e-9 means shares of 1e-13
_TIGHT = 1e-10  # a constraint with less to spare holds with equality
_CANDIDATES = 20  # violated constraints looked at for one that is added

Ints = Integer[np.ndarray, " _"]  # of any length


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


class Program:
    """The linear program in HiGHS, which keeps its basis while rows are added."""

    def __init__(self, shares_of: np.ndarray, transcript: Transcript, merge_entry: np.ndarray) -> None:
        self.shares_of, self.merge_entry, self.pair = shares_of, merge_entry, transcript.pair
        self._solver = solver = _highs()
        for name, value in (
            ("output_flag", False),
            ("threads", 1),
            ("random_seed", 0),
            ("primal_feasibility_tolerance", 1e-9),
            ("dual_feasibility_tolerance", 1e-9),
        ):
            solver.setOptionValue(name, value)
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


def violated(
    program: Program, transcript: Transcript, present: np.ndarray, tol: float, batch: int, limit: int
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
    rank = np.arange(len(turn)) - np.repeat(opens, np.diff(np.append(opens, len(turn))))
    chosen = np.sort(turn[rank < batch])[:limit]
    return entry[chosen], step[chosen]


def _argmin_tables(values: np.ndarray) -> list[np.ndarray]:
    """Row k, column i: where the least value among i .. i + 2**k - 1 is."""
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

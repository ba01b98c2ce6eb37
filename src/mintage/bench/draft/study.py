r"""What a study of a drafter is made of: a run of the arms that its claims are about, and rows over that run.

A study names its arms and yields `Comparison`\ s and `Finding`\ s over a `DraftRun`. The joint bench tests the same
claims on whatever run has their arms, so a claim says which those are: ``if run.greedy and run.has(ARM): yield ...``.

Not here: the claims (`mintage.studies`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from mintage import catalog
from mintage.bench.draft.arms import GENERATE
from mintage.bench.draft.drafting import Drafting, Prepared
from mintage.bench.draft.run import DraftRun
from mintage.measure import Figure, Interval, Result, bootstrap_ratio
from mintage.measure.study import Column, Comparison, Finding, Measure, Rule, Run, Statistic, Study
from mintage.progress import Note, unheard

__all__ = ["DraftStudy", "claim_rows", "emitted", "emitted_over", "speeds"]


@dataclass(frozen=True, kw_only=True)
class DraftStudy(Drafting, Study, ABC):
    """Claims about drafters. Every arm answers every prompt in one process, interleaved; ratios pair prompts."""

    job = "draft"

    greedy: ClassVar[Sequence[str]] = ()
    """Arms of the claims about temperature 0; none where there is no such claim."""

    sampling: ClassVar[Sequence[str]] = ()
    """Arms of the claims about temperature 1, or what is given above 0."""

    @abstractmethod
    def claims(self, run: DraftRun) -> Iterable[Comparison | Finding]:
        """Yield the claims that a run can test: it has their arms, and is greedy or not as they are."""

    def enumerated(self) -> Iterable[Finding]:
        """Yield the claims that need no model: tested by exact enumeration."""
        return ()

    def subject(self, run: Run) -> list[Prepared]:
        """Make the arms of the claims, at the temperatures that they are about or that are given."""
        usual = [temperature for temperature, arms in ((0.0, self.greedy), (1.0, self.sampling)) if arms] or [0.0]
        plan = {t: (self.sampling if t else self.greedy) or [self.method] for t in self.temperature or usual}
        return self.prepare(plan, work=run.work, command=run.command, note=run.note)

    def arms(self, run: Run) -> dict[str, Any]:
        """Return the decoders of all runs."""
        return {name: arm for prepared in run.subject for name, arm in prepared.run.arms.items()}

    def measures(self, run: Run) -> Iterable[Measure]:
        """Measure nothing beside the runs of answers, see `rows`."""
        return ()

    def rows(self, run: Run) -> Iterable[Finding | Result]:
        """Yield what is enumerated, then of every run its claims and a row per arm and metric."""
        yield from self.enumerated()
        for prepared in run.subject:
            prepared.measure(run.progress)
            yield from claim_rows(prepared.run, self, note=run.note)
            yield from self.rows_of(prepared.run)

    def figures(self, run: Run) -> Iterable[Figure]:
        """Draw every run."""
        for prepared in run.subject:
            yield from self.figures_of(prepared.run)

    def finish(self, run: Run) -> None:
        """Forget the answers."""
        for prepared in run.subject:
            prepared.journal.delete()


def claim_rows(run: DraftRun, *studies: DraftStudy, note: Note = unheard) -> list[Result]:
    """Test whatever a run has the arms of: the claims of these studies and of all that the catalogue has.

    One prompt has no interval, so nothing can be concluded from it.
    """
    if len(run.prompts) < 2:
        return []
    known = {study.method: study for study in (*_catalogued(note), *studies)}
    return [replace(row, method=s.method).result(run) for s in known.values() for row in s.claims(run)]


def _catalogued(note: Note) -> Iterable[DraftStudy]:
    """Load the studies of all drafters, those of plug-ins included."""
    for row in catalog.methods("draft"):
        try:
            kind = row.load_study() if row.study else None
        except Exception as error:  # a plug-in's own mistake must not cost the run of the others
            note(f"the claims of {row.name} ({row.package}) are not tested: {error}")
            continue
        if kind is not None and issubclass(kind, DraftStudy):
            yield kind()


# -- tokens per forward ------------------------------------------------------------------------------------------------


def _emitted(counts: Column) -> Interval:
    tokens, rounds = counts
    return bootstrap_ratio(tokens, rounds)


def emitted_over(ours: Column, theirs: Column) -> Interval:
    """Ratio of tokens per forward, from ``new_tokens`` and ``rounds`` of two arms on the same prompts."""
    # both arms emit (almost) equally many tokens, so the ratio is over forwards per token
    return bootstrap_ratio(theirs[1] / theirs[0], ours[1] / ours[0])


def emitted(
    run: DraftRun,
    metric: str,
    ours: str,
    claim: str,
    holds: Rule,
    *,
    rival: str | None = None,
    beside: bool = True,
    apart: Sequence[str] = (),
) -> Comparison:
    """Compare tokens per target forward.

    Parameters
    ----------
    run
        What was measured.
    metric, ours, claim, holds, rival
        As in `Comparison`.
    beside
        Whether all other arms stand beside it.
    apart
        Arms that do not, though: those that the claim is about, besides `ours` and `rival`.
    """
    others = [name for name in run.same_arithmetic if name not in (GENERATE, ours, rival, *apart)]
    return Comparison(
        metric=metric,
        ours=ours,
        rival=rival,
        of=("new_tokens", "rounds"),
        by=Statistic("tokens" if rival is None else "x", True, emitted_over, _emitted),
        claim=claim,
        holds=holds,
        baseline=[GENERATE] if beside else (),
        peers=others if beside else (),
    )


def speeds(run: DraftRun, *apart: str) -> dict[str, float]:
    """Return how many times as fast as ``generate`` the other arms are."""
    return {name: run.speed_up(name).value for name in run.measurements if name not in (GENERATE, *apart)}

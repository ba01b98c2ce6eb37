r"""Drafting as a bench measures it: the options of every run of drafters, and from them the runs, ready to be measured.

The rooms: `arms` makes the decoders, `run` runs them over the prompts, `journal` lets a killed run go on, `rows` and
`figures` tell what came out. `joint` compares methods of your choice; a `DraftStudy` names the arms of a paper's claims
and yields `Comparison`\ s and `Finding`\ s over a run. A joint run tests the same claims where it has their arms, so a
claim says which those are: ``if run.greedy and run.has(ARM): yield ...``.

Not here: the claims (`mintage.studies`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mintage import catalog
from mintage.bench.draft.arms import GENERATE, at_nodes, bare, default_arms, default_specs, needs_draft_model
from mintage.bench.draft.figures import run_figures, tree_figure
from mintage.bench.draft.journal import Journal
from mintage.bench.draft.rows import metric_rows
from mintage.bench.draft.run import DraftRun
from mintage.data import read_prompts, spread
from mintage.draft import Warp, load_draft_model
from mintage.measure import Figure, Interval, Result, bootstrap_ratio
from mintage.measure.study import Column, Comparison, Finding, Measure, Rule, Run, Statistic, Study
from mintage.models import EMBEDDED, load_causal_lm, rounded_copy
from mintage.options import DTYPES, Options, option
from mintage.progress import Note, Progress, unheard

__all__ = ["DraftStudy", "Drafting", "Prepared", "claim_rows", "emitted", "emitted_over", "speeds"]


class Prepared(NamedTuple):
    """A run that can begin, and what keeps its answers."""

    run: DraftRun
    journal: Journal

    def measure(self, progress: Progress) -> None:
        """Answer every prompt, but those answered before."""
        self.run.measure(progress, self.journal)


@dataclass(frozen=True, kw_only=True)
class Drafting(Options):
    """What every run of drafters may be told; each temperature is a run of its own."""

    model: str = option(EMBEDDED, "smollm2 (embedded), a folder, or a hub id.")
    prompts: str | None = option(None, "JSON lines with turns or prompt (Spec-Bench's format); default: bundled.")
    categories: tuple[str, ...] = option((), "Kinds of prompts, e.g. code,repetition; default all.")
    limit: int = option(24, "Use this many prompts, spread over categories; 0 for all.", least=0)
    max_new_tokens: int = option(96, "Per answer.", least=1, short="-n")
    temperature: tuple[float, ...] = option(
        (), "0 is greedy; several as 0,0.6,1 are runs of their own.", least=0, short="-t"
    )
    draft_model: str | None = option(
        None,
        "A drafter's .safetensors, a folder or hub id, or rounded:BITS of the model. Default: the shipped drafter for "
        "smollm2; for others a 4-bit-rounded copy, where one cannot do without.",
    )
    assisted: bool = option(True, "Run transformers' assisted generation too (the slowest arm).")
    link_bandwidth: float = option(
        16.0, "GB/s at which modelled offloaded weights come; PCIe 4.0 x16 gives about 16 to 25.", above=0
    )
    dtype: str = option("auto", DTYPES)
    device: str = option("cpu", "cpu, cuda, ...")
    seed: int = option(0, "Of everything random.", least=0, below=2**63)

    def prepare(
        self,
        plan: Mapping[float, Sequence[str]],
        *,
        work: Path,
        nodes: Sequence[int] = (),
        command: str = "",
        note: Note = unheard,
    ) -> list[Prepared]:
        """Load everything and make the arms; whatever cannot be run is told here, before anything is measured.

        Parameters
        ----------
        plan
            Drafter specs by temperature; none stands for the usual ones.
        work
            Keeps the answers of runs that are not over.
        nodes
            Measure every method at these numbers of nodes, see `mintage.bench.draft.arms.at_nodes`.
        command
            What repeats it.
        note
            Told, in one line, what is left out or taken up again.

        Raises
        ------
        UserError
            Bad specs, prompts or models.
        """
        for temperature, specs in plan.items():
            Warp(temperature=temperature)  # tells a bad one
            for spec in specs:
                needs_draft_model(spec)  # unknown names are told before the model loads
            at_nodes(specs if nodes else [], nodes)
        chosen = spread(read_prompts(self.prompts, categories=self.categories), self.limit or None)
        lm = load_causal_lm(self.model, dtype=self.dtype, device=self.device, note=note)
        # by default only a shipped drafter counts as at hand: what needs another gets a rounded copy
        draft = load_draft_model(self.draft_model, lm) if self.draft_model or lm.name == EMBEDDED else None
        stand_in = cache(lambda: rounded_copy(lm.model))  # one for all temperatures
        prepared = []
        for temperature, specs in plan.items():
            arms = default_arms(
                lm,
                specs or default_specs(lm, draft_model=draft is not None, curves=bool(nodes)),
                draft_model=None if draft is None else draft.model,
                stand_in=stand_in,
                assisted=self.assisted,
                nodes=nodes,
                engines=not temperature,
                note=note,
            )
            drafting = any(arm.draft_model is not None for arm in arms)
            run = DraftRun(
                lm=lm,
                prompts=chosen,
                arms={arm.name: arm for arm in arms},
                temperature=temperature,
                max_new_tokens=self.max_new_tokens,
                seed=self.seed,
                draft="" if not drafting else "4-bit-rounded copy" if draft is None else draft.label,
                data="bundled prompts" if self.prompts is None else self.prompts.rsplit("/", 1)[-1],
                command=command,
            )
            journal = Journal(work, _definition(run))
            if done := journal.finished:
                note(f"{done} of {len(chosen)} prompts answered before, temperature {temperature:g} ({journal.folder})")
            prepared.append(Prepared(run, journal))
        if len(chosen) == 1:
            note("one prompt has no interval: claims are not tested; pass --limit 2 or more")
        return prepared

    def rows_of(self, run: DraftRun) -> list[Result]:
        """Return a row per arm and metric."""
        return metric_rows(run, link=self.link_bandwidth)

    def figures_of(self, run: DraftRun) -> list[Figure]:
        """Draw everything that a run can show; of a greedy one, a tree of every drafter without a draft model, too."""
        figures = run_figures(run)
        if not run.temperature and not any(arm.nodes for arm in run.arms.values()):
            drawn = [bare(arm.name) for arm in run.arms.values() if arm.drafter is not None and arm.draft_model is None]
            figures += [tree_figure(run.lm, run.prompts[0], spec, self.max_new_tokens) for spec in dict.fromkeys(drawn)]
        return figures


def _definition(run: DraftRun) -> dict[str, Any]:
    """Everything that defines a run; the journal goes on only where all of it is the same."""
    described = {name: value for name, value in run.common["environment"].items() if name not in ("time", "dirty")}
    return {
        "model": [run.lm.name, _sample(run.lm.model)],
        "draft": [run.draft, [] if run.draft_model is None else _sample(run.draft_model)],
        "prompts": [[prompt.id, *prompt.turns] for prompt in run.prompts],
        "arms": list(run.arms),
        "temperature": run.temperature,
        "max_new_tokens": run.max_new_tokens,
        "seed": run.seed,
        "environment": described,
    }


def _sample(model: Any) -> list[Any]:
    """Describe a model: configuration, dtype, device, and some numbers out of every weight."""
    weights = [p.detach().flatten() for p in model.parameters()]
    few = [float(w[:: max(1, len(w) // 64)].double().sum()) for w in weights]
    return [model.config.to_json_string(), str(model.dtype), str(model.device), few]


# -- studies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DraftStudy(Drafting, Study, ABC):
    """Claims about drafters. Every arm answers every prompt in one process, interleaved; ratios pair prompts."""

    job = "draft"

    greedy: ClassVar[Sequence[str]] = ()
    """Arms of the claims about temperature 0; none where there is no such claim."""

    sampling: ClassVar[Sequence[str]] = ()
    """Arms of the claims about temperature 1, or what is given above 0."""

    exact: ClassVar[Sequence[Finding]] = ()
    """Claims that need no model: tested by exact enumeration, see `mintage.bench.draft.acceptance`."""

    @abstractmethod
    def claims(self, run: DraftRun) -> Iterable[Comparison | Finding]:
        """Yield the claims that a run can test: it has their arms, and is greedy or not as they are."""

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
        yield from self.exact
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

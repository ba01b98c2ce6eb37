"""Drafting as a bench measures it: the options of every run of drafters, and from them the runs, ready to be measured.

The rooms: `arms` makes the decoders, `run` runs them over the prompts, `journal` lets a killed run go on, `rows` and
`figures` tell what came out. `joint` compares methods of your choice, `study` tests a method's claims; both are made
of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mintage.bench.draft.arms import at_nodes, bare, default_arms, default_specs, needs_draft_model
from mintage.bench.draft.figures import run_figures, tree_figure
from mintage.bench.draft.journal import Journal
from mintage.bench.draft.rows import metric_rows
from mintage.bench.draft.run import DraftRun
from mintage.data import read_prompts, spread
from mintage.draft import Warp, load_draft_model
from mintage.measure import Figure, Result
from mintage.models import EMBEDDED, load_causal_lm, rounded_copy
from mintage.options import Options, option
from mintage.progress import Note, Progress, unheard

__all__ = ["Drafting", "Prepared"]


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
    dtype: str = option("bfloat16", "bfloat16, float32 or float16.")
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
        chosen = spread(read_prompts(self.prompts), self.limit or None)
        lm = load_causal_lm(self.model, dtype=self.dtype, device=self.device)
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
                llama_cpp=not temperature,
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
    described = run.common["environment"]
    versions = ("mintage", "commit", "python", "torch", "transformers", "cpu", "cores", "threads", "gpu")
    return {
        "model": [run.lm.name, _sample(run.lm.model)],
        "draft": [run.draft, [] if run.draft_model is None else _sample(run.draft_model)],
        "prompts": [[prompt.id, *prompt.turns] for prompt in run.prompts],
        "arms": list(run.arms),
        "temperature": run.temperature,
        "max_new_tokens": run.max_new_tokens,
        "seed": run.seed,
        "environment": {name: described[name] for name in versions},
    }


def _sample(model: Any) -> list[Any]:
    """Describe a model: configuration, dtype, device, and some numbers out of every weight."""
    weights = [p.detach().flatten() for p in model.parameters()]
    few = [float(w[:: max(1, len(w) // 64)].double().sum()) for w in weights]
    return [model.config.to_json_string(), str(model.dtype), str(model.device), few]

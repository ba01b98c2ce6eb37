"""``mintage bench draft``: measure drafters on a real model beside transformers' own decoders, in one process.

The rooms: `arms` makes the decoders, `run` runs them over the prompts, `journal` lets a killed run go on, `rows` and
`figures` tell what came out.
What the papers claim, and from where on it holds here, stands in `mintage.studies.draft`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mintage.bench.draft.arms import Arm, at_budgets, bare, default_arms, default_specs, is_cold, needs_draft_model
from mintage.bench.draft.figures import run_figures, tree_figure
from mintage.bench.draft.journal import Journal
from mintage.bench.draft.rows import exact_rows, result_rows
from mintage.bench.draft.run import Run
from mintage.data import read_prompts, spread
from mintage.draft.core.distilled import DraftModel, load_draft_model, shipped_drafter
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.measure.environment import environment
from mintage.models import EMBEDDED, CausalLM, load_causal_lm, rounded_copy
from mintage.studies.draft import CLAIMS, EXACT_CLAIMS

__all__ = ["run"]

_TEMPERATURE = {"greedy": 0.0, "sampling": 1.0}
"""Where claims are tested when no temperature is given."""


def run(
    methods: Sequence[str] = (),
    *,
    model: str = EMBEDDED,
    prompts: str | None = None,
    limit: int | None = 24,
    max_new_tokens: int = 96,
    temperature: float | Sequence[float] | None = None,
    budgets: Sequence[int] = (),
    dtype: str = "bfloat16",
    device: str = "cpu",
    draft_model: str | None = None,
    assisted: bool = True,
    link_bandwidth: float = 16.0,
    seed: int = 0,
    work: str | Path = ".mintage/bench",
    command: str = "mintage bench draft",
    progress: Callable[[int, int, str], None] = lambda done, total, arm: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Result | Figure]:
    """Measure drafters beside transformers' own decoders.

    Parameters
    ----------
    methods
        Drafter specs; default `arms.default_specs`. One method's bare name stands for its claims' arms.
    model, dtype, device
        The target, see `mintage.models.load_causal_lm`.
    prompts
        A file for `mintage.data.read_prompts`; default the bundled prompts.
    limit
        Use this many prompts, spread over the categories; None for all.
    max_new_tokens, seed
        Of every answer.
    temperature
        One or several; each is a run of its own with rows of its own. Default: greedy, and for one method's bare name
        whatever its claims are about (greedy, temperature 1, or both).
    budgets
        Measure every method at these node budgets instead, see `mintage.bench.draft.arms.at_budgets`.
    draft_model
        As in `load_draft_model`. Default: the drafter that mintage ships for the model; where
        there is none, a 4-bit-rounded copy, for arms that cannot do without.
    assisted
        Whether transformers' assisted generation runs too; it is the slowest arm.
    link_bandwidth
        GB/s of the link over which the modelled offloaded weights come; PCIe 4.0 x16 gives about 16 to 25.
    work
        Keeps the answers of a run until it is over; the same command goes on after a kill.
    command
        Written into the rows.
    progress
        Told answers done, answers in all, and the arm of the last one.
    note
        Told, in one line, what is left out or taken up again.

    Raises
    ------
    UserError
        Bad specs, prompts or models; nothing is measured then.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}; a bench needs at least 1")
    if not link_bandwidth > 0:
        raise UserError(f"link_bandwidth={link_bandwidth} is not positive; pass GB/s, e.g. 16")
    plan = _plan(list(methods), temperature, claims=not budgets)
    for heat, specs in plan.items():
        Warp(temperature=heat)  # tells a bad one
        for spec in specs:
            needs_draft_model(spec)  # unknown names are told before the model loads
        at_budgets(specs if budgets else [], budgets)
    chosen = spread(read_prompts(prompts), limit)
    rows: list[Result | Figure] = [*exact_rows([c for c in EXACT_CLAIMS if c.method in methods], command, seed)]
    lm = load_causal_lm(model, dtype=dtype, device=device)
    draft = _at_hand(draft_model, lm)
    stand_in = cache(lambda: rounded_copy(lm.model))  # one for all temperatures
    runs: list[tuple[Run, list[Arm], Journal]] = []
    for heat, asked in plan.items():
        specs = asked or _usual(lm, draft is not None, bool(budgets))
        arms = default_arms(
            lm,
            specs,
            draft_model=None if draft is None else draft.model,
            stand_in=stand_in,
            assisted=assisted,
            budgets=budgets,
            llama_cpp=not heat,
            note=note,
        )
        drafting = any(arm.draft_model is not None for arm in arms)
        named = ("4-bit-rounded copy" if draft is None else draft.label) if drafting else ""
        bench = Run(lm, chosen, heat, max_new_tokens, seed, named)
        journal = Journal(work, _definition(bench, arms))
        if journal.finished:
            note(
                f"{journal.finished} of {len(chosen)} prompts answered before, temperature {heat:g} ({journal.folder})"
            )
        runs.append((bench, arms, journal))
    total, done = sum(len(arms) for _, arms, _ in runs) * len(chosen), 0

    def step(arm: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, arm)

    if len(chosen) == 1:
        note("one prompt has no interval: claims are not tested; pass --limit 2 or more")
    data = "bundled prompts" if prompts is None else str(prompts).rsplit("/", 1)[-1]
    for bench, arms, journal in runs:
        bench.measure(arms, step, journal)
        rows += result_rows(bench, command=command, data=data, link=link_bandwidth)
        rows += run_figures(bench)
        if not bench.temperature and not budgets:
            drawn = [bare(arm.name) for arm in arms if arm.drafter is not None and arm.draft_model is None]
            rows += [tree_figure(lm, chosen[0], spec, max_new_tokens) for spec in dict.fromkeys(drawn)]
    for _, _, journal in runs:
        journal.delete()
    return rows


def _plan(methods: list[str], temperature: float | Sequence[float] | None, *, claims: bool) -> dict[float, list[str]]:
    """Tell what to run at which temperature; an empty list stands for the usual drafters.

    One method's bare name stands for the arms of its claims, where it has any that are about the temperature.
    """
    own = [claim for claim in CLAIMS if claims and [claim.method] == methods]
    if temperature is None:
        heats = [heat for when, heat in _TEMPERATURE.items() if any(claim.when == when for claim in own)] or [0.0]
    else:
        heats = [temperature] if isinstance(temperature, (int, float)) else list(dict.fromkeys(temperature))
    plan = {}
    for heat in heats:
        fitting = [claim for claim in own if claim.when == ("sampling" if heat else "greedy")]
        plan[float(heat)] = list(dict.fromkeys(arm for claim in fitting for arm in claim.arms)) or methods
    return plan


def _usual(lm: CausalLM, draft_model: bool, budgets: bool) -> list[str]:
    """List the usual drafters, with their usual shapes, or by name where every budget gives them a shape."""
    specs = default_specs(lm, draft_model=draft_model)
    if not budgets:
        return specs
    names = ["+".join(part.partition(":")[0] for part in bare(spec).split("+")) for spec in specs if not is_cold(spec)]
    return [name for name in dict.fromkeys(names) if name != "prompt-lookup"]  # the union has it


def _at_hand(spec: str | None, lm: CausalLM) -> DraftModel | None:
    """Load the draft model that was asked for, or the one that ships for the model; None where there is neither."""
    if spec is None and not (lm.name == EMBEDDED and shipped_drafter().is_file()):
        return None
    return load_draft_model(spec, lm)


def _definition(run: Run, arms: Sequence[Arm]) -> dict[str, Any]:
    """Everything that defines a run; the journal goes on only where all of it is the same."""
    described = environment()
    versions = ("mintage", "commit", "python", "torch", "transformers", "cpu", "cores", "threads", "gpu")
    return {
        "model": [run.lm.name, _sample(run.lm.model)],
        "draft": [run.draft, *(_sample(arm.draft_model) for arm in arms if arm.draft_model is not None)][:2],
        "prompts": [[prompt.id, *prompt.turns] for prompt in run.prompts],
        "arms": [arm.name for arm in arms],
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

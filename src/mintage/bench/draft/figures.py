"""Pictures of a bench's run: speeds, kinds of prompts, acceptance by depth, the budget curve, and one round's tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mintage.bench.draft.arms import GENERATE
from mintage.bench.draft.run import DraftRun, Measurement
from mintage.data import Prompt
from mintage.draft import Context, Drafter, TokenTree, Union, generate
from mintage.measure import Figure
from mintage.measure.environment import environment
from mintage.measure.figure import bars, curve
from mintage.models import CausalLM

__all__ = ["Watched", "run_figures", "tree_figure"]


def run_figures(run: DraftRun) -> list[Figure]:
    """Draw everything that a run can show."""
    described = run.common["environment"]
    where = f"t{run.temperature:g}-{str(run.lm.model.dtype).removeprefix('torch.')}"
    figures = [_speeds(run, where, described), _categories(run, where, described)]
    for figure in (_depths(run, where, described), _curve(run, where, described)):
        if figure is not None:
            figures.append(figure)
    return figures


def _speeds(run: DraftRun, where: str, described: dict[str, Any]) -> Figure:
    speeds = {name: run.speed_up(name) for name in run.measurements}
    return Figure(
        job="draft",
        name=f"speed-{where}",
        title=f"Speed over plain generate, temperature {run.temperature:g}",
        caption=f"Median over {len(run.prompts)} prompts of seconds per token, {run.lm.name}; "
        "bars end at the 95% interval.",
        **bars("times as fast as generate", list(speeds), {"speed": speeds.values()}),
        environment=described,
    )


def _categories(run: DraftRun, where: str, described: dict[str, Any]) -> Figure:
    categories = sorted({p.category for p in run.prompts})
    return Figure(
        job="draft",
        name=f"categories-{where}",
        title=f"Tokens per target forward by kind of prompt, temperature {run.temperature:g}",
        caption="Copying tasks (summaries, extraction, code) suit look-up; recycling helps the rest.",
        **bars(
            "tokens per target forward",
            categories,
            {
                name: [_category(run, run.measurements[name], category) for category in categories]
                for name in run.same_arithmetic
                if name != GENERATE
            },
        ),
        environment=described,
    )


def _category(run: DraftRun, measurement: Measurement, category: str) -> float:
    chosen = [a for a, p in zip(measurement.answers, run.prompts, strict=True) if p.category == category]
    return sum(a.stats.new_tokens for a in chosen) / max(sum(a.stats.rounds for a in chosen), 1)


def _depths(run: DraftRun, where: str, described: dict[str, Any]) -> Figure | None:
    series = {n: enumerate(m.acceptance_by_depth, 1) for n, m in run.measurements.items() if m.acceptance_by_depth}
    if not series:
        return None
    return Figure(
        job="draft",
        name=f"depth-{where}",
        title=f"Acceptance by depth, temperature {run.temperature:g}",
        caption="Share of the rounds offering a depth in which the target accepted it.",
        **curve("depth in the tree", "accepted", series),
        environment=described,
    )


def _curve(run: DraftRun, where: str, described: dict[str, Any]) -> Figure | None:
    """Tokens against nodes per target forward: what a larger tree buys, one line a method."""
    lines: dict[str, list[tuple[float, Measurement]]] = {}
    for name, arm in run.arms.items():
        nodes = run.measurements[name].nodes_per_forward
        if arm.line and nodes is not None:
            lines.setdefault(arm.line, []).append((nodes.value, run.measurements[name]))
    if not lines:
        return None
    series = {
        name: [(nodes, measurement.tokens_per_forward) for nodes, measurement in sorted(points, key=lambda one: one[0])]
        for name, points in lines.items()
    }
    sizes = sorted({arm.nodes for arm in run.arms.values() if arm.nodes is not None})
    return Figure(
        job="draft",
        name=f"budget-{where}",
        title=f"Tokens per target forward by size of the tree, temperature {run.temperature:g}",
        caption=f"Every method at {', '.join(map(str, sizes))} nodes, placed at the nodes that its "
        f"forwards did read (root included); {len(run.prompts)} prompts, {run.lm.name}, 95% intervals.",
        **curve("nodes per target forward", "tokens per target forward", series),
        environment=described,
    )


# -- one round's tree ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Watched(Drafter):
    """A drafter that remembers its trees and what became of them, for pictures and tests."""

    inner: Drafter
    seen: list[tuple[Tensor, TokenTree, list[int]]] = field(default_factory=list)
    """Per round: committed ids (the root last), the tree scored, the accepted nodes."""

    @property
    def reads_prompt(self) -> bool:
        """As the inner drafter."""
        return self.inner.reads_prompt

    def begin(self, target: Any, context: Context) -> None:
        """Begin the inner drafter."""
        self.inner.begin(target, context)

    def propose(self, context: Context) -> TokenTree:
        """Propose the inner drafter's tree."""
        context.memory[self] = True  # what is observed before is the prompt, not a round
        return self.inner.propose(context)

    def observe(self, context: Context, tree: TokenTree, logits: Tensor, path: Sequence[int]) -> None:
        """Remember, and pass on."""
        if self in context.memory:
            self.seen.append((context.ids.clone(), tree, list(path)))
        self.inner.observe(context, tree, logits, path)

    @classmethod
    def tiny(cls) -> Watched:
        """Make one that drafts nothing."""
        from mintage.draft import Plain

        return cls(inner=Plain())


def tree_figure(lm: CausalLM, prompt: Prompt, spec: str, max_new_tokens: int, **given: Any) -> Figure:
    """Draw the richest round of a generation: the tree that was scored and the path that was accepted."""
    drafter = Watched(inner=Union.from_spec(spec, **given))
    ids = lm.encode(prompt.turns[0], chat=bool(lm.tokenizer.chat_template))
    out = generate(lm.model, ids, drafter, max_new_tokens=max_new_tokens)
    # prefer a long accepted path that had to be found among many guesses
    before, tree, path = max(drafter.seen[1:] or drafter.seen, key=lambda seen: (min(len(seen[2]), 5), len(seen[1])))
    emitted = out.sequences[0, len(before) : len(before) + len(path)]
    confidence = tree.confidence.tolist() if tree.confidence is not None else [None] * len(tree)
    nodes = [
        {
            "parent": tree.topology.parent[node] - 1,
            "token": lm.tokenizer.decode([token]),
            "accepted": node in path,
            "score": confidence[node],
        }
        for node, token in enumerate(tree.tokens.tolist())
        if node and token >= 0
    ]
    return Figure(
        job="draft",
        name=f"tree-{spec}",
        title=f"A draft tree of {spec}",
        caption=f"Prompt {prompt.id}: {len(tree) - 1} nodes scored in one forward, {len(path) - 1} accepted, "
        f"{len(path)} tokens emitted.",
        kind="tree",
        data={
            "nodes": nodes,
            "context": lm.tokenizer.decode(before[-12:]),
            "emitted": lm.tokenizer.decode(emitted),
        },
        environment=environment(),
    )

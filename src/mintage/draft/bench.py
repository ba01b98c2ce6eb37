"""Measure drafters on a real model: every arm answers every prompt in one process, interleaved, beside its rivals.

The arms are transformers' own decoders (plain ``generate``, prompt lookup, assisted generation) and drafters of this
job. Each prompt is one unit; ratios are paired over prompts. Hot drafters keep what they learned from prompt to prompt,
in file order; an arm called ``NAME cold`` starts every prompt afresh.

What the papers claim, and from where on it holds here, stands in `mintage.draft.claims`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mintage import catalog
from mintage.data import Prompt, read_prompts, spread
from mintage.draft.adapters import Target
from mintage.draft.claims import (
    AUTO,
    CLAIMS,
    COLD,
    EXACT_CLAIMS,
    GENERATE,
    LOOKUP,
    RECYCLING,
    UNION,
    ExactClaim,
)
from mintage.draft.contract import Context, Drafter
from mintage.draft.loop import Stats, generate
from mintage.draft.tree import TokenTree
from mintage.draft.union import Union
from mintage.draft.warp import Warp
from mintage.errors import UserError
from mintage.measure import Figure, Interval, Pairs, Result, bootstrap_ratio, interleaved, timed
from mintage.measure.cost import count_flops
from mintage.measure.environment import environment
from mintage.models import EMBEDDED, CausalLM, load_causal_lm, rounded_copy

__all__ = ["Arm", "Measurement", "Run", "Watched", "default_arms", "run"]

ASSISTED = "assisted (transformers, 4-bit copy)"
DEFAULT = (RECYCLING, COLD, AUTO, "prompt-lookup", UNION)
"""Arms of ``mintage bench draft`` beside transformers' own."""


@dataclass(frozen=True)
class Answer:
    """What one arm did with one prompt."""

    tokens: tuple[int, ...]
    seconds: float
    stats: Stats


@dataclass(frozen=True)
class Arm:
    """A decoder under test: ``answer(ids, temperature, max_new_tokens, seed)``."""

    name: str
    decode: Callable[[Tensor, float, int, int], tuple[Tensor, Stats]]


@dataclass
class Measurement:
    """All answers of one arm, in prompt order."""

    answers: list[Answer] = field(default_factory=list)

    def total(self, of: str) -> list[float]:
        """One number per prompt: a counter of `Stats`, e.g. ``"rounds"``."""
        return [float(getattr(answer.stats, of)) for answer in self.answers]

    @property
    def tokens_per_forward(self) -> Interval:
        """Emitted tokens per target forward over the whole run."""
        return bootstrap_ratio(self.total("new_tokens"), self.total("rounds"))

    @property
    def throughput(self) -> Interval:
        """Emitted tokens per second over the whole run."""
        return bootstrap_ratio(self.total("new_tokens"), [a.seconds for a in self.answers])

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of rounds offering a depth in which it was accepted."""
        deepest = max((len(a.stats.offered) for a in self.answers), default=0)
        offered, accepted = [0] * deepest, [0] * deepest
        for answer in self.answers:
            for depth, (o, a) in enumerate(zip(answer.stats.offered, answer.stats.accepted, strict=True)):
                offered[depth] += o
                accepted[depth] += a
        return [a / o if o else 0.0 for o, a in zip(offered, accepted, strict=True)]


# -- arms ---------------------------------------------------------------------------------------------------------


class _ForwardCounter:
    """Counts calls of a model, for decoders that do not tell."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.calls = 0
        model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


def _transformers_arm(name: str, lm: CausalLM, counter: _ForwardCounter, **settings: Any) -> Arm:
    def decode(ids: Tensor, temperature: float, new: int, seed: int) -> tuple[Tensor, Stats]:
        torch.manual_seed(seed)
        # what the model's generation config would add is switched off: the drafters' arms do not have it
        sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
        if temperature:
            sampling |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        before = counter.calls
        model: Any = lm.model
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            pad_token_id=lm.tokenizer.pad_token_id or 0,
            **sampling,
            **settings,
        )
        emitted = out[0, ids.shape[1] :]
        # its prefill emits a token too, so that every forward counts as a round
        stats = Stats(prompt_tokens=ids.shape[1], new_tokens=len(emitted), rounds=counter.calls - before)
        stats.target_forwards = stats.rounds
        return emitted, stats

    return Arm(name, decode)


def _drafter_arm(name: str, lm: CausalLM, make: Callable[[], Drafter]) -> Arm:
    cold = name.endswith(" cold")
    kept = None if cold else make()

    def decode(ids: Tensor, temperature: float, new: int, seed: int) -> tuple[Tensor, Stats]:
        drafter = make() if kept is None else kept
        out = generate(lm.model, ids, drafter, max_new_tokens=new, temperature=temperature, seed=seed)
        return out.sequences[0, ids.shape[1] :], out.stats

    return Arm(name, decode)


def default_arms(
    lm: CausalLM, specs: Sequence[str], *, draft_model: PreTrainedModel | None = None, assisted: bool = True
) -> list[Arm]:
    """Make transformers' arms and one arm per drafter spec.

    Parameters
    ----------
    lm
        The target.
    specs
        Drafter specs as on the command line; ``"NAME cold"`` forgets between prompts.
    draft_model
        For drafters that need one; default a 4-bit-rounded copy of the target, made when first needed.
    assisted
        Whether to run transformers' assisted generation too (it costs a draft forward per drafted token).
    """
    counter = _ForwardCounter(lm.model)
    stand_in: list[PreTrainedModel] = [] if draft_model is None else [draft_model]

    def draft() -> PreTrainedModel:
        if not stand_in:
            stand_in.append(rounded_copy(lm.model))
        return stand_in[0]

    arms = [
        _transformers_arm(GENERATE, lm, counter),
        _transformers_arm(LOOKUP, lm, counter, prompt_lookup_num_tokens=10),
    ]
    if assisted:
        label = ASSISTED if draft_model is None else "assisted (transformers, same draft)"
        arms.append(_transformers_arm(label, lm, counter, assistant_model=draft()))
    for spec in specs:
        bare = spec.removesuffix(" cold")
        make = _maker(bare, {"draft_model": draft()} if _needs_draft_model(bare) else {})
        make()  # a bad spec is told before anything is measured
        arms.append(_drafter_arm(spec, lm, make))
    return arms


def _needs_draft_model(spec: str) -> bool:
    names = [
        catalog.parse_spec(part)[0] for part in spec.removesuffix(" cold").split("+") if ":" in part or "=" not in part
    ]
    return any("draft_model" in catalog.hyperparameters(catalog.find(name, "draft").load()) for name in names)


def _maker(spec: str, given: dict[str, Any]) -> Callable[[], Drafter]:
    return lambda: Union.from_spec(spec, **given)


# -- the run ------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Everything measured in one go."""

    lm: CausalLM
    prompts: list[Prompt]
    temperature: float
    max_new_tokens: int
    seed: int
    draft: str = ""  # what the draft model was, if an arm had one
    measurements: dict[str, Measurement] = field(default_factory=dict)
    pairs: Pairs = field(default_factory=Pairs)  # seconds per emitted token

    def measure(self, arms: Sequence[Arm], step: Callable[[str], None] = lambda _: None) -> None:
        """Answer every prompt with every arm; `step` is told the arm after each answer."""
        ids = {p.id: self.ids(p) for p in self.prompts}
        self._check_lengths({name: tokens.shape[1] for name, tokens in ids.items()})
        warm = next(iter(ids.values()))[:, -8:]
        for arm in arms:
            self.measurements[arm.name] = Measurement()
            if not arm.name.endswith(" cold"):
                arm.decode(warm, self.temperature, 2, self.seed)
        for prompt, name in interleaved(self.prompts, [arm.name for arm in arms]):
            arm = next(a for a in arms if a.name == name)

            def call(arm: Arm = arm, prompt: Prompt = prompt) -> tuple[Tensor, Stats]:
                return arm.decode(ids[prompt.id], self.temperature, self.max_new_tokens, self.seed)

            (tokens, stats), seconds = timed(call)
            self.measurements[name].answers.append(Answer(tuple(tokens.tolist()), seconds, stats))
            self.pairs.add(prompt.id, name, seconds / max(len(tokens), 1))
            step(name)

    def _check_lengths(self, lengths: dict[str, int]) -> None:
        limit = Target(self.lm.model).positions
        for name, length in lengths.items():
            if limit and length + self.max_new_tokens > limit:
                raise UserError(
                    f"prompt {name} of {length} tokens plus max_new_tokens={self.max_new_tokens} exceeds the model's "
                    f"context of {limit}; leave that prompt out"
                )

    def identical(self, name: str) -> float:
        """Share of prompts on which an arm's tokens are plain ``generate``'s."""
        pairs = zip(self.measurements[name].answers, self.measurements[GENERATE].answers, strict=True)
        same = [a.tokens == b.tokens for a, b in pairs]
        return sum(same) / len(same)

    def gaps(self) -> dict[str, list[float]]:
        """Per arm, the float32 logit gap between the two choices wherever its tokens first differ from ``generate``'s.

        In bfloat16 a forward over one token and one over many round differently, so ties and near-ties may fall either
        way, for transformers' own speculative decoders too. A gap that is not small would be a wrong answer.
        """
        found: dict[str, list[float]] = {name: [] for name in self.measurements if name != GENERATE}
        exact = copy.deepcopy(self.lm.model).float()
        for i, prompt in enumerate(self.prompts):
            plain = self.measurements[GENERATE].answers[i].tokens
            for name, gaps in found.items():
                mine = self.measurements[name].answers[i].tokens
                at = next((n for n, (a, b) in enumerate(zip(mine, plain, strict=False)) if a != b), None)
                if at is not None:
                    ids = self.ids(prompt)
                    prefix = torch.cat([ids, torch.tensor([plain[:at]], dtype=ids.dtype, device=ids.device)], dim=1)
                    with torch.no_grad():
                        logits = exact(input_ids=prefix, logits_to_keep=1).logits[0, -1]
                    gaps.append(float((logits[mine[at]] - logits[plain[at]]).abs()))
        return found

    def ids(self, prompt: Prompt) -> Tensor:
        """Return a prompt's ids, as a chat where the model has a chat template."""
        return self.lm.encode(prompt.turns[0], chat=bool(self.lm.tokenizer.chat_template))

    def speed_up(self, name: str, *, of: str = "median") -> Interval:
        """Seconds per token of plain ``generate`` over the arm's, paired over prompts."""
        return self.pairs.ratio(GENERATE, name, of=of)  # type: ignore[arg-type]

    def rows(self, command: str, data: str) -> list[Result | Figure]:
        """Turn the measurements into result rows and figures."""
        described = environment()
        settings = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        settings["dtype"] = str(self.lm.model.dtype).removeprefix("torch.")
        if self.draft:
            settings["draft"] = self.draft
        common: dict[str, Any] = {
            "job": "draft",
            "model": self.lm.name,
            "data": data,
            "seed": self.seed,
            "settings": settings,
            "command": command,
            "environment": described,
            "n": len(self.prompts),
        }
        rows: list[Result | Figure] = self._claims(common)
        flops = self._flops_per_token()
        gaps = {} if self.temperature or self.lm.model.dtype == torch.float32 else self.gaps()
        for metric, unit, up, value in self._metrics(flops, gaps):
            values = {name: value(name) for name in self.measurements}
            for name, interval in values.items():
                if name == GENERATE or interval is None:
                    continue
                peers = {n: v.value for n, v in values.items() if v is not None and n not in (name, GENERATE)}
                plain = values[GENERATE]
                rows.append(
                    Result(
                        method=name,
                        metric=metric,
                        unit=unit,
                        higher_is_better=up,
                        value=interval.value,
                        interval=interval.bounds,
                        baseline={} if plain is None else {GENERATE: plain.value},
                        peers=peers,
                        **common,
                    )
                )
        return [*rows, *self._figures(described)]

    def _metrics(
        self, flops: float, gaps: dict[str, list[float]]
    ) -> Iterable[tuple[str, str, bool, Callable[[str], Interval | None]]]:
        yield "tokens per target forward", "tokens", True, lambda n: self.measurements[n].tokens_per_forward
        yield "speed over generate, median prompt", "x", True, lambda n: self.speed_up(n)
        yield "speed over generate, whole run", "x", True, lambda n: self.speed_up(n, of="sums")
        yield "tokens per second", "tokens/s", True, lambda n: self.measurements[n].throughput
        if not self.temperature:
            yield "outputs identical to generate", "share", True, lambda n: _exact(self.identical(n))
        if any(gaps.values()):
            yield (
                "largest logit gap at a first difference",
                "logits",
                False,
                lambda n: _exact(max(gaps.get(n) or [0.0])),
            )
        yield "target GFLOPs per token", "GFLOP", False, lambda n: self._target_flops(n, flops)
        yield "draft forwards per token", "forwards", False, self._draft_forwards

    def _claims(self, common: dict[str, Any]) -> list[Result | Figure]:
        """Test every claim whose arms were measured under its conditions."""
        exact = self.lm.model.dtype == torch.float32
        rows: list[Result | Figure] = []
        for claim in CLAIMS:
            fits = (claim.when == "sampling") == bool(self.temperature) and exact >= claim.exact_dtype
            if not fits or not set(claim.arms) <= self.measurements.keys() or not claim.applies(self):
                continue
            measured = claim.measure(self)
            baseline, peers = claim.compare(self)
            rows.append(
                Result(
                    method=claim.method,
                    metric=claim.metric,
                    unit=claim.unit,
                    higher_is_better=True,
                    value=measured.value,
                    interval=measured.bounds,
                    baseline=baseline,
                    peers={n: v for n, v in peers.items() if n not in claim.arms},
                    claim=claim.text,
                    verdict="holds" if claim.holds(measured) else "does not hold",
                    **common,
                )
            )
        return rows

    def _flops_per_token(self) -> float:
        """FLOPs of the target per token read, at the context of the first prompt."""
        ids = self.ids(self.prompts[0])[:, :64]
        with torch.no_grad():
            return count_flops(lambda: self.lm.model(input_ids=ids, use_cache=False)) / ids.shape[1]

    def _target_flops(self, name: str, flops: float) -> Interval | None:
        nodes = self.measurements[name].total("tree_nodes")
        if not any(nodes):  # transformers' decoders do not tell how many tokens each forward read
            return _exact(flops / 1e9) if name == GENERATE else None
        per_token = bootstrap_ratio(nodes, self.measurements[name].total("new_tokens"))
        return Interval(*(x * flops / 1e9 for x in per_token))

    def _draft_forwards(self, name: str) -> Interval | None:
        forwards = self.measurements[name].total("draft_forwards")
        if not any(forwards):
            return None
        return bootstrap_ratio(forwards, self.measurements[name].total("new_tokens"))

    def _figures(self, described: dict[str, Any]) -> list[Figure]:
        drafted = {n: m for n, m in self.measurements.items() if any(m.total("tree_nodes"))}
        where = f"t{self.temperature:g}-{str(self.lm.model.dtype).removeprefix('torch.')}"
        depth = [
            {"name": n, "x": list(range(1, len(m.acceptance_by_depth) + 1)), "y": m.acceptance_by_depth}
            for n, m in drafted.items()
            if m.acceptance_by_depth
        ]
        speeds = {n: self.speed_up(n) for n in self.measurements}
        categories = sorted({p.category for p in self.prompts})
        return [
            Figure(
                job="draft",
                name=f"speed-{where}",
                title=f"Speed over plain generate, temperature {self.temperature:g}",
                caption=f"Median over {len(self.prompts)} prompts of seconds per token, {self.lm.name}; "
                "bars end at the 95% interval.",
                kind="bars",
                data={
                    "y_label": "times as fast as generate",
                    "categories": list(speeds),
                    "series": [
                        {
                            "name": "speed",
                            "y": [s.value for s in speeds.values()],
                            "low": [s.low for s in speeds.values()],
                            "high": [s.high for s in speeds.values()],
                        }
                    ],
                },
                environment=described,
            ),
            Figure(
                job="draft",
                name=f"categories-{where}",
                title="Tokens per target forward by kind of prompt",
                caption="Copying tasks (summaries, extraction, code) suit look-up; recycling helps the rest.",
                kind="bars",
                data={
                    "y_label": "tokens per target forward",
                    "categories": categories,
                    "series": [
                        {"name": n, "y": [self._category(m, c) for c in categories]}
                        for n, m in self.measurements.items()
                        if n != GENERATE
                    ],
                },
                environment=described,
            ),
            *(
                [
                    Figure(
                        job="draft",
                        name=f"depth-{where}",
                        title="Acceptance by depth",
                        caption="Share of the rounds offering a depth in which the target accepted it.",
                        kind="curve",
                        data={"x_label": "depth in the tree", "y_label": "accepted", "series": depth},
                        environment=described,
                    )
                ]
                if depth
                else []
            ),
        ]

    def _category(self, measurement: Measurement, category: str) -> float:
        chosen = [a for a, p in zip(measurement.answers, self.prompts, strict=True) if p.category == category]
        return sum(a.stats.new_tokens for a in chosen) / max(sum(a.stats.rounds for a in chosen), 1)


def _exact(value: float) -> Interval:
    return Interval(value, value, value)


# -- pictures -----------------------------------------------------------------------------------------------------


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
        """Make an instance for the laws."""
        from mintage.draft.baselines import Plain

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


def _exact_rows(claims: Sequence[ExactClaim], command: str, seed: int) -> list[Result | Figure]:
    """Test the claims that need no model."""
    rows: list[Result | Figure] = []
    for claim in claims:
        measured, baseline, peers, holds = claim.measure()
        rows.append(
            Result(
                method=claim.method,
                job="draft",
                metric=claim.metric,
                unit=claim.unit,
                higher_is_better=True,
                value=measured.value,
                interval=measured.bounds,
                n=claim.n,
                baseline=baseline,
                peers=peers,
                claim=claim.text,
                verdict="holds" if holds else "does not hold",
                model="random laws",
                data="exact enumeration",
                seed=seed,
                settings=claim.settings,
                command=command,
                environment=environment(),
            )
        )
    return rows


# -- the front of the bench ----------------------------------------------------------------------------------------


def run(
    methods: Sequence[str] = (),
    *,
    model: str = EMBEDDED,
    prompts: str | None = None,
    limit: int | None = 24,
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    dtype: str = "bfloat16",
    device: str = "cpu",
    draft_model: str | None = None,
    assisted: bool = True,
    seed: int = 0,
    command: str = "mintage bench draft",
    progress: Callable[[int, int, str], None] = lambda done, total, arm: None,
) -> list[Result | Figure]:
    """Measure drafters beside transformers' own decoders.

    Parameters
    ----------
    methods
        Drafter specs; default `DEFAULT`. See `default_arms`. One method's bare name stands for its claims' arms.
    model, dtype, device
        The target, see `mintage.models.load_causal_lm`.
    prompts
        A file for `mintage.data.read_prompts`; default the bundled prompts.
    limit
        Use this many prompts, spread over the categories; None for all.
    max_new_tokens, temperature, seed
        Of every answer.
    draft_model
        Folder or hub id of a draft model with the target's vocabulary.
    assisted
        Whether transformers' assisted generation runs too; it is the slowest arm.
    command
        Written into the rows.
    progress
        Told answers done, answers in all, and the arm of the last one.

    Raises
    ------
    UserError
        Bad specs, prompts or models; nothing is measured then.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}; a bench needs at least 1")
    Warp(temperature=temperature)  # tells a bad one
    specs = list(methods) or list(DEFAULT)
    when = "sampling" if temperature else "greedy"
    claims = [c for c in CLAIMS if [c.method] == specs and c.when == when]
    specs = list(dict.fromkeys(arm for claim in claims for arm in claim.arms)) or specs
    for spec in specs:
        _needs_draft_model(spec)  # unknown names are told before the model loads
    chosen = spread(read_prompts(prompts), limit)
    exact = _exact_rows([c for c in EXACT_CLAIMS if c.method in methods], command, seed)
    lm = load_causal_lm(model, dtype=dtype, device=device)
    draft = load_causal_lm(draft_model, dtype=dtype, device=device).model if draft_model else None
    drafting = draft_model or ("4-bit-rounded copy" if assisted or any(map(_needs_draft_model, specs)) else "")
    bench = Run(lm, chosen, temperature, max_new_tokens, seed, drafting)
    arms = default_arms(lm, specs, draft_model=draft, assisted=assisted)
    total, done = len(arms) * len(chosen), 0

    def step(arm: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, arm)

    bench.measure(arms, step)
    rows = exact + bench.rows(command, data="bundled prompts" if prompts is None else str(prompts).rsplit("/", 1)[-1])
    for spec in specs:
        if not spec.endswith(" cold") and not temperature and not _needs_draft_model(spec):
            rows.append(tree_figure(lm, chosen[0], spec, max_new_tokens))
    return rows

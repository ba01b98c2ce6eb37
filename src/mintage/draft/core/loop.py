"""The one generation loop: draft a tree, score it in one target forward, keep what the target would have said.

Every drafter and every verifier runs through `generate`; no method has a loop of its own. The prompt but its last
token is prefilled; that last token is the first root. Each round emits at least one token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from mintage.draft.contract import Context, Drafter
from mintage.draft.core.engine import Engine, target_for
from mintage.draft.core.request import FIRST, TYPES, Request, as_batch, callers_streamer, ids_of, prepare
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.draft.core.verify import GreedyMatch, TargetProbs
from mintage.draft.core.warp import Warp
from mintage.draft.core.within import PolicyTarget, first_chain
from mintage.draft.core.wrapped import unwrapped
from mintage.errors import UserError
from mintage.sessions import session_of

__all__ = ["Generation", "Stats", "generate"]

_PROMPT_CHUNK = 512  # bounds the logits of a prompt that a drafter wants to read


@runtime_checkable
class Streamer(Protocol):
    """What transformers' streamers are: anything that takes tokens as they come."""

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then every round's tokens."""

    def end(self) -> None:
        """Nothing more comes."""


@dataclass
class Stats:
    """What a generation cost.

    Attributes
    ----------
    prompt_tokens, new_tokens
        Tokens read and emitted, summed over the batch.
    target_forwards
        Tree forwards of the target; the prefill comes on top.
    draft_forwards, draft_tokens
        Forwards of a draft model, and tokens read by them.
    rounds
        Rounds summed over the sequences of the batch; equals `target_forwards` for one sequence.
    tree_nodes
        Nodes scored, roots included.
    offered, accepted
        Per depth (1 first): rounds whose tree reached that depth, and rounds whose accepted path did.
    seconds
        Wall clock by phase: ``prefill``, ``draft``, ``target`` (forwards), ``verify``, ``commit`` (cache), ``total``.
        On a GPU the phases are queueing times; only ``total`` is exact.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    target_forwards: int = 0
    draft_forwards: int = 0
    draft_tokens: int = 0
    rounds: int = 0
    tree_nodes: int = 0
    offered: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("prefill", "draft", "target", "verify", "commit", "total"), 0.0)
    )

    @property
    def tokens_per_forward(self) -> float:
        """Emitted tokens per target forward and sequence; plain decoding has 1."""
        return self.new_tokens / self.rounds if self.rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens over the total wall clock."""
        return self.new_tokens / self.seconds["total"] if self.seconds["total"] else 0.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of the rounds offering a depth in which that depth was accepted, depth 1 first."""
        return [a / o if o else 0.0 for o, a in zip(self.offered, self.accepted, strict=True)]

    @property
    def overhead(self) -> float:
        """The loop's own time (everything outside the model forwards and the drafting), as a share of the forwards."""
        own = self.seconds["total"] - sum(self.seconds[k] for k in ("prefill", "draft", "target"))
        return own / self.seconds["target"] if self.seconds["target"] else 0.0

    def _count(self, tree: TokenTree, path: Sequence[int]) -> None:
        self.rounds += 1
        self.tree_nodes += len(tree)
        depths = tree.topology.depth
        if tree.embeddings is not None:  # probes offer nothing
            depths = [d for d, token in zip(depths, tree.tokens.tolist(), strict=True) if token >= 0]
        reach = max(depths)
        grow = max(reach, len(path) - 1) - len(self.offered)
        self.offered += [0] * grow
        self.accepted += [0] * grow
        for depth in range(reach):
            self.offered[depth] += 1
            self.accepted[depth] += depth < len(path) - 1


@dataclass(frozen=True)
class Generation:
    """The generated ids, prompt first (shorter rows end in padding), and what they cost."""

    sequences: Int[Tensor, "batch length"]
    stats: Stats


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Any,
    drafter: Drafter,
    *,
    max_new_tokens: int | None = None,
    attention_mask: Any = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
    eos_token_id: Any = None,
    pad_token_id: Any = None,
    streamer: Streamer | None = None,
    seed: int | None = None,
    compile: bool | int = False,
    engine: Engine = "torch",
    **settings: Any,
) -> Generation:
    """Generate with a drafter; the output has exactly the distribution of decoding `model` without one.

    Whatever is not given is as the model's own generation config has it, as in ``model.generate``.

    Parameters
    ----------
    model
        A Hugging Face causal LM (see `mintage.draft.core.target.Target` for what is supported), also compiled or with
        adapters.
    input_ids
        Prompts, [batch, length], padded on either side where `attention_mask` is 0: a tensor, an array, lists, or what
        a tokenizer or a processor returns; None where ``inputs_embeds`` take their place.
    drafter
        E.g. ``TokenRecycling()``.
    max_new_tokens
        Emit at most this many tokens per sequence, where nobody says otherwise 128; 0 returns the prompt.
    temperature, top_k, top_p, repetition_penalty
        See `mintage.draft.core.warp.Warp`. Temperature 0 is greedy. Beside a temperature top-k is off unless given here
        or by the model.
    eos_token_id
        A sequence ends with the first of these.
    pad_token_id
        Fills shorter rows; default: the model's, else the first end token, else 0.
    streamer
        Gets the prompt and then every round's tokens, as in transformers; one sequence only.
    seed
        Seeds the request's generator; by default torch's global generator is used.
    compile
        Score trees with a compiled step of a fixed number of nodes (True: 8), CPU only; the first use compiles for a
        minute or so, later ones load the package from mintage's cache. See `mintage.draft.core.compiled`.
    engine
        What runs the forwards: ``"torch"``, ``"native"`` (a C++ step for the CPU, float32 sums over weights as they are
        stored), or ``"auto"``, the faster one by measurement. See `mintage.draft.core.engine`.
    settings
        Anything else that ``model.generate`` takes: ``no_repeat_ngram_size``, ``min_new_tokens``, ``stop_strings`` with
        the ``tokenizer``, ``logits_processor``, ``stopping_criteria``, ``pixel_values``, ``generation_config``, ...

    Raises
    ------
    UserError
        Empty prompt, prompt and new tokens longer than the model's context, a value out of range, a setting that cannot
        be drafted, a model that cannot branch, a drafter made for another vocabulary, or NaN logits.
    """
    model = unwrapped(model)
    given, mask, more = as_batch(input_ids, attention_mask, model.device)
    settings = _settings(model, settings | more, max_new_tokens, temperature, top_k, top_p, repetition_penalty)
    if eos_token_id is not None:
        settings["eos_token_id"] = ids_of("eos_token_id", eos_token_id)
    fill = None if pad_token_id is None else ids_of("pad_token_id", pad_token_id)[0]
    if fill is not None and fill >= 0:
        settings["pad_token_id"] = fill
    target = _target(model, compile, engine, plain=any(name.startswith(FIRST) for name in settings))
    if given is not None:
        target.check_ids(given)
        if not given.shape[1] and "inputs_embeds" not in settings:
            raise UserError("the prompt is empty; pass at least one token (e.g. the beginning-of-sequence token)")
        given, mask, settings = _left_padded(given, mask, settings)
    new = settings.get("max_new_tokens")
    if new is not None and new < 0:
        raise UserError(f"max_new_tokens={new} is negative; pass 0 or more")
    if new == 0:
        settings["max_new_tokens"] = 1  # which transformers asks for
    request = prepare(model, given, {"attention_mask": mask, **settings} if mask is not None else settings)
    request.new = 0 if new == 0 else request.new
    generator = None if seed is None else torch.Generator(target.device).manual_seed(seed)
    run = _Run(target, drafter, request, generator, streamer)
    rows = run(stream_prompt=True)
    if streamer is not None:
        streamer.end()
    shown = request.ids
    if input_ids is not None and given is not None:  # as they came, padded on whichever side
        own, _, _ = as_batch(input_ids, attention_mask, request.ids.device)
        shown = own.repeat_interleave(len(rows) // len(own), dim=0)  # type: ignore[union-attr]
    return Generation(_pad(shown, rows, request.pad if fill is None else fill), run.stats)


def _settings(
    model: Any,
    settings: dict[str, Any],
    new: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float | None,
) -> dict[str, Any]:
    """Write what is asked as ``model.generate`` takes it."""
    own, asked = model.generation_config, settings.get("generation_config")
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    given = {name: value for name, value in values.items() if value is not None}
    Warp(**given)  # checks the ranges
    sample = settings.get("do_sample")
    if sample is not None and temperature is not None and sample != bool(temperature):
        raise UserError(f"do_sample={sample} and temperature={temperature} contradict each other; pass one of them")
    settings |= {name: type(Warp.__dataclass_fields__[name].default)(value) for name, value in given.items()}
    if temperature == 0:
        settings |= {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    elif temperature is not None:
        settings |= {"do_sample": True}
        if top_k is None and getattr(asked, "top_k", None) is None:
            settings["top_k"] = getattr(own, "top_k", None) or 0
    if new is not None:
        settings["max_new_tokens"] = new
    elif "max_length" not in settings and not any(
        getattr(held, name, None) for held in (own, asked) for name in ("max_length", "max_new_tokens")
    ):
        settings["max_new_tokens"] = 128
    return settings


def _left_padded(
    ids: Tensor, mask: Tensor | None, settings: dict[str, Any]
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Move what stands right of a row's tokens to their left, as transformers wants its prompts."""
    if mask is None or mask[:, -1].all():
        return ids, mask, settings
    after = mask.flip(1).bool().int().argmax(1)  # masked columns after the last real one
    order = (torch.arange(ids.shape[1], device=ids.device) - after[:, None]) % ids.shape[1]
    types = {name: settings[name].to(ids.device).gather(1, order) for name in TYPES if name in settings}
    return ids.gather(1, order), mask.gather(1, order), settings | types


def _target(model: Any, compile: bool | int, engine: Engine, *, plain: bool) -> Target:
    if plain and (compile or engine == "native"):
        way = f"compile={compile}" if compile else f"engine={engine!r}"
        raise UserError(f"{way} reads token ids only, no pictures or embeddings; leave it out")
    if (session := session_of(model)) is not None:
        if compile or engine == "native":
            raise UserError("a cache policy is run by torch alone; leave compile= and engine= out inside it")
        return PolicyTarget(model, session)
    if plain:
        return Target(model)
    if not compile:
        return target_for(model, engine)
    if engine != "torch":
        raise UserError(f"compile={compile} and engine={engine!r} are two ways to run a step; pass one of them")
    from mintage.draft.core.compiled import NODES, CompiledTarget

    return CompiledTarget(model, NODES if compile is True else compile)


def generate_inside_transformers(
    drafter: Drafter,
    model: Any,
    input_ids: Int[Tensor, "batch length"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: Streamer | None,
    model_kwargs: dict[str, Any],
) -> Any:
    """Decode for ``model.generate(input_ids, custom_generate=drafter)``, honouring what transformers prepared."""
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    target = _target(model := unwrapped(model), False, "torch", plain=True)
    target.check_ids(input_ids)
    request = Request.of(target.model, input_ids, logits_processor, stopping_criteria, generation_config, model_kwargs)
    streamer, lacks_prompt = callers_streamer(streamer)
    run = _Run(target, drafter, request, None, streamer)
    rows = run(stream_prompt=lacks_prompt)
    if streamer is not None:
        streamer.end()
    sequences = _pad(input_ids, rows, request.pad)
    if generation_config.return_dict_in_generate:
        output = GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
        output.stats = run.stats  # type: ignore[attr-defined]
        return output
    return sequences


def _pad(input_ids: Tensor, rows: Sequence[Tensor], pad: int) -> Tensor:
    new = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    return torch.cat([input_ids, new.to(input_ids.device)], dim=1)


class _Row:
    """One sequence: what is committed, in buffers that never move, and whether it has ended.

    `shown` is the whole row as plain decoding shows it to processors and criteria; drafters see no padding.
    """

    def __init__(self, shown: Tensor, prompt: Tensor, new: int, warp: Warp, generator: torch.Generator | None) -> None:
        self.buffers = [torch.cat([part, part.new_zeros(new)]) for part in (shown, prompt)]
        self.starts, self.made, self.new = (len(shown), len(prompt)), 0, new
        self.done = self.ended = new == 0
        self.context = Context(
            ids=self.buffers[1][: len(prompt)],
            prompt_length=len(prompt),
            room=new - 1,
            warp=warp,
            generator=generator,
        )

    @property
    def shown(self) -> Tensor:
        return self.buffers[0][: self.starts[0] + self.made]

    @property
    def emitted(self) -> Tensor:
        return self.buffers[1][self.starts[1] : self.starts[1] + self.made]

    def append(self, tokens: list[int]) -> None:
        for buffer, start in zip(self.buffers, self.starts, strict=True):
            end = start + self.made
            buffer[end : end + len(tokens)] = torch.tensor(tokens, device=buffer.device)
        self.cut(self.made + len(tokens))

    def cut(self, made: int) -> None:
        """Have emitted this many tokens."""
        self.made = made
        self.context.ids = self.buffers[1][: self.starts[1] + made]
        self.context.room = self.new - made - 1


class _Run:
    """One request on its way through the loop."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        request: Request,
        generator: torch.Generator | None = None,
        streamer: Streamer | None = None,
    ) -> None:
        self.target, self.drafter, self.request, self.warp = target, drafter, request, request.warp
        self.generator, self.streamer = generator, streamer
        self.verifier = GreedyMatch() if self.warp.greedy else drafter.verifier
        self.stats = Stats()
        self.asked = 0  # new tokens per row that the stopping criteria have seen
        self.finished = torch.zeros(len(request.kept), dtype=torch.bool, device=request.ids.device)

    def __call__(self, *, stream_prompt: bool = False) -> list[Tensor]:
        """Decode; returns the new tokens of each row."""
        began, request = time.perf_counter(), self.request
        self._fits()
        if self.streamer is not None and len(request.kept) > 1:
            raise UserError(f"a streamer follows one sequence; the batch has {len(request.kept)}")
        if self.streamer is not None and stream_prompt:
            self.streamer.put(request.ids.cpu())
        prompts: list[Tensor] = [i[:0] for i in request.ids]
        if request.ids.shape == request.kept.shape:
            prompts = [row[keep] for row, keep in zip(request.ids, request.kept, strict=True)]
        prompts = [prompt.to(self.target.device, torch.long) for prompt in prompts]
        shown = request.ids.to(self.target.device, torch.long)
        rows = [_Row(s, p, request.new, self.warp, self.generator) for s, p in zip(shown, prompts, strict=True)]
        self.stats.prompt_tokens = sum(request.lengths)
        if request.new:
            self._open(rows)
            while not all(row.done for row in rows):
                self._round(rows)
        self.stats.new_tokens = sum(row.made for row in rows)
        self.stats.draft_forwards = sum(row.context.draft_forwards for row in rows)
        self.stats.draft_tokens = sum(row.context.draft_tokens for row in rows)
        self.stats.seconds["total"] = time.perf_counter() - began
        return [row.emitted for row in rows]

    def _fits(self) -> None:
        """Refuse prompts that are empty, or too long with what is wanted."""
        shortest, longest = min(self.request.lengths, default=0), max(self.request.lengths, default=0)
        if not shortest:
            raise UserError("the prompt is empty; pass at least one token (e.g. the beginning-of-sequence token)")
        limit, new = self.target.positions, self.request.new
        if limit and longest + new > limit:
            fits = f" or pass max_new_tokens={limit - longest}" if longest < limit else ""
            raise UserError(
                f"prompt of {longest} tokens plus max_new_tokens={new} exceeds the model's context of "
                f"{limit}; shorten the prompt{fits}"
            )
        short, padded = self.target.short_rotation, not self.request.kept.all()
        if longest <= short < longest + new and (padded or self.target.chains or len(self.request.kept) > 1):
            raise UserError(
                f"{type(self.target.model).__name__} rotates otherwise beyond {short} tokens (longrope), in all rows "
                "at once; draft prompts that cross that one by one, without padding, outside of cache policies"
            )

    # -- the prompt -----------------------------------------------------------------------------------------------

    def _open(self, rows: list[_Row]) -> None:
        """Read the prompts; where the first forward takes more than ids, it emits the first token, too."""
        began, request = time.perf_counter(), self.request
        lengths = request.lengths
        known = all(len(row.context.ids) for row in rows)
        if known:
            for row in rows:
                self.drafter.begin(self.target, row.context)
        whole = request.first or self.target.chains or max(lengths) > self.target.short_rotation > 0
        capacity = max(lengths) + request.new + 128
        self.cache = self.target.new_cache(len(rows), capacity)
        if whole:
            logits = self.target.open(self._inputs(), lengths, self.cache)
            self.stats.target_forwards += 1
            for row, scores in enumerate(logits):
                self._first_token(rows, row, scores)
            self._settle(rows)
            if not known:
                for row in rows:
                    self.drafter.begin(self.target, row.context)
        elif self.drafter.reads_prompt and max(lengths) > 1:
            self._read_and_show(rows, [n - 1 for n in lengths])
        elif max(lengths) > 1:
            ids = torch.nn.utils.rnn.pad_sequence([row.context.ids[:-1] for row in rows], batch_first=True)
            self.target.prefill(ids, [n - 1 for n in lengths], self.cache)
        self.stats.seconds["prefill"] = time.perf_counter() - began

    def _inputs(self) -> dict[str, Any]:
        """Return what the first forward reads, real inputs first in every row."""
        request, inputs = self.request, dict(self.request.first)
        if "inputs_embeds" not in inputs:
            inputs["input_ids"] = request.ids
        order = (~request.kept).int().argsort(dim=1, stable=True)
        inputs = {n: v.to(self.target.device) if isinstance(v, Tensor) else v for n, v in inputs.items()}
        for name in inputs.keys() & {"input_ids", "inputs_embeds", *TYPES}:
            value = inputs[name]
            inputs[name] = value[torch.arange(len(value))[:, None], order.to(value.device)][:, : max(request.lengths)]
        return inputs

    def _first_token(self, rows: list[_Row], row: int, logits: Float[Tensor, " vocabulary"]) -> None:
        """Choose a token from the logits of a forward that drafted nothing."""
        held = rows[row]
        known = len(held.context.ids) > 0
        root = held.context.root if known else torch.zeros((), dtype=torch.long, device=logits.device)
        tree = TokenTree.root_only(root)
        judged = (
            self.warp.penalise(held.shown[None], logits[None], row, len(rows)) if self.warp.penalties else logits[None]
        )
        self._accept(held, tree, judged, logits[None] if known else None)

    def _read_and_show(self, rows: list[_Row], lengths: list[int]) -> None:
        """Prefill with all logits and let the drafter observe the prompt as a chain whose nodes are all accepted."""
        ids = torch.nn.utils.rnn.pad_sequence([row.context.ids[:-1] for row in rows], batch_first=True)
        logits = self.target.prefill(ids, lengths, self.cache, all_logits=True)
        for row, scores, length in zip(rows, logits, lengths, strict=True):
            for start in range(0, length, _PROMPT_CHUNK):
                part = slice(start, min(start + _PROMPT_CHUNK, length))
                chain = TokenTree(tokens=row.context.ids[part], topology=Topology.chain(part.stop - start - 1))
                self.drafter.observe(row.context, chain, scores[part], range(len(chain)))

    # -- a round --------------------------------------------------------------------------------------------------

    def _round(self, rows: list[_Row]) -> None:
        if self._starts_over(rows):
            return
        seconds, clock = self.stats.seconds, time.perf_counter
        began = clock()
        trees = [self._propose(row, length) for row, length in zip(rows, self.cache.lengths, strict=True)]
        drafted = clock()
        scores = self.target.score(trees, self.cache)
        scored = clock()
        paths: list[list[int]] = []
        for number, (row, tree, logits) in enumerate(zip(rows, trees, scores, strict=True)):
            if row.done:
                paths.append([])
                continue
            judged = self._penalise(row, number, len(rows), tree, logits) if self.warp.penalties else logits
            paths.append(self._accept(row, tree, judged, logits))
        self._settle(rows)
        verified = clock()
        self.cache.commit(paths)
        seconds["draft"] += drafted - began
        seconds["target"] += scored - drafted
        seconds["verify"] += verified - scored
        seconds["commit"] += clock() - verified
        self.stats.target_forwards += 1

    def _starts_over(self, rows: list[_Row]) -> bool:
        """Read everything anew where plain decoding would, because a longrope model has begun to rotate otherwise."""
        short, length = self.target.short_rotation, self.cache.lengths[0]
        if not short or length != short or len(rows) > 1 or not self.target.starts_over(rows[0].shown, self.cache):
            return False
        ids = rows[0].shown[None]
        self.cache = self.target.new_cache(1, ids.shape[1] + rows[0].context.room + 130)
        logits = self.target.open({"input_ids": ids}, [ids.shape[1]], self.cache)
        self.stats.target_forwards += 1
        self._first_token(rows, 0, logits[0])
        self._settle(rows)
        return True

    def _propose(self, row: _Row, position: int) -> TokenTree:
        """Draft; `position` is the root's. No tree crosses the place where a longrope model rotates otherwise."""
        context, short = row.context, self.target.short_rotation
        room = min(context.room, short - 1 - position) if position < short else context.room
        if row.done or room == 0:
            return TokenTree.root_only(context.root)
        tree = self.drafter.propose(context)
        return (first_chain(tree) if self.target.chains else tree).cut(room)

    def _accept(self, row: _Row, tree: TokenTree, judged: Tensor, logits: Tensor | None) -> list[int]:
        """Verify a tree and emit; the drafter is shown the raw `logits`."""
        top, best = judged.max(-1)
        if top.isnan().any():
            raise UserError(
                f"the model returned NaN logits after {len(row.shown)} tokens; check its weights, or load it in float32"
            )
        verdict = self.verifier.verify(tree, TargetProbs(judged, best, self.warp), self.generator)
        path = list(verdict.path)
        tokens = [*tree.tokens[path[1:]].tolist(), verdict.token] if len(path) > 1 else [verdict.token]
        self.stats._count(tree, path)
        if logits is not None:
            self.drafter.observe(row.context, tree, logits, path)
        tokens = tokens[: row.context.room + 1]
        end = next((i for i, token in enumerate(tokens) if token in self.request.ends), None)
        if end is not None:
            tokens, row.done = tokens[: end + 1], True
            row.ended = True
        row.append(tokens)
        row.done = row.done or row.context.room < 0
        if self.streamer is not None and not self.request.criteria:
            self.streamer.put(torch.tensor(tokens))
        return path

    def _penalise(self, row: _Row, number: int, rows: int, tree: TokenTree, logits: Tensor) -> Tensor:
        """Apply penalties with each node's own past; nodes of equal depth have pasts of equal length."""
        judged = torch.empty(logits.shape, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        depths = torch.tensor(tree.topology.depth)
        for depth in depths.unique().tolist():
            nodes = (depths == depth).nonzero().squeeze(-1).tolist()
            paths = torch.tensor([tree.topology.path(node) for node in nodes], device=logits.device)
            past = row.shown[:-1].expand(len(nodes), -1)
            ids = torch.cat([past, tree.tokens[paths].clamp_min(0)], dim=1)
            judged[nodes] = self.warp.penalise(ids, logits[nodes], number, rows)
        return judged

    # -- stopping -------------------------------------------------------------------------------------------------

    def _settle(self, rows: list[_Row]) -> None:
        """Ask the stopping criteria, step by step as in plain decoding: about all rows at once, as long as they are.

        A row that ran ahead is asked about when the slowest has come as far; what it then has too much is dropped.
        """
        while self.request.criteria and self._next_step(rows):
            self.asked += 1
            new = torch.full((len(rows), self.asked), self.request.pad, device=rows[0].shown.device)
            for number, row in enumerate(rows):
                made = row.emitted[: self.asked]
                new[number, : len(made)] = made
            ids = torch.cat([torch.stack([row.shown[: row.starts[0]] for row in rows]), new], dim=1)
            for criterion in self.request.criteria:
                self.finished |= torch.as_tensor(criterion(ids, None), device=self.finished.device).bool()
            if self.streamer is not None:
                self.streamer.put(new[0, -1:].cpu())
            stop = self.finished.tolist()
            if not self.request.ends and not all(stop):  # without end tokens plain decoding goes on in every row
                continue
            for row, stopped in zip(rows, stop, strict=True):
                if stopped:
                    row.cut(min(row.made, self.asked))
                    row.done = row.ended = True

    def _next_step(self, rows: list[_Row]) -> bool:
        """Whether all rows have made the next step, or had ended before it."""
        ahead = [row.made > self.asked for row in rows]
        return any(ahead) and all(made or row.ended for made, row in zip(ahead, rows, strict=True))

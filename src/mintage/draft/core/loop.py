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
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.draft.core.verify import GreedyMatch, TargetProbs
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.models import cache_of

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
    input_ids: Int[Tensor, "batch length"],
    drafter: Drafter,
    *,
    max_new_tokens: int = 128,
    attention_mask: Int[Tensor, "batch length"] | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    streamer: Streamer | None = None,
    seed: int | None = None,
    compile: bool | int = False,
    engine: Engine = "torch",
) -> Generation:
    """Generate with a drafter; the output has exactly the distribution of decoding `model` without one.

    Parameters
    ----------
    model
        A Hugging Face causal LM (see `mintage.draft.core.target.Target` for what is supported).
    input_ids
        Prompts, padded on either side where `attention_mask` is 0.
    drafter
        E.g. ``TokenRecycling()``.
    max_new_tokens
        Emit at most this many tokens per sequence; 0 returns the prompt.
    temperature, top_k, top_p, repetition_penalty
        See `mintage.draft.core.warp.Warp`. Temperature 0 is greedy.
    eos_token_id
        A sequence ends with the first of these; default: the model's generation config.
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

    Raises
    ------
    UserError
        Empty prompt, prompt and new tokens longer than the model's context, a value out of range, a model that cannot
        branch, a drafter made for another vocabulary, or NaN logits.
    """
    target = _target(model, compile, engine)
    warp = Warp(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
    config = model.generation_config
    if eos_token_id is None:
        eos_token_id = config.eos_token_id
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    if pad_token_id is None:
        pad_token_id = config.pad_token_id
    if pad_token_id is None:
        pad_token_id = min(ends, default=0)
    generator = None if seed is None else torch.Generator(target.device).manual_seed(seed)
    run = _Run(target, drafter, warp, ends, max_new_tokens, generator, streamer, stop=None)
    rows = run(input_ids, attention_mask, stream_prompt=True)
    if streamer is not None:
        streamer.end()
    return Generation(_pad(input_ids, rows, pad_token_id), run.stats)


def _target(model: Any, compile: bool | int, engine: Engine) -> Target:
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
    from transformers import EosTokenCriteria, MaxLengthCriteria
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    if generation_config.num_beams != 1:
        raise UserError(f"num_beams={generation_config.num_beams} cannot be drafted; use num_beams=1")
    extras = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    wanted = [name for name in extras if getattr(generation_config, name)]
    if wanted:
        raise UserError(f"{wanted[0]}=True cannot be used with a drafter; generate without it")
    past = cache_of(model_kwargs)
    if past is not None and past.get_seq_length():
        name = "cache" if "cache" in model_kwargs else "past_key_values"
        raise UserError(f"{name} holds tokens already; a drafter starts from the whole prompt")
    ends: set[int] = set()
    others = []
    longest = generation_config.max_length
    for criterion in stopping_criteria:
        if isinstance(criterion, EosTokenCriteria):
            ends |= set(criterion.eos_token_id.flatten().tolist())
        elif isinstance(criterion, MaxLengthCriteria):
            longest = criterion.max_length  # the user's own takes the place of the configuration's
        else:
            others.append(criterion)
    warp = Warp.from_processors(logits_processor, do_sample=bool(generation_config.do_sample))
    new = longest - input_ids.shape[1]
    run = _Run(Target(model), drafter, warp, ends, new, None, streamer, stop=others)
    rows = run(input_ids, model_kwargs.get("attention_mask"))
    if streamer is not None:
        streamer.end()
    pad = generation_config.pad_token_id
    sequences = _pad(input_ids, rows, pad if pad is not None else min(ends, default=0))
    if generation_config.return_dict_in_generate:
        output = GenerateDecoderOnlyOutput(sequences=sequences)  # type: ignore[arg-type]
        output.stats = run.stats  # type: ignore[attr-defined]
        return output
    return sequences


def _pad(input_ids: Tensor, rows: Sequence[Tensor], pad: int) -> Tensor:
    new = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    return torch.cat([input_ids, new.to(input_ids.device)], dim=1)


class _Row:
    """One sequence: its committed tokens in a buffer that never moves, and whether it has ended."""

    def __init__(self, prompt: Tensor, new: int, warp: Warp, generator: torch.Generator | None) -> None:
        self.buffer = torch.cat([prompt, prompt.new_zeros(new)])
        self.length, self.prompt, self.new = len(prompt), len(prompt), new
        self.done = new == 0
        self.context = Context(
            ids=self.buffer[: self.length],
            prompt_length=self.prompt,
            room=new - 1,
            warp=warp,
            generator=generator,
        )

    @property
    def emitted(self) -> Tensor:
        return self.buffer[self.prompt : self.length]

    def append(self, tokens: list[int]) -> None:
        self.buffer[self.length : self.length + len(tokens)] = torch.tensor(tokens, device=self.buffer.device)
        self.length += len(tokens)
        self.context.ids = self.buffer[: self.length]
        self.context.room = self.new - (self.length - self.prompt) - 1


class _Run:
    """One call of the loop."""

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        warp: Warp,
        ends: set[int],
        max_new_tokens: int,
        generator: torch.Generator | None,
        streamer: Streamer | None,
        stop: Sequence[Any] | None,
    ) -> None:
        if max_new_tokens < 0:
            raise UserError(f"max_new_tokens={max_new_tokens} is negative; pass 0 or more")
        self.target, self.drafter, self.warp = target, drafter, warp
        self.ends, self.max_new_tokens, self.generator = ends, max_new_tokens, generator
        self.streamer, self.stop = streamer, stop or ()
        self.verifier = GreedyMatch() if warp.greedy else drafter.verifier
        self.stats = Stats()

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None, *, stream_prompt: bool = False
    ) -> list[Tensor]:
        began = time.perf_counter()
        prompts = self._prompts(input_ids, attention_mask)
        if self.streamer is not None and len(prompts) > 1:
            raise UserError(f"a streamer follows one sequence; the batch has {len(prompts)}")
        if self.streamer is not None and stream_prompt:  # inside transformers it has had the prompt already
            self.streamer.put(input_ids.cpu())
        rows = [_Row(prompt, self.max_new_tokens, self.warp, self.generator) for prompt in prompts]
        self.stats.prompt_tokens = sum(map(len, prompts))
        if self.max_new_tokens:
            for row in rows:
                self.drafter.begin(self.target, row.context)
            cache = self._prefill(rows)
            while not all(row.done for row in rows):
                self._round(rows, cache)
        self.stats.new_tokens = sum(len(row.emitted) for row in rows)
        self.stats.draft_forwards = sum(row.context.draft_forwards for row in rows)
        self.stats.draft_tokens = sum(row.context.draft_tokens for row in rows)
        self.stats.seconds["total"] = time.perf_counter() - began
        return [row.emitted for row in rows]

    def _prompts(self, ids: Tensor, mask: Tensor | None) -> list[Tensor]:
        if ids.ndim != 2:
            raise UserError(f"input_ids has shape {tuple(ids.shape)}; expected (batch, length)")
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise UserError(f"input_ids holds {ids.dtype}; expected token ids, i.e. integers")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.target.vocabulary:
            raise UserError(f"input_ids holds ids outside the model's vocabulary of {self.target.vocabulary}")
        ids = ids.to(self.target.device, torch.long)
        kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
        if kept.shape != ids.shape:
            raise UserError(f"attention_mask has shape {tuple(kept.shape)}, input_ids {tuple(ids.shape)}")
        if ((kept[:, 1:] != kept[:, :-1]).sum(1) > 1).any():
            raise UserError("attention_mask has holes; pad on one side of each prompt only")
        prompts = [row[keep] for row, keep in zip(ids, kept, strict=True)]
        shortest, longest = min(map(len, prompts), default=0), max(map(len, prompts), default=0)
        if not shortest:
            raise UserError("the prompt is empty; pass at least one token (e.g. the beginning-of-sequence token)")
        limit = self.target.positions
        if limit and longest + self.max_new_tokens > limit:
            fits = f" or pass max_new_tokens={limit - longest}" if longest < limit else ""
            raise UserError(
                f"prompt of {longest} tokens plus max_new_tokens={self.max_new_tokens} exceeds the model's context of "
                f"{limit}; shorten the prompt{fits}"
            )
        return prompts

    def _prefill(self, rows: list[_Row]) -> Any:
        began = time.perf_counter()
        lengths = [row.length - 1 for row in rows]
        longest = max(lengths)
        cache = self.target.new_cache(len(rows), longest + self.max_new_tokens + 128)
        if self.drafter.reads_prompt and longest:
            self._prefill_and_show(rows, cache, lengths)
        elif longest:
            ids = torch.nn.utils.rnn.pad_sequence([row.context.ids[:-1] for row in rows], batch_first=True)
            self.target.prefill(ids, lengths, cache)
        self.stats.seconds["prefill"] = time.perf_counter() - began
        return cache

    def _prefill_and_show(self, rows: list[_Row], cache: Any, lengths: list[int]) -> None:
        """Prefill with all logits and let the drafter observe the prompt as a chain whose nodes are all accepted."""
        ids = torch.nn.utils.rnn.pad_sequence([row.context.ids[:-1] for row in rows], batch_first=True)
        logits = self.target.prefill(ids, lengths, cache, all_logits=True)
        for row, scores, length in zip(rows, logits, lengths, strict=True):
            for start in range(0, length, _PROMPT_CHUNK):
                part = slice(start, min(start + _PROMPT_CHUNK, length))
                chain = TokenTree(tokens=row.context.ids[part], topology=Topology.chain(part.stop - start - 1))
                self.drafter.observe(row.context, chain, scores[part], range(len(chain)))

    def _round(self, rows: list[_Row], cache: Any) -> None:
        seconds, clock = self.stats.seconds, time.perf_counter
        began = clock()
        trees = [self._propose(row) for row in rows]
        drafted = clock()
        scores = self.target.score(trees, cache)
        scored = clock()
        paths = []
        for row, tree, logits in zip(rows, trees, scores, strict=True):
            if row.done:
                paths.append([])
                continue
            paths.append(self._verify(row, tree, logits))
        verified = clock()
        cache.commit(paths)
        seconds["draft"] += drafted - began
        seconds["target"] += scored - drafted
        seconds["verify"] += verified - scored
        seconds["commit"] += clock() - verified
        self.stats.target_forwards += 1

    def _propose(self, row: _Row) -> TokenTree:
        context = row.context
        if row.done or context.room == 0:
            return TokenTree.root_only(context.root)
        return self.drafter.propose(context).cut(context.room)

    def _verify(self, row: _Row, tree: TokenTree, logits: Float[Tensor, "nodes vocabulary"]) -> list[int]:
        context = row.context
        judged = self._penalise(context, tree, logits) if self.warp.penalties else logits
        top, best = judged.max(-1)
        if top.isnan().any():
            raise UserError(
                f"the model returned NaN logits after {row.length} tokens; check its weights, or load it in float32"
            )
        verdict = self.verifier.verify(tree, TargetProbs(judged, best, self.warp), self.generator)
        path = list(verdict.path)
        tokens = [*tree.tokens[path[1:]].tolist(), verdict.token] if len(path) > 1 else [verdict.token]
        self.stats._count(tree, path)
        self.drafter.observe(context, tree, logits, path)
        self._emit(row, tokens)
        return path

    def _penalise(self, context: Context, tree: TokenTree, logits: Tensor) -> Tensor:
        """Apply penalties with each node's own past; nodes of equal depth have pasts of equal length."""
        judged = torch.empty(logits.shape, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
        depths = torch.tensor(tree.topology.depth)
        for depth in depths.unique().tolist():
            nodes = (depths == depth).nonzero().squeeze(-1).tolist()
            paths = torch.tensor([tree.topology.path(node) for node in nodes], device=logits.device)
            past = context.ids[:-1].expand(len(nodes), -1)
            ids = torch.cat([past, tree.tokens[paths].clamp_min(0)], dim=1)
            judged[nodes] = self.warp.penalise(ids, logits[nodes])
        return judged

    def _emit(self, row: _Row, tokens: list[int]) -> None:
        tokens = tokens[: row.context.room + 1]
        end = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        if end is not None:
            tokens, row.done = tokens[: end + 1], True
        if self.stop:
            tokens = self._until_stopped(row, tokens)
        row.append(tokens)
        row.done = row.done or row.context.room < 0
        if self.streamer is not None:
            self.streamer.put(torch.tensor(tokens))

    def _until_stopped(self, row: _Row, tokens: list[int]) -> list[int]:
        """Ask transformers' stopping criteria after every token, as its own loop does."""
        for count in range(1, len(tokens) + 1):
            ids = torch.cat([row.context.ids, row.buffer.new_tensor(tokens[:count])])[None]
            if any(bool(torch.as_tensor(criterion(ids, None)).all()) for criterion in self.stop):
                row.done = True
                return tokens[:count]
        return tokens

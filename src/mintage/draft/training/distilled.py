"""Train a small draft model for a target: the target teaches it, on the target's own answers.

The recipe is DistillSpec's (Zhou et al., ICLR 2024, arXiv 2310.08461): sequence data written by the target, loss
between the two laws at every token. A few of the target's own blocks are the start, its embeddings stay, and its
last hidden states are kept with the answers, so that the teacher costs one product with the head per token instead of
a forward.

Not here: the loop (`mintage.train`), the draft model itself (`mintage.draft.core.distilled`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from mintage.draft.core.cache import TreeCache
from mintage.draft.core.distilled import cut_drafter, fingerprint, save_drafter
from mintage.draft.core.target import Target
from mintage.draft.training.ppd import Continuation, Report, continuations
from mintage.errors import UserError
from mintage.files import replace_file
from mintage.measure import Interval, bootstrap_ratio, paired_time
from mintage.models import CausalLM
from mintage.train import Settings, train

__all__ = [
    "Accuracy",
    "DrafterRecipe",
    "Lessons",
    "accuracy_along",
    "answer",
    "drafter_accuracy",
    "law_distance",
    "step_cost",
    "train_drafter",
    "write_answers",
]

_FORMAT = "mintage drafter answers 1"
_POOL, _GROUP = 512, 32  # prompts are sorted by length within pools, and answered in groups
_HELD_OUT = 20  # every twentieth prompt's answers are not trained on
_MEASURED = 72  # held-out prompts that agreement is measured on
_METRIC_PLACES = 256
_WORTH_DROPPING = 0.8  # share of rows still open at which the cache is copied without the others


def _silent(stage: str, done: int, of: int) -> None:
    pass


# -- the target's own answers --------------------------------------------------------------------------------------


def write_answers(
    lm: CausalLM,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    new_tokens: int = 160,
    seed: int = 0,
    report: Report = _silent,
) -> list[Path]:
    """Let the target answer every prompt twice, greedily and sampled at temperature 1, and keep what it thought.

    Every file holds the answers to one group of prompts, the target's last hidden state before every answer token, and
    the logarithm of its total mass there. Files that are there already are not made again; several processes may work
    on one folder.

    Parameters
    ----------
    lm
        The target and its tokenizer.
    prompts
        Texts of users' turns.
    folder
        Where the files go.
    new_tokens
        Longest answer.
    seed
        Of the samples.
    report
        Progress, in prompts.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    UserError
        `folder` holds answers to other prompts, or of another model.
    """
    chat = bool(lm.tokenizer.chat_template)
    encoded = [lm.encode(prompt, chat=chat)[0].tolist() for prompt in prompts]
    groups = list(_groups([len(ids) for ids in encoded], seed))
    paths = [Path(folder) / f"answers-{number:05d}.safetensors" for number in range(len(groups))]
    Path(folder).mkdir(parents=True, exist_ok=True)

    def write(number: int, wait: float) -> None:
        path, asked = paths[number], [encoded[i] for i in groups[number]]
        made_of = json.dumps([fingerprint(lm.model), lm.name, asked, new_tokens, seed])
        key = hashlib.sha256(made_of.encode()).hexdigest()
        with FileLock(f"{path}.lock", timeout=wait):
            if path.exists():
                if _metadata(path).get("key") != key:
                    raise UserError(f"{path} holds answers to other prompts; delete it or use another folder")
                return
            state = np.random.SeedSequence([seed, number]).generate_state(1)  # a CPU generator reads 32 bits
            generator = torch.Generator(lm.model.device).manual_seed(int(state[0]))
            tensors = answer(lm, asked, new_tokens=new_tokens, generator=generator)
            tensors["prompt"] = torch.tensor(groups[number]).repeat(2)
            with replace_file(path) as temporary:
                save_file(tensors, temporary, metadata={"format": _FORMAT, "key": key})

    done, left = 0, []
    for wait, numbers in ((0.0, range(len(groups))), (-1.0, left)):  # first what no other process is at, then the rest
        for number in numbers:
            try:
                write(number, wait)
            except Timeout:
                left.append(number)
                continue
            done += len(groups[number])
            report("answer", done, len(encoded))
    return paths


def _groups(lengths: Sequence[int], seed: int) -> Iterator[list[int]]:
    """Yield groups of prompts of similar length; every run of groups is a fair sample of the prompts."""
    for first in range(0, len(lengths), _POOL):
        pool = sorted(range(first, min(first + _POOL, len(lengths))), key=lambda i: lengths[i])
        groups = [pool[i : i + _GROUP] for i in range(0, len(pool), _GROUP)]
        random.Random(f"{seed} {first}").shuffle(groups)
        yield from groups


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it to write it again") from None
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} is {metadata.get('format')!r}, expected {_FORMAT!r}; use another folder")
    return metadata


@torch.no_grad()
def answer(
    lm: CausalLM, prompts: Sequence[Sequence[int]], *, new_tokens: int, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Answer a batch of prompts, first all greedily, then all sampled at temperature 1; one prefill serves both.

    Parameters
    ----------
    lm
        The target.
    prompts
        Their ids.
    new_tokens
        Longest answer; an end token ends one before, and belongs to it.
    generator
        Of the samples.

    Returns
    -------
    dict of Tensor
        ``ids`` (prompt and answer of every row, end to end), ``length`` and ``given`` (of row and prompt), ``sampled``,
        and for every answer token, end to end, ``hidden`` (last hidden state before it) and ``log_total`` (logarithm of
        the sum of exponential logits there).
    """
    model: Any = lm.model
    target, count = Target(model), len(prompts)
    given = torch.tensor([len(ids) for ids in prompts], device=target.device)
    longest = int(given.max())
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in prompts], device=target.device)
    cache = target.new_cache(count, longest + new_tokens)
    hidden = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    hidden = hidden[torch.arange(count, device=target.device), given - 1].repeat(2, 1)
    active = torch.arange(2 * count, device=target.device)  # rows in the batch; those that ended are dropped in bulk
    _take_rows(cache, active % count, [longest] * 2 * count)
    columns = torch.arange(longest + new_tokens, device=target.device)
    seen = ((columns < given[:, None]) | (columns >= longest)).repeat(2, 1)
    ends = _end_tokens(model)
    answers: list[list[int]] = [[] for _ in active]
    kept: list[list[Tensor]] = [[] for _ in active]
    totals: list[list[float]] = [[] for _ in active]
    open_rows = set(active.tolist())
    for step in range(new_tokens):
        scores = model.lm_head(hidden).float()
        total = scores.logsumexp(-1)
        tokens = scores.argmax(-1)
        if (sampled := active >= count).any():
            mass = (scores[sampled] - total[sampled, None]).exp().cumsum(-1)
            uniform = torch.rand(len(scores), 1, device=target.device, generator=generator)[sampled]
            drawn = torch.searchsorted(mass, uniform * mass[:, -1:], right=True)
            tokens[sampled] = drawn.minimum(torch.searchsorted(mass, mass[:, -1:].contiguous())).squeeze(1)
        for row, token, state, value in zip(active.tolist(), tokens.tolist(), hidden, total.tolist(), strict=True):
            if row in open_rows:
                answers[row].append(token)
                kept[row].append(state)
                totals[row].append(value)
                if token in ends:
                    open_rows.remove(row)
        if not open_rows:
            break
        if len(open_rows) <= _WORTH_DROPPING * len(active):
            going = torch.tensor([i for i, row in enumerate(active.tolist()) if row in open_rows], device=active.device)
            active, tokens, seen = active[going], tokens[going], seen[going]
            _take_rows(cache, going, [longest + step] * len(going))
        hidden = model.base_model(
            input_ids=tokens[:, None],
            position_ids=(given[active % count] + step)[:, None],
            attention_mask=seen[:, None, None, : longest + step + 1],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, 0]
    rows = [[*prompts[i % count], *new] for i, new in enumerate(answers)]
    return {
        "ids": torch.tensor([token for row in rows for token in row], dtype=torch.int32),
        "length": torch.tensor([len(row) for row in rows], dtype=torch.int32),
        "given": given.repeat(2).to(torch.int32).cpu(),
        "sampled": torch.arange(2 * count) >= count,
        "hidden": torch.stack([state for states in kept for state in states]).cpu(),
        "log_total": torch.tensor([value for values in totals for value in values]),
    }


def _take_rows(cache: TreeCache, rows: Int[Tensor, " rows"], lengths: list[int]) -> None:
    """Keep these rows of a cache, in this order; a row may be taken twice."""
    for layer in cache.layers:
        layer.storage = [buffer[rows] for buffer in layer.storage]  # type: ignore[attr-defined]
    cache.fill(lengths)


def _end_tokens(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = model.config.get_text_config(decoder=True).eos_token_id if ends is None else ends
    return set() if ends is None else set(ends) if isinstance(ends, list) else {ends}


# -- the lesson ----------------------------------------------------------------------------------------------------


class Lessons:
    """Answers in memory: ids of every row, and what the target thought before every answer token (2 bytes per number).

    Parameters
    ----------
    paths
        Files of `write_answers`.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.ids: list[Int[Tensor, " length"]] = []
        self.given: list[int] = []
        self.prompt: list[int] = []
        self.sampled: list[bool] = []
        self.hidden: list[Float[Tensor, "answer width"]] = []
        self.log_total: list[Float[Tensor, " answer"]] = []
        for path in paths:
            with safe_open(path, framework="pt") as file:
                part = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            new = (part["length"] - part["given"]).tolist()
            self.ids += part["ids"].split(part["length"].tolist())
            self.given += part["given"].tolist()
            self.prompt += part["prompt"].tolist()
            self.sampled += part["sampled"].tolist()
            self.hidden += part["hidden"].split(new)
            self.log_total += part["log_total"].split(new)

    def __len__(self) -> int:
        return len(self.ids)

    def answer(self, row: int) -> Int[Tensor, " answer"]:
        """Return the ids that the target wrote."""
        return self.ids[row][self.given[row] :]

    def frequent(self, rows: Sequence[int], count: int) -> tuple[Int[Tensor, " known"], float]:
        """Return the `count` most frequent answer tokens, ascending, and the share of all answer tokens they are."""
        counted = torch.cat([self.answer(row) for row in rows]).long().bincount()
        most = counted.argsort(descending=True, stable=True)[:count]
        most = most[counted[most] > 0]
        return most.sort().values, float(counted[most].sum() / counted.sum())


def law_distance(
    student: Float[Tensor, "places known"], log_p: Float[Tensor, "places known"], overlap: float = 0.0
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Compare the student's law q with the teacher's p, which need not sum to 1 over the tokens that the student knows.

    The distance is ``(1 - overlap) sum p log(p / q) + overlap (1 - sum min(p, q))``, averaged over places. The gradient
    with respect to the student's logits is computed along with it, in fewer passes over memory than autograd's.

    Parameters
    ----------
    student
        Logits.
    log_p
        Log-probabilities.
    overlap
        Share of the chance that a draft is rejected.

    Returns
    -------
    loss, metrics
        The distance, and its parts: ``divergence``, ``accept`` (``sum min(p, q)``) and ``agree`` (the most likely
        tokens are the same); the latter two over the first places only where they cost nothing but time.
    """
    with torch.no_grad():
        log_q = student.float().log_softmax(-1)
        p = log_p.exp()
        mass = p.sum(-1, keepdim=True)
        divergence = torch.linalg.vecdot(p, log_p - log_q).mean()
        some = slice(None) if overlap else slice(None, _METRIC_PLACES)
        agree = (log_q[some].argmax(-1) == log_p[some].argmax(-1)).float().mean()
        q = log_q.exp_()
        accept = torch.minimum(p[some], q[some]).sum(-1).mean()
        slope = torch.mul(q, (1 - overlap) * mass).sub_(p, alpha=1 - overlap)
        if overlap:
            below = torch.where(q < p, q, 0.0)  # d/ds of sum min(p, q) is q [q < p] - q sum q [q < p]
            slope -= overlap * (below - q * below.sum(-1, keepdim=True))
        slope = slope.div_(len(student)).to(student.dtype)
    loss = (1 - overlap) * divergence + overlap * (1 - accept)
    return _Known.apply(student, slope, loss), {
        "divergence": float(divergence),
        "accept": float(accept),
        "agree": float(agree),
    }  # type: ignore[return-value]


class _Known(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, slope: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0].to(slope.dtype), None, None


class DrafterRecipe:
    """What the training loop needs: some answers per batch, and the distance between the two laws at every token.

    Parameters
    ----------
    target
        The frozen model.
    drafter
        From `mintage.draft.core.distilled.cut_drafter`; a float32 copy of its blocks is trained, see `finish`.
    lessons, rows
        Answers, and which of them to learn from.
    batch_rows
        Answers per batch.
    overlap
        Share of the loss that is ``1 - sum(min(p, q))``, the chance that a draft is rejected; the rest is the forward
        Kullback-Leibler divergence. Both leave out what the drafter's head does not know.
    seed
        Of the order.
    """

    def __init__(
        self,
        target: Any,
        drafter: Any,
        lessons: Lessons,
        rows: Sequence[int],
        *,
        batch_rows: int = 16,
        overlap: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= overlap <= 1:
            raise UserError(f"overlap={overlap} is outside [0, 1]; pass e.g. 0.5, or 0 for the divergence alone")
        self.drafter, self.lessons, self.rows = drafter, lessons, list(rows)
        self.batch_rows, self.overlap, self.seed = min(batch_rows, len(self.rows)), overlap, seed
        self.embeddings: nn.Module = target.get_input_embeddings()
        self.head: Tensor = drafter.lm_head.rows
        self.module = copy.deepcopy(drafter.model, memo={id(drafter.model.embed_tokens): None}).float()
        self.module.requires_grad_(True)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return padded ids, and of every answer token its place, the target's last hidden state and its total."""
        per_epoch = len(self.rows) // self.batch_rows
        epoch, place = divmod(index, per_epoch)
        rows = self._epoch(epoch)[place]
        lessons, ids = self.lessons, [self.lessons.ids[row].long() for row in rows]
        longest = max(map(len, ids))
        spans = [
            torch.arange(lessons.given[row] - 1, len(ids[i]) - 1) + i * longest  # predicted one place before
            for i, row in enumerate(rows)
        ]
        return {
            "ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "places": torch.cat(spans),
            "hidden": torch.cat([lessons.hidden[row] for row in rows]),
            "log_total": torch.cat([lessons.log_total[row] for row in rows]),
        }

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Return an epoch's batches: rows of similar length together, in random order."""
        if getattr(self, "_order", (-1,))[0] != epoch:
            shuffled = random.Random(f"{self.seed} {epoch}")
            rows = shuffled.sample(self.rows, len(self.rows))
            chunk, batches = 32 * self.batch_rows, []
            for first in range(0, len(rows), chunk):
                part = sorted(rows[first : first + chunk], key=lambda row: len(self.lessons.ids[row]))
                batches += [part[i : i + self.batch_rows] for i in range(0, len(part), self.batch_rows)]
            shuffled.shuffle(batches)
            self._order = (epoch, batches)
        return self._order[1]

    def loss(self, module: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Compare the laws at all answer tokens of the batch."""
        embedded = self.embeddings(batch["ids"]).to(self.head.dtype)
        hidden = module(inputs_embeds=embedded, use_cache=False).last_hidden_state.flatten(0, 1)[batch["places"]]
        with torch.no_grad():
            teacher = nn.functional.linear(batch["hidden"].to(self.head.dtype), self.head).float()
            log_p = teacher.sub_(batch["log_total"][:, None])
        student = nn.functional.linear(hidden.to(self.head.dtype), self.head)
        return law_distance(student, log_p, self.overlap)

    def finish(self) -> None:
        """Copy what was learnt into the drafter, in its own dtype."""
        for mine, learnt in zip(_blocks(self.drafter.model), _blocks(self.module), strict=True):
            mine.data.copy_(learnt.data)


def _blocks(model: Any) -> list[Tensor]:
    return [*model.layers.parameters(), *model.norm.parameters()]


# -- how good it is ------------------------------------------------------------------------------------------------


class Accuracy(NamedTuple):
    """How often a draft model guesses the target's greedy choice, along the target's own greedy answers.

    Attributes
    ----------
    within
        By k: the share of answer tokens among the draft model's k likeliest, with its interval over prompts.
    tokens, prompts
        How many tokens of how many answers.
    """

    within: dict[int, Interval]
    tokens: int
    prompts: int

    def as_json(self) -> str:
        """Return the numbers as a JSON object."""
        shares = {str(k): [round(x, 4) for x in interval] for k, interval in self.within.items()}
        return json.dumps({"low, share, high within k": shares, "tokens": self.tokens, "prompts": self.prompts})


@torch.no_grad()
def drafter_accuracy(
    lm: CausalLM,
    draft_model: PreTrainedModel,
    prompts: Sequence[str],
    *,
    new_tokens: int = 96,
    within: Sequence[int] = (1, 2, 4, 8),
    report: Report = _silent,
) -> Accuracy:
    """Let the target answer prompts greedily, and look up every token it chose in what the draft model would guess.

    Parameters
    ----------
    lm
        The target and its tokenizer.
    draft_model
        Any causal LM with its vocabulary.
    prompts
        Texts of users' turns that the draft model was not trained on.
    new_tokens
        Longest answer.
    within
        Numbers of guesses to look among.
    report
        Progress.
    """
    texts = continuations(lm, prompts, new_tokens=new_tokens, report=report)
    return accuracy_along(draft_model, texts, within=within, report=report)


@torch.no_grad()
def accuracy_along(
    draft_model: PreTrainedModel,
    texts: Sequence[Continuation],
    *,
    within: Sequence[int] = (1, 2, 4, 8),
    report: Report = _silent,
) -> Accuracy:
    """Look up every token of the target's greedy answers in what the draft model would guess after what stands before.

    Parameters
    ----------
    draft_model
        Any causal LM with the target's vocabulary.
    texts
        Prompts and the target's greedy answers to them.
    within
        Numbers of guesses to look among.
    report
        Progress.
    """
    hits: dict[int, list[int]] = {k: [] for k in within}
    lengths = []
    for done, text in enumerate(texts):
        ids = torch.tensor(text.ids, device=draft_model.device)
        model: Any = draft_model
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0, text.prompt - 1 :].float()
        guesses = logits.topk(max(within), dim=-1).indices == ids[text.prompt :, None]
        for k in within:
            hits[k].append(int(guesses[:, :k].sum()))
        lengths.append(len(text.ids) - text.prompt)
        report("look up", done + 1, len(texts))
    return Accuracy({k: bootstrap_ratio(found, lengths) for k, found in hits.items()}, sum(lengths), len(lengths))


@torch.no_grad()
def step_cost(lm: CausalLM, draft_model: PreTrainedModel, *, context: int = 256, rounds: int = 20) -> Interval:
    """Seconds of a one-token forward of the draft model over the target's, paired, with its interval.

    Parameters
    ----------
    lm
        The target.
    draft_model
        The draft model.
    context
        Tokens in both caches.
    rounds
        Pairs of forwards to time.
    """
    generator = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[], object]] = {}
    for name, model in (("target", lm.model), ("draft", draft_model)):
        target = Target(model)
        ids = torch.randint(0, target.vocabulary, (1, context), generator=generator).to(target.device)
        cache = target.new_cache(1, context + 8)
        target.prefill(ids, [context], cache)

        calls[name] = partial(_one_step, target, ids, cache)
    return paired_time(calls, repeats=rounds, warmup=3).ratio("draft", "target")


def _one_step(target: Target, ids: Tensor, cache: TreeCache) -> None:
    """Read one token after a cache that holds all of `ids`, and forget it again."""
    context = ids.shape[1]
    place = torch.tensor([[context]], device=target.device)
    target.extend(ids[:, :1], place, torch.ones(1, 1, 1, dtype=torch.bool, device=target.device), cache)
    cache.fill([context])


# -- the whole -----------------------------------------------------------------------------------------------------


def train_drafter(
    lm: CausalLM,
    prompts: Sequence[str],
    output: str | Path,
    *,
    folder: str | Path,
    layers: Sequence[int] = (0, 1),
    vocabulary: int = 8192,
    new_tokens: int = 160,
    steps: int = 1500,
    lr: float = 2e-3,
    batch_rows: int = 16,
    overlap: float = 0.0,
    seed: int = 0,
    test_prompts: Sequence[str] = (),
    command: str = "",
    report: Report = _silent,
) -> PreTrainedModel:
    """Write the target's answers, cut a drafter from it, teach it, measure it, save it.

    What is done already in `folder` is not done again: a killed run goes on. The answers of one prompt in twenty are
    not trained on; agreement with them goes into the file.

    Parameters
    ----------
    lm
        The target, frozen here, and its tokenizer.
    prompts
        Texts of users' turns, e.g. `mintage.draft.training.instructions.instructions`.
    output
        Safetensors file to write, see `mintage.draft.core.distilled.save_drafter`.
    folder
        Keeps answers, checkpoint and log. The answers take two bytes per answer token and unit of the target's width,
        there and in memory.
    layers
        Blocks of the target to start from.
    vocabulary
        Tokens that the drafter's head knows: the most frequent ones of the answers.
    new_tokens
        Longest answer.
    steps, lr, batch_rows
        Optimiser steps, peak learning rate (warm-up over a twentieth of the steps, then cosine), answers per step.
    overlap
        See `DrafterRecipe`.
    seed
        Of everything random.
    test_prompts
        Prompts that are not among `prompts`; agreement on them goes into the file too.
    command
        Kept in the file: what repeats the training.
    report
        Called as ``report(stage, done, of)``.

    Returns
    -------
    PreTrainedModel
        The drafter that was saved.

    Raises
    ------
    UserError
        There are too few prompts, `folder` holds another run, or a drafter cannot be cut from this target.
    """
    if len(prompts) < _HELD_OUT:
        raise UserError(f"{len(prompts)} prompts are too few; pass at least {_HELD_OUT}, better 2000")
    if vocabulary < 1:
        raise UserError(f"vocabulary={vocabulary}; the head must know at least 1 token, e.g. 8192")
    folder = Path(folder)
    lm.model.requires_grad_(False)
    cut_drafter(lm.model, layers, torch.zeros(1, dtype=torch.long))  # what cannot be cut is told before the long work
    paths = write_answers(lm, prompts, folder / "answers", new_tokens=new_tokens, seed=seed, report=report)
    lessons = Lessons(paths)
    rows = [row for row in range(len(lessons)) if lessons.prompt[row] % _HELD_OUT]
    tokens, covered = lessons.frequent(rows, vocabulary)
    drafter = cut_drafter(lm.model, layers, tokens)
    recipe = DrafterRecipe(lm.model, drafter, lessons, rows, batch_rows=batch_rows, overlap=overlap, seed=seed)
    settings = Settings(
        steps=steps, lr=lr, warmup=steps // 20, seed=seed, save_every=25, bf16=lm.model.dtype == torch.bfloat16
    )
    device = lm.model.device.type
    train(recipe, folder, settings, device=device, on_step=lambda done, of: report("train", done, of))
    recipe.finish()
    learnt = sum(len(lessons.answer(row)) for row in rows)
    notes = {
        "command": command,
        "layers": json.dumps(list(layers)),
        "answers": f"{learnt} tokens of {len(rows)} answers of up to {new_tokens} tokens, half greedy, half sampled",
        "head": f"{len(tokens)} tokens, {covered:.4f} of those in the answers",
        "settings": f"steps={steps} lr={lr} batch_rows={batch_rows} overlap={overlap} seed={seed}",
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "held out": drafter_accuracy(lm, drafter, prompts[::_HELD_OUT][:_MEASURED], report=report).as_json(),
        "log": (folder / "log.jsonl").read_text(),
    }
    if test_prompts:
        notes["test"] = drafter_accuracy(lm, drafter, test_prompts, report=report).as_json()
    save_drafter(drafter, lm, output, notes=notes)
    return drafter

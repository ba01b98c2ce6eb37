"""A target's own answers, and what it thought as it wrote them: what a distilled drafter learns from.

Every prompt is answered twice, greedily and sampled at temperature 1. The target's last hidden states are kept with the
answers, so that the teacher costs one product with the head per token instead of a forward.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mintage.draft.core.cache import TreeCache
from mintage.draft.core.distilled import describe_shapes
from mintage.draft.core.target import Target
from mintage.errors import UserError
from mintage.files import replace_file
from mintage.models import CausalLM, with_cache
from mintage.progress import Progress, silent

__all__ = ["Answers", "answer", "write_answers"]

_FORMAT = "mintage drafter answers 1"
_POOL, _GROUP = 512, 32  # prompts are sorted by length within pools, and answered in groups
_WORTH_DROPPING = 0.8  # share of rows still open at which the cache is copied without the others


def write_answers(
    lm: CausalLM,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    new_tokens: int = 160,
    seed: int = 0,
    progress: Progress = silent,
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
    progress
        ``progress("answer", done, of)``, in prompts.

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
        definition = json.dumps([describe_shapes(lm.model), lm.name, asked, new_tokens, seed])
        key = hashlib.sha256(definition.encode()).hexdigest()
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
            progress("answer", done, len(encoded))
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
    hidden = model.base_model(input_ids=ids, **with_cache(model.base_model, cache), use_cache=True).last_hidden_state
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
            **with_cache(model.base_model, cache),
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


class Answers:
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

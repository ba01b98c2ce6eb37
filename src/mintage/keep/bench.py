"""Measure policies: what each costs in quality, bytes and milliseconds, at the same share of the context.

The job alone (``mintage bench keep``) runs every ready policy on real long documents; a paper's method alone runs its
own claim check, `mintage.keep.claims`. Every arm reads the same tokens in the same process, in rotating order:

- perplexity of the next tokens, decoded one by one after the document was read and compressed;
- retrieval from a haystack, the question asked after compression or read with the context;
- bytes of storage, elements read per token, seconds to read the prompt, milliseconds per decoded token.

Perplexity alone flatters windows: retrieval decides.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mintage import catalog
from mintage.data import data_file, haystack
from mintage.errors import UserError
from mintage.files import read_jsonl
from mintage.keep.contract import Policy
from mintage.keep.storage import KeptCache
from mintage.measure import Figure, Result, bootstrap, bootstrap_ratio, interleaved
from mintage.measure.environment import environment
from mintage.measure.memo import Memo
from mintage.models import EMBEDDED, CausalLM, load_causal_lm

__all__ = ["documents", "run"]

Report = Callable[[int, int, str], None]

FULL = "full-cache"
_WORK = Path(".mintage") / "keep"
_DECODED = 64
"""Tokens scored and timed behind each document."""

_ANSWER = 8
"""Tokens of an answer."""

_FINDABLE = 0.05
"""Retrieval lost at most, for a policy to count as keeping it."""


def silent(done: int, of: int, label: str) -> None:
    """Report nothing."""


# -- inputs --------------------------------------------------------------------------------------------------------


def documents(lm: CausalLM, tokens: int, number: int) -> list[tuple[str, Tensor]]:
    """Return the first `tokens` tokens of `number` English speeches that are long enough, spread over the years.

    Raises
    ------
    UserError
        The data folder is not set, or too few documents are that long.
    """
    rows = [r for r in read_jsonl(data_file("long_docs.jsonl.gz")) if r["corpus"] in ("state_union", "inaugural")]
    rows = [r for r in rows if len(r["text"]) >= 3 * tokens]
    found = []
    for row in _spread(rows):
        text = row["text"][: 8 * tokens]
        ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] >= tokens:  # type: ignore[union-attr]
            found.append((row["file"], ids[:, :tokens]))  # type: ignore[index]
        if len(found) == number:
            return found
    raise UserError(f"only {len(found)} of the speeches have {tokens} tokens; pass a smaller --limit or --contexts")


def _spread(rows: list[Any]) -> Iterator[Any]:
    """Yield rows from all over the list: the middle, the quarters, the eighths, and so on."""
    seen = set()
    for level in range(1, max(len(rows), 2).bit_length() + 1):
        for odd in range(1, 2**level, 2):
            place = odd * len(rows) // 2**level
            if place < len(rows) and place not in seen:
                seen.add(place)
                yield rows[place]


# -- one arm on one input --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A policy to measure, by the name it is asked for."""

    name: str
    policy: Policy

    def at(self, entries: int) -> Policy:
        """Return the policy with room for `entries`."""
        return self.policy.at(entries)


@torch.inference_mode()
def _decode(lm: CausalLM, policy: Policy, ids: Tensor, context: int) -> dict[str, Any]:
    """Read `context` tokens, then score the others one by one."""
    import time

    model, nll, steps, reads = lm.model, [], [], 0
    with policy(model) as session:
        start = time.perf_counter()
        out = model(ids[:, :context], use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - start
        cache = out.past_key_values
        stored, kept = cache.nbytes(), cache.kept().float().mean().item()
        for place in range(context, ids.shape[1]):
            nll.append(-out.logits[0, -1].float().log_softmax(-1)[ids[0, place]].item())
            start = time.perf_counter()
            out = model(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            steps.append(time.perf_counter() - start)
            reads += cache.reads()
        assert session.cache is cache
    return {
        "nll": float(np.mean(nll)),
        "prefill": prefill,
        "step": float(np.median(steps)),
        "bytes": max(stored, cache.nbytes()),
        "kept": kept,
        "reads": reads / len(steps),
    }


@torch.inference_mode()
def _answer(lm: CausalLM, policy: Policy, example: Any, *, aware: bool, new: int) -> str:
    """Answer an example's question, read with the context or after it was compressed."""
    tokenizer: Any = lm.tokenizer
    context = tokenizer(example.context, return_tensors="pt")["input_ids"]
    question = tokenizer(example.question, return_tensors="pt", add_special_tokens=False)["input_ids"]
    chunks = [torch.cat((context, question), 1)] if aware else [context, question]
    with policy(lm.model):
        cache, out = None, None
        for chunk in chunks:
            out = lm.model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
        answer: list[int] = []
        while True:
            answer.append(int(out.logits[0, -1].argmax()))  # type: ignore[union-attr]
            if len(answer) == new:
                return tokenizer.decode(answer)
            out = lm.model(torch.tensor([answer[-1:]]), past_key_values=cache, use_cache=True)


def survivors(lm: CausalLM, policy: Policy, ids: Tensor, bins: int = 64) -> list[list[float]] | None:
    """Share of the tokens of each stretch of the text that each layer and head still holds; None if it is all."""
    with policy(lm.model), torch.inference_mode():
        cache: KeptCache = lm.model(ids, use_cache=True, logits_to_keep=1).past_key_values
    if all(layer.complete for layer in cache.kept_layers):
        return None
    edges = np.linspace(0, ids.shape[1], bins + 1)
    width = np.diff(np.ceil(edges))
    return [
        (np.histogram(head.numpy(), edges)[0] / np.maximum(width, 1)).tolist()
        for positions in cache.survivors().values()
        for head in positions
    ]


# -- the job -----------------------------------------------------------------------------------------------------------


def run(
    methods: Sequence[str],
    *,
    model: str = EMBEDDED,
    contexts: Sequence[int] = (1024,),
    budgets: Sequence[int] = (4, 16),
    limit: int | None = 4,
    dtype: str = "bfloat16",
    device: str = "cpu",
    seed: int = 0,
    command: str = "",
    work: Path = _WORK,
    progress: Report = silent,
) -> list[Result | Figure]:
    """Compare policies, or run one paper's claim check.

    Parameters
    ----------
    methods
        Specs such as ``"snapkv:kernel=7"``; none means every ready policy. One name of a paper without settings runs
        its claim check instead.
    model
        What `mintage.models.load_causal_lm` takes.
    contexts
        Tokens read before compression.
    budgets
        Room as a part of the context: 16 keeps, or reads, one entry in 16.
    limit
        Documents, and twice as many questions, per context; None uses 4.
    dtype, device
        Of the model.
    seed
        Of the haystacks.
    command
        Written into the rows: what repeats them.
    work
        Folder of unfinished runs.
    progress
        ``progress(done, of, label)``.

    Raises
    ------
    UserError
        Unknown methods or settings, contexts or budgets that leave nothing, missing data.
    """
    if len(methods) == 1 and ":" not in methods[0] and catalog.find(methods[0], "keep").role == "paper":
        row = catalog.find(methods[0], "keep")
        if row.status != "ready":
            raise UserError(row.problem or f"{row.name} is {row.status}, there is nothing to measure yet")
        check = importlib.import_module(f"mintage.keep.claims.{row.name.replace('-', '_')}").check
        return check(seed=seed, limit=limit, command=command, progress=progress)
    limit = limit or 4
    if min(contexts) < 64 or min(budgets) < 2:
        raise UserError("a context has at least 64 tokens and a budget is at most half of it; pass e.g. --budgets 4,16")
    arms = _arms(methods)
    lm = load_causal_lm(model, dtype=dtype, device=device)
    definition = {"model": model, "dtype": dtype, "seed": seed, "limit": limit, "decoded": _DECODED}
    memo = Memo(work, definition, [Path(__file__).parent, Path(haystack.__file__)])
    cells = [(length, part) for length in contexts for part in budgets]
    total, done = len(cells) * len(arms) * limit * 5, 0

    def step(label: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, label)

    measured = {
        (length, part): _measure(lm, arms, length, part, limit=limit, seed=seed, memo=memo, step=step)
        for length, part in cells
    }
    rows = [row for cell in measured.values() for row in _rows(cell, arms)]
    described = environment()
    data = f"long_docs (state_union, inaugural), pass-keys in long_docs; {limit} texts"
    settings = {"contexts": list(contexts), "budgets": list(budgets), "dtype": dtype, "decoded": _DECODED}
    common = {"job": "keep", "model": model, "data": data, "seed": seed, "settings": settings}
    results: list[Result | Figure] = [
        Result(**common, **row, command=command, environment=described) for row in [*rows, *_verdicts(measured, arms)]
    ]
    figures = _figures(lm, measured, arms, documents(lm, min(contexts), 1)[0][1])
    memo.delete()
    return results + [Figure(**figure, job="keep", environment=described) for figure in figures]


def _measure(
    lm: CausalLM,
    arms: Sequence[Arm],
    length: int,
    part: int,
    *,
    limit: int,
    seed: int,
    memo: Memo,
    step: Callable[[str], None],
) -> _Cell:
    """Run all arms at one length and budget, text by text."""
    cell = _Cell(length, part, [arm.name for arm in arms])
    policies = {arm.name: arm.at(max(length // part, 2)) for arm in arms}
    texts = documents(lm, length + _DECODED, limit)
    for (place, (_, ids)), name in interleaved(list(enumerate(texts)), policies):
        measure = partial(_decode, lm, policies[name], ids, length)
        cell.decoded[name].append(memo(f"decode {length} {part} {name} {place}", measure))
        step(f"{name}, 1/{part} of {length}")
    examples = questions(lm, length, 2 * limit, seed)
    for (place, example), name in interleaved(list(enumerate(examples)), policies):
        for aware, scores in ((False, cell.after), (True, cell.inside)):
            measure = partial(_answer, lm, policies[name], example, aware=aware, new=_ANSWER)
            text = memo(f"answer {length} {part} {name} {place} {aware}", measure)
            scores[name].append(float(str(example.answer) in text))
            step(f"{name}, 1/{part} of {length}")
    return cell


def _arms(methods: Sequence[str]) -> list[Arm]:
    """Build the arms, the full cache always among them."""
    specs = list(methods) or [m.name for m in catalog.methods("keep") if m.status == "ready" and m.name != "token-ring"]
    names = [FULL, *(spec for spec in specs if spec != FULL)]
    return [Arm(spec, catalog.build(spec, "keep")) for spec in dict.fromkeys(names)]


class _Cell:
    """All that was measured at one length and budget, by arm."""

    def __init__(self, length: int, part: int, names: Sequence[str]) -> None:
        self.length, self.part = length, part
        self.decoded: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.after: dict[str, list[float]] = {name: [] for name in names}
        self.inside: dict[str, list[float]] = {name: [] for name in names}

    def column(self, name: str, of: str) -> np.ndarray:
        return np.array([row[of] for row in self.decoded[name]])

    def perplexity(self, name: str) -> float:
        return math.exp(self.column(name, "nll").mean())

    @property
    def where(self) -> str:
        return f"at 1/{self.part} of {self.length} tokens"


def _rows(cell: _Cell, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """One row per arm and metric."""
    papers = {m.name for m in catalog.methods("keep", role="paper")}
    rows = []
    for arm in arms:
        name = arm.name
        values = {
            "perplexity": (bootstrap(cell.column(name, "nll"), lambda x, axis: np.exp(x.mean(axis))), "ppl", False),
            "retrieval, question after": (bootstrap(cell.after[name]), "share", True),
            "retrieval, question inside": (bootstrap(cell.inside[name]), "share", True),
        }
        if name != FULL:
            for metric, of in (
                ("cache size", "bytes"),
                ("elements read", "reads"),
                ("prefill time", "prefill"),
                ("decode time", "step"),
            ):
                ratio = bootstrap_ratio(cell.column(name, of), cell.column(FULL, of), of="median")
                values[metric] = (ratio, "x", False)
        for metric, (interval, unit, higher) in values.items():
            others = {a.name: _value(cell, a.name, metric) for a in arms if a.name != name}
            full = others.pop(FULL, None)
            rows.append(
                {
                    "method": name.partition(":")[0],
                    "metric": f"{metric} {cell.where}",
                    "value": interval.value,
                    "unit": unit,
                    "higher_is_better": higher,
                    "interval": interval.bounds,
                    "n": len(cell.after[name] if metric.startswith("retrieval") else cell.decoded[name]),
                    "baseline": {} if full is None else {FULL: full},
                    "peers": others if name.partition(":")[0] in papers else {},
                }
            )
    return rows


def _value(cell: _Cell, name: str, metric: str) -> float:
    if metric == "perplexity":
        return cell.perplexity(name)
    if metric.startswith("retrieval"):
        return float(np.mean((cell.after if metric.endswith("after") else cell.inside)[name]))
    of = {"cache size": "bytes", "elements read": "reads", "prefill time": "prefill", "decode time": "step"}[metric]
    return float(np.median(cell.column(name, of) / cell.column(FULL, of)))


def _verdicts(measured: dict[tuple[int, int], _Cell], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Is a policy faster than the full cache from 4k tokens on, and still finds what the full cache finds?"""
    long = [cell for (length, _), cell in measured.items() if length >= 4096]
    rivals = [
        (cell, arm.name, bootstrap_ratio(cell.column(arm.name, "step"), cell.column(FULL, "step"), of="median"))
        for cell in long
        for arm in arms
        if arm.name != FULL and np.mean(cell.after[arm.name]) >= np.mean(cell.after[FULL]) - _FINDABLE
    ]
    if not rivals:
        return []
    cell, name, ratio = min(rivals, key=lambda rival: rival[2].value)
    return [
        {
            "method": name.partition(":")[0],
            "metric": f"decode time {cell.where}, best that finds the needle",
            "value": ratio.value,
            "unit": "x",
            "higher_is_better": False,
            "interval": ratio.bounds,
            "n": len(cell.decoded[name]),
            "baseline": {FULL: 1.0},
            "claim": "From 4k tokens on a policy decodes faster than the full cache, retrieval within 5 points",
            "verdict": "holds" if ratio.high < 1 else "does not hold",
            "note": "of several arms the fastest; its interval does not know that it was chosen",
        }
    ]


def _figures(
    lm: CausalLM, measured: dict[tuple[int, int], _Cell], arms: Sequence[Arm], ids: Tensor
) -> list[dict[str, Any]]:
    """Quality and time against room, and where each policy's entries lie."""
    figures = []
    names = [arm.name for arm in arms]
    for length in dict.fromkeys(length for length, _ in measured):
        cells = sorted((c for (n, _), c in measured.items() if n == length), key=lambda c: -c.part)
        for slug, label, metric in (
            ("perplexity", "perplexity of the next tokens", "perplexity"),
            ("retrieval", "found, question asked after compression", "retrieval, question after"),
        ):
            series = [
                {"name": n, "x": [1 / c.part for c in cells], "y": [_value(c, n, metric) for c in cells]} for n in names
            ]
            figures.append(
                {
                    "name": f"{slug}-{length}",
                    "title": f"{label.capitalize()}, {length} tokens of context",
                    "caption": "Room for entries as a share of the context; the full cache has all of it.",
                    "kind": "curve",
                    "data": {"x_label": "share of the context", "y_label": label, "series": series},
                }
            )
    lengths = sorted({length for length, _ in measured})
    part = max(part for _, part in measured)
    series = [
        {
            "name": n,
            "x": lengths,
            "y": [float(np.median(measured[length, part].column(n, "step")) * 1000) for length in lengths],
        }
        for n in names
    ]
    figures.append(
        {
            "name": "decode-time",
            "title": f"Milliseconds per decoded token, room for 1/{part} of the context",
            "caption": "Median over tokens and texts; all arms in one process, in rotating order.",
            "kind": "curve",
            "data": {"x_label": "tokens of context", "y_label": "ms per token", "series": series},
        }
    )
    for arm in arms:
        held = survivors(lm, arm.at(max(ids.shape[1] // part, 2)), ids)
        if held is not None:
            figures.append(
                {
                    "name": f"survivors-{arm.name.replace(':', '-')}",
                    "method": arm.name.partition(":")[0],
                    "title": f"What {arm.name} still holds",
                    "caption": f"Share of the tokens kept, by stretch of a text of {ids.shape[1]} tokens; a row is a "
                    f"head, layers from top to bottom; room for 1/{part}.",
                    "kind": "heatmap",
                    "data": {"x_label": "position in the text", "y_label": "layer and head", "z": held},
                }
            )
    return figures

"""Measure policies: what each costs in quality, bytes and milliseconds, at the same share of the context.

The job alone (``mintage bench keep``) runs every ready policy on real long documents; a paper's method alone runs its
own claim check, `mintage.bench.keep.measures`. Every arm reads the same tokens in the same process, in rotating order:

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
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mintage import catalog
from mintage.bench.keep.inputs import NEEDLES, long_texts, questions
from mintage.bench.keep.prefix import Prefix, answer_to, score_continuation, survivors
from mintage.errors import UserError
from mintage.keep.contract import Policy
from mintage.measure import Figure, Result, bootstrap, bootstrap_ratio
from mintage.measure.environment import environment
from mintage.measure.memo import Memo
from mintage.measure.retrieval import score_value
from mintage.models import EMBEDDED, CausalLM, load_causal_lm

__all__ = ["run"]

Report = Callable[[int, int, str], None]

FULL = "full-cache"
_WORK = Path(".mintage") / "keep"
_DECODED = 64
"""Tokens scored and timed behind each document."""

_FINDABLE = 0.05
"""Retrieval lost at most, for a policy to count as keeping it."""


def silent(done: int, of: int, label: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Arm:
    """A policy to measure, by the name it is asked for."""

    name: str
    policy: Policy

    def at(self, entries: int) -> Policy:
        """Return the policy with room for `entries`."""
        return self.policy.at(entries)


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
        its claim check instead; ``full-cache`` alone asks from which length on the others are faster than it.
    model
        What `mintage.models.load_causal_lm` takes.
    contexts
        Tokens read before compression.
    budgets
        Room as a part of the context: 16 keeps, or reads, one entry in 16.
    limit
        Documents, and twice as many questions of each kind, per context; None uses 4.
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
    row = catalog.find(methods[0].partition(":")[0], "keep") if len(methods) == 1 else None
    if row is not None and ":" not in methods[0] and (row.role == "paper" or row.name == FULL):
        if row.status != "ready":
            raise UserError(row.problem or f"{row.name} is {row.status}, there is nothing to measure yet")
        check = importlib.import_module(f"mintage.studies.{row.name.replace('-', '_')}").check
        return check(seed=seed, limit=limit, command=command, progress=progress)
    limit = limit or 4
    if min(contexts) < 64 or min(budgets) < 2:
        raise UserError("a context has at least 64 tokens and a budget is at most half of it; pass e.g. --budgets 4,16")
    arms = _arms(methods)
    lm = load_causal_lm(model, dtype=dtype, device=device)
    arms, absent = (arms, {}) if methods else _fitting(arms, lm)
    definition = {"model": model, "dtype": dtype, "seed": seed, "limit": limit, "decoded": _DECODED}
    memo = Memo(work, definition)
    total, done = len(contexts) * len(budgets) * len(arms) * limit * 9, 0

    def step(label: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, label)

    measured: dict[tuple[int, int], _Cell] = {}
    for length in contexts:
        measured |= _measure(lm, arms, length, budgets, limit=limit, seed=seed, memo=memo, step=step)
    rows = [row for cell in measured.values() for row in _rows(cell, arms)]
    described = environment()
    data = f"long_docs (state_union, inaugural), {limit} texts; pass-keys and UUIDs in them, {2 * limit} each"
    settings: dict[str, Any] = {
        "contexts": list(contexts),
        "budgets": list(budgets),
        "dtype": dtype,
        "decoded": _DECODED,
    }
    if absent:
        settings["left out"] = absent
    common = {"job": "keep", "model": model, "data": data, "seed": seed, "settings": settings}
    results: list[Result | Figure] = [
        Result(**common, **row, command=command, environment=described) for row in [*rows, *_verdicts(measured, arms)]
    ]
    figures = _figures(measured, arms, Prefix(lm, long_texts(lm, min(contexts), 1)[0][1]))
    memo.delete()
    return results + [Figure(**figure, job="keep", environment=described) for figure in figures]


def _measure(
    lm: CausalLM,
    arms: Sequence[Arm],
    length: int,
    budgets: Sequence[int],
    *,
    limit: int,
    seed: int,
    memo: Memo,
    step: Callable[[str], None],
) -> dict[tuple[int, int], _Cell]:
    """Run all arms at one length, text by text; every text is read once."""
    cells = {(length, part): _Cell(length, part, [arm.name for arm in arms]) for part in budgets}
    turns = [(part, arm.name) for part in budgets for arm in arms]
    policies = {(part, arm.name): arm.at(max(length // part, 2)) for part in budgets for arm in arms}

    def each(
        kind: str, place: int, prefix: Callable[[], Prefix], run: Callable[[Prefix, Policy], Any]
    ) -> Iterator[Any]:
        """Run every arm on one text, the first in turn another one each time; the text is read when first needed."""
        read = cache(prefix)
        for part, name in turns[place % len(turns) :] + turns[: place % len(turns)]:
            policy = policies[part, name]
            yield part, name, memo(f"{kind} {length} {part} {name} {place}", lambda p=policy: run(read(), p))
            step(f"{name}, 1/{part} of {length}")

    for place, (_, ids) in enumerate(long_texts(lm, length + _DECODED, limit)):
        read = partial(Prefix, lm, ids[:, :length])
        for part, name, found in each(
            "decode", place, read, lambda p, q, i=ids: score_continuation(p, q, i[0, length:])
        ):
            cells[length, part].decoded[name].append(found)
    asked = [(needle, q) for needle in NEEDLES for q in enumerate(questions(lm, length, 2 * limit, seed, needle))]
    for needle, (place, example) in asked:
        context, question = example.ids(lm)
        for kind, text, following in (
            ("after", context, question),
            ("inside", torch.cat((context, question), 1), question[:, :0]),
        ):
            read = partial(Prefix, lm, text)
            answered = each(
                f"{needle} {kind}", place, read, lambda p, q, a=following, w=example.answer: answer_to(lm, p, q, a, w)
            )
            for part, name, answer in answered:
                cells[length, part].found[needle, kind][name].append(score_value(answer, example.answer).score)
    return cells


def _arms(methods: Sequence[str]) -> list[Arm]:
    """Build the arms, the full cache always among them."""
    specs = list(methods) or [m.name for m in catalog.methods("keep") if m.status == "ready" and m.name != "token-ring"]
    names = [FULL, *(spec for spec in specs if spec != FULL)]
    return [Arm(spec, catalog.build(spec, "keep")) for spec in dict.fromkeys(names)]


def _fitting(arms: Sequence[Arm], lm: CausalLM) -> tuple[list[Arm], dict[str, str]]:
    """Split off the arms that do not serve this model, with the reason."""
    absent = {}
    for arm in arms:
        try:
            arm.policy(lm.model)
        except UserError as error:
            absent[arm.name] = str(error)
    return [arm for arm in arms if arm.name not in absent], absent


class _Cell:
    """All that was measured at one length and budget, by arm."""

    def __init__(self, length: int, part: int, names: Sequence[str]) -> None:
        self.length, self.part = length, part
        self.decoded: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self.found: dict[tuple[str, str], dict[str, list[float]]] = {
            (needle, kind): {name: [] for name in names} for needle in NEEDLES for kind in ("after", "inside")
        }

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
        }
        for (needle, kind), found in cell.found.items():
            values[f"{needle} retrieval, question {kind}"] = bootstrap(found[name]), "share", True
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
                    "n": len(_retrieved(cell, metric)[name] if "retrieval" in metric else cell.decoded[name]),
                    "baseline": {} if full is None else {FULL: full},
                    "peers": others if name.partition(":")[0] in papers else {},
                }
            )
    return rows


def _value(cell: _Cell, name: str, metric: str) -> float:
    if metric == "perplexity":
        return cell.perplexity(name)
    if "retrieval" in metric:
        return float(np.mean(_retrieved(cell, metric)[name]))
    of = {"cache size": "bytes", "elements read": "reads", "prefill time": "prefill", "decode time": "step"}[metric]
    return float(np.median(cell.column(name, of) / cell.column(FULL, of)))


def _retrieved(cell: _Cell, metric: str) -> dict[str, list[float]]:
    needle, _, kind = metric.partition(" retrieval, question ")
    return cell.found[needle, kind]


def _verdicts(measured: dict[tuple[int, int], _Cell], arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Is a policy faster than the full cache from 4k tokens on, and still finds what the full cache finds?"""
    long = [cell for (length, _), cell in measured.items() if length >= 4096]
    rivals = [
        (cell, arm.name, bootstrap_ratio(cell.column(arm.name, "step"), cell.column(FULL, "step"), of="median"))
        for cell in long
        for arm in arms
        if arm.name != FULL
        and all(
            np.mean(found[arm.name]) >= np.mean(found[FULL]) - _FINDABLE
            for (_, kind), found in cell.found.items()
            if kind == "after"
        )
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


def _figures(measured: dict[tuple[int, int], _Cell], arms: Sequence[Arm], prefix: Prefix) -> list[dict[str, Any]]:
    """Quality and time against room, and where each policy's entries lie."""
    figures = []
    names = [arm.name for arm in arms]
    for length in dict.fromkeys(length for length, _ in measured):
        cells = sorted((c for (n, _), c in measured.items() if n == length), key=lambda c: -c.part)
        for slug, label, metric in (
            ("perplexity", "perplexity of the next tokens", "perplexity"),
            ("pass-key", "pass-keys found, asked for after compression", "pass-key retrieval, question after"),
            ("uuid", "UUIDs found, asked for after compression", "UUID retrieval, question after"),
        ):
            series = [
                {"name": n, "x": [1 / c.part for c in cells], "y": [_value(c, n, metric) for c in cells]} for n in names
            ]
            figures.append(
                {
                    "name": f"{slug}-{length}",
                    "title": f"{label[0].upper()}{label[1:]}, {length} tokens of context",
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
        read = prefix.layers[0].seen
        held = survivors(prefix, arm.at(max(read // part, 2)))
        if held is not None:
            figures.append(
                {
                    "name": f"survivors-{arm.name.replace(':', '-')}",
                    "method": arm.name.partition(":")[0],
                    "title": f"What {arm.name} still holds",
                    "caption": f"Share of the tokens kept, by stretch of a text of {read} tokens; a row is a "
                    f"head, layers from top to bottom; room for 1/{part}.",
                    "kind": "heatmap",
                    "data": {"x_label": "position in the text", "y_label": "layer and head", "z": held},
                }
            )
    return figures

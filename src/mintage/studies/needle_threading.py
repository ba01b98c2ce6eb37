"""Do tokenizers rank alike on prose and haystacks, is a thread harder than a needle, and what do cache policies lose?

SmolLM2-135M is far below the paper's models. It continues text better than it follows instructions, so the answer is
opened for it (`NeedleThreading.form` ``"complete"``); the paper's own form is measured beside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage import catalog
from mintage.audit.needle_threading import Needle, NeedleThreading, tokenizer_report
from mintage.data import Corpus, data_file
from mintage.data.haystack import make_haystack
from mintage.measure import Figure, Interval, Result, bootstrap
from mintage.measure.environment import environment
from mintage.measure.memo import Memo
from mintage.measure.retrieval import Found
from mintage.models import CausalLM, load_causal_lm
from mintage.tokenizer_files import load_tokenizer

__all__ = ["check", "order_changes", "prose", "tokenizers"]

PAIRS = (4, 8, 16, 32)
DEPTHS = (0, 50, 100)
STEPS = (2, 3)
REPEATS = 10
SHARE = 4
"""Policies keep one token in four."""

_WORK = Path(".mintage") / "needle-threading"
_POLICIES = ("streaming-llm", "snapkv", "h2o", "tova", "knorm", "expected-attention", "random-eviction", "ems")


def silent(done: int, of: int, label: str) -> None:
    """Report nothing."""


def prose(characters: int = 200_000) -> str:
    """Return the beginning of WikiText-2."""
    text, held = [], 0
    for piece in Corpus(str(data_file("wikitext2_valid.txt.gz"))):
        text.append(piece)
        held += len(piece)
        if held >= characters:
            break
    return "".join(text)[:characters]


def tokenizers(text: str) -> dict[str, Callable[[str], int]]:
    """Return counters: SmolLM2's (single digits), byte-level BPE trained here on the text (numbers whole), and bytes.

    ``MINTAGE_TOKENIZERS``, a folder of folders with a ``tokenizer.json`` each, adds others.
    """
    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    )
    found: dict[str, Tokenizer] = {"smollm2": load_tokenizer("smollm2"), "byte-level BPE 8k": own}
    folder = os.environ.get("MINTAGE_TOKENIZERS")
    for file in sorted(Path(folder).glob("*/tokenizer.json")) if folder else []:
        found[file.parent.name] = load_tokenizer(str(file))

    def counter(tokenizer: Tokenizer) -> Callable[[str], int]:
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

    return {name: counter(t) for name, t in found.items()} | {"bytes": lambda text: len(text.encode())}


def order_changes(rows: Sequence[dict[str, Any]], first: str, second: str) -> list[tuple[str, str]]:
    """Return the pairs of tokenizers of which one needs fewer tokens on one text and more on the other."""
    tokens = {(row["text"], row["tokenizer"]): row["tokens"] for row in rows}
    names = list(dict.fromkeys(row["tokenizer"] for row in rows))
    return [
        (a, b)
        for a, b in combinations(names, 2)
        if (tokens[first, a] - tokens[first, b]) * (tokens[second, a] - tokens[second, b]) < 0
    ]


def check(
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = silent,
    model: str = "smollm2",
    work: Path = _WORK,
) -> list[Result | Figure]:
    """Run the checks.

    Parameters
    ----------
    seed
        Of the haystacks.
    limit
        Haystacks per setting; default 10.
    command
        Written into the rows.
    progress
        ``progress(done, of, label)``.
    model
        What `mintage.models.load_causal_lm` takes.
    work
        Folder of an unfinished run.
    """
    repeats = limit or REPEATS
    definition = {"seed": seed, "repeats": repeats, "model": model, "pairs": PAIRS}
    memo = Memo(work, definition)
    lm = load_causal_lm(model)
    common: dict[str, Any] = {
        "method": "needle-threading",
        "job": "audit",
        "seed": seed,
        "command": command,
        "environment": environment(),
    }
    grid: dict[str, Any] = {
        "pairs": PAIRS,
        "depths": DEPTHS,
        "steps": STEPS,
        "threads": 1,
        "repeats": repeats,
        "seed": seed,
        "tasks": ("single", "thread"),
    }
    plans = {
        "complete": NeedleThreading(**{**grid, "form": "complete"}),
        "question": NeedleThreading(**{**grid, "pairs": PAIRS[:3]}),
        "complete, 8 digits": NeedleThreading(**{**grid, "form": "complete", "hex_digits": 8}),
    }
    kept: dict[str, Any] = grid | {"tasks": ("single",), "pairs": (8,), "form": "complete"}
    for spec in ("none", *_POLICIES):
        policy = None if spec == "none" else catalog.build(f"{spec}:budget={1 / SHARE}", "keep")
        plans[f"policy {spec}"] = NeedleThreading(**{**kept, "policy": policy})
    asked: dict[str, list[Needle]] = {}
    for done, (name, audit) in enumerate(plans.items()):
        progress(done, len(plans), name)
        held = memo(name, lambda a=audit: [list(needle) for needle in map(_plain, a.ask(lm))])
        asked[name] = [_needle(*row) for row in held]
    progress(len(plans), len(plans), "done")
    rows = [*_of_tokenizers(common), *_of_tasks(asked, lm, common), *_of_policies(asked, lm, common)]
    rows += plans["complete"].report(asked["complete"], lm).figures
    memo.delete()
    return rows


def _needle(*row: Any) -> Needle:
    return Needle(*row[:6], found=Found(*row[6]))


def _plain(needle: Needle) -> tuple[Any, ...]:
    return (*(getattr(needle, name) for name in Needle.__dataclass_fields__ if name != "found"), list(needle.found))


def _of_tokenizers(common: dict[str, Any]) -> list[Result | Figure]:
    text = prose()
    haystack = make_haystack(200, 0).text
    rows = tokenizer_report(tokenizers(text), {"prose": text, "UUIDs": haystack})
    changed = order_changes(rows, "prose", "UUIDs")
    per = {(row["text"], row["tokenizer"]): float(row["characters per token"] or 0) for row in rows}
    names = list(dict.fromkeys(str(row["tokenizer"]) for row in rows))
    results: list[Result | Figure] = [
        Result(
            **common,
            metric=f"characters per token on UUIDs, {name}",
            value=per["UUIDs", name],
            unit="characters",
            higher_is_better=True,
            baseline={"the same tokenizer on prose": per["prose", name]},
            data="200 pairs of UUIDs; WikiText-2",
        )
        for name in names
    ]
    told = "; ".join(f"{a} and {b}" for a, b in changed)
    results.append(
        Result(
            **common,
            metric="pairs of tokenizers whose order on prose is turned round on UUIDs",
            value=float(len(changed)),
            unit="pairs",
            higher_is_better=True,
            baseline={"all pairs": float(len(names) * (len(names) - 1) // 2)},
            n=len(names),
            claim="tokenizers rank differently by tokens on prose and on UUIDs of as many characters",
            verdict="holds" if changed else "does not hold",
            data="200 pairs of UUIDs; WikiText-2",
            note=told,
        )
    )
    series = [{"name": t, "y": [per[t, name] for name in names]} for t in ("prose", "UUIDs")]
    results.append(
        Figure(
            job="audit",
            method="needle-threading",
            name="characters-per-token",
            title="Characters per token, by tokenizer",
            caption="A context of so many tokens holds far fewer characters of UUIDs than of prose, unequally fewer.",
            kind="bars",
            data={"y_label": "characters per token", "categories": names, "series": series},
            environment=common["environment"],
        )
    )
    return results


def _scores(asked: Sequence[Needle], task: str, pairs: Sequence[int]) -> np.ndarray:
    """Mean score of each haystack, in the order of the repeats: [repeats x sizes]."""
    found = []
    for size in pairs:
        mine = [n for n in asked if n.task == task and n.pairs == size]
        variants = len({n.variant for n in mine})
        found.append(np.array([n.found.score for n in mine]).reshape(-1, variants).mean(1))
    return np.concatenate(found)


def _claim(interval: Interval) -> str:
    return "holds" if interval.low > 0 else "does not hold"


def _of_tasks(asked: dict[str, list[Needle]], lm: CausalLM, common: dict[str, Any]) -> list[Result | Figure]:
    results: list[Result | Figure] = []
    for form in ("complete", "question", "complete, 8 digits"):
        here = asked[form]
        sizes = sorted({n.pairs for n in here})
        settings = {"form": form, "pairs": sizes, "depths": DEPTHS, "steps": STEPS}
        single, threads = (_scores(here, task, sizes) for task in ("single", "thread"))
        gap = bootstrap(single - threads)
        told: dict[str, Any] = {}
        if form != "question":
            told = {
                "claim": f"a single needle is found more often than the end of a thread of 2 or 3 ({form})",
                "verdict": _claim(gap),
            }
        results.append(
            Result(
                **common,
                **told,
                model=lm.name,
                metric=f"score of a single needle minus that of a thread, {form}",
                value=100 * gap.value,
                unit="points",
                higher_is_better=True,
                interval=(100 * gap.low, 100 * gap.high),
                baseline={"single": 100 * float(single.mean()), "thread": 100 * float(threads.mean())},
                n=len(single),
                settings=settings,
                data=f"haystacks of {sizes[0]} to {sizes[-1]} pairs",
            )
        )
        first, last = (_scores(here, "single", [size]) for size in (sizes[0], sizes[-1]))
        fall = bootstrap(first - last)
        if form != "question":
            told = {"claim": f"the score falls with the length of the haystack ({form})", "verdict": _claim(fall)}
        results.append(
            Result(
                **common,
                **told,
                model=lm.name,
                metric=f"score at {sizes[0]} pairs minus that at {sizes[-1]}, single needle, {form}",
                value=100 * fall.value,
                unit="points",
                higher_is_better=True,
                interval=(100 * fall.low, 100 * fall.high),
                baseline={
                    f"{sizes[0]} pairs": 100 * float(first.mean()),
                    f"{sizes[-1]} pairs": 100 * float(last.mean()),
                },
                n=len(first),
                settings=settings,
                data=f"haystacks of {sizes[0]} and {sizes[-1]} pairs",
            )
        )
    return results


def _of_policies(asked: dict[str, list[Needle]], lm: CausalLM, common: dict[str, Any]) -> list[Result | Figure]:
    full = _scores(asked["policy none"], "single", [8])
    results: list[Result | Figure] = []
    for spec in _POLICIES:
        lost = bootstrap(_scores(asked[f"policy {spec}"], "single", [8]) - full)
        results.append(
            Result(
                **common,
                model=lm.name,
                metric=f"score of a single needle with {spec} at 1/{SHARE} of the context minus that without",
                value=100 * lost.value,
                unit="points",
                higher_is_better=True,
                interval=(100 * lost.low, 100 * lost.high),
                baseline={"full cache": 100 * float(full.mean())},
                n=len(full),
                settings={"pairs": 8, "depths": DEPTHS, "form": "complete"},
                data="haystacks of 8 pairs",
                note="the key asked for is read with the haystack, before compression",
            )
        )
    return results

"""From which length of the context on does a policy decode faster than the full cache?

One long speech is read once; every policy is given its first 512, 1,024, ... tokens and timed on those behind them, all
policies at one length in turn, turn after turn. A sixteenth is read, or kept. Only time is measured here: what a policy
forgets is the other checks' question.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from mintage.bench.keep.inputs import long_texts
from mintage.bench.keep.trial import Trial, silent
from mintage.bench.keep.prefix import Prefix, seconds_per_token
from mintage.keep.baselines import FullCache, SnapKV, StreamingLLM
from mintage.keep.contract import Policy
from mintage.keep.double_sparsity import DoubleSparsity
from mintage.keep.token_select import TokenSelect
from mintage.measure import Figure, Interval, Result, bootstrap_ratio

__all__ = ["breakeven", "check"]

LENGTHS = (512, 1024, 2048, 4096, 8192)
PART = 16
TURNS, TIMED = 5, 12
"""Turns of every policy at each length, and tokens decoded in a turn."""

FULL, TORCH = "full-cache", "double-sparsity, torch operations"
SPARSE = ("double-sparsity", "token-select")


def _arms() -> dict[str, Policy]:
    return {
        FULL: FullCache(),
        "double-sparsity": DoubleSparsity(),
        TORCH: DoubleSparsity(kernel="torch"),
        "token-select": TokenSelect(),
        "streaming-llm": StreamingLLM(),
        "snapkv": SnapKV(),
    }


def breakeven(ratios: dict[int, Interval]) -> int | None:
    """Return the length from which on the whole interval lies below 1; None where it does not even at the greatest."""
    found: int | None = None
    for length in sorted(ratios, reverse=True):
        if ratios[length].high >= 1:
            break
        found = length
    return found


def check(
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = silent,
    model: str = "smollm2",
    work: Path | None = None,
) -> list[Result | Figure]:
    """Run the check; `limit` is the number of turns (default 5)."""
    turns, arms = limit or TURNS, _arms()
    trial = Trial(
        FULL,
        seed=seed,
        command=command,
        definition={"lengths": list(LENGTHS), "turns": turns, "timed": TIMED},
        total=len(LENGTHS) * turns * len(arms),
        progress=progress,
        model=model,
        work=work,
    )
    ((_, text),) = long_texts(trial.lm, max(LENGTHS) + TIMED, 1)
    read = cache(lambda: Prefix(trial.lm, text[:, : max(LENGTHS)]))

    def seconds(name: str, length: int) -> float:
        rest = text[0, length : length + TIMED]
        return seconds_per_token(read(), arms[name].at(length // PART), length, rest)

    taken: dict[tuple[str, int], np.ndarray] = {}
    for length in LENGTHS:
        rows: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(turns):
            for name in [*arms][turn % len(arms) :] + [*arms][: turn % len(arms)]:
                key = f"seconds {length} {name} {turn}"
                rows[name].append(trial.measured(key, lambda n=name, m=length: seconds(n, m), f"{name}, {length}"))
        taken |= {(name, length): np.array(row) for name, row in rows.items()}

    def ratios(name: str, over: str = FULL) -> dict[int, Interval]:
        return {m: bootstrap_ratio(taken[name, m], taken[over, m], of="median") for m in LENGTHS}

    common = {
        "n": turns,
        "settings": {"read": f"1/{PART}", "timed": TIMED, "dtype": "bfloat16"},
        "data": "one speech (long_docs), its first tokens",
        "note": "policies that read prompts sparsely start from plainly read keys: as many, of other values",
    }
    results: list[Result | Figure] = []
    from_length: dict[str, int | None] = {}
    for name in [*arms][1:]:
        found = ratios(name)
        from_length[name] = breakeven(found)
        for length, ratio in found.items():
            results.append(
                trial.result(
                    **common,
                    method=FULL if name == TORCH else name,
                    metric=f"{name}: decode time over the full cache's, {length} tokens, 1/{PART} read",
                    value=ratio.value,
                    unit="x",
                    higher_is_better=False,
                    interval=ratio.bounds,
                    baseline={f"{FULL}, ms per token": 1000 * float(np.median(taken[FULL, length]))},
                )
            )
    first = min((m for name in SPARSE if (m := from_length[name]) is not None), default=None)
    best = min((ratios(name)[max(LENGTHS)] for name in SPARSE), key=lambda ratio: ratio.value)
    results.append(
        trial.result(
            **common | {"note": f"faster from (tokens): {from_length}"},
            metric=f"decode time over the full cache's of the fastest policy that drops nothing, {max(LENGTHS)} tokens",
            value=best.value,
            unit="x",
            higher_is_better=False,
            interval=best.bounds,
            claim="From 4,096 tokens on a policy that drops nothing decodes faster than the full cache",
            verdict="holds" if first is not None and first <= 4096 else "does not hold",
        )
    )
    for length, ratio in ratios("double-sparsity", TORCH).items():
        results.append(
            trial.result(
                **common,
                method="double-sparsity",
                metric=f"decode time of the compiled step over that of torch operations, {length} tokens",
                value=ratio.value,
                unit="x",
                higher_is_better=False,
                interval=ratio.bounds,
            )
        )
    results.append(
        trial.figure(
            name="decode-time-by-length",
            title=f"Milliseconds per decoded token, 1/{PART} of the context read or kept",
            caption="Median over turns; one text, all policies in one process, in rotating order. "
            + "; ".join(f"{name}: {f'faster from {m}' if m else 'not faster'}" for name, m in from_length.items()),
            kind="curve",
            data={
                "x_label": "tokens of context",
                "y_label": "ms per token",
                "series": [
                    {
                        "name": name,
                        "x": list(LENGTHS),
                        "y": [1000 * float(np.median(taken[name, length])) for length in LENGTHS],
                    }
                    for name in arms
                ],
            },
        )
    )
    trial.memo.delete()
    return results

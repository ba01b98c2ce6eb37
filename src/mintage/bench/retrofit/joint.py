"""Measure what gives a model other tokens: every paper's own claim check, and one table of what is ready.

One method (``mintage bench exact-bytes``) runs its claim check, `mintage.bench.retrofit.measures`. The job alone
(``mintage bench retrofit``) reads the same texts with every method that gives a text's probability: bits per byte,
positions read per byte, seconds per kilobyte, beside the model as it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mintage import catalog
from mintage.bench.retrofit.measures import Arm, Document, Trial, bits_of, documents
from mintage.errors import UserError
from mintage.measure import Figure, Result, bootstrap_ratio, timed
from mintage.measure.trial import Report, silent
from mintage.models import EMBEDDED

__all__ = ["run"]

PLAIN = "plain"
JOINT = ("code", "prose", "de", "ru", "tr", "zh")
"""Kinds of text in the joint run."""

_TEXTS = 4
_SIZE = 512


def run(
    methods: Sequence[str],
    *,
    model: str = EMBEDDED,
    limit: int | None = None,
    seed: int = 0,
    command: str = "",
    work: Path | None = None,
    progress: Report = silent,
) -> list[Result | Figure]:
    """Run the claim checks of methods, or compare all that are ready.

    Parameters
    ----------
    methods
        Catalogue names; none means the joint run.
    model
        What `mintage.models.load_causal_lm` takes.
    limit
        Passed to each check; in the joint run, texts of each kind (default 4).
    seed
        Of everything random.
    command
        Written into the rows: what repeats them.
    work
        Folder of unfinished runs; default ``.mintage/retrofit/<method>``.
    progress
        ``progress(done, of, label)``.

    Raises
    ------
    UserError
        A method is unknown, not ready, has no check, or is given settings: a check has its own.
    """
    common: dict[str, Any] = {"model": model, "limit": limit, "seed": seed, "command": command, "work": work}
    if not methods:
        return _joint(progress=progress, **common)
    checks = [_check(name).run for name in methods]
    return [row for check in checks for row in check(progress=progress, **common)]


def _check(name: str) -> ModuleType:
    method, settings = catalog.parse_spec(name)
    if settings:
        raise UserError(f"{name}: the check of {method} has its own settings; run: mintage bench {method}")
    row = catalog.find(method, "retrofit")
    if row.status != "ready":
        raise UserError(row.problem or f"{method} is {row.status}, there is nothing to measure yet")
    module = _module(method)
    if module is None:
        papers = [m.name for m in catalog.methods("retrofit") if m.role == "paper" and m.status == "ready"]
        raise UserError(f"{method} has no check of its own; it is a peer in those of: {', '.join(papers)}")
    return module


def _module(method: str) -> ModuleType | None:
    name = f"mintage.bench.retrofit.measures.{method.replace('-', '_')}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


# -- all methods on the same texts -------------------------------------------------------------------------------------


def _arms(trial: Trial) -> dict[str, Arm]:
    arms: dict[str, Arm] = {PLAIN: lambda text: bits_of(trial.lm, text, window=_SIZE)}
    for row in catalog.methods("retrofit"):
        module = _module(row.name) if row.status == "ready" else None
        if module is not None and hasattr(module, "arms"):
            arms |= module.arms(trial.lm, trial.seed)
    return arms


def _joint(
    *, model: str, limit: int | None, seed: int, command: str, work: Path | None, progress: Report
) -> list[Result | Figure]:
    number = limit or _TEXTS
    trial = Trial(
        "retrofit",
        definition={"texts": number, "size": _SIZE, "kinds": list(JOINT)},
        seed=seed,
        command=command,
        progress=progress,
        model=model,
        work=work,
    )
    texts = {kind: documents(kind, number, size=_SIZE, seed=seed) for kind in JOINT}
    arms = _arms(trial)
    trial.total = len(arms) * sum(map(len, texts.values()))
    rows = [row for kind, some in texts.items() for row in _rows(trial, arms, kind, some)]
    trial.memo.delete()
    return rows


def _rows(trial: Trial, arms: dict[str, Arm], kind: str, texts: Sequence[Document]) -> list[Result | Figure]:
    def measure(arm: Arm, text: str) -> dict[str, float]:
        made, seconds = timed(lambda: arm(text))
        return {"bits": made.bits, "tokens": made.tokens, "bytes": made.bytes, "seconds": 1000 * seconds}

    found = trial.each(f"joint {kind}", {text.name: text.text for text in texts}, arms, measure)
    size = [row["bytes"] for row in found[PLAIN]]
    rows: list[Result | Figure] = []
    for of, metric, unit in _METRICS:
        intervals = {name: bootstrap_ratio([row[of] for row in held], size) for name, held in found.items()}
        plain = intervals.pop(PLAIN).value
        rows += [
            trial.result(
                method=name,
                metric=f"{metric}, {kind}",
                value=interval.value,
                unit=unit,
                higher_is_better=False,
                interval=interval.bounds,
                n=len(size),
                baseline={PLAIN: plain},
                data=f"{kind}, {len(size)} texts of at most {_SIZE} bytes, {int(np.sum(size))} bytes",
                settings={"run": "joint"},
            )
            for name, interval in intervals.items()
        ]
    return rows


_METRICS: tuple[tuple[str, str, str], ...] = (
    ("bits", "bits per byte", "bits"),
    ("tokens", "positions read per byte", "tokens"),
    ("seconds", "seconds per kilobyte", "s"),
)

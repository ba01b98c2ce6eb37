"""What published tokenizers were trained on: the part of the data-mixture study that needs them as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mintage.audit.data_mixture import DataMixture
from mintage.bench.audit.controls import measure
from mintage.bench.audit.mixtures import CODE, ENGLISH, Documents, more_english
from mintage.bench.audit.published import published
from mintage.measure import Figure
from mintage.measure.figure import bars
from mintage.measure.study import Finding, Measure, Run
from mintage.tokenizer_files import load_tokenizer

__all__ = ["list_arms", "list_figure", "list_measure", "list_row"]

LISTS = {"gpt35turbo": "GPT-3.5", "claude": "Claude 2", "gpt4o": "GPT-4o"}
NEWEST = "GPT-4o"
MERGES = 3000


def list_arms(folder: Path | None) -> dict[str, Callable[[Documents], Mapping[str, Any]]]:
    """Return a function for every published list in the folder: what it makes of samples.

    Raises
    ------
    UserError
        GPT-4o's is not there, or nothing to compare it with.
    """
    found = published(folder, LISTS, least=2, needs="gpt4o")
    return {LISTS[name]: partial(_behind, file=file) for name, file in found.items()}


def _behind(samples: Documents, file: Path) -> Mapping[str, Any]:
    """Infer what a published tokenizer was trained on: English, code, everything else."""
    audit = DataMixture(samples=samples, max_merges=MERGES, bootstrap=0)
    report = audit.run(load_tokenizer(file), name=file.parent.name)
    shares = {str(row["category"]): float(row["share of bytes"] or 0) for row in report.table}
    english, code = shares.pop(ENGLISH), shares.pop(CODE)
    objective = report.findings["objective"]
    return {"English": english, "code": code, "other languages": sum(shares.values()), "objective": objective}


def _lists(run: Run) -> list[str]:
    return [name for name in LISTS.values() if name in run.arms]


def list_measure(run: Run, documents: Documents, size: int) -> Measure:
    """Audit all lists with the same samples: the documents, and about `size` bytes more of English."""
    samples = {**documents, ENGLISH: [*documents[ENGLISH], *more_english(size)]}
    return measure("published lists", _lists(run), {"samples": samples})


def list_row(run: Run, categories: int) -> Finding:
    """Compare how much of other languages is behind the lists."""
    others = {name: float(run.column(name, "other languages")[0]) for name in _lists(run)}
    newest, (first, *older) = others.pop(NEWEST), list(others)
    return Finding(
        metric="share of languages other than English behind GPT-4o's list",
        value=lambda run: newest,
        unit="share",
        baseline={first: others[first]},
        peers={name: others[name] for name in older},
        claim="GPT-4o's list comes from more multilingual data than the lists before it",
        holds=lambda run: newest > max(others.values()),
        settings={"max_merges": MERGES, "categories": categories},
        note="the same samples for all lists; the paper infers 39% for GPT-4o. "
        + "; ".join(_in_words(name, run) for name in _lists(run)),
    )


def _in_words(name: str, run: Run) -> str:
    english, code, objective = (float(run.column(name, of)[0]) for of in ("English", "code", "objective"))
    return f"{name}: English {english:.0%}, code {code:.0%}, objective {objective:.2f}"


def list_figure(run: Run) -> Figure:
    """Draw the shares behind published lists."""
    lists, kinds = _lists(run), ("English", "code", "other languages")
    return run.figure(
        name="data-mixture-real",
        title="What real tokenizers were trained on",
        caption=f"Inferred shares of bytes from the first {MERGES} merges, the same samples for all lists.",
        **bars("share of bytes", lists, {k: [float(run.column(name, k)[0]) for name in lists] for k in kinds}),
    )

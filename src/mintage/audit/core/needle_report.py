"""The report about needles: scores by task, variant and length, and the lengths up to which they stay high."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mintage.audit.contract import Cell, Report
from mintage.measure import Figure, bootstrap
from mintage.measure.figure import bars, curve
from mintage.measure.retrieval import Found, effective_context_limit

__all__ = ["Needle", "Scored", "needle_figures", "needle_report"]


@dataclass(frozen=True)
class Scored:
    """One question: where it stands in the grid, and its score."""

    task: str
    variant: str
    pairs: int
    characters: int
    score: float


@dataclass(frozen=True)
class Needle(Scored):
    """One question with all that came of it: tokens of the prompt, the response, every way to score it."""

    tokens: int
    response: str
    found: Found


def needle_report(
    asked: Sequence[Needle], name: str, *, threshold: float, window: int | None, notes: Sequence[str]
) -> Report:
    """Sum up questions.

    Parameters
    ----------
    asked
        All questions of a grid.
    name
        Of the model.
    threshold
        Score that a length must reach to count as within the effective context.
    window
        Tokens that the model is said to read, where it says so.
    notes
        What else the report says.
    """
    findings: dict[str, Cell] = {}
    longest = max(needle.characters for needle in asked)
    for task in dict.fromkeys(needle.task for needle in asked):
        mine = [needle for needle in asked if needle.task == task]
        findings[f"accuracy, {task}"] = _mean(mine)
        findings[f"limit, {task} (characters)"] = _limit(mine, threshold)
    per_token = float(np.mean([n.characters / n.tokens for n in asked]))
    findings["characters per token"] = per_token
    told = [
        f"Limits are the length up to which accuracy stays at {threshold:g}; the longest tested haystack has "
        f"{longest} characters, so no limit can be larger.",
        *notes,
    ]
    if window:
        findings["advertised (characters)"] = float(window * per_token)
        told.append(f"The advertised context is {window} tokens, at this text's characters per token.")
    figures = list(needle_figures(asked, threshold))
    return Report(
        audit="needle-threading", subject=name, findings=findings, table=_table(asked), figures=figures, notes=told
    )


def _mean(asked: Sequence[Scored]) -> float:
    return float(np.mean([one.score for one in asked]))


def _by_length(asked: Sequence[Scored]) -> dict[int, list[Scored]]:
    """Return the questions by number of pairs, the shortest haystack first."""
    return {n: [one for one in asked if one.pairs == n] for n in sorted({one.pairs for one in asked})}


def _limit(asked: Sequence[Scored], threshold: float) -> float:
    by_length = _by_length(asked).values()
    return effective_context_limit([some[0].characters for some in by_length], list(map(_mean, by_length)), threshold)


def _table(asked: Sequence[Needle]) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for task, variant, pairs in dict.fromkeys((n.task, n.variant, n.pairs) for n in asked):
        mine = [n for n in asked if (n.task, n.variant, n.pairs) == (task, variant, pairs)]
        score = bootstrap([n.score for n in mine])
        rows.append(
            {
                "task": task,
                "variant": variant,
                "pairs": pairs,
                "characters": mine[0].characters,
                "tokens": round(float(np.mean([n.tokens for n in mine]))),
                "score": score.value,
                "low": score.low,
                "high": score.high,
                "lenient": float(np.mean([n.found.lenient for n in mine])),
                "precision": float(np.mean([n.found.precision for n in mine])),
                "exact": float(np.mean([n.found.exact for n in mine])),
                "n": len(mine),
            }
        )
    return rows


def needle_figures(asked: Sequence[Scored], threshold: float, **common: Any) -> Iterator[Figure]:
    """Draw scores by length, and for every task by variant, with the effective limits; `common` are fields of all."""
    common = {"job": "audit", "method": "needle-threading", **common}
    characters = [some[0].characters for some in _by_length(asked).values()]
    tasks = {task: [one for one in asked if one.task == task] for task in dict.fromkeys(one.task for one in asked)}
    scores = {
        task: [bootstrap([one.score for one in some]) for some in _by_length(mine).values()]
        for task, mine in tasks.items()
    }
    yield Figure(
        **common,
        name="needles-by-length",
        title="What is found, by length of the haystack",
        caption="Mean score with its 95% interval over haystacks and variants.",
        **curve(
            "characters of haystack",
            "score",
            {task: zip(characters, some, strict=True) for task, some in scores.items()},
        ),
    )
    for task, mine in tasks.items():
        variants = {v: [one for one in mine if one.variant == v] for v in dict.fromkeys(one.variant for one in mine)}
        limits = {variant: _limit(some, threshold) for variant, some in variants.items()}
        yield Figure(
            **common,
            name=f"needles-{task}",
            title=f"{task.capitalize()}: score by length and variant",
            caption=f"Effective limit at {threshold:g}, in characters: "
            + ", ".join(f"{variant} {limit:.0f}" for variant, limit in limits.items()),
            kind="heatmap",
            data={
                "x_label": "characters of haystack",
                "y_label": "variant",
                "z": [list(map(_mean, _by_length(some).values())) for some in variants.values()],
                "z_label": "score",
                "x": list(map(str, characters)),
                "y": list(variants),
            },
        )
        yield Figure(
            **common,
            name=f"contour-{task}",
            title=f"{task.capitalize()}: effective context limit",
            caption=f"The length up to which the score stays at {threshold:g}, for every variant.",
            **bars("characters", list(variants), {f"limit at {threshold:g}": limits.values()}),
        )

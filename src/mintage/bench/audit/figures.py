"""Figures of the audits' studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mintage.measure import Figure, bootstrap
from mintage.measure.figure import bars, curve
from mintage.measure.study import Run

__all__ = ["additions_right", "error_by_categories", "error_by_sample", "wrong_digits"]


def error_by_categories(run: Run, categories: np.ndarray, arms: Sequence[str]) -> Figure:
    """Draw the mean error of every arm, by the number of categories of a control."""
    groups = sorted({int(n) for n in categories})
    found = {arm: [bootstrap(run.column(arm, "log error")[categories == n]) for n in groups] for arm in arms}
    return run.figure(
        name="data-mixture-controls",
        title="Error of the inferred mixture",
        caption="Mean log10 MSE of the shares over controls with known mixtures; lower is better.",
        **bars("log10 MSE", [f"{n} categories" for n in groups], found),
    )


def error_by_sample(run: Run, arms: Mapping[float, str], beside: str) -> Figure:
    """Draw the mean error by the part of the sample that the audit sees; `beside` needs no sample."""
    found = {part: bootstrap(run.column(arm, "log error")) for part, arm in arms.items()}
    constant = float(run.column(beside, "log error").mean())
    return run.figure(
        name="data-mixture-sample-size",
        title="Error against the size of the sample",
        caption=f"Mean log10 MSE over {len(run.column(beside, 'log error'))} controls; the sample as a part of what "
        "there is (95 to 300 kB per category).",
        **curve(
            "part of the sample",
            "log10 MSE",
            {run.study.method: found.items(), beside: [(part, constant) for part in arms]},
        ),
    )


def wrong_digits(run: Run, shares: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the percentage of sums that are wrong at each digit, by arm."""
    digits = range(1, 1 + max(map(len, shares.values())))
    return run.figure(
        name="number-tokens-errors",
        title="Wrong digits of sums that are longer than the addends",
        caption="Share of answers wrong at each digit, from the left. A cut from the left puts token 2 at digit 4.",
        **bars("% wrong", [f"digit {n}" for n in digits], shares),
    )


def additions_right(run: Run, percentages: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw how many sums are right, by arm: kind of problem, then the percentage of runs that solve each."""
    found = {arm: [bootstrap(values, seed=run.seed) for values in kinds.values()] for arm, kinds in percentages.items()}
    return run.figure(
        name="number-tokens-accuracy",
        title="Additions right, by how numbers are cut",
        caption="Same model, problems and steps. Mismatch: the answer has one digit more than the longer addend.",
        **bars("% right", list(next(iter(percentages.values()))), found),
    )

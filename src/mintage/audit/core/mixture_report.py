"""The report about a mixture: shares with their intervals, and how far the samples explain the merges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mintage.audit.contract import Cell, Report
from mintage.audit.core.merge_replay import Transcript
from mintage.audit.core.mixture_program import MixtureEstimate
from mintage.audit.core.mixture_samples import CountedSamples
from mintage.measure.figure import Figure

__all__ = ["mixture_report"]


def mixture_report(
    estimate: MixtureEstimate,
    transcript: Transcript,
    counted: CountedSamples,
    spread: Float[np.ndarray, " categories"] | None,
    *,
    name: str,
    unit: str,
    resamples: int,
    notes: Sequence[str],
) -> Report:
    """Sum up an estimate.

    Parameters
    ----------
    estimate, transcript, counted
        The shares, the merges that were used, the samples.
    spread
        Standard deviation of every share over resamples, if there were any.
    name, unit, resamples
        Of the tokenizer; of the shares; how many were asked for.
    notes
        What else the report says.
    """
    shares = np.array(list(estimate.shares.values()))
    low: list[Any] = [None] * len(shares)
    high = low
    if spread is not None:
        low = np.clip(shares - 1.96 * spread, 0, 1).tolist()
        high = np.clip(shares + 1.96 * spread, 0, 1).tolist()
    in_pairs = shares if unit == "pairs" else shares * transcript.denominators / list(counted.sizes.values())
    in_pairs = in_pairs / in_pairs.sum()
    weights = counted.weights()
    rows = zip(transcript.categories, shares.tolist(), low, high, in_pairs, strict=True)
    table: list[dict[str, Cell]] = [
        {
            "category": category,
            f"share of {unit}": share,
            "low": below,
            "high": above,
            **({"share of pairs": float(pairs)} if unit == "bytes" else {}),
            "sample bytes": counted.sizes[category],
            "pre-tokens": int(weights[category].sum()),
        }
        for category, share, below, above, pairs in rows
    ]
    series: dict[str, Any] = {"name": "inferred", "y": shares.tolist()}
    if spread is not None:
        series |= {"low": low, "high": high}
    figure = Figure(
        job="audit",
        name=f"data-mixture-{name or 'tokenizer'}",
        title=f"What {name or 'the tokenizer'} was trained on",
        caption=f"Inferred share of {unit} by category, from {transcript.steps} merges"
        + (f"; bars: 95% of {resamples} resamples of the documents." if spread is not None else "."),
        kind="bars",
        method="data-mixture",
        data={"y_label": f"share of {unit}", "categories": list(transcript.categories), "series": [series]},
    )
    findings: dict[str, Cell] = {
        "largest share": max(estimate.shares, key=lambda category: estimate.shares[category]),
        "objective": estimate.objective,
        "merges used": transcript.steps,
        "constraints": estimate.rows,
    }
    told = [*_notes(estimate, transcript), *notes]
    fixed = [category for category in transcript.categories if not counted.resampled(category)]
    if resamples and fixed:
        left_out = "the intervals leave their noise out" if spread is not None else "there are no intervals"
        told.append(f"Too few documents to resample: {', '.join(fixed)}; {left_out}.")
    return Report(audit="data-mixture", subject=name, findings=findings, table=table, figures=[figure], notes=told)


def _notes(estimate: MixtureEstimate, transcript: Transcript) -> list[str]:
    notes = [
        "A category of the training data that has no sample here is absorbed by the samples nearest to it.",
        f"The objective, {estimate.objective:.3f}, is by how much the merges contradict the samples: compare it between"
        " sets of samples; one several times larger means that these samples, or the way text is cut, fit less well.",
    ]
    absent = int((~transcript.merge_counts.any(axis=1)).sum())
    if absent:
        notes.append(f"{absent} of the {transcript.steps} merges used occur in no sample and say nothing.")
    worst = np.argsort(-estimate.pair_slack)[:3]
    passed = [transcript.pairs[p] for p in worst if estimate.pair_slack[p] > 1e-3]
    if passed:
        pairs = ", ".join(f"{left!r} + {right!r}" for left, right in passed)
        notes.append(f"Frequent in the samples, but passed over by the trainer: {pairs}.")
    return notes

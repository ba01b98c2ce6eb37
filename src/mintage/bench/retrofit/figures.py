"""The figures of this job's studies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mintage.measure.figure import Figure, bars, curve
from mintage.measure.study import Run

__all__ = ["bits_by_tokenizer", "bits_while_tuned", "nats_by_tokens_gone", "seconds_by_length"]


def bits_by_tokenizer(run: Run, targets: Sequence[str], bits: Mapping[str, Sequence[float]]) -> Figure:
    """Draw bits per byte, by tokenizer and method."""
    return run.figure(
        name="zett-tokenizers",
        title="What a new tokenizer costs, by who makes the embeddings",
        caption="Bits per byte of held-out texts in tokenizers that the model has never seen; nothing is tuned.",
        **bars("bits per byte", targets, bits),
    )


def bits_while_tuned(run: Run, target: str, tokens: Sequence[int], bits: Mapping[str, Sequence[float]]) -> Figure:
    """Draw bits per byte against tokens of training, by who made the embeddings."""
    return run.figure(
        name="zett-tuning",
        title="How fast training on the embeddings closes the gap",
        caption=f"{target}: bits per byte of held-out texts against tokens of training, nothing but embeddings "
        "trained.",
        **curve("tokens of training", "bits per byte", _against(tokens, bits)),
    )


def nats_by_tokens_gone(run: Run, readers: Sequence[str], shares: Sequence[float]) -> Figure:
    """Draw nats per word against the share of the tokens that is gone, from the unmerged text on."""

    def per(arm: str, top: str, bottom: str) -> float:
        return float(run.column(arm, top).sum() / run.column(arm, bottom).sum())

    points = {}
    for name in readers:
        arms = ["original", *(arm for share in shares if (arm := f"{name}, {share:g}") in run.arms)]
        points[name] = [(100 * (1 - per(arm, "length", "base")), per(arm, "nats", "words")) for arm in arms]
    return run.figure(
        name="dynamic-tokens-quality",
        title="What merged tokens cost, by who makes their embeddings",
        caption="Nats per word, scored on the first part of each in the original vocabulary, against the share of "
        "tokens gone. All series start at the unmerged text.",
        **curve("tokens gone (%)", "nats per word", points),
    )


def seconds_by_length(run: Run, arm: str, lengths: Sequence[int]) -> Figure:
    """Draw median seconds to read texts, by length."""
    named = (("plain", "as they are"), ("merged", "merged"), ("alone", "merged, the model alone"))
    seconds = {told: [float(np.median(run.column(arm, f"{name}, {n}"))) for n in lengths] for name, told in named}
    return run.figure(
        name="dynamic-tokens-prefill",
        title="Seconds to read German, merged and not",
        caption="Every word in one token; with the time to merge and to make embeddings, and without.",
        **curve("original tokens", "seconds", _against(lengths, seconds)),
    )


def _against(x: Sequence[int], named: Mapping[str, Sequence[float]]) -> dict[str, Iterable[tuple[int, float]]]:
    return {name: zip(x, y, strict=True) for name, y in named.items()}

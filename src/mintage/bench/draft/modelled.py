"""What measured drafting would cost on other terms: seconds from counts and a stated cost of a forward.

The counts are measured (tokens, target forwards and the nodes they read, draft forwards and the tokens they read); the
seconds are modelled. Prefill and the loop's own work are left out on both sides, so these are upper limits of what a
loop without overhead would reach. Not here: anything measured with a clock, but the latency curve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mintage.bench.draft.run import Measurement
from mintage.draft import LatencyCurve, Stats
from mintage.measure import Interval, bootstrap_ratio

__all__ = ["drafting_seconds", "modelled_speed_up", "offloaded", "on_this_machine", "streamed_bytes"]

Forward = Callable[[float], float]
"""Seconds of one forward that reads this many tokens."""


def on_this_machine(curve: LatencyCurve) -> Forward:
    """A forward takes what the measured latency curve says."""
    return lambda tokens: float(curve(np.array(tokens)))


def offloaded(weight_bytes: int, bytes_per_second: float) -> Forward:
    """A forward takes as long as its weights take over a link, whatever it reads."""
    seconds = weight_bytes / bytes_per_second
    return lambda tokens: seconds


def drafting_seconds(stats: Stats, target: Forward, draft: Forward | None) -> float:
    """Model the seconds of one answer: every round at its mean number of nodes, every draft forward at its mean."""
    seconds = stats.rounds * target(stats.tree_nodes / stats.rounds)
    if stats.draft_forwards and draft is not None:
        read = max(stats.draft_tokens - stats.prompt_tokens, 0)  # the prompt is its prefill
        seconds += stats.draft_forwards * draft(max(read / stats.draft_forwards, 1.0))
    return seconds


def modelled_speed_up(measurement: Measurement, target: Forward, draft: Forward | None) -> Interval:
    """Modelled seconds of as many single-token forwards, over those of the drafted answers."""
    plain = [answer.stats.new_tokens * target(1.0) for answer in measurement.answers]
    drafted = [drafting_seconds(answer.stats, target, draft) for answer in measurement.answers]
    return bootstrap_ratio(plain, drafted)


def streamed_bytes(model: Any) -> int:
    """Bytes of weights that decoding one token must read: all of them, but of an untied input table one row only."""
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    tied = head is not None and head.weight.data_ptr() == table.data_ptr()
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    return total if tied else total - (table.shape[0] - 1) * table.shape[1] * table.element_size()

"""A bench's run as result rows: one per arm and metric, and what the machine allows at most.

Not here: claims (the studies of the methods).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from mintage.bench.draft.arms import GENERATE
from mintage.bench.draft.run import DraftRun, Measurement
from mintage.draft import LatencyCurve, Stats, Target, latency_curve
from mintage.measure import (
    Interval,
    Result,
    bootstrap_ratio,
    count_flops,
    memory_bandwidth,
    peak_tensor_bytes,
    tensor_bytes,
)

__all__ = ["drafting_seconds", "metric_rows", "modelled_speed_up", "offloaded", "on_this_machine", "streamed_bytes"]

_MEMORY_TOKENS = 4  # tokens of the answer whose memory is taken
_CACHED = 64 * 2**20  # weights smaller than this may stay in a processor's cache: no bandwidth bounds them


@dataclass(frozen=True, kw_only=True)
class _Metric:
    """A column: its name and unit, whether more is better, and its value for an arm (None: the arm has none)."""

    name: str
    unit: str
    more_is_better: bool
    value: Callable[[str], Interval | None]
    note: str = ""
    n: int | None = None


def metric_rows(run: DraftRun, *, link: float = 16.0) -> list[Result]:
    """Turn a run's measurements into rows.

    Parameters
    ----------
    run
        What was measured.
    link
        GB/s of the link in the model of offloaded weights.
    """
    rows = []
    for metric in _metrics(run, link):
        values = {name: metric.value(name) for name in run.measurements}
        plain = values.pop(GENERATE)
        measured = {name: interval for name, interval in values.items() if interval is not None}
        for name, interval in measured.items():
            given = run.common if metric.n is None else {**run.common, "n": metric.n}
            rows.append(
                Result(
                    method=name,
                    metric=metric.name,
                    unit=metric.unit,
                    higher_is_better=metric.more_is_better,
                    value=interval.value,
                    interval=interval.bounds,
                    baseline={} if plain is None else {GENERATE: plain.value},
                    peers={other: v.value for other, v in measured.items() if other != name},
                    note="; ".join(filter(None, [metric.note, run.arms[name].note])),
                    **given,
                )
            )
    return rows + _limit(run)


# -- metrics ------------------------------------------------------------------------------------------------------


def _metrics(run: DraftRun, link: float) -> Iterable[_Metric]:
    more, less = partial(_Metric, more_is_better=True), partial(_Metric, more_is_better=False)
    ours = set(run.same_arithmetic)
    arm = run.measurements
    yield more(
        name="tokens per target forward",
        unit="tokens",
        value=lambda n: arm[n].tokens_per_forward if n in ours else None,
    )
    yield more(name="speed over generate, median prompt", unit="x", value=lambda n: run.speed_up(n))
    yield more(name="speed over generate, whole run", unit="x", value=lambda n: run.speed_up(n, of="sums"))
    yield more(name="tokens per second", unit="tokens/s", value=lambda n: arm[n].throughput)
    if not run.temperature:
        yield more(name="outputs identical to generate", unit="share", value=lambda n: _exactly(run.identical(n)))
    gaps = {} if run.temperature or run.lm.model.dtype == torch.float32 else run.gaps()
    if any(gaps.values()):
        yield less(
            name="largest logit gap at a first difference",
            unit="logits",
            value=lambda n: _exactly(max(gaps[n] or [0.0])) if n in gaps else _exactly(0.0) if n == GENERATE else None,
        )
    yield less(
        name="tree nodes per target forward",
        unit="nodes",
        value=lambda n: arm[n].nodes_per_forward,
        note="all tokens that a forward reads: the root, drafted nodes, prompt tokens",
    )
    yield less(name="target GFLOPs per token", unit="GFLOP", value=partial(_target_gflops, run))
    yield less(name="draft forwards per token", unit="forwards", value=partial(_draft_forwards, run))
    yield less(
        name="draft GFLOPs per token",
        unit="GFLOP",
        value=partial(_draft_gflops, run),
        note="operations of the draft model, counted on it, times the tokens it read after the prompt",
    )
    yield less(
        name="peak memory beyond the target's weights",
        unit="MB",
        value=partial(_memory, run),
        note=f"tensors alive at the peak of an answer of {_MEMORY_TOKENS} tokens to the first prompt (caches, logits, "
        f"tables; room for {run.max_new_tokens} where a cache is laid out ahead), and the draft model's own weights",
        n=1,
    )
    yield from _modelled(run, link)


def _exactly(value: float) -> Interval:
    return Interval(value, value, value)


def _flops_per_token(run: DraftRun, model: Any) -> float:
    """FLOPs of a model per token read, at the context of the first prompt."""

    def count() -> float:
        ids = run.ids(run.prompts[0])[:, :64]
        with torch.no_grad():
            return count_flops(lambda: model(input_ids=ids, use_cache=False)) / ids.shape[1]

    return run.once(f"flops {id(model)}", count)


def _per_token(run: DraftRun, name: str, counts: Sequence[float], scale: float = 1.0) -> Interval | None:
    if not any(counts):
        return None
    ratio = bootstrap_ratio(counts, run.measurements[name].total("new_tokens"))
    return Interval(*(bound * scale for bound in ratio))


def _target_gflops(run: DraftRun, name: str) -> Interval | None:
    nodes = run.measurements[name].total("tree_nodes")
    return _per_token(run, name, nodes, _flops_per_token(run, run.lm.model) / 1e9)


def _draft_forwards(run: DraftRun, name: str) -> Interval | None:
    return _per_token(run, name, run.measurements[name].total("draft_forwards"))


def _draft_gflops(run: DraftRun, name: str) -> Interval | None:
    model = run.arms[name].draft_model
    if model is None:
        return None
    stats = [answer.stats for answer in run.measurements[name].answers]
    read = [float(max(s.draft_tokens - s.prompt_tokens, 0)) for s in stats]
    return _per_token(run, name, read, _flops_per_token(run, model) / 1e9)


def _memory(run: DraftRun, name: str) -> Interval | None:
    """Peak of the tensors that a short answer of a decoder that knows nothing holds, and its draft model's weights."""
    if run.arms[name].note:  # tensors of other libraries are not seen
        return None
    arm = run.arms[name]
    decode, ids = arm.fresh(), run.ids(run.prompts[0])
    tokens = min(run.max_new_tokens, _MEMORY_TOKENS)
    peak = peak_tensor_bytes(lambda: decode(ids, run.temperature, tokens, run.seed))
    if arm.draft_model is not None:
        weights = list(run.lm.model.parameters())
        peak += tensor_bytes([weights, list(arm.draft_model.parameters())]) - tensor_bytes(weights)
    return _exactly(peak / 1e6)


# -- modelled -----------------------------------------------------------------------------------------------------


# What measured drafting would cost on other terms: tokens, forwards and what they read are counted, the seconds of a
# forward are modelled. Prefill and the loop's own work are left out on both sides, so these are upper limits.

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


def _modelled(run: DraftRun, link: float) -> Iterable[_Metric]:
    """Speed-ups on other terms, from counts that were measured."""
    target = Target(run.lm.model)
    curve = latency_curve(target)
    draft = None if run.draft_model is None else on_this_machine(latency_curve(Target(run.draft_model)))
    weights = streamed_bytes(run.lm.model)

    def of(forward: Callable[[float], float]) -> Callable[[str], Interval | None]:
        def value(name: str) -> Interval | None:
            measured = run.measurements[name]
            return modelled_speed_up(measured, forward, draft) if any(measured.total("tree_nodes")) else None

        return value

    counts = "modelled from the measured tokens, nodes and draft forwards; no prefill, no overhead of the loop"
    times = ", ".join(f"T({n})={float(curve(n)) * 1e3:.3g} ms" for n in (1, 8, 16, 32))
    drafting = "" if draft is None else f"; a draft forward over one token takes {draft(1.0) * 1e3:.3g} ms, as measured"
    yield _Metric(
        name="modelled speed over generate, this machine's latency curve",
        unit="x",
        more_is_better=True,
        value=of(on_this_machine(curve)),
        note=f"{counts}; a forward takes what this machine's latency curve says: {times}{drafting}",
    )
    seconds = weights / (link * 1e9)
    yield _Metric(
        name=f"modelled speed over generate, weights offloaded over {link:g} GB/s",
        unit="x",
        more_is_better=True,
        value=of(offloaded(weights, link * 1e9)),
        note=f"{counts}; a target forward takes {seconds * 1e3:.3g} ms, its {weights / 1e6:.4g} MB of weights over "
        f"{link:g} GB/s, whatever it reads; the draft model stays on this machine{drafting}",
    )


def _limit(run: DraftRun) -> list[Result]:
    """The most tokens per second that one-token decoding can reach: memory bandwidth over the weights it must read."""
    weights = streamed_bytes(run.lm.model)
    if weights < _CACHED:
        return []
    bandwidth = memory_bandwidth(str(run.lm.model.device))
    measured = run.measurements[GENERATE].throughput
    return [
        Result(
            method="limit of one-token decoding (memory bandwidth)",
            metric="tokens per second",
            unit="tokens/s",
            higher_is_better=True,
            value=bandwidth / weights,
            baseline={GENERATE: measured.value},
            note=f"modelled, not a decoder: {weights / 1e6:.4g} MB of weights per token at {bandwidth / 1e9:.3g} GB/s, "
            "measured by summing 256 MiB on as many threads",
            **{**run.common, "n": 1},
        )
    ]

"""A text that was read once, and what a policy makes of it: scores, answers, seconds, and what is left in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mintage.keep.baselines import FullCache
from mintage.keep.contract import Policy, Step
from mintage.keep.core.attach import Attachment
from mintage.keep.core.storage import KeptCache, KeptLayer
from mintage.measure import timed
from mintage.models import CausalLM, with_cache

__all__ = ["Prefix", "answer_to", "score_continuation", "seconds_per_token", "survivors"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Recorder(FullCache):
    """A full cache that remembers the queries of its first forward, layer by layer."""

    steps: dict[int, Step] = field(default_factory=dict)

    def settle(self, layer: KeptLayer, step: Step) -> None:
        if layer.seen == step.queries:
            self.steps[layer.index] = step


class Prefix:
    """A text that the model has read once, for every policy to start from.

    Most policies attend to everything while a text is read in one piece, so its keys, values and queries are the same
    for all of them: a policy is given these instead of reading again, and what that takes is its overhead. A policy
    that reads prompts sparsely reads it itself.
    """

    @torch.inference_mode()
    def __init__(self, lm: CausalLM, ids: Tensor) -> None:
        recorder = _Recorder()
        with recorder(lm.model) as session:
            out, self.seconds = timed(lambda: lm.model(ids, use_cache=True, logits_to_keep=1))
        assert session.cache is not None
        self.model, self.ids = lm.model, ids
        self.layers, self.steps = session.cache.kept_layers, recorder.steps
        self.logits = out.logits[0, -1]

    @torch.inference_mode()
    def fill(self, session: Attachment, length: int) -> KeptCache:
        """Return the policy's cache after the first `length` tokens of the text, to time what comes after.

        Later tokens change nothing about earlier ones, so that one text serves all lengths. Policies that read prompts
        sparsely are given what plain reading makes of the text: as many entries, of other values.
        """
        cache = session.new_cache()
        for layer, read in zip(cache.kept_layers, self.layers, strict=True):
            whole = self.steps[layer.index]
            step = replace(
                whole,
                query=whole.query[:, :, :length],
                key=None if whole.key is None else whole.key[:, :, :length],
                value=None if whole.value is None else whole.value[:, :, :length],
                position_ids=whole.position_ids[:, :length],
                dense=lambda unused=whole.query: unused,
            )
            layer.position_ids, layer.geometry = step.position_ids, step.geometry
            session.policy.store(layer, read["key"][:, :, :length], read["value"][:, :, :length])
            if session.policy.reads_prompts_whole:
                session.policy.attend(layer, step)
                session.policy.settle(layer, step)
        return cache

    @torch.inference_mode()
    def replay(self, session: Attachment) -> tuple[KeptCache, Tensor, float]:
        """Return the policy's cache after the text, the logits there, and seconds as a part of plain reading."""
        cache = session.new_cache()
        if not session.policy.reads_prompts_whole:
            out, seconds = timed(
                lambda: self.model(self.ids, **with_cache(self.model, cache), use_cache=True, logits_to_keep=1)
            )
            return cache, out.logits[0, -1], seconds / self.seconds

        def fill() -> None:
            for layer, read in zip(cache.kept_layers, self.layers, strict=True):
                step = replace(self.steps[layer.index], dense=lambda: self.steps[0].query)  # its output is not used
                layer.position_ids, layer.geometry = step.position_ids, step.geometry
                session.policy.store(layer, read["key"], read["value"])
                session.policy.attend(layer, step)
                session.policy.settle(layer, step)

        return cache, self.logits, 1 + timed(fill)[1] / self.seconds


@torch.inference_mode()
def score_continuation(
    prefix: Prefix, policy: Policy, rest: Tensor, **told: Callable[[KeptCache], float]
) -> dict[str, Any]:
    """Score the tokens behind a prefix one by one; `told` is asked of the cache in the end, 0 of an unmodified one."""
    model, nll, steps, reads = prefix.model, [], [], 0
    with policy(model) as session:
        cache, logits, prefill = prefix.replay(session)
        stored = cache.nbytes()
        for token in rest:
            nll.append(-logits.float().log_softmax(-1)[token].item())
            out, seconds = timed(lambda t=token: model(t[None, None], **with_cache(model, cache), use_cache=True))
            logits = out.logits[0, -1]
            steps.append(seconds)
            reads += cache.reads()
    return {
        "nll": float(np.mean(nll)),
        "prefill": prefill,
        "step": float(np.median(steps)),
        "bytes": max(stored, cache.nbytes()),
        "reads": reads / len(steps),
        **{name: tell(cache) if isinstance(cache, KeptCache) else 0.0 for name, tell in told.items()},
    }


@torch.inference_mode()
def answer_to(lm: CausalLM, prefix: Prefix, policy: Policy, question: Tensor, wanted: str) -> str:
    """Continue a prefix by a question, which may be empty, for as long as the answer can still become `wanted`."""
    answer: list[int] = []
    most = len(lm.encode(wanted, chat=False)[0]) + 3
    with policy(prefix.model) as session:
        cache, logits, _ = prefix.replay(session)
        chunk = question
        while True:
            if chunk.numel():
                logits = prefix.model(
                    chunk, **with_cache(prefix.model, cache), use_cache=True, logits_to_keep=1
                ).logits[0, -1]
            answer.append(int(logits.argmax()))
            text = str(lm.tokenizer.decode(answer))
            so_far = text.strip()
            if len(answer) == most or so_far[: len(wanted)] != wanted[: len(so_far)] or so_far.startswith(wanted):
                return text
            chunk = torch.tensor([answer[-1:]], device=question.device)


@torch.inference_mode()
def seconds_per_token(prefix: Prefix, policy: Policy, length: int, rest: Tensor) -> float:
    """Time the tokens behind the first `length` of a prefix, one by one; the median."""
    with policy(prefix.model) as session:
        cache = prefix.fill(session, length)
        steps = [
            timed(lambda t=token: prefix.model(t[None, None], **with_cache(prefix.model, cache), use_cache=True))[1]
            for token in rest
        ]
    return float(np.median(steps[len(steps) // 4 :]))  # the first ones grow buffers and warm up


def survivors(prefix: Prefix, policy: Policy, bins: int = 64) -> list[list[float]] | None:
    """Share of the tokens of each stretch of the text that each layer and head still holds; None if it is all."""
    with policy(prefix.model) as session:
        cache, _, _ = prefix.replay(session)
    if all(layer.complete for layer in cache.kept_layers):
        return None
    edges = np.linspace(0, cache.get_seq_length(), bins + 1)
    width = np.diff(np.ceil(edges))
    return [
        (np.histogram(head.numpy(), edges)[0] / np.maximum(width, 1)).tolist()
        for positions in cache.survivors().values()
        for head in positions
    ]

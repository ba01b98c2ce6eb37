"""The claim checks of the papers about caches, one module each, and what they share: arms on real texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mintage.bench.keep import inputs, prefix
from mintage.keep.contract import Policy
from mintage.keep.core.storage import KeptCache
from mintage.measure import Interval, bootstrap, trial
from mintage.measure.retrieval import score_value
from mintage.measure.trial import silent
from mintage.models import EMBEDDED, CausalLM, load_causal_lm

__all__ = ["Trial", "perplexity", "perplexity_ratio", "silent", "telling"]

Arms = Mapping[str, Policy]


def perplexity(nll: np.ndarray) -> float:
    """Perplexity from the mean negative log-likelihood of every text."""
    return float(np.exp(nll.mean()))


def perplexity_ratio(one: np.ndarray, other: np.ndarray) -> Interval:
    """Ratio of two perplexities on the same texts, which are resampled together."""
    return bootstrap(one - other, lambda x, axis: np.exp(x.mean(axis)))


def telling(name: str, tell: Callable[[KeptCache], float]) -> Callable[..., dict[str, float]]:
    """Make a `measure` for `Trial.decoded` that also tells something of the cache in the end."""

    def measure(read: prefix.Prefix, policy: Policy, rest: Tensor) -> dict[str, float]:
        return prefix.score_continuation(read, policy, rest, **{name: tell})

    measure.__name__ = name
    return measure


class Trial(trial.Trial):
    """Policies on the same texts; the haystacks are made from `seed`."""

    def __init__(
        self,
        method: str,
        *,
        seed: int,
        command: str,
        definition: dict[str, Any],
        total: int,
        progress: Callable[[int, int, str], None] = silent,
        model: str = EMBEDDED,
        work: Path | None = None,
    ) -> None:
        self.lm: CausalLM = load_causal_lm(model, dtype="bfloat16")
        super().__init__(
            method,
            job="keep",
            model=model,
            seed=seed,
            command=command,
            definition=definition,
            total=total,
            progress=progress,
            work=work,
        )

    def _each(
        self, kind: str, place: int, arms: Arms, read: Callable[[], prefix.Prefix], run: Callable[..., Any]
    ) -> Any:
        first = place % len(arms)
        held = cache(read)
        for name in [*arms][first:] + [*arms][:first]:
            key = f"{kind} {name} {place}"
            yield name, self.measured(key, lambda n=name: run(held(), arms[n]), f"{kind}: {name}")

    def decoded(
        self,
        arms: Arms,
        length: int,
        texts: int,
        tokens: int,
        *,
        measure: Callable[..., dict[str, float]] = prefix.score_continuation,
        corpora: Sequence[str] = inputs.SPEECHES,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Score the `tokens` behind the first `length` of each text; what `measure` says, by text."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
        for place, (_, ids) in enumerate(inputs.long_texts(self.lm, length + tokens, texts, corpora=corpora)):
            read, run = partial(prefix.Prefix, self.lm, ids[:, :length]), partial(measure, rest=ids[0, length:])
            for name, row in self._each(f"{measure.__name__} {length}", place, arms, read, run):
                found[name].append(row)
        return {name: {of: np.array([row[of] for row in rows]) for of in rows[0]} for name, rows in found.items()}

    def found(
        self, arms: Arms, length: int, number: int, needles: Sequence[str] = inputs.NEEDLES
    ) -> dict[str, np.ndarray]:
        """Ask for needles after the text was read and compressed; 1 where one was found, by question."""
        scores: dict[str, list[float]] = {name: [] for name in arms}
        for needle in needles:
            for place, example in enumerate(inputs.questions(self.lm, length, number, self.seed, needle)):
                context, question = example.ids(self.lm)

                def ask(read: prefix.Prefix, policy: Policy, q: Any = question, wanted: str = example.answer) -> str:
                    return prefix.answer_to(self.lm, read, policy, q, wanted)

                read = partial(prefix.Prefix, self.lm, context)
                for name, answer in self._each(f"{needle} {length}", place, arms, read, ask):
                    scores[name].append(score_value(answer, example.answer).score)
        return {name: np.array(held) for name, held in scores.items()}

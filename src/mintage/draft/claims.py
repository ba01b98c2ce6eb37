"""The papers' claims as tests of a measured run: what is compared with what, and from where on it holds.

A claim names the arms it needs. ``mintage bench METHOD`` runs the arms of all its claims; any other bench run tests the
claims whose arms it happens to have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mintage.measure import Interval, bootstrap_ratio

if TYPE_CHECKING:
    from mintage.draft.bench import Run

__all__ = ["CLAIMS", "Claim"]

GENERATE = "generate (transformers)"
LOOKUP = "prompt lookup (transformers)"
RECYCLING = "token-recycling"
COLD = "token-recycling cold"
AUTO = "token-recycling:budget=auto"
UNION = "token-recycling+prompt-lookup"

COPYING = ("summarise", "extraction")
"""Categories whose answers repeat the prompt; look-up is made for them."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One testable sentence.

    Parameters
    ----------
    method
        Catalogue name.
    text
        The sentence, threshold included.
    arms
        Arms that must be in the run.
    metric, unit
        What `measure` returns.
    measure
        From the run to the number and its interval.
    holds
        From the interval to the verdict.
    baseline, peers
        Other arms' numbers for the row.
    """

    method: str
    text: str
    arms: tuple[str, ...]
    metric: str
    unit: str
    measure: Callable[[Run], Interval]
    holds: Callable[[Interval], bool]
    compare: Callable[[Run], tuple[dict[str, float], dict[str, float]]] = lambda run: ({}, {})
    greedy_only: bool = True
    lossless_dtype: bool = False
    """Whether the claim is about exact arithmetic, so only tested in float32."""


def _forwards_ratio(run: Run, arm: str, over: str, categories: tuple[str, ...] | None = None) -> Interval:
    """Tokens per forward of `arm` over `over`'s on the same prompts, summed over those of `categories`."""
    chosen = [i for i, p in enumerate(run.prompts) if categories is None or p.category in categories]
    a, b = ([run.measurements[name].answers[i].stats for i in chosen] for name in (arm, over))
    # both arms emit (almost) equally many tokens, so the ratio is over forwards per token
    return bootstrap_ratio([s.rounds / s.new_tokens for s in b], [s.rounds / s.new_tokens for s in a])


def _not_copying(run: Run) -> tuple[str, ...]:
    return tuple({p.category for p in run.prompts} - set(COPYING))


def _forwards(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    values = {name: m.tokens_per_forward.value for name, m in run.measurements.items()}
    return {GENERATE: values.pop(GENERATE)}, values


def _speeds(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    return {GENERATE: 1.0}, {name: run.speed_up(name).value for name in run.measurements if name != GENERATE}


CLAIMS: tuple[Claim, ...] = (
    Claim(
        method="token-recycling",
        text="hot Token Recycling emits >= 1.7 tokens per target forward",
        arms=(RECYCLING,),
        metric="tokens per target forward, hot",
        unit="tokens",
        measure=lambda run: run.measurements[RECYCLING].tokens_per_forward,
        holds=lambda x: x.value >= 1.7,
        compare=_forwards,
    ),
    Claim(
        method="token-recycling",
        text="a hot table beats a cold one",
        arms=(RECYCLING, COLD),
        metric="tokens per target forward, hot over cold",
        unit="x",
        measure=lambda run: _forwards_ratio(run, RECYCLING, COLD),
        holds=lambda x: x.low > 1,
    ),
    Claim(
        method="token-recycling",
        text="faster than plain generate on this machine (tree size from the latency curve)",
        arms=(AUTO,),
        metric="speed over generate, median prompt, budget=auto",
        unit="x",
        measure=lambda run: run.speed_up(AUTO),
        holds=lambda x: x.low > 1,
        compare=_speeds,
    ),
    Claim(
        method="token-recycling",
        text="beats transformers' prompt lookup in tokens per forward on prompts that do not copy",
        arms=(RECYCLING,),
        metric="tokens per target forward over prompt lookup's, non-copying prompts",
        unit="x",
        measure=lambda run: _forwards_ratio(run, RECYCLING, LOOKUP, _not_copying(run)),
        holds=lambda x: x.low > 1,
    ),
    Claim(
        method="token-recycling",
        text="output identical to plain greedy decoding on every prompt (float32)",
        arms=(RECYCLING,),
        metric="outputs identical, float32",
        unit="share",
        measure=lambda run: Interval(*[run.identical(RECYCLING)] * 3),
        holds=lambda x: x.value == 1,
        lossless_dtype=True,
    ),
    Claim(
        method="union",
        text="recycling and look-up together are faster than transformers' prompt lookup",
        arms=(UNION,),
        metric="throughput over prompt lookup (transformers)",
        unit="x",
        measure=lambda run: run.pairs.ratio(LOOKUP, UNION, of="sums"),
        holds=lambda x: x.low > 1,
        compare=lambda run: ({LOOKUP: 1.0}, {}),
    ),
)

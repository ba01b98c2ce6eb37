"""Token Recycling: do tokens that earlier forwards threw away, kept in a table, make decoding faster?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mintage.bench.draft.arms import AUTO, COLD, GENERATE, LOOKUP, RECYCLING
from mintage.bench.draft.drafting import DraftStudy, emitted, emitted_over, speeds
from mintage.bench.draft.run import DraftRun
from mintage.measure import Interval
from mintage.measure.study import Comparison, Finding, above, at_least

__all__ = ["TokenRecyclingStudy"]

COPYING = ("summarise", "extraction")
"""Categories whose answers repeat the prompt; look-up is made for them."""


@dataclass(frozen=True, kw_only=True)
class TokenRecyclingStudy(DraftStudy):
    """Test Token Recycling's claims: tokens per forward, a hot table against a cold one, speed, equal output.

    [dim]Examples[/dim]

      mintage bench token-recycling

      mintage bench token-recycling --dtype float32 --limit 12
    """

    method = "token-recycling"
    greedy = (RECYCLING, COLD, AUTO)

    def claims(self, run: DraftRun) -> Iterable[Comparison | Finding]:
        """See `DraftStudy.claims`."""
        if run.greedy and run.has(RECYCLING):
            yield emitted(
                run,
                "tokens per target forward, hot",
                RECYCLING,
                "hot Token Recycling emits >= 1.7 tokens per target forward",
                at_least(1.7),
            )
        if run.greedy and run.has(RECYCLING, COLD):
            yield emitted(
                run,
                "tokens per target forward, hot over cold",
                RECYCLING,
                "a hot table beats a cold one",
                above(1),
                rival=COLD,
                beside=False,
            )
        if run.greedy and run.has(AUTO):
            yield Finding(
                metric="speed over generate, median prompt, budget=auto",
                unit="x",
                value=lambda r: r.speed_up(AUTO),
                n=len(run.prompts),
                baseline={GENERATE: 1.0},
                peers=speeds(run, AUTO),
                claim="faster than plain generate on this machine (tree size from the latency curve)",
                holds=above(1),
            )
        rest = [i for i, prompt in enumerate(run.prompts) if prompt.category not in COPYING]
        if run.greedy and run.has(RECYCLING) and len(rest) > 1:
            counts = ("new_tokens", "rounds")
            yield Finding(
                metric="tokens per target forward over prompt lookup's, non-copying prompts",
                unit="x",
                value=lambda r: emitted_over(r.column(RECYCLING, counts)[:, rest], r.column(LOOKUP, counts)[:, rest]),
                n=len(run.prompts),
                claim="beats transformers' prompt lookup in tokens per forward on prompts that do not copy",
                holds=above(1),
            )
        if run.greedy and run.exact and run.has(RECYCLING):
            yield Finding(
                metric="outputs identical, float32",
                unit="share",
                value=lambda r: Interval(*[r.identical(RECYCLING)] * 3),
                n=len(run.prompts),
                claim="output identical to plain greedy decoding on every prompt (float32)",
                holds=at_least(1),
            )

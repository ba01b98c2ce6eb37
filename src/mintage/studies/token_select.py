"""TokenSelect: what the soft vote finds, how often a choice serves the next token, and very long texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from mintage.bench.keep.measures import KeepStudy, continuation_scores, needles
from mintage.bench.keep.votes import PLACES, voting
from mintage.keep.baselines import FullCache, StreamingLLM
from mintage.keep.contract import Policy
from mintage.keep.token_select import TokenSelect, hit_rate
from mintage.measure import bootstrap
from mintage.measure.study import PERPLEXITY, POINTS, Comparison, Finding, Measure, Run, above, at_least
from mintage.options import option

__all__ = ["TokenSelectStudy"]

THETAS = (0.8, 0.9, 0.95, 1.01)
NEVER = f"theta {THETAS[-1]:g}"
REUSED = "at theta 0.9 half of the choices are used again, at less than 1% more perplexity"

LONG: dict[str, Policy] = {"full-cache": FullCache(), "token-select": TokenSelect(top_k=1408)}
RIVALS = {
    "hard vote": (at_least(0), "the soft vote finds at least as many needles as the hard vote"),
    "blocks of 16": (at_least(0), "the soft vote over tokens finds at least as many needles as over blocks of 16"),
    "random choice": (above(0), "the soft vote finds more needles than a random choice of as many tokens"),
    "streaming-llm": (above(0), "the soft vote finds more needles than a window of as many tokens"),
}


@dataclass(frozen=True, kw_only=True)
class TokenSelectStudy(KeepStudy):
    """Does voting by softmax find what other choices of as many tokens miss, how often is a choice good for the next
    token, and does a text beyond the trained length stay readable?

    On speeches, and on Genesis for the length. Reading the chosen tokens side by side, as published, costs a small
    model much within its trained length, so the votes are compared at true distances, too.

    [dim]Example[/dim]

      mintage bench token-select --texts 2 --questions 3
    """

    method = "token-select"

    length: int = option(2048, "Tokens read before decoding.", least=64)
    decoded: int = option(64, "Tokens scored behind each text.", least=1)
    texts: int = option(4, "Speeches.", least=1)
    questions: int = option(8, "Pass-keys asked for, and as many UUIDs.", least=1)
    part: int = option(8, "One token in so many is read in a step.", least=2)
    lengths: tuple[int, int] = option((6144, 12288), "Tokens within the trained length, and beyond.", least=64)

    def arms(self, run: Run) -> dict[str, Policy]:
        """The votes at both places; choices used again; two lengths."""
        entries = self.length // self.part
        reused = {f"theta {theta:g}": replace(TokenSelect().at(entries), theta=theta) for theta in THETAS}
        lengths = {f"{name}, {n} tokens": policy for n in self.lengths for name, policy in LONG.items()}
        return {
            "full-cache": FullCache(),
            "streaming-llm": StreamingLLM(budget=entries),
            **voting(entries),
            **reused,
            **lengths,
        }

    def _voting(self, run: Run) -> list[str]:
        return [name for name in run.arms if not name.startswith("theta") and not name.endswith("tokens")]

    def measures(self, run: Run) -> Iterator[Measure]:
        """Perplexity and needles of the votes, hits of choices, perplexity at both lengths."""
        scale = self.length, self.texts, self.decoded
        yield continuation_scores(*scale, arms=self._voting(run))
        yield needles(self.length, self.questions, arms=self._voting(run))
        yield continuation_scores(*scale, name="hits", arms=[f"theta {theta:g}" for theta in THETAS], hits=hit_rate)
        for n in self.lengths:
            arms = [f"{name}, {n} tokens" for name in LONG]
            yield continuation_scores(n, 2, self.decoded, name=f"perplexity at {n}", arms=arms, corpora=("genesis",))

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Soft against every other vote; choices used again; growth with the length."""
        settings: dict[str, Any] = {"length": self.length, "decoded": self.decoded, "read": self.length // self.part}
        prose = f"long_docs (state_union, inaugural), {self.texts} texts"
        for where, (other, (rule, claim)) in product(PLACES, RIVALS.items()):
            ours, at = f"soft vote, {where}", f"1/{self.part} of the tokens, {where}"
            shared: dict[str, Any] = {
                "ours": ours,
                "rival": other if other in run.arms else f"{other}, {where}",
                "baseline": ["full-cache"],
                "peers": [name for name in self._voting(run) if name not in ("full-cache", ours)],
                "settings": settings,
            }
            yield Comparison(
                metric=f"needles found by the soft vote minus those by {other}, {at}",
                of="found",
                by=POINTS,
                claim=f"{claim} ({where})",
                holds=rule,
                data="pass-keys and UUIDs in speeches, asked for after the text was read",
                **shared,
            )
            yield Comparison(
                metric=f"perplexity of the soft vote over that of {other}, {at}",
                of="nll",
                by=PERPLEXITY,
                data=prose,
                note="baseline and peers are perplexities",
                **shared,
            )
        for theta in THETAS[:-1]:
            hits = bootstrap(run.column(f"theta {theta:g}", "hits"))
            dearer = PERPLEXITY.of_two(run.column(f"theta {theta:g}", "nll"), run.column(NEVER, "nll")).value
            yield Finding(
                metric=f"decoding steps that use a choice again, theta {theta:g}",
                value=hits,
                unit="share",
                n=self.texts,
                baseline={"perplexity over that of a choice in every step": dearer},
                claim=REUSED if theta == 0.9 else "",
                holds=(lambda run, hits=hits, dearer=dearer: hits.value >= 0.5 and dearer < 1.01)
                if theta == 0.9
                else None,
                settings=settings | {"theta": theta},
                data=prose,
            )
        yield self._of_length(run)

    def _of_length(self, run: Run) -> Finding:
        short, long = self.lengths
        names = [f"{name}, {n} tokens" for n in self.lengths for name in LONG]
        quality = {name: float(np.exp(run.column(name, "nll").mean())) for name in names}
        full, ours = (quality[f"{n}, {long} tokens"] / quality[f"{n}, {short} tokens"] for n in LONG)
        return Finding(
            metric=f"perplexity at {long} tokens over that at {short}, trained length 8192",
            value=ours,
            unit="x",
            more_is_better=False,
            n=2,
            baseline={"full-cache": full},
            peers=quality,
            claim="beyond the trained length the full cache fails and TokenSelect does not",
            holds=lambda run: ours <= 1.1 and full > 1.5,
            settings={"lengths": list(self.lengths), "read": 2048, "decoded": self.decoded},
            data="long_docs (genesis, English)",
            note="peers are perplexities; other text is scored at each length",
        )

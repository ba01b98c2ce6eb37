"""Does voting by softmax find what other choices of as many tokens miss, how often is a choice good for the next token,
and does a text beyond the trained length stay readable?

Speeches, 2,048 tokens read and 64 decoded, one token in eight read in every step; the length check goes from 6,144 to
12,288 tokens, the model was trained on 8,192. Reading the chosen tokens side by side, as published, costs this small
model much within its trained length, so the votes are compared at true distances, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mintage.bench.keep.trial import Trial, perplexity, perplexity_ratio, silent, telling
from mintage.keep.baselines import FullCache, StreamingLLM
from mintage.keep.contract import Policy
from mintage.keep.token_select import TokenSelect, hit_rate
from mintage.measure import Figure, Result, bootstrap

__all__ = ["Blocks", "Drawn", "check"]

LENGTH, DECODED, TEXTS, QUESTIONS = 2048, 64, 4, 8
PART = 8
THETAS = (0.8, 0.9, 0.95, 1.01)
SHORT, LONG = 6144, 12288

RIVALS = {
    "hard vote": "the soft vote finds at least as many needles as the hard vote",
    "blocks of 16": "the soft vote over tokens finds at least as many needles as over blocks of 16",
    "random choice": "the soft vote finds more needles than a random choice of as many tokens",
    "streaming-llm": "the soft vote finds more needles than a window of as many tokens",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks(TokenSelect):
    """The same with whole blocks of tokens, voted on by their mean key."""

    block: int = 16

    def count(self, scores: Tensor) -> Tensor:
        """Give all tokens of a block its votes, the earlier ones a hair more so that a block is taken in order."""
        number = scores.shape[-1]
        short = -number % self.block
        padded = torch.nn.functional.pad(scores, (0, short), value=float("nan"))
        means = padded.unflatten(-1, (-1, self.block)).nanmean(-1)
        ballots = super().count(means).repeat_interleave(self.block, -1)[..., :number]
        return ballots * (1 - 1e-6 * (torch.arange(number, device=scores.device) % self.block))


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn(TokenSelect):
    """The same with tokens drawn at random."""

    def count(self, scores: Tensor) -> Tensor:
        """Vote by lot, the same lot for the same text."""
        generator = torch.Generator().manual_seed(scores.shape[-1])
        return torch.rand(scores.shape[0], scores.shape[-1], generator=generator).to(scores.device)


PLACES = {"as published": True, "true distances": False}
"""Whether chosen tokens are read side by side, or where they stand."""


def _arms() -> dict[str, Policy]:
    entries = LENGTH // PART
    arms: dict[str, Policy] = {"streaming-llm": StreamingLLM(budget=entries)}
    for where, reassign in PLACES.items():
        arms |= {
            f"soft vote, {where}": TokenSelect(reassign=reassign).at(entries),
            f"hard vote, {where}": TokenSelect(vote="hard", reassign=reassign).at(entries),
            f"blocks of 16, {where}": Blocks(reassign=reassign).at(entries),
            f"random choice, {where}": Drawn(reassign=reassign).at(entries),
        }
    return arms


def check(
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = silent,
    model: str = "smollm2",
    work: Path | None = None,
) -> list[Result | Figure]:
    """Run the check; `limit` is the number of texts (default 4)."""
    texts = limit or TEXTS
    arms = {"full-cache": FullCache(), **_arms()}
    trial = Trial(
        "token-select",
        seed=seed,
        command=command,
        definition={"length": LENGTH, "decoded": DECODED, "texts": texts},
        total=(texts + 2 * QUESTIONS) * len(arms) + texts * len(THETAS) + 4 * 2,
        progress=progress,
        model=model,
        work=work,
    )
    nll = {name: rows["nll"] for name, rows in trial.decoded(arms, LENGTH, texts, DECODED).items()}
    found = trial.found(arms, LENGTH, QUESTIONS)
    settings: dict[str, Any] = {"length": LENGTH, "decoded": DECODED, "read": LENGTH // PART}
    results: list[Result | Figure] = []
    scores = {name: 100 * float(np.mean(held)) for name, held in found.items()}
    quality = {name: perplexity(held) for name, held in nll.items()}
    for where, (other, claim) in product(PLACES, RIVALS.items()):
        ours = f"soft vote, {where}"
        rival = other if other in found else f"{other}, {where}"
        gap = bootstrap(found[ours] - found[rival])
        least = gap.value >= 0 if "at least" in claim else gap.low > 0
        results.append(
            trial.result(
                metric=f"needles found by the soft vote minus those by {other}, 1/{PART} of the tokens, {where}",
                value=100 * gap.value,
                unit="points",
                higher_is_better=True,
                interval=(100 * gap.low, 100 * gap.high),
                n=len(found[ours]),
                baseline={"full-cache": scores["full-cache"]},
                peers={name: score for name, score in scores.items() if name not in ("full-cache", ours)},
                claim=f"{claim} ({where})",
                verdict="holds" if least else "does not hold",
                settings=settings,
                data="pass-keys and UUIDs in speeches, asked for after the text was read",
            )
        )
        ratio = perplexity_ratio(nll[ours], nll[rival])
        results.append(
            trial.result(
                metric=f"perplexity of the soft vote over that of {other}, 1/{PART} of the tokens, {where}",
                value=ratio.value,
                unit="x",
                higher_is_better=False,
                interval=ratio.bounds,
                n=texts,
                baseline={"full-cache": quality["full-cache"]},
                peers={name: value for name, value in quality.items() if name not in ("full-cache", ours)},
                settings=settings,
                data=f"long_docs (state_union, inaugural), {texts} texts",
                note="baseline and peers are perplexities",
            )
        )
    results += _of_reuse(trial, texts, settings)
    results += _of_length(trial)
    trial.memo.delete()
    return results


def _of_reuse(trial: Trial, texts: int, settings: dict[str, Any]) -> list[Result | Figure]:
    """How often a choice is used again, and what that costs."""
    arms: dict[str, Policy] = {
        f"theta {theta:g}": replace(TokenSelect().at(LENGTH // PART), theta=theta) for theta in THETAS
    }
    found = trial.decoded(arms, LENGTH, texts, DECODED, measure=telling("hits", hit_rate))
    never = found[f"theta {THETAS[-1]:g}"]["nll"]
    results: list[Result | Figure] = []
    for theta in THETAS[:-1]:
        rows = found[f"theta {theta:g}"]
        hits, ratio = bootstrap(rows["hits"]), perplexity_ratio(rows["nll"], never)
        told = {}
        if theta == 0.9:
            told = {
                "claim": "at theta 0.9 half of the choices are used again, at less than 1% more perplexity",
                "verdict": "holds" if hits.value >= 0.5 and ratio.value < 1.01 else "does not hold",
            }
        results.append(
            trial.result(
                **told,
                metric=f"decoding steps that use a choice again, theta {theta:g}",
                value=hits.value,
                unit="share",
                higher_is_better=True,
                interval=hits.bounds,
                n=texts,
                baseline={"perplexity over that of a choice in every step": ratio.value},
                settings=settings | {"theta": theta},
                data=f"long_docs (state_union, inaugural), {texts} texts",
            )
        )
    return results


def _of_length(trial: Trial) -> list[Result | Figure]:
    """Perplexity within and beyond the trained length."""
    arms: dict[str, Policy] = {"full-cache": FullCache(), "token-select": TokenSelect(top_k=1408)}
    nll: dict[tuple[int, str], np.ndarray] = {}
    for length in (SHORT, LONG):
        for name, rows in trial.decoded(arms, length, 2, DECODED, corpora=("genesis",)).items():
            nll[length, name] = rows["nll"]
    values = {f"{name}, {length} tokens": perplexity(held) for (length, name), held in nll.items()}
    grown = {name: perplexity(nll[LONG, name]) / perplexity(nll[SHORT, name]) for name in arms}
    return [
        trial.result(
            metric=f"perplexity at {LONG} tokens over that at {SHORT}, trained length 8192",
            value=grown["token-select"],
            unit="x",
            higher_is_better=False,
            baseline={"full-cache": grown["full-cache"]},
            peers=values,
            n=2,
            claim="beyond the trained length the full cache fails and TokenSelect does not",
            verdict="holds" if grown["token-select"] <= 1.1 and grown["full-cache"] > 1.5 else "does not hold",
            settings={"lengths": [SHORT, LONG], "read": 2048, "decoded": DECODED},
            data="long_docs (genesis, English)",
            note="peers are perplexities; other text is scored at each length",
        )
    ]

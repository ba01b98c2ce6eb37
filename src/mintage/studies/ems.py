"""Does evict-then-merge keep more than eviction alone, by perplexity and by needles asked for afterwards?

Speeches, 1,536 tokens read and 64 decoded; room for 64, 128 and 256 entries per head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from mintage.bench.keep.measures import Trial, perplexity, perplexity_ratio, silent
from mintage.keep.baselines import H2O, FullCache, RandomEviction, SnapKV, StreamingLLM
from mintage.keep.contract import Policy
from mintage.keep.ems import EMS
from mintage.measure import Figure, Result, bootstrap

__all__ = ["check"]

LENGTH, DECODED, TEXTS, QUESTIONS = 1536, 64, 4, 5
BUDGETS = (64, 128, 256)

VARIANTS = {
    "evict only": {"tau": 2.0},
    "merge values": {"merge": "values"},
    "merge and count": {"correct_mass": True},
}
"""What EMS consists of, switched off or on one by one."""


def _arms(budget: int) -> dict[str, Policy]:
    ours = EMS(budget=budget)
    return {
        "ems": ours,
        **{name: replace(ours, **settings) for name, settings in VARIANTS.items()},
        "streaming-llm": StreamingLLM(budget=budget),
        "h2o": H2O(budget=budget),
        "snapkv": SnapKV(budget=budget),
        "random-eviction": RandomEviction(budget=budget),
    }


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
    number = len(_arms(BUDGETS[0]))
    trial = Trial(
        "ems",
        seed=seed,
        command=command,
        definition={"length": LENGTH, "decoded": DECODED, "texts": texts},
        total=(texts + 2 * QUESTIONS) * (number * len(BUDGETS) + 1),
        progress=progress,
        model=model,
        work=work,
    )
    arms: dict[str, Policy] = {"full-cache": FullCache()}
    arms |= {f"{name}, {budget}": policy for budget in BUDGETS for name, policy in _arms(budget).items()}
    nll = {name: rows["nll"] for name, rows in trial.decoded(arms, LENGTH, texts, DECODED).items()}
    found = trial.found(arms, LENGTH, QUESTIONS)
    settings = {"length": LENGTH, "decoded": DECODED}
    results: list[Result | Figure] = []
    for budget in BUDGETS:
        names = [name.partition(",")[0] for name in arms if name.endswith(f", {budget}")]
        scores = {name: float(np.mean(found[f"{name}, {budget}"])) for name in names}
        quality = {name: perplexity(nll[f"{name}, {budget}"]) for name in names}
        rivals = ("streaming-llm", "h2o", "snapkv", "random-eviction")
        best = max(rivals, key=lambda name: (scores[name], -quality[name]))
        gap = bootstrap(found[f"ems, {budget}"] - found[f"{best}, {budget}"])
        results.append(
            trial.result(
                metric=f"needles found by EMS minus those by the best rival, room for {budget}",
                value=100 * gap.value,
                unit="points",
                higher_is_better=True,
                interval=(100 * gap.low, 100 * gap.high),
                n=len(found[f"ems, {budget}"]),
                baseline={"full-cache": 100 * float(np.mean(found["full-cache"])), best: 100 * scores[best]},
                peers={name: 100 * score for name, score in scores.items()},
                claim=f"EMS finds more needles than the best rival with room for {budget} entries",
                verdict="holds" if gap.low > 0 else "does not hold",
                settings=settings,
                data="pass-keys and UUIDs in speeches, asked for after compression",
                note="the rival was chosen after the fact, to EMS's disadvantage",
            )
        )
        for other, claim in (
            ("evict only", f"merging lowers perplexity against the same scores without it, room for {budget}"),
            ("h2o", f"EMS has lower perplexity than H2O, room for {budget}"),
            ("snapkv", f"EMS has lower perplexity than SnapKV, room for {budget}"),
            ("streaming-llm", f"EMS has lower perplexity than a window, room for {budget}"),
        ):
            ratio = perplexity_ratio(nll[f"ems, {budget}"], nll[f"{other}, {budget}"])
            results.append(
                trial.result(
                    metric=f"perplexity of EMS over that of {other}, room for {budget}",
                    value=ratio.value,
                    unit="x",
                    higher_is_better=False,
                    interval=ratio.bounds,
                    n=texts,
                    baseline={"full-cache": perplexity(nll["full-cache"])},
                    peers=quality,
                    claim=claim,
                    verdict="holds" if ratio.high < 1 else "does not hold",
                    settings=settings,
                    data=f"long_docs (state_union, inaugural), {texts} texts",
                    note="baseline and peers are perplexities",
                )
            )
    trial.memo.delete()
    return results

"""Do a few calibrated channels find the tokens that all channels would find?

Speeches, 2,048 tokens read and 96 decoded; the calibration is the shipped one, made on other text (WikiText-2). Oracle
is the same method with all channels of a head as labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mintage.bench.keep.trial import Trial, perplexity, perplexity_ratio, silent, telling
from mintage.keep.baselines import H2O, FullCache, StreamingLLM
from mintage.keep.contract import Policy
from mintage.keep.double_sparsity import ChannelOrder, DoubleSparsity, prefetch_rate
from mintage.measure import Figure, Result, bootstrap

__all__ = ["check"]

LENGTH, DECODED, TEXTS, QUESTIONS = 2048, 96, 5, 20
PARTS = (8, 16)
CHANNELS = (16, 8, 4)


def _arms(part: int, layers: int, heads: int, dim: int) -> dict[str, Policy]:
    top_k = LENGTH // part
    ours = DoubleSparsity(top_k=top_k)
    mixed = torch.rand(layers, heads, dim, generator=torch.Generator().manual_seed(0))
    arms: dict[str, Policy] = {"oracle": replace(ours, label_channels=dim)}
    arms |= {f"r={r}": replace(ours, label_channels=r) for r in CHANNELS}
    arms |= {
        "r=16, 4-bit labels": replace(ours, label_bits=4),
        "16 random channels": replace(ours, channels=ChannelOrder(mixed)),
        "streaming-llm": StreamingLLM(budget=top_k),
        "h2o": H2O(budget=top_k),
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
    """Run the check; `limit` is the number of texts (default 5)."""
    texts = limit or TEXTS
    trial = Trial(
        "double-sparsity",
        seed=seed,
        command=command,
        definition={"length": LENGTH, "decoded": DECODED, "texts": texts},
        total=texts * (2 * 8 + 2) + 2 * QUESTIONS * 6,
        progress=progress,
        model=model,
        work=work,
    )
    config = trial.lm.model.config
    shape = config.num_hidden_layers, config.num_attention_heads, config.hidden_size // config.num_attention_heads
    arms = {(part, name): policy for part in PARTS for name, policy in _arms(part, *shape).items()}
    named: dict[str, Policy] = {f"{name}, 1/{part}": policy for (part, name), policy in arms.items()}
    decoded = trial.decoded({"full-cache": FullCache()} | named, LENGTH, texts, DECODED)
    nll = {name: rows["nll"] for name, rows in decoded.items()}
    dense = perplexity(nll["full-cache"])
    settings = {"length": LENGTH, "decoded": DECODED, "calibration": "shipped (WikiText-2)"}
    data = f"long_docs (state_union, inaugural), {texts} texts"
    common = {"settings": settings, "data": data, "n": texts, "unit": "x", "higher_is_better": False}
    results: list[Result | Figure] = []
    for part in PARTS:
        oracle = nll[f"oracle, 1/{part}"]
        peers = {name.partition(",")[0]: perplexity(v) for name, v in nll.items() if name.endswith(f", 1/{part}")}
        for r in CHANNELS:
            ratio = perplexity_ratio(nll[f"r={r}, 1/{part}"], oracle)
            told = (
                {
                    "claim": f"{r} label channels are within 4% of all channels in perplexity, 1/{part} of the tokens",
                    "verdict": "holds" if ratio.value <= 1.04 else "does not hold",
                }
                if r == 16
                else {}
            )
            results.append(
                trial.result(
                    **common,
                    **told,
                    metric=f"perplexity with {r} label channels over that with all, 1/{part} of the tokens",
                    value=ratio.value,
                    interval=ratio.bounds,
                    baseline={"full-cache": dense},
                    peers=peers,
                    note="baseline and peers are perplexities",
                )
            )
        window = perplexity_ratio(nll[f"streaming-llm, 1/{part}"], nll[f"r=16, 1/{part}"])
        told = (
            {
                "claim": "a window of as many tokens has at least 15% more perplexity at 1/16",
                "verdict": "holds" if window.value >= 1.15 else "does not hold",
            }
            if part == 16
            else {}
        )
        results.append(
            trial.result(
                **common | {"higher_is_better": True},
                **told,
                metric=f"perplexity of a window over that of Double Sparsity, r=16, 1/{part} of the tokens",
                value=window.value,
                interval=window.bounds,
                baseline={"full-cache": dense},
            )
        )
    asked: dict[str, Policy] = {
        "full-cache": FullCache(),
        **{name: policy for (part, name), policy in arms.items() if part == 16 and name in _ASKED},
    }
    found = trial.found(asked, LENGTH, QUESTIONS)
    lost = bootstrap(found["r=16"] - found["full-cache"])
    window_lost = bootstrap(found["streaming-llm"] - found["full-cache"])
    results.append(
        trial.result(
            metric="needles found with r=16 minus those with the full cache, 1/16 of the tokens",
            value=100 * lost.value,
            unit="points",
            higher_is_better=True,
            interval=(100 * lost.low, 100 * lost.high),
            n=len(found["r=16"]),
            baseline={"full-cache": 100 * float(found["full-cache"].mean())},
            peers={name: 100 * float(np.mean(v)) for name, v in found.items() if name != "full-cache"},
            claim="needles are found within 5 points of the full cache where a window of as many tokens fails",
            verdict="holds" if lost.value >= -5 / 100 and window_lost.high < -0.05 else "does not hold",
            settings=settings,
            data="pass-keys and UUIDs in speeches, asked for after the text was read",
        )
    )
    ahead = replace(arms[16, "r=16"], offload=True, prefetch=True)
    fetched = trial.decoded({"ahead": ahead}, LENGTH, texts, DECODED, measure=telling("rate", prefetch_rate))["ahead"]
    if np.isfinite(fetched["rate"]).all():  # the first layers read everything, and a small model may have no others
        rate = bootstrap(100 * fetched["rate"])
        results.append(
            trial.result(
                **common | {"unit": "%", "higher_is_better": True},
                metric="rows that had been fetched when their layer read them, 1/16 of the tokens",
                value=rate.value,
                interval=rate.bounds,
                baseline={"without a guess": 0.0},
                note="of the cache in the host's memory; guessed from what enters the layer before",
            )
        )
    trial.memo.delete()
    return results


_ASKED = ("oracle", "r=16", "r=8", "16 random channels", "streaming-llm")

"""Double Sparsity: do a few calibrated channels find the tokens that all channels would find?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mintage.bench.keep.measures import KeepStudy, continuation_scores, needles
from mintage.keep.baselines import H2O, FullCache, StreamingLLM
from mintage.keep.contract import Policy
from mintage.keep.double_sparsity import ChannelOrder, DoubleSparsity, prefetch_rate
from mintage.measure import bootstrap
from mintage.measure.study import PERPLEXITY, POINTS, Comparison, Finding, Measure, Run, at_least, at_most
from mintage.options import option

__all__ = ["DoubleSparsityStudy"]

PARTS = (8, 16)
"""One token in so many is read in a step."""

CHANNELS = (16, 8, 4)
ASKED = ("oracle", "r=16", "r=8", "16 random channels", "streaming-llm")
"""What needles are asked of, at 1/16."""

MORE = replace(PERPLEXITY, more_is_better=True)


@dataclass(frozen=True, kw_only=True)
class DoubleSparsityStudy(KeepStudy):
    """Do a few calibrated channels find the tokens that all channels would find?

    On speeches; the calibration is the shipped one, made on other text (WikiText-2). Oracle is the same method with all
    channels of a head as labels.

    [dim]Example[/dim]

      mintage bench double-sparsity --texts 2 --questions 5
    """

    method = "double-sparsity"

    length: int = option(2048, "Tokens read before decoding.", least=64)
    decoded: int = option(96, "Tokens scored behind each text.", least=1)
    texts: int = option(5, "Speeches.", least=1)
    questions: int = option(20, "Pass-keys asked for, and as many UUIDs.", least=1)
    channels: str = option("smollm2", "Calibration: the model of one that ships, or a file.")

    def arms(self, run: Run) -> dict[str, Policy]:
        """Label channels by number and choice, and two that drop entries, at every part; the full cache."""
        arms: dict[str, Policy] = {"full-cache": FullCache()}
        for part in PARTS:
            arms |= {f"{name}, 1/{part}": policy for name, policy in self._reading(run, self.length // part).items()}
        ours = DoubleSparsity(top_k=self.length // 16, channels=self.channels)
        ahead = replace(ours, label_channels=16, offload=True, prefetch=True)
        return arms | {"fetched ahead": ahead}

    def _reading(self, run: Run, top_k: int) -> dict[str, Policy]:
        config = run.subject.model.config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        dim = config.hidden_size // heads
        mixed = torch.rand(layers, heads, dim, generator=torch.Generator().manual_seed(0))
        ours = DoubleSparsity(top_k=top_k, channels=self.channels)
        return {
            "oracle": replace(ours, label_channels=dim),
            **{f"r={r}": replace(ours, label_channels=r) for r in CHANNELS},
            "r=16, 4-bit labels": replace(ours, label_bits=4),
            "16 random channels": replace(ours, channels=ChannelOrder(mixed)),
            "streaming-llm": StreamingLLM(budget=top_k),
            "h2o": H2O(budget=top_k),
        }

    def measures(self, run: Run) -> Iterator[Measure]:
        """Perplexity of all, needles of some, and how often a row had been fetched when it was read."""
        yield continuation_scores(
            self.length, self.texts, self.decoded, arms=[name for name in run.arms if name != "fetched ahead"]
        )
        yield needles(self.length, self.questions, arms=["full-cache", *(f"{name}, 1/16" for name in ASKED)])
        yield continuation_scores(
            self.length, self.texts, self.decoded, name="prefetch", arms=["fetched ahead"], rate=prefetch_rate
        )

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Fewer channels against all, a window against ours, needles, prefetching."""
        calibration = "shipped (WikiText-2)" if self.channels == "smollm2" else Path(self.channels).name
        settings = {"length": self.length, "decoded": self.decoded, "calibration": calibration}
        shared = {"settings": settings, "data": f"long_docs (state_union, inaugural), {self.texts} texts"}
        for part in PARTS:
            alike = [name for name in run.arms if name.endswith(f", 1/{part}")]
            for r in CHANNELS:
                claim = f"{r} label channels are within 4% of all channels in perplexity, 1/{part} of the tokens"
                yield Comparison(
                    metric=f"perplexity with {r} label channels over that with all, 1/{part} of the tokens",
                    ours=f"r={r}, 1/{part}",
                    rival=f"oracle, 1/{part}",
                    of="nll",
                    by=PERPLEXITY,
                    baseline=["full-cache"],
                    peers={name.rpartition(",")[0]: name for name in alike},
                    note="baseline and peers are perplexities",
                    claim=claim if r == 16 else "",
                    holds=at_most(1.04) if r == 16 else None,
                    **shared,
                )
            yield Comparison(
                metric=f"perplexity of a window over that of Double Sparsity, r=16, 1/{part} of the tokens",
                ours=f"streaming-llm, 1/{part}",
                rival=f"r=16, 1/{part}",
                of="nll",
                by=MORE,
                baseline=["full-cache"],
                claim="a window of as many tokens has at least 15% more perplexity at 1/16" if part == 16 else "",
                holds=at_least(1.15) if part == 16 else None,
                **shared,
            )

        def found(run: Run) -> bool:
            ours, window, full = (
                run.column(arm, "found") for arm in ("r=16, 1/16", "streaming-llm, 1/16", "full-cache")
            )
            return POINTS.of_two(ours, full).value >= -5 and POINTS.of_two(window, full).high < -5

        yield Comparison(
            metric="needles found with r=16 minus those with the full cache, 1/16 of the tokens",
            ours="r=16, 1/16",
            rival="full-cache",
            of="found",
            by=POINTS,
            baseline=["full-cache"],
            peers={name: f"{name}, 1/16" for name in ASKED},
            claim="needles are found within 5 points of the full cache where a window of as many tokens fails",
            holds=found,
            settings=settings,
            data="pass-keys and UUIDs in speeches, asked for after the text was read",
        )
        rate = run.column("fetched ahead", "rate")
        yield Finding(
            metric="rows that had been fetched when their layer read them, 1/16 of the tokens",
            value=lambda run: bootstrap(100 * rate),
            unit="%",
            n=self.texts,
            baseline={"without a guess": 0.0},
            note="of the cache in the host's memory; guessed from what enters the layer before",
            when=lambda run: bool(np.isfinite(rate).all()),  # the first layers read all; a small model has no others
            **shared,
        )

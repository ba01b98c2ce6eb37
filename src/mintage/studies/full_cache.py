"""The full cache: from which length of the context on does a policy decode faster than it?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mintage.bench.keep.measures import KeepStudy
from mintage.bench.keep.speed import MEDIAN_RATIO, breakeven, column_at, seconds_at
from mintage.keep.baselines import FullCache, SnapKV, StreamingLLM
from mintage.keep.contract import Policy
from mintage.keep.double_sparsity import DoubleSparsity
from mintage.keep.token_select import TokenSelect
from mintage.measure import Figure, Interval
from mintage.measure.figure import curve
from mintage.measure.study import Comparison, Finding, Measure, Run
from mintage.options import option

__all__ = ["FullCacheStudy"]

FULL, TORCH = "full-cache", "double-sparsity, torch operations"
SPARSE = ("double-sparsity", "token-select")


@dataclass(frozen=True, kw_only=True)
class FullCacheStudy(KeepStudy):
    """From which length of the context on does a policy decode faster than the full cache?

    One long speech is read once; every policy is given its first 512, 1,024, ... tokens and timed on those behind them,
    all policies at one length in turn, turn after turn. Only time is measured here: what a policy forgets is the other
    studies' question.

    [dim]Example[/dim]

      mintage bench full-cache --turns 3 --lengths 512,1024
    """

    method = FULL

    lengths: tuple[int, ...] = option((512, 1024, 2048, 4096, 8192), "Tokens of context.", least=64)
    part: int = option(16, "One token in so many is read, or kept.", least=2)
    turns: int = option(5, "Turns of every policy at each length.", least=1)
    timed: int = option(12, "Tokens decoded in a turn.", least=4)
    channels: str = option(
        "smollm2", "Calibration of double-sparsity: the model that mintage ships one for, or a file."
    )

    def common(self, run: Run) -> dict[str, Any]:
        """One text, one way of timing."""
        return {
            "model": self.model,
            "settings": {"read": f"1/{self.part}", "timed": self.timed, "dtype": "bfloat16"},
            "data": "one speech (long_docs), its first tokens",
        }

    def arms(self, run: Run) -> dict[str, Policy]:
        """Two that read less, one of them by torch operations, too, and two that hold less."""
        return {
            FULL: FullCache(),
            "double-sparsity": DoubleSparsity(channels=self.channels),
            TORCH: DoubleSparsity(channels=self.channels, kernel="torch"),
            "token-select": TokenSelect(),
            "streaming-llm": StreamingLLM(),
            "snapkv": SnapKV(),
        }

    def measures(self, run: Run) -> Iterator[Measure]:
        """Seconds per token, length by length; column ``N tokens``, by turn."""
        return seconds_at(self.lengths, part=self.part, turns=self.turns, tokens=self.timed)

    def _ratios(self, run: Run, arm: str) -> dict[int, Interval]:
        return {
            n: MEDIAN_RATIO.of_two(run.column(arm, column_at(n)), run.column(FULL, column_at(n))) for n in self.lengths
        }

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Every policy over the full cache at every length, the breakeven, the compiled step over torch operations."""
        note = "policies that read prompts sparsely start from plainly read keys: as many, of other values"
        for arm in [*run.arms][1:]:
            for length in self.lengths:
                yield Comparison(
                    method=FULL if arm == TORCH else arm,
                    metric=f"{arm}: decode time over the full cache's, {length} tokens, 1/{self.part} read",
                    ours=arm,
                    rival=FULL,
                    of=column_at(length),
                    by=MEDIAN_RATIO,
                    baseline={f"{FULL}, ms per token": FULL},
                    note=note,
                )
        most = max(self.lengths)
        ratios = {arm: self._ratios(run, arm) for arm in [*run.arms][1:]}
        faster = {arm: breakeven(ratios[arm]) for arm in ratios}
        first = min((n for arm in SPARSE if (n := faster[arm]) is not None), default=None)
        yield Finding(
            metric=f"decode time over the full cache's of the fastest policy that drops nothing, {most} tokens",
            value=min((ratios[arm][most] for arm in SPARSE), key=lambda ratio: ratio.value),
            unit="x",
            more_is_better=False,
            n=self.turns,
            claim="From 4,096 tokens on a policy that drops nothing decodes faster than the full cache",
            holds=lambda run: first is not None and first <= 4096,
            note=f"faster from (tokens): {faster}",
        )
        for length in self.lengths:
            yield Comparison(
                method="double-sparsity",
                metric=f"decode time of the compiled step over that of torch operations, {length} tokens",
                ours="double-sparsity",
                rival=TORCH,
                of=column_at(length),
                by=MEDIAN_RATIO,
                note=note,
            )

    def figures(self, run: Run) -> Iterator[Figure]:
        """Milliseconds per token by length."""
        faster = {arm: breakeven(self._ratios(run, arm)) for arm in [*run.arms][1:]}
        series = {
            arm: [(n, MEDIAN_RATIO.of_one(run.column(arm, column_at(n))).value) for n in self.lengths]
            for arm in run.arms
        }
        yield run.figure(
            name="decode-time-by-length",
            title=f"Milliseconds per decoded token, 1/{self.part} of the context read or kept",
            caption="Median over turns; one text, all policies in one process, in rotating order. "
            + "; ".join(f"{arm}: {f'faster from {n}' if n else 'not faster'}" for arm, n in faster.items()),
            **curve("tokens of context", "ms per token", series),
        )

"""Seconds of attention that reads few keys over those of dense attention, as images grow.

Not here: attention itself (`mintage.reduce.core.sparse_attention`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from mintage.measure.figure import Figure, curve
from mintage.measure.statistics import Interval, bootstrap_ratio
from mintage.measure.study import Finding, Run
from mintage.measure.timing import paired_time
from mintage.reduce.core.connectivity import ConnectivityPredictor
from mintage.reduce.core.sparse_attention import connectivity_mask, gather_attention, masked_attention

__all__ = ["AttentionSpeed", "attention_seconds"]

SMALL = 197
"""Tokens at which sparse attention is claimed not to pay."""

_LONGEST = 4097
"""Of what makes a square matrix: masks, and predictors, whose work grows with the cube."""


@dataclass(frozen=True, kw_only=True)
class AttentionSpeed:
    """Sparse attention timed against dense attention, with a quarter of the keys and with a fixed number.

    Parameters
    ----------
    heads, dim
        Attention heads and their width.
    lengths
        Tokens.
    read
        Keys per query where the number is fixed while the length grows.
    rounds
        Timed rounds per length.
    """

    heads: int
    dim: int
    lengths: tuple[int, ...]
    read: int
    rounds: int

    @property
    def kinds(self) -> tuple[str, str]:
        """How many keys are read, as rows say it."""
        return "25%", f"{self.read} keys"

    def speeds(self, run: Run, kind: str) -> dict[str, dict[int, Interval]]:
        """Dense attention's seconds over each backend's, by length; measured once per run."""
        made: dict[str, dict[int, Interval]] = {"masked": {}, "gather": {}, "gather and predictor": {}}
        for done, tokens in enumerate(self.lengths):
            read = math.ceil(tokens / 4) if kind == "25%" else self.read
            run.progress(f"attention, {kind}", done, len(self.lengths))
            sizes = {"heads": self.heads, "dim": self.dim, "rounds": self.rounds, "seed": run.seed}
            seconds = run.memo(f"seconds {tokens} {read}", partial(attention_seconds, tokens, read, **sizes)) or {}
            for backend in seconds.keys() - {"dense"}:
                made[backend][tokens] = bootstrap_ratio(seconds["dense"], seconds[backend], of="median")
        return made

    def row(self, run: Run, kind: str) -> Finding:
        """Make the row of one kind: the longest that could be gathered, and from where on each backend pays."""
        speeds = self.speeds(run, kind)
        longest = max(speeds["gather"])
        small = [ratios[SMALL] for ratios in speeds.values() if SMALL in ratios]
        claim = f"sparse attention without structure is no faster than dense attention at {SMALL} tokens, {kind}"
        return Finding(
            metric=f"speed of attention that gathers the keys it reads over dense attention, {kind}, {longest} tokens",
            value=speeds["gather"][longest],
            unit="x",
            n=self.rounds,
            baseline={"dense": 1.0},
            peers={
                f"{backend}, {max(ratios)} tokens": ratios[max(ratios)].value
                for backend, ratios in speeds.items()
                if backend != "gather" and ratios
            },
            claim=claim if small else "",
            holds=(lambda run: all(ratio.low <= 1 for ratio in small)) if small else None,
            note="; ".join(_pays(backend, ratios) for backend, ratios in speeds.items() if ratios),
            data=f"random tensors, {self.heads} heads of {self.dim}, one image",
        )

    def figure(self, run: Run) -> Figure:
        """Make the figure of speed against length."""
        series = {
            f"{backend}, {kind}": [(tokens, ratio.value) for tokens, ratio in ratios.items()]
            for kind in self.kinds
            for backend, ratios in self.speeds(run, kind).items()
        }
        return run.figure(
            name="sparse-attention-speed",
            title="Sparse attention against dense attention, as images grow",
            caption="Above 1 is faster than torch's fused attention; medians of paired rounds on one image.",
            **curve("tokens", "dense attention's seconds over its own", series),
        )


def _pays(backend: str, ratios: Mapping[int, Interval]) -> str:
    paying = [tokens for tokens, ratio in ratios.items() if ratio.low > 1]
    return f"{backend} " + (f"pays from {paying[0]} tokens on" if paying else f"never pays to {max(ratios)}")


@torch.no_grad()
def attention_seconds(
    tokens: int, read: int, *, heads: int, dim: int, rounds: int, seed: int
) -> dict[str, list[float]] | None:
    """Time attention of one image on random tensors: dense, and sparse with the predictor's work in it.

    Returns
    -------
    Seconds by round of ``dense``, ``gather`` and, where matrices stay small, ``masked`` and ``gather and predictor``;
    None where gathered keys and values would take more than a gigabyte.
    """
    if heads * tokens * read * dim > 2**26:
        return None
    timings = paired_time(_kernels(tokens, read, heads, dim, seed), repeats=rounds)
    return {name: values.tolist() for name, values in timings.seconds.items()}


def _kernels(tokens: int, read: int, heads: int, dim: int, seed: int) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, heads, tokens, dim, generator=generator).unbind(0)
    scaling = dim**-0.5
    index = torch.randint(tokens, (1, heads, tokens - 1, read), generator=generator)
    kernels: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: functional.scaled_dot_product_attention(query, key, value, scale=scaling),
        "gather": lambda: gather_attention(query, key, value, index, scaling),
    }
    if tokens > _LONGEST:
        return kernels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = ConnectivityPredictor(dim, tokens, heads)
    mask = connectivity_mask(predictor.approximate(query, key)[1], read / tokens)

    def predicted() -> Tensor:
        best = predictor.approximate(query, key)[1].topk(read, sorted=False).indices
        return gather_attention(query, key, value, best, scaling)

    return kernels | {
        "masked": lambda: masked_attention(query, key, value, mask, scaling),
        "gather and predictor": predicted,
    }

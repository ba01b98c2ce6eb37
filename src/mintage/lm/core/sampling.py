"""How a symbol is chosen: transformers' own warpers, seeded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mintage.errors import UserError, did_you_mean
from mintage.options import Options, option

__all__ = ["Sampling"]


@dataclass(frozen=True, kw_only=True)
class Sampling(Options):
    """Settings of writing, named as in transformers."""

    max_new_tokens: int = option(256, "Bytes to write.", least=0)
    do_sample: bool = option(False, "Draw symbols; else the likeliest is taken.")
    temperature: float = option(1.0, "Below 1 sharpens.", above=0)
    top_k: int = option(0, "Keep the k likeliest symbols; 0 is off.", least=0)
    top_p: float = option(1.0, "Keep this probability mass; 1 is off.", above=0, most=1)
    seed: int | None = option(None, "Repeats a draw; None takes torch's generator.", least=0, below=2**63)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Sampling:
        """Make it from keywords.

        Raises
        ------
        UserError
            One is unknown or out of range.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise UserError(f"generate has no setting {name!r} here; {did_you_mean(name, known)}")
        return cls(**settings)

    def of_row(self, row: int) -> Sampling:
        """Return it for a row of a batch: rows with the same prompt are drawn apart."""
        return self if self.seed is None else dataclasses.replace(self, seed=(self.seed + row) % 2**63)

    def chooser(self) -> Callable[[Float[Tensor, " symbols"]], int]:
        """Return what chooses; its draws follow from the seed."""
        if not self.do_sample:
            return lambda logits: int(logits.argmax())
        warpers = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        nothing = torch.empty(1, 0, dtype=torch.long)

        def choose(logits: Float[Tensor, " symbols"]) -> int:
            shares = warpers(nothing, logits.float().cpu()[None]).softmax(-1)  # pyright: ignore[reportArgumentType]
            return int(torch.multinomial(shares[0], 1, generator=generator))

        return choose

"""Models with any tokenizers that vote byte by byte (Phan et al., ICLR 2025, arXiv 2410.09303, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mintage.errors import UserError
from mintage.options import check_fields, option
from mintage.retrofit.contract import ByteSampler, ByteState
from mintage.retrofit.exact_bytes import ByteLM

__all__ = ["ByteEnsemble"]


@dataclass(frozen=True, eq=False)
class _Joint(ByteState):
    parts: tuple[ByteState, ...]
    logw: NDArray[np.float64]
    rule: str

    def logprobs(self) -> NDArray[np.float64]:
        logp = np.stack([part.logprobs() for part in self.parts])
        if self.rule == "mean":
            return np.logaddexp.reduce(logp + self.logw[:, None], axis=0)
        with np.errstate(invalid="ignore"):
            mixed = (logp * np.exp(self.logw)[:, None]).sum(0)
        return mixed - np.logaddexp.reduce(mixed)

    def advance(self, byte: int) -> _Joint:
        return _Joint(tuple(part.advance(byte) for part in self.parts), self.logw, self.rule)


@dataclass(frozen=True, eq=False)
class ByteEnsemble(ByteSampler):
    """Models with any tokenizers, voting byte by byte."""

    models: Sequence[ByteSampler] = option(help="At least one.")
    weights: Sequence[float | int] | None = option(None, "One per model; default: all alike.")
    rule: Literal["mean", "product"] = option("mean", "Mean of the probabilities, or product of their powers.")

    def __post_init__(self) -> None:
        check_fields(self)
        weights = [1.0] * len(self.models) if self.weights is None else self.weights
        if not self.models or len(weights) != len(self.models) or min(weights) <= 0:
            raise UserError("an ensemble needs at least one model and a weight above 0 for each")

    def start(self, prefix: bytes = b"") -> ByteState:
        """Return the state of all models after a text."""
        weights = np.array([1.0] * len(self.models) if self.weights is None else self.weights, float)
        parts = tuple(model.start(prefix) for model in self.models)
        return _Joint(parts, np.log(weights / weights.sum()), self.rule)

    @classmethod
    def tiny(cls) -> ByteEnsemble:
        """Make one of two small models."""
        return cls([ByteLM.tiny(), ByteLM.tiny(1)], weights=[1, 2])

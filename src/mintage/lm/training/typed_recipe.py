"""What the loop learns of code with types: windows in seeded order, and the weighted loss of both."""

from __future__ import annotations

from torch import Tensor, nn

from mintage.lm.core.code_windows import CodeWindows
from mintage.lm.pycoder import PyCoder

__all__ = ["TypedRecipe"]


class TypedRecipe:
    """Windows of code and types in seeded order; `weight` is as in `PyCoder.forward`."""

    def __init__(
        self, coder: PyCoder, windows: CodeWindows, rows: int, seed: int, *, weight: float | int | None = None
    ) -> None:
        self.module: nn.Module = coder
        self.windows, self.rows, self.seed, self.weight = windows, rows, seed, weight

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a batch of windows."""
        return self.windows.batch(index, self.rows, self.seed)

    def loss(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted loss, and its parts."""
        found = module(*batch, weight=self.weight)
        return found.loss, {name: float(getattr(found, name).detach()) for name in ("code", "types", "penalty")}

"""What methods share that remove tokens layer by layer, as a schedule says: ratios, counts, or a share of the MACs.

Not here: the schedules (`mintage.reduce.core.schedule`), which tokens go (each method's own file).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mintage.errors import UserError
from mintage.options import option
from mintage.reduce.contract import Anatomy, Reducer
from mintage.reduce.core.schedule import Schedule

__all__ = ["SCHEDULE", "Scheduled"]

SCHEDULE = "How many patches stay: ratio=0.9, r=8, r=8-0, counts=196x140x98, or macs=0.65; @3x6 names layers."
"""Help of the field."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scheduled(Reducer):
    """A method whose strength is a `Schedule`."""

    pairs: ClassVar[bool] = False
    """Whether tokens merge in pairs, so that a layer can halve them at most."""

    schedule: Schedule | str = option("ratio=0.9", SCHEDULE)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "schedule", Schedule.of(self.schedule))

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return what the schedule says.

        Raises
        ------
        UserError
            The schedule does not fit the model, or more than halves tokens that merge in pairs.
        """
        kept = Schedule.of(self.schedule).kept(anatomy, hook=self.hook)
        for layer, (before, after) in enumerate(zip((anatomy.patches, *kept), kept, strict=False)):
            if self.pairs and before - after > before // 2:
                raise UserError(
                    f"{self.schedule}: layer {layer} merges {before} tokens into {after}; pairs can halve them at most"
                )
        return kept

    def at(self, share: float, anatomy: Anatomy) -> Reducer:
        """Return this method with the ratio, in the layers of its schedule, that leaves `share` of the MACs."""
        at = Schedule.of(self.schedule).at
        return replace(self, schedule=Schedule(kind="macs", value=share, at=at))

    def unreduced(self) -> Reducer:
        """Return this method with everything kept."""
        return replace(self, schedule="ratio=1")

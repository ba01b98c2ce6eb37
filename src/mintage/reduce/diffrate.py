"""DiffRate: in every block prune some tokens and merge some others, as many as a search by gradient has found best.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023, arXiv 2305.17997.
Between attention and MLP the patches are sorted by the attention that the class token pays them. The least important
are pruned; of those left, the least important merge into the most similar of the others. How many, block by block, is a
*schedule*: two lists of numbers that fit every checkpoint of an architecture (``mintage train diffrate`` finds them).

A model without a class token has no attention of it; the mean attention that a patch receives stands for it there (not
in the paper).

Not here: the search (`mintage.reduce.training.diffrate`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import option
from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState
from mintage.reduce.core.rate_schedule import RateSchedule, read_schedules, shipped_schedules
from mintage.reduce.core.schedule import check_share, nearest_strength

__all__ = ["DiffRate", "RateSchedule", "by_importance", "merge_into_important"]

_LEAST_SIZE = 0.01
_UNIFORM = "ratio="


def by_importance(evidence: Evidence, prefix: int) -> Int[Tensor, "batch patches"]:
    """Sort the patches by the class token's attention to them, averaged over heads, the most important first."""
    row = evidence.row() if prefix else evidence.attention().mean(2)
    return row.detach().mean(1)[:, prefix:].argsort(dim=1, descending=True, stable=True)


@torch.no_grad()
def merge_into_important(
    x: Float[Tensor, "batch patches dim"], keep: int, left: int | None = None
) -> tuple[Int[Tensor, "batch sources"], Float[Tensor, "batch sources"]]:
    """Find for patches `keep` to `left` of a sorted list the most similar of the first `keep`.

    Parameters
    ----------
    x
        The residual stream (not the keys), sorted by importance.
    keep
        How many are destinations.
    left
        Where the sources end; None: at the last.

    Returns
    -------
    index, cosine
        Which one, and how similar.
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = functional.normalize(x.float() if x.dtype.itemsize < 4 else x, dim=-1)
        best = (unit[:, keep:left] @ unit[:, :keep].transpose(1, 2)).max(-1)
    return best.indices, best.values


@dataclass(frozen=True, kw_only=True, eq=False)
class DiffRate(Reducer):
    """Pruning and merging by a learned schedule (Chen et al. 2023).

    A schedule is a `RateSchedule`, a JSON file of one or several (`read_schedules`), or None for those of the
    classifier that ships with mintage. The first is used; `at` starts from the one next to the share that it is asked
    for. ``"ratio=0.9"`` is learned from nothing: see `RateSchedule.uniform`.

    Raises
    ------
    UserError
        The file cannot be read, or the lists are no schedule. On attaching: the model has another number of blocks.
    """

    schedule: RateSchedule | str | None = option(None, "A JSON file of them, or ratio=0.9; default: the shipped ones.")
    prune_kept: tuple[int, ...] = option((), "Tokens that every block's pruning leaves, in the place of a schedule.")
    merge_kept: tuple[int, ...] = option((), "Tokens that every block's merging leaves.")
    clamp_sizes: bool = option(
        False,
        "A merged token adds its size times the cosine to its destination's size: 1 at least, as in the search.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio, found = None, ()
        if self.prune_kept or self.merge_kept:
            if self.schedule is not None:
                raise UserError("pass a schedule, or prune_kept and merge_kept, not both")
            found = (RateSchedule(prune_kept=self.prune_kept, merge_kept=self.merge_kept),)
        elif isinstance(self.schedule, RateSchedule):
            found = (self.schedule,)
        elif self.schedule is not None and self.schedule.startswith(_UNIFORM):
            ratio = _ratio(self.schedule)
        else:
            found = tuple(read_schedules(shipped_schedules() if self.schedule is None else self.schedule))
        object.__setattr__(self, "_known", found)
        object.__setattr__(self, "_uniform", ratio)

    def schedules(self, layers: int, patches: int) -> tuple[RateSchedule, ...]:
        """Return the schedules to choose from for a model and image of these sizes; the first is in use."""
        ratio: float | None = self._uniform  # type: ignore[attr-defined]
        if ratio is not None:
            return (RateSchedule.uniform(layers, patches, ratio),)
        return self._known  # type: ignore[attr-defined]

    def _numbers(self, layers: int, patches: int) -> list[tuple[int, int]]:
        return self.schedules(layers, patches)[0].patches_kept(layers, patches)

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return what the merging of every block leaves."""
        return tuple(left for _, left in self._numbers(anatomy.layers, anatomy.patches))

    @property
    def proportional(self) -> bool:
        """Always."""
        return True

    def reduce(self, state: TokenState, evidence: Evidence, keep: int) -> TokenState:
        """Sort, prune, merge. The mean of a merge counts all its tokens alike, whatever they stand for."""
        pruned, _ = self._numbers(state.layers, state.input_patches)[state.layer]
        state = state.keep(by_importance(evidence, state.prefix)[:, : max(pruned, keep)])
        if keep == state.patches:
            return state
        patches, sizes = state.x[:, state.prefix :], state.size[:, state.prefix :, 0]
        index, cosine = merge_into_important(patches.detach(), keep)
        gain = sizes[:, keep:] * cosine.to(sizes.dtype)
        if self.clamp_sizes:
            gain = gain.clamp_min(1)
        slot = torch.cat([torch.arange(keep, device=index.device).expand(len(index), -1), index], 1)
        merged = state.merge(slot, keep, weighted=False, gain=torch.cat([sizes[:, :keep], gain], 1))
        # unlike tokens shrink a size; the authors' code takes the logarithm of what may be negative then
        return replace(merged, size=merged.size.clamp_min(_LEAST_SIZE))

    def at(self, share: float, anatomy: Anatomy) -> DiffRate:
        """Return the known schedule that is next to `share` of the multiply-adds, with one power on all its ratios.

        Raises
        ------
        UserError
            `share` is outside (0, 1], no power reaches it, or the model has another number of blocks.
        """
        check_share(share)

        def cost(schedule: RateSchedule) -> float:
            return schedule.share_of(anatomy)

        options = self.schedules(anatomy.layers, anatomy.patches)
        nearest = min(options, key=lambda schedule: abs(cost(schedule) - share))
        numbers = nearest.patches_kept(anatomy.layers, anatomy.patches)

        def raised(power: float) -> RateSchedule:
            def scaled(column: int) -> tuple[int, ...]:
                ratios = (row[column] / anatomy.patches for row in numbers)
                return tuple(1 + max(math.floor(anatomy.patches * r**power + 0.5), 1) for r in ratios)

            return replace(nearest, prune_kept=scaled(0), merge_kept=scaled(1), patches=anatomy.patches, share=share)

        best = raised(nearest_strength(lambda power: cost(raised(power)), share, 0.0, 16.0))
        if abs(cost(best) - share) > 0.05:
            raise UserError(f"macs={share:g} cannot be reached by this schedule; the nearest is macs={cost(best):.2f}")
        return replace(self, schedule=best, prune_kept=(), merge_kept=())

    def unreduced(self) -> DiffRate:
        """Return this method with everything kept."""
        return replace(self, schedule=f"{_UNIFORM}1", prune_kept=(), merge_kept=())

    @classmethod
    def tiny(cls) -> DiffRate:
        """Return one that keeps four of five patches."""
        return cls(schedule=f"{_UNIFORM}0.8")


def _ratio(text: str) -> float:
    try:
        ratio = float(text.removeprefix(_UNIFORM))
    except ValueError:
        raise UserError(f"schedule={text!r}; pass a share, e.g. {_UNIFORM}0.9, or a file") from None
    RateSchedule.uniform(1, 1, ratio)  # says what is wrong with it
    return ratio

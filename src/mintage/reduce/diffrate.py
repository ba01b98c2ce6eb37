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

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.files import replace_file
from mintage.reduce.contract import Anatomy, Evidence, Reducer, TokenState

__all__ = ["DiffRate", "RateSchedule", "by_importance", "merge_into_important", "read_schedules", "write_schedules"]

SHIPPED = Path(__file__).parents[1] / "assets" / "diffrate-vit-tiny-cifar10.json"
"""Schedules of the classifier that ships with mintage."""

_AGAIN = "mintage train diffrate"
_LEAST_SIZE = 0.01
_UNIFORM = "ratio="


# -- schedules ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """How many tokens each block leaves. Numbers count the class token, as published ones do.

    Parameters
    ----------
    prune_kept
        Tokens that its pruning leaves, by block.
    merge_kept
        Tokens that its merging leaves. A number that is no fewer than what is there already does nothing.
    patches
        Patches of the images that the numbers were found for; others are served in proportion. None: as many as the
        greatest number says.
    share
        Of the model's multiply-adds, that the search was for; None where unknown.
    notes
        How it was found.

    Raises
    ------
    UserError
        No numbers, lists of different lengths, or a number below 2: the class token and a patch.
    """

    prune_kept: tuple[int, ...]
    merge_kept: tuple[int, ...]
    patches: int | None = None
    share: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prune_kept or len(self.prune_kept) != len(self.merge_kept):
            raise UserError(
                f"{len(self.prune_kept)} numbers of prune_kept and {len(self.merge_kept)} of merge_kept; pass one of "
                "each for every block"
            )
        least = min(*self.prune_kept, *self.merge_kept)
        if least < 2:
            raise UserError(f"a block that keeps {least} tokens has no patch beside the class token; keep 2 at least")

    def patches_kept(self, layers: int, patches: int) -> list[tuple[int, int]]:
        """Return by block how many patches its pruning and its merging leave; both never grow.

        Raises
        ------
        UserError
            The model has another number of blocks.
        """
        if layers != len(self.prune_kept):
            raise UserError(
                f"this schedule is for {len(self.prune_kept)} blocks, the model has {layers}; find one with {_AGAIN}"
            )
        own = self.patches or max(*self.prune_kept, *self.merge_kept) - 1
        found, left = [], patches
        for numbers in zip(self.prune_kept, self.merge_kept, strict=True):
            pruned, merged = (max(math.floor((n - 1) * patches / own + 0.5), 1) for n in numbers)
            pruned = min(pruned, left)
            left = min(merged, pruned)
            found.append((pruned, left))
        return found

    def share_of(self, anatomy: Anatomy) -> float:
        """Return the share of such a model's multiply-adds that is left."""
        kept = [left for _, left in self.patches_kept(anatomy.layers, anatomy.patches)]
        return anatomy.macs(kept) / anatomy.full

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RateSchedule:
        """Read one from JSON: this class's fields, or an entry of the authors' published lists.

        Raises
        ------
        UserError
            Lists of whole numbers are missing.
        """
        lists = []
        for name in ("prune_kept", "merge_kept"):
            numbers = given.get(name)
            if not isinstance(numbers, Sequence) or not all(type(n) is int for n in numbers):
                raise UserError(f"a schedule needs {name}, a list of whole numbers; found {numbers!r}")
            lists.append(tuple(numbers))
        known = {"patches": given.get("patches"), "share": given.get("share")}
        if known["share"] is None and given.get("gmacs") and given.get("gmacs_unreduced"):
            known["share"] = given["gmacs"] / given["gmacs_unreduced"]  # as published
        notes = {k: v for k, v in given.items() if k not in ("prune_kept", "merge_kept", "notes", *known)}
        return cls(prune_kept=lists[0], merge_kept=lists[1], notes=notes | dict(given.get("notes") or {}), **known)

    @classmethod
    def uniform(cls, layers: int, patches: int, ratio: float) -> RateSchedule:
        """Keep the same ratio in every block; of those that go, half are pruned and half merged."""
        if not 0 < ratio <= 1:
            raise UserError(f"ratio={ratio:g} is outside (0, 1]; pass the share to keep, e.g. 0.9")
        prune, merge, left = [], [], float(patches)
        for _ in range(layers):
            prune.append(1 + max(math.ceil(left * (1 + ratio) / 2), 1))
            left *= ratio
            merge.append(1 + max(math.ceil(left), 1))
        return cls(prune_kept=tuple(prune), merge_kept=tuple(merge), patches=patches)


def read_schedules(path: str | Path) -> list[RateSchedule]:
    """Read a JSON file of one schedule or a list of them; the authors' published lists are read too.

    Raises
    ------
    UserError
        The file is missing or damaged, or holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; make it with: {_AGAIN} --out {path}")
    try:
        held = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; make it with: {_AGAIN}") from None
    entries = [held] if isinstance(held, dict) else held
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} holds no schedules; expected objects with prune_kept and merge_kept")
    try:
        return [RateSchedule.of(entry) for entry in entries]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_schedules(path: str | Path, schedules: Sequence[RateSchedule]) -> None:
    """Write what `read_schedules` reads, whole or not at all."""
    entries = [{k: v for k, v in asdict(schedule).items() if v not in (None, {})} for schedule in schedules]
    text = json.dumps(entries[0] if len(entries) == 1 else entries, indent=1)
    with replace_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


# -- one block ---------------------------------------------------------------------------------------------------------


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

    Parameters
    ----------
    schedule
        A `RateSchedule`, a JSON file of one or several (`read_schedules`), or None for those of the classifier that
        ships with mintage. The first is used; `at` starts from the one next to the share that it is asked for.
        ``"ratio=0.9"`` is learned from nothing: see `RateSchedule.uniform`.
    prune_kept, merge_kept
        The lists themselves, in the place of `schedule`.
    clamp_sizes
        A merged token makes its destination's size grow by its own size times the cosine between them. True: by 1 at
        least, as in the search.

    Raises
    ------
    UserError
        The file cannot be read, or the lists are no schedule. On attaching: the model has another number of blocks.
    """

    schedule: RateSchedule | str | None = None
    prune_kept: tuple[int, ...] = ()
    merge_kept: tuple[int, ...] = ()
    clamp_sizes: bool = False

    def __post_init__(self) -> None:
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
            found = tuple(read_schedules(SHIPPED if self.schedule is None else self.schedule))
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
        if not 0 < share <= 1:
            raise UserError(f"macs={share:g} is outside (0, 1]; pass the share to keep, e.g. 0.9")

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

        low, high = 0.0, 16.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(raised(middle)) > share else (low, middle)
        best = min(map(raised, (low, high)), key=lambda schedule: abs(cost(schedule) - share))
        if abs(cost(best) - share) > 0.05:
            raise UserError(f"macs={share:g} cannot be reached by this schedule; the nearest is macs={cost(best):.2f}")
        return replace(self, schedule=best, prune_kept=(), merge_kept=())

    def unreduced(self) -> DiffRate:
        """Return this method with everything kept."""
        return replace(self, schedule=f"{_UNIFORM}1", prune_kept=(), merge_kept=())

    @classmethod
    def tiny(cls) -> DiffRate:
        """Make one for the laws."""
        return cls(schedule=f"{_UNIFORM}0.8")


def _ratio(text: str) -> float:
    try:
        ratio = float(text.removeprefix(_UNIFORM))
    except ValueError:
        raise UserError(f"schedule={text!r}; pass a share, e.g. {_UNIFORM}0.9, or a file") from None
    RateSchedule.uniform(1, 1, ratio)  # says what is wrong with it
    return ratio

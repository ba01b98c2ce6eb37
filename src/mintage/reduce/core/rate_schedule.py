"""How many tokens every block prunes and merges: one type, its JSON file, and the authors' published lists.

Not here: the search (`mintage.reduce.training.diffrate`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mintage.errors import UserError
from mintage.files import parse_json, replace_file
from mintage.reduce.core.schedule import Anatomy

__all__ = ["RateSchedule", "read_schedules", "shipped_schedules", "write_schedules"]

_AGAIN = "mintage train diffrate"


def shipped_schedules() -> Path:
    """Return the file of schedules for the classifier that ships with mintage."""
    return Path(__file__).parents[2] / "assets" / "diffrate-vit-tiny-cifar10.json"


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
        held = parse_json(Path(path).read_text(encoding="utf-8"), str(path), f"make it with: {_AGAIN}")
    except (OSError, UnicodeDecodeError) as error:
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

"""How many tokens stay after each layer: one type for constant numbers, ratios, lists, and a share of the MACs.

Written as text: ``r=8`` (remove 8 per layer, ToMe), ``r=8-0`` (falling linearly from twice the mean, ToMe section 4.1),
``ratio=0.9`` (keep 9 of 10 in every layer), ``ratio=0.7@3x6x9`` (in these layers only), ``counts=196x140x98``,
``macs=0.65`` (the ratio at which the model needs 65% of its multiply-adds). One reduction never takes more than half of
the tokens, except to an explicit count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mintage.errors import UserError
from mintage.options import check_fields

__all__ = ["Anatomy", "Schedule", "check_share", "nearest_strength"]

Kind = Literal["constant", "falling", "ratio", "counts", "macs"]
Hook = Literal["attention", "block"]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The sizes of a ViT that decide what it costs.

    Parameters
    ----------
    layers, dim, hidden
        Blocks, width, width of the MLP.
    patches, prefix
        Patch tokens of one image, and tokens before them.
    fixed
        Multiply-adds outside the blocks: patch embedding and head.
    heads
        Attention heads.
    grid
        Rows and columns of patches that the model was made for, if known.
    """

    layers: int
    dim: int
    hidden: int
    patches: int
    prefix: int
    heads: int = 1
    fixed: int = 0
    grid: tuple[int, int] | None = None

    def macs(self, kept: Sequence[int], *, hook: Hook = "attention") -> int:
        """Multiply-adds for one image when `kept` patches remain after each layer.

        ``4 N C^2 + 2 N^2 C`` of attention on what comes in, ``2 N' C H`` of the MLP on what remains there; what the
        decision itself costs is not in it.

        Parameters
        ----------
        kept
            Patches that remain, by layer.
        hook
            Whether they are reduced before the layer's MLP or behind it.
        """
        total, entering = self.fixed, self.patches
        for after in kept:
            n, m = entering + self.prefix, (after if hook == "attention" else entering) + self.prefix
            total += 4 * n * self.dim**2 + 2 * n * n * self.dim + 2 * m * self.dim * self.hidden
            entering = after
        return total

    @property
    def full(self) -> int:
        """Multiply-adds of the unmodified model."""
        return self.macs([self.patches] * self.layers)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How many patch tokens stay after each layer. Make one with `Schedule.of`.

    Raises
    ------
    UserError
        A ratio or share outside (0, 1], a negative number, a list that grows or removes everything.
    """

    kind: Kind
    value: float | int = 1.0
    counts: tuple[int, ...] = ()
    at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind in ("ratio", "macs") and not 0 < self.value <= 1:
            raise UserError(f"{self.kind}={self.value:g} is outside (0, 1]; pass the share to keep, e.g. 0.9")
        check_fields(self)
        if self.kind in ("constant", "falling") and (self.value < 0 or not float(self.value).is_integer()):
            raise UserError(f"r={self.value:g}: pass how many tokens each layer removes, e.g. 8")
        if self.at and min(self.at) < 0:
            raise UserError(f"@{'x'.join(map(str, self.at))}: layers are counted from 0")
        if self.kind == "counts":
            if not self.counts or min(self.counts) < 1:
                raise UserError(
                    f"counts={'x'.join(map(str, self.counts))}: at least one token must stay in every layer"
                )
            if list(self.counts) != sorted(self.counts, reverse=True):
                raise UserError(f"counts={'x'.join(map(str, self.counts))} grow; tokens removed do not come back")

    @classmethod
    def of(cls, given: str | Schedule) -> Schedule:
        """Read what the module's docstring says, e.g. ``"ratio=0.9"``.

        Raises
        ------
        UserError
            It cannot be read.
        """
        if isinstance(given, Schedule):
            return given
        name, _, text = given.partition("=")
        text, _, layers = text.partition("@")
        try:
            at = tuple(int(p) for p in layers.split("x")) if layers else ()
            if name == "counts" and not at:
                return cls(kind="counts", counts=tuple(int(c) for c in text.split("x")))
            if name == "r":
                falling = text.endswith("-0")
                return cls(kind="falling" if falling else "constant", value=float(text.removesuffix("-0")), at=at)
            if name in ("ratio", "macs"):
                return cls(kind="ratio" if name == "ratio" else "macs", value=float(text), at=at)
        except UserError:  # a number that is out of range: it is a ValueError too
            raise
        except ValueError:
            pass
        raise UserError(
            f"schedule {given!r}: write r=8, r=8-0, ratio=0.9, ratio=0.7@3x6, counts=64x48x32, or macs=0.65"
        )

    def __str__(self) -> str:
        at = "@" + "x".join(map(str, self.at)) if self.at else ""
        if self.kind == "counts":
            return "counts=" + "x".join(map(str, self.counts))
        name = {"constant": "r", "falling": "r"}.get(self.kind, self.kind)
        return f"{name}={self.value:g}{'-0' if self.kind == 'falling' else ''}{at}"

    def kept(self, anatomy: Anatomy, *, hook: Hook = "attention") -> tuple[int, ...]:
        """Patches that stay after each layer of this model.

        Raises
        ------
        UserError
            A list of another length, a layer that does not exist, or a share of the MACs that cannot be reached.
        """
        layers, patches = anatomy.layers, anatomy.patches
        if self.at and max(self.at) >= layers:
            raise UserError(f"{self} names layer {max(self.at)}; this model has layers 0 to {layers - 1}")
        if self.kind == "counts":
            if len(self.counts) != layers:
                raise UserError(f"{self} has {len(self.counts)} numbers; this model has {layers} layers")
            return tuple(min(c, patches) for c in self.counts)
        if self.kind == "macs":
            return self._solved(anatomy, hook).kept(anatomy, hook=hook)
        found, left = [], patches
        for layer in range(layers):
            if not self.at or layer in self.at:
                left -= self._removed(left, layer, layers)
            found.append(left)
        return tuple(found)

    def _removed(self, left: int, layer: int, layers: int) -> int:
        if self.kind == "ratio":
            wanted = math.floor(left - left * self.value)
        elif self.kind == "falling":
            wanted = round(2 * self.value * (layers - 1 - layer) / max(layers - 1, 1))
        else:
            wanted = int(self.value)
        return min(wanted, left // 2)

    def _solved(self, anatomy: Anatomy, hook: Hook) -> Schedule:
        """The ratio whose cost is the nearest to the share asked for, by bisection."""
        wanted = self.value * anatomy.full

        def at_ratio(ratio: float) -> Schedule:
            return replace(self, kind="ratio", value=ratio)

        def cost(ratio: float) -> int:
            return anatomy.macs(at_ratio(ratio).kept(anatomy, hook=hook), hook=hook)

        best = at_ratio(nearest_strength(cost, wanted, 1.0, 0.5))
        reached = anatomy.macs(best.kept(anatomy, hook=hook), hook=hook) / anatomy.full
        if reached > self.value + 0.05:
            where = f" in layers {'x'.join(map(str, self.at))}" if self.at else ""
            raise UserError(f"{self} cannot be reached{where} by halving at most; the least is macs={reached:.2f}")
        return best


def nearest_strength(cost: Callable[[float], float | int], wanted: float, weak: float, strong: float) -> float:
    """Bisect for the strength whose cost is the nearest to the one wanted; it falls from `weak` to `strong`."""
    for _ in range(40):
        middle = (weak + strong) / 2
        weak, strong = (middle, strong) if cost(middle) > wanted else (weak, middle)
    return min((weak, strong), key=lambda strength: abs(cost(strength) - wanted))


def check_share(share: float | int) -> None:
    """Refuse what is no share of the multiply-adds.

    Raises
    ------
    UserError
        It is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"macs={share:g} is outside (0, 1]; pass the share to keep, e.g. 0.9")

"""Figures of the joint comparison: numbers against the multiply-adds, and which patches became one token."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from mintage.bench.reduce.quality import evenly_spread
from mintage.measure.figure import Figure, curve
from mintage.measure.study import Run
from mintage.reduce.contract import Reducer

__all__ = ["ReducerArm", "curve_of", "patch_maps"]


@dataclass(frozen=True)
class ReducerArm:
    """A method at one setting: a percentage of the multiply-adds, or the one it was trained for (None).

    Parameters
    ----------
    name
        Its spec.
    reducer
        None is the unmodified model.
    percent
        See above.
    """

    name: str
    reducer: Reducer | None
    percent: int | None

    @property
    def method(self) -> str:
        """Catalogue name."""
        return self.name.partition(":")[0]

    @property
    def setting(self) -> str:
        """What rows say of it."""
        return "as trained" if self.percent is None else f"at -{100 - self.percent}% MACs"

    @property
    def key(self) -> str:
        """Name of the arm in a run."""
        return self.name if self.reducer is None else f"{self.name} {self.setting}"


Number = Callable[[Run, ReducerArm], float]


def curve_of(run: Run, slug: str, label: str, number: Callable[[ReducerArm], float], macs: Number) -> Figure:
    """Make a figure of one number against the share of the multiply-adds, a line per method."""
    series = {
        name: [(macs(run, arm), number(arm)) for arm in sorted(arms, key=lambda arm: macs(run, arm))]
        for name, arms in _by_name(run).items()
    }
    return run.figure(
        name=f"{slug}-{_slug(run.common['model'])}",
        title=f"{label[0].upper()}{label[1:]}, against the multiply-adds",
        caption=f"{run.common['model']}, {run.common['data']}; what the decisions cost is counted.",
        **curve("share of the multiply-adds", label, series),
    )


def patch_maps(run: Run, macs: Number) -> Iterator[Figure]:
    """Show which patches became one token, on some of the images, at the setting next to half of the multiply-adds."""
    subject = run.subject
    rows = evenly_spread(4, len(subject))
    for name, arms in _by_name(run).items():
        arm = min(arms, key=lambda arm: abs(macs(run, arm) - 0.5))
        assert arm.reducer is not None
        with arm.reducer(subject.model, trace=True) as session:
            subject.outputs(subject.pixels[rows])
            groups = session.groups()
        images = [
            {"src": _data_address(subject.images.pixels[row]), "label": f"image {row}", "groups": grid}
            for row, grid in zip(rows, groups, strict=True)
        ]
        yield run.figure(
            name=f"patches-{_slug(name)}-{_slug(run.common['model'])}",
            method=arm.method,
            title=f"What {name} makes of the patches, {arm.setting}",
            caption="Lines part the tokens left at the end; patches that share one have a tint; dark ones went.",
            kind="patch-map",
            data={"images": images},
        )


def _by_name(run: Run) -> dict[str, list[ReducerArm]]:
    found: dict[str, list[ReducerArm]] = {}
    for arm in run.arms.values():
        if arm.reducer is not None:
            found.setdefault(arm.name, []).append(arm)
    return found


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-")


def _data_address(pixels: UInt8[np.ndarray, "height width 3"]) -> str:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()

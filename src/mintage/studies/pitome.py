"""Does merging by energy lose less than ToMe's merging by place, in general and for small things on plain ground?

Not here: how arms are judged and timed (`mintage.bench.reduce.measures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mintage.bench.reduce.measures import (
    PLAIN,
    SharesStudy,
    accuracies,
    curves,
    gap,
    note_of,
    quality,
    seconds,
    setting_of,
    speed_row,
)
from mintage.bench.reduce.quality import Subject
from mintage.bench.reduce.small_things import small_on_plain
from mintage.measure.figure import Figure
from mintage.measure.statistics import Interval, bootstrap
from mintage.measure.study import Comparison, Finding, Measure, Run, above, mean
from mintage.reduce.baselines import AveragePool, RandomDrop, ToMe
from mintage.reduce.contract import Reducer
from mintage.reduce.pitome import PiToMe

__all__ = ["PiToMeStudy"]

OURS, TOME, RANDOM = "pitome", "tome", "random-drop"
SMALL = "small "
"""Begins the columns of small things on plain ground."""

RIVALS: Mapping[str, Reducer] = {
    OURS: PiToMe(),
    "pitome, matching": PiToMe(variant="matching"),
    "pitome, auto": PiToMe(variant="auto"),
    "pitome, no size in attention": PiToMe(proportional_attention=False),
    TOME: ToMe(),
    "tome, no size in attention": ToMe(proportional_attention=False),
    "average-pool": AveragePool(),
}


@dataclass(frozen=True, kw_only=True)
class PiToMeStudy(SharesStudy):
    """Does merging by energy lose less than ToMe's merging, on whole images and for small things on plain ground?

    CIFAR-10's test images as they are, and the same at half size on a plain canvas of their mean colour, at a random
    place: the regime that the paper claims. Top-1 is coarse on a small model, so the distance to the unmodified model's
    output is told beside it.

    Example: mintage bench pitome --test-images 500
    """

    method: ClassVar[str] = OURS
    needed: ClassVar[tuple[str, ...]] = (OURS, TOME)

    def reducers(self) -> Mapping[str, Reducer]:
        """Return PiToMe and its variants, and the rivals."""
        return {**RIVALS, RANDOM: RandomDrop(seed=self.seed)}

    def measures(self, run: Run) -> Iterable[Measure]:
        """Judge on whole images and on small things, then time."""
        yield quality()
        yield quality(on=SMALL, subject=self._small)
        timed = self.peers(run, self.claimed, (TOME, RANDOM)).values()
        yield seconds([PLAIN, f"{OURS} at {self.claimed:g}", *timed], self.rounds)

    def _small(self, run: Run) -> Subject:
        images = run.subject.images
        pixels = run.subject.classifier.preprocess(small_on_plain(images.pixels, seed=self.seed))
        return Subject(run.subject.model, pixels, images.labels)

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Yield accuracy and distance at every share, then speed."""
        for on in ("", SMALL):
            for share in self.shares:
                if {f"{OURS} at {share:g}", f"{TOME} at {share:g}"} <= run.arms.keys():
                    yield from self._at(run, share, on)
        peers = self.peers(run, self.claimed, (TOME, RANDOM))
        metric = f"images per second {setting_of(self.claimed)}"
        yield speed_row(metric, f"{OURS} at {self.claimed:g}", peers, "deciding is in it")

    def _at(self, run: Run, share: float, on: str) -> Iterator[Comparison | Finding]:
        setting = setting_of(share) + (", small on plain ground" if on else "")
        where = "where small things stand on plain ground" if on else "on whole images"
        claimed = setting_of(share) if share == self.claimed else ""
        ours, tome = f"{OURS} at {share:g}", f"{TOME} at {share:g}"
        peers = self.peers(run, share)
        yield gap(f"top-1 minus that of ToMe {setting}", ours, tome, peers, on=on)
        if RANDOM in peers:
            yield gap(f"top-1 minus that of random dropping {setting}", ours, peers[RANDOM], peers, on=on)
        if claimed:
            yield Finding(
                metric=f"half of what ToMe loses minus what PiToMe loses {setting}",
                value=lambda run: _half(*(run.columns[arm][f"{on}correct"] for arm in (PLAIN, tome, ours))),
                unit="points",
                n=lambda run: len(run.columns[ours][f"{on}correct"]),
                baseline=lambda run: accuracies(run, {PLAIN: PLAIN}, on),
                peers=lambda run: accuracies(run, peers, on),
                claim=f"{claimed} PiToMe loses at most half of the top-1 that ToMe loses, {where}",
                holds=above(0),
                note=lambda run: note_of(run, ours, on),
            )
        own = f"{on}divergence"
        yield Comparison(
            metric=f"distance of ToMe minus that of PiToMe {setting}",
            ours=tome,
            rival=ours,
            of=own,
            by=mean("nats"),
            baseline=[PLAIN],
            peers=peers,
            claim=f"{claimed} PiToMe is nearer to the unmodified model's output than ToMe, {where}" if claimed else "",
            holds=above(0) if claimed else None,
            note=lambda run: (
                f"peers are distances to the unmodified output; its own is {run.columns[ours][own].mean():.4f}"
            ),
        )

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield the distance against the share."""
        for on, slug, more in (("", "whole", ""), (SMALL, "small", ", small things on plain ground")):
            series: dict[str, dict[float, float]] = {}
            for arm in run.arms:
                name, _, share = arm.partition(" at ")
                if share:
                    distance = float(run.columns[arm][f"{on}divergence"].mean())
                    series.setdefault(name, {1.0: 0.0})[float(share)] = distance
            title = "Distance to the unmodified output" + more
            yield curves(run, f"pitome-distance-{slug}", title, "KL divergence, nats", series)


def _half(plain: np.ndarray, tome: np.ndarray, ours: np.ndarray) -> Interval:
    return bootstrap(100 * (0.5 * (plain - tome) - (plain - ours)))

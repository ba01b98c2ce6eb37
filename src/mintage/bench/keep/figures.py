"""Pictures of the joint comparison: quality and time against room, and where each policy's entries lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mintage.bench.keep.inputs import long_texts
from mintage.bench.keep.prefix import Prefix, survivors
from mintage.keep.contract import Policy
from mintage.measure import Figure
from mintage.measure.figure import curve
from mintage.measure.study import Run

__all__ = ["Place", "decode_times", "quality_by_room", "survivor_maps"]


class Place(NamedTuple):
    """Room for one entry in `part` of a context of `length` tokens."""

    length: int
    part: int

    def __str__(self) -> str:
        return f"at 1/{self.part} of {self.length} tokens"


def quality_by_room(
    run: Run, specs: Sequence[str], places: Sequence[Place], value: Callable[[str, Place, str], float]
) -> Iterator[Figure]:
    """Yield curves of three metrics at every length."""
    for length in dict.fromkeys(place.length for place in places):
        here = sorted((place for place in places if place.length == length), key=lambda place: -place.part)
        for slug, label, metric in (
            ("perplexity", "perplexity of the next tokens", "perplexity"),
            ("pass-key", "pass-keys found, asked for after compression", "pass-key retrieval, question after"),
            ("uuid", "UUIDs found, asked for after compression", "UUID retrieval, question after"),
        ):
            series = {s: [(1 / place.part, value(s, place, metric)) for place in here] for s in specs}
            yield run.figure(
                method="",
                name=f"{slug}-{length}",
                title=f"{label[0].upper()}{label[1:]}, {length} tokens of context",
                caption="Room for entries as a share of the context; the full cache has all of it.",
                **curve("share of the context", label, series),
            )


def decode_times(
    run: Run, specs: Sequence[str], places: Sequence[Place], seconds: Callable[[str, Place], Any]
) -> Figure:
    """Return the curves of milliseconds per token at the smallest room."""
    part = max(place.part for place in places)
    lengths = sorted({place.length for place in places})
    series = {s: [(n, float(np.median(seconds(s, Place(n, part))) * 1000)) for n in lengths] for s in specs}
    return run.figure(
        method="",
        name="decode-time",
        title=f"Milliseconds per decoded token, room for 1/{part} of the context",
        caption="Median over tokens and texts; all arms in one process, in rotating order.",
        **curve("tokens of context", "ms per token", series),
    )


def survivor_maps(run: Run, policies: Mapping[str, Policy], length: int, part: int) -> Iterator[Figure]:
    """Yield a map for each policy that drops entries."""
    prefix = Prefix(run.subject, long_texts(run.subject, length, 1)[0][1])
    for spec, policy in policies.items():
        kept = survivors(prefix, policy.at(max(length // part, 2)))
        if kept is not None:
            yield run.figure(
                method=spec.partition(":")[0],
                name=f"survivors-{spec.replace(':', '-')}",
                title=f"What {spec} still holds",
                caption=f"Share of the tokens kept, by stretch of a text of {length} tokens; a row is a "
                f"head, layers from top to bottom; room for 1/{part}.",
                kind="heatmap",
                data={"x_label": "position in the text", "y_label": "layer and head", "z": kept},
            )

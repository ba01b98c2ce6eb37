"""Pictures of what models make of a text: bits along it, where it is cut, what size buys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mintage.bench.lm.measures import HeldOut
from mintage.bench.lm.noise import NOISES
from mintage.lm.contract import ByteLanguageModel
from mintage.measure import Figure
from mintage.measure.figure import bars, curve
from mintage.measure.statistics import bootstrap, bootstrap_ratio

__all__ = ["figures"]

_SHOWN = 160
"""Bytes of the text that is drawn."""

_GROUP = 16
"""Bytes that one point of the curve along a window stands for."""


def figures(
    models: Mapping[str, ByteLanguageModel],
    columns: Mapping[str, Mapping[str, Any]],
    held: HeldOut,
    flops: Mapping[str, float],
    environment: Mapping[str, Any],
) -> Iterator[Figure]:
    """Yield bits by rate and by cost, bars of the metrics, bits along a window, and a text as every model cuts it."""
    common: dict[str, Any] = {"job": "lm", "environment": dict(environment)}
    yield Figure(
        **common,
        name="rate",
        title="Rate against loss",
        caption="One point per model: how many bytes it takes together, and what a byte costs; 95% over windows.",
        **curve("bytes per segment", "bits per byte", _points(columns, _rates(models, held))),
    )
    yield Figure(
        **common,
        name="cost",
        title="Operations against loss",
        caption="One point per model: what reading a byte takes, and what a byte costs; 95% over windows.",
        **curve("MFLOP per byte, forward", "bits per byte", _points(columns, {a: n / 1e6 for a, n in flops.items()})),
    )
    yield Figure(
        **common,
        name="words",
        title="Whole words right, by how often they stood in the training text",
        caption="Every byte of a word the likeliest behind the true text, and so the end of what stands before it.",
        **bars("words right, %", list(models), _words(columns)),
    )
    yield Figure(
        **common,
        name="noise",
        title="What a spoilt context costs",
        caption="Bits of a second half behind a spoilt first half, over those behind the first half as it was.",
        **bars(
            "x",
            [name for name in NOISES if name != "clean"],
            {
                arm: [bootstrap_ratio(own[f"bits, {name}"], own["bits, clean"]) for name in NOISES if name != "clean"]
                for arm, own in columns.items()
            },
        ),
    )
    yield Figure(
        **common,
        name="along",
        title="Bits along a window",
        caption="Mean over held-out windows: what a context of so many bytes is worth.",
        **curve("bytes of context", "bits per byte", {arm: _along(model, held) for arm, model in models.items()}),
    )
    text = held.windows[0, :_SHOWN].tobytes()
    for arm, model in models.items():
        yield Figure(
            **common,
            name=f"text-{arm.replace(':', '-').replace('=', '-').replace(',', '-')}",
            title=f"A text as {arm} reads it",
            caption="The darker, the more bits; a new shade of ground is a new word, token or segment.",
            kind="token-map",
            data={"tokens": _shaded(model, text)},
        )


def _rates(models: Mapping[str, ByteLanguageModel], held: HeldOut) -> dict[str, float]:
    windows = [row.tobytes() for row in held.windows[:32]]
    total = sum(map(len, windows))
    return {arm: total / sum(len(model.cuts(text)) for text in windows) for arm, model in models.items()}


def _points(columns: Mapping[str, Mapping[str, Any]], x: Mapping[str, float]) -> dict[str, list[tuple[float, Any]]]:
    """Return a series of one point for every arm, from the left to the right."""
    return {arm: [(x[arm], bootstrap(columns[arm]["bits"]))] for arm in sorted(x, key=x.__getitem__)}


def _words(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = {"word, new": "not seen", "word, rare": "seen up to ten times", "word, common": "seen more often"}
    there = [of for of in names if all(of in own for own in columns.values())]
    return {names[of]: [bootstrap(100 * own[of]) for own in columns.values()] for of in there}


def _along(model: ByteLanguageModel, held: HeldOut) -> list[tuple[int, float]]:
    windows = held.windows[:32]
    nats = model.read([row.tobytes() for row in windows]).nats.double().cpu().numpy() / np.log(2)
    size = windows.shape[1] // _GROUP * _GROUP
    by_group = nats[:, :size].reshape(len(windows), -1, _GROUP).mean((0, 2))
    return [(_GROUP * place, float(bits)) for place, bits in enumerate(by_group)]


def _shaded(model: ByteLanguageModel, text: bytes) -> list[dict[str, Any]]:
    """Return the text by symbol or word, shaded by its bits (8 and more are darkest)."""
    bits = model.read([text]).nats[0].double().cpu().numpy() / np.log(2)
    return [
        {"text": part.decode(errors="replace"), "value": float(min(bits[start : start + len(part)].mean() / 8, 1))}
        | {"group": str(number % 2)}
        for number, (start, part) in enumerate(_parts(model, text))
    ]


def _parts(model: ByteLanguageModel, text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what a model takes together, and where it begins."""
    starts = model.cuts(text)
    for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
        yield start, text[start:stop]

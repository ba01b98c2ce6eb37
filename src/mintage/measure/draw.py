"""Draw gauges and figures as inline SVG (token and patch maps as HTML), coloured by the report's style sheet.

Everything is built as an element tree and serialised, so no text of a result can become markup. Not here: layout of the
page (`mintage.measure.report`), interaction (the browser's own tooltips read ``<title>``).
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from mintage.measure.figure import Figure
from mintage.measure.result import Result

Real = float | int  # whole numbers come out of JSON as int

__all__ = [
    "Gauge",
    "decimals",
    "drawing",
    "gauge",
    "gauge_of",
    "legend",
    "number",
    "shown_decimals",
    "visible",
    "with_unit",
]

SERIES_COLOURS = 6
"""The style sheet knows ``.s0`` to ``.s5``."""


# -- text -----------------------------------------------------------------------------------------------------------

_WHITESPACE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """Write a token so that every character can be seen: ``" the\\n"`` becomes ``"␣the↵"``.

    Control and format characters (among them those that reverse the reading direction) become ``⟨U+202E⟩``, and a
    combining mark gets a circle to sit on.
    """
    return "".join(_visible(character, first=place == 0) for place, character in enumerate(text))


def _visible(character: str, *, first: bool) -> str:
    if character in _WHITESPACE:
        return _WHITESPACE[character]
    category = unicodedata.category(character)
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"):
        return f"⟨U+{ord(character):04X}⟩"
    return f"◌{character}" if first and category.startswith("M") else character


def number(value: Real, places: int | None = None) -> str:
    """Write a number for reading: four significant digits unless `places` after the point are asked for."""
    if value == 0:
        return "0" if not places else f"{0:.{places}f}"
    if abs(value) < 1e-4 or abs(value) >= 1e15:
        return f"{value:.2e}"
    return f"{value:,.{decimals(value) if places is None else places}f}".replace("-", "\N{MINUS SIGN}")


def decimals(value: Real, significant: int = 4) -> int:
    """Return how many places after the point show that many significant digits; none for a whole number."""
    if value == 0 or value == int(value):
        return 0
    return max(0, significant - 1 - math.floor(math.log10(abs(value))))


def shown_decimals(result: Result) -> int:
    """Return the places worth printing: two digits of the interval's half width, one where it starts with 4 to 9."""
    if result.interval is None or result.interval[0] == result.interval[1]:
        return decimals(result.value)
    half = (result.interval[1] - result.interval[0]) / 2
    exponent = math.floor(math.log10(half))
    useful = max(0, -exponent + (half / 10.0**exponent < 4))
    return min(useful, max(decimals(bound, 6) for bound in (*result.interval, result.value)))


def with_unit(text: str, unit: str) -> str:
    """Put the unit behind a number: ``1.80×``, ``91%``, ``2.1 tokens``."""
    if unit in ("x", "\N{MULTIPLICATION SIGN}"):
        return f"{text}\N{MULTIPLICATION SIGN}"
    return f"{text}%" if unit == "%" else f"{text}\N{NO-BREAK SPACE}{unit}".rstrip("\N{NO-BREAK SPACE}")


# -- elements -------------------------------------------------------------------------------------------------------


def _add(parent: Element, tag: str, text: str | None = None, /, **attributes: Any) -> Element:
    """Append an element; ``class_`` and ``stroke_width`` are written ``class`` and ``stroke-width``."""
    child = SubElement(parent, tag, _attributes(attributes))
    child.text = text
    return child


def _attributes(attributes: dict[str, Any]) -> dict[str, str]:
    return {
        name.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
        if value is not None
    }


def _svg(width: Real, height: Real, label: str, class_: str) -> Element:
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": f"{width:.0f}", "height": f"{height:.0f}"}
    return Element("svg", {**size, "role": "img", "aria-label": label, "class": class_})


def _markup(element: Element) -> str:
    return tostring(element, encoding="unicode", method="xml" if element.tag == "svg" else "html")


def _path(points: Sequence[tuple[Real, Real]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


# -- scales ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """Data to pixels, with round ticks that cover the data."""

    ticks: tuple[Real, ...]
    start: Real
    end: Real

    def __call__(self, value: Real) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    @property
    def places(self) -> int:
        step = self.ticks[1] - self.ticks[0]
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        return places if math.isclose(round(step, places), step) else places + 1  # a step of 2.5 needs one more


def _scale(values: Sequence[Real], start: Real, end: Real, *, wanted: int = 5) -> _Scale:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return _Scale(tuple(step * place for place in range(first, max(last, first + 1) + 1)), start, end)


# -- gauge ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gauge:
    """Where a result, its interval and its rivals stand on a line, in whole pixels."""

    value: int
    low: int
    high: int
    side: str
    baselines: tuple[int, ...]
    peers: tuple[int, ...]


GAUGE_WIDTH, GAUGE_HEIGHT = 148, 22


def gauge_of(result: Result) -> Gauge:
    """Scale a result's numbers to a line as long as a gauge."""
    bounds = result.interval or (result.value, result.value)
    shown = [result.value, *bounds, *result.baseline.values(), *result.peers.values()]
    low, high, margin = min(shown), max(shown), 7

    def x(value: Real) -> int:
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(margin + share * (GAUGE_WIDTH - 2 * margin))

    return Gauge(
        x(result.value),
        x(bounds[0]),
        x(bounds[1]),
        _side(result),
        tuple(sorted({x(value) for value in result.baseline.values()})),
        tuple(sorted({x(value) for value in result.peers.values()})),
    )


def gauge(result: Result) -> str:
    """Draw a result on a line: dot and interval, a tall mark per baseline, a short one per peer.

    The dot says ``up`` or ``down`` only where the interval leaves every baseline on the same side.
    """
    marks, width, height, middle = gauge_of(result), GAUGE_WIDTH, GAUGE_HEIGHT, GAUGE_HEIGHT // 2
    svg = _svg(width, height, _gauge_label(result), "gauge")
    _add(svg, "line", class_="rail", x1=1, x2=width - 1, y1=middle, y2=middle)
    if marks.peers:  # one element, because there may be dozens
        _add(svg, "path", class_="peer", d="".join(f"M{x} {middle - 4}v8" for x in marks.peers))
    for x in marks.baselines:
        _add(svg, "line", class_="base", x1=x, x2=x, y1=2, y2=height - 2)
    if marks.low < marks.high:
        _add(svg, "line", class_=f"span {marks.side}", x1=marks.low, x2=marks.high, y1=middle, y2=middle)
    _add(svg, "circle", class_=f"dot {marks.side}", cx=marks.value, cy=middle, r=4)
    return _markup(svg)


def _side(result: Result) -> str:
    """Whether the interval lies on the better (``up``) or worse (``down``) side of all baselines, or neither."""
    if result.interval is None or not result.baseline:
        return "level"
    low, high = result.interval
    best, worst = max(result.baseline.values()), min(result.baseline.values())
    if not result.higher_is_better:
        low, high, best, worst = -high, -low, -worst, -best
    return "up" if low > best else "down" if high < worst else "level"


def _gauge_label(result: Result) -> str:
    places = shown_decimals(result)
    parts = [f"{result.method} {with_unit(number(result.value, places), result.unit)}"]
    if result.interval:
        parts.append(f"interval {number(result.interval[0], places)} to {number(result.interval[1], places)}")
    parts += [f"{name} {number(value)}" for name, value in result.baseline.items()]
    if result.peers:  # their names stand beside the drawing
        parts.append(f"peers {number(min(result.peers.values()))} to {number(max(result.peers.values()))}")
    return "; ".join(parts) + ("; higher is better" if result.higher_is_better else "; lower is better")


# -- figures --------------------------------------------------------------------------------------------------------


def drawing(figure: Figure) -> str:
    """Return the figure as markup that is safe to place in a page."""
    painters: dict[str, Callable[[Figure], Element]] = {
        "curve": _curve,
        "bars": _bars,
        "heatmap": _heatmap,
        "tree": _tree,
        "token-map": _token_map,
        "patch-map": _patch_map,
    }
    return _markup(painters[figure.kind](figure))


def legend(figure: Figure) -> list[tuple[int, str]]:
    """Return (colour, name) of what the figure distinguishes; empty where there is nothing to tell apart."""
    if figure.kind in ("curve", "bars"):
        names = [series["name"] for series in figure.data["series"]]
        return [(place % SERIES_COLOURS, name) for place, name in enumerate(names)] if len(names) > 1 else []
    if figure.kind == "token-map":
        return [(place % SERIES_COLOURS, name) for name, place in _groups(figure.data["tokens"]).items()]
    return []


def _curve(figure: Figure) -> Element:
    width, height, left, right, top, bottom = 640, 360, 62, 18, 14, 48
    data, series = figure.data, figure.data["series"]
    svg = _svg(width, height, figure.title, "chart")
    xs = [x for one in series for x in one["x"]]
    ys = [y for one in series for name in ("y", "low", "high") for y in one.get(name) or () if y is not None]
    x, y = _scale(xs, left, width - right, wanted=6), _scale(ys, height - bottom, top)
    for tick in y.ticks:
        _add(svg, "line", class_="grid", x1=left, x2=width - right, y1=y(tick), y2=y(tick))
        _add(svg, "text", number(tick, y.places), class_="tick end", x=left - 8, y=y(tick) + 4)
    for tick in x.ticks:
        _add(svg, "line", class_="axis", x1=x(tick), x2=x(tick), y1=height - bottom, y2=height - bottom + 5)
        _add(svg, "text", number(tick, x.places), class_="tick mid", x=x(tick), y=height - bottom + 19)
    _add(svg, "line", class_="axis", x1=left, x2=width - right, y1=height - bottom, y2=height - bottom)
    _add(svg, "text", data["x_label"], class_="label mid", x=(left + width - right) / 2, y=height - 8)
    _axis_title(svg, data["y_label"], (top + height - bottom) / 2)
    for place, one in enumerate(series):
        group = _add(svg, "g", class_=f"series s{place % SERIES_COLOURS}")
        _add(group, "title", one["name"])
        for run in _runs(one):
            if one.get("low") and all(one["low"][i] is not None and one["high"][i] is not None for i in run):
                edge = [(x(one["x"][i]), y(one["low"][i])) for i in run]
                edge += [(x(one["x"][i]), y(one["high"][i])) for i in reversed(run)]
                if len(run) > 1:
                    _add(group, "path", class_="band", d=_path(edge) + "Z")
                else:  # a band of no width would not be seen
                    (at, low), (_, high) = edge
                    _add(group, "line", class_="whisker", x1=at, x2=at, y1=low, y2=high)
            _add(group, "path", class_="line", d=_path([(x(one["x"][i]), y(one["y"][i])) for i in run]))
            for i in run:
                point = _add(group, "circle", class_="point", cx=x(one["x"][i]), cy=y(one["y"][i]), r=3.2)
                _add(point, "title", f"{one['name']}: {number(one['x'][i])}, {number(one['y'][i])}")
    return svg


def _runs(series: dict[str, Any]) -> list[list[int]]:
    """Split a series at its gaps."""
    runs: list[list[int]] = [[]]
    for place, value in enumerate(series["y"]):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(place)
    return [run for run in runs if run]


def _axis_title(svg: Element, text: str, middle: Real) -> None:
    _add(svg, "text", text, class_="label mid", x=0, y=0, transform=f"translate(13 {middle:.1f}) rotate(-90)")


def _bars(figure: Figure) -> Element:
    """Horizontal bars, because names of methods are long."""
    data, series, categories = figure.data, figure.data["series"], figure.data["categories"]
    bar, gap, top, bottom, right = 15, 14, 8, 46, 64
    label_width = min(220, 16 + 7 * max((len(_short(str(name), 30)) for name in categories), default=0))
    block = bar * max(1, len(series)) + gap
    width, height = 640, top + block * len(categories) + bottom
    svg = _svg(width, height, figure.title, "chart")
    values = [v for one in series for name in ("y", "low", "high") for v in one.get(name) or () if v is not None]
    x = _scale([0.0, *values], label_width, width - right)
    floor = height - bottom
    for tick in x.ticks:
        _add(svg, "line", class_="grid", x1=x(tick), x2=x(tick), y1=top, y2=floor)
        _add(svg, "text", number(tick, x.places), class_="tick mid", x=x(tick), y=floor + 17)
    _add(svg, "text", data["y_label"], class_="label mid", x=(label_width + width - right) / 2, y=height - 6)
    for row, name in enumerate(categories):
        start = top + row * block + gap / 2
        text = _add(svg, "text", _short(str(name), 30), class_="category end", x=label_width - 10)
        text.set("y", f"{start + bar * len(series) / 2 + 4:.1f}")
        _add(text, "title", str(name))
        for place, one in enumerate(series):
            if one["y"][row] is not None:
                _bar(svg, one, row, place, x, start + place * bar, bar)
    _add(svg, "line", class_="axis", x1=x(0), x2=x(0), y1=top, y2=floor)
    return svg


def _bar(svg: Element, one: dict[str, Any], row: int, place: int, x: _Scale, y: Real, thickness: int) -> None:
    value, middle = one["y"][row], y + (thickness - 2) / 2
    ends = sorted((x(0), x(value)))
    group = _add(svg, "g", class_=f"series s{place % SERIES_COLOURS}")
    _add(group, "title", f"{one['name']}: {number(value)}")
    _add(group, "rect", class_="bar", x=ends[0], y=y, width=max(ends[1] - ends[0], 1.0), height=thickness - 2)
    reach = ends[1]
    if one.get("low") and one["low"][row] is not None and one["high"][row] is not None:
        low, high = x(one["low"][row]), x(one["high"][row])
        _add(group, "line", class_="whisker", x1=low, x2=high, y1=middle, y2=middle)
        reach = max(reach, high)
    _add(group, "text", number(value, decimals(value, 3)), class_="value", x=reach + 6, y=middle + 4)


_SHADES = 32
"""Steps of a heat map's tint; the cells of a step are one element, since a map of all heads has thousands of cells."""


def _heatmap(figure: Figure) -> Element:
    data = figure.data
    rows, columns = len(data["z"]), max((len(row) for row in data["z"]), default=0)
    left, top, bottom = 62, 10, 66
    cell_width = max(6.0, min(56.0, 560 / max(1, columns)))
    cell_height = max(6.0, min(34.0, 420 / max(1, rows)))
    width, height = left + cell_width * columns + 14, top + cell_height * rows + bottom
    svg = _svg(max(width, 260), height, figure.title, "chart heatmap")
    known = [z for row in data["z"] for z in row if z is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    legible = cell_width >= 34 and cell_height >= 16
    shades: dict[int, list[str]] = {}
    for i, row in enumerate(data["z"]):
        for j, z in enumerate(row):
            if z is None:
                continue
            share = (z - low) / (high - low) if high > low else 0.5
            x, y = left + j * cell_width, top + i * cell_height
            box = f"M{x:.1f} {y:.1f}h{cell_width - 1:.1f}v{cell_height - 1:.1f}h{1 - cell_width:.1f}z"
            shades.setdefault(round(share * _SHADES), []).append(box)
            if legible:
                shade = "cell-text on" if share > 0.66 else "cell-text"
                label = _add(svg, "text", number(z, decimals(z, 3)), class_=f"{shade} mid")
                label.set("x", f"{x + cell_width / 2:.1f}")
                label.set("y", f"{y + cell_height / 2 + 4:.1f}")
    for shade, boxes in sorted(shades.items(), reverse=True):
        cells = Element("path", {"class": "cell", "d": "".join(boxes)})
        cells.set("style", f"fill-opacity:{0.06 + 0.9 * shade / _SHADES:.3f}")
        svg.insert(0, cells)  # below the numbers
    floor = top + cell_height * rows
    for j in range(0, columns, max(1, math.ceil(columns / 12))):
        _add(svg, "text", _tick(data.get("x"), j), class_="tick mid", x=left + (j + 0.5) * cell_width, y=floor + 15)
    for i in range(0, rows, max(1, math.ceil(rows / 12))):
        _add(svg, "text", _tick(data.get("y"), i), class_="tick end", x=left - 8, y=top + (i + 0.5) * cell_height + 4)
    _add(svg, "text", data["x_label"], class_="label mid", x=left + cell_width * columns / 2, y=floor + 34)
    _axis_title(svg, data["y_label"], top + cell_height * rows / 2)
    _heat_scale(svg, data.get("z_label", ""), low, high, left, floor + 46)
    return svg


def _tick(names: Sequence[Any] | None, place: int) -> str:
    return _short(str(names[place]), 9) if names else str(place)


def _heat_scale(svg: Element, label: str, low: Real, high: Real, left: Real, y: Real) -> None:
    for step in range(10):
        box = _add(svg, "rect", class_="cell", x=left + step * 9.0, y=y, width=9, height=9)
        box.set("style", f"fill-opacity:{0.06 + 0.1 * step:.2f}")
    _add(svg, "text", f"{number(low)} to {number(high)} {label}".strip(), class_="tick", x=left + 98.0, y=y + 9)


# -- draft trees ----------------------------------------------------------------------------------------------------

_ROW, _CHARACTER, _GAP = 25, 7.3, 34


def _tree(figure: Figure) -> Element:
    """Draw a draft tree from left to right; the accepted path comes first, so it runs straight along the top."""
    nodes = figure.data["nodes"]
    children: dict[int, list[int]] = {place: [] for place in range(-1, len(nodes))}
    depth = {-1: 0}
    for place, node in enumerate(nodes):
        children[node["parent"]].append(place)
        depth[place] = depth[node["parent"]] + 1
    for siblings in children.values():
        siblings.sort(key=lambda place: (not nodes[place]["accepted"], -(nodes[place].get("score") or 0.0), place))
    rows = _tree_rows(children)
    labels = {place: _short(visible(node["token"]), 18) for place, node in enumerate(nodes)}
    labels[-1] = _short(visible(figure.data["context"])[::-1], 20)[::-1]
    widths = [0.0] * (max(depth.values()) + 1)
    for place, label in labels.items():
        widths[depth[place]] = max(widths[depth[place]], _CHARACTER * max(len(label), 2) + 16)
    starts = [8.0]
    for column in widths:
        starts.append(starts[-1] + column + _GAP)
    accepted = [place for place, node in enumerate(nodes) if node["accepted"]]
    told = f"{figure.title}: {len(nodes)} drafted tokens, {len(accepted)} accepted"
    height = 16 + _ROW * (max(rows.values()) + 1)
    svg = _svg(starts[-1] - _GAP + 8, height, told, "chart tree")
    for place in sorted(range(len(nodes)), key=lambda place: nodes[place]["accepted"]):
        _tree_edge(svg, nodes[place], place, labels, depth, rows, starts)
    for place, label in labels.items():
        _tree_node(svg, nodes[place] if place >= 0 else None, label, starts[depth[place]], rows[place])
    return svg


def _tree_rows(children: dict[int, list[int]]) -> dict[int, int]:
    """Give every leaf its own row and every parent the row of its first child."""
    rows, free, waiting = {}, 0, [-1]
    order = []
    while waiting:
        place = waiting.pop()
        order.append(place)
        waiting.extend(reversed(children[place]))
    for place in order:
        if not children[place]:
            rows[place], free = free, free + 1
    for place in reversed(order):
        if children[place]:
            rows[place] = rows[children[place][0]]
    return rows


def _middle(row: int) -> float:
    return 8 + _ROW * (row + 0.5)


def _box(label: str) -> float:
    return _CHARACTER * max(len(label), 2) + 12


def _tree_edge(
    svg: Element,
    node: dict[str, Any],
    place: int,
    labels: dict[int, str],
    depth: dict[int, int],
    rows: dict[int, int],
    starts: list[Real],
) -> None:
    parent = node["parent"]
    from_x, to_x = starts[depth[parent]] + _box(labels[parent]), starts[depth[place]]
    from_y, to_y = _middle(rows[parent]), _middle(rows[place])
    bend = to_x - _GAP / 2
    straight = f"M{from_x:.1f} {from_y:.1f}H{bend - 8:.1f}"
    curve = f"C{bend + 6:.1f} {from_y:.1f} {bend - 6:.1f} {to_y:.1f} {bend + 8:.1f} {to_y:.1f}H{to_x:.1f}"
    _add(svg, "path", class_="edge accepted" if node["accepted"] else "edge", d=straight + curve)


def _tree_node(svg: Element, node: dict[str, Any] | None, label: str, x: Real, row: int) -> None:
    state = "context" if node is None else "accepted" if node["accepted"] else "rejected"
    group = _add(svg, "g", class_=f"node {state}")
    if node is not None:
        score = "" if node.get("score") is None else f", score {number(node['score'])}"
        _add(group, "title", f"{visible(node['token'])}: {state}{score}")
    _add(group, "rect", x=x, y=_middle(row) - 9, width=_box(label), height=18, rx=3)
    _add(group, "text", label, class_="mid", x=x + _box(label) / 2, y=_middle(row) + 4)


# -- token maps -----------------------------------------------------------------------------------------------------


def _token_map(figure: Figure) -> Element:
    tokens = figure.data["tokens"]
    groups = _groups(tokens)
    box = Element("div", {"class": "token-map", "role": "img", "aria-label": figure.title})
    for token in tokens:
        value, group = token.get("value"), token.get("group")
        span = _add(box, "span", visible(token["text"]), class_="token")
        if group is not None:
            span.set("class", f"token s{groups[group] % SERIES_COLOURS}")
        if value is not None:
            span.set("style", f"--share:{min(max(value, 0.0), 1.0) * 100:.0f}%")
        told = [group, None if value is None else number(value)]
        span.set("title", ", ".join(part for part in told if part is not None))
        if token["text"].endswith("\n"):
            _add(box, "br")
    return box


def _groups(tokens: Sequence[dict[str, Any]]) -> dict[str, int]:
    names = dict.fromkeys(token["group"] for token in tokens if token.get("group") is not None)
    return {name: place for place, name in enumerate(names)}


# -- patch maps -----------------------------------------------------------------------------------------------------


def _patch_map(figure: Figure) -> Element:
    """Images with lines between tokens; patches that share a token share a tint, dropped ones are dark."""
    box = Element("div", {"class": "patch-map"})
    for image in figure.data["images"]:
        groups, held = image["groups"], Counter(g for row in image["groups"] for g in row)
        rows, columns = len(groups), len(groups[0]) if groups else 0
        part = _add(box, "span", class_="patches")
        svg = _svg(columns, rows, image["label"], "patches")
        part.append(svg)
        _add(svg, "image", href=image["src"], x=0, y=0, width=columns, height=rows, preserveAspectRatio="none")
        tints = {g: place % SERIES_COLOURS for place, g in enumerate(g for g, n in held.items() if n > 1)}
        for y, row in enumerate(groups):
            for x, group in enumerate(row):
                if group is None:
                    _add(svg, "rect", x=x, y=y, width=1, height=1, class_="gone")
                elif group in tints:
                    _add(svg, "rect", x=x, y=y, width=1, height=1, class_=f"tint s{tints[group]}")
        lines = [f"M{x} {y}v1" for y in range(rows) for x in range(1, columns) if groups[y][x] != groups[y][x - 1]]
        lines += [f"M{x} {y}h1" for y in range(1, rows) for x in range(columns) if groups[y][x] != groups[y - 1][x]]
        _add(svg, "path", d="".join(lines), class_="border")
        _add(part, "small", image["label"])
    return box


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"

"""Pictures as data: what a bench wants shown, in six layouts that `mintage.measure.report` draws.

``curve``
    ``{"x_label", "y_label", "series": [{"name", "x": [], "y": [], "low"?: [], "high"?: []}]}``; a null in ``y`` is a
    gap in the line.
``bars``
    ``{"y_label", "categories": [], "series": [{"name", "y": [], "low"?: [], "high"?: []}]}``; a null in ``y`` is a bar
    that was not measured.
``heatmap``
    ``{"x_label", "y_label", "z": [[]], "z_label"?, "x"?: [], "y"?: []}``; ``z`` has one list per row, the first at the
    top; ``x`` and ``y`` name its columns and rows.
``tree``
    ``{"nodes": [{"parent", "token", "accepted", "score"}], "context", "emitted"}``; ``parent`` is the position of an
    earlier node, or -1 for a child of the context; ``score`` may be null; ``emitted`` is the text that this step
    appended: the accepted path and the target's own next token.
``token-map``
    ``{"tokens": [{"text", "value", "group"}]}``; ``value`` (0 to 1, or null) shades the token, ``group`` (text or null)
    names the class it belongs to.
``patch-map``
    ``{"images": [{"src", "label", "groups": [[]]}]}``; ``src`` is a PNG or JPEG as a ``data:`` address; ``groups`` has
    one list per row of patches: patches of one number became one token, null was dropped.

Intervals (``low``, ``high``) come in pairs and are as long as ``y``. All texts are plain text; the report escapes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mintage.errors import UserError, did_you_mean
from mintage.measure.statistics import Interval
from mintage.processor import limited_to

__all__ = ["Figure", "FigureKind", "bars", "curve"]

FigureKind = Literal["curve", "bars", "tree", "heatmap", "token-map", "patch-map"]

_IMAGE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")

_TEXTS = {
    "curve": ("x_label", "y_label"),
    "bars": ("y_label",),
    "heatmap": ("x_label", "y_label"),
    "tree": ("context", "emitted"),
    "token-map": (),
    "patch-map": (),
}
_LISTS = {
    "curve": ("series",),
    "bars": ("categories", "series"),
    "heatmap": ("z",),
    "tree": ("nodes",),
    "token-map": ("tokens",),
    "patch-map": ("images",),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture of a run.

    Parameters
    ----------
    job
        The job whose section shows it.
    name
        Slug, unique in the job; a later figure of the same name takes its place.
    title, caption
        What is seen, and what to take from it.
    kind, data
        One of the layouts in this module's docstring.
    method
        The method it is about, or empty where it compares several.
    environment
        `mintage.measure.environment.environment` of the run.

    Raises
    ------
    UserError
        `data` does not have the layout of `kind`; the place is named.
    """

    job: str
    name: str
    title: str
    caption: str
    kind: FigureKind
    data: dict[str, Any]
    method: str = ""
    environment: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"figure {self.job}/{self.name}"
        if self.kind not in get_args(FigureKind):
            raise UserError(f"{where}: unknown kind {self.kind!r}; {did_you_mean(self.kind, get_args(FigureKind))}")
        try:
            _check(self.kind, self.data)
        except UserError as error:
            raise UserError(f"{where} ({self.kind}): {error}") from None

    @property
    def identity(self) -> tuple[str, ...]:
        """What a newer figure must share to take this one's place: its name, and what instructions were limited to."""
        return ("figure", self.job, self.name, limited_to(self.environment))

    @property
    def key(self) -> str:
        """The identity as text."""
        return f"{self.job}/{self.name}"


def bars(y_label: str, categories: Sequence[str], series: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
    """Return `kind` and `data` of bars: ``Figure(..., **bars(...))``.

    Parameters
    ----------
    y_label, categories
        What is counted, and of what; a bar of every series for each category.
    series
        Name to numbers, `mintage.measure.Interval` or None (not measured).
    """
    drawn = [{"name": name, **_bounded(values)} for name, values in series.items()]
    return {"kind": "bars", "data": {"y_label": y_label, "categories": list(categories), "series": drawn}}


def curve(x_label: str, y_label: str, series: Mapping[str, Iterable[tuple[Any, Any]]]) -> dict[str, Any]:
    """Return `kind` and `data` of lines; `series` is name to pairs of x and what `bars` takes, see there."""
    drawn = []
    for name, points in series.items():
        pairs = list(points)
        drawn.append({"name": name, "x": [x for x, _ in pairs], **_bounded(y for _, y in pairs)})
    return {"kind": "curve", "data": {"x_label": x_label, "y_label": y_label, "series": drawn}}


def _bounded(values: Iterable[Any]) -> dict[str, list[Any]]:
    some = list(values)
    if some and all(isinstance(value, Interval) for value in some):
        return {"y": [i.value for i in some], "low": [i.low for i in some], "high": [i.high for i in some]}
    return {"y": some}


def _check(kind: str, data: Any) -> None:
    if not isinstance(data, Mapping):
        raise UserError(f"data is {type(data).__name__}, expected a mapping")
    for name in _TEXTS[kind]:
        _is(f"data[{name!r}]", data.get(name), str)
    for name in _LISTS[kind]:
        _is(f"data[{name!r}]", data.get(name), list | tuple)
    if kind in ("curve", "bars"):
        for place, series in enumerate(data["series"]):
            _check_series(f"series {place}", series, data.get("categories"))
    elif kind == "heatmap":
        _check_grid(data["z"], data.get("x"), data.get("y"))
    elif kind == "tree":
        for place, node in enumerate(data["nodes"]):
            _check_node(place, node, data["nodes"])
    elif kind == "patch-map":
        for place, image in enumerate(data["images"]):
            _check_image(f"image {place}", image)
    else:
        for place, token in enumerate(data["tokens"]):
            _is(f"token {place}", token, Mapping)
            _is(f"token {place}, text", token.get("text"), str)
            _numbers(f"token {place}, value", [token.get("value")])
            _is(f"token {place}, group", token.get("group"), str | None)


def _check_series(where: str, series: Any, categories: Sequence[Any] | None) -> None:
    _is(where, series, Mapping)
    _is(f"{where}, name", series.get("name"), str)
    y = series.get("y")
    _is(f"{where}, y", y, list | tuple)
    _numbers(f"{where}, y", y)
    if categories is not None:
        _same_length(where, "categories", categories, "y", y)
    else:
        _is(f"{where}, x", series.get("x"), list | tuple)
        _numbers(f"{where}, x", series["x"], gaps=False)
        _same_length(where, "x", series["x"], "y", y)
    bounds = [name for name in ("low", "high") if series.get(name) is not None]
    if len(bounds) == 1:
        raise UserError(f"{where} has {bounds[0]!r} alone; give 'low' and 'high', or neither")
    for name in bounds:
        _is(f"{where}, {name}", series[name], list | tuple)
        _numbers(f"{where}, {name}", series[name])
        _same_length(where, name, series[name], "y", y)


def _check_grid(z: Sequence[Any], columns: Any, rows: Any) -> None:
    for place, row in enumerate(z):
        _is(f"z, row {place}", row, list | tuple)
        _numbers(f"z, row {place}", row)
        _same_length("z", f"row {place}", row, "row 0", z[0])
    for name, given, known in (("x", columns, z[0] if z else []), ("y", rows, z)):
        if given is not None:
            _is(f"data[{name!r}]", given, list | tuple)
            _same_length("heatmap", name, given, "z", known)


def _check_node(place: int, node: Any, nodes: Sequence[Any]) -> None:
    _is(f"node {place}", node, Mapping)
    _is(f"node {place}, parent", node.get("parent"), int)
    _is(f"node {place}, token", node.get("token"), str)
    _is(f"node {place}, accepted", node.get("accepted"), bool)
    _numbers(f"node {place}, score", [node.get("score")])
    parent = node["parent"]
    if not -1 <= parent < place:
        raise UserError(f"node {place} has parent {parent}; a parent comes before its children, -1 is the context")
    if node["accepted"] and parent >= 0 and not nodes[parent]["accepted"]:
        raise UserError(f"node {place} is accepted but its parent {parent} is not")


def _check_image(where: str, image: Any) -> None:
    _is(where, image, Mapping)
    _is(f"{where}, label", image.get("label"), str)
    if not isinstance(image.get("src"), str) or not _IMAGE.fullmatch(image["src"]):
        raise UserError(f"{where}, src is no PNG or JPEG as data:image/png;base64,...")
    _is(f"{where}, groups", image.get("groups"), list | tuple)
    _check_grid(image["groups"], None, None)


def _is(where: str, value: Any, kind: Any) -> None:
    if not isinstance(value, kind):
        wanted = getattr(kind, "__name__", str(kind).replace(" | ", " or "))
        raise UserError(f"{where} is {type(value).__name__}, expected {wanted}")


def _numbers(where: str, values: Sequence[Any], *, gaps: bool = True) -> None:
    for value in values:
        if value is None and gaps:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise UserError(f"{where} holds {value!r}, expected {'a number or null' if gaps else 'a number'}")


def _same_length(where: str, a: str, first: Sequence[Any], b: str, second: Sequence[Any]) -> None:
    if len(first) != len(second):
        raise UserError(f"{where}: {a} has {len(first)} entries, {b} has {len(second)}")

"""Result rows: one measured number each, with everything needed to judge it, as lines of JSON.

A file of rows only grows. Views show the newest row of each key (`newest`), so a bench run again replaces what is shown
and keeps what was. Lines hold `Result` and `mintage.measure.figure.Figure` objects, told apart by ``"row"``, and carry
the schema version that wrote them.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from mintage.errors import UserError, did_you_mean
from mintage.files import append_lines, read_jsonl
from mintage.measure.environment import device_name
from mintage.measure.figure import Figure
from mintage.processor import limited_to

__all__ = ["SCHEMA", "Result", "Verdict", "append_results", "from_line", "newest", "read_results", "to_line"]

SCHEMA = 2
"""Version of the line format. A reader refuses lines of a newer one by name."""

Verdict = Literal["holds", "does not hold", "measured"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measured number.

    Parameters
    ----------
    method, job
        Whose number it is.
    metric, unit
        What was measured, e.g. ``"tokens per forward"`` in ``"tokens"``; a ratio has the unit ``"x"``.
    value, interval, n
        The number, the bounds of its interval (None where one measurement is all there is), and over how many units.
    higher_is_better
        Direction of the metric.
    baseline, peers
        Name to value, same metric and unit, measured in the same run.
    claim
        The sentence that the bench tested, with its threshold; empty for a row that only informs.
    rule
        When the claim holds, e.g. ``"interval above 0"``; empty where no single bound decides. Since schema 2.
    verdict
        ``"holds"`` or ``"does not hold"`` for a tested claim, else ``"measured"``.
    model, data
        What it was measured on.
    seed, settings, command
        What repeats it.
    environment
        `mintage.measure.environment.environment` of the run.
    note
        What a reader must know to read the number right: deviations, scale, surprises.

    Raises
    ------
    UserError
        A number is not finite, the interval is upside down, or the verdict and claim do not go together.
    """

    method: str
    job: str
    metric: str
    value: float
    unit: str
    higher_is_better: bool
    baseline: dict[str, float] = field(default_factory=dict)
    peers: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    n: int = 1
    claim: str = ""
    rule: str = ""
    verdict: Verdict = "measured"
    model: str = ""
    data: str = ""
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        where = f"result {self.method or '?'}/{self.metric or '?'}"
        if not self.method or not self.metric:
            raise UserError(f"{where}: method and metric must be named")
        numbers = {"value": self.value, **self.baseline, **self.peers}
        if self.interval is not None:
            object.__setattr__(self, "interval", tuple(float(bound) for bound in self.interval))
            if len(self.interval) != 2 or not self.interval[0] <= self.interval[1]:
                raise UserError(f"{where}: interval {list(self.interval)} is not [low, high]")
            numbers |= {"low": self.interval[0], "high": self.interval[1]}
        for name, number in numbers.items():
            if not abs(float(number)) < float("inf"):
                raise UserError(f"{where}: {name}={number} is not a finite number")
        if self.n < 1:
            raise UserError(f"{where}: n={self.n}; a result needs at least one measured unit")
        if self.verdict not in get_args(Verdict):
            raise UserError(
                f"{where}: unknown verdict {self.verdict!r}; {did_you_mean(self.verdict, get_args(Verdict))}"
            )
        if self.verdict != "measured" and not self.claim:
            raise UserError(f"{where}: verdict {self.verdict!r} without a claim; write what was tested, or 'measured'")

    @property
    def device(self) -> str:
        """What it ran on, in a few words."""
        return device_name(self.environment)

    @property
    def identity(self) -> tuple[str, ...]:
        """What a newer row must share to take this one's place: everything but the number, the seed and versions."""
        settings = " ".join(f"{name}={value}" for name, value in sorted(self.settings.items()))
        return ("result", self.method, self.metric, self.model, self.data, settings, self.device)

    @property
    def key(self) -> str:
        """The identity as text: ``method/metric/model/data/settings/device``."""
        return "/".join(part for part in self.identity[1:] if part)

    def best_peer(self) -> tuple[str, float] | None:
        """Return the peer with the best value, or None without peers."""
        choose = max if self.higher_is_better else min
        return choose(self.peers.items(), key=lambda peer: peer[1]) if self.peers else None


Row = TypeVar("Row", Result, Figure, Result | Figure)

_KINDS: dict[str, type[Result] | type[Figure]] = {"result": Result, "figure": Figure}


def append_results(path: str | Path, rows: Iterable[Result | Figure]) -> None:
    """Append rows to a JSONL file; nothing is written unless every row can be.

    Raises
    ------
    UserError
        A row holds something that JSON cannot, or the disk is full.
    """
    append_lines(path, [to_line(row) for row in rows])


def to_line(row: Result | Figure) -> str:
    """Return a row as it stands in a results file, without the line's end.

    Raises
    ------
    UserError
        The row holds something that JSON cannot.
    """
    kind = "result" if isinstance(row, Result) else "figure"
    try:  # ASCII, because a reader that splits lines the Unicode way would split at U+2028 inside a text
        return json.dumps({"row": kind, "schema": SCHEMA, **dataclasses.asdict(row)}, default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind} {row.key} cannot be written as JSON: {error}") from None


def _plain(value: Any) -> Any:
    """Turn numpy and torch numbers, arrays and paths into what JSON has."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form; convert it first")


def read_results(source: str | Path | Iterable[str | Path]) -> list[Result | Figure]:
    """Read rows in the order written.

    Parameters
    ----------
    source
        A file, a folder (its ``*.jsonl``, by name), or several of either.

    Raises
    ------
    UserError
        Nothing there, or a line that is not a valid row (file and line are named), or one of a newer schema.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    files = [file for one in sources for file in _files(Path(one))]
    return [row for file in files for row in _read_file(file)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise UserError(f"{path} holds no *.jsonl results; run: mintage bench METHOD")
    return files


def _read_file(file: Path) -> list[Result | Figure]:
    if file.suffix == ".gz":
        raise UserError(f"{file} is compressed; results are plain JSONL, run: gunzip {file}")
    lines = read_jsonl(file)
    numbers = [n for n, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1) if text.strip()]
    rows = []
    for number, line in zip(numbers, lines, strict=True):
        try:
            rows.append(from_line(line))
        except UserError as error:
            raise UserError(f"{file}, line {number}: {error}") from None
    return rows


def from_line(line: Mapping[str, Any]) -> Result | Figure:
    """Make the row of a line that `to_line` wrote and JSON has read.

    Raises
    ------
    UserError
        It is no valid row, or one of a newer schema.
    """
    values = dict(line)
    kind, schema = values.pop("row", None), values.pop("schema", None)
    if not isinstance(schema, int):
        raise UserError("no schema version; this is not a line of mintage results")
    if schema > SCHEMA:
        writer = (values.get("environment") or {}).get("mintage", "a newer version")
        raise UserError(
            f"written in schema {schema} by mintage {writer}; this mintage reads up to schema {SCHEMA}: upgrade mintage"
        )
    if kind not in _KINDS:
        raise UserError(f"unknown kind of row {kind!r}; {did_you_mean(str(kind), _KINDS)}")
    row_class = _KINDS[kind]
    hints = typing.get_type_hints(row_class)
    for name in values:
        if name not in hints:
            raise UserError(f"unknown field {name!r}; {did_you_mean(name, hints)}")
    for known in dataclasses.fields(row_class):
        if known.name in values:
            _check_type(known.name, values[known.name], hints[known.name])
        elif known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING:
            raise UserError(f"field {known.name!r} is missing")
    return row_class(**values)


def _check_type(name: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        wanted = getattr(hint, "__name__", hint) if not typing.get_origin(hint) else str(hint).replace("typing.", "")
        raise UserError(f"{name}={value!r} is not {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a field's annotation; a list fits a tuple, an int fits a float, a bool fits neither."""
    origin, inner = typing.get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in inner
    if origin is types.UnionType or origin is typing.Union:
        return any(_fits(value, option) for option in inner)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, inner[1]) for v in value.values())
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(inner) and all(map(_fits, value, inner))
    if hint in (int, float):
        return not isinstance(value, bool) and isinstance(value, int if hint is int else int | float)
    return isinstance(value, hint)


def _time(row: Result | Figure) -> str:
    return str(row.environment.get("time", ""))


def newest(rows: Iterable[Row]) -> list[Row]:
    """Keep the newest row of each identity, in the order in which the identities first appeared.

    Newest is by the environment's ``time``; rows of equal time, or without, by their position. A row that does not tell
    its processor's instructions, as none did once, also gives way to a newer one that was free to use all of them.
    """
    latest: dict[tuple[str, ...], Row] = {}
    for row in rows:
        old = latest.get(row.identity)
        if old is None or _time(row) >= _time(old):
            latest[row.identity] = row
    told = {_untold(row): row for row in latest.values() if "instructions" in row.environment}
    return [row for key, row in latest.items() if told.get(key, row) is row or _time(row) > _time(told[key])]


def _untold(row: Result | Figure) -> tuple[str, ...]:
    """Return the identity that a row would have if it did not tell its instructions; none if limited."""
    if isinstance(row, Figure) or limited_to(row.environment):
        return ()
    return (*row.identity[:-1], device_name({**row.environment, "instructions": None}))

"""Turn result rows into one HTML page that needs nothing else: no network, no server, no script from elsewhere.

The page's policy (its Content-Security-Policy) allows exactly one script, by its hash; texts from results are escaped
on top of that.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mintage
from mintage.catalog import JOBS, Method, job_summary, methods
from mintage.errors import missing_extra
from mintage.files import replace_file
from mintage.measure import draw
from mintage.measure.environment import device_name
from mintage.measure.figure import Figure
from mintage.measure.result import Result, newest, to_line
from mintage.measure.standing import Standing, standing

__all__ = ["write_report"]

TEMPLATES = Path(__file__).parent / "templates"
NOT_MEASURED = "not measured"
VERDICTS = ("holds", "does not hold", "measured", NOT_MEASURED)
_ARXIV = re.compile(r"\d{4}\.\d{4,5}(v\d+)?")


@dataclass(frozen=True)
class _Machine:
    """One environment, whatever the time of day, and the letter that the page calls it by."""

    letter: str
    name: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Entry:
    """One line of the scoreboard."""

    method: Method
    results: tuple[Result, ...]
    stands: Standing

    @property
    def headline(self) -> Result | None:
        return self.stands.headline

    @property
    def verdict(self) -> str:
        return self.headline.verdict if self.headline else NOT_MEASURED

    @property
    def counted(self) -> str:
        claims = self.stands.claims
        return f"{self.stands.held} of {len(claims)} claim{'' if len(claims) == 1 else 's'} hold" if claims else ""


@dataclass(frozen=True)
class _Section:
    """One job's results and figures."""

    job: str
    summary: str
    groups: tuple[tuple[str, Method | None, tuple[Result, ...]], ...]
    figures: tuple[Figure, ...]
    waiting: tuple[str, ...]


def write_report(results: Iterable[Result | Figure], out: str | Path, *, rows: Sequence[Method] | None = None) -> Path:
    """Write the scoreboard of all papers, every result row and every figure as one HTML file.

    Parameters
    ----------
    results
        What `mintage.measure.read_results` returns; the newest row of each key is shown.
    out
        The file to write.
    rows
        The catalogue; default: `mintage.catalog.methods` of all jobs.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    UserError
        jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise missing_extra("jinja2", "report") from None

    shown = newest(results)
    measured = [row for row in shown if isinstance(row, Result)]
    figures = [row for row in shown if isinstance(row, Figure)]
    catalogue = list(methods() if rows is None else rows)
    own = {m.name: tuple(r for r in measured if r.method == m.name) for m in catalogue if m.role == "paper"}
    entries = [_Entry(m, own[m.name], standing(own[m.name])) for m in catalogue if m.role == "paper"]
    machines = _machines([row.environment for row in shown if row.environment])
    letters = {_machine_key(machine.facts): machine.letter for machine in machines}
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # not by suffix: ".j2" is no suffix that jinja2 escapes by itself
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "arxiv": lambda text: text if _ARXIV.fullmatch(text) else "",
        "device": device_name,
        "draw": lambda figure: _safe(draw.draw(figure)),
        "gauge": lambda result: _safe(draw.gauge(result)),
        "legend": draw.legend,
        "table": _figure_table,
        "visible": draw.visible,
        "reading": _reading,
        "bounds": _bounds,
        "beside": _beside,
        "slug": _slug,
        "letter": lambda row: letters.get(_machine_key(row.environment), ""),
    }
    page = environment.get_template("report.html.j2").render(
        entries=entries,
        sections=_sections(measured, figures, catalogue),
        machines=machines,
        tally=_tally(entries),
        jobs=[job for job in JOBS if any(e.method.job == job for e in entries)],
        verdicts=VERDICTS,
        version=mintage.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        count=len(measured),
        rows=_packed(measured),
        style=_safe((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=_safe(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with replace_file(out) as temporary:  # "replace": half of a surrogate pair in a token has no UTF-8 form
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return Path(out)


def _packed(results: Sequence[Result]) -> str:
    """Return the rows as JSON Lines, compressed: as they are they would be most of the page."""
    lines = "".join(to_line(result) + "\n" for result in results)
    return base64.b64encode(gzip.compress(lines.encode(), mtime=0)).decode()


def _safe(markup: str) -> Any:
    from markupsafe import Markup

    return Markup(markup)


def _sections(results: Sequence[Result], figures: Sequence[Figure], catalogue: Sequence[Method]) -> list[_Section]:
    """Group by job: first the ten, then whatever other names the rows carry."""
    by_name = {method.name: method for method in catalogue}
    others = dict.fromkeys(row.job for row in (*results, *figures) if row.job not in JOBS)
    sections = []
    for job in (*JOBS, *others):
        own = [r for r in results if r.job == job]
        order = [m.name for m in catalogue if m.job == job]
        names = sorted(dict.fromkeys(r.method for r in own), key=lambda n: order.index(n) if n in order else len(order))
        sections.append(
            _Section(
                job=job,
                summary=job_summary(job) if job in JOBS else "",
                groups=tuple((n, by_name.get(n), tuple(r for r in own if r.method == n)) for n in names),
                figures=tuple(f for f in figures if f.job == job),
                waiting=tuple(m.name for m in catalogue if m.job == job and m.role == "paper" and m.name not in names),
            )
        )
    return sections


def _tally(entries: Sequence[_Entry]) -> list[tuple[str, int]]:
    """Count the papers by verdict; those not measured by whether they are built."""
    counts = Counter(
        entry.verdict if entry.results else "built, not measured" if entry.method.status == "ready" else "planned"
        for entry in entries
    )
    kinds = (*VERDICTS[:3], "built, not measured", "planned")
    return [(kind, counts[kind]) for kind in kinds]


# -- machines -------------------------------------------------------------------------------------------------------


def _machine_key(environment: dict[str, Any]) -> str:
    return repr(sorted((name, value) for name, value in environment.items() if name != "time"))


def _machines(environments: Iterable[dict[str, Any]]) -> list[_Machine]:
    distinct = {_machine_key(environment): environment for environment in environments}
    return [
        _Machine(_letters(place), device_name(environment), {k: v for k, v in environment.items() if k != "time"})
        for place, environment in enumerate(distinct.values())
    ]


def _letters(place: int) -> str:
    """A to Z, then AA, AB, ..."""
    first, last = divmod(place, 26)
    return (_letters(first - 1) if first else "") + chr(ord("A") + last)


# -- filters --------------------------------------------------------------------------------------------------------


def _reading(result: Result) -> str:
    return draw.with_unit(draw.number(result.value, draw.shown_decimals(result)), result.unit)


def _bounds(result: Result) -> str:
    if result.interval is None:
        return ""
    low, high = (draw.number(bound, draw.shown_decimals(result)) for bound in result.interval)
    return f"[{low}, {high}]"


def _beside(value: float | int, result: Result) -> str:
    """Write a baseline or peer with the result's places, or more where they would not show it."""
    places = max(draw.shown_decimals(result), draw.decimals(value, 2))
    return draw.with_unit(draw.number(value, places), result.unit)


def _figure_table(figure: Figure) -> list[tuple[str, list[str]]]:
    """Return a curve's or bars' numbers as rows of (x or category, one cell per series)."""
    series = figure.data["series"]
    if figure.kind == "bars":
        keys, columns = figure.data["categories"], [dict(enumerate(one["y"])) for one in series]
        return [(str(key), [_cell(c[place]) for c in columns]) for place, key in enumerate(keys)]
    columns = [dict(zip(one["x"], one["y"], strict=True)) for one in series]
    xs = sorted({x for column in columns for x in column})
    return [(draw.number(x), [_cell(column.get(x)) for column in columns]) for x in xs]


def _cell(value: float | int | None) -> str:
    return "" if value is None else draw.number(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"

"""Turn result rows into one HTML page that needs nothing else: no network, no server, no script from elsewhere.

The scoreboard of the papers is plain markup. The rows and figures behind it travel compressed and are unfolded by the
page's own script where somebody opens them: rows as texts that it places (`_shown`), figures as drawn here.

The page's policy (its Content-Security-Policy) allows exactly one script, by its hash; texts from results are escaped
on top of that.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
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
from mintage.measure.figure import Figure
from mintage.measure.machines import Machine, machine_key, machines
from mintage.measure.result import Result, newest, to_line
from mintage.measure.standing import Standing, method_name, standing

__all__ = ["write_report"]

TEMPLATES = Path(__file__).parent / "templates"
NOT_MEASURED = "not measured"
VERDICTS = ("holds", "does not hold", "measured", NOT_MEASURED)
_ARXIV = re.compile(r"\d{4}\.\d{4,5}(v\d+)?")


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


@dataclass(frozen=True)
class _Group:
    """The rows of one method, folded."""

    id: str
    name: str
    method: Method | None
    stands: Standing
    count: int
    packed: str


@dataclass(frozen=True)
class _Section:
    """One job's results and figures."""

    job: str
    summary: str
    groups: tuple[_Group, ...]
    figures: tuple[tuple[str, Figure, str], ...]
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
    known = machines(row.environment for row in shown)
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
        "draw": lambda figure: _safe(draw.drawing(figure)),
        "gauge": lambda result: _safe(draw.gauge(result)),
        "legend": draw.legend,
        "table": _figure_table,
        "visible": draw.visible,
        "reading": _reading,
        "bounds": _bounds,
        "beside": _beside,
        "counted": _counted,
        "parts": lambda name: re.split(r"(?<=[+:,])", name),  # where a long spec may break
        "slug": _slug,
        "machine": lambda row: known.get(machine_key(row.environment)),
    }
    picture = environment.get_template("figure.html.j2")
    drawn = [(figure, _packed(picture.render(figure=figure))) for figure in figures]
    page = environment.get_template("report.html.j2").render(
        entries=entries,
        sections=_sections(measured, drawn, catalogue, known),
        machines=list(known.values()),
        tally=_tally(entries),
        jobs=[job for job in JOBS if any(e.method.job == job for e in entries)],
        verdicts=VERDICTS,
        version=mintage.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        count=len(measured),
        rows=_packed("".join(to_line(result) + "\n" for result in measured)),
        style=_safe((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=_safe(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    with replace_file(out) as temporary:  # "replace": half of a surrogate pair in a token has no UTF-8 form
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return Path(out)


def _packed(text: str) -> str:
    """Compress a text that the page unfolds on demand; as it is it would be most of the page."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), mtime=0)).decode()


def _safe(markup: str) -> Any:
    from markupsafe import Markup

    return Markup(markup)


def _sections(
    results: Sequence[Result],
    figures: Sequence[tuple[Figure, str]],
    catalogue: Sequence[Method],
    known: dict[str, Machine],
) -> list[_Section]:
    """Group by job: first the ten, then whatever other names the rows carry."""
    by_name = {method.name: method for method in catalogue}
    others = dict.fromkeys(row.job for row in (*results, *(figure for figure, _ in figures)) if row.job not in JOBS)
    sections, ids = [], set[str]()
    for job in (*JOBS, *others):
        own: dict[str, list[Result]] = {}
        for row in results:
            if row.job == job:
                own.setdefault(row.method, []).append(row)
        order = {m.name: place for place, m in enumerate(catalogue) if m.job == job}
        # A method with settings stands behind the method; whatever the catalogue does not know comes last.
        names = sorted(own, key=lambda name: (order.get(method_name(own[name][0]), len(order)), name not in order))
        sections.append(
            _Section(
                job=job,
                summary=job_summary(job) if job in JOBS else "",
                groups=tuple(
                    _Group(
                        _free(f"method-{_slug(job)}-{_slug(name)}", ids),
                        name,
                        by_name.get(name),
                        standing(own[name]),
                        len(own[name]),
                        _packed(_rows(own[name], known)),
                    )
                    for name in names
                ),
                figures=tuple(
                    (_free(f"figure-{_slug(job)}-{_slug(figure.name)}", ids), figure, packed)
                    for figure, packed in figures
                    if figure.job == job
                ),
                waiting=tuple(m.name for m in catalogue if m.job == job and m.role == "paper" and m.name not in own),
            )
        )
    return sections


def _rows(results: Sequence[Result], known: dict[str, Machine]) -> str:
    """Write the rows of one method for the page's script, those that test a claim first."""
    shown = [_shown(row, known) for row in sorted(results, key=lambda row: not row.claim)]
    return json.dumps(shown, separators=(",", ":"))


def _free(name: str, taken: set[str]) -> str:
    """Return `name`, numbered where another element has it, and take it."""
    while name in taken:
        stem, _, number = name.rpartition("--")
        name = f"{stem}--{int(number) + 1}" if stem and number.isdecimal() else f"{name}--2"
    taken.add(name)
    return name


def _tally(entries: Sequence[_Entry]) -> list[tuple[str, int]]:
    """Count the papers by verdict; those not measured by whether they are built."""
    counts = Counter(
        entry.verdict if entry.results else "built, not measured" if entry.method.status == "ready" else "planned"
        for entry in entries
    )
    kinds = (*VERDICTS[:3], "built, not measured", "planned")
    return [(kind, counts[kind]) for kind in kinds]


# -- texts ----------------------------------------------------------------------------------------------------------


def _shown(result: Result, known: dict[str, Machine]) -> dict[str, Any]:
    """Return a row as the texts that the page's script places; it formats no number itself."""
    mark, machine, environment = draw.gauge_of(result), known.get(machine_key(result.environment)), result.environment
    commit = str(environment.get("commit") or "")[:7] + (" and changes" if environment.get("dirty") else "")
    peers = sorted(result.peers.items(), key=lambda peer: peer[1], reverse=result.higher_is_better)
    return {
        "metric": result.metric,
        "up": result.higher_is_better,
        "here": _reading(result),
        "bounds": _bounds(result),
        "n": result.n,
        "gauge": [mark.value, mark.low, mark.high, mark.side, mark.baselines, mark.peers],
        "baseline": [(_beside(value, result), name) for name, value in result.baseline.items()],
        "peers": [(_beside(value, result), name) for name, value in peers],
        "verdict": result.verdict,
        "claim": result.claim,
        "on": [machine.letter if machine else "", machine.name if machine else "", result.model, result.data],
        "note": result.note,
        "settings": [("seed", str(result.seed)), *((name, str(value)) for name, value in result.settings.items())],
        "run": [str(environment.get("time", "")), f"commit {commit}" if commit else "", result.command],
    }


def _counted(stands: Standing) -> str:
    claims = len(stands.claims)
    return f"{stands.held} of {claims} claim{'' if claims == 1 else 's'} hold" if claims else ""


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

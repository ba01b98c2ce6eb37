"""Tables of the documentation, made from the catalogue and the result files, so that no page can go stale."""

from __future__ import annotations

import dataclasses
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from mintage import catalog
from mintage.catalog import Method
from mintage.data.corpora import CORPORA, READS_BOTH
from mintage.data.sets import SETS, DataSet
from mintage.measure import Result, newest, read_results
from mintage.measure.standing import standings

__all__ = ["ROOT", "measured", "readme_results", "render", "replace_between", "status", "table"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"

_MARK = re.compile(r"<!-- (?P<kind>[a-z-]+)(?:: (?P<argument>[\w.]+))? -->")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _rows(job: str | None = None) -> list[Method]:
    """Rows of this repository; what else is installed on the machine that builds the pages stays out."""
    return [m for m in catalog.methods(job) if m.package == "mintage"]


def _paper(method: Method) -> str:
    if not method.arxiv:
        return f"{method.title} ({method.role})"
    return f"[{method.title}](https://arxiv.org/abs/{method.arxiv})"


# -- what there is -------------------------------------------------------------------------------------------------


def methods(job: str) -> str:
    """Every method of a job: what it does, where it is from, what its paper claims, whether it is built."""
    return table(
        ("method", "what it does", "paper", "year", "trains", "the paper's claim", "status"),
        [
            (
                f"`{m.name}`",
                m.summary,
                _paper(m),
                str(m.year or ""),
                "yes" if m.trains else "no",
                m.claim,
                f"**{m.status}**" if m.status == "ready" else m.status,
            )
            for m in _rows(job)
        ],
    )


def jobs() -> str:
    """The ten jobs, each with how many of its papers are ready."""
    rows = []
    for job in catalog.JOBS:
        papers = [m for m in _rows(job) if m.role == "paper"]
        ready = sum(m.status == "ready" for m in papers)
        rows.append((f"[{job}]({job}.md)", catalog.job_summary(job), f"{ready} of {len(papers)}"))
    return table(("job", "what it is", "papers ready"), rows)


def status() -> str:
    """One sentence on how far the catalogue is."""
    papers = [m for m in _rows() if m.role == "paper"]
    ready = [m for m in papers if m.status == "ready"]
    names = ", ".join(f"`{m.name}`" for m in ready)
    return f"{len(papers)} papers in the catalogue, **{len(ready)} ready**{f': {names}' if ready else ''}."


def chooser(job: str) -> str:
    """What each ready method asks of its user, read off its class."""
    rows = []
    for m in _rows(job):
        if m.status != "ready":
            continue
        cls = m.load()
        fields = catalog.hyperparameters(m.load_settings())
        needed = [name for name, (_, default) in fields.items() if default is dataclasses.MISSING]
        settings = [name for name in fields if name not in needed]
        verifier = type(cls.verifier).__name__ if hasattr(cls, "verifier") else ""
        rows.append(
            (
                f"`{m.name}`",
                "yes" if m.trains else "no",
                ", ".join(f"`{n}`" for n in needed) or "nothing",
                ", ".join(f"`{n}`" for n in settings) or "none",
                f"`{verifier}`" if verifier else "",
            )
        )
    return table(("method", "trains", "needs", "settings", "verified when sampling by"), rows)


def modules(package: str) -> str:
    """Reference entries for every public module of a package, found without importing it."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    names = sorted(info.name for info in pkgutil.iter_modules(folders) if not info.name.startswith("_"))
    if not names:
        return "Nothing is built here yet."
    return "\n\n".join(f"## {name.replace('_', ' ')}\n\n::: {package}.{name}" for name in names)


def laws(job: str) -> str:
    """What a job's contract promises: its laws, in their own words."""
    from mintage.testing import laws as of

    return "\n".join(f"- `{name}`: {(law.__doc__ or '').strip().splitlines()[0]}" for name, law in of(job).items())


def datasets() -> str:
    """Every data set: size, where it is, licence and origin."""

    def got(one: DataSet) -> str:
        public = "the hub" if one.hub else f"`get`: {len(one.whole)} of the origin" if one.whole else "`get --from`"
        return f"in a clone; {public}" if one.ships else public

    return table(
        ("data set", "what it is", "MB", "how to get it", "licence", "origin"),
        [
            (f"`{one.name}`", one.about, f"{one.size / 1e6:.1f}", got(one), one.licence, one.origin)
            for one in SETS.values()
        ],
    )


def corpora() -> str:
    """Every corpus of texts with its split."""
    return table(
        ("corpus", "data set", "train", "held-out"),
        [
            (f"`{c.name}`", c.data or "none: the interpreter", c.train or "-", c.held_out or "-")
            for c in CORPORA.values()
        ],
    )


def whole_corpora() -> str:
    """Who reads both splits of a corpus, and why that is no leak."""
    return table(
        ("corpus", "reader", "why"),
        [(f"`{corpus}`", f"`{reader}`", why) for (corpus, reader), why in sorted(READS_BOTH.items())],
    )


# -- what was measured ---------------------------------------------------------------------------------------------


def results(job: str) -> str:
    """The newest row of everything measured in one job."""
    rows = [r for r in measured() if r.job == job]
    if not rows:
        return f"Nothing measured yet: run `mintage bench {job}`."
    tested, informing = [r for r in rows if r.claim], [r for r in rows if not r.claim]
    parts = [_claims(tested)] if tested else []
    if informing:
        parts.append(
            table(
                ("method", "metric", "here (95% interval, n)", "baseline", "best peer", "model", "data", "device"),
                [
                    (f"`{r.method}`", r.metric, _number(r), _named(r.baseline), _peer(r), r.model, r.data, r.device)
                    for r in informing
                ],
            )
        )
    return "\n\n".join(parts)


def readme_results() -> str:
    """How fast the drafters are, and every method's claims in one line each, misses counted."""
    rows = measured()
    tested = [r for r in rows if r.claim]
    if not tested:
        return "Nothing measured yet: run `mintage bench draft`."
    links = ", ".join(f"[{job}](docs/{job}.md)" for job in catalog.JOBS if any(r.job == job for r in tested))
    described = (
        "One line per method: how many of its tested claims hold, and the first of them, each as measured last. "
        f"All of them stand on the pages of {links} (`make docs`) and in `mintage report`."
    )
    return "\n\n".join(filter(None, [draft_speeds(rows), described, _claims_in_brief(tested)]))


def _claims_in_brief(rows: Sequence[Result]) -> str:
    head = (
        "job",
        "method",
        "hold",
        "first claim",
        "verdict",
        "here (95% interval, n)",
        "baseline",
        "best peer",
        "device",
    )
    told = [(stands, first) for stands in standings(rows).values() if (first := stands.headline)]
    return table(
        head,
        [
            (
                first.job,
                f"`{first.method}`",
                f"{stands.held} of {len(stands.claims)}",
                first.claim,
                first.verdict if first.verdict == "holds" else f"**{first.verdict}**",
                _number(first),
                _named(first.baseline),
                _peer(first),
                first.device,
            )
            for stands, first in sorted(told, key=lambda one: catalog.JOBS.index(one[1].job))
        ],
    )


def draft_speeds(rows: Sequence[Result]) -> str:
    """Every decoder of the widest greedy bfloat16 run: how many tokens a forward emits, and how fast it is.

    Of equally wide ones the newest; the points of a curve over numbers of nodes are no decoders to choose from.
    """
    kept = [r for r in rows if r.job == "draft" and not r.claim and r.settings.get("dtype") == "bfloat16"]
    kept = [r for r in kept if r.settings.get("temperature") == 0]
    runs: dict[tuple[str, str], set[str]] = {}
    for r in kept:
        if "--budgets" not in r.command and "--nodes" not in r.command:  # what it was called before
            runs.setdefault((r.command, r.device), set()).add(r.method)
    widest = max(reversed(runs), key=lambda run: len(runs[run]), default=("", ""))
    kept = [r for r in kept if (r.command, r.device) == widest]  # never numbers of two runs in one table
    metrics = ("tokens per target forward", "speed over generate, whole run", "tokens per second")
    cells: dict[str, dict[str, str]] = {}
    for r in kept:
        if r.metric in metrics:
            for name, value in r.baseline.items():
                cells.setdefault(name, {}).setdefault(r.metric, f"{value:.3g}")
            cells.setdefault(r.method, {})[r.metric] = _number(r).partition(", n=")[0]
    if not cells:
        return ""
    one = next(r for r in kept if r.metric in metrics)
    threads = one.environment.get("threads", "?")
    where = f"{one.device}, threads used: {threads}"
    head = f"Greedy decoding of {one.model} in bfloat16, {one.data}, n={one.n}, {where}, one run:\n\n"
    return head + table(("decoder", *metrics), [(n, *(c.get(m, "") for m in metrics)) for n, c in cells.items()])


_RUN = {"dtype": "", "max_new_tokens": "new tokens"}


def _claims(rows: Sequence[Result]) -> str:
    return table(
        ("method", "tested claim", "verdict", "here (95% interval, n)", "baseline", "best peer", "run", "device"),
        [
            (
                f"`{r.method}`",
                r.claim,
                r.verdict if r.verdict == "holds" else f"**{r.verdict}**",
                _number(r),
                _named(r.baseline),
                _peer(r),
                ", ".join(f"{r.settings[k]} {t}".strip() for k, t in _RUN.items() if k in r.settings),
                r.device,
            )
            for r in rows
        ],
    )


def measured() -> list[Result]:
    """Return the newest row of each key in the repository's results."""
    if not any(RESULTS.glob("*.jsonl")):
        return []
    return newest(row for row in read_results(RESULTS) if isinstance(row, Result))


def _number(row: Result) -> str:
    text = f"{row.value:.3g} {row.unit}".strip()
    if row.interval is not None:
        text += f" ({row.interval[0]:.3g} to {row.interval[1]:.3g})"
    return f"{text}, n={row.n}"


def _named(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def _peer(row: Result) -> str:
    best = row.best_peer()
    return f"{best[0]} {best[1]:.3g}" if best else ""


# -- filling pages -------------------------------------------------------------------------------------------------


def attention_arguments() -> str:
    """What becomes of the arguments of transformers' attention functions under a policy."""
    from mintage.keep.core.extras import KNOWN

    return table(("argument", "under a policy"), [(f"`{name}`", said) for name, said in KNOWN.items()])


CLASS = re.compile(r"\b(?:[A-Z]|xLSTM)\w*(?:For[A-Z]\w+|LM\w*|Model|Decoder)\b")
"""Names of transformers' classes in a refusal."""


def served() -> str:
    """Which kinds of models every way to run one serves (docs/served.json, written by the tests), and why not."""
    store = json.loads((ROOT / "docs" / "served.json").read_text(encoding="utf-8"))
    version = store.pop("transformers")
    kinds = sorted({kind for column in store.values() for kind in column})
    alike: dict[tuple[str, ...], list[str]] = {}  # ways that serve the same kinds share a column
    for name, column in store.items():
        alike.setdefault(tuple("yes" if column.get(k) == "served" else "no" for k in kinds), []).append(name)
    rows = [(f"`{kind}`", *said) for kind, *said in zip(kinds, *alike, strict=True)]
    reasons: dict[str, set[str]] = {}
    for column in store.values():
        for kind, outcome in column.items():
            if outcome != "served":
                reasons.setdefault(CLASS.sub("...", outcome), set()).add(f"`{kind}`")
    why = "\n".join(f"- {reason}: {', '.join(sorted(kinds))}" for reason, kinds in sorted(reasons.items()))
    counts = ", ".join(f"{name} {sum(v == 'served' for v in c.values())} of {len(c)}" for name, c in store.items())
    head = f"With transformers {version}: {counts}."
    return f"{head}\n\n{table(('kind', *map(', '.join, alike.values())), rows)}\n\nWhat the refusals say:\n\n{why}"


_KINDS: dict[str, Callable[..., str]] = {
    "methods": methods,
    "jobs": jobs,
    "status": status,
    "chooser": chooser,
    "laws": laws,
    "modules": modules,
    "results": results,
    "datasets": datasets,
    "corpora": corpora,
    "whole-corpora": whole_corpora,
    "served": served,
    "attention-arguments": attention_arguments,
}


def render(markdown: str) -> str:
    """Replace every ``<!-- kind: argument -->`` of a page by its table; unknown kinds are an error.

    Raises
    ------
    KeyError
        A page asks for a table that does not exist.
    """

    def fill(mark: re.Match[str]) -> str:
        argument = mark["argument"]
        return _KINDS[mark["kind"]](*([argument] if argument else []))

    return _MARK.sub(fill, markdown)


def replace_between(text: str, mark: str, content: str) -> str:
    """Replace what stands between ``<!-- mark -->`` and ``<!-- /mark -->``.

    Raises
    ------
    ValueError
        The marks are not there.
    """
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {start} and one {end}")
    before, rest = text.split(start)
    return f"{before}{start}\n{content}\n{end}{rest.split(end)[1]}"

import base64
import dataclasses
import gzip
import json
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.catalog import JOBS, Method, methods
from mintage.measure import draw, report
from mintage.measure.figure import Figure
from mintage.measure.report import write_report
from mintage.measure.result import read_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
VOID = {"meta", "link", "br", "wbr", "hr", "img", "input"}
DRAWN = {
    *("ul", "li", "i", "div", "svg", "g", "line", "path", "circle", "rect", "text", "title", "dl", "dt", "dd", "mark"),
    *("details", "summary", "table", "thead", "tbody", "tr", "th", "td", "span", "br", "small", "image"),
}
HOSTILE = (
    "<script>document.title='pwned'</script>",
    "</script><script>document.title='pwned'</script>",
    "</style></title></textarea><img src=x onerror=document.title='pwned'>",
    "\" onmouseover=\"document.title='pwned'\" x='",
    "' autofocus onfocus=document.title='pwned' '",
    "javascript:document.title='pwned'",
    "{{ 7 * 7 }}{% raw %}<!-- ]]> \x00\x1b\u202e\ud800\u2028",
)

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNoaGgAAAMEAYFL09IQAAAAAElFTkSuQmCC"
)
"""A picture of one grey pixel."""


class Page(HTMLParser):
    """The elements of a page, each with its attributes, its ancestors and the text inside."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "path": list(self.open), **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", "path": list(self.open), **dict(attrs)})

    def handle_endtag(self, tag):
        while self.open and self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **wanted):
        wanted = {name.rstrip("_"): value for name, value in wanted.items()}
        return [e for e in self.elements if e["tag"] == tag and all(e.get(n) == v for n, v in wanted.items())]

    def inside(self, tag, outer):
        return [e for e in self.elements if e["tag"] == tag and any(above is outer for above in e["path"])]

    @property
    def papers(self):
        """Lines of the scoreboard by method, in order, without those filtered away."""
        board = self.all("table", id="scoreboard")[0]
        lines = [row for row in self.inside("tr", board) if "data-job" in row and "hidden" not in row]
        return {self.inside("th", line)[0]["data-sort"]: line for line in lines}

    def cell(self, method, label):
        line = self.papers[method]
        return " ".join(next(e for e in self.inside("td", line) if e.get("data-label") == label)["text"].split())

    def rows(self, fold):
        """What the page's script unfolds where a method is opened."""
        return json.loads(unpacked(self.all("details", id=fold)[0]["data-rows"]))

    def drawing(self, fold):
        return Page(unpacked(self.all("details", id=fold)[0]["data-drawn"]))

    @property
    def drawings(self):
        return [self.drawing(e["id"]) for e in self.all("details") if "data-drawn" in e]


def unpacked(text):
    return gzip.decompress(base64.b64decode(text)).decode()


def saved(page):
    """The rows that the page's button saves."""
    return [json.loads(line) for line in unpacked(page.all("script", id="rows")[0]["text"]).splitlines()]


@pytest.fixture
def page(rows, tmp_path):
    return Page(write_report(rows, tmp_path / "report.html").read_text())


# -- what the page says -------------------------------------------------------------------------------------------


def test_every_paper_has_a_line_measured_or_not(page):
    papers = [m for m in methods() if m.role == "paper"]
    assert list(page.papers) == [m.name for m in papers]
    assert len(papers) >= 46
    for method in papers:
        assert method.title in page.papers[method.name]["text"]
        assert method.claim in page.papers[method.name]["text"]
        assert page.papers[method.name]["data-status"] == method.status
    assert page.papers["ems"]["data-verdict"] == "not measured"
    assert "prompt-lookup" not in page.papers  # a baseline is no paper, but its results are shown in its job
    assert page.rows("method-draft-prompt-lookup")[0]["here"] == "1.31\N{MULTIPLICATION SIGN}"


def test_a_line_tells_value_interval_n_baseline_peer_verdict_and_device(page):
    assert "1.80\N{MULTIPLICATION SIGN} [1.70, 1.88] n = 20" in page.cell("token-recycling", "Measured here")
    assert page.cell("token-recycling", "Baseline") == "1.00\N{MULTIPLICATION SIGN} plain greedy"
    assert page.cell("token-recycling", "Best peer") == "1.61\N{MULTIPLICATION SIGN} cold table"
    assert page.cell("token-recycling", "Device") == "A Intel Xeon Platinum 8481C, 2 cores"
    assert page.cell("pitome", "Best peer") == "1.70 points zero-tprune"  # lower is better here
    assert page.cell("double-sparsity", "Measured here").startswith("perplexity at 1/8 of the tokens ↓ 26.10 n = 4")


def test_the_arxiv_link(page):
    links = {e["href"] for e in page.inside("a", page.papers["pitome"]) if e["href"].startswith("http")}
    assert links == {"https://arxiv.org/abs/2405.16148"}


def test_a_verdict_that_is_not_the_headline_is_counted_not_hidden(page):
    assert page.papers["token-recycling"]["data-verdict"] == "holds"
    assert page.cell("token-recycling", "Verdict") == "holds 2 of 3 claims hold"


def test_the_headline_is_the_first_claim_of_the_newest_run(make_result, tmp_path):
    def at(hour, **changes):
        time = f"2026-03-01T{hour:02d}:00:00+00:00"
        return make_result(environment={"time": time, "commit": f"of {hour}"}, **changes)

    rows = [
        at(9, metric="old claim"),
        at(11, metric="side number", claim="", verdict="measured"),
        at(11, metric="first claim", verdict="does not hold"),
        at(11, metric="second claim"),
    ]
    page = Page(write_report(rows, tmp_path / "r.html").read_text())
    assert "first claim" in page.cell("token-recycling", "Measured here")
    assert page.papers["token-recycling"]["data-verdict"] == "does not hold"


def test_a_job_section_holds_every_row_and_what_repeats_it(page, rows):
    section = page.all("section", id="job-draft")[0]
    folds = [e["id"] for e in page.inside("details", section) if "data-rows" in e]
    assert folds == ["method-draft-token-recycling", "method-draft-prompt-lookup"]
    held = [row for fold in folds for row in page.rows(fold)]
    for row in rows:
        if getattr(row, "metric", None) and row.job == "draft":
            (shown,) = [
                one for one in held
                if (one["metric"], one["on"][1], one["claim"]) == (row.metric, row.device, row.claim)
                and one["here"] == report._reading(row)
            ]  # fmt: skip
            commit = "commit 82300d8" + " and changes" * row.environment["dirty"]
            assert shown["run"] == ["2026-03-01T10:00:00+00:00", commit, row.command]
            assert (shown["note"], shown["verdict"], shown["n"]) == (row.note, row.verdict, row.n)
            assert shown["settings"] == [["seed", "0"], ["budget", "48"], ["dtype", "float32"]]
            assert [name for _, name in shown["baseline"]] == list(row.baseline)
            assert {name for _, name in shown["peers"]} == set(row.peers)
            assert shown["on"][2:] == [row.model, row.data]
    assert "Not measured yet: dyspec, rsd, spectr, ppd." in section["text"]


def test_rows_that_test_a_claim_come_first_and_the_best_peer_does(make_result, tmp_path):
    rows = [make_result(metric="a", claim="", verdict="measured"), make_result(metric="b")]
    rows += [make_result(metric="c", higher_is_better=False)]
    shown = Page(write_report(rows, tmp_path / "r.html").read_text()).rows("method-draft-token-recycling")
    assert [row["metric"] for row in shown] == ["b", "c", "a"]
    assert [row["peers"][0][1] for row in shown] == ["cold table", "prompt-lookup", "cold table"]


def test_a_method_with_settings_stands_behind_the_method(make_result, tmp_path):
    names = ["zzz", "token-recycling:budget=8", "dyspec:budget=4", "ppd", "token-recycling", "token-recycling cold"]
    page = Page(write_report([make_result(method=name) for name in names], tmp_path / "r.html").read_text())
    assert [e["data-method"] for e in page.all("details") if "data-rows" in e] == [
        "token-recycling", "token-recycling:budget=8", "token-recycling cold", "dyspec:budget=4", "ppd", "zzz"
    ]  # fmt: skip


def test_rows_of_unknown_jobs_and_methods_are_shown(make_result, tmp_path):
    rows = [make_result(method="my-method", job="brew"), make_result(method="other-drafter")]
    page = Page(write_report(rows, tmp_path / "r.html").read_text())
    assert "my-method" in page.all("section", id="job-brew")[0]["text"]
    assert "other-drafter" in page.all("section", id="job-draft")[0]["text"]
    assert page.rows("method-brew-my-method")
    assert page.rows("method-draft-other-drafter")


def test_machines_are_lettered_and_described_once(page):
    assert [e["id"] for e in page.all("article") if e.get("id", "").startswith("machine-")] == [
        "machine-A",
        "machine-B",
    ]
    assert "NVIDIA H100 80GB HBM3" in page.all("article", id="machine-B")[0]["text"]
    assert "82300d8c0ffee" in page.all("article", id="machine-A")[0]["text"]


def test_a_machine_is_listed_once_however_many_commits_ran_on_it(make_result, tmp_path):
    def on(commit, **changes):
        environment = {"cpu": "EPYC", "cores": 2, "python": "3.11", "commit": commit, **changes}
        return make_result(metric=f"{commit} {changes}", environment=environment)

    rows = [on("aaa"), on("bbb"), on("bbb", time="2026-01-01"), on("bbb", cores=4), on("ccc", threads=1)]
    page = Page(write_report(rows, tmp_path / "r.html").read_text())
    first, second = [e for e in page.all("article") if e["id"].startswith("machine-")]
    assert (first["id"], second["id"]) == ("machine-A", "machine-B")
    assert [e["text"] for e in page.inside("dd", first)] == ["EPYC", "2", "3.11"]
    assert [[cell["text"] for cell in page.inside("td", line)] for line in page.inside("tr", first)][1:] == [
        ["bbb", "", "2"], ["aaa", "", "1"], ["ccc", "1", "1"]
    ]  # fmt: skip
    assert "bbb" in second["text"]
    assert not page.inside("table", second)


def test_broken_plugins_show_their_problem(tmp_path):
    rows = [
        Method(name="foo", job="", title="foo:ROW", package="foo-tokens 0.2", problem="plug-in 'foo' failed to import")
    ]
    page = Page(write_report([], tmp_path / "r.html", rows=rows).read_text())
    assert page.papers["foo"]["data-status"] == "broken"
    assert "plug-in 'foo' failed to import" in page.papers["foo"]["text"]


def test_an_empty_report_is_the_list_of_papers(tmp_path):
    page = Page(write_report([], tmp_path / "r.html").read_text())
    assert len(page.papers) >= 46
    assert not [e for e in page.all("section") if e.get("class") == "job"]


def test_only_the_newest_row_of_a_key_is_shown(make_result, tmp_path):
    text = write_report([make_result(value=1.75), make_result(value=1.85)], tmp_path / "r.html").read_text()
    assert "1.85\N{MULTIPLICATION SIGN}" in text
    assert "1.75\N{MULTIPLICATION SIGN}" not in text
    assert [row["here"][:4] for row in Page(text).rows("method-draft-token-recycling")] == ["1.85"]


def test_the_rows_can_be_taken_out_of_the_page(page, rows):
    assert [row["value"] for row in saved(page)] == [row.value for row in rows if hasattr(row, "metric")]


def test_the_page_asks_the_network_for_nothing(rows, tmp_path):
    text = write_report(rows, tmp_path / "r.html").read_text()
    page = Page(text)
    assert not [
        e for e in page.elements if e["tag"] in ("link", "img", "iframe", "object", "embed", "form") and "action" in e
    ]
    assert not [e for e in page.elements if {"src", "srcset", "data"} & set(e)]
    assert not re.search(r"@import|url\(", text)
    assert len(text) < 400_000
    policy = next(e["content"] for e in page.all("meta") if "http-equiv" in e)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_methods_whose_names_differ_only_in_signs_have_folds_of_their_own(make_result, tmp_path):
    rows = [make_result(method=name) for name in ("my drafter", "my:drafter", "my-drafter--2", "my,drafter")]
    page = Page(write_report(rows, tmp_path / "r.html").read_text())
    folds = [e["id"] for e in page.all("details") if "data-rows" in e]
    assert len(set(folds)) == 4


def test_ids_are_unique_and_links_inside_the_page_lead_somewhere(page):
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    targets = {e["href"][1:] for e in page.all("a") if e["href"].startswith("#")}
    assert targets <= set(ids)


# -- hostile texts ------------------------------------------------------------------------------------------------


def poisoned(make_result, text):
    row = make_result(
        method=text, metric=text, unit=text, claim=text, model=text, data=text, command=text, note=text,
        baseline={text: 1.0}, peers={text: 2.0}, settings={text: text},
        environment={"cpu": text, text: text, "time": text},
    )  # fmt: skip
    series = [{"name": text, "x": [1, 2], "y": [1.0, None]}, {"name": text + "2", "x": [1, 2], "y": [1, 3]}]
    nodes = [{"parent": -1, "token": text, "accepted": True, "score": 0.1}]
    layouts = {
        "curve": {"x_label": text, "y_label": text, "series": series},
        "bars": {"y_label": text, "categories": [text, text], "series": series},
        "heatmap": {"x_label": text, "y_label": text, "z_label": text, "z": [[1, 2]], "x": [text, text], "y": [text]},
        "tree": {"nodes": nodes, "context": text, "emitted": text},
        "token-map": {"tokens": [{"text": text, "value": 0.5, "group": text}]},
        "patch-map": {"images": [{"src": PIXEL, "label": text, "groups": [[0, None]]}]},
    }
    figures = [
        Figure(
            job=text, name=kind, title=text, caption=text, kind=kind, data=data, method=text, environment={text: text}
        )
        for kind, data in layouts.items()
    ]
    method = Method(
        name=text, job="draft", title=text, arxiv=text, year=2024, claim=text, summary=text, package=text, problem=text
    )
    return [row, dataclasses.replace(row, job=text), *figures], [method]


def harmless(html):
    """Check that a page has its own two scripts and nothing that a text could have added."""
    page = Page(html)
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert not [name for e in page.elements for name in e if name.startswith("on")]
    assert not [e for e in page.all("a") if not re.match(r"#|https://arxiv\.org/abs/[\d.v]+$", e["href"])]
    assert page.all("title")[0]["text"] == "mintage: the scoreboard"
    for drawn in page.drawings:
        assert {e["tag"] for e in drawn.elements} <= DRAWN
        assert not [name for e in drawn.elements for name in e if name.startswith("on") or name == "src"]
        assert all(e["href"].startswith("data:image/") for e in drawn.elements if "href" in e)
    return page


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(make_result, tmp_path, text):
    rows, catalogue = poisoned(make_result, text)
    html = write_report(rows, tmp_path / "r.html", rows=catalogue).read_bytes().decode("utf-8")
    page = harmless(html)
    if text.isprintable():
        (row,) = page.rows(next(e["id"] for e in page.all("details") if e.get("data-method") == text))
        assert json.dumps(row).count(json.dumps(text)[1:-1]) >= 8
        assert saved(page)[0]["note"] == text
        assert (
            sum(
                text in drawn.elements[0]["text"] or any(text in e["text"] for e in drawn.elements)
                for drawn in page.drawings
            )
            >= 4
        )
    if "{{" in text:
        assert "{{ 7 * 7 }}{% raw %}" in next(e["data-method"] for e in page.all("details") if "data-method" in e)


# -- drawings -----------------------------------------------------------------------------------------------------


@given(st.text())
def test_visible_text_is_visible(text):
    shown = draw.visible(text)
    assert shown.isprintable()
    assert " " not in shown


def test_visible_examples():
    assert draw.visible(" the\n\t") == "␣the↵⇥"
    assert draw.visible("a\u202eb\u200b") == "a⟨U+202E⟩b⟨U+200B⟩"
    assert draw.visible("\u0301") == "◌\u0301"
    assert draw.visible("naïve 漢字 👍") == "naïve␣漢字␣👍"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (46, "46"), (1.796, "1.796"), (12345.6, "12,346"), (-0.25, "\N{MINUS SIGN}0.2500"), (2e-7, "2.00e-07")],
)
def test_numbers(value, shown):
    assert draw.number(value) == shown


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0, 12], ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5"]),
        ([0, 1.2], ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25"]),
        ([0, 100], ["0", "20", "40", "60", "80", "100"]),
        ([0, 0.5], ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]),
    ],
)
def test_ticks_are_labelled_where_they_stand(values, labels):
    scale = draw._scale(values, 0, 1)
    assert [f"{tick:.{scale.places}f}" for tick in scale.ticks] == labels


@pytest.mark.parametrize(
    ("value", "interval", "places"),
    [(1.796, (1.7, 1.88), 2), (0.42, (0.11, 0.73), 2), (97.25, (96.1, 98.2), 1), (2.0, None, 0), (26.1, None, 2),
     (812.0, (700.0, 900.0), 0)],
)  # fmt: skip
def test_the_interval_decides_how_many_places_are_worth_printing(make_result, value, interval, places):
    assert draw.shown_decimals(make_result(value=value, interval=interval)) == places


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, "up"),
        ({"higher_is_better": False}, "down"),
        ({"interval": (0.9, 1.9)}, "level"),
        ({"interval": None}, "level"),
        ({"baseline": {}}, "level"),
        ({"baseline": {"a": 1.0, "b": 1.75}}, "level"),
        ({"baseline": {"a": 1.9, "b": 2.0}}, "down"),
    ],
)
def test_a_gauge_takes_colour_only_where_the_interval_decides(make_result, changes, side):
    assert f'class="dot {side}"' in draw.gauge(make_result(**changes))


@st.composite
def trees(draw_from):
    nodes = []
    for place in range(draw_from(st.integers(0, 25))):
        parent = draw_from(st.integers(-1, place - 1))
        taken = any(n["accepted"] for n in nodes if n["parent"] == parent)
        accepted = draw_from(st.booleans()) and not taken and (parent < 0 or nodes[parent]["accepted"])
        nodes.append({"parent": parent, "token": draw_from(st.text(max_size=30)), "accepted": accepted, "score": None})
    return nodes


@settings(deadline=None, max_examples=50)
@given(trees())
def test_tree_boxes_never_overlap_and_the_accepted_path_is_straight(nodes):
    figure = Figure(
        job="draft", name="t", title="t", caption="", kind="tree",
        data={"nodes": nodes, "context": "some context", "emitted": "x"},
    )  # fmt: skip
    page = Page(draw.drawing(figure))
    boxes = []
    for group in [e for e in page.all("g") if e.get("class", "").startswith("node ")]:
        rect = page.inside("rect", group)[0]
        boxes.append((float(rect["x"]), float(rect["y"]), float(rect["width"]), group["class"]))
    assert len(boxes) == len(nodes) + 1
    for i, (x, y, width, _) in enumerate(boxes):
        for other_x, other_y, _, _ in boxes[i + 1 :]:
            assert y != other_y or not x - 1e-6 <= other_x < x + width
    assert len({y for _, y, _, kind in boxes if kind != "node rejected"}) == 1
    view = [float(v) for v in page.all("svg")[0]["viewbox"].split()]
    assert all(x >= 0 and x + width <= view[2] + 1 and 0 <= y <= view[3] for x, y, width, _ in boxes)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("curve", {"x_label": "x", "y_label": "y", "series": []}),
        ("curve", {"x_label": "x", "y_label": "y", "series": [{"name": "a", "x": [1], "y": [2]}]}),
        ("curve", {"x_label": "x", "y_label": "y", "series": [{"name": "a", "x": [0, 0], "y": [None, None]}]}),
        ("curve", {"x_label": "x", "y_label": "y", "series": [{"name": "a", "x": [0, 1e9], "y": [-1e-7, 0]}]}),
        ("bars", {"y_label": "y", "categories": [], "series": []}),
        ("bars", {"y_label": "y", "categories": ["a"], "series": [{"name": "a", "y": [-3]}]}),
        ("heatmap", {"x_label": "x", "y_label": "y", "z": []}),
        ("heatmap", {"x_label": "x", "y_label": "y", "z": [[None, 1], [1, 1]]}),
        ("tree", {"nodes": [], "context": "", "emitted": ""}),
        ("token-map", {"tokens": []}),
        ("patch-map", {"images": []}),
        ("patch-map", {"images": [{"src": PIXEL, "label": "", "groups": []}]}),
    ],
)
def test_figures_with_little_in_them_are_drawn(tmp_path, kind, data):
    figure = Figure(job="draft", name="x", title="t", caption="c", kind=kind, data=data)
    assert "nan" not in draw.drawing(figure)
    harmless(write_report([figure], tmp_path / "r.html").read_text())


def test_a_patch_map_tints_shared_tokens_darkens_dropped_patches_and_draws_borders():
    images = [{"src": PIXEL, "label": "a cat", "groups": [[0, 0, 1], [0, 2, None]]}]
    figure = Figure(job="reduce", name="x", title="t", caption="c", kind="patch-map", data={"images": images})
    page = Page(draw.drawing(figure))
    tinted = [(e["x"], e["y"]) for e in page.all("rect") if e["class"].startswith("tint")]
    assert tinted == [("0", "0"), ("1", "0"), ("0", "1")]
    assert [(e["x"], e["y"]) for e in page.all("rect", class_="gone")] == [("2", "1")]
    drawn = page.all("path")[0]["d"]
    assert sorted(re.findall(r"M\d \d[hv]1", drawn)) == ["M1 1h1", "M1 1v1", "M2 0v1", "M2 1h1", "M2 1v1"]


def test_a_heat_map_of_many_cells_has_an_element_per_shade():
    z = [[column / 100 for column in range(100)] for _ in range(50)]
    data = {"x_label": "x", "y_label": "y", "z": z}
    page = Page(draw.drawing(Figure(job="keep", name="x", title="t", caption="c", kind="heatmap", data=data)))
    cells = page.all("path", class_="cell")
    assert 20 < len(cells) < 40
    assert sum(e["d"].count("M") for e in cells) == 5000
    tints = [float(e["style"].removeprefix("fill-opacity:")) for e in cells]
    assert tints == sorted(tints)
    darkest = [float(x) for x in re.findall(r"M([\d.]+) ", cells[-1]["d"])]
    assert min(darkest) > max(float(x) for x in re.findall(r"M([\d.]+) ", cells[0]["d"]))


def test_many_peers_are_one_element_of_a_gauge(make_result):
    peers = {f"peer {place}": place / 10 for place in range(40)}
    page = Page(draw.gauge(make_result(value=2.0, interval=None, peers=peers)))
    (marks,) = page.all("path", class_="peer")
    assert 35 < marks["d"].count("M") <= 40
    assert "peers 0 to 3.900" in page.all("svg")[0]["aria-label"]


def test_the_interval_of_a_point_that_stands_alone_is_seen():
    series = {"name": "a", "x": [1], "y": [2], "low": [1], "high": [3]}
    figure = Figure(
        job="lm", name="x", title="x", caption="", kind="curve", data={"x_label": "", "y_label": "", "series": [series]}
    )
    (whisker,) = re.findall(r'<line class="whisker"[^>]*>', draw.drawing(figure))
    y1, y2 = (float(found) for found in re.findall(r'y[12]="([^"]+)"', whisker))
    assert abs(y1 - y2) > 50


def test_a_gap_breaks_the_line(page):
    series = {"name": "a", "x": [1, 2, 3, 4, 5], "y": [1, 2, None, 4, 5]}
    data = {"x_label": "x", "y_label": "y", "series": [series]}
    drawn = Page(draw.drawing(Figure(job="draft", name="x", title="t", caption="c", kind="curve", data=data)))
    assert len(drawn.all("path", class_="line")) == 2
    assert len(drawn.all("circle", class_="point")) == 4


def test_the_numbers_behind_a_chart_stand_beside_it(page):
    drawn = page.drawing("figure-reduce-speed")
    table = drawn.all("table", class_="numbers")[0]
    assert "Zero-TPrune" in table["text"]
    cells = [e["text"] for e in drawn.inside("td", table)]
    assert cells == ["1.120", "1.410", "1.190", "1.520", "0.9400", "", "1.240", "1.710"]


# -- in a browser -------------------------------------------------------------------------------------------------

browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH; install it to open the report")


def chromium(profile, *arguments):
    run = subprocess.run([CHROMIUM, *QUIET, f"--user-data-dir={profile}", *arguments], capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr.decode(errors="replace")[-2000:]
    return run.stdout.decode("utf-8")


@pytest.fixture
def open_page(rows, tmp_path):
    path = write_report(rows, tmp_path / "report.html")

    def load(fragment=""):
        wait = "--virtual-time-budget=5000"  # for what unfolds
        return Page(chromium(tmp_path / "profile", wait, "--dump-dom", f"{path.as_uri()}{fragment}"))

    return load


@browser
@pytest.mark.browser
def test_browser_shows_all_papers_and_the_controls(open_page):
    page = open_page()
    assert list(page.papers) == [m.name for m in methods() if m.role == "paper"]
    assert "hidden" not in page.all("form", id="controls")[0]
    assert page.all("output", id="shown")[0]["text"] == f"{len(page.papers)} of {len(page.papers)}"
    assert [e["text"] for e in page.all("option")][1:11] == list(JOBS)


@browser
@pytest.mark.browser
def test_browser_filters(open_page):
    page = open_page("#filter=token%20recycling&job=draft")
    assert list(page.papers) == ["token-recycling"]
    assert page.all("output", id="shown")[0]["text"].startswith("1 of ")
    assert "hidden" in page.all("p", id="none-shown")[0]
    page = open_page("#verdict=holds")
    assert list(page.papers) == ["token-recycling", "pitome", "number-tokens"]
    page = open_page("#filter=%3Cscript%3Ealert(1)%3C/script%3E&sort=__proto__&job=nonsense")
    assert page.papers == {}
    assert "hidden" not in page.all("p", id="none-shown")[0]
    assert len(page.all("script")) == 2


@browser
@pytest.mark.browser
def test_browser_sorts_and_keeps_lines_without_a_value_last(open_page):
    page = open_page("#sort=measured&dir=desc")
    measured = ["number-tokens", "double-sparsity", "zett", "token-recycling", "pitome"]
    assert list(page.papers)[:5] == measured
    head = next(e for e in page.all("th") if e.get("data-key") == "measured")
    assert head["aria-sort"] == "descending"
    assert list(open_page("#sort=measured").papers)[:5] == measured[::-1]
    assert list(open_page("#sort=method").papers) == sorted(page.papers)


def drive(path, script, *, width=1400):
    """Run a script beside the page, which is in a frame of that width from the same origin; return what it returns.

    The script knows the frame, its ``page`` and ``seconds`` (from the start until the scoreboard was drawn), and
    ``unfolded(fold)``, which opens one.
    """
    driver = path.parent / "driver.html"
    driver.write_text(
        f"""<meta charset="utf-8"><pre></pre><iframe style="border:0" width="{width}" height="900"></iframe><script>
        const frame = document.querySelector("iframe"), began = performance.now();
        const unfolded = (fold) => new Promise((done) => {{
          fold.addEventListener("unfolded", () => done(fold), {{ once: true }}); fold.open = true; }});
        frame.onload = () => setTimeout(async () => {{
          const page = frame.contentDocument;
          const board = page.querySelector("#scoreboard tbody tr").getBoundingClientRect();
          const seconds = (performance.now() - began) / 1000;
          try {{ var out = await (async () => {{ {script} }})(); }} catch (error) {{ out = String(error); }}
          document.querySelector("pre").textContent = JSON.stringify(out) + "\u2029";
        }}, 0);
        frame.src = "{path.name}";
        </script>""",
        encoding="utf-8",
    )
    dom = chromium(
        path.parent / "profile", "--allow-file-access-from-files", "--virtual-time-budget=60000", "--dump-dom",
        driver.as_uri(),
    )  # fmt: skip
    return json.loads(Page(dom).all("pre")[0]["text"].partition("\u2029")[0])


@browser
@pytest.mark.browser
def test_browser_clicks_on_heads_and_keeps_the_state_in_the_address(rows, tmp_path):
    seen = drive(
        write_report(rows, tmp_path / "report.html"),
        """
        const seen = [], lines = () => [...page.querySelectorAll("#scoreboard tbody tr:not([hidden])")];
        const order = () => lines().map(line => line.cells[0].dataset.sort);
        const head = page.querySelector("th[data-key=method] button");
        seen.push(order()[0]); head.click(); seen.push(order()[0]); head.click(); seen.push(order()[0]);
        const box = page.getElementById("filter");
        box.value = "dnabert"; box.dispatchEvent(new Event("input", {bubbles: true}));
        seen.push(order().join(), frame.contentWindow.location.hash);
        page.querySelector("button[type=reset]").click(); seen.push(order().length, box.value);
        return seen;
        """,
    )
    names = sorted(m.name for m in methods() if m.role == "paper")
    first = next(m.name for m in methods() if m.role == "paper")
    assert seen[:3] == [first, names[0], names[-1]]
    assert seen[3] == "dnabert2"
    assert seen[4] == "#filter=dnabert&sort=method&dir=desc"
    assert seen[5:] == [len(names), ""]


@browser
@pytest.mark.browser
def test_browser_unfolds_what_a_link_leads_to(open_page):
    assert not open_page().all("table", class_="results")
    page = open_page("#method-draft-token-recycling")
    (table,) = page.all("table", class_="results")
    text = " ".join(table["text"].split())
    assert "1.80\N{MULTIPLICATION SIGN} [1.70, 1.88] n = 20" in text
    assert "holdshot table makes at least 1.7 tokens per forward" in text
    assert "seed 0 budget 48 dtype float32 2026-03-01T10:00:00+00:00 commit 82300d8 and changes mintage bench" in text
    assert {e["class"] for e in page.inside("circle", table)} == {"dot up", "dot down"}
    assert page.inside("svg", table)[0]["aria-label"].startswith("token-recycling 1.80\N{MULTIPLICATION SIGN}; [1.70")
    (links,) = {e["href"] for e in page.inside("a", page.inside("tbody", table)[0])}
    assert links == "#machine-A"
    drawn = open_page("#figure-reduce-speed").all("figure")
    assert "Zero-TPrune" in drawn[0]["text"]


@browser
@pytest.mark.browser
def test_browser_shows_few_of_many_peers_and_the_others_on_demand(make_result, tmp_path):
    row = make_result(peers={f"peer {place:02d}": place / 10 for place in range(20)})
    path = write_report([row], tmp_path / "report.html")
    fold = f"{path.as_uri()}#method-draft-token-recycling"
    page = Page(chromium(tmp_path / "profile", "--virtual-time-budget=5000", "--dump-dom", fold))
    cell = next(e for e in page.all("td", class_="peers"))
    assert [e["text"] for e in page.inside("summary", cell)] == ["14 more"]
    assert [e["text"] for e in page.inside("small", cell)] == [f"peer {place:02d}" for place in range(19, -1, -1)]


@browser
@pytest.mark.browser
def test_browser_runs_nothing_that_came_with_a_result(make_result, tmp_path):
    rows, catalogue = [], []
    for text in HOSTILE:
        more, methods_ = poisoned(make_result, text)
        rows += more
        catalogue += methods_
    path = write_report(rows, tmp_path / "r.html", rows=catalogue)
    page = harmless(chromium(tmp_path / "profile", "--dump-dom", path.as_uri()))
    assert len(page.papers) == len(HOSTILE)
    seen = drive(
        path,
        """
        const folds = [...page.querySelectorAll("details.method, details.figure")];
        for (const fold of folds) await unfolded(fold);
        await new Promise((done) => setTimeout(done, 500));
        const all = [...page.querySelectorAll("*")];
        return {
          folds: folds.length,
          title: page.title,
          bad: all.filter((e) => ["SCRIPT", "IMG", "IFRAME", "OBJECT"].includes(e.tagName)).length,
          handlers: all.flatMap((e) => [...e.attributes]).filter((a) => a.name.startsWith("on")).length,
          links: [...new Set([...page.links].map((a) => a.protocol))],
          shown: page.querySelector("table.results").textContent.includes("document.title='pwned'"),
        };
        """,
    )
    assert seen == {
        "folds": 7 * len(HOSTILE), "title": "mintage: the scoreboard", "bad": 2, "handlers": 0, "links": ["file:"],
        "shown": True,
    }  # fmt: skip


RESULTS = Path(__file__).parent.parent.parent / "results"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of all results of this repository."""
    return write_report(read_results(RESULTS), tmp_path_factory.mktemp("whole") / "report.html")


def test_the_page_of_all_results_has_at_most_three_megabytes(whole):
    assert whole.stat().st_size <= 3_000_000


@browser
@pytest.mark.browser
def test_browser_opens_the_page_of_all_results_in_two_seconds(whole):
    """The best of three, because a busy machine is no slow page."""
    seconds = min(drive(whole, "return board.height > 20 ? seconds : Infinity;") for _ in range(3))
    assert seconds < 2


@browser
@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 1000, 800])
def test_browser_columns_never_overlap(whole, width):
    """Every text and drawing of a cell lies in its cell, no two cells overlap, and nothing is wider than the page."""
    seen = drive(
        whole,
        """
        const folds = [...page.querySelectorAll("details.method")];
        const wanted = ["token-recycling", "ems", "pitome", "lib", "zett", "number-tokens"];
        const opened = folds.filter((fold) => wanted.includes(fold.dataset.method));
        for (const fold of opened) await unfolded(fold);
        for (const more of page.querySelectorAll("details.method[open] td details")) more.open = true;
        function boxes(cell) {
          const found = [...cell.querySelectorAll("svg")].map((svg) => svg.getBoundingClientRect());
          const walker = page.createTreeWalker(cell, NodeFilter.SHOW_TEXT), range = page.createRange();
          while (walker.nextNode()) {
            range.selectNodeContents(walker.currentNode);
            found.push(...range.getClientRects());
          }
          return found.filter((box) => box.width > 0.5 && box.height > 0.5);
        }
        const bad = [], inside = (box, cell) => box.left >= cell.left - 1 && box.right <= cell.right + 1
          && box.top >= cell.top - 1 && box.bottom <= cell.bottom + 1;
        const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
        let rows = 0;
        for (const row of page.querySelectorAll("#scoreboard tr, .results tr")) {
          const cells = [...row.cells].filter((cell) => cell.getBoundingClientRect().left > -500);
          const places = cells.map((cell) => cell.getBoundingClientRect());
          rows += cells.length > 0;
          cells.forEach((cell, i) => {
            if (!boxes(cell).every((box) => inside(box, places[i]))) bad.push(`out of its cell: ${cell.textContent}`);
            for (let j = 0; j < i; j++) if (meet(places[i], places[j])) bad.push(`overlap: ${cell.textContent}`);
          });
        }
        const wide = page.documentElement.scrollWidth;
        return { bad: [...new Set(bad)].slice(0, 5), rows, opened: opened.length, wide };
        """,
        width=width,
    )
    assert seen["bad"] == []
    assert seen["wide"] <= width
    assert seen["opened"] == 6
    assert seen["rows"] > 500


@browser
@pytest.mark.browser
def test_browser_draws_light_dark_and_narrow(rows, tmp_path):
    path = write_report(rows, tmp_path / "report.html")
    pictures = {}
    for name, width, more in (
        ("light", 1400, ()),
        ("dark", 1400, ("--blink-settings=preferredColorScheme=0",)),
        ("narrow", 500, ()),
    ):
        shot = tmp_path / f"{name}.png"
        chromium(tmp_path / "profile", *more, f"--window-size={width},900", f"--screenshot={shot}", path.as_uri())
        pictures[name] = shot.read_bytes()
        assert struct.unpack(">II", pictures[name][16:24]) == (width, 900)
        assert len(pictures[name]) > 20_000
    assert len(set(pictures.values())) == 3

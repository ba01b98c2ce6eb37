"""The report of an audit, as a value and as a file."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mintage.audit import Report
from mintage.errors import UserError
from mintage.measure import Figure

CELL = st.none() | st.text(max_size=5) | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
FIGURE = Figure(
    job="audit",
    name="f",
    title="t",
    caption="c",
    kind="bars",
    data={"y_label": "y", "categories": ["a"], "series": [{"name": "s", "y": [1.0]}]},
)


@given(
    st.dictionaries(st.text(max_size=5), CELL, max_size=3), st.lists(CELL, max_size=3), st.lists(st.text(max_size=9))
)
def test_json_gives_the_report_back(findings, column, notes):
    report = Report(
        audit="a", subject="é\u2028", findings=findings, table=[{"x": c} for c in column], figures=[FIGURE], notes=notes
    )
    assert Report.from_json(report.to_json()) == report


def test_save_writes_the_file_whole(tmp_path):
    report = Report(audit="a", subject="s", findings={"n": 1}, figures=[FIGURE])
    report.save(tmp_path / "new" / "report.json")
    assert Report.from_json((tmp_path / "new" / "report.json").read_text(encoding="utf-8")) == report
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"figures": []}', '{"figures": [{"job": "audit"}]}', "null"])
def test_what_is_no_report_is_told_in_one_line(text):
    with pytest.raises(UserError) as told:
        Report.from_json(text)
    assert "\n" not in str(told.value)


def test_a_damaged_figure_is_refused():
    held = json.loads(Report(audit="a", subject="s", findings={}, figures=[FIGURE]).to_json())
    held["figures"][0]["data"]["series"][0]["y"] = [1.0, 2.0]
    with pytest.raises(UserError):
        Report.from_json(json.dumps(held))

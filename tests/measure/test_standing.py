"""Which rows stand for a method, and the few of them that travel with the package."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from mintage.catalog import methods
from mintage.measure.advice import find_number
from mintage.measure.figure import Figure, bars
from mintage.measure.report import write_report
from mintage.measure.result import Result, append_results, newest, read_results
from mintage.measure.scoreboard import SHIPPED, compact, evidence, shipped_rows, write_scoreboard
from mintage.measure.standing import standing, standings

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def at(make_result):
    """Make a row of an hour of the day, by the code of that hour."""

    def make(hour, **changes):
        time = f"2026-03-01T{hour:02d}:00:00+00:00"
        return make_result(**{"environment": {"time": time, "commit": f"c{hour}", "cpu": "a"}, **changes})

    return make


def test_a_claim_measured_again_stands_once_by_its_newest_row(at):
    rows = [
        at(9, value=1.9, n=99, settings={"n": 99}),
        at(11, value=1.75, n=9, settings={"n": 9}, verdict="does not hold"),
    ]
    for order in (rows, rows[::-1]):
        stands = standing(order)
        assert [row.value for row in stands.claims] == [1.75]
        assert stands.held == 0


@pytest.mark.parametrize("other", [{"settings": {"dtype": "float32"}}, {"data": "other texts"}, {"model": "larger"}])
def test_other_precision_data_or_model_is_another_claim(at, other):
    stands = standing([at(9, settings={"dtype": "bfloat16"}), at(9, verdict="does not hold", **other)])
    assert (stands.held, len(stands.claims)) == (1, 2)


def test_a_gpu_does_not_hide_what_failed_on_a_cpu(at):
    gpu = {"time": "2026-03-02", "gpu": "H100"}
    stands = standing([at(9, verdict="does not hold"), at(9, environment=gpu)])
    assert [row.verdict for row in stands.claims] == ["does not hold", "holds"]


def test_another_cpu_measures_the_same_claim_again(at):
    stands = standing([at(9), at(11, environment={"time": "2026-03-02", "cpu": "b"}, verdict="does not hold")])
    assert [row.verdict for row in stands.claims] == ["does not hold"]


FREE = {"cpu": "a", "instructions": "AVX512+AMX", "limits": None}
LIMITED = {"cpu": "a", "instructions": "AVX2", "limits": "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2"}


def on(hour, kind, commit="c"):
    return {"time": f"2026-03-01T{hour:02d}:00:00+00:00", "commit": commit, **kind}


@pytest.mark.parametrize("free", [FREE, {"cpu": "a"}], ids=["told", "of before rows told"])
def test_a_run_limited_to_fewer_instructions_stands_beside_the_free_one(at, free):
    """And the free one is told first, though it is older."""
    rows = [at(9, environment=on(9, free)), at(9, environment=on(11, LIMITED), verdict="does not hold")]
    for order in (rows, rows[::-1]):
        stands = standing(order)
        assert {row.device for row in stands.claims} == {row.device for row in rows}
        assert (stands.held, len(stands.claims)) == (1, 2)
        assert stands.headline.verdict == "holds"
    assert standing(rows[1:]).headline.device == "a, limited to AVX2"


def test_limited_runs_replace_each_other(at):
    rows = [at(9, environment=on(hour, LIMITED), value=hour) for hour in (9, 10)]
    assert [row.value for row in standing(rows).claims] == [10]


def test_an_old_row_that_does_not_tell_its_instructions_gives_way_to_one_that_does(at):
    old, new = at(9), at(9, environment=on(11, FREE), value=2.0)
    informs = {"claim": "", "verdict": "measured"}
    for given in ({}, informs):
        rows = [dataclasses.replace(row, **given) for row in (old, new)]
        assert [row.value for row in newest(rows)] == [2.0]
        assert [row.value for row in newest(rows[::-1])] == [2.0]
    assert len(newest([old, at(9, environment=on(8, FREE))])) == 2  # newer: nothing has taken its place
    gpu = on(11, {**FREE, "gpu": "H100"})
    assert len(newest([at(9, environment=gpu)])) == 1


def test_two_sets_of_instructions_under_one_name_are_two_machines(at):
    rows = [at(9, environment=on(9, {"cpu": "a", "instructions": used})) for used in ("AVX2", "AVX512")]
    assert len(newest(rows)) == 2


def test_a_figure_of_a_limited_run_does_not_take_the_place_of_the_free_ones():
    bar = bars("tokens", ["a"], {"b": [1.0]})
    drawn = [Figure(job="draft", name="f", title="", caption="", environment=e, **bar) for e in (FREE, LIMITED, FREE)]
    assert newest(drawn) == [drawn[2], drawn[1]]
    assert [figure.key for figure in drawn] == ["draft/f"] * 3


def test_advice_cites_a_limited_run_last(at):
    rows = [at(9, environment=on(9, FREE), value=2.0), at(9, environment=on(11, LIMITED), value=1.0)]
    asked = {"metric": rows[0].metric}
    assert find_number("token-recycling", rows, asked).value == 2.0
    assert find_number("token-recycling", rows[1:], asked).value == 1.0


def test_an_edited_sentence_takes_the_place_of_the_old_one(at):
    stands = standing([at(9, claim="at least 1.5"), at(11, claim="at least 1.7")])
    assert [row.claim for row in stands.claims] == ["at least 1.7"]


def test_the_headline_is_the_first_claim_of_the_methods_own_newest_run(at):
    rows = [
        at(9, metric="dropped since"),
        at(11, metric="first"),
        at(11, metric="second"),
        at(11, metric="informs", claim="", verdict="measured"),
        at(12, metric="joint", command="mintage bench draft"),
    ]
    assert standing(rows).headline.metric == "first"
    assert standing(rows[3:4]).headline.metric == "informs"
    assert standing(rows[4:]).headline.metric == "joint"
    assert standing([]).headline is None


def test_parts_of_one_run_are_one_run(at):
    early, late = at(9, metric="first"), at(10, metric="second")
    late = dataclasses.replace(late, environment=late.environment | {"commit": early.environment["commit"]})
    assert standing([early, late]).headline.metric == "first"


def test_readme_report_show_and_shipped_rows_agree(tmp_path):
    rows = [row for row in read_results(ROOT / "results") if isinstance(row, Result)]
    readme = (ROOT / "README.md").read_text()
    page = write_report(rows, tmp_path / "r.html").read_text()
    for name, stands in standings(rows).items():
        if stands.claims:
            counted = f"{stands.held} of {len(stands.claims)}"
            assert f"| `{name}` | {counted} | {stands.headline.claim} |" in readme
            brought = evidence(name, tmp_path / "nowhere").standing
            assert (brought.held, len(brought.claims)) == (stands.held, len(stands.claims))
            assert brought.headline.metric == stands.headline.metric
            if any(m.name == name and m.role == "paper" for m in methods()):
                assert f"{counted} claim" in page


# -- the rows that travel -----------------------------------------------------------------------------------------


def test_the_shipped_rows_are_small_and_all_of_the_claims():
    assert SHIPPED.stat().st_size <= 300_000
    rows = [row for row in read_results(ROOT / "results") if isinstance(row, Result)]
    papers = {m.name for m in methods(role="paper") if m.status == "ready"}
    measured = {row.method for row in rows if row.claim}
    assert papers & measured <= {row.method for row in shipped_rows() if row.claim}
    claims = sum(bool(row.claim) for row in shipped_rows())
    assert sum(len(stands.claims) for stands in standings(rows).values()) == claims


def test_a_shipped_row_has_all_that_judges_it(at):
    given = {
        "time": "2026-03-01", "commit": "abc", "dirty": False, "cpu": "EPYC", "cores": 2, "gpu": None, "python": "3.11",
        "instructions": "AVX2", "limits": "ATEN_CPU_CAPABILITY=avx2",
    }  # fmt: skip
    row = at(
        9, value=1 / 3, interval=(0.3333333, 0.66666666), peers={"a": 1.0, "b": 2.0}, environment=given, note="mind"
    )
    (kept,) = compact([row])
    assert (kept.value, kept.interval, kept.n, kept.verdict) == (0.33333, (0.33333, 0.66667), row.n, row.verdict)
    assert (kept.claim, kept.metric, kept.unit, kept.note) == (row.claim, row.metric, row.unit, "mind")
    assert (kept.baseline, kept.peers) == (row.baseline, {"b": 2.0})
    assert kept.device == "EPYC, 2 cores, limited to AVX2"
    assert kept.environment == {name: value for name, value in given.items() if name not in ("gpu", "python")}


def test_what_is_written_is_read_back(at, rows, tmp_path):
    some = [*rows, at(9, metric="bare", claim="", verdict="measured", unit="", baseline={}, peers={}, interval=None)]
    assert read_results(write_scoreboard(some, tmp_path / "s.jsonl")) == compact(some)


def test_a_method_that_claims_nothing_keeps_one_row(at):
    rows = [at(h, method="prompt-lookup", metric=f"m{h}", claim="", verdict="measured") for h in (9, 11)]
    assert [row.metric for row in compact(rows)] == ["m11"]


def test_rows_of_a_folder_win_where_they_are_newer(at, tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    append_results(new / "draft.jsonl", [at(9, environment={"time": "2126-01-01"})])
    append_results(old / "draft.jsonl", [at(9, environment={"time": "2020-01-01"})])
    assert evidence("token-recycling", new).folder == new
    assert len(evidence("token-recycling", new).standing.claims) == 1
    assert evidence("token-recycling", old).folder is None
    assert evidence("ems", new).folder is None
    assert evidence("ems", tmp_path / "nowhere").standing.claims
    assert evidence("no-such-method", new).standing.headline is None


def test_choosing_rows_imports_no_torch():
    code = "import sys, mintage.measure.scoreboard as s; s.shipped_rows(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""The one runner of claim checks: rules, statistics, order, resume, rows."""

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace

import numpy as np
import pytest

from mintage.errors import UserError
from mintage.measure import Figure, Interval, Result, bootstrap
from mintage.measure import study as module
from mintage.measure.study import (
    MEAN_SHARE,
    PERPLEXITY,
    POINTS,
    Comparison,
    Finding,
    Measure,
    Run,
    Study,
    above,
    all_of,
    at_least,
    at_most,
    below,
    mean,
    ratio,
    run_study,
)
from mintage.options import option

# -- rules and statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "text", "holds", "fails"),
    [
        (above(0), "interval above 0", (0.1, 1, 2), (0, 1, 2)),
        (below(1), "interval below 1", (0.1, 0.5, 0.9), (0.1, 0.5, 1)),
        (at_least(15), "at least 15", (-3, 15, 20), (16, 14.9, 20)),
        (at_most(0.5), "at most 0.5", (0, 0.5, 3), (0, 0.51, 3)),
        (all_of(at_least(15), above(0)), "at least 15 and interval above 0", (1, 15, 20), (-1, 15, 20)),
    ],
)
def test_rules(rule, text, holds, fails):
    assert rule.text == text
    assert rule.passes(Interval(*holds))
    assert not rule.passes(Interval(*fails))


ONE, OTHER = np.array([0.2, 0.5, 0.9, 0.4]), np.array([0.1, 0.4, 0.5, 0.8])


@pytest.mark.parametrize(
    ("statistic", "unit", "of_two", "of_one"),
    [
        (POINTS, "points", 100 * (ONE - OTHER).mean(), 50),
        (MEAN_SHARE, "share", (ONE - OTHER).mean(), 0.5),
        (mean("ms", more_is_better=False, scale=1000), "ms", 1000 * (ONE - OTHER).mean(), 500),
        (ratio(), "x", ONE.sum() / OTHER.sum(), 0.5),
        (PERPLEXITY, "x", np.exp((ONE - OTHER).mean()), np.exp(0.5)),
    ],
    ids=["points", "share", "mean", "ratio", "perplexity"],
)
def test_statistics(statistic, unit, of_two, of_one):
    assert statistic.unit == unit
    found = statistic.of_two(ONE, OTHER)
    assert found.value == pytest.approx(of_two)
    assert found.low < found.value < found.high
    assert statistic.of_one(ONE).value == pytest.approx(of_one)
    assert found == statistic.of_two(ONE, OTHER)  # equal seeds, equal intervals


# -- a study -----------------------------------------------------------------------------------------------------------

CALLS = []
STOP = []


@dataclass(frozen=True, kw_only=True)
class Tides(Study):
    """Compare three tides."""

    method, job = "tides", "audit"

    days: int = option(4, "Days.", least=1)
    model: str = option("moon", "Which.")

    def arms(self, run):
        return {"spring": 3.0, "neap": 1.0, "slack": 0.0}

    def of(self, run, arm, day):
        if (arm, day) in STOP:
            raise KeyboardInterrupt
        CALLS.append((arm, day))
        return {"height": arm + day / 10, "hours": np.arange(2) + day, "low": np.bool_(arm < 2)}

    def measures(self, run):
        yield Measure(name="heights", units=lambda run: {f"day {n}": n for n in range(self.days)}, of=self.of)

    def rows(self, run):
        yield Comparison(
            metric="height of spring over that of neap",
            ours="spring",
            rival="neap",
            of="height",
            by=ratio(),
            baseline=["neap"],
            peers={"no tide": "slack"},
            claim="spring tides are higher",
            holds=above(1),
            note=lambda run: f"{len(run.columns)} arms",
        )


@pytest.fixture(autouse=True)
def _afresh():
    CALLS.clear()
    STOP.clear()


def of_rows(*rows, **more):
    """A study with rows of its own."""

    @dataclass(frozen=True, kw_only=True)
    class Other(Tides):
        def rows(self, run):
            return rows

    return Other(**more)


def test_every_arm_is_measured_on_every_unit_and_the_first_rotates(tmp_path):
    told = []
    run_study(Tides(), work=tmp_path, progress=lambda *step: told.append(step))
    assert [arm for arm, _ in CALLS] == [3, 1, 0, 1, 0, 3, 0, 3, 1, 3, 1, 0]
    assert [day for _, day in CALLS] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert told == [("heights", done, 12) for done in range(13)]


def test_columns_come_by_unit_and_parts_are_joined(tmp_path):
    run = Run(Tides(), work=tmp_path)
    for measure in run.study.measures(run):
        measure.run(run, measure.name)
    assert run.column("neap", "height").tolist() == [1.0, 1.1, 1.2, 1.3]
    assert run.column("neap", "hours").tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    assert run.column("neap", "low").tolist() == [1, 1, 1, 1]
    assert run.column("neap", ("height", "low")).shape == (2, 4)
    with pytest.raises(UserError, match=r"heigth of neap was not measured; did you mean 'height of neap'"):
        run.column("neap", "heigth")


def test_a_row_says_what_was_compared_and_by_which_rule(tmp_path):
    (row,) = run_study(Tides(seed=5), command="mintage bench tides", work=tmp_path)
    assert isinstance(row, Result)
    assert (row.method, row.job, row.model, row.seed, row.command) == (
        "tides",
        "audit",
        "moon",
        5,
        "mintage bench tides",
    )
    assert row.value == pytest.approx((4 * 3 + 0.6) / (4 * 1 + 0.6))
    assert (row.unit, row.higher_is_better, row.n) == ("x", True, 4)
    assert row.baseline == {"neap": pytest.approx(1.15)}
    assert row.peers == {"no tide": pytest.approx(0.15)}
    assert (row.claim, row.rule, row.verdict) == ("spring tides are higher", "interval above 1", "holds")
    assert row.note == "3 arms"
    assert {"time", "commit"} <= row.environment.keys()


BASE = {"ours": "spring", "of": "height", "by": mean("m")}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (Comparison(metric="m", **BASE), {"value": 3.15, "verdict": "measured", "rule": "", "claim": ""}),
        (Comparison(metric="m", **BASE, rival="neap"), {"value": 2.0, "interval": (2.0, 2.0)}),
        (
            Comparison(metric="m", **BASE, rival=lambda run: "slack", peers={"calm": "slack", "half": "neap"}),
            {"value": 3.0, "baseline": {"calm": pytest.approx(0.15)}},
        ),
        (Comparison(metric="m", **BASE, rival="neap", claim="c", holds=above(3)), {"verdict": "does not hold"}),
        (
            Comparison(metric="m", **BASE, claim="c", holds=lambda run: len(run.arms) == 3),
            {"verdict": "holds", "rule": ""},
        ),
        (Comparison(metric="m", **BASE, model="", data="sea", settings={"a": 1}, method="ebb"), {
            "model": "", "data": "sea", "settings": {"a": 1}, "method": "ebb",
        }),
        (Finding(metric="m", value=3, unit="m"), {"value": 3.0, "interval": None, "n": 1, "higher_is_better": True}),
        (
            Finding(metric="m", value=lambda run: Interval(1, 2, 3), unit="m", n=lambda run: 7, more_is_better=False),
            {"value": 2.0, "interval": (1.0, 3.0), "n": 7, "higher_is_better": False},
        ),
        (
            Finding(metric="m", value=5, unit="m", claim="c", holds=at_most(1), tested=lambda run: Interval(0, 1, 2),
                    baseline=lambda run: {"x": 1}, peers={"y": 2}),
            {"verdict": "holds", "rule": "at most 1", "value": 5.0, "baseline": {"x": 1}, "peers": {"y": 2}},
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else type(value).__name__,
)  # fmt: skip
def test_what_rows_hold(tmp_path, row, wanted):
    (made,) = run_study(of_rows(row), work=tmp_path)
    assert {name: getattr(made, name) for name in wanted} == {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in wanted.items()
    }


def test_rows_may_be_made_already_or_left_out(tmp_path):
    made = Result(method="tides", job="audit", metric="m", value=1.0, unit="x", higher_is_better=True)
    left_out = Comparison(metric="m", **BASE, when=lambda run: False)
    assert run_study(of_rows(made, left_out), work=tmp_path) == [made]


def test_figures_come_last_with_the_study_s_name(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Drawn(Tides):
        def figures(self, run):
            data = {"y_label": "m", "categories": list(run.arms), "series": [{"name": "s", "y": [3.0, 1.0, 0.0]}]}
            yield run.figure(name="heights", title="t", caption="c", kind="bars", data=data)

    row, figure = run_study(Drawn(), work=tmp_path)
    assert isinstance(figure, Figure)
    assert (figure.method, figure.job, figure.environment) == ("tides", "audit", row.environment)


@pytest.mark.parametrize("wrong", [{"claim": "spring tides are higher"}, {"holds": above(0)}])
def test_a_claim_needs_a_rule_and_a_rule_a_claim(wrong):
    for kind in (Comparison, Finding):
        needed = BASE if kind is Comparison else {"value": 1, "unit": "m"}
        with pytest.raises(UserError, match="a claim needs a rule, and a rule a claim"):
            kind(metric="m", **needed, **wrong)


# -- what measures refuse ----------------------------------------------------------------------------------------------


def measured(tmp_path, *measures):
    @dataclass(frozen=True, kw_only=True)
    class Other(Tides):
        def measures(self, run):
            return measures

        def rows(self, run):
            return ()

    return run_study(Other(), work=tmp_path)


def heights(**more):
    return Measure(
        **{"name": "heights", "units": lambda run: {"a": 1, "b": 2}, "of": lambda *asked: {"height": 1}} | more
    )


@pytest.mark.parametrize(
    ("measures", "line"),
    [
        ([heights(arms=["spring", "naep"])], "heights: unknown arm 'naep'; did you mean 'neap'"),
        ([heights(units=lambda run: {})], "there is nothing to measure, 3 arms on 0 units"),
        ([heights(), heights()], "two measures are called 'heights'"),
        ([heights(of=lambda run, arm, unit: {"height": 1} | ({"more": 2} if unit == 2 else {}))], "has columns"),
    ],
)
def test_what_would_be_wrong_in_silence_is_told(tmp_path, measures, line):
    with pytest.raises(UserError, match=line) as told:
        measured(tmp_path, *measures)
    assert "\n" not in str(told.value)


def test_a_measure_may_leave_arms_out_and_a_later_one_may_use_an_earlier(tmp_path):
    seen = []

    def later(run, arm, unit):
        seen.append({name: list(columns) for name, columns in run.columns.items()})
        return {"double": 2 * arm}

    measured(tmp_path, heights(arms=["neap", "spring"]), heights(name="more", of=later))
    assert seen[0] == {"spring": ["height"], "neap": ["height"]}


def test_what_is_costly_is_prepared_once_per_unit_and_not_again_after_a_kill(tmp_path):
    made = []
    measure = heights(
        prepare=lambda run, unit: made.append(unit) or 10 * unit, of=lambda run, arm, unit: {"height": unit}
    )
    measured(tmp_path, measure)
    assert made == [1, 2]


# -- resume ------------------------------------------------------------------------------------------------------------


def interrupted(study, tmp_path, at, **told):
    STOP.append(at)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, work=tmp_path, **told)
    STOP.clear()
    done = list(CALLS)
    CALLS.clear()
    return done


def test_a_stopped_run_goes_on_and_forgets_when_it_is_over(tmp_path):
    whole = run_study(Tides(), work=tmp_path / "other")
    CALLS.clear()
    done = interrupted(Tides(), tmp_path / "work", at=(0.0, 1))
    assert len(done) == 4
    rows = run_study(Tides(), work=tmp_path / "work")
    assert len(CALLS) == 12 - 4
    assert not set(done) & set(CALLS)
    for row, wanted in zip(rows, whole, strict=True):
        assert replace(row, environment={}) == replace(wanted, environment={})
    assert not (tmp_path / "work").exists()
    CALLS.clear()
    run_study(Tides(), work=tmp_path / "work")
    assert len(CALLS) == 12


def test_other_settings_start_afresh(tmp_path):
    interrupted(Tides(), tmp_path, at=(0.0, 1))
    for study in (Tides(days=3), Tides(seed=1), Tides(model="sun"), of_rows()):
        CALLS.clear()
        run_study(study, work=tmp_path)
        assert len(CALLS) == 3 * study.days
    CALLS.clear()
    run_study(Tides(), work=tmp_path)  # and what was kept of the first is still there
    assert len(CALLS) == 8


def test_other_code_starts_afresh(tmp_path, monkeypatch):
    source = tmp_path / "plug_in.py"
    source.write_text("1")
    interrupted(Tides(), tmp_path / "work", at=(0.0, 1), sources=[source])
    source.write_text("2")
    run_study(Tides(), work=tmp_path / "work", sources=[source])
    assert len(CALLS) == 12
    interrupted(Tides(), tmp_path / "work", at=(0.0, 1))
    monkeypatch.setattr("mintage.measure.memo._own_code", lambda: b"mintage of tomorrow")
    run_study(Tides(), work=tmp_path / "work")
    assert len(CALLS) == 12


def test_what_else_is_costly_is_kept_too_and_files_go_with_the_run(tmp_path):
    made = []

    @dataclass(frozen=True, kw_only=True)
    class Trained(Tides):
        def subject(self, run):
            run.memo.folder.mkdir(parents=True, exist_ok=True)
            (run.memo.folder / "weights").write_text("kept")
            return run.memo("subject", lambda: made.append(1) or {"n": 2})

        def common(self, run):
            return {"settings": run.subject}

        def measures(self, run):
            assert run.subject is run.subject
            return super().measures(run)

    interrupted(Trained(), tmp_path / "work", at=(0.0, 1))
    assert len(list((tmp_path / "work").glob("*/weights"))) == 1
    (row,) = run_study(Trained(), work=tmp_path / "work")
    assert (row.settings, made) == ({"n": 2}, [1])
    assert not (tmp_path / "work").exists()


SCRIPT = """
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path
from mintage.measure.study import Comparison, Measure, Study, mean, run_study

@dataclass(frozen=True, kw_only=True)
class Killed(Study):
    method, job = "killed", "audit"

    def arms(self, run):
        return {"a": 1, "b": 2}

    def of(self, run, arm, unit):
        print(arm, unit, flush=True)
        if sys.argv[2] == f"{arm} {unit}":
            os.kill(os.getpid(), signal.SIGKILL)
        return {"n": arm * unit}

    def measures(self, run):
        yield Measure(name="n", units=lambda run: dict(enumerate((5, 7, 9))), of=self.of)

    def rows(self, run):
        yield Comparison(metric="n", ours="a", rival="b", of="n", by=mean("x"))

for row in run_study(Killed(), work=Path(sys.argv[1])):
    print(row.value)
"""


def test_a_run_survives_sigkill(tmp_path):
    (tmp_path / "killed.py").write_text(textwrap.dedent(SCRIPT))

    def run(at):
        command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "work"), at]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout.split("\n")[:-1]

    assert run("1 7") == (-9, ["1 5", "2 5", "2 7", "1 7"])  # the first arm rotates
    assert run("never") == (0, ["1 7", "1 9", "2 9", "-7.0"])
    assert run("never")[1][:2] == ["1 5", "2 5"]


def test_numbers_of_any_library_are_kept(tmp_path):
    import torch

    kept = {"t": torch.tensor([1, 2]), "n": np.int64(3), "l": [np.int32(1), True], "f": np.float32(0.5)}
    assert json.loads(json.dumps(module._plain(kept))) == {"t": [1, 2], "n": 3, "l": [1, 1], "f": 0.5}


def test_intervals_of_a_run_are_those_of_its_columns(tmp_path):
    (row,) = run_study(of_rows(Comparison(metric="m", **BASE)), work=tmp_path)
    assert row.interval == bootstrap([3.0, 3.1, 3.2, 3.3]).bounds

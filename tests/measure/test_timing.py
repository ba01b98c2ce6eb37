import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mintage.measure
from mintage.errors import UserError
from mintage.measure.timing import Pairs, interleaved, paired_time, timed


class Clock:
    """A clock that moves only when an arm works, and ever more slowly or quickly, as a shared machine does."""

    def __init__(self, drift=1.0):
        self.now, self.pace, self.drift = 0.0, 1.0, drift

    def perf_counter(self):
        return self.now

    def work(self, seconds):
        def arm():
            self.now += seconds * self.pace
            self.pace *= self.drift
            return seconds

        return arm


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("mintage.measure.timing.time", clock)
    return clock


def test_seconds_ratio_and_outputs(clock):
    timings = paired_time({"slow": clock.work(3.0), "fast": clock.work(2.0)}, repeats=5)
    np.testing.assert_allclose(timings.seconds["slow"], [3.0] * 5)
    assert timings.median("fast") == pytest.approx(2.0)
    assert timings.ratio("slow", "fast") == pytest.approx((1.5, 1.5, 1.5))
    assert timings.speedup("fast", over="slow").value == pytest.approx(1.5)
    assert timings.outputs == {"slow": 3.0, "fast": 2.0}


def test_a_drifting_machine_does_not_move_the_ratio(clock):
    clock.drift = 1.05
    timings = paired_time({"a": clock.work(2.0), "b": clock.work(1.0)}, repeats=40)
    assert timings.seconds["a"][-1] > 5 * timings.seconds["a"][0]
    assert timings.ratio("a", "b").value == pytest.approx(2.0, rel=0.06)


def test_warm_up_runs_and_is_not_recorded(clock):
    calls = []
    timings = paired_time({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warmup=3)
    assert len(calls) == 2 * (2 + 3)
    assert len(timings.seconds["a"]) == 2


@given(st.integers(0, 12), st.lists(st.text(max_size=3), max_size=4, unique=True))
def test_interleaving_meets_every_pair_once_and_shares_the_first_place(units, arms):
    order = list(interleaved(range(units), arms))
    assert sorted(order) == sorted((unit, arm) for unit in range(units) for arm in arms)
    assert [unit for unit, _ in order] == sorted(unit for unit, _ in order)
    first = [arm for place, (_, arm) in enumerate(order) if arms and place % len(arms) == 0]
    assert all(abs(first.count(a) - first.count(b)) <= 1 for a in arms for b in arms)


def test_the_gpu_queue_is_emptied_before_and_after(monkeypatch):
    events = []
    cuda = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, synchronize=lambda: events.append("synchronize")
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    timed(lambda: events.append("work"))
    assert events == ["synchronize", "work", "synchronize"]


def test_pairs_compare_unit_by_unit_whatever_the_order():
    pairs = Pairs()
    for unit, seconds in [("p1", 2.0), ("p2", 30.0), ("p3", 9.0)]:
        pairs.add(unit, "plain", seconds)
    for unit, seconds in [("p3", np.float32(3)), ("p2", 10), ("p1", True)]:
        pairs.add(unit, "recycled", seconds)
    assert pairs.ratio("plain", "recycled").value == 3.0
    assert pairs.ratio("plain", "recycled", of="sums").value == pytest.approx(41 / 14)
    assert pairs.difference("plain", "recycled").value == pytest.approx(9.0)
    np.testing.assert_array_equal(pairs.values("recycled"), [1.0, 10.0, 3.0])


def test_missing_pairs_are_refused_by_name():
    pairs = Pairs()
    for unit in range(10):
        pairs.add(unit, "plain", 1.0)
    pairs.add(0, "recycled", 1.0)
    with pytest.raises(UserError, match=r"recycled lacks 9 of the units of plain and recycled \(1, 2, 3\)"):
        pairs.ratio("plain", "recycled")
    with pytest.raises(UserError, match="recycled lacks 9"):
        pairs.difference("recycled", "plain")
    with pytest.raises(UserError, match="recycled lacks 9"):
        pairs.values("recycled")


def test_a_unit_counts_once_and_must_be_finite():
    pairs = Pairs()
    pairs.add("p1", "plain", 1.0)
    with pytest.raises(UserError, match="plain already has a value for unit 'p1'"):
        pairs.add("p1", "plain", 2.0)
    with pytest.raises(UserError, match="nan is not a finite number"):
        pairs.add("p2", "plain", float("nan"))
    with pytest.raises(UserError, match="did you mean 'plain'"):
        pairs.ratio("plain", "plan")


@pytest.mark.parametrize(
    "given", [{"arms": {}}, {"arms": {"a": int}, "repeats": 0}, {"arms": {"a": int}, "warmup": -1}]
)
def test_nothing_to_time_is_an_error(given):
    with pytest.raises(UserError):
        paired_time(**given)


def test_the_front_door_is_light_and_all_its_names_open():
    script = (
        "import sys, mintage.measure as m; heavy = {'torch', 'jinja2', 'plotly', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    public = [name for name in dir(mintage.measure) if not name.startswith("_")]
    assert {"Pairs", "Result", "write_report", "count_flops"} <= set(public)
    for name in public:
        assert getattr(mintage.measure, name) is not None

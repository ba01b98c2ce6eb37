import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.measure.statistics import Interval, bootstrap, bootstrap_ratio

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)
positive = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(numbers)
def test_the_mean_lies_in_its_interval_which_lies_in_the_data(values):
    low, value, high = bootstrap(values, n=200)
    slack = 1e-9 * max(1.0, *map(abs, values))
    assert min(values) - slack <= low <= high <= max(values) + slack
    assert value == pytest.approx(np.mean(values), abs=slack)


@settings(max_examples=40, deadline=None)
@given(numbers, st.floats(-10, 10), st.floats(0.1, 10))
def test_interval_moves_with_the_data(values, shift, scale):
    values = np.asarray(values)
    plain, moved = bootstrap(values, n=200), bootstrap(values * scale + shift, n=200)
    size = max(1.0, np.abs(values).max()) * 10
    assert moved == pytest.approx(tuple(np.asarray(plain) * scale + shift), abs=1e-9 * size)


@settings(max_examples=40, deadline=None)
@given(positive, st.floats(0.1, 10), st.sampled_from(["sums", "median"]))
def test_ratio_to_a_multiple_is_exact(values, factor, of):
    values = np.asarray(values)
    assert bootstrap_ratio(values * factor, values, of=of, n=100) == pytest.approx((factor,) * 3)


def test_coverage_is_near_the_level():
    generator = np.random.default_rng(1)
    samples = generator.normal(3.0, 1.0, size=(300, 40))
    covered = sum(not bootstrap(sample, n=500).excludes(3.0) for sample in samples)
    assert 0.89 <= covered / 300 <= 0.98


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    values = np.random.default_rng(0).normal(size=25)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3).low != bootstrap(values, seed=4).low


def test_large_samples_are_resampled_in_pieces_without_changing_the_answer(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap(values, n=64)
    monkeypatch.setattr("mintage.measure.statistics._CHUNK", 50 * 7)
    pieces = bootstrap(values, n=64)
    assert pieces == pytest.approx(tuple(whole))


def test_sums_and_medians_answer_different_questions():
    tops, bottoms = [1.0, 1.0, 100.0], [1.0, 1.0, 10.0]
    assert bootstrap_ratio(tops, bottoms).value == pytest.approx(8.5)
    assert bootstrap_ratio(tops, bottoms, of="median").value == 1.0


def test_any_numpy_reduction_is_a_statistic():
    assert bootstrap([1.0, 2.0, 100.0], np.median).value == 2.0


def test_interval_says_what_it_excludes():
    interval = Interval(1.02, 1.1, 1.2)
    assert interval.excludes(1)
    assert not interval.excludes(1.15)
    assert interval.bounds == (1.02, 1.2)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: bootstrap([]), "values are empty"),
        (lambda: bootstrap([1.0, float("nan")]), "nan at position 1"),
        (lambda: bootstrap([float("inf")]), "inf at position 0"),
        (lambda: bootstrap([[1.0]]), "shape (1, 1)"),
        (lambda: bootstrap([1.0], level=95.0), "level=95.0"),
        (lambda: bootstrap([1.0], n=0), "n=0"),
        (lambda: bootstrap_ratio([1.0], [1.0, 2.0]), "1 numerators but 2 denominators"),
        (lambda: bootstrap_ratio([1.0], [0.0]), "not positive"),
        (lambda: inspect.unwrap(bootstrap_ratio)([1.0], [1.0], of="mean"), "of='mean'"),
    ],
)
def test_bad_input_is_told_in_one_line(call, told):
    with pytest.raises(UserError) as caught:
        call()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.draft.core import latency
from mintage.draft.core.latency import LatencyCurve, latency_curve
from mintage.draft.core.target import Target
from mintage.models import tiny_causal_lm

CURVE = LatencyCurve((1, 2, 4, 8), (1.0, 1.0, 1.5, 3.5))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))
    latency._curve_at.cache_clear()
    yield tmp_path / "latency"
    latency._curve_at.cache_clear()


@pytest.fixture
def measured(monkeypatch):
    """Count the measurements instead of waiting for them."""
    calls = []

    def measure(target):
        calls.append(target)
        return CURVE

    monkeypatch.setattr(latency, "_measure", measure)
    return calls


def test_the_curve_goes_through_what_was_measured_and_on_with_its_last_slope():
    assert CURVE(np.array([1, 2, 3, 4, 6, 8, 10])).tolist() == [1, 1, 1.25, 1.5, 2.5, 3.5, 4.5]
    assert float(CURVE(4)) == 1.5


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
    st.lists(st.floats(0, 1), max_size=20).map(lambda values: sorted(values, reverse=True)),
)
def test_the_best_size_is_the_best_by_brute_force(steps, confidence):
    sizes = tuple(2**i for i in range(len(steps)))
    curve = LatencyCurve(sizes, tuple(np.cumsum(steps).tolist()))
    speed = [(1 + sum(confidence[:n])) / float(curve(n + 1)) for n in range(len(confidence) + 1)]
    assert speed[curve.best_size(confidence)] == pytest.approx(max(speed))


def test_a_flat_curve_takes_every_node_and_a_steep_one_none():
    confidence = [0.9, 0.5, 0.2, 0.1]
    assert LatencyCurve((1, 2), (1.0, 1.0)).best_size(confidence) == 4
    assert LatencyCurve((1, 2), (1.0, 2.0)).best_size(confidence) == 0
    assert CURVE.best_size([]) == 0


@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [
        ((1,), (1.0,)),
        ((1, 2), (1.0,)),
        ((2, 1), (1.0, 2.0)),
        ((0, 1), (1.0, 2.0)),
        ((1, 2), (2.0, 1.0)),
        ((1, 2), (0.0, 1.0)),
        ((1, 2), (1.0, float("nan"))),
        ((1, 2), (1.0, float("inf"))),
    ],
)
def test_what_is_no_curve_is_refused(sizes, seconds):
    with pytest.raises(ValueError, match="a latency curve"):
        LatencyCurve(sizes, seconds)


def test_a_measured_curve_never_falls(folder):
    target = Target(tiny_causal_lm())
    curve = latency_curve(target)
    assert curve.sizes == latency._SIZES
    assert curve.seconds[0] > 0
    assert list(curve.seconds) == sorted(curve.seconds)
    assert len(list(folder.iterdir())) == 1


def test_a_short_context_is_measured_as_far_as_it_goes(folder):
    curve = latency_curve(Target(tiny_causal_lm(max_position_embeddings=20)))
    assert curve.sizes == (1, 2, 4, 6, 8, 12, 16)


def test_a_curve_is_measured_once_and_then_read(folder, measured):
    target = Target(tiny_causal_lm())
    assert latency_curve(target) == latency_curve(target) == CURVE
    assert len(measured) == 1
    latency._curve_at.cache_clear()  # as in the next process
    assert latency_curve(target) == CURVE
    assert len(measured) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"5",
        b"{}",
        b'{"sizes": 5, "seconds": 1}',
        b'{"sizes": [1, 2], "seconds": [1.0]}',
        b'{"sizes": [1, 2], "seconds": ["a", "b"]}',
        b'{"sizes": [2, 1], "seconds": [1.0, 2.0]}',
        b'{"sizes": [1, 2], "seconds": [NaN, 1.0]}',
    ],
)
def test_a_damaged_file_is_measured_again(folder, measured, damage):
    target = Target(tiny_causal_lm())
    latency_curve(target)
    (file,) = folder.iterdir()
    file.write_bytes(damage)
    latency._curve_at.cache_clear()
    assert latency_curve(target) == CURVE
    assert len(measured) == 2
    assert json.loads(file.read_text()) == {"sizes": [1, 2, 4, 8], "seconds": [1.0, 1.0, 1.5, 3.5]}


def test_another_model_dtype_attention_or_thread_count_has_its_own_curve(folder, measured, monkeypatch):
    models = [
        tiny_causal_lm(),
        tiny_causal_lm(num_hidden_layers=3),
        tiny_causal_lm().bfloat16(),
        tiny_causal_lm(attn_implementation="eager"),
    ]
    for model in models:
        latency_curve(Target(model))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    latency_curve(Target(models[0]))
    assert len(measured) == len(list(folder.iterdir())) == 5


def test_what_was_measured_with_other_code_or_instructions_is_not_taken_over(monkeypatch):
    from mintage.draft.core.latency import fingerprint_of

    target = Target(tiny_causal_lm())
    before = fingerprint_of(target)
    monkeypatch.setattr(target, "code", "another library")
    assert fingerprint_of(target) != before
    monkeypatch.undo()
    assert fingerprint_of(target) == before
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "less")
    assert fingerprint_of(target) != before

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.measure.retrieval import effective_context_limit, score_list, score_value

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "needle-threading" / "tasks.json").read_text())


def test_parity():
    for case in VECTORS["single_scoring"]:
        assert score_value(case["response"], case["answer"]).score == case["score"]
    for case in VECTORS["multi_scoring"]:
        assert score_list(case["response"], case["answer"]).score == pytest.approx(case["score"], abs=1e-9)
    for case in VECTORS["effective_length"]:
        got = effective_context_limit(case["lengths"], case["accuracy"], case["threshold"])
        assert got == pytest.approx(case["value"], abs=1e-9)


def test_strict_and_lenient():
    assert score_value("It is abc.", "abc")[:2] == (0.0, 1.0)
    assert score_value(' "abc" and more', "abc").score == 1
    assert score_list("The list: ['a', 'b', 'z'] and ['c']", ["a", "b", "c"]) == pytest.approx((2 / 3, 1.0, 2 / 3, 0.0))
    assert score_list('["a", "b"]', ["b", "a"]) == (1.0, 1.0, 1.0, 1.0)
    assert score_list("[]", ["a"]) == (0.0, 0.0, 0.0, 0.0)
    assert score_list("['a', 'a']", ["a", "b"]).score == 0.5
    assert score_list("[__import__('os').system('true')]", ["a"]).score == 0
    with pytest.raises(UserError):
        score_list("[]", [])


ACCURACY = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(ACCURACY, st.floats(0.01, 1), st.floats(0, 1), st.integers(0, 5))
def test_the_limit_is_monotone(accuracy, threshold, more, place):
    lengths = [100 * (i + 1) for i in range(len(accuracy))]
    limit = effective_context_limit(lengths, accuracy, threshold)
    assert 0 <= limit <= lengths[-1]
    assert effective_context_limit(lengths, accuracy, threshold * 0.9) >= limit - 1e-9
    better = list(accuracy)
    better[place % len(better)] = max(better[place % len(better)], more)
    assert effective_context_limit(lengths, better, threshold) >= limit - 1e-9


@pytest.mark.parametrize(
    ("lengths", "accuracy"), [([], []), ([1, 2], [0.5]), ([2, 1], [1.0, 1.0]), ([1, 1], [1.0, 1.0])]
)
def test_a_limit_needs_ascending_lengths(lengths, accuracy):
    with pytest.raises(UserError):
        effective_context_limit(lengths, accuracy)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ('{"key": "abc"}', 1),
        ("{'key': 'abc'} is what it says", 1),
        ('["abc"]', 1),
        ('{"key": "xyz"}', 0),
        ('{"key": "xyz", "other": "abc"}', 0),
    ],
)
def test_a_pair_answers_with_its_value(response, score):
    assert score_value(response, "abc").score == score


def test_pairs_are_read_where_a_list_is_asked_for():
    assert score_list('{"k": "abc", "l": "def"}', ["abc", "def"]) == (1, 1, 1, 1)
    assert score_list('{"k": "abc", "l": "xyz"}', ["abc", "def"])[:3] == (0.5, 0.5, 0.5)
    assert score_list('{"k": "abc"} or ["def"]', ["abc", "def"]).score == 0.5

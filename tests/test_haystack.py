import json
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.data.haystack import (
    conditional_needles,
    make_haystack,
    multi_thread,
    multiple_needles,
    single_needle,
    thread,
    thread_at,
)
from mintage.errors import UserError

VECTORS = json.loads((Path(__file__).parent / "vectors" / "needle-threading" / "tasks.json").read_text())
SEEDS = st.integers(0, 10_000)


def test_parity_with_the_published_data():
    haystack = make_haystack(VECTORS["num_kv_pairs"], VECTORS["seed"])
    assert haystack.text == VECTORS["haystack"]
    assert len(haystack.text) == VECTORS["chars"]
    for case in VECTORS["single"]:
        example = single_needle(haystack, case["depth"])
        assert example.about["positions"] == (case["index"],)
        assert example.answers == (case["value"],)
        assert f'"{case["key"]}"' in example.question
    for case in VECTORS["threads"]:
        laid = thread_at(haystack, case["positions"])
        assert laid.text == case["haystack"]
        assert laid.keys[case["positions"][0]] == case["start_key"]
        assert laid.values[case["positions"][-1]] == case["final_value"]
        assert len(case["positions"]) == case["steps"]


@given(SEEDS, st.integers(1, 60), st.sampled_from([None, 6, 12]))
@settings(max_examples=50, deadline=None)
def test_a_haystack_is_json_of_its_length(seed, pairs, digits):
    haystack = make_haystack(pairs, seed, digits)
    assert haystack == make_haystack(pairs, seed, digits)
    assert len(haystack.text) == (80 * pairs if digits is None else (8 + 2 * digits) * pairs)
    assert json.loads(haystack.text) == dict(haystack.pairs)
    names = {*haystack.keys, *haystack.values}
    assert len(names) == 2 * pairs
    if digits is None:
        assert all(str(uuid.UUID(name)) == name for name in names)


def follow(haystack, key):
    steps = 0
    while (value := haystack.look_up(key)) is not None:
        key, steps = value, steps + 1
    return key, steps


@given(SEEDS, st.integers(1, 8), st.sampled_from(["forward", "backward", "random"]))
@settings(max_examples=50, deadline=None)
def test_a_thread_ends_after_its_steps(seed, length, direction):
    haystack = make_haystack(20, seed)
    example = thread(haystack, length, direction, seed)
    positions = example.about["positions"]
    start = example.haystack.keys[positions[0]]
    assert f'"{start}"' in example.question
    assert follow(example.haystack, start) == (example.answers[0], length)
    if direction != "random":
        assert list(positions) == sorted(positions, reverse=direction == "backward")
    untouched = set(range(20)) - set(positions)
    assert all(example.haystack.pairs[i] == haystack.pairs[i] for i in untouched)
    assert len(example.haystack.text) == len(haystack.text)


@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_threads_share_nothing(seed, threads, length):
    example = multi_thread(make_haystack(20, seed), threads, length, "random", seed)
    visited = [place for positions in example.about["positions"] for place in positions]
    assert len(visited) == len(set(visited)) == threads * length
    for positions, answer in zip(example.about["positions"], example.answers, strict=True):
        assert follow(example.haystack, example.haystack.keys[positions[0]]) == (answer, length)


@given(SEEDS, st.integers(1, 10), st.sampled_from(["random", "clustered"]))
@settings(max_examples=50, deadline=None)
def test_several_needles(seed, number, placement):
    haystack = make_haystack(12, seed)
    example = multiple_needles(haystack, min(number, 12), placement, seed)
    assert example.answers == tuple(haystack.values[place] for place in example.about["positions"])
    assert all(haystack.keys[place] in example.question for place in example.about["positions"])
    marked = conditional_needles(haystack, number, placement, seed)
    assert sum("*" in key for key in marked.haystack.keys) == number
    assert not any("*" in value for value in marked.haystack.values)
    assert marked.answers == tuple(v for k, v in marked.haystack.pairs if "*" in k)
    assert len(marked.haystack.text) == len(haystack.text)
    if placement == "clustered":
        places = marked.about["positions"]
        assert places[-1] - places[0] == number - 1
    assert example.many
    assert marked.many


def test_prompts():
    haystack = make_haystack(3, 0)
    example = single_needle(haystack, 100)
    assert example.prompt.startswith(haystack.text + "\n")
    assert example.prompt.endswith("Corresponding value:")
    assert example.completion == f'{haystack.text}\n{{"{haystack.keys[2]}": "'
    assert multiple_needles(haystack, 2).completion.endswith('values: ["')
    assert thread(haystack, 2).completion.endswith('value: "')


@pytest.mark.parametrize(
    "wrong",
    [
        lambda h: make_haystack(0),
        lambda h: make_haystack(100, 0, 1),
        lambda h: single_needle(h, 101),
        lambda h: multiple_needles(h, 6),
        lambda h: conditional_needles(h, 0),
        lambda h: conditional_needles(h, 1, character="a"),
        lambda h: thread(h, 6),
        lambda h: thread_at(h, [1, 1]),
        lambda h: thread_at(h, [7]),
        lambda h: multi_thread(h, 0, 2),
        lambda h: multi_thread(h, 3, 2),
    ],
)
def test_impossible_tasks_are_told(wrong):
    with pytest.raises(UserError) as told:
        wrong(make_haystack(5, 0))
    assert "\n" not in str(told.value)

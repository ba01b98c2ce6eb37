import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.measure.figure import Figure
from mintage.measure.result import Result, append_results, newest, read_results

names = st.text(min_size=1, max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metric=names,
    value=finite,
    baseline=st.dictionaries(names, finite, max_size=3),
    note=st.text(),
    swept=st.dictionaries(names, st.none() | st.booleans() | st.integers() | finite | st.text(), max_size=3),
)
def test_rows_come_back_as_they_were(tmp_path_factory, make_result, metric, value, baseline, note, swept):
    path = tmp_path_factory.mktemp("rows") / "r.jsonl"
    row = make_result(metric=metric, value=value, baseline=baseline, note=note, settings=swept)
    append_results(path, [row, row])
    assert read_results(path) == [row, row]


def test_figures_share_the_stream(tmp_path, rows):
    append_results(tmp_path / "a.jsonl", rows)
    assert read_results(tmp_path) == rows
    kinds = [json.loads(line)["row"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert set(kinds) == {"result", "figure"}


def test_numpy_numbers_are_written_as_numbers(tmp_path, make_result):
    row = make_result(value=np.float32(1.5), interval=np.array([1.0, 2.0]), n=np.int64(3), settings={"a": np.arange(2)})
    append_results(tmp_path / "a.jsonl", [row])
    read = read_results(tmp_path / "a.jsonl")[0]
    assert (read.value, read.interval, read.n, read.settings) == (1.5, (1.0, 2.0), 3, {"a": [0, 1]})


def test_nothing_is_written_unless_all_can_be(tmp_path, make_result):
    with pytest.raises(UserError, match="object has no JSON form"):
        append_results(tmp_path / "a.jsonl", [make_result(), make_result(settings={"model": object()})])
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"value": float("nan")}, "value=nan is not a finite number"),
        ({"peers": {"tome": float("inf")}}, "tome=inf"),
        ({"interval": (2.0, 1.0)}, "is not [low, high]"),
        ({"interval": (float("nan"), 1.0)}, "is not [low, high]"),
        ({"n": 0}, "n=0"),
        ({"verdict": "hold"}, "did you mean 'holds'?"),
        ({"claim": ""}, "verdict 'holds' without a claim"),
        ({"method": ""}, "must be named"),
    ],
)
def test_a_row_that_says_nothing_sound_is_refused(make_result, change, told):
    with pytest.raises(UserError) as caught:
        make_result(**change)
    assert told in str(caught.value)


def lines(path, *objects):
    path.write_text("".join(text if isinstance(text, str) else json.dumps(text) + "\n" for text in objects))
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"schema": 3, "environment": {"mintage": "9.1"}},
            "schema 3 by mintage 9.1; this mintage reads up to schema 2",
        ),
        ({"schema": None}, "no schema version"),
        ({"row": "resutl"}, "did you mean 'result'?"),
        ({"valeu": 1.0}, "unknown field 'valeu'; did you mean 'value'?"),
        ({"value": "1.8"}, "value='1.8' is not float"),
        ({"value": True}, "value=True is not float"),
        ({"n": 2.5}, "n=2.5 is not int"),
        ({"interval": [1.0]}, "interval=[1.0] is not"),
        ({"interval": [3.0, 1.0]}, "is not [low, high]"),
        ({"peers": {"tome": "fast"}}, "peers={'tome': 'fast'} is not dict[str, float]"),
        ({"verdict": "won"}, "verdict='won' is not"),
    ],
)
def test_a_bad_line_is_named_with_its_file(tmp_path, make_result, change, told):
    good = {"row": "result", "schema": 1, **dataclasses.asdict(make_result())}
    path = lines(tmp_path / "r.jsonl", good, "\n", "\n", {**good, **change})
    with pytest.raises(UserError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}, line 4: ")
    assert told in str(caught.value)


def test_a_missing_field_is_named(tmp_path, make_result):
    row = {"row": "result", "schema": 1, **dataclasses.asdict(make_result())}
    del row["unit"]
    with pytest.raises(UserError, match="line 1: field 'unit' is missing"):
        read_results(lines(tmp_path / "r.jsonl", row))


def test_a_torn_line_is_named(tmp_path, make_result):
    append_results(tmp_path / "r.jsonl", [make_result()])
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write('{"row": "res')
    append_results(tmp_path / "r.jsonl", [make_result()])
    with pytest.raises(UserError, match="line 2: not JSON"):
        read_results(tmp_path / "r.jsonl")


def test_sources(tmp_path, make_result):
    append_results(tmp_path / "b.jsonl", [make_result(metric="second")])
    append_results(tmp_path / "a.jsonl", [make_result(metric="first")])
    assert [r.metric for r in read_results(tmp_path)] == ["first", "second"]
    assert [r.metric for r in read_results([tmp_path / "b.jsonl", str(tmp_path / "a.jsonl")])] == ["second", "first"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="mintage bench"):
        read_results(empty)
    with pytest.raises(UserError, match="cannot read"):
        read_results(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="run: gunzip"):
        read_results(tmp_path / "a.jsonl.gz")


def test_the_newest_row_of_a_key_is_shown(make_result):
    def at(hour, **changes):
        return make_result(
            environment={"time": f"2026-03-01T{hour:02d}:00:00+00:00", "cpu": "x", "cores": 2}, **changes
        )

    old, new, other = at(9, value=1.75), at(11, value=1.8, seed=7), at(8, metric="seconds")
    assert newest([new, other, old]) == [new, other]
    again = dataclasses.replace(new, value=1.82)
    assert newest([new, again]) == [again]


def test_what_makes_a_row_another_row(make_result):
    rows = [
        make_result(),
        make_result(settings={"budget": 24}),
        make_result(model="other"),
        make_result(data="other"),
        make_result(environment={"gpu": "NVIDIA H100"}),
    ]
    assert newest(rows) == rows
    assert rows[0].key == (
        "token-recycling/tokens per forward/SmolLM2-135M-Instruct/prompts.jsonl, 20 x 128 tokens/"
        "budget=48 dtype=float32/Intel Xeon Platinum 8481C, 2 cores"
    )


def test_keys_that_read_alike_are_still_two_rows(make_result):
    rows = [make_result(model="a/b", data="c"), make_result(model="a", data="b/c")]
    assert rows[0].key == rows[1].key
    assert len(newest(rows)) == 2


def test_best_peer_follows_the_direction(make_result):
    peers = {"a": 1.0, "b": 2.0}
    assert make_result(peers=peers).best_peer() == ("b", 2.0)
    assert make_result(peers=peers, higher_is_better=False).best_peer() == ("a", 1.0)
    assert make_result(peers={}).best_peer() is None


def figure(kind, data):
    return Figure(job="draft", name="x", title="t", caption="c", kind=kind, data=data)


NODE = {"parent": -1, "token": "a", "accepted": False, "score": None}


@pytest.mark.parametrize(
    ("kind", "data", "told"),
    [
        ("pie", {}, "unknown kind 'pie'"),
        ("curve", [], "data is list"),
        ("curve", {"x_label": "x", "y_label": "y"}, "data['series'] is NoneType"),
        ("curve", {"x_label": "x", "series": []}, "data['y_label'] is NoneType"),
        ("curve", {"x_label": "", "y_label": "", "series": [{"name": "a", "x": [1], "y": [1, 2]}]}, "x has 1 entries"),
        (
            "curve",
            {"x_label": "", "y_label": "", "series": [{"name": "a", "x": [None], "y": [1]}]},
            "expected a number",
        ),
        (
            "curve",
            {"x_label": "", "y_label": "", "series": [{"name": "a", "x": [1], "y": [1], "low": [0]}]},
            "'low' alone",
        ),
        ("bars", {"y_label": "", "categories": ["a"], "series": [{"name": "a", "y": [float("nan")]}]}, "holds nan"),
        ("heatmap", {"x_label": "", "y_label": "", "z": [[1, 2], [1]]}, "row 1 has 1 entries, row 0 has 2"),
        ("heatmap", {"x_label": "", "y_label": "", "z": [[1, 2]], "x": ["a"]}, "x has 1 entries, z has 2"),
        ("tree", {"context": "", "emitted": "", "nodes": [{**NODE, "parent": 0}]}, "node 0 has parent 0"),
        (
            "tree",
            {"context": "", "emitted": "", "nodes": [NODE, {**NODE, "parent": 0, "accepted": True}]},
            "node 1 is accepted but its parent 0 is not",
        ),
        ("token-map", {"tokens": [{"text": 3}]}, "token 0, text is int"),
        ("patch-map", {"images": [{"src": "javascript:1", "label": "", "groups": []}]}, "src is no PNG or JPEG"),
        ("patch-map", {"images": [{"src": "data:image/svg+xml;base64,AA", "label": "", "groups": []}]}, "no PNG"),
    ],
)
def test_a_figure_of_the_wrong_layout_is_refused(kind, data, told):
    with pytest.raises(UserError) as caught:
        figure(kind, data)
    assert told in str(caught.value)
    assert "draft/x" in str(caught.value)


def test_a_result_needs_no_more_than_its_number():
    row = Result(method="a", job="draft", metric="m", value=1, unit="x", higher_is_better=True)
    assert row.verdict == "measured"
    assert row.device == "unknown machine"

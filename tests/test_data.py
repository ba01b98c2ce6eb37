"""Prompts and the data folder."""

import gzip
import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mintage.data import Prompt, data_file, read_prompts, spread
from mintage.errors import UserError

# beartype looks at a random item of every list, which hypothesis notices
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

CATEGORIES = {"chat", "summarise", "code", "maths", "translation", "extraction", "repetition"}

SPEC_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["Compose a blog post.", "Rewrite it."], "reference": []},
    {"question_id": 161, "category": "translation", "turns": ["Übersetze: Guten Tag."]},
]


@pytest.fixture
def write(tmp_path):
    def lines(*rows, name="prompts.jsonl"):
        path = tmp_path / name
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return lines


# -- the bundled prompts -------------------------------------------------------------------------------------------


def test_the_bundled_prompts_are_84_in_seven_equal_categories():
    prompts = read_prompts()
    assert Counter(p.category for p in prompts) == dict.fromkeys(CATEGORIES, 12)


def test_the_bundled_prompts_have_unique_ids_and_texts():
    prompts = read_prompts()
    assert len({p.id for p in prompts}) == len({p.turns[0] for p in prompts}) == len(prompts)


def test_some_bundled_prompts_go_on_after_the_answer():
    assert any(len(p.turns) > 1 for p in read_prompts())


def test_categories_select_and_keep_the_order():
    chosen = read_prompts(categories=["code", "chat"])
    assert [p.id for p in chosen] == [p.id for p in read_prompts() if p.category in ("chat", "code")]
    assert len(chosen) == 24


# -- files of prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["question.jsonl", "question.jsonl.gz"])
def test_spec_bench_questions_are_read(write, name):
    assert read_prompts(write(*SPEC_BENCH, name=name)) == [
        Prompt(id="81", category="writing", turns=("Compose a blog post.", "Rewrite it.")),
        Prompt(id="161", category="translation", turns=("Übersetze: Guten Tag.",)),
    ]


def test_a_prompt_row_is_one_turn_numbered_by_its_place(write):
    path = write({"prompt": "one"}, "", {"prompt": "two", "id": "b", "category": "x"})
    assert read_prompts(path) == [
        Prompt(id="1", category="all", turns=("one",)),
        Prompt(id="b", category="x", turns=("two",)),
    ]


def test_a_path_may_be_text(write):
    assert read_prompts(str(write({"prompt": "one"})))[0].turns == ("one",)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "no turns"},
        {"turns": []},
        {"turns": "not a list"},
        {"turns": ["fine", " \n"]},
        {"turns": ["fine", 3]},
        {"prompt": ""},
        {"prompt": None},
    ],
)
def test_an_unusable_prompt_is_named_by_file_and_number(write, row):
    path = write({"prompt": "fine"}, row)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value) == f'{path}, prompt 2: expected "turns": [text, ...] or "prompt": text'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "cut', "line 3: not JSON (Unterminated string starting at); mend or delete that line"),
        ('["prompt"]', "line 3: expected a JSON object, found list"),
        ("7", "line 3: expected a JSON object, found int"),
    ],
)
def test_a_broken_line_is_named_by_file_and_line(write, line, told):
    path = write({"prompt": "fine"}, "", line)
    with pytest.raises(UserError) as caught:
        read_prompts(path)
    assert str(caught.value) == f"{path}, {told}"


def test_ids_that_come_twice_are_refused(write):
    path = write({"prompt": "one", "id": "a"}, {"prompt": "two", "id": "b"}, {"prompt": "three", "id": "a"})
    with pytest.raises(UserError, match="prompt 3: id 'a' came before"):
        read_prompts(path)


def test_files_without_prompts_or_that_cannot_be_read_are_told(write, tmp_path):
    with pytest.raises(UserError, match="holds no prompts; expected one JSON object per line"):
        read_prompts(write(""))
    with pytest.raises(UserError, match=r"cannot read .*absent.jsonl: No such file"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_prompts(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "Grüße"}'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.jsonl is not UTF-8 text"):
        read_prompts(tmp_path / "latin.jsonl")
    (tmp_path / "plain.jsonl.gz").write_text('{"prompt": "not compressed"}')
    with pytest.raises(UserError, match=r"cannot read .*plain.jsonl.gz: Not a gzipped file"):
        read_prompts(tmp_path / "plain.jsonl.gz")


def test_a_gz_file_that_was_cut_off_or_damaged_is_told(write):
    path = write(*SPEC_BENCH, name="question.jsonl.gz")
    whole = path.read_bytes()
    for broken in (whole[:-12], whole[:20] + bytes([whole[20] ^ 255]) + whole[21:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"cannot read .*question.jsonl.gz"):
            read_prompts(path)


def test_an_unknown_category_gets_the_nearest():
    with pytest.raises(UserError, match=r"no prompts of category 'chats' in .*; did you mean 'chat'\?"):
        read_prompts(categories=["chats"])


# -- spread --------------------------------------------------------------------------------------------------------

prompts = st.lists(st.sampled_from("abcd")).map(
    lambda cs: [Prompt(id=str(n), category=c, turns=("x",)) for n, c in enumerate(cs)]
)


@given(prompts, st.integers(1, 30) | st.none())
def test_spread_takes_that_many_different_prompts(given_prompts, limit):
    taken = spread(given_prompts, limit)
    assert len(taken) == min(len(given_prompts), len(given_prompts) if limit is None else limit)
    assert len({p.id for p in taken}) == len(taken)
    assert {p.id for p in taken} <= {p.id for p in given_prompts}


@given(prompts, st.integers(1, 30))
def test_spread_is_even_as_far_as_the_categories_go(given_prompts, limit):
    there = Counter(p.category for p in given_prompts)
    taken = Counter(p.category for p in spread(given_prompts, limit))
    most = max(taken.values(), default=0)
    for category, count in there.items():
        assert taken[category] >= min(count, most - 1)


@given(prompts, st.integers(1, 30))
def test_spread_keeps_the_order_within_a_category_and_takes_its_first(given_prompts, limit):
    taken = spread(given_prompts, limit)
    for category in {p.category for p in taken}:
        own = [p for p in taken if p.category == category]
        assert own == [p for p in given_prompts if p.category == category][: len(own)]


@given(prompts)
def test_a_smaller_spread_is_part_of_a_larger_one(given_prompts):
    sizes = range(1, len(given_prompts))
    for small, large in pairwise(sizes):
        assert {p.id for p in spread(given_prompts, small)} < {p.id for p in spread(given_prompts, large)}


@given(prompts)
def test_spread_without_a_limit_is_the_list(given_prompts):
    assert spread(given_prompts, None) == spread(given_prompts, len(given_prompts) or 1) == given_prompts


@pytest.mark.parametrize("limit", [0, -2])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(UserError, match=f"limit={limit}; keep at least 1 prompt"):
        spread(read_prompts(), limit)
    with pytest.raises(UserError, match=f"limit={limit}; keep at least 1 prompt"):
        spread([], limit)


# -- the data folder -----------------------------------------------------------------------------------------------


def test_data_file_is_found_in_the_folder(monkeypatch, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "words.txt").write_text("a")
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    assert data_file("sub/words.txt") == tmp_path / "sub" / "words.txt"


@pytest.mark.parametrize("value", [None, ""])
def test_data_file_says_what_to_set(monkeypatch, value):
    monkeypatch.delenv("MINTAGE_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("MINTAGE_DATA", value)
    with pytest.raises(UserError, match=r"^words.txt is not on this machine; set MINTAGE_DATA to a folder that holds"):
        data_file("words.txt")


def test_data_file_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    with pytest.raises(UserError) as caught:
        data_file("words.txt")
    assert str(caught.value) == (
        f"words.txt is not on this machine (MINTAGE_DATA={tmp_path} lacks it); "
        "set MINTAGE_DATA to a folder that holds words.txt"
    )

"""When a method pays: every sentence has its number, and the number is still the one that the sentence rests on."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from mintage import catalog
from mintage.errors import UserError
from mintage.measure import advice
from mintage.measure.advice import advise, advised, cited, find_number
from mintage.measure.result import Result, newest, read_results
from mintage.measure.scoreboard import compact, shipped_rows

ROOT = Path(__file__).parent.parent.parent
READY = [m.name for m in catalog.methods(role="paper") if m.status == "ready" and m.package == "mintage"]
NOT_MEASURED = {"word-pool", "mrt5", "hat", "magnet", "lexinvariant", "pycoder", "dnabert2", "btm"}
"""Methods whose claim checks were not run yet. Take a name out with its first rows; none may join without a word."""
MEASURED = [name for name in READY if name not in NOT_MEASURED]


@pytest.fixture(scope="module")
def measured():
    return newest(row for row in read_results(ROOT / "results") if isinstance(row, Result))


def test_what_was_not_measured_has_no_rows_and_no_advice(measured):
    claimed = {row.method for row in measured if row.claim}
    assert {name for name in READY if name not in claimed} == NOT_MEASURED
    assert not NOT_MEASURED & set(advised())
    for name in NOT_MEASURED:
        assert f"`{name}`" in PAGE.partition("are not measured yet")[2]


@pytest.mark.parametrize("name", MEASURED)
def test_every_paper_that_is_measured_has_both_sentences_with_a_number_each(measured, name):
    told = advise(name, measured)
    assert told, f"{name}: say in src/mintage/assets/advice.toml when it pays and when not"
    for sentence in (told.pays, told.pays_not):
        assert re.search(r"\d", sentence)
        assert any(str(number) in sentence for number in told.numbers.values())
        assert not sentence.endswith(".")


@pytest.mark.parametrize("name", advised())
def test_the_numbers_are_in_the_results_and_travel_with_the_package(measured, name):
    assert catalog.find(name).status == "ready"
    here, brought = advise(name, measured), advise(name, shipped_rows())
    assert (brought.pays, brought.pays_not) == (here.pays, here.pays_not)


# -- finding a number ---------------------------------------------------------------------------------------------


def test_the_newest_row_that_fits_is_read(make_result):
    rows = [
        make_result(value=1.5, environment={"time": "2026-02"}),
        make_result(value=1.4, environment={"time": "2026-01"}),
        make_result(value=1.3, environment={"time": "2026-03"}, settings={"dtype": "bfloat16"}),
        make_result(value=1.2, environment={"time": "2026-04"}, model="other"),
    ]
    asked = {"metric": "tokens per forward"}
    assert find_number("token-recycling", rows, asked).value == 1.2
    assert find_number("token-recycling", rows, asked | {"model": "SmolLM2-135M-Instruct"}).value == 1.3
    asked |= {"model": "SmolLM2-135M-Instruct", "dtype": "float32"}
    assert find_number("token-recycling", rows, asked).value == 1.5
    assert find_number("x", rows, asked | {"method": "token-recycling"}).value == 1.5
    assert find_number("token-recycling", rows, asked | {"of": "cold table"}).value == 1.61


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"metric": "gone"}, "no row of results has method='token-recycling', metric='gone'; measure it"),
        ({"metric": "tokens per forward", "dtype": "int8"}, "no row of results has .* dtype='int8'"),
        ({"metric": "tokens per forward", "of": "x"}, "has no baseline or peer 'x'"),
        ({"metric": "tokens per forward", "above": 2}, "rests on a number above 2, now 1.796 .*; write it anew"),
        ({"metric": "tokens per forward", "above": 1, "below": 1.5}, "above 1 and below 1.5, now 1.796"),
        ({"metric": "tokens per forward", "of": "plain greedy", "above": 1}, "above 1, now 1 "),
    ],
)
def test_a_number_that_is_gone_or_turned_is_told(make_result, asked, told):
    with pytest.raises(UserError, match=f"advice on token-recycling.*{told}"):
        find_number("token-recycling", [make_result()], asked)


@pytest.mark.parametrize(
    ("changes", "asked", "shown"),
    [
        ({}, {}, "1.8x [1.7 to 1.88, n=20]"),
        ({"interval": None}, {}, "1.8x [n=20]"),
        ({"value": 1.0, "interval": (1.0, 1.0)}, {}, "1x [n=20]"),
        ({"unit": "share", "value": 0.578, "interval": (0.51, 0.64)}, {}, "57.8% [51 to 64, n=20]"),
        ({"unit": "points", "value": -2.52, "interval": None}, {}, "-2.52 points [n=20]"),
        ({"unit": ""}, {"of": "cold table"}, "1.61"),
    ],
)
def test_a_number_is_written_with_its_unit_interval_and_n(make_result, changes, asked, shown):
    asked = {"metric": "tokens per forward", **asked}
    assert str(find_number("token-recycling", [make_result(**changes)], asked)) == shown


@pytest.mark.parametrize(
    ("sentences", "told"),
    [
        ({"pays": "{n} and {m}", "not": "never"}, "uses the number 'm', which is not named"),
        ({"pays": "always", "not": "never"}, "no sentence uses n"),
    ],
)
def test_sentences_and_numbers_must_fit(make_result, monkeypatch, sentences, told):
    written = {"token-recycling": {**sentences, "n": {"metric": "tokens per forward"}}}
    monkeypatch.setattr(advice, "_written", lambda: written)
    with pytest.raises(UserError, match=told):
        advise("token-recycling", [make_result()])


def test_what_is_cited_travels_with_the_peer_that_is_named(make_result, monkeypatch):
    number = {"metric": "aside", "of": "prompt-lookup"}
    monkeypatch.setattr(advice, "_written", lambda: {"token-recycling": {"pays": "{n}", "not": "", "n": number}})
    rows = [
        make_result(),
        make_result(metric="aside", claim="", verdict="measured"),
        make_result(metric="more", claim="", verdict="measured"),
    ]
    claim, aside = compact(rows)
    assert (claim.metric, list(claim.peers)) == ("tokens per forward", ["cold table"])
    assert (aside.metric, list(aside.peers)) == ("aside", ["prompt-lookup", "cold table"])
    assert cited("token-recycling", rows[:1]) == [], "a folder of one's own need not have every row"
    assert advise("no-such-method", rows) is None


# -- the page that helps to choose ---------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "choose.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\d\. `((?:mintage|torchrun) .*?)`<br>", PAGE, re.MULTILINE)


def test_the_page_is_short_and_tells_of_every_paper_that_is_measured():
    assert len(PAGE.splitlines()) <= 250
    for name in MEASURED:
        assert f"- **`{name}`** pays when " in PAGE
    assert PAGE.count("    - It does not when ") == PAGE.count("** pays when ") == len(advised())
    mkdocs = (ROOT / "mkdocs.yml").read_text()
    assert "  - index.md\n  - choose.md\n" in mkdocs


def test_a_need_has_one_or_two_things_to_try_each_with_its_number():
    chooser = PAGE.partition("## When each pays")[0]
    assert len(re.findall(r"^## ", chooser, re.MULTILINE)) >= 3
    needs = chooser.split("\n### ")[1:]
    assert len(needs) >= 10
    for need in needs:
        assert "\nMay change: " in need
        tries = re.findall(r"^\d\. `.*?`<br>(.*)$", need, re.MULTILINE)
        assert len(tries) in (1, 2)
        assert all(re.search(r"\d", said) or "nothing to train" in said for said in tries)


@cache
def options(verbs):
    done = subprocess.run(
        [sys.executable, "-m", "mintage.cli", *verbs, "--help"], capture_output=True, text=True, check=True,
        env={"COLUMNS": "200", "PATH": "", "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", done.stdout))


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(("mintage train ", "torchrun"))])
def test_a_command_of_the_page_has_options_that_exist_and_specs_that_can_be_built(command):
    words = shlex.split(command.partition(" < ")[0])[1:]
    verbs = words[:2] if words[0] in ("segment", "retrofit", "audit") else words[:1]
    assert {word for word in words if word.startswith("-") and word != "-"} <= options(tuple(verbs))
    for option, job in (("--draft", "draft"), ("--keep", "keep")):
        if option in words:
            for spec in words[words.index(option) + 1].split("+"):
                name, settings = catalog.parse_spec(spec)
                assert set(settings) <= set(catalog.hyperparameters(catalog.find(name, job).load()))
    if verbs[:2] == ["segment", "train"]:
        assert catalog.find(words[2], "segment").status == "ready"


def test_a_training_of_the_page_stands_on_the_page_of_its_job():
    pages = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md") if page.name != "choose.md")
    trainings = [command for command in COMMANDS if command.startswith("mintage train ")]
    assert len(trainings) == 3
    for command in trainings:
        assert command in pages

import json
import random
import re
from dataclasses import replace

import pytest

from mintage import catalog
from mintage.audit.needle_threading import NeedleThreading, examples
from mintage.data.haystack import TASKS
from mintage.errors import UserError


class Scripted(NeedleThreading):
    """An audit whose model is a function of the prompt."""

    def _answer(self, lm, ids, new):
        return self.answer_by(lm.tokenizer.decode(ids[0]))


def scripted(answer, **settings):
    audit = Scripted(**{"pairs": (6, 10), "repeats": 3, **settings})
    object.__setattr__(audit, "answer_by", answer)
    return audit


def oracle(prompt):
    """Look everything up in the haystack that the prompt begins with."""
    text, question = prompt.split("\n", 1)
    held = json.loads(text)

    def last(key):
        while key in held:
            key = held[key]
        return key

    star = re.search(r'contain the character "(.)"', question)
    if star:
        return json.dumps([v for k, v in held.items() if star[1] in k])
    if "value of the key" in question:
        asked = re.findall(r'"([0-9a-f-]{36})"', question)
        ends = [last(key) for key in asked]
        return json.dumps(ends) if "JSON list" in question else ends[0]
    asked = [k for k in re.findall(r'"([0-9a-f-]{36})"', question) if k in held]
    return json.dumps([held[k] for k in asked]) if "JSON list" in question else held[asked[0]]


@pytest.fixture(scope="module")
def lm():
    made = NeedleThreading.tiny_subject()
    made.model.config.max_position_embeddings = 10_000
    return made


def test_an_oracle_finds_everything(lm):
    report = scripted(oracle).run(lm)
    assert {row["task"] for row in report.table} == set(TASKS)
    assert all(row["score"] == row["exact"] == 1 for row in report.table)
    for task in TASKS:
        assert report.findings[f"limit, {task} (characters)"] == 800


def test_guessing_finds_nothing_and_the_first_value_its_share(lm):
    draw = random.Random(0)
    guess = scripted(lambda prompt: f"{draw.getrandbits(128):032x}").run(lm)
    assert all(row["score"] == 0 for row in guess.table)
    first = scripted(
        lambda prompt: next(iter(json.loads(prompt.split("\n")[0]).values())),
        tasks=("single",),
        pairs=(10,),
        depths=tuple(range(0, 100, 10)),
    ).run(lm)
    assert first.findings["accuracy, single"] == pytest.approx(1 / 10)


def test_the_grid():
    audit = NeedleThreading(pairs=(8, 4), repeats=2, depths=(0, 50), needles=(2,), steps=(2,), threads=2)
    grid = list(examples(audit))
    assert [e.prompt for _, e in grid] == [e.prompt for _, e in examples(audit)]
    assert len(grid) == 2 * 2 * (2 + 1 + 1 + 1 + 1)
    assert {name for name, _ in grid} == {"depth 0%", "depth 50%", "2 needles", "2 steps", "2 threads of 2"}
    assert len(grid[0][1].haystack.pairs) == 4
    other = [e.prompt for _, e in examples(replace(audit, seed=1))]
    assert len(set(other) & {e.prompt for _, e in grid}) > 0  # seed 1 is the second repeat of seed 0
    assert set(other) != {e.prompt for _, e in grid}


def test_limits_follow_the_lengths(lm):
    def short_sighted(prompt):
        return oracle(prompt) if prompt.count('": "') <= 6 else "?"

    report = scripted(short_sighted, tasks=("single",), threshold=0.5).run(lm)
    assert report.findings["limit, single (characters)"] == pytest.approx(480 + 320 / 2)
    (contour,) = [f for f in report.figures if f.name == "contour-single"]
    assert contour.data["series"][0]["y"] == [640.0] * 5
    assert report.findings["advertised (characters)"] > 800


@pytest.mark.parametrize("form", ["question", "complete"])
def test_a_policy_is_attached_while_the_model_answers(lm, form):
    seen = []

    class Policy:
        def __call__(self, model):
            return self

        def __enter__(self):
            seen.append("in")

        def __exit__(self, *_):
            seen.append("out")

    audit = NeedleThreading(tasks=("single",), pairs=(2,), depths=(0,), repeats=2, policy=Policy(), form=form)
    audit.run(lm)
    assert seen == ["in", "out"] * 2


def test_a_full_cache_policy_changes_nothing(lm):
    audit = NeedleThreading(tasks=("single", "multiple"), pairs=(4,), depths=(0, 100), needles=(2,), repeats=1)
    plain = list(audit.ask(lm))
    kept = list(replace(audit, policy=catalog.build("full-cache", "keep")).ask(lm))
    assert kept == plain


def test_nothing_is_cut_to_fit(lm, monkeypatch):
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", 700)
    with pytest.raises(UserError, match=r"12 pairs takes \d+ tokens .*; pass at most 6 pairs"):
        NeedleThreading(tasks=("single",), pairs=(4, 12), repeats=1).run(lm)
    with pytest.raises(UserError, match=r"400 pairs takes \d+ tokens .*; pass at most 6 pairs"):
        NeedleThreading(tasks=("single",), pairs=(400,), repeats=1).run(lm)
    with pytest.raises(UserError, match="7 pairs takes"):
        NeedleThreading(tasks=("single",), pairs=(7,), repeats=1).run(lm)
    assert list(NeedleThreading(tasks=("single",), pairs=(6,), depths=(0,), repeats=1).ask(lm))
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", 50)
    with pytest.raises(UserError, match="no haystack of this form fits it"):
        NeedleThreading(tasks=("single",), pairs=(4,), repeats=1).run(lm)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": ("sewing",)},
        {"tasks": ()},
        {"pairs": ()},
        {"repeats": 0},
        {"threshold": 0.0},
        {"pairs": (3,), "steps": (4,)},
        {"pairs": (3,), "threads": 2},
        {"form": "verse"},
        {"direction": "up"},
        {"placement": "heap"},
        {"depths": (101,)},
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_wrong_settings_are_told(wrong):
    with pytest.raises(UserError) as told:
        NeedleThreading(**wrong)
    assert "\n" not in str(told.value)

"""Prompts made from texts at hand."""

import gzip
import json

import pytest

from mintage.data import read_prompts
from mintage.data.instructions import instructions
from mintage.errors import UserError


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch):
    """A data folder of its own, so that what a clone or a cache holds is not read."""
    monkeypatch.setattr("mintage.data.sets._folders", lambda: [tmp_path])


def test_prompts_are_a_prefix_of_more_and_never_the_benches():
    few, many = instructions(60, code=False), instructions(200, code=False)
    assert many[:60] == few
    assert len(set(many)) == 200
    assert instructions(60, code=False, seed=1) != few
    tested = {prompt.turns[0] for prompt in read_prompts()}
    assert not tested & set(many)
    with pytest.raises(UserError, match="prompts can be made of the texts on this machine"):
        instructions(10**6, code=False)


def test_prompts_ask_about_the_texts_at_hand_and_leave_the_test_data_alone(tmp_path):
    with gzip.open(tmp_path / "gsm8k.jsonl.gz", "wt") as file:
        for i in range(20):
            row = {"split": "test" if i % 2 else "train", "question": f"What is {i} and one?", "answer": "#### 1"}
            file.write(json.dumps(row) + "\n")
    made = instructions(400)
    assert sum("and one?" in prompt for prompt in made) == 10
    assert not any("What is 1 and" in p for p in made)
    assert any("Python" in prompt for prompt in made)

"""The study of lexinvariant models at a size that takes seconds, and that its verdicts follow the numbers."""

from dataclasses import replace

import numpy as np
import pytest

from mintage.bench.lm.letters import letter_texts
from mintage.lm.training.lexinvariant import LETTERS
from mintage.measure import Result
from mintage.measure.study import Run, run_study
from mintage.studies.lexinvariant import ENGLISH, IDEAL, ORDINARY, OURS, USUAL, LexinvariantStudy


@pytest.fixture
def study(tmp_path):
    return LexinvariantStudy(
        seeds=2, steps=2, symbols=4, window=16, measured=8, letter_steps=0, models=tmp_path / "models"
    )


def test_it_gives_every_row_and_keeps_its_models(study, tmp_path):
    rows = [row for row in run_study(study, work=tmp_path / "work") if isinstance(row, Result)]
    assert [bool(row.claim) for row in rows] == [True] * 5
    assert len([path for path in (tmp_path / "models").iterdir() if path.suffix != ".run"]) == 4
    assert rows[0].verdict == "does not hold"  # after two steps


def test_english_is_read_in_small_letters_and_under_other_names(study, tmp_path, monkeypatch):
    text = ["The Moon, it is said, pulls the water of the sea; and the sea follows (twice a day)! " * 30] * 4
    monkeypatch.setattr("mintage.lm.training.lexinvariant.english", lambda: text)
    monkeypatch.setattr("mintage.bench.lm.letters.texts", lambda *of: text)
    some = letter_texts(6, 256)
    assert some.shape == (6, 256)
    assert set(some.flatten().tolist()) <= set(LETTERS)
    assert "the moon it is said pulls the water" in bytes(some[0].tolist()).decode()
    both = replace(study, seeds=1, letter_steps=2)
    rows = [row for row in run_study(both, work=tmp_path / "work") if isinstance(row, Result)]
    assert [row.metric.rpartition(", ")[2] for row in rows[-2:]] == ["English"] * 2
    assert rows[-2].n == 8
    assert len(rows) == 8


@pytest.mark.parametrize(("first", "last", "verdict"), [(1.0, 0.3, "holds"), (1.0, 0.9, "does not hold")])
def test_the_gap_on_english_is_what_shrinks(study, first, last, verdict):
    run = Run(replace(study, letter_steps=1))
    noise = np.linspace(-0.01, 0.01, 16)
    run.columns = {
        ENGLISH: {"first": 3 + first + noise, "last": 2 + last + noise, "last, renamed": 2 + last - noise},
        USUAL: {"first": 3 - noise, "last": 2 - noise, "last, renamed": 4 + noise},
        OURS: {"late": noise, "late, renamed": noise, "looked up": noise, "grows": noise},
        ORDINARY: {"late": noise, "late, renamed": noise, "looked up": noise},
        IDEAL: {"late": noise},
    }
    made = [row.result(run).verdict for row in run.study.rows(run)]
    assert made[-3:] == [verdict, "holds", "holds"]


@pytest.mark.parametrize(
    ("late", "renamed", "right", "verdicts"),
    [(1.05, 2.5, 0.2, ["holds"] * 4), (1.3, 1.3, 0.7, ["does not hold", "holds", "does not hold", "does not hold"])],
)
def test_verdicts_follow_the_numbers(study, late, renamed, right, verdicts):
    run = Run(study)
    noise = np.linspace(-0.01, 0.01, 16)
    grows = np.array([0.1, 0.2])
    run.columns = {
        OURS: {"late": late + noise, "late, renamed": late - noise, "looked up": np.full(16, 0.8), "grows": grows},
        ORDINARY: {"late": 1 + noise, "late, renamed": renamed + noise, "looked up": np.full(16, right)},
        IDEAL: {"late": np.ones(16), "late, renamed": np.ones(16)},
    }
    made = [row.result(run).verdict for row in study.rows(run)]
    assert made[:4] == verdicts

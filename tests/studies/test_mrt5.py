"""The claim check of MrT5 at a size that takes seconds, and that its verdicts follow the numbers."""

import numpy as np
import pytest

from mintage.measure import Figure, Result
from mintage.measure.study import Run, run_study
from mintage.studies.mrt5 import MrT5Study

TEXT = "The sea has tides, because the moon pulls the water. "
SMALL = {
    "seeds": 1, "letter_steps": 3, "letters": 12, "text_steps": 3, "more_steps": 3, "window": 64, "width": 16,
    "measured": 4, "rounds": 2,
}  # fmt: skip


@pytest.fixture
def study(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT * 200)

    def make(**settings):
        return MrT5Study(text=(str(tmp_path / "text.txt"),), models=tmp_path / "models", **SMALL | settings)

    return make


def test_a_toy_gives_every_row_and_keeps_its_models(study, tmp_path):
    told = []
    rows = run_study(study(), work=tmp_path / "work", progress=lambda *step: told.append(step))
    results = [row for row in rows if isinstance(row, Result)]
    assert [bool(row.claim) for row in results] == [True, True, True, False, True, True, True]
    assert all(row.verdict in ("holds", "does not hold") for row in results if row.claim)
    assert [row.name for row in rows if isinstance(row, Figure)] == ["bits"]
    assert not list((tmp_path / "work").glob("*"))
    stages = {stage for stage, *_ in told}
    assert {"letters", "text", "encoding 1,024 bytes"} <= stages
    made = {path.name for path in (tmp_path / "models").iterdir() if (path / "config.json").exists()}
    assert len(made) == 2 + 2 + 4  # from scratch on letters and text; letters and text going on

    told.clear()
    again = run_study(study(), work=tmp_path / "again", progress=lambda *step: told.append(step))
    assert not [stage for stage, *_ in told if "seed" in stage]  # nothing is trained twice
    untimed = [row.metric for row in results if "seconds" not in row.metric]
    values = {row.metric: row.value for row in again if isinstance(row, Result)}
    assert [values[metric] for metric in untimed] == [row.value for row in results if row.metric in untimed]


MINE = {"bits": "mine", "deleted": "deleted", "seconds": "seconds"}


def measured(**changed):
    """Columns under which every claim holds, and what is changed of them."""
    ones = np.ones(40)
    found = {"right": 1.0, "vowels": 0.2, "mine": 1.05, "random": 1.3, "deleted": 0.51, "seconds": 0.6, "half": 0.6}
    it = found | changed
    letters = {"bits": ones, "size": ones, "right": ones, "deleted": 0 * ones, "read": ones, "kept": ones}
    speed = {"gone": ones, "length": ones}
    return {
        "T5, letters": letters,
        "MrT5, letters": letters | {"right": it["right"] * ones, "deleted": it["vowels"] * ones},
        "ByT5": letters | speed | {"seconds": ones},
        "MrT5": letters | speed | {n: it[m] * ones for n, m in MINE.items()},
        "random gate": letters | speed | {"bits": it["random"] * ones, "seconds": it["half"] * ones},
        "fixed gate": letters | {"bits": 1.2 * ones},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({}, None),
        ({"right": 0.98}, "written right"),
        ({"vowels": 0.3}, "from rows of letters"),
        ({"vowels": 0.1}, "from rows of letters"),
        ({"mine": 1.11}, "that of a random gate"),
        ({"deleted": 0.54}, "those asked for"),
        ({"deleted": 0.46}, "those asked for"),
        ({"seconds": 0.8}, "those of MrT5"),
        ({"half": 0.72}, "those of random gate"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) or "all hold" if isinstance(value, dict) else "",
)
def test_verdicts_follow_the_numbers(study, tmp_path, changed, lost):
    run = Run(study(), work=tmp_path / "work")
    run.columns = measured(**changed)
    results = [row.result(run) for row in run.study.rows(run)]
    wrong = [row.metric for row in results if row.verdict == "does not hold"]
    assert [lost in metric for metric in wrong] == ([True] if lost else [])
    shares = [row.value for row in results if "as a share" in row.metric]
    assert shares[0] == pytest.approx((changed.get("mine", 1.05) - 1) / 0.3)
    assert shares[1] == pytest.approx((changed.get("mine", 1.05) - 1) / 0.2)

"""The study of lexinvariant models at a size that takes seconds, and that its verdicts follow the numbers."""

import numpy as np
import pytest

from mintage.measure import Result
from mintage.measure.study import Run, run_study
from mintage.studies.lexinvariant import IDEAL, ORDINARY, OURS, LexinvariantStudy


@pytest.fixture
def study(tmp_path):
    return LexinvariantStudy(seeds=2, steps=2, symbols=4, window=16, measured=8, models=tmp_path / "models")


def test_it_gives_every_row_and_keeps_its_models(study, tmp_path):
    rows = [row for row in run_study(study, work=tmp_path / "work") if isinstance(row, Result)]
    assert [bool(row.claim) for row in rows] == [True] * 5
    assert len([path for path in (tmp_path / "models").iterdir() if path.suffix != ".run"]) == 4
    assert rows[0].verdict == "does not hold"  # after two steps


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

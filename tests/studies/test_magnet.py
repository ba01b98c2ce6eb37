"""The study of MAGNET at a size that takes seconds, and that its verdicts follow the numbers."""

import numpy as np
import pytest

from mintage.measure import Result
from mintage.measure.study import Run, run_study
from mintage.studies import magnet
from mintage.studies.magnet import BYTES, LANGUAGES, OURS, POOLED, MagnetStudy

SAID = {"es": "La luna mueve el mar. ", "ru": "Луна движет море. ", "hi": "चाँद समुद्र को हिलाता है। "}


@pytest.fixture
def study(tmp_path, monkeypatch):
    said = {**SAID, **{long: SAID[short] for short, long in LANGUAGES.items()}}
    monkeypatch.setattr(magnet, "texts", lambda name, split, domain: [said[domain]] * (60 if name == "tatoeba" else 2))
    sizes = {"seeds": 2, "steps": 2, "window": 32, "width": 16, "measured": 2, "rounds": 2}
    return MagnetStudy(**sizes, models=tmp_path / "models")


def test_it_gives_every_row_and_keeps_its_models(study, tmp_path):
    rows = [row for row in run_study(study, work=tmp_path / "work") if isinstance(row, Result)]
    assert len(rows) == 7
    assert all(row.claim for row in rows)
    assert rows[0].peers[BYTES] > 1.5  # Hindi has more bytes
    assert len([path for path in (tmp_path / "models").iterdir() if path.suffix != ".run"]) == 6


@pytest.mark.parametrize(
    ("ours", "pooled", "bits", "seconds", "verdict"),
    [(11.0, 20.0, 1.0, 1.0, "holds"), (14.0, 12.0, 1.1, 3.0, "does not hold")],
)
def test_verdicts_follow_the_numbers(study, ours, pooled, bits, seconds, verdict):
    run = Run(study)
    run.columns = {
        arm: {
            **{f"segments {name}": np.full(4, most if name == "hi" else 10.0) for name in LANGUAGES},
            **{f"bits {name}": np.full(4, cost) for name in LANGUAGES},
            "seconds": np.full(2, took),
        }
        for arm, most, cost, took in ((OURS, ours, bits, seconds), (POOLED, pooled, 1.0, seconds), (BYTES, 30, 1, 2.0))
    }
    assert {row.result(run).verdict for row in study.rows(run)} == {verdict}

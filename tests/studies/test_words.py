"""Studies of models of words at a size that takes seconds, and that their verdicts follow the numbers."""

import numpy as np
import pytest

from mintage.bench.lm import byte_studies
from mintage.lm.training.baselines import BPETransformerTraining, ByteTransformerTraining
from mintage.lm.training.hat import HatTraining
from mintage.lm.training.word_pool import WordPoolTraining
from mintage.measure import Figure, Result
from mintage.measure.study import Run, run_study
from mintage.studies import hat, word_pool

TEXT = "The moon pulls the water of the sea, and the sea follows the moon; twice a day there are tides. "
TINY = {
    BPETransformerTraining: {"width": 16, "layers": 1, "heads": 2, "vocabulary": 260},
    ByteTransformerTraining: {"width": 16, "layers": 1, "heads": 2},
    HatTraining: {"byte_width": 8, "byte_layers": 1, "byte_heads": 2, "width": 16, "layers": 1, "heads": 2},
    WordPoolTraining: {"width": 8, "heads": 2, "pool_layers": 1, "layers": 1, "spell_layers": 1, "feed_forward": 8},
}
SMALL = {"seeds": 2, "steps": 2, "window": 128, "measured": 4, "rounds": 2, "written": 4}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setattr(byte_studies, "english", lambda: [TEXT * 60])
    monkeypatch.setattr(byte_studies, "texts", lambda name, split, **which: [TEXT.upper() * 20])
    real = byte_studies.ByteStudy.training

    def tiny(self, kind, seed, **sizes):
        return real(self, kind, seed, **{**sizes, **TINY[kind]})

    monkeypatch.setattr(byte_studies.ByteStudy, "training", tiny)
    return {**SMALL, "models": tmp_path / "models"}


def test_hat_gives_every_row_and_keeps_its_models(toy, tmp_path):
    study = hat.HatStudy(**toy, german_steps=10)
    rows = run_study(study, work=tmp_path / "work")
    results = [row for row in rows if isinstance(row, Result)]
    assert [bool(row.claim) for row in results] == [True, True, True, True, True, True, False]
    assert [row.name for row in rows if isinstance(row, Figure)] == ["hat-german"]
    assert len([path for path in (tmp_path / "models").iterdir() if path.suffix != ".run"]) == 6
    assert results[0].peers.keys() == {hat.BYTES}


def test_word_pool_gives_every_row(toy, tmp_path):
    rows = run_study(word_pool.WordPoolStudy(**toy, units=4), work=tmp_path / "work")
    claims = [row.claim for row in rows if isinstance(row, Result) and row.claim]
    assert any("behind as many words" in claim for claim in claims)
    assert len(claims) >= 5


def columns(**values):
    return {name: np.array(value, float) for name, value in values.items()}


@pytest.mark.parametrize(("ours", "verdict"), [(1.02, "holds"), (1.2, "does not hold")])
def test_bits_within_three_percent_decide(toy, ours, verdict, monkeypatch):
    study = hat.HatStudy(**toy)
    found = {
        arm: columns(bits=[2.0 * ratio] * 4) for arm, ratio in ((hat.OURS, ours), (hat.BPE, 1.0), (hat.BYTES, 1.1))
    }
    run = Run(study)
    run.columns = found
    row = next(iter(study.rows(run)))
    assert row.result(run).verdict == verdict


def test_noise_is_judged_by_how_much_bits_grow():
    clean = np.full(8, 2.0)
    found = byte_studies.NOISE_RATIO.of_two(np.stack([clean * 1.1, clean]), np.stack([clean * 1.4, clean]))
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(found.high)


def test_steps_in_a_second_language_are_counted_until_the_rival_is_reached(toy):
    study = hat.HatStudy(**toy)
    run = Run(study)
    falling = np.linspace(3, 2, 11)
    run.columns = {
        hat.OURS: columns(German=[*(falling - 0.5), *(falling + 1)]),
        hat.BPE: columns(German=[*falling] * 2),
    }
    assert study._shares(run) == [0.5, 1.1]

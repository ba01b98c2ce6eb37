"""The claim check of zett at a size that takes seconds: with a hypernetwork and without one, and after a kill."""

import pytest
import torch
from toys_retrofit import save_word_model, write_hypernetwork, write_zett

from mintage import weights
from mintage.bench.retrofit.transfers import HeldOutTokenizers
from mintage.errors import UserError
from mintage.measure import Result
from mintage.measure.study import run_study
from mintage.models import load_causal_lm
from mintage.studies.zett import ZettStudy

SMALL = {
    "texts": 3,
    "size": 96,
    "targets": ("english 4k", "german 8k"),
    "marks": (0, 2),
    "seed": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_word_model(tmp_path_factory.mktemp("models") / "tiny", tied=True)


@pytest.fixture
def small(tmp_path, monkeypatch):
    write_zett(tmp_path)
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    monkeypatch.setattr(weights, "_ASSETS", tmp_path)
    return tmp_path


@pytest.fixture
def trained(small, folder):
    """A hypernetwork of the tiny model, in the place of the one that ships."""
    write_hypernetwork(small, folder)
    return small


def study(folder, **settings):
    return ZettStudy(model=folder, **SMALL | settings)


def test_the_rows_are_those_of_before(trained, folder, equal_to_golden):
    told = []
    rows = run_study(study(folder), work=trained / "work", progress=lambda *step: told.append(step))
    equal_to_golden("zett", rows, rel=1e-4)
    assert {row.model for row in rows if isinstance(row, Result)} == {folder}
    assert {row.rule for row in rows if isinstance(row, Result) and row.claim} == {
        "at least 0.15 and interval above 0",
        "at least 0 and interval above 0",
        "at most 0.1",
    }
    assert list(dict.fromkeys(stage for stage, *_ in told)) == ["english 4k", "german 8k", "own tokenizer", "tuning"]
    assert len({row.identity for row in rows}) == len(rows)
    assert not list((trained / "work").glob("*"))


def test_without_a_hypernetwork_the_rivals_are_measured(small, folder, equal_to_golden):
    equal_to_golden("zett-plain", run_study(study(folder), work=small / "work"), rel=1e-4)


def test_a_killed_check_goes_on(trained, folder):
    def killed(stage, done, of):
        if (stage, done) == ("german 8k", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study(folder), work=trained / "work", progress=killed)
    (kept,) = (trained / "work").glob("*.jsonl")
    assert len(kept.read_text().splitlines()) == 3 * 8 + 5
    whole = run_study(study(folder), work=trained / "work")
    fresh = run_study(study(folder), work=trained / "other")
    assert [row.value for row in whole if isinstance(row, Result)] == pytest.approx(
        [row.value for row in fresh if isinstance(row, Result)], abs=1e-4
    )


def test_tuning_leaves_the_embeddings_as_they_were(small, folder):
    held = _held(folder)
    before = {n: w.clone() for n, w in held.model("english 4k", "fvt").model.state_dict().items()}
    curve = held.tuned("english 4k", "fvt", (0, 2))
    assert len(curve) == 2
    assert curve[1] != curve[0]
    assert all(torch.equal(before[n], w) for n, w in held.model("english 4k", "fvt").model.state_dict().items())


def _held(folder):
    lm = load_causal_lm(folder, dtype="float32")
    return HeldOutTokenizers(lm, ("english 4k", "german 8k"), number=2, size=96, seed=0)


def test_measured_texts_are_not_learnt_from(small, folder):
    held = _held(folder)
    measured = {document.text[:40] for document in held.texts["de"]}
    assert len(held.learnt("de")) == 6
    assert not [text for text in held.learnt("de") if text[:40] in measured]


def test_mistakes_are_one_line(small, folder, monkeypatch):
    with pytest.raises(UserError, match="unknown tokenizer 'german 9k'; did you mean 'german 8k'"):
        run_study(study(folder, targets=("german 9k",)), work=small / "work")
    monkeypatch.setattr("mintage.data.sets.find_data", lambda name: None)
    with pytest.raises(UserError, match="is not on this machine"):
        run_study(study(folder), work=small / "work")

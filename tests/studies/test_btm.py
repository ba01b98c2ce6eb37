"""The study of Branch-Train-Merge at a size that takes seconds, and that its verdicts follow the numbers."""

import numpy as np
import pytest

from mintage.bench.lm.forests import SYSTEMS, DomainTexts
from mintage.measure import Figure, Result
from mintage.measure.study import Run, run_study
from mintage.studies import btm
from mintage.studies.btm import BTMStudy

CODE = [f"def f{n}(x):\n    return x + {n}\n\nfor i in range({n}):\n    print(f{n}(i))\n" for n in range(40)]
PROSE = [f"The moon number {n} pulls the water of the sea, and the sea follows it {n} times a day. " for n in range(40)]
NEW = ["Twice a day the water comes to the stone by the sea, and goes again. " * 8]


class Toy(BTMStudy):
    def texts(self):
        return {
            "code": DomainTexts(CODE[:30], CODE[30:35], CODE[35:]),
            "prose": DomainTexts(PROSE[:30], PROSE[30:35], PROSE[35:]),
            "new": DomainTexts([], NEW, NEW),
        }


@pytest.fixture
def study(tmp_path):
    sizes = {"width": 16, "layers": 1, "vocabulary": 270, "window": 16, "measured": 4}
    return Toy(seeds=1, seed_steps=4, branch_steps=2, models=tmp_path / "models", **sizes)


def test_it_gives_every_row_and_keeps_its_models(study, tmp_path, monkeypatch):
    made = run_study(study, work=tmp_path / "work")
    rows = [row for row in made if isinstance(row, Result)]
    assert [bool(row.claim) for row in rows] == [True] * 6 + [False]
    assert rows[0].n == 4
    assert set(rows[0].peers) | {btm.OURS, btm.DENSE, btm.COLLAPSED} == set(SYSTEMS)
    assert rows[-1].value == 2
    assert "50% of the steps" in rows[-1].note
    figures = [figure for figure in made if isinstance(figure, Figure)]
    assert [len(figure.data["series"]) for figure in figures] == [2] * 4
    shares = np.array([series["y"] for series in figures[-1].data["series"]])
    assert shares.sum(0) == pytest.approx(1)
    kept = sorted(path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".run")
    assert len(kept) == 1 + 2 + 2 + 2 + 2  # seed, experts of domains, of parts, without a seed, dense and conditioned
    monkeypatch.setattr("mintage.train.training.Work.stage", None)  # nothing is trained again
    again = [row for row in run_study(study, work=tmp_path / "other") if isinstance(row, Result)]
    assert [row.value for row in again] == [row.value for row in rows]


def test_experts_begin_as_the_seed_and_read_only_their_domain(study):
    grown = Run(study).subject(0)
    forest = grown.forest("domains")
    assert set(forest.experts) == {"code", "prose"}
    assert grown.whole == 8
    own, other = grown.bits(SYSTEMS[btm.OURS], "code"), grown.bits(SYSTEMS[btm.UNIFORM], "code")
    assert own.shape == other.shape == (4,)
    for name in grown.judge:  # a mixture costs at most a bit, of two experts, above the best
        best = np.minimum(*(grown.bits(lambda g, ids, d, m=m: btm_one(m, ids), name) for m in forest.experts.values()))
        letters = grown.letters[grown.judge[name][:, 1:].numpy()].sum(1)
        assert (grown.bits(SYSTEMS[btm.OURS], name) <= best + 1 / letters + 1e-6).all()
    parts = [set(map(bytes, own)) for own in grown.learn.values()]
    assert not parts[0] & parts[1]


def btm_one(model, ids):
    from mintage.lm.btm import ExpertForest

    return ExpertForest({"one": model}).nll(ids)


@pytest.mark.parametrize(
    ("moved", "verdicts"),
    [
        ({}, ["holds"] * 6),
        (
            {btm.OURS: 0.2, btm.RANDOM: -0.3, btm.WEIGHTED: 0.5, btm.COLLAPSED: -2.0},
            ["does not hold"] * 6,
        ),
    ],
)
def test_verdicts_follow_the_numbers(study, moved, verdicts):
    run = Run(study)
    level = dict.fromkeys(SYSTEMS, 2.0)
    level |= {btm.OURS: 1.9, btm.RANDOM: 2.05, btm.WEIGHTED: 1.95, btm.AVERAGE: 2.1, btm.COLLAPSED: 4.0}
    noise = np.linspace(-0.01, 0.01, 8)
    run.columns = {
        arm: {name: at + moved.get(arm, 0.0) + noise for name in ("code", "prose", "new")} for arm, at in level.items()
    }
    assert [row.result(run).verdict for row in study.rows(run)][:6] == verdicts

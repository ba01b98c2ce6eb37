"""Dispatch of the audit bench, and the rows that the data-mixture check makes of what it measured."""

import numpy as np
import pytest

from mintage import catalog
from mintage.bench.audit import joint as bench
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.studies import data_mixture, needle_threading, number_tokens


@pytest.fixture
def called(monkeypatch):
    calls = []
    checks = {"data-mixture": data_mixture, "needle-threading": needle_threading, "number-tokens": number_tokens}
    for name, module in checks.items():
        monkeypatch.setattr(module, "check", lambda name=name, **settings: calls.append((name, settings)) or [])
    ready = {row.name for row in catalog.methods("audit") if row.status == "ready" and row.role == "paper"}
    assert ready == set(checks), "a check that is not replaced here would run for an hour"
    return calls


def test_one_method_runs_its_check(called):
    bench.run(["data-mixture"], seed=3, limit=4, command="c")
    [(name, settings)] = called
    assert (name, settings["seed"], settings["limit"], settings["command"]) == ("data-mixture", 3, 4, "c")


def test_the_job_alone_runs_all_that_are_ready(called):
    bench.run([])
    assert [name for name, _ in called] == ["data-mixture", "number-tokens", "needle-threading"]


@pytest.mark.parametrize(
    ("names", "message"), [(["data-mixtur"], "did you mean"), (["data-mixture:tol=1"], "own settings")]
)
def test_refused_before_anything_runs(called, names, message):
    with pytest.raises(UserError, match=message):
        bench.run(["data-mixture", *names])
    assert called == []


def control(generator, noise):
    truth = generator.dirichlet(np.ones(4))
    near = np.clip(truth + noise * generator.standard_normal(4), 0, 1)
    return data_mixture.Control(
        truth=truth.tolist(),
        inferred=near.tolist(),
        low=(near - 2 * noise).tolist(),
        high=(near + 2 * noise).tolist(),
        objective=0.05,
        by_size=[64 * noise**2, 16 * noise**2, 4 * noise**2, 2 * noise**2],
        efficiency=generator.uniform(0.5, 1, 4).tolist(),
        vocabulary=generator.dirichlet(np.ones(4)).tolist(),
    )


@pytest.mark.parametrize(("noise", "verdict"), [(0.002, "holds"), (0.2, "does not hold")])
def test_the_verdict_follows_the_errors(noise, verdict):
    generator = np.random.default_rng(7)
    made = [control(generator, noise) for _ in range(12)]
    row = {"method": "data-mixture", "job": "audit", "environment": {}, "seed": 0}
    here = {"method": "data-mixture", "job": "audit", "environment": {}}
    rows = data_mixture._of_controls(made, row, here)
    first = rows[0]
    assert isinstance(first, Result)
    assert first.verdict == verdict
    assert set(first.peers) == {data_mixture.EFFICIENCY, data_mixture.VOCABULARY, data_mixture.RANDOM}
    assert sum(isinstance(one, Figure) for one in rows) == 2


def test_the_regression_learns_from_the_other_controls():
    generator = np.random.default_rng(1)
    made = []
    for _ in range(8):
        one = control(generator, 0.01)
        made.append(data_mixture.Control(**{**vars(one), "efficiency": (np.array(one.truth) ** 0.2).tolist()}))
    for found, one in zip(data_mixture._regression(made), made, strict=True):
        np.testing.assert_allclose(found, one.truth, atol=1e-3)


def test_training_text_and_sample_share_no_document():
    train, sample = data_mixture._halves(["a", "b", "a", "c", "d", "d"])
    assert not set(train) & set(sample)
    assert sorted(train + sample) == ["a", "b", "c", "d"]


def test_the_journal_goes_on(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": 1.5}

    path = tmp_path / "j.jsonl"
    assert data_mixture._Journal(path).get("a", make) == data_mixture._Journal(path).get("a", make) == {"x": 1.5}
    assert made == [1]
    data_mixture._Journal(path).close()
    assert not path.exists()

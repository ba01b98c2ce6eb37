"""The claim check of exact-bytes at a size that takes seconds: rows as they were, every claim once, kills, parts."""

from pathlib import Path

import numpy as np
import pytest
from toys_retrofit import draw, save_word_model, write_exact_bytes

from mintage.bench.retrofit import cuts
from mintage.bench.retrofit.votes import vote
from mintage.measure import Result
from mintage.measure.study import run_study
from mintage.models import load_causal_lm
from mintage.retrofit.byte_ensemble import ByteEnsemble
from mintage.retrofit.contract import END
from mintage.retrofit.exact_bytes import ByteLM
from mintage.studies.exact_bytes import ExactBytesStudy

SMALL = {
    "kinds": ("prose",),
    "cuts": 6,
    "lines": 2,
    "library": 2,
    "voted": ("prose",),
    "votes": 6,
    "scored": 3,
    "written": 3,
    "longest": 4,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two tiny models that have words and a token before every text."""
    path = tmp_path_factory.mktemp("models")
    settings = {"max_position_embeddings": 1024}
    return save_word_model(path / "tiny", **settings), save_word_model(path / "second", seed=5, **settings)


@pytest.fixture
def small(tmp_path, monkeypatch):
    write_exact_bytes(tmp_path)
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    return tmp_path


def study(folders, **settings):
    return ExactBytesStudy(model=folders[0], **{"second": folders[1], **SMALL, **settings})


def named(rows, folders):
    """Call models tiny and second, as the golden rows do."""
    text = repr([{n: getattr(row, n) for n in row.__dataclass_fields__} for row in rows])
    text = text.replace(folders[0], "tiny").replace(folders[1], "second")
    return [Result(**row) for row in eval(text)]


def test_the_rows_are_those_of_before(folders, small, equal_to_golden):
    told = []
    rows = run_study(study(folders), work=small / "work", progress=lambda *step: told.append(step))
    equal_to_golden("exact-bytes", named(rows, folders), rel=1e-4)
    assert list(dict.fromkeys(stage for stage, *_ in told)) == [
        "cuts",
        "transformers' healing",
        "lines",
        "votes, prose",
    ]
    tested = [row for row in rows if row.claim]
    assert len({row.claim for row in tested}) == len(tested)
    assert len({row.identity for row in rows}) == len(rows)
    assert {row.model for row in rows} == {folders[0], " + ".join(folders)}
    assert not list((small / "work").glob("*"))


def test_what_rows_say_of_scripted_measurements_is_as_before(folders, small, monkeypatch, equal_to_golden):
    """Arms that score, write and complete by a draw: numbers that a model of two layers would not give."""

    def follow(arm, cut, scored, written):
        return draw(arm, cut.name, "bits", "right", "first", "forwards") | {"boundary": float(cut.boundary)}

    monkeypatch.setattr(cuts, "follow", follow)
    monkeypatch.setattr(cuts, "complete", lambda arm, task, longest: draw(arm, task["before"], "same", "passes"))
    monkeypatch.setattr(
        cuts, "healed_by_transformers", lambda lm, cut, written: draw(lm, cut.name, "right of some", "failed")
    )
    rows = run_study(study(folders, cuts=40, library=10), work=small / "work")
    equal_to_golden("exact-bytes-scripted", named(rows, folders), rel=1e-4)
    assert {row.rule for row in rows if row.claim} == {
        "interval above 0",
        "interval below 0",
        "at least 0",
        "at most 0",
        "interval contains 0",
        "interval within 0.1 of 0",
        "interval up to 2",
    }


def test_a_model_and_itself_vote_as_one(folders, small):
    rows = run_study(study((folders[0], folders[0])), work=small / "work")
    votes = [row for row in rows if row.metric.startswith("bits per byte, prose")]
    assert len(votes) == 2
    assert all(abs(row.value) < 1e-6 for row in votes)


def test_a_killed_check_goes_on(folders, small):
    def stop(stage, done, of):
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study(folders), work=small / "work", progress=stop)
    (kept,) = (small / "work").glob("*.jsonl")
    assert len(kept.read_text().splitlines()) == 9


def test_cuts_end_at_characters_and_know_token_ends(folders, small):
    lm = ByteLM.of(load_causal_lm(folders[0], dtype="float32"))
    found = cuts.cut_texts(lm, "prose", 12, spare=6, seed=0)
    assert found == cuts.cut_texts(lm, "prose", 12, spare=6, seed=0)
    assert {cut.boundary for cut in found} == {True, False}
    for cut in found:
        cut.prompt.decode()
        tokens = lm.vocabulary.encode(cut.prompt + cut.rest)
        ends = np.cumsum([len(lm.vocabulary.tokens[t]) for t in tokens])
        assert cut.boundary == (len(cut.prompt) in ends)


def test_votes_are_those_of_the_ensemble():
    """Bits of the mean and the product, against the distributions themselves."""
    pair = list(ByteEnsemble.tiny().models)
    got = vote(pair, b"abba", first=1)
    for rule in ("mean", "product"):
        wanted = -ByteEnsemble(pair, rule=rule).continuation_logprob(b"a", b"bba") / np.log(2)
        assert got[rule] == pytest.approx(wanted)
    assert got["0"] == pytest.approx(-pair[0].continuation_logprob(b"a", b"bba") / np.log(2))
    assert got["bytes"] == 3
    assert END == 256


def test_programs_are_run_with_limits(tmp_path):
    assert cuts.passes("assert 1 + 1 == 2")
    assert not cuts.passes("assert 1 + 1 == 3")
    assert not cuts.passes("while True: pass", seconds=1.0)
    assert not cuts.passes("x = bytearray(1 << 31)")
    target = tmp_path / "written"
    assert not cuts.passes(f"with open({str(target)!r}, 'w') as file:\n    file.write('x' * 9)\n")
    assert not target.exists() or not Path(target).read_text()

"""The studies of cache policies on toy inputs: rows equal those of before, killed runs go on, every claim is asked.

Where rows are compared, what a policy makes of a text is scripted (`score`, `answer`), so that numbers are those of no
machine and needles are found by some; texts, units, arms and all that rows say are real.
"""

import dataclasses
import gzip
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

SMALL = {"length": 128, "decoded": 4, "texts": 2, "questions": 3}


def draw(policy, *said):
    """A number from 0 to 1 that depends on the policy's settings and on what else is said."""
    own = {
        f.name: v if isinstance(v, int | float | str) else "an object"
        for f in dataclasses.fields(policy)
        if (v := getattr(policy, f.name)) is not None and not f.name.startswith("_") and v != f.default
    }
    text = f"{type(policy).__name__.removesuffix('Vote')} {sorted(own.items())} {said}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def score(prefix, policy, rest, **told):
    """Stand in for the scoring of a continuation."""
    said = prefix.ids.sum().item(), rest.sum().item()
    return {
        "nll": 2 + 0.5 * draw(policy) + 0.3 * draw(policy, *said),
        "step": 0.01 * (0.5 + draw(policy, "step", *said)),
        "prefill": 1 + draw(policy, "prefill"),
        "bytes": 1000 + int(9000 * draw(policy, "bytes")),
        "reads": 1 + draw(policy, "reads"),
        **{name: draw(policy, name, *said) for name in told},
    }


def answer(lm, prefix, policy, question, wanted):
    """Stand in for an answer: each policy finds its own share of the needles."""
    return wanted if draw(policy, wanted) < draw(policy, "share") else "nothing"


def seconds(prefix, policy, length, rest):
    """Stand in for the seconds per token: of each policy at each length its own, turn by turn others."""
    turn = _turns[draw(policy), length] = _turns.get((draw(policy), length), -1) + 1
    return 0.01 * (0.5 + draw(policy) + 0.1 * draw(policy, length, turn))


_turns = {}


def write_texts(folder):
    """Write a corpus of speeches and of genesis."""
    with gzip.open(folder / "long_docs.jsonl.gz", "wt") as file:
        for corpus, name in (("inaugural", "1.txt"), ("state_union", "2.txt"), ("genesis", "english.txt")):
            for number in range(2):
                text = f"We the people of harbour {number} meet again, and count the boats. " * 80
                file.write(json.dumps({"corpus": corpus, "file": name, "text": text}) + "\n")


@pytest.fixture(scope="module")
def model(tiny_folder, tmp_path_factory):
    """The tiny model with heads of 16, which the checks' 16 channels need."""
    from mintage.models import tiny_causal_lm

    made = tmp_path_factory.mktemp("wide") / "tiny"
    shutil.copytree(tiny_folder, made)
    (made / "model.safetensors").unlink()
    vocabulary = json.loads((Path(tiny_folder) / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 64, "head_dim": 16, "max_position_embeddings": 2048}
    tiny_causal_lm(vocab_size=vocabulary, **sizes).save_pretrained(made)
    return str(made)


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A folder of data, and a calibration of the tiny model in the place of the shipped one."""
    from mintage.keep import double_sparsity
    from mintage.keep.double_sparsity import ChannelOrder

    write_texts(tmp_path)
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    shipped = tmp_path / "channels.safetensors"
    ChannelOrder(torch.rand(2, 4, 16)).save(shipped)
    monkeypatch.setattr(double_sparsity, "shipped", lambda method, name: shipped)
    return tmp_path


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr("mintage.bench.keep.measures.score_continuation", score)
    monkeypatch.setattr("mintage.bench.keep.measures.answer_to", answer)
    monkeypatch.setattr("mintage.bench.keep.speed.seconds_per_token", seconds)
    _turns.clear()


STUDIES = {
    "double-sparsity": (SMALL, 4),
    "ems": (SMALL | {"room": (40, 64)}, 10),
    "token-select": (SMALL | {"lengths": (192, 256)}, 10),
    "full-cache": ({"lengths": (64, 128), "part": 4, "turns": 2}, 1),
    "token-ring": ({}, 4),
}
"""Settings of the toy, and the number of claims."""


def study(name, model, **settings):
    from mintage.bench.run import study_of

    given = {} if name == "token-ring" else {"model": model}
    return study_of(name)(**given, **STUDIES[name][0] | settings)


@pytest.fixture(scope="module")
def ring():
    """Rows and progress of the ring's study, which has no toy to be small on."""
    from mintage.measure.study import run_study

    told = []
    with tempfile.TemporaryDirectory() as folder:
        return run_study(study("token-ring", ""), work=Path(folder), progress=lambda *step: told.append(step)), told


@pytest.mark.parametrize("name", STUDIES)
def test_the_rows_are_those_of_before(name, model, toys, scripted, equal_to_golden, request):
    from mintage.measure.study import run_study

    if name == "token-ring":
        rows, _ = request.getfixturevalue("ring")
    else:
        rows = run_study(study(name, model), work=toys / "work")
    equal_to_golden(name, rows, without=["largest difference"])  # rounding in the last place, by machine


@pytest.mark.parametrize("name", STUDIES)
def test_every_claim_is_asked_once(name, model, toys, request):
    from mintage.measure import Result
    from mintage.measure.study import run_study

    if name == "token-ring":
        rows, told = request.getfixturevalue("ring")
    else:
        told = []
        rows = run_study(study(name, model), work=toys / "work", progress=lambda *step: told.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    for stage in stages:
        counts = [(done, of) for name, done, of in told if name == stage]
        assert counts == [(done, counts[-1][1]) for done in range(len(counts))]
        assert counts[-1][0] == counts[-1][1]
    tested = [row for row in rows if isinstance(row, Result) and row.claim]
    assert name != "token-ring" or [row.verdict for row in tested] == ["holds"] * 4
    assert len({row.claim for row in tested}) == len(tested) == STUDIES[name][1]
    assert all(row.verdict in ("holds", "does not hold") for row in tested)
    assert len({row.identity for row in rows}) == len(rows)
    assert not (toys / "work").exists()


def test_the_joint_rows_are_those_of_before(model, toys, scripted, equal_to_golden, monkeypatch):
    from mintage.bench.keep.joint import KeepBench
    from mintage.measure import Figure

    monkeypatch.chdir(toys)
    bench = KeepBench(model=model, contexts=(128,), room=(4, 8), texts=2, dtype="bfloat16")
    rows = bench.run(["ems:tau=0.4", "snapkv:window=4"])
    maps = [row for row in rows if isinstance(row, Figure) and row.kind == "heatmap"]
    assert [row.name for row in maps] == ["survivors-ems-tau=0.4", "survivors-snapkv-window=4"]
    equal_to_golden("keep-joint", [row for row in rows if row not in maps])


def test_a_killed_study_goes_on(model, toys, monkeypatch):
    """What was measured before is not measured again."""
    from mintage.bench.keep import measures
    from mintage.measure.study import run_study

    measured = []
    real = measures.score_continuation

    def counted(*args, **told):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(args)
        return real(*args, **told)

    monkeypatch.setattr(measures, "score_continuation", counted)
    small = study("ems", model, questions=1, room=(40,))
    with pytest.raises(KeyboardInterrupt):
        run_study(small, work=toys / "work")
    measured.clear()
    monkeypatch.setattr(measures, "score_continuation", lambda *args, **told: measured.append(1) or real(*args, **told))
    run_study(small, work=toys / "work")
    assert len(measured) == 2 * 9 - 3


def test_the_length_is_the_one_from_which_it_stays_faster():
    from mintage.bench.keep.speed import breakeven
    from mintage.measure import Interval

    def ratios(*highs):
        return {512 * 2**i: Interval(high - 0.1, high - 0.05, high) for i, high in enumerate(highs)}

    assert breakeven(ratios(1.3, 0.9, 0.8)) == 1024
    assert breakeven(ratios(0.9, 1.01, 0.8)) == 2048  # faster at 512, but not from there on
    assert breakeven(ratios(0.9, 0.8, 1.0)) is None

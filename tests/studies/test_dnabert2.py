"""The claim check of DNABERT-2 at a size that takes seconds, and that its verdicts follow the numbers."""

import gzip
import random

import numpy as np
import pytest

from mintage.bench.lm import dna
from mintage.measure import Figure, Result
from mintage.measure.study import Run, run_study
from mintage.studies.dnabert2 import DNABERT2Study

SMALL = {
    "seeds": 1, "windows": 3, "vocabulary": 60, "masked_steps": 1, "class_steps": 1, "width": 8, "rounds": 2,
    "megabases": 0.01, "limit": 60.0,
}  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of small genomes; trainers of tokens are not processes of their own."""
    drawn = random.Random(0)
    lines = []
    for name, count in (("ecoli|NC|1-9", 4000), ("dmel|X|1-9", 4000), ("dmel|2L|1-9", 6000)):
        lines += [f">{name}", "".join(drawn.choices("ACGT", k=count))]
    with gzip.open(tmp_path / "genomes.fa.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    rows = [
        f'{{"task": "promoter_tss", "species": "dmel", "chrom": "{chrom}", "label": {n % 2}, '
        f'"seq": "{"".join(drawn.choices("ACGT", k=40))}"}}'
        for chrom, count in (("X", 24), ("2L", 8))
        for n in range(count)
    ]
    with gzip.open(tmp_path / "dna_tasks.jsonl.gz", "wt") as file:
        file.write("\n".join(rows) + "\n")
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    slow = {
        "chunks": {"seconds to learn": 2.0, "megabytes": 90.0},
        "plain": {"seconds to learn": 60.0, "megabytes": 0.0},
    }
    monkeypatch.setattr(dna, "time_to_learn", lambda how, *settings: slow[how])
    return lambda **settings: DNABERT2Study(models=tmp_path / "models", **SMALL | settings)


def test_a_toy_gives_every_row_and_keeps_its_models(study, tmp_path):
    told = []
    rows = run_study(study(), work=tmp_path / "work", progress=lambda *step: told.append(step))
    results = [row for row in rows if isinstance(row, Result)]
    assert len(results) == 3 + 1 + 2 + 2 + 4 + 3
    assert all(row.claim and row.verdict in ("holds", "does not hold") for row in results)
    assert [row.name for row in rows if isinstance(row, Figure)] == ["genome"]
    assert "60 s, where it was stopped" in results[-1].note
    assert results[-1].value == 30
    stages = {stage for stage, *_ in told}
    assert {"tokens", "look-ups", "lengths", "classes", "steps", "learning tokens"} <= stages
    made = {path.name for path in (tmp_path / "models").iterdir() if (path / "config.json").exists()}
    assert len(made) == 2 + 3  # encoders and classifiers


def measured(**changed):
    """Columns under which every claim holds, and what is changed of them."""
    ones = np.ones(12)
    it = {
        "ours kept": 99,
        "k kept": 55,
        "fewer": 4,
        "leak": 0.95,
        "secret": 0.02,
        "alibi": 1.0,
        "learned": 1.2,
    } | changed
    it = {"mcc": 0.5, "faster": 4, "seconds": 30, "room": 500, "plain": 600, "theirs": 0.5} | it

    def cut(kept, tokens):
        return {"kept": kept * ones, "tokens": tokens * ones, "bases": 500 * ones}

    def lengths(grown):
        return {"nats, 64": 3 * ones[:3], "nats, 256": 3 * ones[:3], "nats, 512": 3 * grown * ones[:3]}

    classes = {"mcc": it["theirs"] * ones[:3], "seconds": ones}
    looked = {"masked": ones}
    return {
        "BPE": cut(it["ours kept"], 500 / it["fewer"]) | looked | {"told": it["secret"] * ones}
        | {"mcc": it["mcc"] * ones[:3], "seconds": ones / it["faster"]},
        "3-mers": cut(it["k kept"], 170),
        "6-mers": cut(50, 85),
        "overlapping 6-mers": cut(99, 495) | classes,
        "bases": cut(99, 500) | classes,
        "overlapping 3-mers": looked | {"told": it["leak"] * ones},
        "ALiBi": lengths(it["alibi"]),
        "learned positions": lengths(it["learned"]),
        "chunks": {"seconds to learn": it["seconds"] * ones[:1], "megabytes": it["room"] * ones[:1]},
        "unsplit": {"seconds to learn": it["plain"] * ones[:1], "megabytes": 0 * ones[:1]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({}, []),
        ({"ours kept": 97.5}, ["tokens kept when one base is deleted, BPE"]),
        ({"k kept": 61}, ["tokens kept when one base is deleted, 3-mers"]),
        ({"fewer": 2.9}, ["tokens of single bases over those of BPE"]),
        ({"leak": 0.8}, ["masked tokens that their neighbours tell, overlapping 3-mers"]),
        ({"secret": 0.06}, ["masked tokens that their neighbours tell, BPE"]),
        ({"alibi": 1.03}, ["nats per masked token in rows of 512 over 64 tokens, ALiBi"]),
        ({"learned": 1.01}, ["nats per masked token in rows of 512 over 64 tokens, learned positions"]),
        (
            {"mcc": 0.05, "theirs": 0.0},
            [f"MCC of BPE minus that of {rival}" for rival in ("overlapping 6-mers", "bases")],
        ),
        ({"mcc": 0.49}, [f"MCC of BPE minus that of {rival}" for rival in ("overlapping 6-mers", "bases")]),
        ({"faster": 2.9}, [f"seconds of a step of {rival}" for rival in ("overlapping 6-mers", "bases")]),
        ({"seconds": 130, "plain": 2000}, ["s for learning"]),
        ({"room": 1001}, ["MB for learning"]),
        ({"plain": 290}, ["seconds of the plain trainer"]),
    ],
)
def test_verdicts_follow_the_numbers(study, tmp_path, changed, lost):
    run = Run(study(), work=tmp_path / "work")
    run.columns = measured(**changed)
    results = [row.result(run) for row in run.study.rows(run)]
    wrong = [row.metric for row in results if row.verdict == "does not hold"]
    assert len(wrong) == len(lost)
    assert all(metric.startswith(begins) for metric, begins in zip(wrong, lost, strict=True))


def test_trainers_of_tokens_are_timed_in_processes_of_their_own_and_stopped(capsys):
    assert dna.time_to_learn("plain", 1000, 20, 0.01) == {"seconds to learn": 0.01, "megabytes": 0.0}
    for how in ("chunks", "plain"):
        dna.learnt_once(how, 3000, 20)
        assert '"megabytes"' in capsys.readouterr().out

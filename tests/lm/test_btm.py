"""Training a forest: experts apart and resumed, workers that die, writing with it."""

import json

import pytest
import torch
from typer.testing import CliRunner

from mintage.cli import app
from mintage.errors import UserError
from mintage.lm.btm import ExpertForest
from mintage.lm.core import workers
from mintage.lm.training.btm import ForestTraining
from mintage.lm.training.expert import ExpertTraining

CODE = "def f(x):\n    return x + 1\n\nfor i in range(10):\n    print(f(i))\n" * 40
PROSE = "The moon pulls the water of the sea, and the sea follows it twice a day. " * 40
SMALL = {"seed_steps": 6, "branch_steps": 12, "width": 16, "layers": 1, "vocabulary": 270, "window": 16, "lr": 1e-2}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two domains; workers run in this process, one after the other: loading is not safe in threads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.txt").write_text(CODE)
    (tmp_path / "prose.txt").write_text(PROSE)
    ran = []

    def run(arguments, cores, folder):
        done = CliRunner().invoke(app, arguments)
        ran.append(arguments)
        return done.exit_code, str(done.exception or "")

    monkeypatch.setattr(workers, "_run", run)
    return ran


def training(**changed):
    return ForestTraining(domain=("code=code.txt", "prose=prose.txt"), workers=1, **{**SMALL, **changed})


def test_a_forest_is_trained_knows_who_wrote_and_goes_on_after_a_kill(here, tmp_path):
    forest = training().run("forest", "work")
    assert list(forest.experts) == ["code", "prose"]
    loaded = ExpertForest.load("forest")
    for text, writer in ((CODE[:80], 0), (PROSE[:80], 1)):
        ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
        assert loaded.posterior(ids)[0, -1].argmax() == writer
    notes = [json.loads((tmp_path / f"forest/{name}/config.json").read_text()) for name in forest.experts]
    assert notes[0]["mintage_notes"]["text"] != notes[1]["mintage_notes"]["text"]  # each learnt from its own domain
    assert len(here) == 2
    weights = (tmp_path / "work/experts/code/model.safetensors").read_bytes()
    for path in (tmp_path / "work/experts/code").iterdir():
        path.unlink()
    (tmp_path / "work/experts/code").rmdir()  # as if killed while it was trained
    training().run("forest", "work")
    assert len(here) == 3
    assert (tmp_path / "work/experts/code/model.safetensors").read_bytes() == weights


def test_experts_do_not_depend_on_one_another(here, tmp_path):
    training().run("both", "a")
    ForestTraining(domain=("code=code.txt",), **SMALL).run("one", "b")
    seeds = [(tmp_path / f"{w}/seed/model.safetensors").read_bytes() for w in "ab"]
    assert seeds[0] != seeds[1]  # the seed learnt from all domains
    alone = ExpertTraining(
        texts=("code.txt",), model="a/seed", **{k: v for k, v in SMALL.items() if k in ("seed_steps", "window", "lr")},
        branch_steps=12,
    )  # fmt: skip
    alone.run("alone", "c")
    same = (tmp_path / "a/experts/code/model.safetensors").read_bytes()
    assert (tmp_path / "alone/model.safetensors").read_bytes() == same


def test_a_worker_that_dies_is_started_again_and_then_told_by_name(monkeypatch):
    tried = []

    def run(arguments, cores, folder):
        tried.append(arguments[0])
        return (1, "out of memory") if arguments[0] == "bad" or tried.count(arguments[0]) < 2 else (0, "")

    monkeypatch.setattr(workers, "_run", run)
    workers.run_all({"good": ["good"]}, 2)
    assert tried == ["good", "good"]
    done = []
    with pytest.raises(UserError, match=r"1 of 2 workers failed \(bad\); bad: out of memory; run it again"):
        workers.run_all({"bad": ["bad"], "good": ["good"]}, 2, told=lambda n, of: done.append((n, of)))
    assert done == [(0, 2), (1, 2), (2, 2)]


def test_workers_are_processes_whose_last_line_is_told():
    status, line = workers._run(["train", "nothing"], 1, ".")
    assert status == 2
    assert "nothing" in line


def test_generate_writes_with_a_forest(here):
    training().run("forest", "work")
    done = CliRunner().invoke(app, ["generate", "def f(", "--model", "forest", "-n", "5"])
    assert done.exit_code == 0, done.output
    assert "who wrote: code" in done.output
    refused = CliRunner().invoke(app, ["generate", "def f(", "--model", "forest", "--bytes"])
    assert "--bytes does not go with" in str(refused.exception) + refused.output


def test_what_cannot_be_trained_is_told(here, tmp_path):
    for domain, rule in (((), "needs domains"), (("code",), "not NAME=PATH"), (("a=code.txt", "a=prose.txt"), "twice")):
        with pytest.raises(UserError, match=rule):
            ForestTraining(domain=domain, **SMALL).run("f", "w")
    with pytest.raises(UserError, match="holds other files"):
        training().run(".", "w")
    (tmp_path / "short.txt").write_text("x")
    with pytest.raises(UserError, match="1 tokens, less than one window of 16"):
        ForestTraining(domain=("a=short.txt",), **SMALL).run("f", "w2")
    with pytest.raises(UserError, match="needs the text of its domain"):
        ExpertTraining(model="a").run("e", "w3")


def test_ray_runs_the_same_commands(monkeypatch):
    ray = pytest.importorskip("ray")
    workers.run_all({"help": ["methods"]}, 1, cluster="local")
    ray.shutdown()


def test_a_cluster_without_ray_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match="cluster"):
        workers.run_all({"a": []}, 1, cluster="auto")

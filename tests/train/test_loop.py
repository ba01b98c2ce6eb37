"""The loop on a toy problem: exact resume, kills, damage."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mintage.errors import UserError
from mintage.train import Settings, train


class Toy:
    """Regression with dropout, a tied weight and buffers, all of which must survive a resume."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 6))
        self.module[3].weight = self.module[0].weight

    def batch(self, index):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(index))
        return x, x.flip(-1)

    def loss(self, module, batch):
        x, y = batch
        error = (module(x) - y).square().mean()
        return error, {"half": error.item() / 2}


SETTINGS = {"steps": 23, "lr": 1e-2, "warmup": 5, "weight_decay": 0.1, "accumulate": 2, "ema": 0.9, "log_every": 5}


class Killed(Exception):
    pass


def kill_at(step):
    def on_step(done, steps):
        if done == step:
            raise Killed

    return on_step


def weights(toy):
    return {name: t.clone() for name, t in toy.module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def log(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_resume_equals_an_uninterrupted_run(tmp_path):
    settings = Settings(**SETTINGS, save_every=4)
    whole, parts = Toy(), None
    train(whole, tmp_path / "whole", settings)
    for step in (6, 13, 22, None):
        parts = Toy()
        if step is None:
            outcome = train(parts, tmp_path / "parts", settings)
            assert outcome.new_steps == 3
        else:
            with pytest.raises(Killed):
                train(parts, tmp_path / "parts", settings, on_step=kill_at(step))
    assert same(weights(whole), weights(parts))
    assert log(tmp_path / "whole") == log(tmp_path / "parts")
    one, other = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("whole", "parts"))
    assert same(one, other)


def test_a_finished_run_is_loaded_not_repeated(tmp_path):
    first, second = Toy(), Toy()
    train(first, tmp_path, Settings(**SETTINGS))
    assert train(second, tmp_path, Settings(**SETTINGS)).new_steps == 0
    assert same(weights(first), weights(second))


def test_kill_9_leaves_a_usable_checkpoint(tmp_path):
    slow = {**SETTINGS, "steps": 20_000}
    script = (
        "import runpy; from mintage.train import Settings, train; "
        f"toy = runpy.run_path({__file__!r})['Toy'](); "
        f"train(toy, {str(tmp_path / 'killed')!r}, Settings(**{slow!r}, save_every=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    path = tmp_path / "killed" / "checkpoint.safetensors"
    deadline = time.time() + 50
    while not path.exists() and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    settings = Settings(**slow, save_every=10_000)
    step = json.loads(_state(path))["step"]
    assert 1 <= step < 19_990
    resumed, whole = Toy(), Toy()
    with pytest.raises(Killed):
        train(resumed, tmp_path / "killed", settings, on_step=kill_at(step + 5))
    with pytest.raises(Killed):
        train(whole, tmp_path / "whole", settings, on_step=kill_at(step + 5))
    assert same(weights(resumed), weights(whole))


def _state(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()["state"]


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "foreign"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "checkpoint.safetensors"
    train(Toy(), tmp_path, Settings(**SETTINGS))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
        path.write_text("not a checkpoint")
    elif damage == "pickle":
        torch.save({"step": 3}, path)
    else:
        save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(UserError) as error:
        train(Toy(), tmp_path, Settings(**SETTINGS))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_another_runs_checkpoint_is_refused(tmp_path):
    train(Toy(), tmp_path, Settings(**SETTINGS))
    with pytest.raises(UserError, match=r"lr=0.01, not 0.02; use another folder"):
        train(Toy(), tmp_path, Settings(**{**SETTINGS, "lr": 2e-2}))
    other = Toy()
    other.module = nn.Linear(6, 6)
    with pytest.raises(UserError, match="holds other weights than this Linear"):
        train(other, tmp_path, Settings(**SETTINGS))


def test_it_learns_and_logs(tmp_path):
    toy = Toy()
    toy.module = nn.Linear(6, 6)
    outcome = train(toy, tmp_path, Settings(steps=300, lr=5e-2, log_every=50))
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == [50, 100, 150, 200, 250, 300]
    assert rows[-1]["loss"] < 1e-3 < rows[0]["loss"]
    assert rows[-1]["half"] == pytest.approx(rows[-1]["loss"] / 2)
    assert outcome.last["step"] == outcome.steps == 300
    assert not list(tmp_path.glob(".*.safetensors"))


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    settings = Settings(steps=110, lr=1.0, warmup=10, final_lr=0.1)
    assert [settings.lr_at(0), settings.lr_at(9), settings.lr_at(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert settings.lr_at(60) == pytest.approx(0.55)
    assert settings.lr_at(110) == pytest.approx(0.1)


def test_bfloat16_and_clipping_run(tmp_path):
    toy = Toy()
    train(toy, tmp_path, Settings(steps=3, lr=1e-2, bf16=True, clip=0.1))
    assert all(torch.isfinite(t).all() for t in weights(toy).values())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    toy = Toy()
    toy.loss = lambda module, batch: (module(batch[0]).sum() * float("inf"), {})
    with pytest.raises(UserError, match=r"the loss is -?(inf|nan) at step 1; lower lr=0.01"):
        train(toy, tmp_path, Settings(**SETTINGS))


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"steps": 0}, "steps=0 is out of range; pass a number at least 1"),
        ({"steps": 2.5}, "steps=2.5 is not a whole number"),
        ({"lr": 0.0}, "lr=0.0 is out of range; pass a number above 0"),
        ({"lr": float("nan")}, "lr=nan is not a number"),
        ({"lr": "fast"}, "lr='fast' is not a number"),
        ({"warmup": -1}, "warmup=-1 is out of range; pass a number at least 0, e.g. 0"),
        ({"final_lr": 1.5}, "final_lr=1.5 is out of range; pass a number in [0, 1], e.g. 0.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 is out of range; pass a number at least 0, e.g. 0.0"),
        ({"betas": (0.9, 1.0)}, "betas=(0.9, 1.0) is out of range; pass a number in [0, 1), e.g. (0.9, 0.999)"),
        ({"betas": (0.9,)}, "betas=(0.9,) is not several values, e.g. (0.9, 0.999)"),
        ({"clip": -1.0}, "clip=-1.0 is out of range; pass a number at least 0, e.g. 1.0"),
        ({"accumulate": 0}, "accumulate=0 is out of range; pass a number at least 1, e.g. 1"),
        ({"bf16": "yes"}, "bf16='yes' is not true or false, e.g. False"),
        ({"ema": 1.0}, "ema=1.0 is out of range; pass a number in [0, 1), e.g. 0.0"),
        ({"seed": -1}, "seed=-1 is out of range; pass a number in [0, 9223372036854775808), e.g. 0"),
        ({"save_every": 0}, "save_every=0 is out of range; pass a number at least 1, e.g. 100"),
        ({"log_every": 0}, "log_every=0 is out of range; pass a number at least 1, e.g. 10"),
        ({"optimiser": "sgd"}, "optimiser='sgd' is not one of adamw, muon"),
        ({"optimiser": "moun"}, "optimiser='moun' is not one of adamw, muon; did you mean 'muon'?"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_line(bad, rule, as_users_call):
    with pytest.raises(UserError) as error:
        Settings(**{"steps": 1, "lr": 1.0, **bad})
    assert str(error.value) == rule


def test_a_module_without_parameters_is_refused(tmp_path):
    toy = Toy()
    toy.module = nn.ReLU()
    with pytest.raises(UserError, match="no trainable parameters"):
        train(toy, tmp_path, Settings(**SETTINGS))


# -- Muon, and what is averaged ------------------------------------------------------------------------------------


class Blocks(Toy):
    """A stem, two repeated blocks and a head, as a transformer has."""

    def __init__(self):
        torch.manual_seed(0)
        blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.GELU()) for _ in range(2))
        self.module = nn.ModuleDict({"stem": nn.Linear(6, 6), "blocks": blocks, "head": nn.Linear(6, 6)})

    def loss(self, module, batch):
        x, y = batch
        x = module["stem"](x)
        for block in module["blocks"]:
            x = x + block(x)
        return (module["head"](x) - y).square().mean(), {}


def test_muon_turns_the_matrices_of_repeated_blocks_and_nothing_else(tmp_path):
    train(Blocks(), tmp_path, Settings(steps=2, lr=1e-2, optimiser="muon"))
    held = load_file(tmp_path / "checkpoint.safetensors")
    assert {n for n in held if n.startswith("muon.")} == {f"muon.momentum_buffer.blocks.{i}.0.weight" for i in range(2)}
    assert "adam.exp_avg.head.weight" in held
    assert "adam.exp_avg.blocks.0.0.bias" in held


def test_muons_first_step_is_a_rotation_as_long_as_adamws(tmp_path):
    toy, before = Blocks(), Blocks()
    train(toy, tmp_path, Settings(steps=1, lr=1e-2, optimiser="muon", clip=0.0))
    moved = toy.module["blocks"][0][0].weight - before.module["blocks"][0][0].weight
    strengths = torch.linalg.svdvals(moved.detach())
    assert strengths.max() / strengths.median() < 2  # a gradient's own singular values span decades
    assert moved.detach().square().mean().sqrt() == pytest.approx(0.2 * 1e-2, rel=0.3)


def test_muon_resumes_exactly(tmp_path):
    settings = Settings(**SETTINGS, save_every=4, optimiser="muon")
    whole, parts = Blocks(), Blocks()
    train(whole, tmp_path / "whole", settings)
    with pytest.raises(Killed):
        train(Blocks(), tmp_path / "parts", settings, on_step=kill_at(13))
    assert train(parts, tmp_path / "parts", settings).new_steps == 11
    assert same(weights(whole), weights(parts))
    with pytest.raises(UserError, match="trained with optimiser=muon, not adamw"):
        train(Blocks(), tmp_path / "parts", Settings(**SETTINGS))


def test_running_statistics_are_averaged_with_the_weights(tmp_path):
    """Weights of an average want the statistics of an average: the last batch's own are another model's."""
    seen, toy = [], Toy()
    start = toy.module[1].running_mean.clone()

    def remember(done, steps):
        seen.append(toy.module[1].running_mean.clone())

    train(toy, tmp_path, Settings(steps=3, lr=1e-2, ema=0.75), on_step=remember)
    want = start
    for statistics in seen:
        want = 0.75 * want + 0.25 * statistics
    assert torch.allclose(toy.module[1].running_mean, want)
    assert toy.module[1].num_batches_tracked == 3

"""A training as a dataclass: its folder, its file, and what it says before it begins."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mintage.errors import UserError
from mintage.options import option
from mintage.train import Settings
from mintage.train.training import LanguageModelTraining, Training

SOURCE = """
import torch
from torch import nn


class Line:
    def __init__(self, seed, width):
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.1), nn.Linear(width, 1))

    def batch(self, index):
        return torch.randn(8, self.module[0].in_features, generator=torch.Generator().manual_seed(index))

    def loss(self, module, x):
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}
"""
exec(SOURCE)

STOP = []


@dataclass(frozen=True, kw_only=True)
class Sums(Training):
    """Learn to add."""

    name = "sums"

    width: int = option(4, "Numbers that are added.", least=1)
    steps: int = option(6, "Steps of each of two stages.", least=1)
    rates: tuple[float, ...] = option((1e-2, 1e-3), "Of the stages.", above=0)

    def learn(self, work):
        recipe = Line(self.seed, self.width)  # noqa: F821
        for number, rate in enumerate(self.rates):
            if number in STOP:
                raise KeyboardInterrupt
            work.stage(f"stage {number}", recipe, Settings(steps=self.steps, lr=rate, save_every=2, log_every=2))
        return Made(recipe.module)

    def summary(self, made):
        return "adds"


@dataclass
class Made:
    module: nn.Module

    def save(self, path, notes, /):
        save_file(self.module.state_dict(), path, metadata=dict(notes))


@pytest.fixture(autouse=True)
def _own_room(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    STOP.clear()


def test_file_and_folder_have_the_training_s_name(tmp_path):
    told = []
    made = Sums(seed=3).run(command="mintage train sums --seed 3", progress=lambda *step: told.append(step))
    assert isinstance(made, Made)
    with safe_open("sums.safetensors", "pt") as file:
        notes = file.metadata()
    assert notes["command"] == "mintage train sums --seed 3"
    assert json.loads(notes["settings"]) == {
        "device": "cpu", "seed": 3, "width": 4, "steps": 6, "rates": [1e-2, 1e-3],
    }  # fmt: skip
    assert told == [(f"stage {n}", done, 6) for n in (0, 1) for done in range(1, 7)]
    assert sorted(p.name for p in Path(".mintage/sums").iterdir()) == [
        "run.lock",
        "settings.json",
        "stage 0",
        "stage 1",
    ]


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path):
    Sums().run("whole.safetensors", "whole")
    STOP.append(1)
    with pytest.raises(KeyboardInterrupt):
        Sums().run("out.safetensors", "work")
    assert not Path("out.safetensors").exists()
    STOP.clear()
    told = []
    Sums().run("out.safetensors", "work", progress=lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"stage 1"}  # the first is not trained again
    whole, resumed = load_file("whole.safetensors"), load_file("out.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


KILLED = (
    """
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path
from safetensors.torch import save_file
from mintage.train import Settings
from mintage.train.training import Training
"""
    + SOURCE
    + """

class Made:
    def __init__(self, module):
        self.module = module

    def save(self, path, notes, /):
        save_file(self.module.state_dict(), path, metadata=dict(notes))


@dataclass(frozen=True, kw_only=True)
class Killed(Training):
    name = "killed"

    def learn(self, work):
        recipe = Line(self.seed, 4)
        work.stage("only", recipe, Settings(steps=12, lr=1e-2, save_every=4, log_every=2))
        return Made(recipe.module)


def step(stage, done, of):
    if len(sys.argv) > 2 and done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)


Killed().run(sys.argv[1] + ".safetensors", sys.argv[1], progress=step)
"""
)


def test_a_training_survives_sigkill_bit_by_bit(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)

    def run(*arguments):
        command = [sys.executable, "killed.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).returncode

    assert run("whole") == 0
    assert run("cut", "6") == -9
    assert not Path("cut.safetensors").exists()
    assert run("cut") == 0
    whole, resumed = load_file("whole.safetensors"), load_file("cut.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_folder_is_bound_to_its_settings():
    Sums(width=3).run(work="work")
    for other, line in (
        (Sums(), "work holds a run with width=3, not 4; pass another --work, or delete that folder"),
        (Sums(width=3, rates=(1e-2,)), r"work holds a run with rates=\[0.01, 0.001\], not \[0.01\]; "),
        (Sums(width=3, seed=1), "work holds a run with seed=0, not 1; "),
    ):
        with pytest.raises(UserError, match=line):
            other.run(work="work")
    assert Sums(width=3).run(work="work") is not None


def test_another_device_may_take_it_up(monkeypatch):
    Sums().run(work="work")
    learnt = []
    monkeypatch.setattr(Sums, "learn", lambda self, work: learnt.append(work.device) or Made(nn.Linear(1, 1)))
    Sums(device="cuda").run(work="work")
    assert learnt == ["cuda"]


def test_another_training_is_refused_even_with_equal_settings():
    @dataclass(frozen=True, kw_only=True)
    class Products(Sums):
        name = "products"

    Sums().run(work="work")
    with pytest.raises(UserError, match="work holds a run with training='sums', not 'products'"):
        Products().run(work="work")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[1, 2]"])
def test_damaged_settings_are_told(text):
    Path("work").mkdir()
    Path("work/settings.json").write_text(text)
    with pytest.raises(UserError, match="delete its folder to start the run again"):
        Sums().run(work="work")


def test_two_trainings_in_one_folder_are_refused():
    Path("work").mkdir()
    held, free = threading.Event(), threading.Event()

    def hold():
        with FileLock("work/run.lock"):
            held.set()
            free.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(60)
    try:
        with pytest.raises(UserError, match="work is in use by another training; wait for it, or pass another --work"):
            Sums().run(work="work")
    finally:
        free.set()
        other.join()
    assert Sums().run(work="work") is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told_before_training(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises((UserError, OSError)):
        Sums().run("closed/sums.safetensors")
    assert not Path(".mintage").exists()


def test_a_file_that_cannot_be_written_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(Sums, "learn", lambda self, work: pytest.fail("began"))
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for out in ("file/sums.safetensors", "folder"):
        with pytest.raises((UserError, OSError)) as told:
            Sums().run(out)
        assert "\n" not in str(told.value)
    assert not Path(".mintage").exists()


def test_what_fields_exclude_is_refused(as_users_call):
    for wrong in ({"width": 0}, {"rates": (0.0,)}, {"seed": -1}, {"steps": 1.5}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Sums(**wrong)


def test_only_the_first_of_several_processes_writes(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    told = []
    assert isinstance(Sums().run(work="work", progress=lambda *step: told.append(step)), Made)
    assert not told
    assert not Path("sums.safetensors").exists()
    assert not Path("work/settings.json").exists()


def test_a_language_model_is_loaded_as_the_fields_say(tiny_folder):
    @dataclass(frozen=True, kw_only=True)
    class Tuned(LanguageModelTraining):
        name = "tuned"

        def learn(self, work):
            raise NotImplementedError

    lm = Tuned(model=str(tiny_folder), dtype="float32").load()
    assert lm.model.dtype == torch.float32


@dataclass(frozen=True, kw_only=True)
class Picky(Training):
    """Refuses what it cannot learn from, before anything is trained or after."""

    name = "picky"
    late: bool = option(False, "Whether something was trained by then.")
    steps: int = option(1, "Of training.")

    def learn(self, work):
        work.begun = self.late
        raise UserError("no text to learn from")


def test_what_cannot_be_learnt_from_does_not_hold_the_folder():
    for steps in (1, 2):
        with pytest.raises(UserError, match="no text to learn from"):
            Picky(steps=steps).run()
    with pytest.raises(UserError, match="no text to learn from"):
        Picky(late=True).run()
    with pytest.raises(UserError, match="holds a run with steps=1, not 2"):
        Picky(late=True, steps=2).run()

"""The one training of byte language models: windows, resume, refusals; writing with what was trained."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mintage.cli import app
from mintage.errors import UserError
from mintage.lm.core.folder import is_byte_lm, load_byte_lm
from mintage.lm.core.windows import Windows, byte_windows, hold_out
from mintage.lm.training.baselines import BPETransformerTraining, ByteTransformerTraining
from mintage.lm.training.byte_training import mean_bits_per_byte

TEXT = "The moon pulls the water of the sea, and the sea follows the moon; twice a day there are tides. " * 60
SMALL = {"width": 16, "layers": 1, "heads": 2, "window": 64, "rows": 4}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def test_every_model_sees_the_same_windows_in_the_same_order():
    windows = hold_out(byte_windows([TEXT], 64))
    assert len(windows.train) + len(windows.held_out) == len(TEXT) // 64
    again = [windows.batch(i, 4, seed=1) for i in range(40)]
    assert all(torch.equal(a, windows.batch(i, 4, seed=1)) for i, a in enumerate(again))
    assert not torch.equal(again[0], windows.batch(0, 4, seed=2))
    count = len(windows.train)
    epoch = torch.cat([windows.batch(i, 1, seed=3) for i in range(count)]).numpy().astype(np.uint8)
    assert sorted(map(bytes, epoch)) == sorted(map(bytes, windows.train))  # each once before any again


def test_a_training_that_was_killed_ends_with_the_same_weights(text, tmp_path, monkeypatch):
    training = ByteTransformerTraining(texts=(text,), steps=6, **SMALL)
    whole = training.run(tmp_path / "whole", tmp_path / "a")
    from mintage.train import loop

    steps = loop._Run.take_step
    taken = []

    def stop(run):
        if len(taken) == 3:
            run.save()
            raise KeyboardInterrupt
        taken.append(run.step)
        steps(run)

    monkeypatch.setattr(loop._Run, "take_step", stop)
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "resumed", tmp_path / "b")
    assert not (tmp_path / "resumed").exists()
    monkeypatch.setattr(loop._Run, "take_step", steps)
    resumed = training.run(tmp_path / "resumed", tmp_path / "b")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_it_learns_and_says_what_a_held_out_byte_costs(text, tmp_path):
    training = BPETransformerTraining(texts=(text,), steps=30, vocabulary=300, lr=5e-3, warmup=2, **SMALL)
    made = training.run(tmp_path / "model", tmp_path / "work")
    assert "bits per byte" in training.summary(made)
    held = hold_out(byte_windows([TEXT], 64)).held_out
    loaded = load_byte_lm(tmp_path / "model")
    assert mean_bits_per_byte(loaded, held) == pytest.approx(made.config.held_out_bits_per_byte, rel=1e-5)
    assert made.config.held_out_bits_per_byte < 3
    assert json.loads(loaded.config.notes["settings"])["vocabulary"] == 300


def test_a_text_that_is_too_short_and_a_folder_of_other_things_are_told(text, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    with pytest.raises(UserError, match="11 bytes, less than one window of 64"):
        ByteTransformerTraining(texts=(str(short),), steps=1, **SMALL).run(tmp_path / "out", tmp_path / "work")
    with pytest.raises(UserError, match="holds other files"):
        ByteTransformerTraining(texts=(text,), steps=1, **SMALL).run(tmp_path, tmp_path / "work")
    with pytest.raises(UserError, match="heads"):
        ByteTransformerTraining(texts=(text,), steps=1, **{**SMALL, "heads": 3}).run(tmp_path / "o", tmp_path / "w")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\0\1" * 600)
    with pytest.raises(UserError, match="not text"):
        ByteTransformerTraining(texts=(str(binary),), steps=1, **SMALL).run(tmp_path / "o", tmp_path / "w2")


def test_generate_writes_with_a_trained_model_and_refuses_what_is_about_tokens(text, tmp_path):
    ByteTransformerTraining(texts=(text,), steps=2, **SMALL).run(tmp_path / "model", tmp_path / "work")
    assert is_byte_lm(tmp_path / "model")
    assert not is_byte_lm(tmp_path)
    command = ["generate", "The moon", "--model", str(tmp_path / "model"), "-n", "12", "-t", "0.9", "--seed", "4"]
    first, again = (CliRunner().invoke(app, command) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert "12 bytes" in first.output
    assert first.stdout == again.stdout
    refused = CliRunner().invoke(app, [*command, "--keep", "snapkv:budget=8"])
    assert refused.exit_code != 0
    assert "--keep does not go with" in str(refused.exception) + refused.output


def test_windows_shorter_than_the_held_out_share_still_measure():
    few = hold_out(byte_windows([TEXT[:200]], 64))
    assert isinstance(few, Windows)
    assert len(few.held_out) == 1

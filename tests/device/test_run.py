"""The script behind ``make gpu``: which steps it takes, and how it ends."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("device_run", Path(__file__).parent / "run.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Run the script with arguments; commands are noted, not run."""
    commands = []

    def go(*arguments, end=0):
        def run(command, *, env, timeout, check):
            commands.append((command, env["MINTAGE_DEVICE"], timeout))
            if end == "late":
                raise subprocess.TimeoutExpired(command, timeout)
            return subprocess.CompletedProcess(command, end)

        monkeypatch.setattr(script.subprocess, "run", run)
        monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path), *arguments])
        return script.main(), commands

    return go


def test_a_device_that_is_not_there_is_one_line(called, capsys):
    status, commands = called("--device", "no-such-device")
    assert (status, commands) == (2, [])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("end", "status"), [(0, 0), (1, 1), ("late", 1)])
def test_all_steps_run_and_take_eight_minutes_at_most(called, monkeypatch, tmp_path, end, status):
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    got, commands = called("--device", "cpu", end=end)
    assert got == status
    assert len(commands) == 4
    assert {device for _, device, _ in commands} == {"cpu"}
    assert sum(limit for *_, limit in commands) <= 480


def test_without_pictures_reduce_is_left_out_and_said_so(called, monkeypatch, capsys):
    monkeypatch.delenv("MINTAGE_DATA", raising=False)
    _, commands = called("--device", "cpu")
    assert "reduce is not measured" in capsys.readouterr().out
    assert not any("tome" in command for command, *_ in commands)

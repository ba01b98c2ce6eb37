import json
import os
import socket
import subprocess
from datetime import datetime

import pytest

from mintage.measure.environment import _commit, device_name, environment


def git(folder, *arguments):
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    run = subprocess.run(
        ["git", "-C", folder, *arguments], check=True, capture_output=True, text=True, env={**os.environ, **identity}
    )
    return run.stdout.strip()


def test_it_says_what_a_number_needs_and_can_be_written_as_json():
    told = environment()
    assert json.loads(json.dumps(told)) == told
    assert {
        "mintage",
        "torch",
        "transformers",
        "python",
        "platform",
        "cpu",
        "threads",
        "instructions",
        "limits",
        "gpu",
        "commit",
        "dirty",
    } <= set(told)
    assert told["cores"] >= 1
    assert datetime.fromisoformat(told["time"]).utcoffset().total_seconds() == 0


def test_it_does_not_say_whose_machine_it_is():
    text = json.dumps(environment())
    assert socket.gethostname() not in text
    assert os.path.expanduser("~") not in text


@pytest.fixture
def repository(tmp_path):
    source = tmp_path / "src"
    source.mkdir()
    (source / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_commit_and_local_changes(repository):
    source = repository / "src"
    head = git(repository, "rev-parse", "HEAD")
    assert _commit(source) == (head, False)
    (repository / "results.jsonl").write_text("{}\n")  # outside the source: results grow all the time
    assert _commit(source) == (head, False)
    (source / "a.py").write_text("a = 2\n")
    assert _commit(source) == (head, True)


def test_new_files_are_local_changes(repository):
    (repository / "src" / "b.py").write_text("b = 1\n")
    assert _commit(repository / "src")[1] is True


def test_an_environment_inside_somebody_elses_repository_is_not_theirs(repository):
    installed = repository / "venv" / "mintage"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert _commit(installed) == (None, None)


def test_without_git_or_repository_there_is_no_commit(tmp_path, monkeypatch):
    assert _commit(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", "")
    assert _commit(tmp_path) == (None, None)


@pytest.mark.parametrize(
    ("described", "name"),
    [
        ({"gpu": "NVIDIA H100", "cpu": "x", "cores": 16}, "NVIDIA H100"),
        ({"cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 2}, "Intel Xeon Platinum 8481C, 2 cores"),
        ({"cpu": "AMD EPYC 7B13", "cores": 1}, "AMD EPYC 7B13, 1 core"),
        ({"cpu": "AMD EPYC 7B13", "cores": 2, "instructions": "AVX2"}, "AMD EPYC 7B13, 2 cores, AVX2"),
        ({"cpu": "Xeon", "cores": 2, "instructions": "AVX512+AMX", "limits": None}, "Xeon, 2 cores, AVX512+AMX"),
        ({"cpu": "Xeon", "instructions": "AVX2", "limits": "ATEN_CPU_CAPABILITY=avx2"}, "Xeon, limited to AVX2"),
        ({"gpu": "NVIDIA H100", "instructions": "AVX2", "limits": "ATEN_CPU_CAPABILITY=avx2"}, "NVIDIA H100"),
        ({}, "unknown machine"),
    ],
)
def test_device_name(described, name):
    assert device_name(described) == name

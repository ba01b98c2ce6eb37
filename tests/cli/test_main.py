"""The entry point: what is loaded, a full disk, closed streams, Ctrl-C, warnings; each told in one line."""

import errno
import io
import signal
import subprocess
import sys
import time
import warnings

import pytest

from mintage import cli
from mintage.cli.input import read_input
from mintage.errors import Notice, UserError


@pytest.fixture
def ended(monkeypatch, capsys):
    """Run `main` with an app that raises; return its exit status and what it printed on standard error."""

    def run(error):
        def app():
            raise error

        monkeypatch.setattr(cli, "app", app)
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "mintage: no room left to write; make room on that disk"),
        (OSError(errno.EDQUOT, "Quota", "/a/b"), "mintage: no room left to write /a/b; make room on that disk"),
        (
            RuntimeError("I/O error: No space left on device (os error 28)\nat 3"),
            "mintage: no room left on a disk (I/O ",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), "mintage: /a: Permission denied; pass another path"),
        (UserError("x=3 is out of range"), "mintage: x=3 is out of range"),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_the_status_two(ended, error, line):
    status, said = ended(error)
    assert status == 2
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def app():
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


def test_a_warning_of_our_own_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", lambda: warnings.warn("weights that nothing uses", Notice, stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main()
    assert capsys.readouterr().err == "mintage: weights that nothing uses\n"


# -- Ctrl-C --------------------------------------------------------------------------------------------------------

STOPPED = """
import signal, sys, time
from mintage import cli, catalog
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a shell has it ignored
def waiting(*_):
    print("begun", flush=True)
    time.sleep(60)
catalog.methods = catalog.trainings = waiting
sys.argv = ["mintage", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["methods"], "mintage: stopped\n"),
        (["train", "ppd"], "mintage: stopped; the same command goes on where it was\n"),
    ],
)
def test_ctrl_c_says_what_it_means(arguments, line):
    command = [sys.executable, "-c", STOPPED, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, line)


# -- standard input ------------------------------------------------------------------------------------------------


def test_standard_input_that_is_closed_or_unreadable_is_told(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(UserError, match=r"^standard input is closed; pass the text itself"):
            read_input("-")
        assert read_input("text") == b"text"
    code = "from mintage.cli.input import read_input\ntry: read_input('-')\nexcept ValueError as error: print(error)"
    command = ["bash", "-c", '"$0" -c "$1" 0> /dev/null', sys.executable, code]  # open for writing alone
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "cannot read standard input: Bad file descriptor; pass the text itself, or pipe it in\n"


# -- weight --------------------------------------------------------------------------------------------------------

MODULES = """
import sys
sys.argv = ["mintage", *sys.argv[1:]]
from mintage.cli import main
try: main()
except SystemExit as end: assert not end.code, end.code
heavy = {"torch", "transformers", "tokenizers", "numpy", "jinja2"} & set(sys.modules)
print(len(sys.modules), *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["bench", "--help"], ["train", "--help"], ["data", "--help"]])
def test_help_loads_few_modules_and_none_that_is_heavy(arguments):
    done = subprocess.run([sys.executable, "-c", MODULES, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, *heavy = done.stderr.split()
    assert not heavy
    assert int(count) < 600, "what is new? python -X importtime -m mintage.cli --help"


def test_the_package_alone_loads_next_to_nothing():
    code = "import sys; before = len(sys.modules); import mintage; print(len(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150

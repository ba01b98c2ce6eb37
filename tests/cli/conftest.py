"""What the command line's tests share."""

import io
import sys
from collections import namedtuple

import pytest

from mintage.cli import main

Done = namedtuple("Done", "status out err")


@pytest.fixture
def mintage(monkeypatch, capfd):
    """Run ``mintage ARGUMENTS`` as the installed script does, and catch what it prints."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["mintage", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        capfd.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return run

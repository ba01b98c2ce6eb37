"""Rewrite what is made from the catalogue and the results; with --check only tell (status 1) what is stale.

The tables of README.md, the page that helps to choose, and the rows that travel with the package.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import vision
from choose import page
from tables import RESULTS, ROOT, readme_results, replace_between, status

from mintage.measure import read_results
from mintage.measure.scoreboard import SHIPPED, write_scoreboard


def readme() -> str:
    """Return README.md with its tables made anew."""
    old = (ROOT / "README.md").read_text(encoding="utf-8")
    return replace_between(replace_between(old, "results", readme_results()), "status", status())


def scoreboard() -> str:
    """Return the shipped rows as the text of their file."""
    with tempfile.TemporaryDirectory() as folder:
        return write_scoreboard(read_results(RESULTS), Path(folder) / SHIPPED.name).read_text(encoding="utf-8")


MADE = {
    ROOT / "README.md": readme,
    ROOT / "docs" / "choose.md": page,
    ROOT / "docs" / "vision-models.md": vision.page,
    SHIPPED: scoreboard,
}


def main(arguments: list[str]) -> int:
    """Write or check the files."""
    made = {path: make() for path, make in MADE.items()}
    stale = {path: text for path, text in made.items() if not path.exists() or text != path.read_text(encoding="utf-8")}
    for path, text in stale.items():
        name = path.relative_to(ROOT)
        if "--check" in arguments:
            print(f"{name} is stale; run: python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{name} rewritten")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

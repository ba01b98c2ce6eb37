"""Rewrite the generated parts of README.md; with --check only tell (status 1) whether they are stale."""

from __future__ import annotations

import sys

from tables import ROOT, readme_results, replace_between, status


def main(arguments: list[str]) -> int:
    """Write or check the file."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = replace_between(replace_between(old, "results", readme_results()), "status", status())
    if new == old:
        return 0
    if "--check" in arguments:
        print("README.md is stale; run: python docs/readme_table.py", file=sys.stderr)
        return 1
    path.write_text(new, encoding="utf-8")
    print("README.md rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The page of vision models that reducers serve, out of vision_models.json, which tests/matrix/vision_zoo.py writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["page"]

HEAD = """\
<!-- Made by docs/generate.py from vision_models.json; run tests/matrix/vision_zoo.py instead of editing. -->

# Vision models that reducers serve

Of every class here a tiny random model was made and every reducer tried on it. *Served* means: with everything kept,
all outputs equal the unmodified model's to 1e-5; with fewer tokens they are finite and have the same shapes (a plain
tower gives fewer rows of tokens); and where equal patches merge, nothing changes. *Dense* means that something in the
model reads its patches one by one, so every patch keeps a row (see [reduce](reduce.md)). All else is refused in one
line.

"""


def _cell(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _served(found: dict[str, Any]) -> str:
    groups: dict[str, list[str]] = {}
    for name, row in found.items():
        if "dense" in row:
            told = "all, dense" if row["dense"] else "all"
            if row.get("refused"):
                told = told.replace("all", f"all but {', '.join(row['refused'])} (made for a number of patches)")
            groups.setdefault(told, []).append(name)
    lines = [f"| {told} | {_cell(names)} |" for told, names in sorted(groups.items())]
    return "| reducers | classes |\n| --- | --- |\n" + "\n".join(lines) + "\n"


def page() -> str:
    """Return the whole page."""
    found = json.loads((Path(__file__).parent / "vision_models.json").read_text(encoding="utf-8"))
    parts = [HEAD]
    for library, mine in (("transformers", False), ("timm", True)):
        rows = {k.removeprefix("timm:"): v for k, v in found.items() if k.startswith("timm:") == mine}
        refused = [name for name, row in rows.items() if "dense" not in row]
        parts.append(f"## {library}\n\n{_served(rows)}\nRefused: {_cell(refused)}.\n\n")
    return "".join(parts).rstrip() + "\n"

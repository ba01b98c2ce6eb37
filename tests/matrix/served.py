"""Which models are served: the outcomes that docs/served.json keeps, column by column.

A column is a way to run a model (``drafting``, a cache policy); in it every kind of the zoo is "served", or has the one
line that it is refused with. The matrix tests try each kind and compare; ``python tests/matrix/test_X.py --update``
writes what they find.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mintage.errors import UserError
from mintage.testing.causal_lms import build_tiny, names

STORE = Path(__file__).parents[2] / "docs" / "served.json"
SERVED = "served"
VERSION = ".".join(transformers.__version__.split(".")[:2])


def kept() -> dict[str, Any]:
    return json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}


def skip_if_new_and_broken(kind: str) -> None:
    """Skip a kind that is newer than the table if transformers' own generate fails on it, tiny as it is built here."""
    if kind in kept()["drafting"]:
        return
    try:
        build_tiny(kind).generate(torch.tensor([list(range(1, 16))]), max_new_tokens=4, pad_token_id=0)
    except Exception as error:  # the zoo builds by rules, and a new class may need sizes that it does not know
        pytest.skip(f"transformers {VERSION} has {kind}, which the zoo cannot build yet: {error}")


def refusal_of(error: UserError, model: Any) -> str:
    """Return the line of a refusal: it names the class and has no second line."""
    line = str(error)
    assert "\n" not in line, line
    assert type(model).__name__ in line, line
    return line


def check(column: str, kind: str, outcome: str, update: str) -> None:
    """Compare with the table, which is about one version of transformers; in others an outcome has only to be right."""
    table = kept()
    if table["transformers"] == VERSION:
        assert table[column].get(kind) == outcome, f"docs/served.json is stale; run: python {update} --update"


def main(columns: dict[str, Callable[[str], str]]) -> None:
    """Write the columns anew."""
    if sys.argv[1:] != ["--update"]:
        sys.exit("pass --update to write docs/served.json")
    found: dict[str, dict[str, str]] = {}
    for column, outcome_of in columns.items():
        for kind in names():
            try:
                found.setdefault(column, {})[kind] = outcome_of(kind)
            except AssertionError as error:
                sys.exit(f"{column}, {kind}: {error}")
    table = {**kept(), "transformers": VERSION, **found}
    STORE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

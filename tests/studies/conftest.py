"""What all tests of studies share: rows as they were before studies were data, and how to compare with them."""

import json
from pathlib import Path

import pytest
from as_before import near

from mintage.measure import Result

GOLDEN = Path(__file__).parent / "golden"
FIELDS = ("method", "job", "metric", "value", "unit", "higher_is_better", "interval", "n", "baseline", "peers")
FIELDS += ("claim", "verdict", "data", "seed", "settings", "note")
NUMBERS = ("value", "interval", "baseline", "peers", "verdict")
FIGURE_FIELDS = ("method", "job", "name", "title", "caption", "kind", "data")


@pytest.fixture(scope="session")
def equal_to_golden():
    """Compare the rows of a study with ``golden/NAME.json``: every field but command, environment and rule.

    The model is compared where the golden row has one (it may be a folder of the test).
    Rows whose metric holds a word of `without` (timings, rounding) are compared but for their numbers; where it is a
    mapping, for the fields that it names, too.
    """

    def compare(name, rows, *, rel=1e-9, without=()):
        wanted = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        assert [row.metric if isinstance(row, Result) else row.name for row in rows] == list(map(key, wanted))
        got = [plain(row, theirs) for row, theirs in zip(rows, wanted, strict=True)]
        for mine, theirs in zip(got, wanted, strict=True):
            if words := [word for word in without if word in key(theirs)]:
                left_out = {*NUMBERS, *(f for w in words for f in (without[w] if isinstance(without, dict) else ()))}
                mine, theirs = ({k: v for k, v in row.items() if k not in left_out} for row in (mine, theirs))
            assert near(mine, theirs, rel), f"{key(mine)}\n{mine}\n{theirs}"

    return compare


def plain(row, theirs):
    """The fields that a golden row has, and those that every one must have."""
    fields = FIELDS if isinstance(row, Result) else FIGURE_FIELDS
    return json.loads(json.dumps({name: getattr(row, name) for name in {*fields, *theirs}}))


def key(row):
    return row.get("metric") or row["name"]

"""How rows are compared with golden ones: numbers nearly, all else exactly."""

import pytest


def near(mine, theirs, rel, *, least=1e-12, clock=False):
    """Whether a value of any shape is the golden one; `clock`: where that has nothing, something timed may stand."""
    if isinstance(theirs, dict):
        same = isinstance(mine, dict) and mine.keys() == theirs.keys()
        return same and all(near(mine[k], theirs[k], rel, least=least, clock=clock) for k in theirs)
    if isinstance(theirs, list):
        pairs = isinstance(mine, list) and len(mine) == len(theirs)
        return pairs and all(near(a, b, rel, least=least, clock=clock) for a, b in zip(mine, theirs, strict=True))
    if isinstance(theirs, float):
        return isinstance(mine, float | int) and mine == pytest.approx(theirs, rel=rel, abs=least)
    return (clock and theirs is None) or mine == theirs


def assert_fields(mine, theirs, name):
    """Assert every field that a golden row of reducers has; what a clock says is not in it."""
    for key, wanted in theirs.items():
        assert near(mine[key], wanted, 1e-5, least=1e-6, clock=True), f"{name}, {key}: {mine[key]} is not {wanted}"

"""Measured audits: every method's own claim check, which stands in `mintage.studies`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from mintage import catalog
from mintage.errors import UserError
from mintage.measure import Figure, Result

__all__ = ["run"]


def silent(done: int, of: int, label: str) -> None:
    """Report nothing."""


def run(
    methods: Sequence[str],
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = silent,
) -> list[Result | Figure]:
    """Run the claim checks of audits.

    Parameters
    ----------
    methods
        Catalogue names; none means all audits that are ready.
    seed, limit
        Passed to each check; what `limit` limits is said there.
    command
        Written into the rows: what repeats them.
    progress
        ``progress(done, of, label)`` within the check that runs.

    Raises
    ------
    UserError
        A method is unknown, not ready, or given settings: a check has its own.
    """
    names = list(methods) or [m.name for m in catalog.methods("audit") if m.status == "ready" and m.role == "paper"]
    checks = []
    for name in names:
        method, settings = catalog.parse_spec(name)
        if settings:
            raise UserError(f"{name}: the check of {method} has its own settings; run: mintage bench {method}")
        row = catalog.find(method, "audit")
        if row.status != "ready":
            raise UserError(row.problem or f"{method} is {row.status}, there is nothing to measure yet")
        checks.append(importlib.import_module(f"mintage.studies.{method.replace('-', '_')}").check)
    return [row for check in checks for row in check(seed=seed, limit=limit, command=command, progress=progress)]

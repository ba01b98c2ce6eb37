"""The bench of the audit job: audits have no rival in common, so it runs the claim check of each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from mintage import catalog
from mintage.bench.contract import Asked, Bench
from mintage.bench.run import run_claims
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.measure.memo import Memo
from mintage.measure.result import from_line, to_line
from mintage.options import settings_of

__all__ = ["AuditBench"]


@dataclass(frozen=True, kw_only=True)
class AuditBench(Bench):
    """Run the claim checks of audits, of all or of those named. Each has options of its own: mintage bench NAME --help.

    [dim]Examples[/dim]

      mintage bench audit

      mintage bench audit data-mixture number-tokens

    Next: [bold]mintage report[/bold]
    """

    job = "audit"

    def _measure(self, specs: list[str], asked: Asked) -> list[Result | Figure]:
        """Run claim checks one after the other."""
        names = list(specs) or [row.name for row in catalog.methods(self.job) if row.study]
        for name in names:
            method, settings = catalog.parse_spec(name)
            if settings:
                raise UserError(f"{name}: a claim check has options of its own; run: mintage bench {method} --help")
            catalog.find(method, self.job).load_study()
        memo = Memo(asked.work, settings_of(self))  # keeps what a check found in whole

        def lines(name: str) -> list[Any]:
            seed, (command, progress, note, _) = {"seed": self.seed}, asked
            rows = run_claims(name, seed, command=command, progress=progress, note=note)
            return [json.loads(to_line(row)) for row in rows]

        found = [from_line(line) for name in names for line in memo(name, partial(lines, name))]
        memo.delete()
        return found

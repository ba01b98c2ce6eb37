"""What stands for a method: the newest row of each of its claims, and the one of them that is told first.

One decision for the README, the report, ``mintage show`` and the documentation, so that no two of them disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mintage.measure.result import Result, newest
from mintage.processor import limited_to

__all__ = ["Standing", "method_name", "standing", "standings"]


@dataclass(frozen=True)
class Standing:
    """The newest rows of one method.

    Parameters
    ----------
    claims
        The newest row of each claim, in the order in which its study first wrote them.
    others
        The rows that test nothing.
    """

    claims: tuple[Result, ...] = ()
    others: tuple[Result, ...] = ()

    @property
    def held(self) -> int:
        """How many claims hold."""
        return sum(row.verdict == "holds" for row in self.claims)

    @property
    def time(self) -> str:
        """When the newest row was measured, or empty."""
        return max(map(time_of, (*self.claims, *self.others)), default="")

    @property
    def headline(self) -> Result | None:
        """The row told first: the first claim of the newest run, or the first row where nothing is claimed.

        Rows of one command, commit and limit of instructions are one run, however long it took. A joint bench leaves
        rows with several methods; they, and a run that was kept from using all of the processor, come first only where
        a method has no other.
        """
        rows = self.claims or self.others
        rows = [row for row in rows if not limited_to(row.environment)] or rows
        rows = [row for row in rows if row.command.split()[:3] == ["mintage", "bench", row.method]] or rows
        if not rows:
            return None
        run = _run(max(rows, key=time_of))
        return next(row for row in rows if _run(row) == run)


def _run(row: Result) -> tuple[str, ...]:
    return row.command, str(row.environment.get("commit", "")), limited_to(row.environment)


def time_of(row: Result) -> str:
    """When the row was measured (UTC, ISO 8601), or empty."""
    return str(row.environment.get("time", ""))


def method_name(row: Result) -> str:
    """Name the method of a row without the settings or the mode that its spec may carry."""
    return row.method.split(":")[0].split(" ")[0]


def standing(rows: Iterable[Result]) -> Standing:
    """Choose among the rows of one method."""
    rows = newest(rows)
    claims: dict[tuple[str, ...], Result] = {}
    for row in rows:
        if row.claim:
            # A run of another size or on another CPU measures the claim again; in another precision, on a GPU or with
            # fewer instructions than the CPU has it is another claim. An edited sentence about the same metric takes
            # the old one's place.
            precision, gpu = str(row.settings.get("dtype", "")), str(row.environment.get("gpu") or "")
            key = (row.method, row.metric, row.model, row.data, precision, gpu, limited_to(row.environment))
            if key not in claims or time_of(row) >= time_of(claims[key]):
                claims[key] = row
    return Standing(tuple(claims.values()), tuple(row for row in rows if not row.claim))


def standings(rows: Sequence[Result]) -> dict[str, Standing]:
    """Return what stands for each method named in `rows`, in the order of their first rows."""
    by_method: dict[str, list[Result]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    return {name: standing(own) for name, own in by_method.items()}

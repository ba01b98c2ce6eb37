"""The page that leads from a need to a method: choose.toml and the package's advice, numbers out of ``results/``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tables import measured

from mintage import catalog
from mintage.measure import Result
from mintage.measure.advice import advise, find_number

__all__ = ["needs", "page"]

HEAD = """\
<!-- Made by docs/generate.py from choose.toml, the advice of the package and results/; change those instead. -->

# Which one?

Three questions: what do you have, what hurts, what may change? Each answer is at most two things to try, the cheapest
first; stop at the first that is enough. All numbers were measured here, on small models and two CPU cores: in brackets
the 95% interval and *n*, the units measured. Ratios are to the thing unmodified unless something else is named. On your
own model and texts the order may differ, so measure: `mintage bench draft`, `mintage bench keep`,
`mintage segment compare`.
"""

BETWEEN = """\
## When each pays

For every method that was measured, what it is good for and what not, misses included. `mintage show METHOD` tells the
same, with every claim that was tested.
"""


def needs() -> list[dict[str, Any]]:
    """Read the needs and what to try for each."""
    return tomllib.loads((Path(__file__).parent / "choose.toml").read_text(encoding="utf-8"))["need"]


def page() -> str:
    """Return the whole page.

    Raises
    ------
    UserError
        A number that a sentence names is no longer in the results, or no longer what the sentence rests on.
    """
    rows = measured()
    parts = [HEAD]
    for have in dict.fromkeys(need["have"] for need in needs()):
        parts.append(f"## {have}\n")
        parts += [_need(need, rows) for need in needs() if need["have"] == have]
    parts.append(BETWEEN)
    for job in catalog.JOBS:
        told = [line for m in catalog.methods(job) for line in _advice(m.name, rows) if m.package == "mintage"]
        if told:
            parts.append(f"### [{job}]({job}.md)\n\n" + "\n".join(told) + "\n")
    ready = [m for m in catalog.methods(role="paper") if m.status == "ready" and m.package == "mintage"]
    if waiting := [f"`{m.name}`" for m in ready if advise(m.name, rows) is None]:
        parts.append(f"Ready, but their claims are not measured yet: {', '.join(waiting)}.\n")
    return "\n".join(parts)


def _need(need: dict[str, Any], rows: Sequence[Result]) -> str:
    """What hurts, what may change, and what to try with what it gave."""
    lines = [f"### {need['hurts']}\n", f"May change: {need['change']}.\n"]
    for place, one in enumerate(need["try"], start=1):
        numbers = {k: find_number(need["hurts"], rows, asked) for k, asked in one.items() if isinstance(asked, dict)}
        command = one.get("command") or one["python"]
        lines.append(f"{place}. `{command}`<br>{one['says'].format_map(numbers)}")
    return "\n".join(lines) + "\n"


def _advice(name: str, rows: Sequence[Result]) -> list[str]:
    advice = advise(name, rows)
    if advice is None:
        return []
    return [f"- **`{name}`** pays when {advice.pays}.", f"    - It does not when {advice.pays_not}."]

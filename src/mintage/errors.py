"""Errors that a user can act on: one line that holds the value, the rule and the next step."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["Notice", "UserError", "did_you_mean", "missing_extra"]


class UserError(ValueError):
    """Bad input, told in one line. The command line prints the line and exits with status 2."""


class Notice(UserWarning):
    """A warning of mintage's own. The command line prints it as one line."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """End an error about an unknown `name`: the nearest known one, or the list of all of them.

    Returns
    -------
    str
        For example ``"did you mean 'dyspec'?"``, or ``"known: a, b, c"`` where nothing is near.
    """
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"


def missing_extra(module: str, extra: str) -> UserError:
    """Name the extra of mintage that brings the missing `module`."""
    return UserError(f"{module} is not installed; run: pip install 'mintage[{extra}]'")

"""The contracts as importable law suites, for mintage's own methods and for plug-ins.

In a test module::

    from mintage.testing import parametrize_with_laws

    @parametrize_with_laws("draft")
    def test_draft(method, law):
        law(method.tiny())

Every law runs over every method of the job that is ready (or over the classes given) and is of the law's kind: the
class that the law's parameter is annotated with, where a job holds several kinds of methods. The test ids read
``token-recycling-greedy_equals_plain``. Known failures are named with their reasons and must fail. Laws of a method
whose package is not installed (`mintage.catalog.Method.needs`) are skipped.
"""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mintage import catalog
from mintage.errors import UserError, did_you_mean

__all__ = ["laws", "parametrize_with_laws"]

Law = Callable[[Any], None]


def laws(job: str, method: type | None = None) -> dict[str, Law]:
    """Return the laws of a job by name; empty while the job has no contract yet.

    With a `method`, those that are about its kind; all where it is of no kind that the laws know.
    """
    if job not in catalog.JOBS:
        raise UserError(f"unknown job {job!r}; {did_you_mean(job, catalog.JOBS)}")
    try:
        module = importlib.import_module(f"mintage.testing.{job}")
    except ModuleNotFoundError as error:
        if error.name != f"mintage.testing.{job}":
            raise
        return {}
    held = {law.__name__: law for law in module.LAWS}
    mine = {name: law for name, law in held.items() if method is None or issubclass(method, _kind(law))}
    return mine or held


def _kind(law: Law) -> type:
    """Return the class that a law is about: the annotation of its parameter."""
    kinds = [kind for name, kind in typing.get_type_hints(law).items() if name != "return"]
    return kinds[0] if kinds and isinstance(kinds[0], type) else object


def parametrize_with_laws(
    job: str,
    methods: Sequence[type] | None = None,
    expected_failures: Mapping[tuple[str, str], str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Parametrise a pytest function ``test(method, law)`` over every method and every law of `job`.

    Parameters
    ----------
    job
        E.g. ``"draft"``.
    methods
        Classes to test; default: every ready method of the job in the catalogue, plug-ins included.
    expected_failures
        ``{(method, law): reason}``. Such a test must fail (a strict xfail), so that a fixed one is noticed.
    """
    import pytest

    if methods is None:
        ready = [m for m in catalog.methods(job) if m.status == "ready"]
        named = [(m.name, m.load(), "" if m.installed else m.needs) for m in ready]
    else:
        named = [(cls.__name__, cls, "") for cls in methods]
    reasons = dict(expected_failures or {})
    cases = []
    for name, cls, missing in named:
        for law_name, law in laws(job, cls).items():
            reason = reasons.pop((name, law_name), None)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            marks += [pytest.mark.skip(reason=f"{missing} is not installed")] if missing else []
            cases.append(pytest.param(cls, law, id=f"{name}-{law_name}", marks=marks))
    if reasons:
        raise UserError(f"expected_failures name no test: {', '.join(map(str, reasons))}")
    return pytest.mark.parametrize(("method", "law"), cases)

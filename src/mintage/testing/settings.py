"""A law for methods of every job: settings that a field's annotation or range excludes are refused in one line."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jaxtyping

from mintage.errors import UserError
from mintage.options import Range, alternatives

__all__ = ["a_wrong_setting_is_refused", "without_shape_checks", "wrong_settings"]


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """Switch off what a test run may have switched on: types are checked there before a method can say a word."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def wrong_settings(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield fields of a dataclass, each with a value that its choices or its range exclude."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        parts = alternatives(hints[field.name])
        limits: Range | None = field.metadata.get("range")
        if any(typing.get_origin(part) is Literal for part in parts) and str not in parts:
            yield field.name, "no such choice"
        if limits is not None:
            several = any(typing.get_origin(part) is tuple for part in parts)
            low = limits.least if limits.least is not None else limits.above
            high = limits.most if limits.most is not None else limits.below
            outside = [low - 1] if low is not None else []
            outside += [high + 1] if high is not None else []
            outside += [bound for bound in (limits.above, limits.below) if bound is not None]
            outside += [math.nan] if float in parts else []
            yield from ((field.name, (value,) if several else value) for value in outside)


def a_wrong_setting_is_refused(method: object) -> None:
    """A value that is none of a field's choices, or outside its range, is told in one line that names the field."""
    for name, value in wrong_settings(type(method)):
        with without_shape_checks():
            try:
                dataclasses.replace(method, **{name: value})  # type: ignore[type-var]
            except UserError as error:
                told = str(error)
            else:
                raise AssertionError(f"{name}={value!r} should have been refused")
        assert name in told, f"{told!r} does not name {name}"
        assert "\n" not in told

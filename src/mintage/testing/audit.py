"""Laws of the audit contract."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from mintage.audit.contract import Audit, Report
from mintage.testing.refusals import refused
from mintage.testing.settings import a_wrong_setting_is_refused

__all__ = ["LAWS"]


def _state(subject: Any) -> Any:
    """What must not change: a tokenizer's JSON, a model's weights."""
    if hasattr(subject, "to_str"):
        return subject.to_str()
    if hasattr(subject, "state_dict"):
        return {name: t.double().sum().item() for name, t in subject.state_dict().items()}
    return repr(subject)


def the_same_subject_gives_the_same_report(audit: Audit) -> None:
    """Audits are deterministic, and leave what they look at as it was."""
    subject = audit.tiny_subject()
    before = _state(subject)
    first = audit.run(subject, name="it")
    assert _state(subject) == before
    second = audit.run(audit.tiny_subject(), name="it")
    drop = {"environment"}
    assert [f.data for f in first.figures] == [f.data for f in second.figures]
    assert {k: v for k, v in vars(first).items() if k not in {"figures", *drop}} == {
        k: v for k, v in vars(second).items() if k not in {"figures", *drop}
    }


def a_report_says_something(audit: Audit) -> None:
    """Findings, a regular table of finite numbers, figures of this job, and the subject's name."""
    report = audit.run(audit.tiny_subject(), name="it")
    assert report.subject == "it"
    assert report.findings
    assert report.table
    assert len({tuple(row) for row in report.table}) == 1
    cells = [*report.findings.values(), *(cell for row in report.table for cell in row.values())]
    assert all(math.isfinite(c) for c in cells if isinstance(c, float))
    assert all(figure.job == "audit" for figure in report.figures)
    assert all("\n" not in note for note in report.notes)


def a_report_survives_json(audit: Audit) -> None:
    """to_json and from_json are inverse; a file is written whole."""
    report = audit.run(audit.tiny_subject(), name="it")
    assert Report.from_json(report.to_json()) == report
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        report.save(path)
        assert Report.from_json(path.read_text(encoding="utf-8")) == report


def other_subjects_are_refused(audit: Audit) -> None:
    """Something that is neither a tokenizer nor a model is told in one line."""
    refused(*(partial(audit.run, subject) for subject in (None, 7, "no such thing", {})))


LAWS = (
    the_same_subject_gives_the_same_report,
    a_report_says_something,
    a_report_survives_json,
    other_subjects_are_refused,
    a_wrong_setting_is_refused,
)

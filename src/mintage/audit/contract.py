"""The audit contract: a question put to a tokenizer or a model, answered by a report.

Laws (run by `mintage.testing` over every audit):

- the same subject gives the same report; the subject is left as it was;
- a report survives JSON unchanged, and its figures can be drawn;
- a subject that cannot be audited is refused in one line.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tokenizers import Tokenizer

from mintage.errors import UserError
from mintage.files import parse_json, replace_file
from mintage.measure.figure import Figure
from mintage.options import check_fields
from mintage.progress import Progress, silent
from mintage.tokenizer_files import without_dropout

__all__ = ["Audit", "Cell", "Report", "tokenizer_of"]

Cell = str | int | float | None
"""What stands in a table."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an audit found.

    Parameters
    ----------
    audit, subject
        Catalogue name of the audit, and what was audited.
    findings
        The numbers that matter, by name.
    table
        One dict per row, all with the same keys.
    figures
        Pictures (see `mintage.measure.figure`).
    notes
        What a reader must know to read it right, one sentence each.
    """

    audit: str
    subject: str
    findings: dict[str, Cell]
    table: list[dict[str, Cell]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Write the report as JSON, figures included."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read what `to_json` wrote."""
        try:
            held = parse_json(text, "the report", "run the audit again")
            return cls(**{**held, "figures": [Figure(**figure) for figure in held["figures"]]})
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"this is no audit report ({error}); run the audit again") from None

    def save(self, path: str | Path) -> None:
        """Write the JSON file, whole or not at all."""
        with replace_file(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit(ABC):
    """A question. Fields of subclasses are the paper's settings with the paper's defaults.

    The docstring of a subclass is the help of its command, ``mintage audit NAME``, its fields are the options.

    Raises
    ------
    UserError
        A setting is out of range or none of its choices.
    """

    subject: ClassVar[Literal["tokenizer", "model"]] = "tokenizer"
    """What is audited: a ``tokenizers.Tokenizer``, or a `mintage.models.CausalLM`."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def run(self, subject: Any, *, name: str = "", progress: Progress = silent) -> Report:
        """Audit `subject`, which the report calls `name`.

        Raises
        ------
        UserError
            `subject` cannot be audited; what it lacks is named.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> Audit:
        """Make an audit that takes a second or so, for the laws."""

    @classmethod
    @abstractmethod
    def tiny_subject(cls) -> Any:
        """Make something small that `tiny` can audit."""


def tokenizer_of(subject: Any) -> Tokenizer:
    """Return the ``tokenizers.Tokenizer`` that `subject` is, or (transformers' fast tokenizers) has inside.

    Raises
    ------
    UserError
        There is none.
    """
    tokenizer = getattr(subject, "backend_tokenizer", subject)
    if not isinstance(tokenizer, Tokenizer):
        told = "mintage.tokenizer_files.load_tokenizer"
        raise UserError(f"a {type(subject).__name__} is no fast tokenizer; open one with {told}")
    return without_dropout(tokenizer)

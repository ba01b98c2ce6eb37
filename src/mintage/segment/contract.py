"""The segment contract: a trainer reads text once or more and returns a segmenter; a segmenter never loses a byte.

Laws (run by `mintage.testing` over every trainer):

- decode(encode(x)) == x for every string and, as bytes, for every byte string;
- ids are in range, and where an id means bytes by itself, the ids' bytes joined are the input;
- the same texts and settings give the same segmenter; saving and loading changes nothing;
- ``to_hf()`` gives identical ids, or refuses in one line;
- an empty corpus, a lone surrogate, an unknown id and a damaged file are told in one line.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mintage import catalog
from mintage.errors import UserError
from mintage.options import Options
from mintage.progress import Progress, silent
from mintage.segment.core.artefact import SegmenterFile, read_segmenter, write_segmenter

__all__ = ["MOST_ENTRIES", "Segmenter", "Trainer", "as_bytes", "load"]


MOST_ENTRIES = 10_000_000
"""Of a vocabulary: beyond it the libraries that train one run out of memory or of digits."""


class Segmenter(ABC):
    """A trained tokenizer. Subclasses work on bytes: a text is its UTF-8."""

    method: ClassVar[str]
    """Catalogue name of the trainer that makes it."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Ids are 0 to ``vocab_size - 1``."""

    @abstractmethod
    def encode_bytes(self, data: bytes) -> list[int]:
        """Cut bytes, UTF-8 or not."""

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that `ids` stand for; `check_ids` tells unknown ones."""

    def tokens(self) -> list[bytes] | None:
        """Return the bytes of every id, or None where an id has no meaning by itself."""
        return None

    def encode(self, text: str | bytes) -> list[int]:
        """Cut a text, or bytes.

        Raises
        ------
        UserError
            `text` holds a lone surrogate, which UTF-8 cannot write.
        """
        return self.encode_bytes(as_bytes(text))

    def encode_batch(self, texts: Iterable[str | bytes]) -> list[list[int]]:
        """Cut many texts; subclasses with something faster than one after the other override it."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD (`decode_bytes` keeps them)."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise UserError at an id outside the vocabulary."""
        if len(ids) and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            bad = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise UserError(f"id {bad} is outside this vocabulary of {self.vocab_size}")

    def to_hf(self) -> Any:
        """Return a ``transformers.PreTrainedTokenizerFast`` that gives the same ids.

        Raises
        ------
        UserError
            No tokenizer.json can say what this segmenter does; the reason is named.
        """
        raise UserError(f"{self.method} cannot be written as a tokenizer.json; use it through mintage.segment.load")

    @abstractmethod
    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return what `from_state` needs: plain JSON values, and arrays."""

    @classmethod
    @abstractmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Segmenter:
        """Make the segmenter again; a KeyError, TypeError or ValueError means that the file is damaged."""

    def save(self, folder: str | Path) -> None:
        """Write ``segmenter.json`` (and ``segmenter.safetensors``), and a tokenizer.json where there can be one.

        Raises
        ------
        UserError
            `folder` holds other files.
        """
        write_segmenter(Path(folder), self)


@dataclass(frozen=True, kw_only=True)
class Trainer(Options, ABC):
    """A way to make a segmenter from text. Fields of subclasses are the paper's hyper-parameters with its defaults.

    Raises
    ------
    UserError
        A setting is out of range, or none of its choices.
    """

    @abstractmethod
    def train(self, texts: Iterable[str], *, work: str | Path | None = None, progress: Progress = silent) -> Segmenter:
        """Train.

        Parameters
        ----------
        texts
            Documents: a list, or a `mintage.data.Corpus` that streams.
        work
            A folder that keeps what is done so far; the same call goes on from there after a kill.
        progress
            ``progress(stage, done, of)``.

        Raises
        ------
        UserError
            The corpus is empty, or a setting does not fit it.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> Trainer:
        """Make a trainer that takes well under a second on a few lines, for the laws."""


def as_bytes(text: str | bytes) -> bytes:
    """Return UTF-8, or one line about what it cannot write."""
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UserError(
            f"the text holds a lone surrogate (U+{code:04X} at character {error.start}); "
            "pass bytes, e.g. text.encode('utf-8', 'surrogatepass')"
        ) from None


def load(folder: str | Path) -> Segmenter:
    """Load what `Segmenter.save` wrote.

    Raises
    ------
    UserError
        There is none, it is damaged, or it is of a newer version.
    """
    held = read_segmenter(Path(folder))
    kind = _class_of(held)
    try:
        return kind.from_state(held.values, held.arrays)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} is damaged ({type(error).__name__}: {error}); train again") from None


def _class_of(held: SegmenterFile) -> type[Segmenter]:
    """Return the class, which must be a segmenter that the method's module has: a file does not choose what is run."""
    row = catalog.find(held.method, "segment")  # tells an unknown method, e.g. of a plug-in that is not installed
    kind = getattr(sys.modules[row.load().__module__], held.target.partition(":")[2], None)
    if not (isinstance(kind, type) and issubclass(kind, Segmenter)):
        raise UserError(f"{held.path}: {held.target} is no segmenter of {held.method}; train again")
    return kind

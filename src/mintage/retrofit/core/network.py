"""Networks that make embeddings for one model: how they are kept in files, and known to belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import nn

from mintage.errors import UserError
from mintage.options import Options, settings_of
from mintage.retrofit.core.embeddings import Parts
from mintage.weights import Artefact, Imprint, fill

__all__ = ["EmbeddingNetwork"]


Network = TypeVar("Network", bound="EmbeddingNetwork")


class EmbeddingNetwork(nn.Module):
    """A network that is made of its `shape`, kept in float16, and bound to the embeddings that it reads.

    Attributes
    ----------
    shape
        Sizes.
    imprint
        Of a sample of the model's embeddings (`Parts.sample`); None fits every model.
    notes
        How it was made and what it does.
    """

    form: ClassVar[str]
    """Format and version of its files."""

    again: ClassVar[str]
    """The command that makes one."""

    shape_kind: ClassVar[type[Options]]

    def __init__(self, shape: Any) -> None:
        super().__init__()
        self.shape = shape
        self.imprint: Imprint | None = None
        self.notes: dict[str, str] = {}

    def bind(self: Network, source: Parts, notes: Mapping[str, str]) -> Network:
        """Bind it to a model, and say how it was made."""
        self.imprint, self.notes = Imprint.of(source.sample()), {**self.notes, **notes}
        return self

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write a file; `notes` join those that it has."""
        own = {**self.notes, **(notes or {})}
        Artefact(self.state_dict(), settings_of(self.shape), self.imprint, own).save(path, self.form, half=True)

    @classmethod
    def load(cls: type[Network], path: str | Path, source: Parts | None = None) -> Network:
        """Read a file, for use and not for training.

        Parameters
        ----------
        path
            The file.
        source
            The model's embeddings: checked against those that the network was made for.

        Raises
        ------
        UserError
            The file is missing, damaged, of another kind, or was made for another model.
        """
        held = Artefact.load(path, cls.form, cls.again)
        try:
            net = cls(cls.shape_kind(**held.sizes))
        except TypeError as error:
            raise UserError(f"cannot read {path}: {error}; make it with: {cls.again}") from None
        fill(net, held.tensors, path, cls.again)
        net.imprint, net.notes = held.imprint, dict(held.notes)
        if source is not None and net.imprint is not None:
            net.imprint.check(source.sample(), f"the weights in {path} (for {net.notes.get('model', 'another model')})")
        return net.eval().requires_grad_(False)

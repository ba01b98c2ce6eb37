"""Modules that a method has trained for one transformer, kept in a file with the transformer's weights tuned along.

Not here: what the modules compute (each method), training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.weights import Artefact, Imprint, fill, shipped

__all__ = ["TrainedModules", "authors_weights"]

Made = TypeVar("Made", bound="TrainedModules")

_BACKBONE, _MODULES = "backbone.", "modules."


def authors_weights(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights in what authors saved, also beside an optimiser's or from several devices.

    Raises
    ------
    UserError
        There are none.
    """
    for name in ("state_dict", "model"):
        if isinstance(inner := given.get(name), Mapping):
            return authors_weights(inner)
    found = {str(name).removeprefix("module."): t for name, t in given.items() if isinstance(t, Tensor)}
    if not found:
        raise UserError("no weights by name; pass a state dict, e.g. what safetensors.torch.load_file gives")
    return found


@dataclass(kw_only=True, eq=False)
class TrainedModules(ABC):
    """Trained modules by layer. A subclass adds the sizes that they are built with.

    Parameters
    ----------
    backbone
        Weights of the transformer that were trained along, by name; empty where it was not tuned.
    imprint
        Of the transformer that they were trained from; None fits all of these sizes.
    notes
        How they were made; kept in the file.
    seed
        Of the modules' first weights.
    """

    method: ClassVar[str]
    """Catalogue name: of the format, of files that ship, and of the command that trains."""

    kept: ClassVar[tuple[str, ...]]
    """Fields that say how the modules are built."""

    backbone: dict[str, Tensor] = field(default_factory=dict)
    imprint: Imprint | None = None
    notes: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    modules: nn.ModuleDict = field(init=False)

    def __post_init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.modules = nn.ModuleDict({str(layer): module for layer, module in self.build()})

    @abstractmethod
    def build(self) -> Iterable[tuple[int, nn.Module]]:
        """Make untrained modules, by layer."""

    @classmethod
    def again(cls) -> str:
        """Return the command that trains such modules."""
        return f"mintage train {cls.method}"

    def as_saved(self) -> None:
        """Round all weights to float16, as a file keeps them."""
        self.modules.cpu().half().float()
        self.backbone = {name: tensor.cpu().half().float() for name, tensor in self.backbone.items()}

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file, weights in float16; `notes` join those that are there."""
        tensors = {_MODULES + name: t for name, t in self.modules.state_dict().items()}
        tensors |= {_BACKBONE + name: t for name, t in self.backbone.items()}
        sizes = {name: getattr(self, name) for name in self.kept}
        made = Artefact(tensors, sizes, self.imprint, self.notes | dict(notes or {}))
        made.save(path, f"mintage {self.method} 2", half=True)

    @classmethod
    def load(cls: type[Made], path: str | Path) -> Made:
        """Read what `save` wrote, or what mintage ships for the model of this name.

        Raises
        ------
        UserError
            The file is missing, damaged, or holds something else.
        """
        path, again = shipped(cls.method, path), cls.again()
        held = Artefact.load(path, f"mintage {cls.method} 2", again)
        given: dict[str, Any] = {"imprint": held.imprint, "notes": dict(held.notes), **held.sizes}
        try:
            made = cls(**given, backbone=held.under(_BACKBONE))
        except TypeError as error:
            raise UserError(f"{path} has other sizes than expected ({error}); make it again with: {again}") from None
        fill(made.modules, held.under(_MODULES), path, again)
        return made

"""What a trained reducer is kept in: one file with its modules, the backbone tuned along, and its model's imprint.

Not here: what the tensors mean (each method's own file), training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.weights import read_weights, write_weights

__all__ = ["Artefact", "Imprint", "shipped"]

_ASSETS = Path(__file__).parents[2] / "assets"
_BACKBONE, _MODULES, _IMPRINT = "backbone.", "modules.", "imprint"
_TOLERANCE = 0.01  # of a tensor's norm: rounding to bfloat16 moves a mark by a tenth of this


@dataclass(frozen=True, eq=False)
class Imprint:
    """What tells one trained model from another, whatever precision it is loaded in.

    Parameters
    ----------
    shapes
        Digest of the names and shapes of its floating-point tensors.
    marks
        Of each tensor its norm, and its product with a fixed wave: nearly all changes of a tensor move the second.
    """

    shapes: str
    marks: Float[Tensor, "tensors 2"]

    @classmethod
    def of(cls, model: nn.Module) -> Imprint:
        """Take a model's imprint."""
        held = {name: t.detach() for name, t in model.state_dict().items() if t.is_floating_point()}
        text = json.dumps([[name, list(t.shape)] for name, t in held.items()])
        return cls(hashlib.sha256(text.encode()).hexdigest()[:16], torch.stack([_mark(t) for t in held.values()]))

    def check(self, model: nn.Module, what: str) -> None:
        """Refuse another model.

        Parameters
        ----------
        model
            The one at hand.
        what
            Begins the message, e.g. ``"slimming modules"``.

        Raises
        ------
        UserError
            Its architecture or its weights are not those that were imprinted.
        """
        own = Imprint.of(model)
        again = "train them for this one with mintage train"
        if own.shapes != self.shapes:
            raise UserError(f"{what} were trained for a model of another shape than this {_name(model)}; {again}")
        off = (own.marks - self.marks).abs().amax(1) > _TOLERANCE * self.marks[:, 0] + 1e-6
        if off.any():
            raise UserError(
                f"{what} were trained for other weights than this {_name(model)} has ({int(off.sum())} of "
                f"{len(off)} tensors differ); {again}"
            )


def _mark(tensor: Tensor) -> Tensor:
    flat = tensor.flatten().double().cpu()
    return torch.stack([flat.norm(), flat @ torch.arange(len(flat), dtype=torch.float64).cos()])


def _name(model: nn.Module) -> str:
    return type(model).__name__


@dataclass(frozen=True, eq=False)
class Artefact:
    """What is in the file.

    Parameters
    ----------
    modules
        Tensors of the method's own modules, by name.
    settings
        What they are built with; JSON.
    backbone
        Weights that replace the model's own; empty where it was not tuned.
    imprint
        Of the model before it was tuned; None fits every model of the right sizes.
    notes
        How it was made.
    """

    modules: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    backbone: Mapping[str, Tensor] = field(default_factory=dict)
    imprint: Imprint | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path, form: str) -> None:
        """Write a safetensors file, weights in float16, whole or not at all; `form` names format and version."""
        tensors = {_MODULES + name: t for name, t in self.modules.items()}
        tensors |= {_BACKBONE + name: t for name, t in self.backbone.items()}
        held = {name: t.half() for name, t in tensors.items() if t.is_floating_point()}
        own = {"settings": json.dumps(dict(self.settings))}
        if self.imprint is not None:
            held[_IMPRINT] = self.imprint.marks
            own["shapes"] = self.imprint.shapes
        write_weights(path, form, held, {**self.notes, **own})

    @classmethod
    def load(cls, path: str | Path, form: str, again: str) -> Artefact:
        """Read what `save` wrote; weights become float32.

        Parameters
        ----------
        path
            The file.
        form
            Format and version expected.
        again
            Command that makes such a file; ends the errors.

        Raises
        ------
        UserError
            The file is missing, damaged, of another format, or holds values that are not finite.
        """
        held, notes = read_weights(path, form, f"make it with: {again}")
        try:
            settings = json.loads(notes.pop("settings"))
        except (KeyError, json.JSONDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}; make it with: {again}") from None
        imprint = held.pop(_IMPRINT, None)
        return cls(
            {n.removeprefix(_MODULES): t.float() for n, t in held.items() if n.startswith(_MODULES)},
            settings,
            {n.removeprefix(_BACKBONE): t.float() for n, t in held.items() if n.startswith(_BACKBONE)},
            None if imprint is None else Imprint(notes.pop("shapes", ""), imprint),
            notes,
        )

    def fill(self, module: nn.Module, path: str | Path, again: str) -> None:
        """Load `modules` into the module that `settings` describe.

        Raises
        ------
        UserError
            They are other tensors than it has.
        """
        own = module.state_dict()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in self.modules.items()}:
            raise UserError(f"{path} holds other tensors than its settings say; make it again with: {again}")
        module.load_state_dict(dict(self.modules))


def shipped(method: str, name: str | Path) -> Path:
    """Return the file that `name` stands for: a path, or the model that mintage ships a trained `method` for."""
    path = Path(name)
    return path if path.suffix or len(path.parts) > 1 else _ASSETS / f"{method}-{name}.safetensors"

"""Files of tensors that say what they are: safetensors with a format and notes, written whole, checked when read.

`Artefact` is what methods keep trained or calibrated things in: tensors, the sizes they are built with, the imprint of
the model they belong to, and notes on how they were made. Files that ship lie in the package (`shipped`).

Not here: what the tensors mean (whoever names the format).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.files import replace_file

__all__ = ["Artefact", "Imprint", "Weights", "fill", "read_weights", "shipped", "write_weights"]

_ASSETS = Path(__file__).parent / "assets"
_IMPRINT = "imprint"
_TOLERANCE = 0.01  # of a tensor's norm: rounding to bfloat16 moves a mark by a tenth of this


class Weights(NamedTuple):
    """What is in a file.

    Parameters
    ----------
    tensors
        By name, on the CPU.
    notes
        The rest of its metadata.
    """

    tensors: dict[str, Tensor]
    notes: dict[str, str]


def write_weights(path: str | Path, form: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all; `form` names format and version."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replace_file(path) as temporary:
        save_file(own, temporary, metadata={**notes, "format": form})


def read_weights(path: str | Path, form: str, again: str) -> Weights:
    """Read what `write_weights` wrote.

    Parameters
    ----------
    path
        The file.
    form
        Format and version expected.
    again
        Ends the errors: what to do, e.g. ``"make it with mintage train vit"``.

    Raises
    ------
    UserError
        The file is missing, damaged, of another format, or holds numbers that are not finite.
    """
    if not Path(path).exists():
        raise UserError(f"{path} does not exist; {again}")
    try:
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
            said = notes.pop("format", "no format")
            if said != form:
                raise UserError(f"{path} is {said!r}, expected {form!r}; {again}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot read {path}: {reason}; {again}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} is not finite; {again}")
    return Weights(tensors, notes)


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
    def of(cls, model: nn.Module | Mapping[str, Tensor]) -> Imprint:
        """Take the imprint of a model, or of some of its tensors by name."""
        tensors = model.state_dict() if isinstance(model, nn.Module) else model
        held = {name: t.detach() for name, t in tensors.items() if t.is_floating_point()}
        text = json.dumps([[name, list(t.shape)] for name, t in held.items()])
        return cls(hashlib.sha256(text.encode()).hexdigest()[:16], torch.stack([_mark(t) for t in held.values()]))

    def check(self, model: nn.Module | Mapping[str, Tensor], what: str) -> None:
        """Refuse another model.

        Parameters
        ----------
        model
            The one at hand, or the same tensors of it.
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


def _name(model: nn.Module | Mapping[str, Tensor]) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else "model"


@dataclass(frozen=True, eq=False)
class Artefact:
    """What a method keeps in a file.

    Parameters
    ----------
    tensors
        By name; a prefix such as ``"backbone."`` groups them (`under`).
    sizes
        What they are built with; JSON.
    imprint
        Of the model they belong to; None fits every model of the right sizes.
    notes
        How it was made.
    """

    tensors: Mapping[str, Tensor]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    imprint: Imprint | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, without it."""
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}

    def save(self, path: str | Path, form: str, *, half: bool = False) -> None:
        """Write a safetensors file, whole or not at all.

        Parameters
        ----------
        path
            The file.
        form
            Names format and version.
        half
            Keep floating-point tensors in float16.
        """
        held = {n: t.half() if half and t.is_floating_point() else t for n, t in self.tensors.items()}
        own = {"sizes": json.dumps(dict(self.sizes))}
        if self.imprint is not None:
            held[_IMPRINT] = self.imprint.marks
            own["shapes"] = self.imprint.shapes
        write_weights(path, form, held, {**self.notes, **own})

    @classmethod
    def load(cls, path: str | Path, form: str, again: str) -> Artefact:
        """Read what `save` wrote; float16 becomes float32.

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
            sizes = dict(json.loads(notes.pop("sizes")))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"cannot read {path}: {error}; make it with: {again}") from None
        marks = held.pop(_IMPRINT, None)
        imprint = None if marks is None else Imprint(notes.pop("shapes", ""), marks)
        tensors = {n: t.float() if t.dtype == torch.float16 else t for n, t in held.items()}
        return cls(tensors, sizes, imprint, notes)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, again: str) -> None:
    """Load tensors into the module that a file's sizes describe.

    Raises
    ------
    UserError
        They are other tensors than it has.
    """
    own = module.state_dict()
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise UserError(f"{path} holds other tensors than its sizes say; make it again with: {again}")
    module.load_state_dict(dict(tensors))


def shipped(method: str, name: str | Path, suffix: str = ".safetensors") -> Path:
    """Return the file that `name` stands for: a path, or the model that mintage ships a trained `method` for."""
    path = Path(name)
    return path if path.suffix or len(path.parts) > 1 else _ASSETS / f"{method}-{name}{suffix}"

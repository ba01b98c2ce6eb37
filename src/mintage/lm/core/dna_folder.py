"""Folders of trained encoders of DNA: a model and the tokenizer it reads by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mintage.errors import UserError
from mintage.files import replace_folder
from mintage.lm.core.dna_tokens import DNATokenizer
from mintage.lm.core.dna_windows import MaskedRecipe, framed
from mintage.progress import quiet

__all__ = ["DNAModel", "MaskedScore", "masked_score"]


class MaskedScore(NamedTuple):
    """What masked tokens of windows cost.

    Parameters
    ----------
    nats
        Per masked token.
    right
        Share of which the likeliest token is the one.
    bits_per_base
        Bits of masked tokens over the bases they hold.
    """

    nats: float
    right: float
    bits_per_base: float


class DNAModel:
    """A model with its tokenizer.

    Parameters
    ----------
    model
        Any of `mintage.lm.dnabert2`.
    tokenizer
        Of its vocabulary.

    Raises
    ------
    UserError
        The tokenizer has more tokens than the model.
    """

    def __init__(self, model: Any, tokenizer: DNATokenizer) -> None:
        if len(tokenizer) > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}; pass the model's own"
            )
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: str | Path, kind: Any, **settings: Any) -> DNAModel:
        """Load what `save` wrote, or a published checkpoint, as a model of `kind`."""
        return cls(kind.from_pretrained(folder, **settings).eval(), DNATokenizer.load(folder))

    def save(self, path: str | Path, notes: Mapping[str, str]) -> None:
        """Write a folder that transformers' Auto classes load, whole or not at all."""
        self.model.config.notes = dict(notes)
        with replace_folder(path) as folder, quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.write(folder)

    @torch.no_grad()
    def read(self, sequences: Sequence[str], rows: int = 32) -> Iterator[Any]:
        """Yield what the model makes of sequences, `rows` at a time."""
        device = self.model.device
        ids = self.tokenizer.encode_all(sequences)
        for at in range(0, len(ids), rows):
            yield self.model(**{name: part.to(device) for name, part in framed(ids[at : at + rows]).items()})

    def classify(self, sequences: Sequence[str], rows: int = 32) -> Int[np.ndarray, " sequences"]:
        """Return the likeliest class of every sequence; the model has to be a classifier."""
        found = [out.logits.argmax(-1).cpu().numpy() for out in self.read(sequences, rows)]
        return np.concatenate(found) if found else np.empty(0, np.int64)


@torch.no_grad()
def masked_score(
    made: DNAModel, windows: Int[np.ndarray, "windows size"], share: float = 0.15, run: int = 1, rows: int = 32
) -> MaskedScore:
    """Measure a masked language model; the same tokens are masked at every call."""
    recipe = MaskedRecipe(made.model, windows, rows, 0, share, run)
    lengths = torch.from_numpy(made.tokenizer.lengths)
    generator, device = torch.Generator().manual_seed(0), made.model.device
    nats, right, count, bases = 0.0, 0, 0, 0
    for at in range(0, len(windows), rows):
        ids: Tensor = torch.from_numpy(windows[at : at + rows].astype(np.int64))
        batch = {name: part.to(device) for name, part in recipe.masked(ids, generator).items()}
        out = made.model(**batch, labelled_only=True)
        wanted = batch["labels"][batch["labels"] != -100]
        nats += float(out.loss) * len(wanted)
        right += int((out.logits.argmax(-1) == wanted).sum())
        count += len(wanted)
        bases += int(lengths[wanted.cpu()].sum())
    return MaskedScore(nats / count, right / count, nats / math.log(2) / bases)

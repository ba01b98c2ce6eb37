"""What encoders of DNA learn from: windows of tokens with some masked, and labelled sequences."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from mintage.data.fasta import certain_runs, reverse_complement
from mintage.errors import UserError
from mintage.lm.core.dna_tokens import CLS, MASK, PAD, SEP, SPECIAL, DNATokenizer
from mintage.lm.core.windows import drawn

__all__ = ["ClassRecipe", "LabelledDNA", "MaskedRecipe", "dna_windows", "framed", "mask_runs", "read_labelled"]

_PIECE = 100_000  # bases that are cut into tokens at once
_LEAST = 8  # tokens of the shortest window


def dna_windows(tokenizer: DNATokenizer, sequences: Iterable[str], size: int) -> Int[np.ndarray, "windows size"]:
    """Cut sequences into windows of tokens between [CLS] and [SEP].

    What is not A, C, G or T parts a sequence. The last window of a part is filled with [PAD]; one of less than 8 tokens
    is left out.

    Raises
    ------
    UserError
        There is not one window.
    """
    rows, inner = array("i"), size - 2
    for sequence in sequences:
        for run in certain_runs(sequence):
            pieces = tokenizer.encode_all([run[at : at + _PIECE] for at in range(0, len(run), _PIECE)])
            ids = [index for piece in pieces for index in piece]
            for at in range(0, len(ids), inner):
                part = ids[at : at + inner]
                if len(part) >= min(_LEAST, inner):
                    rows.extend([CLS, *part, SEP, *[PAD] * (inner - len(part))])
    if not rows:
        raise UserError(f"the sequences have no {min(_LEAST, inner)} tokens in a row; pass more DNA")
    return np.frombuffer(rows, np.int32).reshape(-1, size)


def mask_runs(
    ids: Int[Tensor, "rows size"], vocabulary: int, share: float, run: int, generator: torch.Generator
) -> tuple[Int[Tensor, "rows size"], Int[Tensor, "rows size"]]:
    """Mask whole runs of tokens, so that no neighbour of a masked token tells it.

    Every row is cut at a random place into runs of `run` tokens, of which `share` are chosen: 80 % become [MASK], 10 %
    random tokens, 10 % stay. ``run=1`` masks each token by itself, as DNABERT-2; overlapping k-mers need k or more, as
    DNABERT.

    Returns
    -------
    tuple
        What is read, and what is to be found: ids of chosen tokens, else -100. At least one is chosen.
    """
    rows, size = ids.shape
    own = ids >= len(SPECIAL)
    shift = torch.randint(run, (rows, 1), generator=generator)
    block = (torch.arange(size) + shift) // run
    luck = torch.rand(2, rows, size // run + 2, generator=generator)
    chosen = (luck[0].gather(1, block) < share) & own
    if not bool(chosen.any()):
        first = own.flatten().nonzero()[0]
        chosen.view(-1)[first] = True
    how = luck[1].gather(1, block)
    other = torch.randint(len(SPECIAL), vocabulary, ids.shape, generator=generator)
    read = torch.where(how < 0.8, MASK, torch.where(how < 0.9, other, ids))
    return torch.where(chosen, read, ids), torch.where(chosen, ids, -100)


class MaskedRecipe:
    """Windows in seeded order, some tokens masked; nats per masked token.

    Parameters
    ----------
    model
        A masked language model.
    windows
        What it learns from.
    rows, seed
        Windows of a batch; their order and what is masked follow from the seed.
    share, run
        See `mask_runs`.
    """

    def __init__(
        self, model: Any, windows: Int[np.ndarray, "windows size"], rows: int, seed: int, share: float, run: int
    ) -> None:
        self.module: nn.Module = model
        self.windows, self.rows, self.seed, self.share, self.run = windows, rows, seed, share, run
        self.vocabulary = model.config.vocab_size

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return a batch; every epoch has its own order and its own masks."""
        chosen = self.windows[drawn(len(self.windows), index, self.rows, self.seed)]
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + index) % 2**63)
        return self.masked(torch.from_numpy(chosen.astype(np.int64)), generator)

    def masked(self, ids: Int[Tensor, "rows size"], generator: torch.Generator) -> dict[str, Tensor]:
        """Return windows as the model reads them."""
        read, labels = mask_runs(ids, self.vocabulary, self.share, self.run, generator)
        return {"input_ids": read, "attention_mask": (ids != PAD).long(), "labels": labels}

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross entropy of masked tokens, and the share that is the likeliest one."""
        out = module(**batch, labelled_only=True)
        wanted = batch["labels"][batch["labels"] != -100]
        return out.loss, {"right": float((out.logits.argmax(-1) == wanted).float().mean())}


# -- labelled sequences ------------------------------------------------------------------------------------------------


class LabelledDNA(NamedTuple):
    """Sequences and their classes."""

    sequences: list[str]
    labels: Int[np.ndarray, " sequences"]

    def part(self, chosen: Any) -> LabelledDNA:
        """Return some of them, by a mask or by indices."""
        return LabelledDNA([self.sequences[i] for i in np.arange(len(self.labels))[chosen]], self.labels[chosen])


def read_labelled(path: str | Path) -> LabelledDNA:
    """Read a CSV file with the columns sequence and label, as GUE's.

    Raises
    ------
    UserError
        It cannot be read, or a row has no sequence of nucleotides or no class; the line names the row.
    """
    sequences, labels = list[str](), list[int]()
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not {"sequence", "label"} <= set(rows.fieldnames or ()):
                raise UserError(
                    f"{path} has the columns {', '.join(rows.fieldnames or ())}; it needs sequence and label"
                )
            for row in rows:
                where, label = f"{path}, line {rows.line_num}", row["label"] or ""
                if not label.strip().isdecimal():
                    raise UserError(f"{where}: the label {label!r} is no class; number them from 0 on")
                try:
                    reverse_complement(row["sequence"] or "")
                except UserError as error:
                    raise UserError(f"{where}: {str(error).removeprefix('no complement: ')}") from None
                if not row["sequence"]:
                    raise UserError(f"{where} has no sequence")
                sequences.append(row["sequence"])
                labels.append(int(label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(set(labels)) < 2:
        raise UserError(f"{path} has {len(set(labels))} classes; to tell them apart takes two")
    return LabelledDNA(sequences, np.array(labels, np.int64))


def framed(rows: Sequence[Sequence[int]]) -> dict[str, Int[Tensor, "rows longest"]]:
    """Put rows of ids between [CLS] and [SEP], and fill them to one length."""
    longest = max(map(len, rows)) + 2
    ids = torch.full((len(rows), longest), PAD)
    for number, row in enumerate(rows):
        ids[number, : len(row) + 2] = torch.tensor([CLS, *row, SEP])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


class ClassRecipe:
    """Labelled sequences in seeded order; nats per sequence."""

    def __init__(self, model: Any, ids: Sequence[Sequence[int]], labels: np.ndarray, rows: int, seed: int) -> None:
        self.module: nn.Module = model
        self.ids, self.labels, self.rows, self.seed = ids, labels, rows, seed

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return a batch; every epoch has its own order."""
        chosen = drawn(len(self.ids), index, self.rows, self.seed)
        return {**framed([self.ids[i] for i in chosen]), "labels": torch.from_numpy(self.labels[chosen])}

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the mean cross entropy of the classes, and the share that is right."""
        out = module(**batch)
        return out.loss, {"right": float((out.logits.argmax(-1) == batch["labels"]).float().mean())}

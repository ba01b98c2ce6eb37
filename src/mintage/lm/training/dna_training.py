"""What trainings of encoders of DNA share: sequences, a tokenizer, and a model that is made or gone on from."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mintage.errors import UserError
from mintage.lm.core.dna_folder import DNAModel
from mintage.lm.core.dna_tokens import DNABPETrainer, DNATokenizer, kmer_tokenizer
from mintage.lm.dnabert2 import DNABERT2Config
from mintage.lm.training.byte_training import TextTraining
from mintage.options import option
from mintage.train import Settings

__all__ = ["DNATraining"]

SIZES = {"width": 128, "layers": 4, "heads": 4}
"""Of a model that is made from scratch."""


@dataclass(frozen=True, kw_only=True)
class DNATraining(TextTraining, ABC):
    """Options of a model and its tokenizer, and how they begin."""

    tokenizer: str = option("bpe", "bpe, kmers (side by side), overlapping, bases, or the folder of a tokenizer.")
    vocabulary: int = option(4096, "Tokens of BPE, learnt from the sequences.", least=9)
    k: int = option(6, "Bases of a k-mer.", least=2, most=8)
    model: str = option("", "Folder of a DNABERT-2 to go on from, by its own tokenizer; none: from scratch.")
    width: int | None = option(None, "Of the states, from scratch; default 128.", least=1)
    layers: int | None = option(None, "Of the encoder, from scratch; default 4.", least=1)
    heads: int | None = option(None, "Of attention, from scratch; they divide the width; default 4.", least=1)
    positions: Literal["alibi", "learned"] = option("alibi", "How a fresh model tells places apart.")
    dropout: float = option(0.1, "Share of the states that training drops, from scratch.", least=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SIZES:
            if self.model and getattr(self, name) is not None:
                raise UserError(f"{name}={getattr(self, name)}, but {self.model} has its own sizes; leave one out")

    def loop_settings(self) -> Settings:
        """Return the paper's, but for the decay: cosine to a tenth, where theirs is linear to 0."""
        return replace(super().loop_settings(), betas=(0.9, 0.98), weight_decay=1e-5)

    def made_tokenizer(self, sequences: Iterable[str], folder: Path) -> DNATokenizer:
        """Return the tokenizer; one that is learnt is kept in the run's folder."""
        if self.tokenizer in ("kmers", "overlapping"):
            return kmer_tokenizer(self.k, overlap=self.tokenizer == "overlapping")
        if self.tokenizer == "bases":
            return kmer_tokenizer(1)
        if self.tokenizer != "bpe":
            return DNATokenizer.load(self.tokenizer)
        if not (folder / "tokenizer" / "tokenizer.json").exists():
            DNABPETrainer(vocab_size=self.vocabulary).train(sequences).save(folder / "tokenizer")
        return DNATokenizer.load(folder / "tokenizer")

    def begin(self, kind: Any, sequences: Iterable[str], folder: Path, **settings: Any) -> DNAModel:
        """Make a model of `kind` and its tokenizer, or load what it goes on from."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed % 2**63)
            if self.model:
                return DNAModel.load(self.model, kind, **settings)
            tokenizer = self.made_tokenizer(sequences, folder)
            width, layers, heads = (getattr(self, name) or size for name, size in SIZES.items())
            config = DNABERT2Config(
                vocab_size=len(tokenizer),
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=2 * width,
                positions=self.positions,
                hidden_dropout_prob=self.dropout,
                **settings,
            )
            return DNAModel(kind(config), tokenizer)

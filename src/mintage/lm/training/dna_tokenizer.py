"""Learn the tokens of DNA: BPE over bases, as a ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mintage.data.fasta import certain_runs
from mintage.errors import UserError
from mintage.lm.core.dna_tokens import DNABPETrainer, DNATokenizer
from mintage.lm.training.dnabert2 import Sequences
from mintage.options import option
from mintage.train.training import Training, Work

__all__ = ["DNATokenizerTraining"]

_SHOWN = 200_000  # bases by which a tokenizer is told


@dataclass(frozen=True, kw_only=True)
class DNATokenizerTraining(Training):
    """Learn BPE tokens of DNA, in time that grows with the bases and not faster.

    Chunks of the sequences are counted apart, since a trainer that is given a chromosome as one word goes through all
    of it for every token. The folder has a tokenizer.json that transformers and tokenizers load as it is.
    """

    name: ClassVar[str] = "dna-tokenizer"
    suffix: ClassVar[str] = ""
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train dna-tokenizer genomes/ --vocabulary 4096 -o my-dna-tokenizer",
        "mintage train dna-tokenizer human.fa.gz --max-token-length 16 -o my-dna-tokenizer",
    )
    after: ClassVar[str] = "mintage train dnabert2 genomes/ --tokenizer FOLDER"

    texts: tuple[str, ...] = option((), "FASTA files or folders; none: genomes of four species.", argument=True)
    vocabulary: int = option(4096, "Tokens, the five special ones and the four bases among them.", least=9)
    max_token_length: int = option(32, "Bases of the longest token.", least=2)
    chunk: int = option(1000, "Bases that are counted together.", least=2)
    both_strands: bool = option(False, "Learn from the reverse complements, too.")

    def check_out(self, path: Path) -> None:
        """Refuse to take the place of anything but a tokenizer."""
        if path.is_dir() and any(path.iterdir()) and not (path / "tokenizer.json").exists():
            raise UserError(f"{path} holds other files; pass a new folder")
        super().check_out(path / "tokenizer.json" if path.is_dir() else path)

    def learn(self, work: Work) -> DNATokenizer:
        """Read and count."""
        trainer = DNABPETrainer(vocab_size=self.vocabulary, max_token_length=self.max_token_length, chunk=self.chunk)
        return trainer.train(self._read(work))

    def _read(self, work: Work) -> Iterator[str]:
        told, read = work.told("bases read"), 0
        for sequence in Sequences(self.texts, self.both_strands):
            yield sequence
            read += len(sequence)
            told(read, 0)

    def summary(self, made: DNATokenizer) -> str:
        """Say how many bases a token holds."""
        runs = (run for sequence in Sequences(self.texts) for run in certain_runs(sequence))
        sample = next(runs)[:_SHOWN]
        ids = made.encode(sample)
        return f"{len(made)} tokens, {len(sample) / len(ids):.2f} bases each in the first {len(sample)} bases"

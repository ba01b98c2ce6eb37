"""Train DNABERT-2: masked tokens of genomes, from scratch or from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mintage.data import Fasta, reverse_complement, texts
from mintage.lm.core.dna_folder import DNAModel, masked_score
from mintage.lm.core.dna_windows import MaskedRecipe, dna_windows
from mintage.lm.core.windows import HELD_OUT
from mintage.lm.dnabert2 import DNABERT2ForMaskedLM
from mintage.lm.training.dna_training import DNATraining
from mintage.options import option
from mintage.train.training import Work

__all__ = ["DNABERT2Training", "Sequences"]


class Sequences:
    """Sequences of FASTA files, or of the genomes that come with mintage, read anew at every pass."""

    def __init__(self, sources: tuple[str, ...], both_strands: bool = False) -> None:
        self.sources, self.both_strands = sources, both_strands

    def __iter__(self) -> Iterator[str]:
        """Read from the beginning."""
        read: Iterable[str] = texts("genomes", "train")
        if self.sources:
            read = (record.sequence for record in Fasta(*self.sources))
        for sequence in read:
            yield sequence
            if self.both_strands:
                yield reverse_complement(sequence)


@dataclass(frozen=True, kw_only=True)
class DNABERT2Training(DNATraining):
    """Train an encoder of DNA to fill in masked tokens.

    From FASTA files (lower case is read as upper case, what is no base parts a sequence), or from 5.5 million bases of
    four species. Every fiftieth window is held out.
    """

    name: ClassVar[str] = "dnabert2"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train dnabert2 genomes/ --vocabulary 1024 --steps 2000 -o my-dnabert2",
        "mintage train dnabert2 genomes/ --model DNABERT-2-117M/ --lr 5e-5 --steps 5000 -o mine",
        "mintage train dnabert2 --tokenizer overlapping --k 3 --run-length 6 --window 256 -o my-dnabert1",
    )
    after: ClassVar[str] = "mintage train dna-classifier --model FOLDER --task promoter_tss"

    texts: tuple[str, ...] = option((), "FASTA files or folders; none: genomes of four species.", argument=True)
    both_strands: bool = option(False, "Learn from the reverse complements, too.")
    share: float = option(0.15, "Of the tokens that are masked.", above=0, below=1)
    run_length: int | None = option(None, "Tokens masked together; default 1, of overlapping k-mers k.", least=1)
    rows: int = option(32, "Windows per step.", least=1)
    window: int = option(128, "Tokens of a window, [CLS] and [SEP] among them.", least=3)
    lr: float = option(1e-3, "Peak learning rate; cosine to a tenth. The paper's 117 M take 5e-4.", above=0)

    def learn(self, work: Work) -> DNAModel:
        """Make or load the model, cut windows, train, and measure on those held out."""
        sequences = Sequences(self.texts, self.both_strands)
        made = self.begin(DNABERT2ForMaskedLM, sequences, work.folder)
        return self.fit(made, dna_windows(made.tokenizer, sequences, self.window), work)

    def fit(self, made: DNAModel, windows: np.ndarray, work: Work) -> DNAModel:
        """Train on windows that are there."""
        held = np.arange(len(windows)) % HELD_OUT == HELD_OUT // 2
        learnt, measured = (windows[~held], windows[held]) if held.any() else (windows, windows[-1:])
        run = self.run_length or made.tokenizer.overlap or 1
        recipe = MaskedRecipe(made.model, learnt, self.rows, self.seed, self.share, run)
        work.stage("training", recipe, self.loop_settings(), unit=self.rows * self.window, of="tokens")
        made.model.eval()
        made.model.config.held_out = masked_score(made, measured, self.share, run, self.rows)._asdict()
        return made

    def summary(self, made: DNAModel) -> str:
        """Say what masked tokens of windows held out cost."""
        found, size = made.model.config.held_out, sum(p.numel() for p in made.model.parameters()) / 1e6
        return (
            f"{found['right']:.1%} of the masked tokens right, {found['nats']:.3f} nats each, "
            f"{found['bits_per_base']:.3f} bits per base, on held-out windows; {size:.2f} M parameters"
        )

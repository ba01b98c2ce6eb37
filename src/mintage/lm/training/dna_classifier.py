"""Fine-tune DNABERT-2 on classes of sequences: all of its weights, or LoRA on the fused projection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mintage.data import texts
from mintage.errors import UserError, did_you_mean, missing_extra
from mintage.lm.core.dna_folder import DNAModel
from mintage.lm.core.dna_report import matthews
from mintage.lm.core.dna_windows import ClassRecipe, LabelledDNA, read_labelled
from mintage.lm.dnabert2 import DNABERT2ForSequenceClassification
from mintage.lm.training.dna_training import DNATraining
from mintage.options import option
from mintage.train.training import Work

__all__ = ["DNAClassifierTraining"]

TASKS = ("promoter_tss", "splice_donor", "splice_acceptor", "dnabert_promoter_sample")
_HELD_OUT = 10
"""Every so many-th sequence is not learnt from, where no test.csv says which."""


@dataclass(frozen=True, kw_only=True)
class DNAClassifierTraining(DNATraining):
    """Train a classifier of DNA: from a DNABERT-2, or from scratch.

    Sequences are those of a task that comes with mintage (splice sites, promoters), or of a folder laid out as GUE's:
    train.csv, and test.csv to measure on, with the columns sequence and label. The score is Matthews' correlation.
    """

    name: ClassVar[str] = "dna-classifier"
    after: ClassVar[str] = "mintage bench dnabert2"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train dna-classifier --model my-dnabert2 --task splice_donor -o my-splice-sites",
        "mintage train dna-classifier GUE/prom_core_all --model DNABERT-2-117M/ --lr 3e-5 --lora 8 -o my-promoters",
    )

    texts: tuple[str, ...] = option((), "Folder with train.csv (and test.csv), or a CSV file.", argument=True)
    task: str = option("promoter_tss", f"Without a folder: {', '.join(TASKS)}.")
    lora: int = option(0, "Rank of LoRA on the fused projection; 0 trains all weights.", least=0)
    alpha: float = option(32.0, "LoRA's scale, times the rank.", above=0)
    steps: int = option(300, "Optimiser steps.", least=1)
    rows: int = option(32, "Sequences per step.", least=1)
    window: int = option(512, "Tokens of the longest sequence; longer ones are refused.", least=3)
    lr: float = option(3e-4, "Peak learning rate; cosine to a tenth. The paper's 117 M take 3e-5.", above=0)

    def learn(self, work: Work) -> DNAModel:
        """Read the sequences, make or load the model, train, and measure on what is held out."""
        return self.fit(*self.sequences(), work)

    def sequences(self) -> tuple[LabelledDNA, LabelledDNA]:
        """Return what is learnt from, and what is measured on."""
        if len(self.texts) > 1:
            raise UserError(f"a classifier learns from one folder; leave out {self.texts[1]}")
        if self.texts:
            path = Path(self.texts[0])
            every = read_labelled(path / "train.csv" if path.is_dir() else path)
            if (path / "test.csv").is_file():
                return every, read_labelled(path / "test.csv")
        else:
            if self.task not in TASKS:
                raise UserError(f"unknown task {self.task!r}; {did_you_mean(self.task, TASKS)}")
            read = list(texts("dna-tasks", "train", domain=self.task).documents())
            every = LabelledDNA([d.text for d in read], np.array([d.fields["label"] for d in read], np.int64))
        held = np.arange(len(every.labels)) % _HELD_OUT == _HELD_OUT // 2
        return (every.part(~held), every.part(held)) if held.any() else (every, every)

    def fit(self, learnt: LabelledDNA, measured: LabelledDNA, work: Work) -> DNAModel:
        """Train on sequences that are there."""
        classes = int(max(learnt.labels.max(), measured.labels.max())) + 1
        made = self.begin(DNABERT2ForSequenceClassification, learnt.sequences, work.folder, num_labels=classes)
        ids = made.tokenizer.encode_all(learnt.sequences)
        if (longest := max(map(len, ids)) + 2) > self.window:
            raise UserError(
                f"a sequence has {longest} tokens, window={self.window}; cut it, or pass --window {longest}"
            )
        tuned = self._adapted(made.model) if self.lora else made.model
        recipe = ClassRecipe(tuned, ids[: len(learnt.labels)], learnt.labels, self.rows, self.seed)
        work.stage("training", recipe, self.loop_settings(), unit=self.rows, of="sequences")
        made = DNAModel((tuned.merge_and_unload() if self.lora else tuned).eval(), made.tokenizer)
        said = made.classify(measured.sequences)
        made.model.config.held_out = {
            "mcc": matthews(measured.labels, said),
            "accuracy": float((measured.labels == said).mean()),
            "sequences": len(said),
        }
        return made

    def _adapted(self, model: Any) -> Any:
        """Return the model with LoRA on Wqkv; head and pooler are trained whole."""
        try:
            from peft import LoraConfig, get_peft_model
        except ModuleNotFoundError:
            raise missing_extra("peft", "lm") from None
        config: Any = LoraConfig(
            r=self.lora,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType] # a whole number by its annotation alone
            lora_dropout=0.05,
            target_modules=["Wqkv"],
            modules_to_save=["classifier", "pooler"],
            task_type="SEQ_CLS",
        )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed % 2**63)
            return get_peft_model(model, config)

    def summary(self, made: DNAModel) -> str:
        """Say how well sequences held out are told apart."""
        found = made.model.config.held_out
        return f"MCC {found['mcc']:.3f}, {found['accuracy']:.1%} right, of {found['sequences']} held-out sequences"

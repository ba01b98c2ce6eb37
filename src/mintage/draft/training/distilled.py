"""Train a small draft model for a target: the target teaches it, on the target's own answers.

A few of the target's own blocks are the start, and its embeddings stay. Not here: what is learnt
(`mintage.draft.training.distillation`), the draft model itself (`mintage.draft.core.distilled`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mintage.data import read_prompts
from mintage.draft.core.agreement import drafter_accuracy
from mintage.draft.core.answers import Answers, write_answers
from mintage.draft.core.distilled import DistilledDrafter, cut_drafter
from mintage.draft.training.distillation import DrafterRecipe
from mintage.draft.training.prompts import PromptedTraining
from mintage.options import option
from mintage.train import Settings
from mintage.train.training import Work

__all__ = ["DrafterTraining"]

_HELD_OUT = 20  # every twentieth prompt's answers are not trained on
_MEASURED = 72  # held-out prompts that agreement is measured on


@dataclass(frozen=True, kw_only=True)
class DrafterTraining(PromptedTraining):
    """Train a small draft model: a few of the model's own blocks learn to guess what it would write.

    The answers take two bytes per answer token and unit of the model's width, in the work folder and in memory.
    """

    name = "drafter"
    examples = (
        "mintage train drafter --out drafter.safetensors",
        "mintage train drafter --model ./my-llama --prompts prompts.jsonl --layers 0,1,-1",
    )
    after = 'mintage generate "Hello" --draft rsd --draft-model drafter.safetensors'

    layers: tuple[int, ...] = option((0, 1), "Blocks of the model to start from; -1 is the last.")
    vocabulary: int = option(8192, "Tokens that the drafter's head knows: the most frequent of the answers.", least=1)
    steps: int = option(1500, "Optimiser steps.", least=1)
    lr: float = option(2e-3, "Peak learning rate (warm-up over a twentieth of the steps, then cosine).", above=0)
    batch_rows: int = option(16, "Answers per step.", least=1)
    overlap: float = option(0.0, "Share of the loss that is the chance of a rejection.", least=0, most=1)
    new_tokens: int = option(160, "Longest answer that the model writes itself, in tokens.", least=1)

    def learn(self, work: Work) -> DistilledDrafter:
        """Write the target's answers, cut a drafter from it, teach it, measure it."""
        turns, lm = self.turns(_HELD_OUT), self.load()
        model, progress = lm.model, work.progress
        model.requires_grad_(False)
        cut_drafter(model, self.layers, torch.zeros(1, dtype=torch.long))  # a mistake is told before the long work
        folder = work.folder / "answers"
        answers = Answers(
            write_answers(lm, turns, folder, new_tokens=self.new_tokens, seed=self.seed, progress=progress)
        )
        rows = [row for row in range(len(answers)) if answers.prompt[row] % _HELD_OUT]
        tokens, covered = answers.frequent(rows, self.vocabulary)
        drafter = cut_drafter(model, self.layers, tokens)
        recipe = DrafterRecipe(
            model, drafter, answers, rows, batch_rows=self.batch_rows, overlap=self.overlap, seed=self.seed
        )
        settings = Settings(
            steps=self.steps,
            lr=self.lr,
            warmup=self.steps // 20,
            seed=self.seed,
            save_every=25,
            bf16=model.dtype == torch.bfloat16,
        )
        work.stage("train", recipe, settings)
        recipe.finish()
        learnt, most = sum(len(answers.answer(row)) for row in rows), self.new_tokens
        notes = {
            "answers": f"{learnt} tokens of {len(rows)} answers of up to {most} tokens, half greedy, half sampled",
            "head": f"{len(tokens)} tokens, {covered:.4f} of those in the answers",
            "held out": drafter_accuracy(lm, drafter, turns[::_HELD_OUT][:_MEASURED], progress=progress).as_json(),
            "log": (work.folder / "train" / "log.jsonl").read_text(),
        }
        if lm.tokenizer.chat_template:
            test = [p.turns[0] for p in read_prompts()]
            notes["test"] = drafter_accuracy(lm, drafter, test, progress=progress).as_json()
        return DistilledDrafter(drafter, lm, notes)

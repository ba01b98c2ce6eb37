"""Train PPD's prompt tokens: the model teaches them itself, on its own greedy continuations of prompts.

Not here: what is learnt (`mintage.draft.training.prompt_tokens`), drafting (`mintage.draft.ppd`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from mintage.draft.core.continuations import continuations
from mintage.draft.core.guessing import guess_accuracy, text_initialised
from mintage.draft.core.prompt_tokens import PromptTokens
from mintage.draft.core.target import Target
from mintage.draft.training.prompt_tokens import PromptTokenRecipe
from mintage.draft.training.prompts import PromptedTraining
from mintage.options import option
from mintage.train import Settings
from mintage.train.training import Work

__all__ = ["PPDTraining"]

_HELD_OUT = 10  # every tenth text calibrates and is not trained on


@dataclass(frozen=True, kw_only=True)
class PPDTraining(PromptedTraining):
    """Train prompt tokens for parallel prompt decoding: the model teaches a few embeddings to guess ahead."""

    name = "ppd"
    examples = (
        "mintage train ppd --out ppd-smollm2.safetensors",
        "mintage train ppd --model ./my-model --prompts prompts.jsonl --steps 800",
    )
    after = 'mintage generate "Hello" --draft ppd:prompt_tokens=ppd.safetensors'

    count: int = option(240, "How many prompts to make where no file is given.", least=1)
    steps: int = option(400, "Optimiser steps.", least=1)
    lr: float = option(1e-2, "Peak learning rate (cosine); the paper's.", above=0)
    new_tokens: int = option(96, "Tokens of each continuation that the model writes itself.", least=1)
    distances: int = option(3, "How many distances are guessed, S.", least=1)
    copies: int = option(1, "Size of the ensemble, n_ept.", least=1)
    batch_texts: int = option(2, "Texts per step.", least=1)
    batch_cuts: int = option(32, "Cuts per text.", least=1)

    def learn(self, work: Work) -> PromptTokens:
        """Continue the prompts, train on nine of ten continuations, calibrate on the tenth."""
        turns, lm = self.turns(_HELD_OUT), self.load()
        target = Target(lm.model)
        lm.model.requires_grad_(False)
        store = work.folder / "continuations.jsonl"
        texts = continuations(lm, turns, new_tokens=self.new_tokens, store=store, progress=work.progress)
        tokens = text_initialised(lm, distances=self.distances, copies=self.copies)
        recipe = PromptTokenRecipe(
            target,
            tokens,
            [text for i, text in enumerate(texts) if i % _HELD_OUT],
            batch_texts=self.batch_texts,
            batch_cuts=self.batch_cuts,
            seed=self.seed,
        )
        settings = Settings(steps=self.steps, lr=self.lr, clip=0.0, seed=self.seed, save_every=20)
        trained = work.stage("train", recipe, settings)
        held_out = texts[::_HELD_OUT]
        tokens.accuracies = guess_accuracy(target, tokens, held_out, progress=work.progress)
        tokens.notes = {
            "texts": f"{len(recipe.texts)} own greedy continuations of up to {self.new_tokens} tokens",
            "last": json.dumps(trained.last),
            "log": (work.folder / "train" / "log.jsonl").read_text(),
            "calibration": f"{len(held_out)} texts not trained on",
        }
        return tokens

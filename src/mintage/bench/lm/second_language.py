"""Going on with another language: bits per byte while it is learnt."""

from __future__ import annotations

import copy
from pathlib import Path

from mintage.lm.contract import ByteLanguageModel
from mintage.lm.core.windows import Windows
from mintage.lm.training.byte_training import ByteRecipe, mean_bits_per_byte
from mintage.progress import Progress
from mintage.train import Settings
from mintage.train.loop import train

__all__ = ["learnt_by_steps"]

_PARTS = 10
"""Into how many parts the steps are cut; bits are measured between them."""


def learnt_by_steps(
    model: ByteLanguageModel, windows: Windows, steps: int, folder: Path, progress: Progress
) -> list[float]:
    """Train a copy of a model on other windows, and return held-out bits per byte before, and behind every tenth.

    The learning rate is the same throughout, so that a part does not depend on how many follow.
    """
    learner = copy.deepcopy(model)
    found = [mean_bits_per_byte(learner, windows.held_out)]
    for part in range(_PARTS):
        size = max(steps // _PARTS, 1)
        recipe = ByteRecipe(learner, windows, 8, seed=part)
        settings = Settings(steps=size, lr=5e-4, final_lr=1.0, weight_decay=0.1, betas=(0.9, 0.95), seed=part)
        train(recipe, folder / str(part), settings, device="cpu")
        learner.eval()
        found.append(mean_bits_per_byte(learner, windows.held_out))
        progress("German", part + 1, _PARTS)
    return found

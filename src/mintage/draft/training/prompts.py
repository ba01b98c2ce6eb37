"""What trainings on a model's own answers share: which prompts it answers."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from mintage.data import read_prompts
from mintage.data.instructions import instructions
from mintage.errors import UserError
from mintage.options import DTYPES, option
from mintage.train.training import LanguageModelTraining

__all__ = ["PromptedTraining"]


@dataclass(frozen=True, kw_only=True)
class PromptedTraining(LanguageModelTraining, ABC):
    """A training for one language model, on what it says to prompts."""

    prompts: str | None = option(None, "JSON lines with turns or prompt; default: made from texts of the data folder.")
    count: int = option(2048, "How many prompts to make where no file is given.", least=1)
    dtype: str = option("auto", DTYPES)

    def turns(self, least: int) -> list[str]:
        """Return the users' turns.

        Raises
        ------
        UserError
            They are fewer than `least`, or cannot be read or made.
        """
        if self.prompts is None:
            turns = instructions(self.count, seed=self.seed)
        else:
            turns = [prompt.turns[0] for prompt in read_prompts(self.prompts)]
        if len(turns) < least:
            better = type(self).__dataclass_fields__["count"].default
            raise UserError(f"{len(turns)} prompts are too few; pass at least {least}, better {better}")
        return turns

"""What policies are measured on: long speeches, and needles hidden in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from mintage.data import texts
from mintage.data.haystack import make_haystack
from mintage.errors import UserError
from mintage.models import CausalLM

__all__ = ["NEEDLES", "SPEECHES", "Question", "long_texts", "questions"]

NEEDLES = ("pass-key", "UUID")
"""What is hidden in a text: five digits, or 36 characters, of which each must be copied."""

SPEECHES = ("speeches",)
"""Corpora of long documents that are in English and in prose."""


def long_texts(
    lm: CausalLM, tokens: int, number: int, *, least: int | None = None, corpora: Sequence[str] = SPEECHES
) -> list[tuple[str, Tensor]]:
    """Return the first `tokens` tokens of `number` English texts that are long enough, speeches spread over the years.

    Parameters
    ----------
    least
        How many will do where there are no more; default all of `number`.
    corpora
        Names of `mintage.data.texts`: ``speeches``, ``genesis``.

    Raises
    ------
    UserError
        The data folder is not set, or too few documents are that long.
    """
    read = [document for name in corpora for document in texts(name, "all", domain="en").documents()]
    found = []
    for document in _spread([document for document in read if len(document.text) >= 3 * tokens]):
        ids = lm.tokenizer(document.text[: 8 * tokens], return_tensors="pt")["input_ids"]
        if ids.shape[1] >= tokens:  # type: ignore[union-attr]
            found.append((document.name, ids[:, :tokens]))  # type: ignore[index]
        if len(found) == number:
            return found
    if len(found) < (number if least is None else least):
        raise UserError(f"only {len(found)} of the texts have {tokens} tokens; ask for fewer or shorter ones")
    return found


@dataclass(frozen=True)
class Question:
    """A pass-key or UUID stated within a real text, and the question for it."""

    context: str
    question: str
    answer: str

    def ids(self, lm: CausalLM) -> tuple[Tensor, Tensor]:
        """Tokens of the context and of the question, [1, length] each."""
        tokenizer: Any = lm.tokenizer
        context = tokenizer(self.context, return_tensors="pt")["input_ids"]
        question = tokenizer(self.question, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return context.to(lm.model.device), question.to(lm.model.device)


def questions(lm: CausalLM, tokens: int, number: int, seed: int, needle: str = "pass-key") -> list[Question]:
    """Hide needles in speeches of about `tokens` tokens, at depths spread over the whole text.

    However few tokens are asked for, the needle's own stay, with some of a speech around them.
    """
    generator = np.random.default_rng(seed)
    made = []
    texts = long_texts(lm, max(tokens - (60 if needle == "pass-key" else 120), 4), number, least=1)
    names = make_haystack(number, seed).keys
    for place in range(number):
        text = str(lm.tokenizer.decode(texts[place % len(texts)][1][0]))
        key = str(generator.integers(10_000, 100_000)) if needle == "pass-key" else names[place]
        cut = int((place + generator.random()) / number * len(text))
        cut = text.rfind(" ", 0, max(cut, 1)) + 1
        hidden = (
            f"\n\nThe {needle.replace('-', ' ')} is {key}. Remember it. {key} is the {needle.replace('-', ' ')}.\n\n"
        )
        made.append(Question(f"{text[:cut]}{hidden}{text[cut:]}", f"\n\nThe {needle.replace('-', ' ')} is", key))
    return made


def _spread(rows: list[Any]) -> Iterator[Any]:
    """Yield rows from all over the list: the middle, the quarters, the eighths, and so on."""
    seen = set()
    for level in range(1, max(len(rows), 2).bit_length() + 1):
        for odd in range(1, 2**level, 2):
            place = odd * len(rows) // 2**level
            if place < len(rows) and place not in seen:
                seen.add(place)
                yield rows[place]

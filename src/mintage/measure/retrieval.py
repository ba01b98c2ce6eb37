"""Score what a model found in a haystack, and the length of text up to which it finds things.

Not here: the haystacks (`mintage.data.haystack`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mintage.errors import UserError

__all__ = ["Found", "effective_context_limit", "score_list", "score_value"]


class Found(NamedTuple):
    """How much of what was asked for is in a response, each from 0 to 1.

    Parameters
    ----------
    score
        The published score: of a value whether the response begins with it, of a list the share that is in it.
    lenient
        The same, of values anywhere in the response.
    precision
        Share of the values listed that were asked for; 0 where nothing was listed.
    exact
        Whether these and no other values were listed.
    """

    score: float
    lenient: float
    precision: float
    exact: float


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def score_value(response: str, answer: str) -> Found:
    """Compare the beginning of a response, stripped of space and quotes, with one value.

    A dictionary or list that holds one value and nothing else answers with that value, in whatever words its key is.
    """
    text = response.strip()
    opened = re.match(r"\{[^{}]*\}|\[[^\[\]]*\]", text)
    held = _literal(opened[0] if opened else text)
    if isinstance(held, dict):
        held = list(held.values())
    if isinstance(held, list) and len(held) == 1:
        held = held[0]
    text = held if isinstance(held, str) else text.lstrip("\"'`")
    score = float(text[: len(answer)] == answer)
    return Found(score, float(answer in response), score, score)


def score_list(response: str, answers: Sequence[str]) -> Found:
    """Read the first list in a response and compare it with the values, in any order; no list scores 0.

    Without a list, the values of the first dictionary are read: some models answer with the pairs.

    Raises
    ------
    UserError
        There are no answers to look for.
    """
    if not answers:
        raise UserError("there are no answers to score against; pass at least one")
    lenient = sum(answer in response for answer in answers) / len(answers)
    match = re.search(r"\[[^\[\]]*\]", response) or re.search(r"\{[^{}]*\}", response)
    held = _literal(match[0]) if match else None
    if isinstance(held, dict):
        held = list(held.values())
    if not isinstance(held, list):
        return Found(0.0, lenient, 0.0, 0.0)
    listed = {str(value) for value in held}
    right = len(listed & set(answers))
    return Found(right / len(set(answers)), lenient, right / max(len(listed), 1), float(listed == set(answers)))


def effective_context_limit(
    lengths: Sequence[int | float], accuracy: Sequence[int | float], threshold: int | float = 0.75
) -> float:
    """Return the length up to which accuracy stays at or above `threshold`.

    Parameters
    ----------
    lengths
        Tested lengths, ascending, in characters or whatever unit the limit shall have.
    accuracy
        From 0 to 1, at each length.
    threshold
        From 0 to 1.

    Returns
    -------
    float
        Where the line between the last length that passes and the first that fails meets the threshold; 0 if the first
        length fails, the last length if none does.

    Raises
    ------
    UserError
        The lengths do not ascend, or the numbers do not match.
    """
    if not lengths or len(lengths) != len(accuracy) or any(a >= b for a, b in pairwise(lengths)):
        raise UserError("effective_context_limit takes ascending lengths and one accuracy for each")
    if accuracy[0] < threshold:
        return 0.0
    for (low, passing), (high, failing) in zip(
        zip(lengths, accuracy, strict=True), zip(lengths[1:], accuracy[1:], strict=True), strict=False
    ):
        if failing < threshold:
            return float(low + (high - low) * (passing - threshold) / (passing - failing))
    return float(lengths[-1])

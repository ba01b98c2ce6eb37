"""CodeXGLUE's metrics of code completion: tokens right, exact lines, edit similarity, and the rank of the right line.

Not here: BLEU, METEOR and ROUGE-L, which say little about a line of code (packages sacrebleu, nltk, rouge-score do).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from mintage.errors import UserError

__all__ = [
    "LEADERBOARD",
    "NO_INDENT",
    "LineScores",
    "Right",
    "edit_similarity",
    "line_metrics",
    "plain_code",
    "token_accuracy",
]

LEADERBOARD = frozenset({"<s>", "</s>", "<EOL>", "<pad>"})
"""Tokens that CodeXGLUE's leaderboard does not count."""

NO_INDENT = LEADERBOARD | {"<INDENT>", "<DEDENT>"}
"""Those that PyCoder's own evaluation does not count; numbers of the two never compare."""

_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


class Right(NamedTuple):
    """How many tokens were predicted right, of how many."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        """The accuracy; NaN where nothing was counted."""
        return self.correct / self.total if self.total else float("nan")


def token_accuracy(gt: Sequence[str], pred: Sequence[str], exclude: Collection[str] = LEADERBOARD) -> Right:
    """Count right tokens; those of the text that are in `exclude` are not counted.

    Raises
    ------
    UserError
        There is not one prediction for every token.
    """
    if len(gt) != len(pred):
        raise UserError(f"{len(pred)} predictions for {len(gt)} tokens; pass one for each")
    counted = [(true, said) for true, said in zip(gt, pred, strict=True) if true not in exclude]
    return Right(sum(true == said for true, said in counted), len(counted))


def plain_code(line: str) -> str:
    """Undo the normalisation of literals as far as it can be: ``<STR_LIT:foo>`` is foo, ``<NUM_LIT>`` is 0."""
    for mark, text in (("<NUM_LIT>", "0"), ("<STR_LIT>", ""), ("<CHAR_LIT>", "")):
        line = line.replace(mark, text)
    return _LITERAL.sub(lambda found: found[1], line)


def edit_similarity(a: str, b: str) -> float:
    """Return 200 * (longest common subsequence) / (length of both), as Levenshtein's ``ratio``; 100 for empty texts.

    CodeXGLUE rounds it to whole numbers, line by line.
    """
    if not a or not b:
        return 100.0 * (a == b)
    first = np.frombuffer(a.encode("utf-32-le", "surrogatepass"), np.uint32)
    row = np.zeros(len(first) + 1, np.int64)  # of beginnings of a: the longest subsequence with b so far
    for letter in np.frombuffer(b.encode("utf-32-le", "surrogatepass"), np.uint32):
        row[1:] = np.maximum.accumulate(np.maximum(row[1:], row[:-1] + (first == letter)))
    return 200.0 * float(row[-1]) / (len(a) + len(b))


class LineScores(NamedTuple):
    """Percent of lines that are exactly right, mean edit similarity, and mean reciprocal rank of the right line."""

    exact: float
    similarity: float
    rank: float


def line_metrics(gt: Sequence[str], pred: Sequence[Sequence[str]]) -> LineScores:
    """Judge completed lines.

    Parameters
    ----------
    gt
        The true lines.
    pred
        For every line what was proposed, best first.

    Raises
    ------
    UserError
        There are no lines, or not one list of proposals for each.
    """
    if not gt or len(gt) != len(pred):
        raise UserError(f"{len(pred)} lists of proposals for {len(gt)} lines; pass one for each of at least one line")
    ranks, similar = [], []
    for line, proposed in zip(gt, pred, strict=True):
        true = plain_code(line)
        right = [one.split() == true.split() for one in proposed]
        ranks.append(1 / (right.index(True) + 1) if True in right else 0.0)
        similar.append(edit_similarity(proposed[0].strip() if proposed else "", true))
    exact = 100 * float(np.mean([rank == 1 for rank in ranks]))
    return LineScores(exact, float(np.mean(similar)), float(np.mean(ranks)))

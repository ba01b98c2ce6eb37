"""How often a guess is what the target says next, along ``generate``'s answers: trained prompt tokens, draft models.

The answers are the target's own continuations of prompts that nobody trained on. What a token's most frequent
successors are is counted on the answers to the other prompts, in folds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mintage.bench.draft.arms import GENERATE
from mintage.bench.draft.run import DraftRun
from mintage.draft import (
    Accuracy,
    Context,
    Continuation,
    PromptLookup,
    Target,
    Warp,
    accuracy_along,
    guess_accuracy,
    text_initialised,
)
from mintage.models import rounded_copy

__all__ = ["FREQUENT", "TRAINED", "UNTRAINED", "choices", "frequency_accuracy", "guesses", "rival_choices"]

TRAINED, UNTRAINED, FREQUENT = "trained", "untrained (from words)", "most frequent successor"
_FOLDS = 6


def _texts(run: DraftRun) -> list[Continuation]:
    """The prompts with ``generate``'s answers: in a greedy run, what the target itself would say."""
    texts = []
    for prompt, answer in zip(run.prompts, run.measurements[GENERATE].answers, strict=True):
        ids = run.ids(prompt)[0].tolist()
        texts.append(Continuation((*ids, *answer.tokens), len(ids)))
    return texts


def _others(texts: Sequence[Continuation], index: int) -> list[Continuation]:
    return [text for i, text in enumerate(texts) if i % _FOLDS != index % _FOLDS]


# -- prompt tokens -----------------------------------------------------------------------------------------------------


def guesses(run: DraftRun, arm: str) -> dict[str, np.ndarray]:
    """Count right guesses at every cut of the answers.

    Returns
    -------
    dict
        By guesser, shape (prompts, distances, ranks); ``"cuts"`` are the cuts, shape (prompts,).
    """
    return run.once("guesses", lambda: _guesses(run, arm))


def _guesses(run: DraftRun, arm: str) -> dict[str, np.ndarray]:
    drafter: Any = run.arms[arm].drafter
    trained, target = drafter.tokens, Target(run.lm.model)
    usable = [text for text in _texts(run) if text.cuts(trained.distances + 1)]
    cuts = np.array([len(text.cuts(trained.distances + 1)) for text in usable], dtype=float)
    untrained = text_initialised(run.lm, distances=trained.distances, copies=trained.copies)
    ranks = trained.ranks
    counted: dict[str, np.ndarray] = {"cuts": cuts}

    def count(name: str, shares: list[np.ndarray]) -> None:
        counted[name] = np.array(shares).reshape(-1, trained.distances, ranks) * cuts[:, None, None]

    for name, tokens in ((TRAINED, trained.to(target.device)), (UNTRAINED, untrained)):
        count(name, [guess_accuracy(target, tokens, [text], ranks=ranks).numpy() for text in usable])
    frequent = [
        frequency_accuracy(_others(usable, i), [text], distances=trained.distances, ranks=ranks).numpy()
        for i, text in enumerate(usable)
    ]
    count(FREQUENT, frequent)
    return counted


def frequency_accuracy(
    known: Sequence[Continuation], texts: Sequence[Continuation], *, distances: int = 3, ranks: int = 10
) -> Float[Tensor, "distances ranks"]:
    """Accuracy of the obvious rival: what most often stood that far after the last token in the `known` texts.

    Ranks that a token's own counts leave open are filled with the most frequent tokens of all.
    """
    hits = torch.zeros(distances, ranks, dtype=torch.float64)
    common = [token for token, _ in Counter(t for text in known for t in text.ids).most_common(2 * ranks)]
    total = 0
    for distance in range(1, distances + 1):
        after: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for text in known:
            for token, later in zip(text.ids, text.ids[distance + 1 :], strict=False):
                after[token][later] += 1
        total = 0
        for text in texts:
            for cut in text.cuts(distances + 1):
                ranked = [token for token, _ in after[text.ids[cut - 1]].most_common(ranks)]
                ranked += [token for token in common if token not in ranked][: ranks - len(ranked)]
                if (truth := text.ids[cut + distance]) in ranked:
                    hits[distance - 1, ranked.index(truth)] += 1
                total += 1
    return hits / max(total, 1)


# -- draft models ------------------------------------------------------------------------------------------------------


def choices(run: DraftRun) -> Accuracy:
    """How often the draft model's likeliest tokens hold the target's greedy choice."""
    return run.once("choices", lambda: accuracy_along(run.draft_model, _texts(run)))


def rival_choices(run: DraftRun) -> dict[str, float]:
    """How often guesses that need no small model are the target's choice, and those of a model as large as itself."""
    texts = _texts(run)
    successor = sum(_successors_right(_others(texts, i), text) for i, text in enumerate(texts))
    repeated = sum(_repeats_right(run, text) for text in texts)
    total = sum(len(text.ids) - text.prompt for text in texts)
    copied = accuracy_along(rounded_copy(run.lm.model, bits=4), texts, within=(1,)).within[1].value
    return {FREQUENT: successor / total, "prompt-lookup": repeated / total, "4-bit-rounded copy": copied}


def _successors_right(known: Sequence[Continuation], text: Continuation) -> int:
    """Answer tokens that most often followed the token before them in the `known` texts."""
    after: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for other in known:
        for token, later in zip(other.ids, other.ids[1:], strict=False):
            after[token][later] += 1
    pairs = zip(text.ids[text.prompt - 1 :], text.ids[text.prompt :], strict=False)
    return sum([later for later, _ in after[token].most_common(1)] == [truth] for token, truth in pairs)


def _repeats_right(run: DraftRun, text: Continuation) -> int:
    """Answer tokens that prompt look-up would draft."""
    lookup, right = PromptLookup(length=1), 0
    for end in range(text.prompt, len(text.ids)):
        context = Context(ids=torch.tensor(text.ids[:end]), prompt_length=text.prompt, room=1, warp=Warp())
        lookup.begin(Target(run.lm.model), context)
        right += lookup.propose(context).tokens[1:].tolist() == [text.ids[end]]
    return right

"""What the papers about caches are measured by: perplexity behind a text, needles asked for after it was read.

A text is read once and every policy starts from there; see `mintage.bench.keep.prefix`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mintage.bench.keep.inputs import NEEDLES, SPEECHES, Question, long_texts, questions
from mintage.bench.keep.prefix import Prefix, answer_to, score_continuation
from mintage.keep.contract import Policy
from mintage.keep.core.storage import KeptCache
from mintage.measure.retrieval import score_value
from mintage.measure.study import Measure, Run, Study
from mintage.models import EMBEDDED, CausalLM, load_causal_lm
from mintage.options import option

__all__ = ["KeepStudy", "continuation_scores", "needles"]


@dataclass(frozen=True, kw_only=True)
class KeepStudy(Study):
    """A study of cache policies (its arms) on one model, in bfloat16."""

    job = "keep"

    model: str = option(EMBEDDED, "smollm2 (embedded), a folder, or a hub id.")

    def subject(self, run: Run) -> CausalLM:
        """Load the model."""
        return load_causal_lm(self.model, dtype="bfloat16")


class _Read(NamedTuple):
    prefix: Prefix
    following: Tensor  # token ids
    answer: str = ""


def continuation_scores(
    length: int,
    texts: int,
    tokens: int,
    *,
    name: str = "perplexity",
    corpora: Sequence[str] = SPEECHES,
    arms: Sequence[str] | None = None,
    **told: Callable[[KeptCache], float],
) -> Measure:
    """Score the `tokens` behind the first `length` of each of `texts` texts.

    Columns, one number per text: those of `score_continuation` (``nll`` is the mean negative log-likelihood), and what
    each function of `told` says of the cache in the end.
    """

    def units(run: Run) -> Mapping[int, Tensor]:
        found = long_texts(run.subject, length + tokens, texts, corpora=corpora)
        return dict(enumerate(ids for _, ids in found))

    def read(run: Run, ids: Tensor) -> _Read:
        return _Read(Prefix(run.subject, ids[:, :length]), ids[0, length:])

    def of(run: Run, policy: Policy, text: _Read) -> Mapping[str, float]:
        return score_continuation(text.prefix, policy, text.following, **told)

    return Measure(name=name, units=units, prepare=read, of=of, arms=arms)


def needles(
    length: int,
    number: int,
    *,
    kinds: Sequence[str] = NEEDLES,
    inside: bool = False,
    column: str = "found",
    arms: Sequence[str] | None = None,
) -> Measure:
    """Ask for `number` needles of each kind hidden in `length` tokens; a column, 1 where one was found and 0 elsewhere.

    The question comes after the text was read and compressed, or, `inside`, is read with it.
    """

    def units(run: Run) -> Mapping[str, Question]:
        return {
            f"{kind} {index}": question
            for kind in kinds
            for index, question in enumerate(questions(run.subject, length, number, run.seed, kind))
        }

    def read(run: Run, question: Question) -> _Read:
        context, asked = question.ids(run.subject)
        if inside:
            context, asked = torch.cat((context, asked), 1), asked[:, :0]
        return _Read(Prefix(run.subject, context), asked, question.answer)

    def of(run: Run, policy: Policy, text: _Read) -> Mapping[str, float]:
        said = answer_to(run.subject, text.prefix, policy, text.following, text.answer)
        return {column: score_value(said, text.answer).score}

    name = f"{' and '.join(kinds)} {'inside' if inside else 'after'} {length} tokens"
    return Measure(name=name, units=units, prepare=read, of=of, arms=arms)

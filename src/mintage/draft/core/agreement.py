"""How good a draft model is: how often it guesses the target's choice, and what a step of it costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mintage.draft.core.cache import TreeCache
from mintage.draft.core.continuations import Continuation, continuations
from mintage.draft.core.target import Target
from mintage.measure import Interval, bootstrap_ratio, paired_time
from mintage.models import CausalLM
from mintage.progress import Progress, silent

__all__ = ["Accuracy", "accuracy_along", "drafter_accuracy", "step_cost"]


class Accuracy(NamedTuple):
    """How often a draft model guesses the target's greedy choice, along the target's own greedy answers.

    Attributes
    ----------
    within
        By k: the share of answer tokens among the draft model's k likeliest, with its interval over prompts.
    tokens, prompts
        How many tokens of how many answers.
    """

    within: dict[int, Interval]
    tokens: int
    prompts: int

    def as_json(self) -> str:
        """Return the numbers as a JSON object."""
        shares = {str(k): [round(x, 4) for x in interval] for k, interval in self.within.items()}
        return json.dumps({"low, share, high within k": shares, "tokens": self.tokens, "prompts": self.prompts})


@torch.no_grad()
def drafter_accuracy(
    lm: CausalLM,
    draft_model: PreTrainedModel,
    prompts: Sequence[str],
    *,
    new_tokens: int = 96,
    within: Sequence[int] = (1, 2, 4, 8),
    progress: Progress = silent,
) -> Accuracy:
    """Let the target answer prompts greedily, and look up every token it chose in what the draft model would guess.

    Parameters
    ----------
    lm
        The target and its tokenizer.
    draft_model
        Any causal LM with its vocabulary.
    prompts
        Texts of users' turns that the draft model was not trained on.
    new_tokens
        Longest answer.
    within
        Numbers of guesses to look among.
    progress
        ``progress(stage, done, of)``.
    """
    texts = continuations(lm, prompts, new_tokens=new_tokens, progress=progress)
    return accuracy_along(draft_model, texts, within=within, progress=progress)


@torch.no_grad()
def accuracy_along(
    draft_model: PreTrainedModel,
    texts: Sequence[Continuation],
    *,
    within: Sequence[int] = (1, 2, 4, 8),
    progress: Progress = silent,
) -> Accuracy:
    """Look up every token of the target's greedy answers in what the draft model would guess after what stands before.

    Parameters
    ----------
    draft_model
        Any causal LM with the target's vocabulary.
    texts
        Prompts and the target's greedy answers to them.
    within
        Numbers of guesses to look among.
    progress
        ``progress(stage, done, of)``.
    """
    hits: dict[int, list[int]] = {k: [] for k in within}
    lengths = []
    for done, text in enumerate(texts):
        ids = torch.tensor(text.ids, device=draft_model.device)
        model: Any = draft_model
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0, text.prompt - 1 :].float()
        guesses = logits.topk(max(within), dim=-1).indices == ids[text.prompt :, None]
        for k in within:
            hits[k].append(int(guesses[:, :k].sum()))
        lengths.append(len(text.ids) - text.prompt)
        progress("look up", done + 1, len(texts))
    return Accuracy({k: bootstrap_ratio(right, lengths) for k, right in hits.items()}, sum(lengths), len(lengths))


@torch.no_grad()
def step_cost(lm: CausalLM, draft_model: PreTrainedModel, *, context: int = 256, rounds: int = 20) -> Interval:
    """Seconds of a one-token forward of the draft model over the target's, paired, with its interval.

    Parameters
    ----------
    lm
        The target.
    draft_model
        The draft model.
    context
        Tokens in both caches.
    rounds
        Pairs of forwards to time.
    """
    generator = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[], object]] = {}
    for name, model in (("target", lm.model), ("draft", draft_model)):
        target = Target(model)
        ids = torch.randint(0, target.vocabulary, (1, context), generator=generator).to(target.device)
        cache = target.new_cache(1, context + 8)
        target.prefill(ids, [context], cache)

        calls[name] = partial(_one_step, target, ids, cache)
    return paired_time(calls, repeats=rounds, warmup=3).ratio("draft", "target")


def _one_step(target: Target, ids: Tensor, cache: TreeCache) -> None:
    """Read one token after a cache that holds all of `ids`, and forget it again."""
    context = ids.shape[1]
    position = torch.tensor([[context]], device=target.device)
    target.extend(ids[:, :1], position, torch.ones(1, 1, 1, dtype=torch.bool, device=target.device), cache)
    cache.fill([context])

"""The laws of the draft contract. Each takes a drafter made by ``tiny()`` and fails by an assertion."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from mintage.draft import Drafter, generate
from mintage.draft.contract import Context
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree
from mintage.draft.core.verify import TargetProbs
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.models import TINY_VOCABULARY as VOCABULARY
from mintage.models import tiny_causal_lm
from mintage.testing.settings import a_wrong_setting_is_refused, without_shape_checks
from mintage.testing.toys import TableLM

__all__ = ["LAWS"]

_ROUNDS = 4000
_PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6), (2, 7, 1, 8), (1, 1, 2, 3, 5, 8, 1, 1, 2, 3, 5))


def _fresh(drafter: Drafter) -> Drafter:
    return type(drafter).tiny()


def _ids(prompt: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([prompt])


def _plain(model: Any, ids: torch.Tensor, new: int, **settings: Any) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0, **settings)


def greedy_equals_plain(drafter: Drafter) -> None:
    """Greedy output is plain greedy decoding's, whatever the drafter learned from earlier requests."""
    for model in (tiny_causal_lm(), tiny_causal_lm(attn_implementation="eager"), TableLM.random()):
        mine = _fresh(drafter)
        for prompt in _PROMPTS:
            wanted = _plain(model, _ids(prompt), 40)
            assert torch.equal(generate(model, _ids(prompt), mine, max_new_tokens=40).sequences, wanted)


def custom_generate_equals_plain(drafter: Drafter) -> None:
    """``model.generate(custom_generate=drafter)`` gives plain decoding's output, penalties included."""
    model = tiny_causal_lm()
    for settings in ({}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3}, {"eos_token_id": 5}):
        wanted = _plain(model, _ids(_PROMPTS[0]), 30, **settings)
        assert torch.equal(_plain(model, _ids(_PROMPTS[0]), 30, custom_generate=drafter, **settings), wanted)


def ends_exactly(drafter: Drafter) -> None:
    """Generation stops with the first end token, and never emits more than ``max_new_tokens``."""
    model = tiny_causal_lm()
    for new in (0, 1, 2, 7):
        assert generate(model, _ids(_PROMPTS[0]), drafter, max_new_tokens=new).sequences.shape[1] == 8 + new
    free = _plain(model, _ids(_PROMPTS[0]), 40)[0, 8:].tolist()
    for end in sorted(set(free)):
        got = generate(model, _ids(_PROMPTS[0]), drafter, max_new_tokens=40, eos_token_id=end).sequences[0, 8:]
        assert got.tolist() == free[: free.index(end) + 1]


def batch_equals_single(drafter: Drafter) -> None:
    """Rows of a ragged batch, padded on either side, equal the same prompts decoded alone."""
    model = tiny_causal_lm()
    longest = max(map(len, _PROMPTS))
    for left in (True, False):
        pads = [[0] * (longest - len(p)) for p in _PROMPTS]
        ids = torch.tensor([[*z, *p] if left else [*p, *z] for p, z in zip(_PROMPTS, pads, strict=True)])
        ones = [[1] * len(p) for p in _PROMPTS]
        mask = torch.tensor([[*z, *o] if left else [*o, *z] for o, z in zip(ones, pads, strict=True)])
        got = generate(model, ids, _fresh(drafter), max_new_tokens=25, attention_mask=mask, eos_token_id=5)
        for row, prompt in enumerate(_PROMPTS):
            alone = generate(model, _ids(prompt), _fresh(drafter), max_new_tokens=25, eos_token_id=5)
            new = alone.sequences[0, len(prompt) :]
            assert torch.equal(got.sequences[row, longest : longest + len(new)], new)


def trees_are_well_formed(drafter: Drafter) -> None:
    """Trees start at the root, hold known tokens only, and state distributions that could have drawn their nodes."""
    model = TableLM.random()
    for temperature in (0.0, 1.0):
        for tree, context in _trees(_fresh(drafter), model, temperature):
            assert tree.tokens[0] == context.root
            drafted = tree.tokens[1:]
            assert ((drafted >= -1) & (drafted < VOCABULARY)).all()
            assert ((drafted == -1).sum() > 0) == (tree.embeddings is not None)
            if tree.confidence is not None:
                parents = torch.tensor(tree.topology.parent[1:], dtype=torch.long)
                assert (tree.confidence[1:] <= tree.confidence[parents] + 1e-6).all()
                assert ((tree.confidence >= 0) & (tree.confidence <= 1)).all()
            if temperature and tree.distributions is not None:
                for node, below in enumerate(tree.topology.children):
                    for child in below:
                        assert tree.distribution(node)[tree.tokens[child]] > 0


def _trees(drafter: Drafter, model: TableLM, temperature: float) -> list[tuple[TokenTree, Context]]:
    """Run the loop and keep every tree that the drafter proposed."""
    kept: list[tuple[TokenTree, Context]] = []

    class Recorder(type(drafter)):  # type: ignore[misc]
        def propose(self, context: Context) -> TokenTree:
            tree = super().propose(context)
            kept.append((tree, Context(ids=context.ids.clone(), prompt_length=0, room=0, warp=context.warp)))
            return tree

    spy = Recorder(**{f.name: getattr(drafter, f.name) for f in dataclasses.fields(drafter) if f.init})
    for prompt in _PROMPTS:
        generate(model, _ids(prompt), spy, max_new_tokens=20, temperature=temperature, seed=1)
    assert kept
    return kept


def sampling_follows_the_target(drafter: Drafter) -> None:
    """Over many rounds the first token, and the second given the first, are those of the warped target (chi-square)."""
    model = TableLM.random(order=1, scale=1.0)
    for warp in (Warp(temperature=1.0), Warp(temperature=0.7, top_k=8, top_p=0.9)):
        mine, firsts, seconds = _with_cheap_draft_model(_fresh(drafter), model), Counter(), Counter()
        distributions = warp.probabilities(model.table[0])
        generator = torch.Generator().manual_seed(7)
        # warm up, so that drafters which learn have something to say
        generate(model, _ids(_PROMPTS[2]), mine, max_new_tokens=60, temperature=1.0, seed=3)
        context = Context(ids=torch.tensor(_PROMPTS[0]), prompt_length=8, room=6, warp=warp, generator=generator)
        mine.begin(Target(model), context)
        for batch in range(_ROUNDS // 100):
            with nullcontext() if batch == 0 else without_shape_checks():
                for _ in range(100):
                    emitted = _play(mine, context, model, distributions)
                    firsts[emitted[0]] += 1
                    if len(emitted) > 1:
                        seconds[emitted[0], emitted[1]] += 1
        _assert_chi_square(np.array([firsts[t] for t in range(VOCABULARY)]), distributions[_PROMPTS[0][-1]].numpy())
        common = firsts.most_common(1)[0][0]
        counts = np.array([seconds[common, t] for t in range(VOCABULARY)])
        if counts.sum() > 200:
            _assert_chi_square(counts, distributions[common].numpy())


def _play(drafter: Drafter, context: Context, model: TableLM, distributions: torch.Tensor) -> list[int]:
    """Play one round and return what it emits; nothing is committed, so all rounds start alike."""
    tree = drafter.propose(context)
    logits = model.table[0, tree.tokens.clamp_min(0)]
    verdict = drafter.verifier.verify(tree, _KnownProbs(logits, context.warp, distributions, tree), context.generator)
    drafter.observe(context, tree, logits, verdict.path)
    return [*tree.tokens[list(verdict.path[1:])].tolist(), verdict.token]


class _KnownProbs(TargetProbs):
    """The target's distributions, warped once for all rounds: in a first-order law they depend on the token alone."""

    def __init__(self, logits: torch.Tensor, warp: Warp, distributions: torch.Tensor, tree: TokenTree) -> None:
        super().__init__(logits, logits.argmax(-1), warp)
        self.distributions, self.tokens = distributions, tree.tokens.clamp_min(0)

    def probabilities(self, node: int) -> torch.Tensor:
        return self.distributions[self.tokens[node]]


def _with_cheap_draft_model(drafter: Drafter, target: TableLM) -> Drafter:
    """Let a drafter with a draft model use a table that resembles the target's: ten times faster, and accepted more."""
    if "draft_model" not in {f.name for f in dataclasses.fields(drafter) if f.init}:
        return drafter
    noise = TableLM.random(order=1, scale=0.7, seed=1).table
    return dataclasses.replace(drafter, draft_model=TableLM((0.7 * target.table + noise)[0]))


def _assert_chi_square(counts: np.ndarray, probs: np.ndarray) -> None:
    """Compare counts with a distribution; the bound is the 1e-4 quantile by Wilson and Hilferty's approximation."""
    assert counts[probs == 0].sum() == 0, "a token of probability 0 was emitted"
    expected = probs[probs > 0] / probs.sum() * counts.sum()
    statistic = ((counts[probs > 0] - expected) ** 2 / expected).sum()
    freedom = int((probs > 0).sum()) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < bound, f"chi-square {statistic:.1f} with {freedom} degrees of freedom (bound {bound:.1f})"


def seeds_reproduce(drafter: Drafter) -> None:
    """The same seed gives the same sample from fresh drafters, another seed another one."""
    model = TableLM.random(scale=0.5)

    def sample(seed: int) -> list[int]:
        out = generate(model, _ids(_PROMPTS[0]), _fresh(drafter), max_new_tokens=40, temperature=1.0, seed=seed)
        return out.sequences[0].tolist()

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def statistics_add_up(drafter: Drafter) -> None:
    """The stats account for every token: one per round, plus what was accepted."""
    for temperature in (0.0, 1.0):
        stats = generate(
            TableLM.random(), _ids(_PROMPTS[2]), drafter, max_new_tokens=30, temperature=temperature, seed=0
        ).stats
        assert stats.new_tokens == 30 == stats.rounds + sum(stats.accepted)
        assert stats.rounds == stats.target_forwards
        assert all(a <= o for a, o in zip(stats.accepted, stats.offered, strict=True))


def another_vocabulary_is_refused_or_served(drafter: Drafter) -> None:
    """A drafter bound to one vocabulary serves a model with another one rightly, or says why not in one line."""
    mine = _fresh(drafter)
    generate(tiny_causal_lm(), _ids(_PROMPTS[0]), mine, max_new_tokens=8)
    other = tiny_causal_lm(vocab_size=VOCABULARY + 4)
    refusal = None
    try:
        got = generate(other, _ids(_PROMPTS[0]), mine, max_new_tokens=8).sequences
    except UserError as error:
        refusal = str(error)
    if refusal is None:
        assert torch.equal(got, _plain(other, _ids(_PROMPTS[0]), 8))
    else:
        assert str(VOCABULARY) in refusal
        assert "\n" not in refusal


LAWS = (
    a_wrong_setting_is_refused,
    greedy_equals_plain,
    custom_generate_equals_plain,
    ends_exactly,
    batch_equals_single,
    trees_are_well_formed,
    sampling_follows_the_target,
    seeds_reproduce,
    statistics_add_up,
    another_vocabulary_is_refused_or_served,
)

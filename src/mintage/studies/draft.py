"""The papers' claims as tests: what is compared with what, and from where on it holds.

A `Claim` is about a measured run and names the arms it needs; ``mintage bench METHOD`` runs the arms of all its claims,
and any other bench run tests the claims whose arms it happens to have. An `ExactClaim` needs no model: it enumerates.

The methods with a draft model are compared at an equal budget of 14 drafted nodes per target forward.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from mintage.bench.draft.arms import (
    AUTO,
    CHAIN,
    COLD,
    DYSPEC,
    EVERYTHING,
    FIXED,
    GENERATE,
    INDEPENDENT,
    LOOKUP,
    PPD,
    RECYCLING,
    RSD_C,
    RSD_S,
    UNION,
)
from mintage.bench.draft.run import Run
from mintage.draft.baselines import PromptLookup
from mintage.draft.contract import Context
from mintage.draft.core.acceptance import exact_acceptance, random_pairs
from mintage.draft.core.distilled import FrequentTokenHead
from mintage.draft.core.target import Target
from mintage.draft.core.warp import Warp
from mintage.draft.training.distilled import Accuracy, accuracy_along, step_cost
from mintage.draft.training.ppd import Continuation, frequency_accuracy, guess_accuracy, text_initialised
from mintage.measure import Interval, bootstrap, bootstrap_ratio
from mintage.models import rounded_copy

__all__ = ["CLAIMS", "EXACT_CLAIMS", "Claim", "ExactClaim"]

MANY, ONE = "spectr:num_drafts=8,draft_len=4", "spectr:num_drafts=1,draft_len=4"

COPYING = ("summarise", "extraction")
"""Categories whose answers repeat the prompt; look-up is made for them."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One testable sentence.

    Parameters
    ----------
    method
        Catalogue name.
    text
        The sentence, threshold included.
    arms
        Arms that must be in the run.
    metric, unit
        What `measure` returns.
    measure
        From the run to the number and its interval.
    holds
        From the interval to the verdict.
    compare
        Other arms' numbers for the row: baselines and peers.
    when
        At which temperatures the paper claims it: 0, or above.
    tested
        What `holds` is asked about, where it is not the row's own number.
    note
        What a reader of the row must know.
    higher_is_better
        Direction of the metric.
    n
        What the interval is over, where it is not the prompts.
    """

    method: str
    text: str
    arms: tuple[str, ...]
    metric: str
    unit: str
    measure: Callable[[Run], Interval]
    holds: Callable[[Interval], bool]
    compare: Callable[[Run], tuple[dict[str, float], dict[str, float]]] = lambda run: ({}, {})
    when: Literal["greedy", "sampling"] = "greedy"
    exact_dtype: bool = False
    """Whether the claim is about exact arithmetic, so only tested in float32."""
    applies: Callable[[Run], bool] = lambda run: True
    """Whether the run has the prompts that the claim is about."""
    tested: Callable[[Run], Interval] | None = None
    note: Callable[[Run], str] = lambda run: ""
    higher_is_better: bool = True
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExactClaim:
    """A claim about laws of the next token, tested by exact enumeration over random pairs of them."""

    method: str
    text: str
    metric: str
    unit: str
    n: int
    measure: Callable[[], tuple[Interval, dict[str, float], dict[str, float], bool]]
    """Returns the number, baselines, peers and the verdict."""
    settings: dict[str, Any]


def _forwards_ratio(run: Run, arm: str, over: str, categories: tuple[str, ...] | None = None) -> Interval:
    """Tokens per forward of `arm` over `over`'s on the same prompts, summed over those of `categories`."""
    chosen = [i for i, p in enumerate(run.prompts) if categories is None or p.category in categories]
    a, b = ([run.measurements[name].answers[i].stats for i in chosen] for name in (arm, over))
    # both arms emit (almost) equally many tokens, so the ratio is over forwards per token
    return bootstrap_ratio([s.rounds / s.new_tokens for s in b], [s.rounds / s.new_tokens for s in a])


def _best(run: Run, arms: tuple[str, ...]) -> str:
    """The arm with the most tokens per forward over the whole run."""
    return max(arms, key=lambda arm: run.measurements[arm].tokens_per_forward.value)


def _not_copying(run: Run) -> tuple[str, ...]:
    return tuple({p.category for p in run.prompts} - set(COPYING))


def _forwards(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    values = {name: run.measurements[name].tokens_per_forward.value for name in run.same_arithmetic}
    return {GENERATE: values.pop(GENERATE)}, values


def _speeds(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    return {GENERATE: 1.0}, {name: run.speed_up(name).value for name in run.measurements if name != GENERATE}


def _texts(run: Run) -> list[Continuation]:
    """The prompts with ``generate``'s answers: in a greedy run, what the target itself would say."""
    texts = []
    for prompt, answer in zip(run.prompts, run.measurements[GENERATE].answers, strict=True):
        ids = run.ids(prompt)[0].tolist()
        texts.append(Continuation((*ids, *answer.tokens), len(ids)))
    return texts


# -- how often trained prompt tokens guess right ------------------------------------------------------------------

_TRAINED, _UNTRAINED, _FREQUENT = "trained", "untrained (from words)", "most frequent successor"
_FOLDS = 6


def _guesses(run: Run) -> dict[str, np.ndarray]:
    """Right guesses at every cut of ``generate``'s answers: rival to (prompts, distances, ranks), and cuts per prompt.

    The answers are the model's own continuations of prompts that nobody trained on. What a token's most frequent
    successors are, is counted on the answers of the other prompts, in folds.
    """
    if "guesses" in run.memo:
        return run.memo["guesses"]
    drafter: Any = run.arms[PPD].drafter
    trained, target = drafter.tokens, Target(run.lm.model)
    usable = [text for text in _texts(run) if text.cuts(trained.distances + 1)]
    cuts = np.array([len(text.cuts(trained.distances + 1)) for text in usable], dtype=float)
    untrained = text_initialised(run.lm, distances=trained.distances, copies=trained.copies)
    ranks = trained.ranks
    found: dict[str, np.ndarray] = {"cuts": cuts}
    for name, tokens in ((_TRAINED, trained.to(target.device)), (_UNTRAINED, untrained)):
        shares = [guess_accuracy(target, tokens, [text], ranks=ranks).numpy() for text in usable]
        found[name] = np.array(shares).reshape(-1, trained.distances, ranks) * cuts[:, None, None]
    shares = []
    for i, text in enumerate(usable):
        known = [other for j, other in enumerate(usable) if j % _FOLDS != i % _FOLDS]
        shares.append(frequency_accuracy(known, [text], distances=trained.distances, ranks=ranks).numpy())
    found[_FREQUENT] = np.array(shares).reshape(-1, trained.distances, ranks) * cuts[:, None, None]
    run.memo["guesses"] = found
    return found


def _hits(run: Run, rival: str, distance: int, best: int) -> np.ndarray:
    """Right guesses per prompt among the `best` first ones for the token `distance` ahead; prompt token 1 guesses 2."""
    return _guesses(run)[rival][:, distance - 2, :best].sum(-1)


def _guess_claim(distance: int, best: int) -> Claim:
    def accuracy(run: Run, rival: str) -> Interval:
        return bootstrap_ratio(_hits(run, rival, distance, best), _guesses(run)["cuts"])

    def lead(run: Run) -> Interval:
        """Trained minus the better rival."""
        rival = max((_UNTRAINED, _FREQUENT), key=lambda name: accuracy(run, name).value)
        more = _hits(run, _TRAINED, distance, best) - _hits(run, rival, distance, best)
        return bootstrap_ratio(more, _guesses(run)["cuts"])

    def note(run: Run) -> str:
        drafter: Any = run.arms[PPD].drafter
        numbers = drafter.tokens.embeddings.numel()
        return (
            f"{numbers} trained numbers (S x d); {int(_guesses(run)['cuts'].sum())} places in generate's answers to "
            "prompts that were not trained on; successors are counted on the answers to other prompts"
        )

    return Claim(
        method="ppd",
        text=f"trained prompt tokens guess the token {distance} ahead (top-{best}) more often than untrained ones and "
        "than the last token's most frequent successors",
        arms=(PPD,),
        metric=f"top-{best} accuracy {distance} tokens ahead, trained prompt tokens",
        unit="share",
        measure=lambda run: accuracy(run, _TRAINED),
        tested=lead,
        holds=lambda x: x.low > 0,
        compare=lambda run: (
            {_UNTRAINED: accuracy(run, _UNTRAINED).value},
            {_FREQUENT: accuracy(run, _FREQUENT).value},
        ),
        applies=lambda run: len(_guesses(run)["cuts"]) > 1,
        note=note,
    )


# -- how good a small draft model is ------------------------------------------------------------------------------

_AGREEMENT, _STEP, _STEP_PAIRS = 0.6, 0.15, 20


def _is_distilled(run: Run) -> bool:
    """Whether the run's draft model is one of `mintage.draft.core.distilled`; the claims are about no other."""
    return isinstance(getattr(run.draft_model, "lm_head", None), FrequentTokenHead)


def _choices(run: Run) -> Accuracy:
    """How often the draft model's likeliest tokens hold the target's greedy choice, along ``generate``'s answers."""
    if "choices" not in run.memo:
        run.memo["choices"] = accuracy_along(run.draft_model, _texts(run))
    return run.memo["choices"]


def _rival_choices(run: Run) -> tuple[dict[str, float], dict[str, float]]:
    """How often guesses that need no small model are the target's choice, and those of a model as large as itself."""
    texts = _texts(run)
    successor, repeated = 0, 0
    for i, text in enumerate(texts):
        known = [other for j, other in enumerate(texts) if j % _FOLDS != i % _FOLDS]
        successor += _successors_right(known, text)
        repeated += _repeats_right(run, text)
    total = sum(len(text.ids) - text.prompt for text in texts)
    copied = accuracy_along(rounded_copy(run.lm.model, bits=4), texts, within=(1,)).within[1].value
    return {_FREQUENT: successor / total}, {"prompt-lookup": repeated / total, "4-bit-rounded copy": copied}


def _successors_right(known: Sequence[Continuation], text: Continuation) -> int:
    """Answer tokens that most often followed the token before them in the `known` texts."""
    after: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for other in known:
        for token, later in zip(other.ids, other.ids[1:], strict=False):
            after[token][later] += 1
    pairs = zip(text.ids[text.prompt - 1 :], text.ids[text.prompt :], strict=False)
    return sum([later for later, _ in after[token].most_common(1)] == [truth] for token, truth in pairs)


def _repeats_right(run: Run, text: Continuation) -> int:
    """Answer tokens that prompt look-up would draft."""
    lookup, right = PromptLookup(length=1), 0
    for end in range(text.prompt, len(text.ids)):
        context = Context(ids=torch.tensor(text.ids[:end]), prompt_length=text.prompt, room=1, warp=Warp())
        lookup.begin(Target(run.lm.model), context)
        right += lookup.propose(context).tokens[1:].tolist() == [text.ids[end]]
    return right


def _choices_note(run: Run) -> str:
    more = ", ".join(f"{share.value:.3g} within {k}" for k, share in _choices(run).within.items() if k > 1)
    return (
        f"{_choices(run).tokens} places in generate's answers to prompts that were not trained on; {more}; "
        "successors are counted on the answers to other prompts; the rounded copy costs as much as the target"
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        method="speculative",
        text=f"the distilled drafter's likeliest token is the target's greedy choice at >= {_AGREEMENT:g} of places",
        arms=(CHAIN,),
        metric="greedy agreement with the target",
        unit="share",
        measure=lambda run: _choices(run).within[1],
        holds=lambda x: x.value >= _AGREEMENT,
        compare=_rival_choices,
        applies=_is_distilled,
        note=_choices_note,
    ),
    Claim(
        method="speculative",
        text=f"a step of the distilled drafter costs <= {_STEP:g} of the target's",
        arms=(CHAIN,),
        metric="step cost relative to the target",
        unit="x",
        measure=lambda run: step_cost(run.lm, run.draft_model, rounds=_STEP_PAIRS),
        holds=lambda x: x.value <= _STEP,
        compare=lambda run: ({"the target": 1.0}, {}),
        applies=_is_distilled,
        note=lambda run: "a forward over one token after 256 in the cache, paired with the target's",
        higher_is_better=False,
        n=_STEP_PAIRS,
    ),
    Claim(
        method="token-recycling",
        text="hot Token Recycling emits >= 1.7 tokens per target forward",
        arms=(RECYCLING,),
        metric="tokens per target forward, hot",
        unit="tokens",
        measure=lambda run: run.measurements[RECYCLING].tokens_per_forward,
        holds=lambda x: x.value >= 1.7,
        compare=_forwards,
    ),
    Claim(
        method="token-recycling",
        text="a hot table beats a cold one",
        arms=(RECYCLING, COLD),
        metric="tokens per target forward, hot over cold",
        unit="x",
        measure=lambda run: _forwards_ratio(run, RECYCLING, COLD),
        holds=lambda x: x.low > 1,
    ),
    Claim(
        method="token-recycling",
        text="faster than plain generate on this machine (tree size from the latency curve)",
        arms=(AUTO,),
        metric="speed over generate, median prompt, budget=auto",
        unit="x",
        measure=lambda run: run.speed_up(AUTO),
        holds=lambda x: x.low > 1,
        compare=_speeds,
    ),
    Claim(
        method="token-recycling",
        text="beats transformers' prompt lookup in tokens per forward on prompts that do not copy",
        arms=(RECYCLING,),
        metric="tokens per target forward over prompt lookup's, non-copying prompts",
        unit="x",
        measure=lambda run: _forwards_ratio(run, RECYCLING, LOOKUP, _not_copying(run)),
        holds=lambda x: x.low > 1,
        applies=lambda run: sum(p.category in _not_copying(run) for p in run.prompts) > 1,
    ),
    Claim(
        method="token-recycling",
        text="output identical to plain greedy decoding on every prompt (float32)",
        arms=(RECYCLING,),
        metric="outputs identical, float32",
        unit="share",
        measure=lambda run: Interval(*[run.identical(RECYCLING)] * 3),
        holds=lambda x: x.value == 1,
        exact_dtype=True,
    ),
    Claim(
        method="union",
        text="recycling and look-up together are faster than transformers' prompt lookup",
        arms=(UNION,),
        metric="throughput over prompt lookup (transformers)",
        unit="x",
        measure=lambda run: run.pairs.ratio(LOOKUP, UNION, of="sums"),
        holds=lambda x: x.low > 1,
        compare=lambda run: ({LOOKUP: 1.0}, {}),
    ),
    Claim(
        method="union",
        text="DySpec with the distilled drafter, recycling and look-up together emit >= 2.2 tokens per target forward "
        "(greedy)",
        arms=(EVERYTHING,),
        metric="tokens per target forward, DySpec, recycling and look-up",
        unit="tokens",
        measure=lambda run: run.measurements[EVERYTHING].tokens_per_forward,
        holds=lambda x: x.value >= 2.2,
        compare=_forwards,
        applies=_is_distilled,
    ),
    Claim(
        method="rsd",
        text="RSD-C emits more tokens per forward than independent siblings on the same tree (14 nodes, sampling)",
        arms=(RSD_C, INDEPENDENT),
        metric="tokens per target forward, RSD-C over SpecInfer",
        unit="x",
        measure=lambda run: _forwards_ratio(run, RSD_C, INDEPENDENT),
        holds=lambda x: x.low > 1,
        compare=_forwards,
        when="sampling",
    ),
    Claim(
        method="rsd",
        text="RSD-S emits at least as many tokens per forward as RSD-C at the same budget (14 nodes, sampling)",
        arms=(RSD_S, RSD_C),
        metric="tokens per target forward, RSD-S over RSD-C",
        unit="x",
        measure=lambda run: _forwards_ratio(run, RSD_S, RSD_C),
        holds=lambda x: x.value >= 1,
        when="sampling",
    ),
    Claim(
        method="rsd",
        text="RSD-S beats a single speculative chain of the same length in tokens per forward (sampling)",
        arms=(RSD_S, CHAIN),
        metric="tokens per target forward, RSD-S over one chain",
        unit="x",
        measure=lambda run: _forwards_ratio(run, RSD_S, CHAIN),
        holds=lambda x: x.low > 1,
        when="sampling",
    ),
    *(
        Claim(
            method="dyspec",
            text=f"DySpec emits >= 5% more tokens per forward than the best fixed tree of 14 nodes ({when})",
            arms=(DYSPEC, *FIXED),
            metric=f"tokens per target forward over the best fixed tree, {when}",
            unit="x",
            measure=lambda run: _forwards_ratio(run, DYSPEC, _best(run, FIXED)),
            holds=lambda x: x.value >= 1.05,
            compare=_forwards,
            when=when,
        )
        for when in ("greedy", "sampling")
    ),
    Claim(
        method="spectr",
        text="eight drafts emit >= 1.2 times the tokens per forward of one draft of the same length (sampling)",
        arms=(MANY, ONE),
        metric="tokens per target forward, 8 drafts over 1",
        unit="x",
        measure=lambda run: _forwards_ratio(run, MANY, ONE),
        holds=lambda x: x.value >= 1.2,
        compare=_forwards,
        when="sampling",
    ),
    Claim(
        method="spectr",
        text="eight drafts of four tokens by the distilled drafter emit >= 1.8 tokens per target forward (sampling)",
        arms=(MANY,),
        metric="tokens per target forward, eight drafts of the distilled drafter",
        unit="tokens",
        measure=lambda run: run.measurements[MANY].tokens_per_forward,
        holds=lambda x: x.value >= 1.8,
        compare=_forwards,
        applies=_is_distilled,
        when="sampling",
    ),
    Claim(
        method="ppd",
        text="trained prompt tokens emit >= 1.3 tokens per forward",
        arms=(PPD,),
        metric="tokens per target forward, trained prompt tokens",
        unit="tokens",
        measure=lambda run: run.measurements[PPD].tokens_per_forward,
        holds=lambda x: x.value >= 1.3,
        compare=_forwards,
    ),
    *(_guess_claim(distance, best) for distance in (2, 3) for best in (1, 10)),
)


# -- claims by enumeration ----------------------------------------------------------------------------------------

_PAIRS = 2000


def _acceptance(scale: float, correlation: float, better: str, others: tuple[str, ...]) -> Any:
    """Compare mean acceptance of rules over random pairs with logits of this scale and correlation, three siblings."""

    def measure() -> tuple[Interval, dict[str, float], dict[str, float], bool]:
        p, q = random_pairs(scale, correlation, pairs=_PAIRS)
        values = {rule: exact_acceptance(p, q, 3, rule).numpy() for rule in (better, *others)}
        means = {rule: float(v.mean()) for rule, v in values.items()}
        holds = all(bootstrap(values[better] - values[other]).low > 0 for other in others)
        baseline, *peers = others
        return bootstrap(values[better]), {baseline: means[baseline]}, {p: means[p] for p in peers}, holds

    return measure


def _exact(
    method: str, text: str, scale: float, correlation: float, better: str, others: tuple[str, ...]
) -> ExactClaim:
    return ExactClaim(
        method=method,
        text=text,
        metric=f"mean acceptance of 3 siblings, logit scale {scale:g}, correlation {correlation:g}",
        unit="probability",
        n=_PAIRS,
        measure=_acceptance(scale, correlation, better, others),
        settings={"vocabulary": 6, "siblings": 3, "scale": scale, "correlation": correlation},
    )


EXACT_CLAIMS: tuple[ExactClaim, ...] = (
    _exact(
        "rsd",
        "on peaked laws RSD accepts more than a chain, independent siblings and K-SEQ (exact)",
        1.5,
        0.7,
        "rsd",
        ("chain", "specinfer", "kseq"),
    ),
    _exact(
        "rsd",
        "on flat laws, too, RSD accepts more than a chain and independent siblings (exact; K-SEQ may win there)",
        0.7,
        0.7,
        "rsd",
        ("chain", "specinfer"),
    ),
    _exact(
        "spectr",
        "on flat laws K-SEQ accepts more than SpecInfer's rule and RSD (exact)",
        0.7,
        0.7,
        "kseq",
        ("specinfer", "rsd"),
    ),
    _exact(
        "spectr", "K-SEQ accepts more than SpecInfer's rule on peaked laws (exact)", 1.5, 0.0, "kseq", ("specinfer",)
    ),
)

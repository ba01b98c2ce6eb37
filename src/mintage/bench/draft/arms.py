"""The decoders that a bench of drafters runs beside each other: transformers' own, drafters, and llama.cpp.

Which ones run by default, what they are called in rows and claims, and what each drafter's shape is at a given node
budget. Not here: running them (`mintage.bench.draft.run`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mintage import catalog
from mintage.draft.contract import Drafter
from mintage.draft.core.compiled import CompiledTarget
from mintage.draft.core.loop import Stats, generate
from mintage.draft.core.target import Target
from mintage.draft.ppd import PPD as PPDDrafter
from mintage.draft.union import Union
from mintage.errors import UserError
from mintage.models import EMBEDDED, CausalLM, embedded_gguf, rounded_copy

__all__ = [
    "Arm",
    "at_budgets",
    "bare",
    "default_arms",
    "default_specs",
    "is_cold",
    "learners",
    "needs_draft_model",
]

GENERATE = "generate (transformers)"
LOOKUP = "prompt lookup (transformers)"
ASSISTED = "assisted (transformers, 4-bit copy)"
ASSISTED_SAME = "assisted (transformers, same draft)"
LLAMA_CPP = "llama.cpp (Q4_1)"

RECYCLING = "token-recycling"
COLD = "token-recycling cold"
AUTO = "token-recycling:budget=auto"
UNION = "token-recycling:budget=auto+prompt-lookup"
EVERYTHING = "dyspec:budget=14+token-recycling:budget=24+prompt-lookup"

CHAIN = "speculative:length=7"
INDEPENDENT = "specinfer:branching=2x2x2"
RSD_C = "rsd:branching=2x2x2"
RSD_S = "rsd:width=2,depth=7"
SPECTR = "spectr:num_drafts=2,draft_len=7"
DYSPEC = "dyspec:budget=14"
FIXED = (CHAIN, INDEPENDENT, RSD_C, RSD_S, SPECTR)
"""Tree shapes of 14 nodes that do not look at the context (the chain has 7)."""

PPD = "ppd"

DEFAULT = (RECYCLING, COLD, AUTO, "prompt-lookup", UNION)
"""Drafters of ``mintage bench draft`` that need nothing but the target."""

WITH_DRAFT_MODEL = (*FIXED, DYSPEC, EVERYTHING)
"""Those that join them when a draft model is at hand."""

Decode = Callable[[Tensor, float, int, int], tuple[Tensor, Stats]]
"""``(ids, temperature, max_new_tokens, seed) -> (emitted tokens, what they cost)``."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A decoder under test.

    Parameters
    ----------
    name
        What rows call it.
    decode
        Answers a prompt; a hot drafter keeps what it learns.
    fresh
        Makes a decoder of the same kind that has learned nothing, for what is measured aside.
    drafter
        What a hot arm keeps from prompt to prompt; None for cold arms and other people's decoders.
    draft_model
        The model that it drafts with, if any.
    series, budget
        Line and point of the budget curve that it belongs to.
    note
        What a reader of its rows must know; empty for arms that run the same model in the same arithmetic.
    """

    name: str
    decode: Decode
    fresh: Callable[[], Decode]
    drafter: Drafter | None = None
    draft_model: Any = None
    series: str = ""
    budget: int | None = None
    note: str = ""


def learners(drafter: Any) -> list[Any]:
    """Tell which of a drafter and its parts keep something across requests: those that can save and load it."""
    parts = (drafter, *getattr(drafter, "drafters", ()))
    return [part for part in parts if hasattr(part, "save") and hasattr(part, "load")]


# -- transformers -------------------------------------------------------------------------------------------------


@dataclass
class _Read:
    """Forwards of a model, and the tokens that they read."""

    forwards: int = 0
    tokens: int = 0


@contextmanager
def _counted(model: Any) -> Iterator[_Read]:
    """Count a model's forwards while in the context, for decoders that do not tell; no hook stays behind."""
    read = _Read()

    def count(_: Any, args: tuple[Any, ...], given: dict[str, Any], __: Any) -> None:
        ids = given.get("input_ids", args[0] if args else None)
        read.forwards += 1
        read.tokens += 0 if ids is None else ids.shape[1]

    handle = None if model is None else model.register_forward_hook(count, with_kwargs=True)
    try:
        yield read
    finally:
        if handle is not None:
            handle.remove()


def _transformers_arm(name: str, lm: CausalLM, **settings: Any) -> Arm:
    assistant = settings.get("assistant_model")

    def decode(ids: Tensor, temperature: float, new: int, seed: int) -> tuple[Tensor, Stats]:
        torch.manual_seed(seed)
        # what the model's generation config would add is switched off: the drafters' arms do not have it
        sampling: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
        if temperature:
            sampling |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        model: Any = lm.model
        with _counted(model) as target, _counted(assistant) as draft:
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                pad_token_id=lm.tokenizer.pad_token_id or 0,
                **sampling,
                **settings,
            )
        prompt = ids.shape[1]
        emitted = out[0, prompt:]
        # its prefill emits a token too, so that every forward counts as a round, and the prompt's end as a root
        stats = Stats(
            prompt_tokens=prompt,
            new_tokens=len(emitted),
            rounds=target.forwards,
            target_forwards=target.forwards,
            tree_nodes=target.tokens - prompt + 1,
            draft_forwards=draft.forwards,
            draft_tokens=draft.tokens,
        )
        return emitted, stats

    return Arm(name=name, decode=decode, fresh=lambda: decode, draft_model=assistant)


# -- drafters -----------------------------------------------------------------------------------------------------

COLD_WORD, COMPILED = "cold", "compiled"


def _words(spec: str) -> list[str]:
    """What stands behind a spec: ``cold`` forgets between prompts, ``compiled`` scores with a compiled step."""
    return spec.split(" ")[1:]


def bare(spec: str) -> str:
    """Return a spec without the words behind it.

    Raises
    ------
    UserError
        A word is neither ``cold`` nor ``compiled``.
    """
    for word in _words(spec):
        if word not in (COLD_WORD, COMPILED):
            raise UserError(f"{spec!r}: {word!r} is not known; write NAME, 'NAME cold' or 'NAME compiled'")
    return spec.split(" ")[0]


def is_cold(spec: str) -> bool:
    """Whether the arm forgets what it learned after every prompt."""
    return COLD_WORD in _words(spec)


def needs_draft_model(spec: str) -> bool:
    """Whether a drafter spec names a method with a draft model.

    Raises
    ------
    UserError
        It names a method that does not exist, or is not a drafter.
    """
    parts = bare(spec).split("+")
    names = [catalog.parse_spec(part)[0] for part in parts if ":" in part or "=" not in part]
    return any("draft_model" in catalog.hyperparameters(catalog.find(name, "draft").load()) for name in names)


def _drafter_arm(lm: CausalLM, spec: str, draft_model: Any, series: str = "", budget: int | None = None) -> Arm:
    given = {} if draft_model is None else {"draft_model": draft_model}

    def make() -> Drafter:
        return Union.from_spec(bare(spec), **given)

    def decoder(kept: Drafter | None) -> Decode:
        def decode(ids: Tensor, temperature: float, new: int, seed: int) -> tuple[Tensor, Stats]:
            drafter = make() if kept is None else kept
            sampling = {"temperature": temperature, "seed": seed}
            out = generate(lm.model, ids, drafter, max_new_tokens=new, compile=compiled, **sampling)
            return out.sequences[0, ids.shape[1] :], out.stats

        return decode

    made, compiled = make(), COMPILED in _words(spec)  # a bad spec is told here, before anything is measured
    if compiled:
        CompiledTarget(lm.model)  # compiled here, not while the clock runs
    kept = None if is_cold(spec) else made
    return Arm(
        name=spec,
        decode=decoder(kept),
        fresh=lambda: decoder(make()),
        drafter=kept,
        draft_model=draft_model,
        series=series,
        budget=budget,
    )


# -- llama.cpp ----------------------------------------------------------------------------------------------------


def _llama_cpp_arm(lm: CausalLM) -> Arm:
    """Decode the embedded model's own file greedily with llama.cpp, on as many threads as torch uses."""
    import llama_cpp

    threads = torch.get_num_threads()
    model = llama_cpp.Llama(
        str(embedded_gguf()),
        n_ctx=Target(lm.model).positions,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    ends = lm.model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = {ends} if isinstance(ends, int) else set(ends or ())

    def decode(ids: Tensor, temperature: float, new: int, seed: int) -> tuple[Tensor, Stats]:
        model.reset()  # else it keeps the rows of the last prompt's beginning
        emitted: list[int] = []
        for token in model.generate(ids[0].tolist(), temp=0.0, repeat_penalty=1.0):
            emitted.append(token)
            if token in ends or len(emitted) == new:
                break
        count = len(emitted)
        stats = Stats(prompt_tokens=ids.shape[1], new_tokens=count, rounds=count, target_forwards=count)
        return torch.tensor(emitted, dtype=torch.long), stats

    note = (
        f"llama.cpp {llama_cpp.__version__} on {threads} threads: the same weights as shipped (Q4_1), "
        "activations in 8 bits; another quantisation and other arithmetic than the other arms"
    )
    return Arm(name=LLAMA_CPP, decode=decode, fresh=lambda: decode, note=note)


# -- which arms ---------------------------------------------------------------------------------------------------


def default_specs(lm: CausalLM, *, draft_model: bool) -> list[str]:
    """List the usual drafters: those that need nothing, those with a draft model if there is one, PPD if it fits."""
    return [*DEFAULT, *(WITH_DRAFT_MODEL if draft_model else ()), *([PPD] if _prompt_tokens_fit(lm) else ())]


def _prompt_tokens_fit(lm: CausalLM) -> bool:
    """Whether the prompt tokens that mintage ships were trained for this model."""
    try:
        PPDDrafter().tokens.check(Target(lm.model))
    except UserError:
        return False
    return True


def default_arms(
    lm: CausalLM,
    specs: Sequence[str],
    *,
    draft_model: PreTrainedModel | None = None,
    stand_in: Callable[[], PreTrainedModel] | None = None,
    assisted: bool = True,
    budgets: Sequence[int] = (),
    llama_cpp: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> list[Arm]:
    """Make transformers' arms and one arm per drafter spec.

    Parameters
    ----------
    lm
        The target.
    specs
        Drafter specs as on the command line; ``"NAME cold"`` forgets between prompts. With `budgets`, bare names.
    draft_model
        For drafters that need one; without it `stand_in` is asked when one is needed.
    stand_in
        Makes what drafts where nothing better is at hand; default a 4-bit-rounded copy of the target.
    assisted
        Whether to run transformers' assisted generation too (it costs a draft forward per drafted token).
    budgets
        Make every named drafter once per budget, see `at_budgets`.
    llama_cpp
        Whether to run llama.cpp too, where it is installed and the target is the embedded model on the CPU.
    note
        Told, in one line, what was left out.
    """
    other = cache(stand_in or (lambda: rounded_copy(lm.model)))

    def draft(spec: str) -> PreTrainedModel | None:
        if not needs_draft_model(spec):
            return None
        return other() if draft_model is None else draft_model

    arms = [
        _transformers_arm(GENERATE, lm),
        _transformers_arm(LOOKUP, lm, prompt_lookup_num_tokens=10),
    ]
    if assisted:
        label = ASSISTED if draft_model is None else ASSISTED_SAME
        arms.append(_transformers_arm(label, lm, assistant_model=draft("speculative")))
    if llama_cpp and lm.name == EMBEDDED and lm.model.device.type == "cpu":
        if importlib.util.find_spec("llama_cpp") is None:
            note(
                "llama.cpp is not measured beside: pip install 'mintage[llamacpp]' (docs/draft.md says how to build it)"
            )
        else:
            arms.append(_llama_cpp_arm(lm))
    if budgets:
        shapes = at_budgets(specs, budgets)
    else:
        shapes = [(spec, "", None) for spec in dict.fromkeys(specs)]
    return arms + [_drafter_arm(lm, spec, draft(spec), series, budget) for spec, series, budget in shapes]


# -- shapes of equal budget ---------------------------------------------------------------------------------------


def _rectangle(nodes: int) -> tuple[int, int]:
    """Width and depth of the largest tree of that many nodes that is at least as deep as wide, and nearly square."""
    width = math.isqrt(nodes)
    return width, nodes // width


def _branches(nodes: int) -> str:
    """Branch once, at the root, then run on in chains: width x 1 x 1 ... fills the same rectangle as a beam."""
    width, depth = _rectangle(nodes)
    return "x".join(map(str, [width] + [1] * (depth - 1)))


_SHAPES: dict[str, dict[str, Callable[[int], str]]] = {
    "prompt-lookup": {"prompt-lookup": lambda n: f"prompt-lookup:length={n}"},
    "speculative": {"speculative chain": lambda n: f"speculative:length={n}"},
    "specinfer": {"SpecInfer": lambda n: f"specinfer:branching={_branches(n)}"},
    "rsd": {
        "RSD-C": lambda n: f"rsd:branching={_branches(n)}",
        "RSD-S": lambda n: "rsd:width={},depth={}".format(*_rectangle(n)),
    },
    "spectr": {"SpecTr": lambda n: "spectr:num_drafts={},draft_len={}".format(*_rectangle(n))},
    "ppd": {"PPD": lambda n: f"ppd:limit={max(n, 2)}"},
}
"""Per method: the lines that it gets in the budget curve, and its spec at a budget of n nodes below the root.

Fixed trees fill the same rectangle of width x depth; PPD's nodes and their prompt tokens count together; a method with
a ``budget`` of its own gets it.
"""


def _shapes(name: str) -> dict[str, Callable[[int], str]]:
    if name in _SHAPES:
        return _SHAPES[name]
    if "+" in name:
        parts = [next(iter(_shapes(part).values())) for part in name.split("+")]
        return {name: lambda n: "+".join([*(part(n) for part in parts), f"budget={n}"])}
    if "budget" not in catalog.hyperparameters(catalog.find(name, "draft").load()):
        raise UserError(f"{name} has no shape that follows a node budget; leave it out, or leave out --budgets")
    return {name: lambda n: f"{name}:budget={n}"}


def at_budgets(names: Sequence[str], budgets: Sequence[int]) -> list[tuple[str, str, int]]:
    """Give every named method its shape at every node budget.

    Parameters
    ----------
    names
        Bare names of drafters, or several joined by ``+``.
    budgets
        Nodes below the root that a tree may have.

    Returns
    -------
    list
        Spec, line of the budget curve, and budget of every arm; a spec that two budgets share comes once.

    Raises
    ------
    UserError
        A budget is below 1, a name carries settings or has no shape that follows a budget.
    """
    for budget in budgets:
        if budget < 1:
            raise UserError(f"budget={budget}; a tree has at least 1 node below the root, e.g. --budgets 4,8,16,32")
    arms: dict[str, tuple[str, str, int]] = {}
    for name in names:
        if ":" in name or "=" in name or name != bare(name):
            raise UserError(f"{name!r} has its shape already; with --budgets give bare names, e.g. rsd dyspec")
        for series, shape in _shapes(name).items():
            for budget in sorted(set(budgets)):
                arms.setdefault(shape(budget), (shape(budget), series, budget))
    return list(arms.values())

"""The decoders that a bench of drafters runs beside each other: transformers' own, drafters, other engines.

Which ones run by default, and what they are called in rows and claims. Not here: running them
(`mintage.bench.draft.run`), other engines (`mintage.bench.draft.engines`), and the shape of a drafter at a number of
nodes (`mintage.draft.Drafter.at_nodes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mintage import catalog
from mintage.bench.draft.arm import Arm, Decode
from mintage.bench.draft.engines import engine_arms
from mintage.draft import CompiledTarget, Drafter, Engine, Stats, Target, Union, generate, target_for
from mintage.errors import UserError
from mintage.models import CausalLM, rounded_copy
from mintage.progress import Note, unheard

__all__ = [
    "at_nodes",
    "bare",
    "default_arms",
    "default_specs",
    "is_cold",
    "needs_draft_model",
]

GENERATE = "generate (transformers)"
LOOKUP = "prompt lookup (transformers)"
ASSISTED = "assisted (transformers, 4-bit copy)"
ASSISTED_SAME = "assisted (transformers, same draft)"

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

TRAINED = (PPD,)
"""Those that join them where what they need was trained for the target."""

CURVES = ("token-recycling", "token-recycling+prompt-lookup")
MODEL_CURVES = ("speculative", "specinfer", "rsd", "spectr", "dyspec", "dyspec+token-recycling+prompt-lookup")
"""The usual drafters where every one runs at several numbers of nodes."""


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


_NOTHING_ADDED: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
"""What a model's own generation config would add to the sampling is switched off, in every arm."""


def _transformers_arm(name: str, lm: CausalLM, **settings: Any) -> Arm:
    assistant = settings.get("assistant_model")

    def decode(ids: Tensor, temperature: float, new: int, seed: int) -> tuple[Tensor, Stats]:
        torch.manual_seed(seed)
        sampling: dict[str, Any] = _NOTHING_ADDED | {"do_sample": bool(temperature)}
        sampling |= {"temperature": temperature} if temperature else dict.fromkeys(("top_k", "top_p"))
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

COLD_WORD, COMPILED, NATIVE, FASTER = "cold", "compiled", "native", "auto"


def _words(spec: str) -> list[str]:
    """What stands behind a spec: ``cold`` forgets between prompts, the others are engines."""
    return spec.split(" ")[1:]


def bare(spec: str) -> str:
    """Return a spec without the words behind it.

    Raises
    ------
    UserError
        A word is none of ``cold``, ``compiled``, ``native`` and ``auto``.
    """
    for word in _words(spec):
        if word not in (COLD_WORD, COMPILED, NATIVE, FASTER):
            words = "'NAME cold', 'NAME compiled', 'NAME native' or 'NAME auto'"
            raise UserError(f"{spec!r}: {word!r} is not known; write NAME, {words}")
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


def _drafter_arm(lm: CausalLM, spec: str, draft_model: Any, line: str = "", nodes: int | None = None) -> Arm:
    given = {} if draft_model is None else {"draft_model": draft_model}

    def make() -> Drafter:
        return Union.from_spec(bare(spec), **given)

    def decoder(kept: Drafter | None) -> Decode:
        def decode(ids: Tensor, temperature: float, new: int, seed: int) -> tuple[Tensor, Stats]:
            drafter = make() if kept is None else kept
            sampling = _NOTHING_ADDED | {
                "temperature": temperature,
                "seed": seed,
                "attention_mask": torch.ones_like(ids),
            }
            out = generate(lm.model, ids, drafter, max_new_tokens=new, compile=compiled, engine=engine, **sampling)
            return out.sequences[0, ids.shape[1] :], out.stats

        return decode

    made, compiled = make(), COMPILED in _words(spec)  # a bad spec is told here, before anything is measured
    engine: Engine = next((word for word in ("native", "auto") if word in _words(spec)), "torch")
    if compiled:
        CompiledTarget(lm.model)  # compiled here, not while the clock runs
    elif engine != "torch":
        target_for(lm.model, engine)  # likewise
    kept = None if is_cold(spec) else made
    return Arm(
        name=spec,
        decode=decoder(kept),
        fresh=lambda: decoder(make()),
        drafter=kept,
        draft_model=draft_model,
        line=line,
        nodes=nodes,
    )


# -- which arms ---------------------------------------------------------------------------------------------------


def default_specs(lm: CausalLM, *, draft_model: bool, curves: bool = False) -> list[str]:
    """List the usual drafters: those that need nothing, those with a draft model if there is one, those trained for it.

    With `curves`, by name: each gets its shape at every number of nodes.
    """
    needing_nothing, needing_a_model = (CURVES, MODEL_CURVES) if curves else (DEFAULT, WITH_DRAFT_MODEL)
    trained = [spec for spec in TRAINED if _serves(lm, spec)]
    return [*needing_nothing, *(needing_a_model if draft_model else ()), *trained]


def _serves(lm: CausalLM, spec: str) -> bool:
    """Whether what a drafter needs was trained for this model."""
    try:
        Union.from_spec(spec).check(Target(lm.model))
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
    nodes: Sequence[int] = (),
    engines: bool = False,
    note: Note = unheard,
) -> list[Arm]:
    """Make transformers' arms and one arm per drafter spec.

    Parameters
    ----------
    lm
        The target.
    specs
        Drafter specs as on the command line; ``"NAME cold"`` forgets between prompts. With `nodes`, bare names.
    draft_model
        For drafters that need one; without it `stand_in` is asked when one is needed.
    stand_in
        Makes what drafts where nothing better is at hand; default a 4-bit-rounded copy of the target.
    assisted
        Whether to run transformers' assisted generation too (it costs a draft forward per drafted token).
    nodes
        Make every named drafter once per number of nodes, see `at_nodes`.
    engines
        Whether to run llama.cpp and OpenVINO GenAI too, see `mintage.bench.draft.engines`.
    note
        Told, in one line, what was left out.
    """
    other = cache(stand_in or (lambda: rounded_copy(lm.model)))

    def draft(spec: str) -> PreTrainedModel | None:
        if not needs_draft_model(spec):
            return None
        return other() if draft_model is None else draft_model

    arms = [_transformers_arm(GENERATE, lm), _transformers_arm(LOOKUP, lm, prompt_lookup_num_tokens=10)]
    if assisted:
        label, assistant = (ASSISTED, other()) if draft_model is None else (ASSISTED_SAME, draft_model)
        arms.append(_transformers_arm(label, lm, assistant_model=assistant))
    if engines:
        arms += engine_arms(lm, note)
    shapes = at_nodes(specs, nodes) if nodes else [(spec, "", None) for spec in dict.fromkeys(specs)]
    return arms + [_drafter_arm(lm, spec, draft(spec), line, count) for spec, line, count in shapes]


def at_nodes(names: Sequence[str], nodes: Sequence[int]) -> list[tuple[str, str, int]]:
    """Give every named method its shape at every number of nodes below the root.

    Parameters
    ----------
    names
        Bare names of drafters, or several joined by ``+``, which share the nodes.
    nodes
        At least 1 each.

    Returns
    -------
    list
        Spec, line of the curve, and nodes of every arm; a spec that two numbers share comes once.

    Raises
    ------
    UserError
        A name carries settings or has no shape that follows a number of nodes.
    """
    arms: dict[str, tuple[str, str, int]] = {}
    for name in names:
        if ":" in name or "=" in name or name != bare(name):
            raise UserError(f"{name!r} has its shape already; with --nodes give bare names, e.g. rsd dyspec")
        shapes = {count: _shapes(name, count) for count in sorted(set(nodes))}
        for line in next(iter(shapes.values()), {}):
            for count, specs in shapes.items():
                arms.setdefault(specs[line], (specs[line], line, count))
    return list(arms.values())


def _shapes(name: str, nodes: int) -> dict[str, str]:
    """Return a method's specs at a number of nodes, by the line of the curve; a union takes each part's first."""
    if "+" in name:
        parts = [next(iter(_shapes(part, nodes).values())) for part in name.split("+")]
        return {name: "+".join([*parts, f"budget={nodes}"])}
    kind: type[Drafter] = catalog.find(name, "draft").load()
    shapes = kind.at_nodes(nodes)
    if not shapes:
        raise UserError(f"{name} has no shape that follows a number of nodes; leave it out, or leave out --nodes")
    return {line or name: f"{name}:{settings}" for line, settings in shapes.items()}

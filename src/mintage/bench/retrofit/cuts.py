"""Texts that are cut anywhere, what continues them, and models that vote on their bytes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mintage.bench.retrofit.measures import documents
from mintage.data import texts
from mintage.measure.study import Comparison, Measure, Statistic
from mintage.models import CausalLM
from mintage.retrofit.baselines import PlainContinuation, TokenHealing
from mintage.retrofit.contract import ByteSampler
from mintage.retrofit.core.next_token import ModelDistribution
from mintage.retrofit.exact_bytes import ByteLM

__all__ = [
    "Cut",
    "complete",
    "cut_lines",
    "cut_texts",
    "difference",
    "evenly",
    "follow",
    "healed_by_transformers",
    "measured",
    "passes",
    "samplers",
]


@dataclass(frozen=True)
class Cut:
    """A text that ends anywhere, and what follows."""

    name: str
    kind: str
    prompt: bytes
    rest: bytes
    boundary: bool  # a token of the whole text ends here


def cut_texts(lm: ByteLM, kind: str, number: int, *, spare: int, seed: int) -> list[Cut]:
    """Cut texts of a kind at random characters, with 64 to 256 bytes before and at least `spare` behind."""
    draw, found = np.random.default_rng([seed, len(kind), *kind.encode()]), []
    some = documents(kind, number, size=512, seed=seed)
    for index in range(number):
        document = some[index % len(some)]
        raw = document.text.encode()
        at = int(draw.integers(64, min(256, len(raw) - spare)))
        while raw[at] & 0xC0 == 0x80:
            at -= 1
        ends = lm.vocabulary.length[list(lm.vocabulary.encode(raw) or ())].cumsum()
        found.append(Cut(f"{document.name} {at}", kind, raw[:at], raw[at : at + 64], at in ends))
    return found


SAMPLERS = ("exact-bytes", "token-healing", "plain")
CUTS = {"code": 90, "prose": 70, "de": 20, "ru": 20}


def cut_kinds(lm: ByteLM, kinds: Sequence[str], most: int, *, spare: int, seed: int) -> dict[str, Cut]:
    """Cut texts of several kinds, of each at most `most` and as many as `CUTS` says (20 where it says nothing)."""
    found = [
        cut for kind in kinds for cut in cut_texts(lm, kind, min(most, CUTS.get(kind, 20)), spare=spare, seed=seed)
    ]
    return {f"{number} {cut.kind} {cut.name}": cut for number, cut in enumerate(found)}


def evenly(units: Any, number: int) -> Any:
    """Take about `number` units, evenly."""
    return units[:: max(1, len(units) // number)]


def measured(name: str, units: Mapping[str, Any], of: Callable[..., Any], arms: Sequence[str], *scale: int) -> Measure:
    """Make the measure of ``of(arm, unit, *scale)``."""
    return Measure(name=name, units=lambda run: units, of=lambda run, arm, unit: of(arm, unit, *scale), arms=arms)


def difference(metric: str, ours: str, other: str, of: str, by: Statistic, **told: Any) -> Comparison:
    """Make the row of one sampler minus another; each stands beside it with its own number."""
    beside: dict[str, Any] = {"baseline": (other,), "peers": [name for name in SAMPLERS if name != other]}
    return Comparison(metric=f"{metric}: {ours} minus {other}", ours=ours, rival=other, of=of, by=by, **beside, **told)


def samplers(lm: CausalLM) -> dict[str, ByteSampler]:
    """Return exact bytes and its rivals, each with a cache of its own, so that none profits from another's forwards."""
    exact = ByteLM.of(lm)
    apart = [replace(exact, distribution=ModelDistribution(lm.model)) for _ in range(2)]
    rivals = TokenHealing(exact=apart[0]), PlainContinuation(exact=apart[1])
    return dict(zip(SAMPLERS, (exact, *rivals), strict=True))


def _distribution(arm: Any) -> ModelDistribution:
    exact: Any = arm if isinstance(arm, ByteLM) else arm.exact
    return exact.distribution


def follow(arm: ByteSampler, cut: Cut, scored: int, written: int) -> dict[str, float]:
    """Score the bytes that follow a cut and write some, counting forwards.

    Returns
    -------
    dict
        ``bits`` of the next `scored` bytes; whether the next `written` are ``right``; forwards for the ``first`` byte,
        and ``forwards`` per byte after it; whether the cut is at a ``boundary``.
    """
    model = _distribution(arm)
    before = model.forwards
    state, logp = arm.start(cut.prompt), 0.0
    first = state.logprobs()
    start = model.forwards - before
    logp += float(first[cut.rest[0]])
    for byte, wanted in zip(cut.rest[: scored - 1], cut.rest[1:scored], strict=True):
        state = state.advance(byte)
        logp += float(state.logprobs()[wanted])
    steps = model.forwards - before - start
    text = arm.generate(cut.prompt, written)
    return {
        "bits": -logp / np.log(2),
        "right": float(text == cut.rest[:written]),
        "first": start,
        "forwards": steps / (scored - 1),
        "boundary": float(cut.boundary),
    }


@torch.inference_mode()
def healed_by_transformers(lm: CausalLM, cut: Cut, written: int) -> dict[str, float]:
    """Continue a cut by ``generate(token_healing=True)``, which strips the prompt; what it raises is a failure."""
    tokenizer: Any = lm.tokenizer
    ids = tokenizer(cut.prompt.decode(), return_tensors="pt")["input_ids"]
    model: Any = lm.model
    try:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            tokenizer=tokenizer,
            token_healing=True,
            do_sample=False,
            max_new_tokens=written,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
    except Exception:  # whatever it is, there is no continuation
        return {"right of some": 0.0, "failed": 1.0}
    text = tokenizer.decode(out[0], skip_special_tokens=True).encode()
    right = text.startswith((cut.prompt + cut.rest[:written]).lstrip())
    return {"right of some": float(right), "failed": 0.0}


# -- lines of code -----------------------------------------------------------------------------------------------------


_RESTRICTED = """
import resource, sys
for limit, most in (("CPU", {seconds}), ("AS", 1 << 30), ("FSIZE", 0), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (most, most))
exec(compile(sys.stdin.read(), "<program>", "exec"), {{"__name__": "__main__"}})
"""
"""What runs a program; it limits itself, since a child of a large process cannot once it is limited."""


def passes(program: str, seconds: float = 5.0) -> bool:
    """Run a program in a process of its own, which may neither write files nor use much time or memory."""
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-B", "-X", "utf8", "-c", _RESTRICTED.format(seconds=int(seconds))],
                input=program.encode(),
                cwd=empty,
                env={},
                capture_output=True,
                timeout=2 * seconds,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def cut_lines(number: int, seed: int) -> dict[str, dict[str, str]]:
    """Cut solutions of HumanEval within a line: what is before, the rest of the line, what is after, the test."""
    tasks = list(texts("humaneval", "held-out").documents())
    draw, found = np.random.default_rng([seed, 7]), {}
    for index in draw.permutation(len(tasks))[:number]:
        row: Mapping[str, str] = tasks[index].fields
        solution = row["canonical_solution"]
        inner = [i for i, c in enumerate(solution) if c != "\n" and solution[:i].split("\n")[-1].strip()]
        if not inner:
            continue
        at = int(draw.choice(inner))
        line, new, after = solution[at:].partition("\n")
        found[tasks[index].name] = {
            "before": row["prompt"] + solution[:at],
            "line": line,
            "after": new + after,
            "test": f"{row['test']}\ncheck({row['entry_point']})\n",
        }
    return found


def complete(arm: ByteSampler, task: dict[str, str], longest: int) -> dict[str, float]:
    """Complete a line, and run the solution with it."""
    written = bytearray()
    for byte in arm.stream(task["before"].encode(), longest):
        if byte == ord("\n"):
            break
        written.append(byte)
    line = written.decode(errors="replace")
    program = task["before"] + line + task["after"] + "\n" + task["test"]
    same = line.rstrip() == task["line"].rstrip()
    return {"same": float(same), "passes": float(same or passes(program))}

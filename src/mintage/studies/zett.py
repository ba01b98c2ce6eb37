"""What does a model lose when it is given a tokenizer that it has never seen, and who loses least?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mintage.bench.retrofit.figures import bits_by_tokenizer, bits_while_tuned
from mintage.bench.retrofit.measures import BITS_PER_BYTE, documents, measured_bits
from mintage.bench.retrofit.transfers import FOLLOWED, METHODS, PLAIN, ROWS, TARGETS, WINDOW, HeldOutTokenizers
from mintage.measure.figure import Figure
from mintage.measure.study import Column, Comparison, Finding, Measure, Run, Study, above, all_of, at_least, at_most
from mintage.models import EMBEDDED, load_causal_lm
from mintage.options import option

__all__ = ["ZettStudy"]

OWN = "own tokenizer"
STARTS = ("fvt", "zett")  # of training on


def _columns(target: str) -> tuple[str, str]:
    return f"bits, {target}", f"bytes, {target}"


def _bits(run: Run, name: str, target: str) -> Column:
    return run.column(name, _columns(target))


@dataclass(frozen=True, kw_only=True)
class ZettStudy(Study):
    """Test whether a hypernetwork's embeddings lose less than those made by rule, in tokenizers it has not seen.

    Bits per byte of held-out texts in four tokenizers, English, German and code; every method makes the embeddings,
    the model as it is reads the same texts. Then the model's own tokenizer, whose tokens could have been copied; and
    how fast a few dozen steps of training on the embeddings close the gap, from FVT's and from the hypernetwork's.
    Tokenizers and embeddings learn from none of the texts that are measured.

    [dim]Examples[/dim]

      mintage bench zett --texts 2
    """

    method: ClassVar[str] = "zett"
    job: ClassVar[str] = "retrofit"

    model: str = option(EMBEDDED, "smollm2 (embedded), a folder, or a hub id; float32.")
    texts: int = option(6, "Texts measured per tokenizer.", least=1)
    size: int = option(512, "Bytes of a text, at most.", least=4)
    targets: tuple[str, ...] = option(tuple(TARGETS), "Tokenizers; embeddings are trained in the first.")
    marks: tuple[int, ...] = option((0, 4, 8, 16, 24), "Steps of training after which bits are measured.", least=0)

    def subject(self, run: Run) -> HeldOutTokenizers:
        """Load the model, and draw the texts."""
        lm = load_causal_lm(self.model, dtype="float32")
        return HeldOutTokenizers(lm, self.targets, number=self.texts, size=self.size, seed=self.seed)

    def arms(self, run: Run) -> Mapping[str, str]:
        """Return who makes the embeddings; the hypernetwork only where one was trained for the model."""
        return {name: name for name in (PLAIN, *METHODS) if name != "zett" or run.subject.fits(name)}

    def measures(self, run: Run) -> Iterator[Measure]:
        """Yield bits in every tokenizer, in the model's own, and while the embeddings are trained."""
        held: HeldOutTokenizers = run.subject
        for target, (kind, _) in held.targets.items():
            yield measured_bits(target, held.texts[kind], held.bits(target))
        prose = documents("prose", self.texts, size=self.size, seed=self.seed)
        if "zett" in run.arms:
            yield measured_bits(OWN, prose, held.bits(PLAIN), (PLAIN, "zett"))
        yield Measure(
            name="tuning",
            units=lambda run: {self.targets[0]: self.targets[0]},
            of=lambda run, method, target: {"tuned": held.tuned(target, method, self.marks)},
            arms=[name for name in STARTS if name in run.arms],
        )

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Yield what the hypernetwork saves, what every tokenizer costs, and what training makes of it."""
        trained = "zett" in run.arms
        if trained:
            yield from (self._saved(run, rival, goal) for rival, goal in (("fvt", 0.15), ("focus", 0.0)))
        for target, (kind, vocabulary) in run.subject.targets.items():
            for name in run.arms:
                if name != PLAIN:
                    settings = {"embeddings": name, "vocabulary": vocabulary}
                    yield self._lost(run, kind, name, target, f"a new tokenizer, {target}, {name}", settings=settings)
        if trained:
            yield self._lost(
                run, "prose", "zett", OWN, "the model's own tokenizer, zett",
                note="methods that copy known tokens change no bit here",
                peers=dict.fromkeys(METHODS[1:], 0.0),
                claim="a transfer to the model's own tokenizer costs at most 0.1 bits per byte",
                holds=at_most(0.1),
            )  # fmt: skip
            yield self._training(run)

    def _saved(self, run: Run, rival: str, goal: float) -> Finding:
        whole = {name: np.concatenate([_bits(run, name, t) for t in self.targets], 1) for name in run.arms}
        bits = {name: BITS_PER_BYTE.of_one(column).value for name, column in whole.items()}
        least = f"at least {goal:g} bits per byte less" if goal else "less"
        return Finding(
            metric=f"bits per byte that zett saves against {rival}, {len(self.targets)} held-out tokenizers",
            value=BITS_PER_BYTE.of_two(whole[rival], whole["zett"]),
            unit="bits",
            n=whole["zett"].shape[1],
            baseline={rival: 0.0},
            peers={name: bits[rival] - own for name, own in bits.items() if name not in (rival, "zett")},
            claim=f"in tokenizers that it has not seen, the hypernetwork's embeddings cost {least} than those of "
            + rival,
            holds=all_of(at_least(goal), above(0)),
            data=", ".join(self.targets),
            note="bits per byte: " + ", ".join(f"{name} {own:.3f}" for name, own in bits.items()),
        )

    def _lost(self, run: Run, kind: str, name: str, target: str, to: str, **told: Any) -> Comparison:
        plain = BITS_PER_BYTE.of_one(_bits(run, PLAIN, target)).value
        tokens, before = (run.column(arm, f"tokens, {target}") for arm in (name, PLAIN))
        note = f"{PLAIN} {plain:.3f} bits per byte; {tokens.sum() / before.sum():.2f} times as many tokens"
        data = f"{kind}, {len(tokens)} texts of at most {self.size} bytes"
        return Comparison(
            metric=f"bits per byte lost to {to}", ours=name, rival=PLAIN, of=_columns(target), by=BITS_PER_BYTE,
            baseline={PLAIN: 0.0}, data=data, **{"note": note, **told},
        )  # fmt: skip

    def _training(self, run: Run) -> Finding:
        bits = {name: run.column(name, "tuned").tolist() for name in STARTS}
        reached = next((m for m, own in zip(self.marks, bits["zett"], strict=True) if own <= bits["fvt"][-1]), None)
        values = "; ".join(f"{name} " + ", ".join(f"{value:.3f}" for value in own) for name, own in bits.items())
        tokens, missed = [mark * ROWS * WINDOW for mark in self.marks], "; not reached" if reached is None else ""
        return Finding(
            metric="share of the training from FVT's embeddings that zett's need to be as good",
            value=1.0 if reached is None else reached / self.marks[-1],
            unit="share",
            more_is_better=False,
            n=min(FOLLOWED, self.texts),
            baseline={"fvt": 1.0},
            data=f"{self.targets[0]}, {tokens[-1]} tokens of training",
            note=f"bits per byte: {values}; after {', '.join(map(str, tokens))} tokens{missed}",
        )

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield bits by tokenizer and method, and bits while embeddings are trained."""
        bits = {name: [BITS_PER_BYTE.of_one(_bits(run, name, t)).value for t in self.targets] for name in run.arms}
        yield bits_by_tokenizer(run, self.targets, bits)
        tuned = {name: run.column(name, "tuned").tolist() for name in STARTS if name in run.arms}
        yield bits_while_tuned(run, self.targets[0], [mark * ROWS * WINDOW for mark in self.marks], tuned)

"""Lexinvariant models: as good as a Bayesian late in a text, blind to names, and better at tasks without meaning?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mintage.bench.lm.byte_studies import SHARE_RATIO
from mintage.bench.lm.letters import gap_shrinks, letter_bits, letter_texts, look_ups, names_cost, renamed
from mintage.bench.lm.trained import trained_model
from mintage.lm.core.cipher import ideal_lexinvariant, markov_chain, random_chain
from mintage.lm.lexinvariant import Lexinvariant
from mintage.lm.training.lexinvariant import FIRST, LexinvariantTraining, chain_windows
from mintage.measure.statistics import bootstrap
from mintage.measure.study import Comparison, Finding, Measure, Run, Study, above, below, from_on, mean
from mintage.options import option

__all__ = ["LexinvariantStudy"]

OURS, ORDINARY, IDEAL = "lexinvariant", "ordinary model", "ideal (all relabellings)"
ENGLISH, USUAL = "lexinvariant, English", "ordinary model, English"
BITS = mean("bits per symbol", more_is_better=False)
HELD_OUT = 1 << 20  # added to seeds: texts to judge by are not those that are learnt from


@dataclass(frozen=True, kw_only=True)
class LexinvariantStudy(Study):
    """Is a lexinvariant model as good as a Bayesian late in a text, blind to names, and better without meaning?

    Texts are of one first-order chain over a few letters, so that the ideal model is known: it sums over all
    relabellings. A model with random embeddings and one with learnt ones read the same texts, as many steps. They are
    judged on new texts, plain and with every text's letters renamed, and on looking up what stood behind a letter. Two
    more read English in small letters, in windows of 256.

    Example: mintage bench lexinvariant --seeds 1 --steps 200
    """

    method: ClassVar[str] = "lexinvariant"
    job: ClassVar[str] = "lm"

    seeds: int = option(3, "Models of every kind.", least=1)
    steps: int = option(6000, "Steps of every training.", least=1)
    symbols: int = option(5, "Letters of the chain.", least=4, most=8)
    chain: int = option(1, "Number of the chain.", least=0)
    window: int = option(64, "Letters of a text.", least=16)
    letter_steps: int = option(2000, "Steps of the two that read English, 8 texts each; 0: none.", least=0)
    measured: int = option(400, "Texts that are judged by.", least=8)
    models: Path = option(Path(".mintage/lm"), "Folder of trained models; what is missing is trained.")

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what is trained, and what is read."""
        return {
            "model": f"2 blocks of width 64, {self.steps} steps of 32 texts, {self.seeds} seeds",
            "data": f"{self.measured} new texts of {self.window} letters a seed, chain {self.chain}, V={self.symbols}",
        }

    def arms(self, run: Run) -> Mapping[str, LexinvariantTraining | None]:
        """Return the trainings; the ideal needs none."""
        sizes: dict[str, Any] = {"width": 64, "layers": 2, "rows": 32, "lr": 3e-3, "warmup": 100}
        own = {"task": "chain", "symbols": self.symbols, "chain": self.chain, "window": self.window}
        ours = LexinvariantTraining(steps=self.steps, **own, **sizes)
        english = replace(ours, task="letters", window=256, rows=8, steps=self.letter_steps or 1)
        more = {ENGLISH: english, USUAL: replace(english, rate=0.0)} if self.letter_steps else {}
        return {OURS: ours, ORDINARY: replace(ours, rate=0.0), IDEAL: None, **more}

    def measures(self, run: Run) -> Iterator[Measure]:
        """Read texts, then look up."""
        seeds = {f"seed {seed}": seed for seed in range(self.seed, self.seed + self.seeds)}
        yield Measure(name="reading", units=lambda run: seeds, of=self._read, arms=[OURS, ORDINARY, IDEAL])
        yield Measure(name="symbols", units=lambda run: seeds, of=self._symbols, arms=[OURS, ORDINARY])
        if self.letter_steps:
            yield Measure(name="English", units=lambda run: seeds, of=self._english, arms=[ENGLISH, USUAL])

    def _texts(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return new texts, and the same with every text's symbols renamed."""
        drawn = chain_windows(self.measured, self.window, self.symbols, self.chain, seed + HELD_OUT)
        plain = torch.from_numpy(drawn.astype(np.int64)) - FIRST
        return plain, renamed(plain, self.symbols, seed)

    def _model(self, run: Run, training: LexinvariantTraining, seed: int) -> Lexinvariant:
        own = replace(training, seed=seed)
        made: Any = trained_model(own, own.corpus, self.models, run.progress).model
        return made

    def _english(self, run: Run, training: LexinvariantTraining, seed: int) -> dict[str, Any]:
        return letter_bits(self._model(run, training, seed), letter_texts(self.measured, training.window), seed)

    def _read(self, run: Run, training: LexinvariantTraining | None, seed: int) -> dict[str, Any]:
        """Bits per symbol of every text's last half, under both kinds of names."""
        found = {}
        for how, texts in zip(("", ", renamed"), self._texts(seed), strict=True):
            if training is None:
                source = markov_chain(*random_chain(self.symbols, self.chain))
                shares = ideal_lexinvariant(source, self.symbols, texts).next[:, :-1].gather(2, texts[..., None])
                bits = -shares[..., 0].log2().numpy()
            else:
                model, draws = self._model(run, training, seed), torch.Generator().manual_seed(seed)
                with torch.no_grad():
                    bits = model(texts + FIRST, generator=draws).nats.double().numpy() / np.log(2)
            found[f"late{how}"] = bits[:, self.window // 2 :].mean(1)
        return found

    def _symbols(self, run: Run, training: LexinvariantTraining, seed: int) -> dict[str, Any]:
        """Whether what was looked up is right, and how well a linear layer reads the letters behind the names."""
        return look_ups(self._model(run, training, seed), *self._texts(seed), self.symbols, seed)

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Late bits, names, look-ups."""
        yield Comparison(
            metric="bits per symbol in a text's last half, minus the ideal model's", ours=OURS, rival=IDEAL, of="late",
            by=BITS, baseline=[IDEAL], peers=[ORDINARY], holds=below(0.1),
            claim="late in a text the model is within 0.1 bit of the ideal lexinvariant one",
        )  # fmt: skip
        yield from (names_cost(arm, "late", blind=arm == OURS) for arm in (OURS, ORDINARY))
        yield Comparison(
            metric="looked up right, over an ordinary model", ours=OURS, rival=ORDINARY, of="looked up", by=SHARE_RATIO,
            baseline=[ORDINARY], claim="what stood behind a letter is looked up right at least twice as often",
            holds=from_on(2), note="two pairs of letters, each shown six times",
        )  # fmt: skip
        yield Finding(
            metric="letters read by a linear layer under other names, last quarter minus first four",
            value=lambda run: bootstrap(100 * run.column(OURS, "grows")), unit="points", n=self.seeds,
            claim="the model deciphers: accuracy grows along a text", holds=above(0),
        )  # fmt: skip
        if self.letter_steps:
            yield gap_shrinks(ENGLISH, USUAL)
            yield from (names_cost(arm, "last", blind=arm == ENGLISH) for arm in (ENGLISH, USUAL))

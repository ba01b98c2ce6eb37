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
from mintage.bench.lm.trained import trained_model
from mintage.lm.core.cipher import ideal_lexinvariant, markov_chain, probe_accuracy, random_chain
from mintage.lm.core.symbol_tasks import lookup_task
from mintage.lm.lexinvariant import Lexinvariant
from mintage.lm.training.lexinvariant import FIRST, LexinvariantTraining, chain_windows
from mintage.measure.statistics import bootstrap
from mintage.measure.study import Comparison, Finding, Measure, Run, Study, above, below, contains, from_on, mean
from mintage.options import option

__all__ = ["LexinvariantStudy"]

OURS, ORDINARY, IDEAL = "lexinvariant", "ordinary model", "ideal (all relabellings)"
BITS = mean("bits per symbol", more_is_better=False)
HELD_OUT = 1 << 20  # added to seeds: texts to judge by are not those that are learnt from


@dataclass(frozen=True, kw_only=True)
class LexinvariantStudy(Study):
    """Is a lexinvariant model as good as a Bayesian late in a text, blind to names, and better without meaning?

    Texts are of one first-order chain over a few letters, so that the ideal model is known: it sums over all
    relabellings. A model with random embeddings and one with learnt ones read the same texts, as many steps. They are
    judged on new texts, plain and with every text's letters renamed, and on looking up what stood behind a letter.

    Example: mintage bench lexinvariant --seeds 1 --steps 200
    """

    method: ClassVar[str] = "lexinvariant"
    job: ClassVar[str] = "lm"

    seeds: int = option(3, "Models of every kind.", least=1)
    steps: int = option(6000, "Steps of every training.", least=1)
    symbols: int = option(5, "Letters of the chain.", least=4, most=8)
    chain: int = option(1, "Number of the chain.", least=0)
    window: int = option(64, "Letters of a text.", least=16)
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
        return {OURS: ours, ORDINARY: replace(ours, rate=0.0), IDEAL: None}

    def measures(self, run: Run) -> Iterator[Measure]:
        """Read texts, then look up."""
        seeds = {f"seed {seed}": seed for seed in range(self.seed, self.seed + self.seeds)}
        yield Measure(name="reading", units=lambda run: seeds, of=self._read)
        yield Measure(name="symbols", units=lambda run: seeds, of=self._symbols, arms=[OURS, ORDINARY])

    def _texts(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return new texts, and the same with every text's symbols renamed."""
        drawn = chain_windows(self.measured, self.window, self.symbols, self.chain, seed + HELD_OUT)
        plain = torch.from_numpy(drawn.astype(np.int64)) - FIRST
        draws = torch.rand(self.measured, self.symbols, generator=torch.Generator().manual_seed(seed))
        return plain, draws.argsort(1).gather(1, plain)

    def _model(self, run: Run, training: LexinvariantTraining, seed: int) -> Lexinvariant:
        own = replace(training, seed=seed)
        made: Any = trained_model(own, own.corpus, self.models, run.progress).model
        return made

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

    @torch.no_grad()
    def _symbols(self, run: Run, training: LexinvariantTraining, seed: int) -> dict[str, Any]:
        """Whether what was looked up is right, and how well a linear layer reads the letters behind the names."""
        model, draws = self._model(run, training, seed), torch.Generator().manual_seed(seed)
        task = lookup_task(self.measured, 2, self.symbols, draws, shown=6)
        table = model.table(self.measured, draws)
        said = model.logits(model.states(task.texts[:, :-1], table), table)[:, -1].argmax(-1)
        plain, renamed = self._texts(seed)
        states, half = model.states(renamed, table)[:, 1:], self.measured // 2
        read = probe_accuracy(states[:half], plain[:half], states[half:], plain[half:]).numpy()
        grows = read[-self.window // 4 :].mean() - read[:4].mean()
        return {"looked up": (said == task.texts[:, -1]).numpy(), "grows": grows}

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Late bits, names, look-ups."""
        yield Comparison(
            metric="bits per symbol in a text's last half, minus the ideal model's", ours=OURS, rival=IDEAL, of="late",
            by=BITS, baseline=[IDEAL], peers=[ORDINARY], holds=below(0.1),
            claim="late in a text the model is within 0.1 bit of the ideal lexinvariant one",
        )  # fmt: skip
        for arm, claim, rule in (
            (OURS, "names mean nothing to the lexinvariant model: renamed texts cost the same", contains(0)),
            (ORDINARY, "renamed texts cost an ordinary model over 1 bit more", above(1)),
        ):
            yield Finding(
                metric=f"bits per symbol of renamed texts, minus plain ones, last half, {arm}", unit="bits per symbol",
                value=lambda run, arm=arm: bootstrap(run.column(arm, "late, renamed") - run.column(arm, "late")),
                n=self.seeds * self.measured, more_is_better=False, claim=claim, holds=rule,
            )  # fmt: skip
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

"""Branch-Train-Merge: do experts that were trained apart read better together than one model of as many tokens?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mintage.bench.lm.forests import SYSTEMS, DomainTexts, GrownModels, domain_texts
from mintage.lm.training.expert import ExpertTraining
from mintage.measure import Figure
from mintage.measure.figure import curve
from mintage.measure.statistics import bootstrap
from mintage.measure.study import Finding, Measure, Run, Study, above, at_least, below
from mintage.options import option

__all__ = ["BTMStudy"]

OURS, DENSE, TOLD, UNIFORM, BEST, WEIGHTED, AVERAGE, RANDOM, SEEDLESS, COLLAPSED = SYSTEMS


@dataclass(frozen=True, kw_only=True)
class BTMStudy(Study):
    """Do experts that were trained apart read better together than one model of as many tokens?

    A seed learns four domains, a copy of it each of them; beside them a dense model learns all domains for as many
    steps as all of them together. Windows held out and two new domains are read by the experts' posterior ensemble,
    by other ways to merge them, by experts of random parts, and by experts without a seed.

    Example: mintage bench btm --seeds 1 --seed-steps 80 --branch-steps 20
    """

    method: ClassVar[str] = "btm"
    job: ClassVar[str] = "lm"

    seeds: int = option(3, "Forests, and models beside them.", least=1)
    seed_steps: int = option(1600, "Steps of the seed; with four domains and the default below half of all.", least=1)
    branch_steps: int = option(400, "Steps of every expert.", least=1)
    rows_per_step: int = option(8, "Windows of a step.", least=1)
    window: int = option(128, "Tokens of a window.", least=8)
    width: int = option(128, "Of all models.", least=8)
    layers: int = option(4, "Of all models.", least=1)
    vocabulary: int = option(2048, "Tokens.", least=256)
    measured: int = option(64, "Windows of a domain that are judged by, at most.", least=2)
    models: Path = option(Path(".mintage/lm"), "Folder of trained models; what is missing is trained.")

    def texts(self) -> Mapping[str, DomainTexts]:
        """Return the domains; new ones have nothing to learn from."""
        return domain_texts()

    def subject(self, run: Run) -> Callable[[int], GrownModels]:
        """Return the models of a seed, which are kept."""
        found: dict[int, GrownModels] = {}
        texts = self.texts()

        def grown(seed: int) -> GrownModels:
            if seed not in found:
                plan = ExpertTraining(
                    seed=seed, window=self.window, rows=self.rows_per_step,
                    seed_steps=self.seed_steps, branch_steps=self.branch_steps,
                )  # fmt: skip
                sizes = {"width": self.width, "layers": self.layers, "vocabulary": self.vocabulary}
                found[seed] = GrownModels(plan, sizes, self.measured, texts, self.models, run.progress)
            return found[seed]

        return grown

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what is trained, and what is read."""
        grown = run.subject(self.seed)
        size = f"width {self.width}, {self.layers} blocks, {self.vocabulary} tokens"
        return {
            "model": f"{size}; {grown.whole} steps of {self.rows_per_step} windows in all, {self.seeds} seeds",
            "data": f"{self.measured} windows of {self.window} tokens of each: {', '.join(grown.judge)}",
        }

    def arms(self, run: Run) -> Mapping[str, Any]:
        """Return what reads."""
        return SYSTEMS

    def measures(self, run: Run) -> Iterator[Measure]:
        """Read all domains."""
        seeds = {f"seed {seed}": seed for seed in range(self.seed, self.seed + self.seeds)}

        def of(run: Run, system: Any, seed: int) -> dict[str, Any]:
            grown = run.subject(seed)
            return {name: grown.bits(system, name) for name in grown.judge}

        yield Measure(name="reading", units=lambda run: seeds, of=of)

    def rows(self, run: Run) -> Iterator[Finding]:
        """Every domain, the random split, averages, and what reading costs."""
        grown = run.subject(self.seed)
        for name in grown.judge:
            yield _difference(
                f"bits per byte, {name}", OURS, DENSE, [name], claim=f"experts read {name} better than a dense model",
                holds=below(0), peers=(TOLD, UNIFORM, BEST, WEIGHTED, AVERAGE, RANDOM, SEEDLESS),
            )  # fmt: skip
        learnt, every = list(grown.learn), list(grown.judge)
        yield _difference(
            "bits per byte of domains that were learnt, random parts", RANDOM, DENSE, learnt, peers=(OURS,),
            claim="experts of random parts are no better than a dense model", holds=at_least(0),
        )  # fmt: skip
        yield _difference(
            "bits per byte, average weighted by the posterior", WEIGHTED, AVERAGE, every, peers=(OURS, DENSE, BEST),
            claim="weights averaged by the posterior read better than averaged alike", holds=below(0),
        )  # fmt: skip
        yield _difference(
            "bits per byte of averaged weights, experts without a seed", COLLAPSED, SEEDLESS, learnt, peers=(AVERAGE,),
            claim="without a seed averaged weights read over 1 bit worse than the ensemble", holds=above(1),
        )  # fmt: skip
        yield Finding(
            metric="forwards for a token, posterior ensemble", value=float(len(learnt)), unit="x",
            more_is_better=False, baseline={DENSE: 1.0}, peers={BEST: 1.0, WEIGHTED: 1.0},
            note=f"{self.seed_steps / grown.whole:.0%} of the steps, the seed's, are not parallel",
        )  # fmt: skip

    def figures(self, run: Run) -> Iterator[Figure]:
        """Draw who wrote it along a window of every domain, and along one that changes hands."""
        grown, forest = run.subject(self.seed), run.subject(self.seed).forest("domains")
        shown = {name: grown.judge[name][:1] for name in grown.judge}
        first, second = list(grown.learn)[:2]
        half = self.window // 2
        changing = np.concatenate([shown[first][0, :half].numpy(), shown[second][0, half:].numpy()])
        shown[f"{first}, then {second}"] = shown[first].new_tensor(changing)[None]
        for number, (name, ids) in enumerate(shown.items()):
            shares = forest.posterior(ids)[0].T.tolist()
            series = {who: list(enumerate(share)) for who, share in zip(forest.experts, shares, strict=True)}
            yield run.figure(
                name=f"btm-posterior-{number}", title=f"Who wrote it: {name}",
                caption="The posterior of every expert behind each token of one window.",
                **curve("tokens", "posterior", series),
            )  # fmt: skip


def _difference(metric: str, ours: str, rival: str, domains: list[str], *, peers: tuple[str, ...], **more: Any) -> Any:
    """Return the difference of bits per byte over domains, beside those of the peers."""

    def bits(run: Run, arm: str) -> np.ndarray:
        return np.concatenate([run.column(arm, name) for name in domains])

    return Finding(
        metric=f"{metric}, {ours} minus {rival}", unit="bits per byte", more_is_better=False,
        n=lambda run: len(bits(run, ours)),
        value=lambda run: bootstrap(bits(run, ours) - bits(run, rival)),
        peers=lambda run: {name: float((bits(run, name) - bits(run, rival)).mean()) for name in peers}, **more,
    )  # fmt: skip

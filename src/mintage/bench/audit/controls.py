"""Controls: tokenizers whose mixture is known, what an audit makes of them, and other ways to guess the mixture.

Documents that train a control are never in the samples that an audit sees. Not here: the program that infers a mixture
(`mintage.audit.data_mixture`), the text (`mintage.bench.audit.mixtures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mintage.audit.contract import Report
from mintage.audit.data_mixture import DataMixture
from mintage.bench.audit import mixtures
from mintage.bench.audit.mixtures import Documents, Shares, first_bytes, halves, size_of
from mintage.measure import Interval, bootstrap
from mintage.measure.study import Measure, Statistic

__all__ = [
    "GEOMETRIC",
    "Control",
    "controls",
    "log_error",
    "measure",
    "parted",
    "regression_errors",
    "shifted_controls",
]

RESAMPLES = 10
"""For the intervals of a control."""

SHIFTED_MERGES, SHIFTED_BYTES = 250, 3_000_000
"""Of controls with shifted samples, chosen on other seeds. What a sample's noise adds to the objective grows with the
merges: samples of other sources made it 7 times larger with 1,000, 9 with 500, 11 with 250."""

Columns = Mapping[str, Any]


def _geometric_ratio(ours: Shares, rival: Shares) -> Interval:
    return Interval(*(10**bound for bound in bootstrap(np.log10(ours / rival))))


GEOMETRIC = Statistic("x", True, _geometric_ratio, bootstrap)
"""Geometric mean of ratios, and one arm's mean."""


def measure(name: str, arms: Sequence[str], units: Mapping[str, Any]) -> Measure:
    """Measure arms that are functions of a unit."""
    return Measure(name=name, units=lambda run: units, of=lambda run, arm, unit: arm(unit), arms=arms)


@dataclass(frozen=True, eq=False)
class Control:
    """A tokenizer trained on a known mixture; nothing is made before it is asked for.

    Parameters
    ----------
    documents
        Of every category; half of them train, half are samples.
    shares
        About what share of the training text each category has.
    merges, training_bytes
        Of the tokenizer; its training text is at most so long.
    alone
        Gives the bytes per token of a category in a tokenizer trained on that category alone.
    """

    documents: Documents
    shares: Shares
    merges: int
    training_bytes: int
    alone: Callable[[str], float] = lambda category: 1.0

    @cached_property
    def _training(self) -> tuple[list[str], Shares]:
        return mixtures.mixture(
            {name: halves(some)[0] for name, some in self.documents.items()}, self.shares, self.training_bytes
        )

    @property
    def truth(self) -> Shares:
        """The exact shares of bytes."""
        return self._training[1]

    @cached_property
    def samples(self) -> Documents:
        """What an audit sees."""
        return {name: halves(some)[1] for name, some in self.documents.items()}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer under audit."""
        return mixtures.trained(self._training[0], self.merges)

    @cached_property
    def _ids(self) -> list[NDArray[np.int64]]:
        """Tokens of every sample."""
        encoded = (self.tokenizer.encode_batch(sample) for sample in self.samples.values())
        return [np.concatenate([e.ids for e in many]) for many in encoded]

    @property
    def efficiency(self) -> list[float]:
        """Bytes per token of every sample, over those of a tokenizer trained on the category alone."""
        pairs = zip(self.samples.items(), self._ids, strict=True)
        return [size_of(sample) / len(ids) / self.alone(name) for (name, sample), ids in pairs]

    @property
    def vocabulary(self) -> Shares:
        """Share of the merges that are, relatively, most frequent in each sample."""
        frequencies = [np.bincount(ids, minlength=256 + self.merges)[256:] / len(ids) for ids in self._ids]
        seen = np.array(frequencies)[:, np.any(frequencies, axis=0)]
        return np.bincount(seen.argmax(axis=0), minlength=len(self.samples)) / seen.shape[1]


def controls(count: int, documents: Documents, *, seed: int, merges: int, training_bytes: int) -> dict[str, Control]:
    """Draw controls of 3, 4 and 5 categories in random shares."""

    @cache
    def alone(category: str) -> float:
        training, sample = halves(documents[category])
        own = mixtures.trained(training, merges)
        return size_of(sample) / sum(len(e.ids) for e in own.encode_batch(sample))

    drawn = {}
    for number in range(count):
        generator, size = np.random.default_rng([seed, number]), (3, 4, 5)[number % 3]
        chosen = sorted(generator.choice(sorted(documents), size, replace=False).tolist())
        shares = generator.dirichlet(np.ones(size))
        own = {category: documents[category] for category in chosen}
        drawn[f"control {number}"] = Control(own, shares, merges, training_bytes, alone)
    return drawn


def shifted_controls(count: int, *, seed: int) -> dict[str, tuple[Control, Documents]]:
    """Draw controls of three categories, each with samples of other sources."""
    sources, others = mixtures.other_sources()
    drawn = {}
    for number in range(count):
        generator = np.random.default_rng([seed, 1000 + number])
        documents = {name: mixtures.shuffled(some, generator) for name, some in sources.items()}
        control = Control(documents, generator.dirichlet(np.ones(3)), SHIFTED_MERGES, SHIFTED_BYTES)
        drawn[f"shifted samples {number}"] = control, others
    return drawn


# -- what is made of them: columns of numbers --------------------------------------------------------------------------


def log_error(found: Iterable[float], truth: Iterable[float]) -> float:
    """Return log10 of the mean squared error of shares."""
    return float(np.log10(max(np.mean((np.asarray(found) - np.asarray(truth)) ** 2), 1e-12)))


def _column(report: Report, name: str) -> Shares:
    return np.array([row[name] for row in report.table], float)


def audited(control: Control) -> Columns:
    """Infer the mixture, with intervals."""
    report = DataMixture(samples=control.samples, bootstrap=RESAMPLES).run(control.tokenizer)
    inside = (_column(report, "low") <= control.truth) & (control.truth <= _column(report, "high"))
    error = log_error(_column(report, "share of bytes"), control.truth)
    return {"truth": control.truth, "categories": len(control.truth), "inside": inside, "log error": error}


def audited_with_less(control: Control, part: float) -> Columns:
    """Infer the mixture from a part of every sample."""
    less = {name: first_bytes(texts, int(part * size_of(texts))) for name, texts in control.samples.items()}
    report = DataMixture(samples=less, bootstrap=0).run(control.tokenizer)
    return {"log error": log_error(_column(report, "share of bytes"), control.truth)}


def by_uniform_shares(control: Control) -> Columns:
    """Guess equal shares."""
    return {"log error": log_error([1 / len(control.truth)] * len(control.truth), control.truth)}


def by_vocabulary(control: Control) -> Columns:
    """Sort the vocabulary: a merge belongs to the category in which it is relatively most frequent."""
    return {"log error": log_error(control.vocabulary, control.truth)}


def by_efficiency(control: Control) -> Columns:
    """Count bytes per token; what is predicted from them takes all controls (`regression`)."""
    return {"efficiency": control.efficiency}


def audited_shifted(shifted: tuple[Control, Documents], *, same: bool) -> Columns:
    """Infer the mixture from samples of the same sources, or of others, both of equal size."""
    control, others = shifted
    chosen = control.samples if same else others
    sizes = {name: min(size_of(control.samples[name]), size_of(others[name])) for name in others}
    samples = {name: first_bytes(chosen[name], size) for name, size in sizes.items()}
    report = DataMixture(samples=samples, bootstrap=0).run(control.tokenizer)
    error = log_error(_column(report, "share of bytes"), control.truth)
    return {"objective": report.findings["objective"], "log error": error}


def by_chance(truths: Sequence[Shares], seed: int, guesses: int = 400) -> Columns:
    """Guess shares at random for every control: the mean log10 error of many guesses."""
    draws = np.random.default_rng(seed)
    errors = [
        np.mean([log_error(guess, truth) for guess in draws.dirichlet(np.ones(len(truth)), guesses)])
        for truth in truths
    ]
    return {"log error": list(map(float, errors))}


def parted(column: Shares, categories: Shares) -> list[Shares]:
    """Cut a column of shares into those of every control."""
    return np.split(column, np.cumsum(categories).astype(int)[:-1])


def regression_errors(efficiencies: Sequence[Shares], truths: Sequence[Shares]) -> NDArray[np.float64]:
    """Predict every control's shares from its efficiencies, by a log-linear line fitted on all other controls."""
    x = [np.log(one) - np.log(one).mean() for one in efficiencies]
    y = [np.log(np.maximum(one, 1e-4)) - np.log(np.maximum(one, 1e-4)).mean() for one in truths]
    errors = []
    for held_out, truth in enumerate(truths):
        others = [i for i in range(len(x)) if i != held_out] or [held_out]
        slope = sum(float(x[i] @ y[i]) for i in others) / max(sum(float(x[i] @ x[i]) for i in others), 1e-12)
        raw = np.exp(slope * x[held_out])
        errors.append(log_error(raw / raw.sum(), truth))
    return np.array(errors)

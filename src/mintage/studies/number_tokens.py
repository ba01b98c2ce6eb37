"""Does the side from which numbers are cut change what a model learns? Three small decoders learn to add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mintage.bench.audit import adders, figures
from mintage.bench.audit.adders import ARMS, L2R, LONGEST, R2L, SHORTEST, SINGLE
from mintage.bench.audit.published import published
from mintage.bench.audit.rewritten import tokenizer_rows
from mintage.measure import Figure, Interval, bootstrap
from mintage.measure.study import Finding, Measure, Run, Study, above, all_of, at_least
from mintage.options import option

__all__ = ["NumberTokensStudy"]

PUBLISHED = ("gpt4o", "llama3", "qwen3", "gemma3", "claude")


@dataclass(frozen=True, kw_only=True)
class NumberTokensStudy(Study):
    """Train three small decoders to add, with numbers cut from the right, from the left, and into single digits.

    Model, vocabulary (the 1110 strings of one to three digits and + = ;), optimiser, steps, seeds and the very problems
    of every batch are the same; only the cut differs. Scored is the greedy answer to problems that no batch holds.
    Scaled down from the paper, which asks GPT-3.5 and GPT-4: trained on one cut, and prompted into another.

    [dim]Example[/dim]

      mintage bench number-tokens --steps 1000 --seeds 1

    Next: [bold]mintage report[/bold]
    """

    method, job = "number-tokens", "audit"

    steps: int = option(4000, "Training steps of every arm and seed.", least=1)
    seeds: int = option(3, "Runs of every arm; seeds count up.", least=1)
    match: int = option(adders.MATCH, "Test problems whose answer is as long as the longer addend.", least=1)
    mismatch: int = option(adders.MISMATCH, "Test problems whose answer has one digit more.", least=1)
    tokenizers: Path | None = option(None, "Folder with NAME/tokenizer.json of gpt4o, llama3, ...: audited as well.")

    def common(self, run: Run) -> Mapping[str, Any]:
        """See `Study.common`."""
        return {
            "model": "decoder, 2 layers, width 128, 0.67 M, from scratch",
            "data": f"additions of {SHORTEST}-{LONGEST} digits, drawn as in the paper",
            "settings": {"steps": self.steps, "batch": adders.BATCH, "lr": adders.RATE, "seeds": self.seeds},
        }

    def subject(self, run: Run) -> Mapping[str, list[Any]]:
        """The test problems."""
        return adders.addition_problems(self.match, self.mismatch)

    def arms(self, run: Run) -> Mapping[str, str]:
        """Ways to cut a number."""
        published(self.tokenizers, PUBLISHED)  # what is not there is told before anything is trained
        return {arm: arm for arm in ARMS}

    def measures(self, run: Run) -> Iterable[Measure]:
        """Every arm learns with every seed."""
        seeds = {f"seed {seed}": seed for seed in range(self.seed, self.seed + self.seeds)}
        yield Measure(name="additions", units=lambda run: seeds, of=self.learnt)

    def learnt(self, run: Run, arm: str, seed: int) -> Mapping[str, Any]:
        """Train an arm and let it answer."""
        label = f"{arm}, seed {seed}"
        work, told = run.memo.folder / label, lambda done, of: run.progress(label, done, of)
        return adders.answered(*adders.learnt(arm, seed, self.steps, work, told), run.subject, arm)

    def percent(self, run: Run, arm: str, column: str) -> Any:
        """Return a column in percent: one row per seed."""
        return 100 * run.column(arm, column).reshape(self.seeds, -1)

    def rows(self, run: Run) -> Iterable[Finding]:
        """Right answers, where errors begin, and what the arms cost; then published tokenizers."""
        right = {kind: {arm: self.percent(run, arm, kind) for arm in ARMS} for kind in run.subject}
        match, gap = (one[R2L] - one[L2R] for one in right.values())
        yield Finding(
            metric="exact match on length mismatch, R2L-3 minus L2R-3",
            value=bootstrap(gap.mean(0), seed=self.seed),
            unit="points",
            n=gap.shape[1],
            claim="cut from the right beats cut from the left by >= 15 points where the answer is longer (3 seeds)",
            holds=all_of(at_least(15), above(0)),
            note=f"By seed: {', '.join(f'{g:.1f}' for g in gap.mean(1))}. Interval over problems, not seeds. On "
            f"length match the gap is {match.mean():.1f} points (the paper's L2R model adds well there)."
            " Trained from scratch on additions alone, number embeddings started from digit vectors; not GPT-3.5. "
            "Start, rate and steps were chosen on a development seed of the R2L-3 arm alone.",
        )
        places = {arm: run.column(arm, "first wrong") for arm in ARMS}
        begin = {arm: 100.0 * (some == 4) for arm, some in places.items()}
        counts = ", ".join(f"{digit}: {(places[L2R] == digit).sum()}" for digit in range(1, LONGEST + 2))
        yield _beside(
            {arm: float(some.mean()) if len(some) else 0.0 for arm, some in begin.items()},
            metric="first wrong digit is the first after the first token boundary, L2R-3, length mismatch",
            value=bootstrap(begin[L2R], seed=self.seed) if len(begin[L2R]) else Interval(0, 0, 0),
            unit="% of wrong answers",
            more_is_better=False,
            baseline=R2L,
            n=max(1, len(begin[L2R])),
            claim="errors of the cut from the left begin right after the first token boundary (digit 4) in most cases",
            holds=above(50),
            note=f"Wrong answers of the right length, all seeds. First wrong digit of L2R-3: {counts}. "
            f"Wrong answers: {', '.join(f'{arm} {len(some)}' for arm, some in places.items())}.",
        )
        for kind, arms in right.items():
            each = (f"{arm} {', '.join(f'{value:.1f}' for value in some.mean(1))}" for arm, some in arms.items())
            yield _beside(
                {arm: float(some.mean()) for arm, some in arms.items()},
                metric=f"exact match, {kind}",
                value=bootstrap(arms[R2L].mean(0), seed=self.seed),
                unit="%",
                n=arms[R2L].shape[1],
                note=f"R2L-3, mean of {self.seeds} seeds. By seed: {'; '.join(each)}.",
            )
        yield _beside(
            {arm: float(run.column(arm, "tokens").mean()) / 1000 for arm in ARMS},
            metric="training tokens",
            unit="thousand tokens",
            more_is_better=False,
            n=self.seeds,
            note="Same problems in every arm; single digits make more tokens of them. Padding not counted.",
        )
        yield _beside(
            {arm: 100 * float(run.column(arm, "invalid").mean()) for arm in ARMS},
            metric="answers that are no number, length mismatch",
            unit="%",
            more_is_better=False,
            n=gap.size,
            note="Counted as wrong everywhere else.",
        )
        for name, file in published(self.tokenizers, PUBLISHED).items():
            yield from tokenizer_rows(name, file, self.match)

    def figures(self, run: Run) -> Iterable[Figure]:
        """Wrong digits by their place, and right answers, by arm."""
        yield figures.wrong_digits(run, {arm: self.percent(run, arm, "wrong digits").mean(0).tolist() for arm in ARMS})
        kinds = {arm: {kind: self.percent(run, arm, kind).mean(0) for kind in run.subject} for arm in ARMS}
        yield figures.additions_right(run, kinds)


def _beside(values: Mapping[str, float], *, baseline: str = L2R, **fields: Any) -> Finding:
    """Make a row of the cut from the right with the others' values; its own may come with an interval."""
    fields = {"value": values[R2L], **fields}
    return Finding(baseline={baseline: values[baseline]}, peers={SINGLE: values[SINGLE]}, **fields)

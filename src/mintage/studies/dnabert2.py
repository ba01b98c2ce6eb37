"""DNABERT-2: do BPE tokens of DNA survive edits, keep masks secret, and save time at no loss, and does ALiBi go on?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mintage.bench.lm import dna
from mintage.lm.training.dna_classifier import DNAClassifierTraining
from mintage.lm.training.dnabert2 import DNABERT2Training
from mintage.measure.figure import Figure, curve
from mintage.measure.statistics import bootstrap, bootstrap_ratio
from mintage.measure.study import Finding, Measure, Run, Study, at_least, at_most, from_on
from mintage.options import option

__all__ = ["DNABERT2Study"]

OURS, OLD, SINGLE, LEAKY = "BPE", "overlapping 6-mers", "bases", "overlapping 3-mers"
ASIDE = ("3-mers", "6-mers")
POSITIONS = {"ALiBi": "alibi", "learned positions": "learned"}
TRAINERS = {"chunks": "chunks", "unsplit": "plain"}


@dataclass(frozen=True, kw_only=True)
class DNABERT2Study(Study):
    """Do BPE tokens of DNA survive edits, keep masks secret, and save time at no loss, and does ALiBi go on?

    BPE and k-mers cut held-out windows of four species, whole and with one base deleted; masked tokens are looked up by
    their neighbours. Encoders learn rows of 64 tokens and read up to 512, by ALiBi or learnt positions. Classifiers of
    promoters learn from scratch, over each kind of tokens. Last, BPE is learnt from chunks and from whole chromosomes.

    Example: mintage bench dnabert2 --seeds 1 --masked-steps 50 --class-steps 50 --megabases 1 --limit 20
    """

    method: ClassVar[str] = "dnabert2"
    job: ClassVar[str] = "lm"

    seeds: int = option(3, "Trainings of every arm, and draws of windows.", least=1)
    windows: int = option(200, "Windows of 500 bases a seed.", least=2)
    vocabulary: int = option(4096, "Tokens of BPE.", least=9)
    masked_steps: int = option(600, "Steps of every encoder.", least=1)
    class_steps: int = option(200, "Steps of every classifier, of 16 sequences.", least=1)
    task: str = option("promoter_tss", "What classifiers tell apart.")
    width: int = option(128, "Of all encoders.", least=8)
    rounds: int = option(10, "Timed steps.", least=2)
    megabases: float = option(10.0, "Of DNA that BPE is learnt from, for its time.", above=0, most=10)
    limit: float = option(600.0, "Seconds after which a trainer of tokens is stopped.", above=0)
    models: Path = option(Path(".mintage/lm"), "Folder of trained models; what is missing is trained.")

    def subject(self, run: Run) -> dna.Genomes:
        """Return tokenizers and held-out genomes."""
        return dna.Genomes(self.vocabulary, self.models)

    def common(self, run: Run) -> Mapping[str, Any]:
        """Return what all rows say."""
        data = f"{self.windows} held-out windows of 500 bases a seed, {self.seeds} seeds, BPE of {self.vocabulary}"
        return {"model": f"4 layers of width {self.width}", "data": data}

    def arms(self, run: Run) -> Mapping[str, str]:
        """Return what each arm goes by."""
        return {name: name for name in (OURS, *ASIDE, LEAKY, OLD, SINGLE)} | POSITIONS | TRAINERS

    def encoder(self, run: Run, positions: Any, seed: int) -> DNABERT2Training:
        """Return the training of an encoder; without dropout, as nothing is seen often."""
        own: dict[str, Any] = {"tokenizer": str(run.subject.bpe), "width": self.width, "positions": positions}
        return DNABERT2Training(**own, window=dna.LENGTHS[0], steps=self.masked_steps, dropout=0.0, seed=seed)

    def classifier(self, run: Run, name: str, seed: int) -> DNAClassifierTraining:
        """Return the training of a classifier over one kind of tokens."""
        kinds = {OURS: str(run.subject.bpe), OLD: "overlapping", SINGLE: "bases"}
        own: dict[str, Any] = {"tokenizer": kinds[name], "width": self.width, "task": self.task, "seed": seed}
        return DNAClassifierTraining(**own, rows=16, lr=1e-3, steps=self.class_steps)

    def measures(self, run: Run) -> Iterable[Measure]:
        """Yield cuts, look-ups, lengths, classes, seconds."""
        run.subject.tokenizer(OURS)
        count, bases = self.windows, int(self.megabases * 1e6)
        of_seed: dict[str, Any] = {"units": lambda run: {f"seed {n}": self.seed + n for n in range(self.seeds)}}
        kinds, classes = [OURS, *ASIDE, OLD, SINGLE], [OURS, OLD, SINGLE]
        # fmt: off
        yield Measure(name="tokens", **of_seed, arms=kinds, of=lambda run, arm, n: dna.cut(run, arm, count, n))
        yield Measure(name="look-ups", **of_seed, arms=[OURS, LEAKY],
                      of=lambda run, arm, n: dna.neighbours_told(run, arm, count, n))
        yield Measure(name="lengths", **of_seed, arms=[*POSITIONS],
                      of=lambda run, arm, n: dna.read_at_lengths(run, self.encoder(run, arm, n), 4 * count))
        yield Measure(name="classes", **of_seed, arms=classes,
                      of=lambda run, arm, n: dna.classified(run, self.classifier(run, arm, n)))
        yield Measure(name="steps", units=lambda run: {turn: turn for turn in range(self.rounds)}, arms=classes,
                      of=lambda run, arm, turn: dna.step_seconds(run, self.classifier(run, arm, self.seed)))
        yield Measure(name="learning tokens", units=lambda run: {"once": 0}, arms=[*TRAINERS],
                      of=lambda run, how, unit: dna.time_to_learn(how, bases, self.vocabulary, self.limit))
        # fmt: on

    def rows(self, run: Run) -> Iterator[Finding]:
        """Yield what survives, what is told, what length and time cost."""
        of, n = run.column, self.seeds * self.windows
        kept = {name: float(of(name, "kept").mean()) for name in (OURS, *ASIDE, OLD, SINGLE)}
        short, *_, long = dna.LENGTHS
        mcc = {name: of(name, "mcc") for name in (OURS, OLD, SINGLE)}
        # fmt: off
        for name, rule, said in ((OURS, at_least(98), "at least 98"), *((k, at_most(60), "at most 60") for k in ASIDE)):
            yield Finding(metric=f"tokens kept when one base is deleted, {name}", unit="%", n=n, peers=kept, holds=rule,
                          value=bootstrap(of(name, "kept")), claim=f"{said}% of {name} survive a deletion")
        yield Finding(metric="tokens of single bases over those of BPE", unit="x", n=n, baseline={SINGLE: 1.0},
                      value=bootstrap_ratio(of(SINGLE, "tokens"), of(OURS, "tokens")), holds=from_on(3),
                      peers={k: float(of(SINGLE, "tokens").sum() / of(k, "tokens").sum()) for k in (*ASIDE, OLD)},
                      claim="BPE takes at least 3 times fewer tokens than bases do")
        for name, rule, said in ((LEAKY, at_least(90), "at least 90"), (OURS, at_most(5), "at most 5")):
            yield Finding(metric=f"masked tokens that their neighbours tell, {name}", unit="%", n=n, holds=rule,
                          value=dna.percent(of(name, "told"), of(name, "masked")), more_is_better=False,
                          claim=f"{said}% of singly masked {name} are told by a look-up of their neighbours")
        grown = ((at_most(1.02), "at most 2%"), (at_least(1.02), "2% or more"))
        for name, (rule, said) in zip(POSITIONS, grown, strict=True):
            nats = {length: of(name, f"nats, {length}") for length in dna.LENGTHS}
            yield Finding(metric=f"nats per masked token in rows of {long} over {short} tokens, {name}", unit="x",
                          n=self.seeds, value=bootstrap_ratio(nats[long], nats[short]), more_is_better=False,
                          peers={f"{length} tokens, nats": float(own.mean()) for length, own in nats.items()},
                          claim=f"trained on rows of {short}, {name} lose {said} in rows of {long}", holds=rule)
        for rival in (OLD, SINGLE):
            yield Finding(metric=f"MCC of BPE minus that of {rival}, {self.task}", unit="MCC", n=self.seeds,
                          value=bootstrap(mcc[OURS] - mcc[rival]), peers={k: float(v.mean()) for k, v in mcc.items()},
                          claim=f"after as many steps BPE's MCC is at least 0.1, and that of {rival}",
                          holds=lambda run, rival=rival: mcc[OURS].mean() >= max(mcc[rival].mean(), 0.1))
            yield Finding(metric=f"seconds of a step of {rival} over BPE's", unit="x", n=self.rounds, holds=at_least(3),
                          value=bootstrap_ratio(of(rival, "seconds"), of(OURS, "seconds"), of="median"),
                          claim=f"a step over BPE takes at least 3x less time than over {rival}")
        ours, plain = (float(of(name, "seconds to learn")[0]) for name in TRAINERS)
        size, stopped = f"{self.megabases:g} megabases", ", where it was stopped" if plain >= self.limit else ""
        told: dict[str, Any] = {"data": size, "note": f"the plain trainer, unsplit: {plain:.0f} s{stopped}"}
        for unit, value, bound in (("s", ours, 120), ("MB", float(of("chunks", "megabytes")[0]), 1000)):
            yield Finding(metric=f"{unit} for learning {self.vocabulary} tokens", value=value, unit=unit, **told,
                          more_is_better=False, claim=f"{size} take at most {bound} {unit}", holds=at_most(bound))
        yield Finding(metric="seconds of the plain trainer over those of chunks", value=plain / ours, unit="x", **told,
                      claim="chunks are learnt from at least 10x as fast as whole chromosomes", holds=at_least(10))
        # fmt: on

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield the lengths of tokens along a sequence."""
        drawn = dna.along_a_genome(run.subject.tokenizer(OURS), run.subject.held_out[0][:200_000], 2000)
        caption = "Of a held-out sequence, every 2,000 bases: tokens are long where it repeats what is frequent."
        shown = curve("thousand bases", "bases per token, and tenths of G and C", drawn)
        yield run.figure(name="genome", title="Tokens along a genome", caption=caption, **shown)

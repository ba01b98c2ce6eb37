"""Less-is-Better: fewer tokens at equal vocabulary size, on text with spaces, without, and of scripts without?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from mintage.bench.segment import lines as measured
from mintage.bench.segment.lines import LENGTH, Learner, LineSubject, TextLines, TrainedUnits, boundary_f1, columns_of
from mintage.measure import Figure, bootstrap, bootstrap_ratio
from mintage.measure.study import Comparison, Finding, Measure, Run, Statistic, Study, above, below, from_on
from mintage.options import option
from mintage.segment import BPE, LiB, SuperwordBPE, Unigram

LIB, WORDS, ACROSS = "lib", "bpe", "superword-bpe"
UNIGRAM, UNIGRAM_ACROSS = "unigram", "unigram across words (sentencepiece)"
RIVALS = (ACROSS, UNIGRAM, UNIGRAM_ACROSS)
LONGER = Statistic("characters", True, lambda a, b: bootstrap_ratio(*a), lambda a: bootstrap_ratio(*a))


@dataclass(frozen=True, kw_only=True)
class LiBStudy(Study):
    """Test Less-is-Better's claim: fewer tokens at equal vocabulary size than BPE, and a shorter description.

    The paper compares with words and BPE. Rivals that may cross words, as LiB does, are BPE and Unigram without word
    boundaries. Held-out lines: WikiText-2 with and without spaces, presidents' speeches, Chinese, Thai.

    [dim]Examples[/dim]

      mintage bench lib --characters 100000 --articles 500
    """

    method: ClassVar[str] = "lib"
    job: ClassVar[str] = "segment"

    vocab_size: int = option(4000, "Entries of all tokenizers.", least=300)
    sizes: tuple[int, ...] = option((2000, 4000, 8000), "Vocabulary sizes of the figure.", least=300)
    characters: int | None = option(None, "Learn from, and measure on, about so many per text; default all.", least=1)
    articles: int | None = option(None, "Articles that LiB reads; default its own.", least=1)

    def subject(self, run: Run) -> LineSubject:
        """Read the lines."""
        os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the speeds are of one thread
        return LineSubject([lines.head(self.characters) for lines in measured.read_lines()], {})

    def arms(self, run: Run) -> Mapping[str, Learner]:
        """Return LiB and its rivals."""
        lib, across = LiB(seed=self.seed, epochs=self.articles), measured.sentencepiece_units
        return {LIB: lib, WORDS: BPE(), ACROSS: SuperwordBPE(), UNIGRAM: Unigram(), UNIGRAM_ACROSS: across}

    def measures(self, run: Run) -> Iterator[Measure]:
        """CutLines every text; then, on the first, other vocabulary sizes and the speed."""
        for lines in run.subject.lines:
            yield Measure(name=lines.name, units=partial(lambda lines, run: {lines.name: lines}, lines), of=self._cut)
        yield Measure(name="vocabulary sizes", units=lambda run: {size: size for size in self.sizes}, of=self._resized)
        yield Measure(name="speed", units=lambda run: {"first": run.subject.lines[0]}, of=self._timed, arms=[LIB])

    def _learned(self, run: Run, learner: Learner, lines: TextLines, size: int) -> TrainedUnits:
        key = (learner, lines.name, size)
        if key not in run.subject.made:
            work = run.memo.folder / lines.name.replace(" ", "-")
            run.subject.made[key] = measured.learned_units(learner, lines.train, size, work)
        return run.subject.made[key]

    def _cut(self, run: Run, learner: Learner, lines: TextLines) -> dict[str, Any]:
        arm = self._learned(run, learner, lines, self.vocab_size)
        columns = measured.CutLines(arm, arm.cut(lines.held_out)).columns(lines)
        return {f"{lines.name}: {name}": values for name, values in columns.items()}

    def _resized(self, run: Run, learner: Learner, size: int) -> dict[str, Any]:
        arm, lines = self._learned(run, learner, run.subject.lines[0], size), run.subject.lines[0]
        tokens = sum(map(len, arm.cut(lines.held_out)))
        return {"entries": len(arm.tokens), LENGTH: sum(map(len, lines.held_out)) / tokens}

    def _timed(self, run: Run, learner: Learner, lines: TextLines) -> dict[str, Any]:
        arms = (run.arms[name] for name in (LIB, WORDS, UNIGRAM, UNIGRAM_ACROSS))
        learned = [self._learned(run, arm, lines, self.vocab_size) for arm in arms]
        seconds = measured.encoding_seconds(*learned, lines=lines.held_out)
        return {f"seconds: {name}": values for name, values in seconds.items()}

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Claims about every text, and one about speed."""
        first, *others = (self._text(run, lines) for lines in run.subject.lines)
        yield from (*first, self._speed(run, run.subject.lines[0]), *chain(*others))

    def _text(self, run: Run, lines: TextLines) -> Iterator[Comparison | Finding]:
        columns = {name: columns_of(run, name, f"{lines.name}: ") for name in run.arms}
        tokens = {name: float(own["tokens"].sum()) for name, own in columns.items()}
        read, held_out, n = sum(map(len, lines.train)), sum(map(len, lines.held_out)), len(lines.held_out)
        sizes = ", ".join(f"{name} {own['entries'][0]:.0f}" for name, own in columns.items())
        note = f"{read} characters learned from, {held_out} measured on; entries: {sizes}"
        said: dict[str, Any] = {"data": lines.data, "settings": {"vocab_size": self.vocab_size, "text": lines.name}}
        yield Comparison(
            metric=LENGTH, ours=LIB, of=(f"{lines.name}: characters", f"{lines.name}: tokens"), by=LONGER,
            baseline=[WORDS], peers=RIVALS, claim="the fewest tokens of the five on held-out text",
            holds=lambda run: min(tokens, key=tokens.__getitem__) == LIB, note=note, **said,
        )  # fmt: skip
        test = {"claim": "the shortest description (vocabulary and held-out text) of the five"}
        test |= {"holds": lambda run: min(columns, key=lambda name: columns[name]["bits"][0]) == LIB}
        spaced = {"when": lambda run: any(" " in line for line in lines.held_out)}
        for metric, unit, column, over, more in (
            ("vocabulary used on held-out text", "share", "used", 1, {}),
            ("description length per character", "bits", "bits", held_out, {**test, "more_is_better": False}),
            ("tokens that span words", "share", "spanning", 1, spaced),
        ):
            values = {name: float(own[column][0]) / over for name, own in columns.items()}
            yield Finding(
                metric=metric, unit=unit, value=values[LIB], n=n, baseline={WORDS: values[WORDS]},
                peers={name: values[name] for name in RIVALS}, note=note, **more, **said,
            )  # fmt: skip
        for rival, who in ((WORDS, "BPE within words"), (ACROSS, "BPE across words")):
            yield Finding(
                metric=f"tokens over those of {rival}", unit="x", more_is_better=False, n=n, baseline={rival: 1.0},
                value=bootstrap_ratio(columns[LIB]["tokens"], columns[rival]["tokens"]),
                peers={f"{o} over {rival}": tokens[o] / tokens[rival] for o in tokens if o not in (LIB, rival)},
                claim=f"fewer tokens than {who} at equal vocabulary size, on held-out text (interval below 1)",
                holds=below(1), note=note, **said,
            )  # fmt: skip
        if lines.words is not None:
            found = {name: boundary_f1(own, "") for name, own in columns.items()}
            best = max(found[name].value for name in (WORDS, *RIVALS))
            yield Finding(
                metric="F1 of word boundaries, sub-units", value=boundary_f1(columns[LIB], "sub-unit "), unit="F1", n=n,
                baseline={WORDS: found.pop(WORDS).value}, peers={name: f1.value for name, f1 in found.items()},
                claim="its sub-units find words better than the pieces of the four rivals", holds=above(best),
                note=f"{note}; words are what stood between spaces, boundaries inside lines, micro-averaged", **said,
            )  # fmt: skip

    def _speed(self, run: Run, lines: TextLines) -> Finding:
        size, timed = sum(len(line.encode()) for line in lines.held_out) / 1e6, columns_of(run, LIB, "seconds: ")
        rates = {name: bootstrap(size / seconds, np.median) for name, seconds in timed.items()}
        peers = {name: rate.value for name, rate in rates.items() if name != LIB}
        return Finding(
            metric="encoding speed", value=rates[LIB], unit="MB/s", n=len(timed[LIB]), data=lines.data,
            baseline={"bpe (tokenizers)": peers.pop("bpe (tokenizers)")}, peers=peers, holds=from_on(1),
            settings={"vocab_size": self.vocab_size, "threads": 1}, claim="cuts at least 1 MB/s on one core",
            note=f"{size:.2f} MB in {len(lines.held_out)} lines; medians of {len(timed[LIB])} interleaved rounds",
        )  # fmt: skip

    def figures(self, run: Run) -> Iterator[Figure]:
        """Draw characters per token against the vocabulary, and a line in units."""
        first = run.subject.lines[0]
        yield measured.sizes_figure(run, first)
        yield measured.units_figure(run, lambda: self._learned(run, run.arms[LIB], first, self.vocab_size), first)

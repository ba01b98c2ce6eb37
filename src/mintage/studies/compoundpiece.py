"""CompoundPiece: do hyphens teach to split compounds, and does a vocabulary trained on split words respect them?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from mintage.bench.segment import compounds
from mintage.bench.segment.compounds import LANGUAGES, CompoundSubject, Language, right_of
from mintage.measure import Figure, Interval, bootstrap_ratio
from mintage.measure.study import Finding, Measure, Rule, Run, Study, above, all_of, at_least
from mintage.options import option
from mintage.segment import CompoundPiece, Decompounder, TaggerSettings, train_decompounder

TAGGER, MORFESSOR = "CompoundPiece (tagger)", "Morfessor 2.0.6"
CHARSPLIT, FREQUENCY, NEVER = "CharSplit-style n-grams", "frequency DP", "never split"
SPLITTERS = (TAGGER, MORFESSOR, CHARSPLIT, FREQUENCY, NEVER)
PLAIN, SPLIT = "Unigram", "CompoundPiece"


def _one(key: Any, run: Run) -> dict[Any, Any]:
    return {key: key}


@dataclass(frozen=True, kw_only=True)
class CompoundPieceStudy(Study):
    """Test CompoundPiece's claims: hyphens teach to split compounds, and split words make a better vocabulary.

    A tagger learns from the hyphens of German, Hungarian and English text that Debian packages, and is set beside
    Morfessor, CharSplit and a frequency rule on gold words. Then Unigram vocabularies are trained on German with and
    without splitting. Vocabulary sizes and text were chosen on development words: where pieces are small beside
    words, hard compounds are rare with and without splitting. Needs Debian packages: see mintage.data.debian.

    [dim]Examples[/dim]

      mintage bench compoundpiece --words 100 --characters 2000000 --steps 200 --morfessor-words 2000
    """

    method: ClassVar[str] = "compoundpiece"
    job: ClassVar[str] = "segment"

    words: int = option(1000, "Gold compounds, and as many other words, per language and half.", least=1)
    characters: int | None = option(None, "Of text read per language; default all.", least=1)
    steps: int = option(1000, "Steps of the tagger.", least=1)
    morfessor_words: int = option(30_000, "Most frequent words that Morfessor reads.", least=1)
    vocabularies: tuple[int, ...] = option((32_768, 8000), "Vocabulary sizes; the paper's is the first.", least=257)

    def subject(self, run: Run) -> CompoundSubject:
        """Return the words and texts, which are read when they are asked for."""
        return CompoundSubject(self.words, self.characters, self.seed)

    def arms(self, run: Run) -> Mapping[str, Any]:
        """Return what splits words, and what vocabularies are trained with."""
        rivals = compounds.rivals(self.morfessor_words)
        tagger: Any = lambda run, language: self._tagger(run, language).split_all  # noqa: E731
        german: Any = lambda run: self._tagger(run, run.subject.language("de"))  # noqa: E731
        return {**dict(zip(SPLITTERS, (tagger, *rivals), strict=True)), PLAIN: lambda run: "none", SPLIT: german}

    def _tagger(self, run: Run, language: Language) -> Decompounder:
        settings, folder = TaggerSettings(steps=self.steps, seed=self.seed), run.memo.folder / language.name
        said = lambda stage, done, of: run.progress(f"{language.name}: {stage}", done, of)  # noqa: E731
        return train_decompounder(language.pairs, settings, words=language.counts, folder=folder, progress=said)

    def measures(self, run: Run) -> Iterator[Measure]:
        """Split the gold words of every language, then train the vocabularies."""
        for name in LANGUAGES:
            yield Measure(name=f"split {name}", units=partial(_one, name), of=self._split, arms=SPLITTERS)
        for size in self.vocabularies:
            yield Measure(name=f"{size} entries", units=partial(_one, size), of=self._vocabulary, arms=(PLAIN, SPLIT))

    def _split(self, run: Run, arm: Any, name: str) -> dict[str, Any]:
        language = run.subject.language(name)
        return compounds.splitting_columns(language, arm(run, language))

    def _vocabulary(self, run: Run, arm: Any, size: int) -> dict[str, Any]:
        trainer = CompoundPiece(vocab_size=size, decompounder=arm(run), min_count=1, seed=self.seed)
        return {f"{size} {n}": column for n, column in compounds.vocabulary_columns(run.subject, trainer).items()}

    def rows(self, run: Run) -> Iterator[Finding]:
        """Claims about splitting, and about every size of vocabulary."""
        limit = "none" if self.words == 1000 and self.characters is None else self.words  # tells a quick look
        yield from chain(self._splitting(run, limit), *(self._pieces(run, n, limit) for n in self.vocabularies))

    def _splitting(self, run: Run, limit: Any) -> Iterator[Finding]:
        sizes = {name: len(run.column(TAGGER, f"{name} right")) for name in LANGUAGES}
        said: dict[str, Any] = {
            "data": f"gold words, half of them compounds: {', '.join(f'{name} {n}' for name, n in sizes.items())}; "
            "text of Debian packages",
            "settings": {"steps": self.steps, "width": 48, "layers": 3, "threshold": 0.25, "limit": limit},
            "note": compounds.splitting_note(run, TAGGER, self.morfessor_words),
        }
        claim = "self-supervised splitting is >= 10 points of accuracy above Morfessor, mean of three languages"
        test = {"claim": claim, "holds": all_of(at_least(10), above(0))}
        for kind, compound in (("all words", None), ("compounds", True), ("other words", False)):
            right = {arm: [100 * right_of(run, arm, name, compound) for name in LANGUAGES] for arm in SPLITTERS}
            gains = [ours - theirs for ours, theirs in zip(right[TAGGER], right[MORFESSOR], strict=True)]
            means = {arm: float(np.mean([own.mean() for own in right[arm]])) for arm in SPLITTERS}
            yield Finding(
                metric=f"exact-match accuracy of splitting, {kind}, tagger minus Morfessor", unit="points",
                value=compounds.macro_mean(gains), n=sum(map(len, gains)), **(test if compound is None else {}), **said,
            )  # fmt: skip
            yield Finding(
                metric=f"exact-match accuracy of splitting, {kind}, mean of languages", unit="%",
                value=means.pop(TAGGER), n=sum(sizes.values()), baseline={MORFESSOR: means.pop(MORFESSOR)},
                peers=means, **said,
            )  # fmt: skip

    def _pieces(self, run: Run, size: int, limit: Any) -> Iterator[Finding]:
        hard, tokens, f1 = (
            {arm: run.column(arm, f"{size} {name}") for arm in (PLAIN, SPLIT)} for name in ("hard", "tokens", "f1")
        )
        read, octets = (float(run.column(PLAIN, f"{size} {name}")[0]) for name in ("read", "bytes"))
        said: dict[str, Any] = {
            "data": f"German texts, dictionary and thesaurus ({read:.1f} M characters), every 20th piece held out",
            "settings": {"vocab_size": size, "min_count": 1, "limit": limit},
        }
        where, entries, n = f"German, {size:,} entries", f"({size:,} entries)", len(hard[PLAIN])
        if hard[PLAIN].any():
            left = bootstrap_ratio(hard[SPLIT], np.maximum(hard[PLAIN], 1e-9))
            share = {arm: 100 * float(h.mean()) for arm, h in hard.items()}
            yield Finding(
                metric=f"fall of the share of hard compounds, {where}", unit="%", n=n,
                value=Interval(*(100 * (1 - part) for part in reversed(left))),
                claim=f"splitting before training lowers the share of hard compounds by >= 40 % {entries}",
                tested=lambda run: left, holds=Rule("at most 0.6 of the share is left", lambda i: i.value <= 0.6),
                note=f"hard: {share[SPLIT]:.1f} % with splitting, {share[PLAIN]:.1f} % without", **said,
            )  # fmt: skip
        per_token = {arm: octets / float(t.sum()) for arm, t in tokens.items()}
        yield Finding(
            metric=f"bytes per token, CompoundPiece over Unigram, {where}", unit="x", n=len(tokens[PLAIN]),
            value=bootstrap_ratio(tokens[PLAIN], tokens[SPLIT]), holds=at_least(0.97),
            claim=f"bytes per token stay within 3 % of the plain Unigram model's {entries}",
            note=f"{per_token[SPLIT]:.3f} with splitting, {per_token[PLAIN]:.3f} without", **said,
        )  # fmt: skip
        ours, plain = float(f1[SPLIT][0]), float(f1[PLAIN][0])
        yield Finding(
            metric=f"boundary F1 on gold compounds, {where}", unit="F1", value=ours, n=n, baseline={PLAIN: plain},
            claim=f"boundary F1 against constituents is higher than the plain Unigram model's {entries}",
            holds=Rule(f"above {plain:g}", lambda i: i.value > plain), **said,
        )  # fmt: skip

    def figures(self, run: Run) -> Iterator[Figure]:
        """Draw who splits compounds right, and the shares of hard compounds."""
        yield compounds.accuracy_figure(run, SPLITTERS)
        yield compounds.hard_figure(run, (PLAIN, SPLIT), self.vocabularies)

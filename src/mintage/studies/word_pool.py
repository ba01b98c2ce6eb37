"""Word-pool: does a model of words get more whole words right than models of bytes and of subwords?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mintage.bench.lm.byte_studies import BITS, SHARE_RATIO, ByteStudy
from mintage.lm.training.baselines import BPETransformerTraining, ByteTransformerTraining
from mintage.lm.training.byte_training import ByteTraining
from mintage.lm.training.word_pool import WordPoolTraining
from mintage.measure.study import POINTS, Comparison, Finding, Measure, Run, above, at_least, from_on
from mintage.options import option

__all__ = ["WordPoolStudy"]

OURS, ONE, BYTES, BPE = (
    "word-pool, 4 vectors a word",
    "word-pool, 1 vector a word",
    "byte transformer",
    "BPE transformer",
)


@dataclass(frozen=True, kw_only=True)
class WordPoolStudy(ByteStudy):
    """Does a model of words get more whole words right than models of bytes and of subwords?

    Word-pool with four vectors a word and with one, a transformer over bytes and one over BPE tokens are trained on the
    same windows at equal operations per byte. A word is right if all its bytes are the likeliest ones behind the true
    text. First with equal text before it, then as the paper counts: as many *units* of context for each, so that a
    model of bytes sees as many bytes as a model of words sees words.

    Example: mintage bench word-pool --seeds 1 --steps 200
    """

    method: ClassVar[str] = "word-pool"

    units: int = option(24, "Units of context in the paper's setting; its models have 192.", least=2)

    def arms(self, run: Run) -> Mapping[str, ByteTraining]:
        """Return the trainings."""
        return {
            OURS: self.training(WordPoolTraining, self.seed, vectors=4),
            ONE: self.training(WordPoolTraining, self.seed, vectors=1, width=132),
            BYTES: self.training(ByteTransformerTraining, self.seed),
            BPE: self.training(BPETransformerTraining, self.seed),
        }

    def measures(self, run: Run) -> Iterator[Measure]:
        """Read whole windows, then short contexts, then time."""
        yield self.reading()
        yield Measure(name="equal units", units=self._seeds, of=self._equal_units, arms=[OURS, BYTES, BPE])
        yield self.speed()

    def _equal_units(self, run: Run, training: ByteTraining, seed: int) -> dict[str, Any]:
        """Judge the last word of beginnings of windows that hold so many of the model's units."""
        model, held = self.model(run, training, seed).model, run.subject.held
        texts, spans = [], []
        for row, start, stop, _ in held.words[:: max(len(held.words) // 600, 1)]:
            text = held.windows[row].tobytes()[:stop]
            cuts = [cut for cut in model.cuts(text) if cut < start]
            begun = cuts[-self.units] if len(cuts) >= self.units else 0
            texts.append(text[begun:])
            spans.append((start - begun, stop - begun))
        right = []
        for first in range(0, len(texts), 32):
            found = model.read(texts[first : first + 32]).right.cpu().numpy()
            right += [row[a:b].all() for row, (a, b) in zip(found, spans[first : first + 32], strict=True)]
        return {"word at equal units": np.array(right, float)}

    def rows(self, run: Run) -> Iterator[Comparison | Finding]:
        """Words right, bits, and what equal units do."""
        peers = [ONE, BYTES, BPE]
        yield Comparison(
            metric="words right, minus those of bytes, equal text before them",
            ours=OURS,
            rival=BYTES,
            of="word",
            by=POINTS,
            baseline=[BYTES],
            peers=[ONE, BPE],
            claim="at equal text before it, word-pool gets as many words right as a model of bytes, or more",
            holds=from_on(0),
        )
        yield Comparison(
            metric="words right, over those of BPE, equal text before them",
            ours=OURS,
            rival=BPE,
            of="word",
            by=SHARE_RATIO,
            baseline=[BPE],
            peers=[ONE, BYTES],
            claim="at equal text before it, word-pool gets at least 95% as many words right as BPE",
            holds=from_on(0.95),
        )
        for how, told in (("word, new", "not seen in training"), ("word, rare", "seen up to ten times")):
            yield Comparison(
                metric=f"words right, {told}, minus those of BPE",
                ours=OURS,
                rival=BPE,
                of=how,
                by=POINTS,
                baseline=[BPE],
                peers=[ONE, BYTES],
                claim=f"of words {told}, word-pool gets more right than BPE",
                holds=above(0),
                when=lambda run, how=how: how in run.columns[OURS],
            )
        yield Comparison(
            metric=f"words right behind {self.units} units of context, over those of bytes",
            ours=OURS,
            rival=BYTES,
            of="word at equal units",
            by=SHARE_RATIO,
            baseline=[BYTES],
            peers=[BPE],
            claim="behind as many words as the other sees bytes, word-pool gets three times as many words right",
            holds=at_least(3),
            note="As the paper counts context; the difference is the text that each model sees.",
        )
        yield Comparison(metric="bits per byte", ours=OURS, of="bits", by=BITS, baseline=[BYTES], peers=[ONE, BPE])
        yield from self.speed_rows(run, OURS, BYTES, peers=peers)

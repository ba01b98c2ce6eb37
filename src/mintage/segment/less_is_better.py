"""Less-is-Better (LiB): learn a ranked lexicon of subwords, words and phrases by memorising and forgetting.

The learner reads articles, always taking the longest unit that it knows. It memorises units that keep standing side by
side, moves a unit up when reading with it needs fewer steps than reading with its next-shorter rival, down when it does
not, and forgets what is not used on probation (`mintage.segment.lexicon`). No pre-tokenizer is needed: units may hold
spaces, and text without spaces is read the same way. A newline ends a sentence; no unit crosses it.

Training is that of the authors' code (the 2020 model that the paper re-uses), number for number when nothing is drawn
(``memorize=1``). Ours: articles are drawn from a bounded sample of the corpus, so that it can stream; the tokenizer is
made byte-lossless, by 256 byte tokens and an alphabet that stays even where the learner forgot a character.

Not here: the skip-gram mode, which the authors' code has as an experiment.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mintage.errors import UserError
from mintage.options import option
from mintage.progress import Progress, silent
from mintage.segment.contract import MOST_ENTRIES, Trainer, as_bytes
from mintage.segment.core.artefact import read_work, write_work
from mintage.segment.lexicon import Lexicon
from mintage.segment.longest_match import LiBSegmenter

__all__ = ["LiB", "LiBSegmenter"]

_READ = 14_000_000  # characters: the authors' 5000 articles of 200 utterances of 14 characters
_LONGEST = 2000  # characters of a line read as one sentence
_SAVE_EVERY = 10  # articles
_LEXICON_SETTINGS = ("max_len", "life", "memorize", "forget", "update", "max_gap")


@dataclass(frozen=True, kw_only=True)
class LiB(Trainer):
    """Train a Less-is-Better tokenizer; the letters are the paper's.

    Yang, "Rethinking Tokenization: Crafting Better Tokenizers for Large Language Models", 2024 (arXiv:2403.00417);
    Yang, Frank and van den Bosch, "Less is Better", CogALex 2020.
    """

    vocab_size: int | None = option(
        None, "Entries: bytes, alphabet, best units, as many as were learned; None: all.", least=257, most=MOST_ENTRIES
    )
    max_len: int = option(
        12,
        "Characters of the longest unit, in training and after (the authors: 12, then 10).",
        least=1,
    )
    life: int = option(10, "Articles in which a unit on probation must prove itself, or it is forgotten.", least=1)
    memorize: float = option(0.25, "Probability that neighbours are noted for memorising (alpha).", least=0, most=1)
    forget: float = option(
        1e-4, "Share of the lexicon, at its tail, that goes on probation after every article (omega).", least=0, most=1
    )
    update: float = option(0.2, "Share of its rank by which a unit moves (delta).", least=0, most=1)
    max_gap: int = option(2, "Unknown characters in a row that may become one unit.", least=0)
    article_size: int = option(
        200, "Lines drawn for an article, with replacement; doubles are dropped, as in the authors' demo.", least=1
    )
    epochs: int | None = option(
        None, "Articles read (the authors' epochs); None reads 14 million characters, as much as they did.", least=1
    )
    pool: int = option(
        100_000, "Lines held in memory, from which articles are drawn: an even sample of a longer corpus.", least=1
    )
    character_coverage: float = option(
        1.0, "Share of the characters read that the alphabet must cover; rarer ones become bytes.", least=0, most=1
    )
    seed: int = option(0, "Of the sample, the articles and the memorising.", least=0, below=2**63)

    def train(
        self, texts: Iterable[str], *, work: str | Path | None = None, progress: Progress = silent
    ) -> LiBSegmenter:
        """Learn a lexicon and make a tokenizer of it.

        Parameters
        ----------
        texts
            Documents, read once; lines of more than 2000 characters are read in pieces of that length.
        work
            A folder that keeps the lexicon every 10 articles; the same call goes on from there after a kill, and one
            with more `epochs` or another `vocab_size` from the end.
        progress
            Told the sentences collected and the articles read.

        Raises
        ------
        UserError
            The corpus is empty, `vocab_size` is smaller than the bytes and the alphabet, or `work` holds other work.
        """
        sentences = self._sample(texts, progress)
        alphabet = self._alphabet(sentences)
        fixed = 256 + sum(char > "\x7f" for char in alphabet)
        if self.vocab_size is not None and self.vocab_size < fixed:
            raise UserError(
                f"vocab_size={self.vocab_size} is smaller than 256 bytes and {fixed - 256} characters; "
                f"pass more than {fixed}, or a character_coverage below {self.character_coverage:g}"
            )
        lexicon = self._learn(sentences, alphabet, None if work is None else Path(work) / "lib.json", progress)
        room = None if self.vocab_size is None else self.vocab_size - fixed
        return LiBSegmenter(_best(lexicon.units, alphabet, room), alphabet)

    def _sample(self, texts: Iterable[str], progress: Progress) -> list[str]:
        """Return the corpus's sentences, or an even sample of `pool` of them (reservoir sampling)."""
        if isinstance(texts, (str, bytes)):
            raise UserError("a corpus is an iterable of texts, not one text; pass [text], or Corpus(path) for a file")
        rng = random.Random(f"{self.seed} sample")
        sample: list[str] = []
        for count, sentence in enumerate(_sentences(texts)):
            if count < self.pool:
                sample.append(sentence)
            elif (index := rng.randrange(count + 1)) < self.pool:
                sample[index] = sentence
            if count % 10_000 == 0:
                progress("collecting", count, 0)
        if not sample:
            raise UserError("the corpus is empty; pass at least one line of text")
        return sample

    def _alphabet(self, sentences: list[str]) -> list[str]:
        """Return the characters, in code order, that make up `character_coverage` of the sample."""
        counts: Counter[str] = Counter()
        for sentence in sentences:
            counts.update(sentence)
        left = (1 - self.character_coverage) * counts.total()
        kept = set(counts)
        for char, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
            if count > left:
                break
            left -= count
            kept.remove(char)
        return sorted(kept)

    def _learn(self, sentences: list[str], alphabet: list[str], state: Path | None, progress: Progress) -> Lexicon:
        settings = {name: getattr(self, name) for name in _LEXICON_SETTINGS}
        lexicon, done = Lexicon(alphabet, dict.fromkeys(alphabet, self.life), **settings), 0
        epochs, mark = self._epochs(sentences), ""
        if state:
            mark = self._mark(sentences)
            if (held := read_work(state, mark, "articles", "units", "probation")) is not None:
                done, units, probation = held
                lexicon = Lexicon(units, probation, **settings)
            if done > epochs:
                raise UserError(f"{state} holds {done} articles, epochs={epochs}; pass more epochs or another folder")
        for article in range(done, epochs):
            # every article has a generator of its own, so that a resumed run draws what the killed one would have
            rng = random.Random(f"{self.seed} article {article}")
            drawn = sorted(set(rng.choices(range(len(sentences)), k=self.article_size)))
            lexicon.read([sentences[k] for k in drawn], rng)
            progress("reading articles", article + 1, epochs)
            if state and ((article + 1) % _SAVE_EVERY == 0 or article + 1 == epochs):
                write_work(state, mark, articles=article + 1, units=lexicon.units, probation=lexicon.probation)
        return lexicon

    def _epochs(self, sentences: list[str]) -> int:
        mean = sum(map(len, sentences)) / len(sentences)
        return self.epochs or math.ceil(_READ / (mean * self.article_size))

    def _mark(self, sentences: list[str]) -> str:
        """What a lexicon half learned depends on: the sample and the settings, but not how long or how much is kept."""
        settings = {name: v for name, v in asdict(self).items() if name not in ("epochs", "vocab_size")}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for sentence in sentences:
            digest.update(sentence.encode() + b"\n")
        return digest.hexdigest()[:16]

    @classmethod
    def tiny(cls) -> LiB:
        """Learn from a few lines in a fraction of a second."""
        return cls(vocab_size=480, epochs=30, memorize=0.5)


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        as_bytes(text)  # tells a lone surrogate
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST):
                yield line[start : start + _LONGEST]


def _best(units: list[str], alphabet: list[str], room: int | None) -> list[str]:
    """Return the units of best rank, so many that they and the alphabet fill the vocabulary; bytes take no room."""
    if room is None:
        return units
    free, kept = set(alphabet), []
    for unit in units:
        if unit in free or (len(unit) == 1 and unit <= "\x7f"):
            kept.append(unit)
        elif room:
            kept.append(unit)
            room -= 1
    return kept

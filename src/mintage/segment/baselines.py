"""The rivals: what the field trains today, as trainers of this contract, all lossless over the 256 bytes.

Not here: normalisation, special tokens, and SuperBPE's two stages (`SuperwordBPE` has no word boundary from the start).
"""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Any, ClassVar, Literal

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage.data import Texts, as_corpus, count_words
from mintage.errors import UserError, missing_extra
from mintage.options import option
from mintage.progress import Progress, silent
from mintage.segment.contract import MOST_ENTRIES, Trainer, as_bytes
from mintage.segment.core.artefact import read_work, write_work
from mintage.segment.core.hf import HFSegmenter, byte_level, to_byte_chars
from mintage.segment.core.unigram import learn_unigram
from mintage.tokenizer_files.letters import BYTE_CHARS

__all__ = [
    "BPE",
    "ByLanguage",
    "ByteLevel",
    "Morfessor",
    "ParityBPE",
    "SuperwordBPE",
    "Unigram",
    "WordPiece",
]

_ALPHABET = list(BYTE_CHARS)


# -- what all of them share ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Baseline(Trainer):
    """Checks the corpus; a subclass makes the tokenizer."""

    vocab_size: int = option(
        32_000,
        "Entries at most, the 256 bytes among them; a small corpus may not fill them.",
        least=256,
        most=MOST_ENTRIES,
    )

    segmenter: ClassVar[type[HFSegmenter]]

    def train(
        self, texts: Iterable[str], *, work: str | Path | None = None, progress: Progress = silent
    ) -> HFSegmenter:
        """Train; see `Trainer.train`. Methods that count words first keep the counts in `work`, the others nothing."""
        tokenizer = self._fit(as_corpus(texts), Path(work) if work else None, progress)
        return self.segmenter(tokenizer)

    @abstractmethod
    def _fit(self, texts: Texts, work: Path | None, progress: Progress) -> Tokenizer:
        """Train a byte-level tokenizer."""


def _checked(texts: Iterable[str], progress: Progress, stage: str = "reading characters") -> Iterator[str]:
    """Pass documents on; a corpus without text and a lone surrogate are told."""
    seen = 0
    for text in texts:
        as_bytes(text)
        if text:
            seen += len(text)
            progress(stage, seen, 0)
            yield text
    if not seen:
        raise UserError("the corpus is empty; pass some text to learn from")


def _settings(vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "initial_alphabet": _ALPHABET,
        "special_tokens": [],
        "show_progress": False,
    }


@cache
def _words() -> Any:
    """GPT-2's words, as every tokenizer here sees them."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split(text: str) -> list[str]:
    return [word for word, _ in _words().pre_tokenize_str(text)]


def _spans(text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in _words().pre_tokenize_str(text)]


def _counted(texts: Texts, words: Callable[[str], list[str]], work: Path | None, progress: Progress) -> Counter[str]:
    """Count words; `work` keeps the counts of a killed call."""
    if work:
        work.mkdir(parents=True, exist_ok=True)
    checked = _Checked(texts)
    state = work / f"words-{words.__name__.strip('_')}.json" if work else None
    counts = count_words(checked, words, state=state, progress=lambda seen: progress("counting characters", seen, 0))
    if not counts:
        raise UserError("the corpus is empty; pass some text to learn from")
    return counts


class _Checked:
    """A corpus whose lone surrogates are told; it keeps the fingerprint by which a count is resumed."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.fingerprint = getattr(texts, "fingerprint", "")

    def __iter__(self) -> Iterator[str]:
        return _checked(self.texts, silent)


# -- the library's own trainers ------------------------------------------------------------------------------------


class BPESegmenter(HFSegmenter):
    """What `BPE` trains."""

    method = "bpe"


@dataclass(frozen=True, kw_only=True)
class BPE(_Baseline):
    """Byte-pair encoding (Sennrich et al., 2016) over bytes within GPT-2's words; tokenizers' trainer."""

    segmenter = BPESegmenter

    def _fit(self, texts: Texts, work: Path | None, progress: Progress) -> Tokenizer:
        tokenizer = byte_level(models.BPE(), regex=True)
        tokenizer.train_from_iterator(_checked(texts, progress), trainers.BpeTrainer(**_settings(self.vocab_size)))
        return tokenizer

    @classmethod
    def tiny(cls) -> BPE:
        """Make a trainer of 300 entries."""
        return cls(vocab_size=300)


class SuperwordBPESegmenter(HFSegmenter):
    """What `SuperwordBPE` trains."""

    method = "superword-bpe"


@dataclass(frozen=True, kw_only=True)
class SuperwordBPE(_Baseline):
    """Byte-pair encoding without a word boundary: a token may span words, as in "of the".

    Training time grows with the square of an unsplit string's length, so documents are cut into chunks for training,
    at white space where there is some. Encoding cuts nothing.
    """

    chunk: int = option(200, "Characters of a training chunk at most.", least=2)

    segmenter = SuperwordBPESegmenter

    def _fit(self, texts: Texts, work: Path | None, progress: Progress) -> Tokenizer:
        tokenizer = byte_level(models.BPE())
        chunks = (chunk for text in _checked(texts, progress) for chunk in _chunks(text, self.chunk))
        tokenizer.train_from_iterator(chunks, trainers.BpeTrainer(**_settings(self.vocab_size)))
        return tokenizer

    @classmethod
    def tiny(cls) -> SuperwordBPE:
        """Make a trainer of 300 entries."""
        return cls(vocab_size=300)


def _chunks(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at most `size` characters, before the last space of each where it has one."""
    start = 0
    while len(text) - start > size:
        space = text.rfind(" ", start + 1, start + size)
        end = space if space > start else start + size
        yield text[start:end]
        start = end
    yield text[start:]


class WordPieceSegmenter(HFSegmenter):
    """What `WordPiece` trains."""

    method = "wordpiece"


@dataclass(frozen=True, kw_only=True)
class WordPiece(_Baseline):
    """Greedy longest match over a vocabulary learned by merging; tokenizers' trainer.

    That trainer merges the most frequent pair, not the one of highest likelihood (Schuster and Nakajima, 2012). Pieces
    inside a word carry no ``##``, so that 256 bytes are enough to lose nothing.
    """

    longest: int = option(
        64,
        "Words are cut after so many characters: the library's match takes more than quadratic time in their length.",
        least=1,
    )

    segmenter = WordPieceSegmenter

    def _fit(self, texts: Texts, work: Path | None, progress: Progress) -> Tokenizer:
        words = pre_tokenizers.Split(_gpt2_pattern(), "isolated")
        cut = pre_tokenizers.FixedLength(self.longest)
        inner: Any = models.WordPiece
        tokenizer = byte_level(inner(max_input_chars_per_word=4 * self.longest + 1), words, cut)
        trainer = trainers.WordPieceTrainer(**_settings(self.vocab_size), continuing_subword_prefix="")
        tokenizer.train_from_iterator(_checked(texts, progress), trainer)
        # training makes the model anew, with the library's own limit and a prefix; only the vocabulary is kept
        held = json.loads(tokenizer.to_str())
        held["model"] |= {"continuing_subword_prefix": "", "max_input_chars_per_word": 4 * self.longest + 1}
        return Tokenizer.from_str(json.dumps(held))

    @classmethod
    def tiny(cls) -> WordPiece:
        """Make a trainer of 300 entries."""
        return cls(vocab_size=300)


def _gpt2_pattern() -> Any:
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


class BytesSegmenter(HFSegmenter):
    """What `ByteLevel` makes."""

    method = "bytes"


@dataclass(frozen=True, kw_only=True)
class ByteLevel(Trainer):
    """The 256 bytes, nothing learned: id = byte."""

    def train(
        self, texts: Iterable[str], *, work: str | Path | None = None, progress: Progress = silent
    ) -> HFSegmenter:
        """Learn nothing, but refuse an empty corpus as every other trainer does."""
        next(_checked(as_corpus(texts), progress))
        vocabulary = {char: byte for byte, char in enumerate(BYTE_CHARS)}
        return BytesSegmenter(byte_level(models.BPE(vocab=vocabulary, merges=[])))

    @classmethod
    def tiny(cls) -> ByteLevel:
        """Make the only one there is."""
        return cls()


# -- parity over languages -----------------------------------------------------------------------------------------


class ByLanguage:
    """A corpus whose languages are known; every trainer can read it, `ParityBPE` balances its languages.

    Parameters
    ----------
    texts
        Language to documents that can be read more than once.
    dev
        Language to parallel documents (the same content in every language), by which tokens are compared.

    Raises
    ------
    UserError
        No language, or `dev` names other ones.
    """

    def __init__(self, texts: Mapping[str, Texts], *, dev: Mapping[str, Texts] | None = None) -> None:
        if not texts:
            raise UserError("no language given; pass {'de': texts, 'en': texts}")
        if dev is not None and set(dev) != set(texts):
            odd = sorted(set(dev) ^ set(texts))
            raise UserError(f"{odd[0]} is in only one of texts and dev; give both the same languages")
        self.texts, self.dev = dict(texts), dict(dev) if dev is not None else None

    @property
    def fingerprint(self) -> str:
        """Changes with the languages and what their corpora say of themselves."""
        return json.dumps([[lang, getattr(texts, "fingerprint", "")] for lang, texts in self.texts.items()])

    def __iter__(self) -> Iterator[str]:
        """Read one language after the other."""
        for texts in self.texts.values():
            yield from texts


def _by_script(texts: Texts) -> ByLanguage:
    """Sort documents by the script of most of their letters: the labels of a corpus without any."""
    scripts: dict[str, list[str]] = {}
    for text in texts:
        scripts.setdefault(_script(text), []).append(text)
    if not scripts:
        raise UserError("the corpus is empty; pass some text to learn from")
    return ByLanguage(scripts)


def _script(text: str) -> str:
    from unicodedata import name

    counts = Counter(name(char, "NONE").split()[0] for char in text[:2000] if char.isalpha())
    return min(counts, key=lambda script: (-counts[script], script)) if counts else "NONE"


class ParityBPESegmenter(HFSegmenter):
    """What `ParityBPE` trains."""

    method = "parity-bpe"


@dataclass(frozen=True, kw_only=True)
class ParityBPE(_Baseline):
    """Parity-aware byte-pair encoding: every merge goes to the language that is worst compressed so far.

    Pass a `ByLanguage`. With parallel `dev` texts, languages are compared by their tokens on these; without, by bytes
    per token, in proportion to their bytes per character (so that all get equal characters per token). A corpus without
    labels is sorted by script. tokenizers' trainer.
    """

    variant: Literal["base", "window"] = option(
        "base", "window never serves one language for long; see tokenizers.trainers.ParityBpeTrainer."
    )
    global_merges: int = option(0, "Ordinary merges before the balancing begins.", least=0)

    segmenter = ParityBPESegmenter

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.global_merges > self.vocab_size - 256:
            raise UserError(
                f"global_merges={self.global_merges} is outside 0..{self.vocab_size - 256}, "
                "the merges that this vocab_size has; pass fewer"
            )

    def _fit(self, texts: Texts, work: Path | None, progress: Progress) -> Tokenizer:
        labelled = texts if isinstance(texts, ByLanguage) else _by_script(texts)
        languages = {}
        for language, corpus in labelled.texts.items():
            sizes = [(len(as_bytes(text)), len(text)) for text in corpus]
            if sum(characters for _, characters in sizes):
                languages[language] = sum(b for b, _ in sizes) / sum(c for _, c in sizes)
        if not languages:
            raise UserError("the corpus is empty; pass some text to learn from")
        balance: dict[str, Any] = {} if labelled.dev else {"ratio": list(languages.values())}
        settings = _settings(self.vocab_size)
        settings["num_merges"] = settings.pop("vocab_size") - 256
        trainer = trainers.ParityBpeTrainer(
            **settings, **balance, variant=self.variant, global_merges=self.global_merges
        )
        dev = labelled.dev
        tokenizer = byte_level(models.BPE(), regex=True)
        trainer.train_from_iterator(
            tokenizer,
            train_iterators=[_checked(labelled.texts[n], progress, f"reading characters of {n}") for n in languages],
            dev_iterators=[_checked(dev[n], silent) for n in languages] if dev else None,
        )
        return tokenizer

    @classmethod
    def tiny(cls) -> ParityBPE:
        """Make a trainer of 300 entries."""
        return cls(vocab_size=300)


# -- Unigram and Morfessor: pieces with costs, cut by Viterbi --------------------------------------------------------


def _unigram(pieces: Mapping[str, float]) -> Tokenizer:
    """Make a Unigram tokenizer of pieces in ByteLevel characters; a byte that is not among them is a last resort."""
    last_resort = min(pieces.values(), default=0.0) - 20.0
    vocabulary = dict.fromkeys(BYTE_CHARS, last_resort) | dict(pieces)
    # the library's JSON parser is exact for short numbers only; others would change by being saved
    scored = [(piece, round(score, 6)) for piece, score in vocabulary.items()]
    return byte_level(models.Unigram(scored, None, False), regex=True)


class UnigramSegmenter(HFSegmenter):
    """What `Unigram` trains."""

    method = "unigram"


@dataclass(frozen=True, kw_only=True)
class Unigram(_Baseline):
    """Unigram language model (Kudo, 2018) over bytes within GPT-2's words; sentencepiece's trainer, seeds counted here.

    tokenizers has a trainer too; it is not used because two runs of it on the same text differ.
    """

    max_piece_length: int = option(
        48,
        "Bytes of a piece at most; the default is sentencepiece's 16 characters where these take three bytes.",
        least=1,
        most=512,
    )

    segmenter = UnigramSegmenter

    def _fit(self, texts: Texts, work: Path | None, progress: Progress) -> Tokenizer:
        counts = _counted(texts, _split, work, progress)
        progress("training", 0, 1)
        pieces = learn_unigram(counts, self.vocab_size, self.max_piece_length)
        progress("training", 1, 1)
        return _unigram(_fitting(pieces, pieces, self.vocab_size))

    @classmethod
    def tiny(cls) -> Unigram:
        """Make a trainer of 320 entries."""
        return cls(vocab_size=320)


def _fitting(pieces: Mapping[str, float], rank: Mapping[str, float], vocab_size: int) -> dict[str, float]:
    """Keep the pieces of highest `rank` that have room beside the 256 bytes; single bytes always have room."""
    longer = sorted((p for p in pieces if len(p) > 1), key=lambda p: (-rank[p], p))
    kept = {*longer[: vocab_size - 256], *BYTE_CHARS}
    return {piece: score for piece, score in pieces.items() if piece in kept}


class MorfessorSegmenter(HFSegmenter):
    """What `Morfessor` trains."""

    method = "morfessor"


@dataclass(frozen=True, kw_only=True)
class Morfessor(_Baseline):
    """Morfessor Baseline (Creutz and Lagus, 2005; version 2.0.6): the lexicon of morphs of least description length.

    The words of the corpus, without the space before them, train the library's model. Its morphs with their costs
    become a Unigram tokenizer, whose Viterbi search is Morfessor's own. A space is free: it goes with the morph after
    it where that pair was seen in training and else stands alone, so that words are cut as Morfessor cuts them. Where
    morphs do not fit into `vocab_size`, the rarest are left out; what has no morph falls to bytes.
    """

    dampening: Literal["none", "log", "ones"] = option(
        "ones", "What a word counts: its tokens, their logarithm, or one. none keeps frequent words whole."
    )
    corpus_weight: float = option(1.0, "Above 1 cuts less, below 1 cuts more.", above=0)
    max_epochs: int = option(
        10, "Passes over the words at most; training ends when a pass gains less than 0.005 per word.", least=1
    )
    seed: int = option(0, "Of the order of the words in a pass.", least=0, below=2**63)

    segmenter = MorfessorSegmenter

    def _fit(self, texts: Texts, work: Path | None, progress: Progress) -> Tokenizer:
        counts = _counted(texts, _spans, work, progress)
        words: Counter[str] = Counter()
        for span, count in counts.items():
            word = span.strip()
            if word and len(word) <= 64:  # longer ones are no words, and cost Morfessor quadratic time
                words[word] += count
        if not words:
            return _unigram({})  # white space only
        model = self._train(words, work, progress)
        return _unigram(self._pieces(model, counts))

    def _train(self, words: Counter[str], work: Path | None, progress: Progress) -> Any:
        """Run the library's batch training epoch by epoch; `work` keeps the cuts of a killed one."""
        try:
            import morfessor
            from morfessor import utils
        except ModuleNotFoundError:
            raise missing_extra("morfessor", "segment") from None
        utils.show_progress_bar = False
        dampen = {"none": int, "log": lambda n: round(log(n + 1, 2)), "ones": lambda n: 1}[self.dampening]
        model = morfessor.BaselineModel(corpusweight=self.corpus_weight)
        kept = work / "morfessor.json" if work else None
        data = [(dampen(count), word) for word, count in sorted(words.items())]
        mark = json.dumps([self.dampening, self.corpus_weight, self.seed, sum(n for n, _ in data), len(data)])
        begun = None if kept is None else read_work(kept, mark, "epochs", "cost", "cuts")
        done, cost, cuts = begun or (0, 0.0, [])
        if cuts:
            model.load_segmentations((n, "".join(parts), parts) for n, parts in cuts)
        else:
            model.load_data(data)
            cost = model.get_cost()
        boundaries = sum(n for n, _ in data)
        for epoch in range(done, self.max_epochs):
            progress("epochs of Morfessor", epoch, self.max_epochs)
            with _own_random(f"{self.seed} {epoch}"):
                _, now = model.train_batch(max_epochs=1)
            gained, cost = cost - now, now
            if kept:
                cuts = [[count, parts] for count, _, parts in model.get_segmentations()]
                write_work(kept, mark, epochs=epoch + 1, cost=cost, cuts=cuts)
            if gained < 0.005 * boundaries:
                break
        progress("epochs of Morfessor", self.max_epochs, self.max_epochs)
        if kept:
            kept.unlink(missing_ok=True)
        return model

    def _pieces(self, model: Any, counts: Counter[str]) -> dict[str, float]:
        """Write the morphs' costs as log probabilities, and the morphs that follow a space a second time with it."""
        morphs = {morph: log(count) for morph, count in model.get_constructions() if len(morph) <= 30}
        analysed = list(model.get_segmentations())
        total = log(model.tokens + sum(count for count, _, _ in analysed))  # as in its viterbi_segment
        cuts = {word: parts for _, word, parts in analysed}
        seen: Counter[str] = Counter()
        for span, count in counts.items():
            word = span.strip()
            for index, morph in enumerate(cuts.get(word, ())):
                spaced = index == 0 and span.startswith(" ") and span[1:] == word
                seen[(" " if spaced else "") + morph] += count
        # a space costs next to nothing, and less with its morph than alone, so the cuts are those of the bare word
        scores = {m: morphs[m.removeprefix(" ")] - total for m in seen if m.removeprefix(" ") in morphs}
        pieces = {to_byte_chars(m): score for m, score in scores.items()}
        rank = {to_byte_chars(m): float(n) for m, n in seen.items()}
        return _fitting(pieces, rank, self.vocab_size) | {to_byte_chars(" "): -1e-3}

    @classmethod
    def tiny(cls) -> Morfessor:
        """Make a trainer of 400 entries."""
        return cls(vocab_size=400, max_epochs=3)


@contextmanager
def _own_random(seed: str) -> Iterator[None]:
    """Lend the global generator, which Morfessor shuffles with, and give it back as it was."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)

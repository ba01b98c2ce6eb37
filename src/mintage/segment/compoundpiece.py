"""CompoundPiece: split compounds before a Unigram vocabulary is trained, so that its pieces stop at constituents.

Minixhofer, Pfeiffer and Vulić, EMNLP 2023, arXiv 2305.14214. The steps, in the paper's order:

1. Words are counted with their hyphens, and give self-supervised training data (`mintage.segment.hyphens`).
2. A splitter learns from the pairs (`mintage.segment.decompounder`; a small tagger stands in for the paper's ByT5).
3. `CompoundPiece` counts pre-tokens, splits them, and trains a Unigram model on the pieces. The splitter is not needed
   afterwards: the product is an ordinary tokenizer.

Pre-tokens and the training share this file because the pieces that are counted are pieces of pre-tokens.
Deviation: the vocabulary is over bytes, so that by default nothing is lost; ``normalize=True`` brings the paper's NFKC
and single spaces back, still over bytes. Not here: the 56 languages of Wiktionary and ByT5.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

import regex

from mintage.data import as_corpus
from mintage.errors import UserError
from mintage.options import option
from mintage.progress import Progress, silent
from mintage.segment.contract import MOST_ENTRIES, Trainer, as_bytes
from mintage.segment.core.artefact import counted
from mintage.segment.core.hf import HFSegmenter, byte_level, to_byte_chars
from mintage.segment.core.unigram import learn_unigram
from mintage.segment.hyphens import hyphen_pairs, web_words
from mintage.tokenizer_files.letters import BYTE_CHARS

__all__ = ["CompoundPiece", "CompoundPieceTokenizer", "Splitter", "lossless_pretokens", "pretokens"]

_SEPARATOR = r"[\p{Z}\n\t\r]"
_PARTS = regex.compile(rf"{_SEPARATOR}+|[\p{{S}}\p{{P}}]+|[^\p{{S}}\p{{P}}\p{{Z}}\n\t\r]+")
_WHOLE = regex.compile(r"[\p{P}\p{S}\p{N}\s]*")


# -- pre-tokens (section 3.4) --------------------------------------------------------------------------------------


def pretokens(text: str) -> list[str]:
    """Cut text as the paper does: NFKC; separators cut and vanish, runs of punctuation and symbols stand alone.

    A token after separators starts with one space, however many they were.
    """
    tokens, space = [], ""
    for part in _PARTS.findall(unicodedata.normalize("NFKC", text)):
        if _is_separator(part[0]):
            space = " "
        else:
            tokens.append(space + part)
            space = ""
    return tokens


def lossless_pretokens(text: str) -> list[str]:
    """Cut as `pretokens` does but keep everything: the tokens joined are `text`.

    The last space before a token starts it; all other separators stand alone, in runs.
    """
    tokens, space = [], ""
    for part in _PARTS.findall(text):
        if not _is_separator(part[0]):
            tokens.append(space + part)
            space = ""
            continue
        space = " " if part[-1] == " " else ""
        if rest := part[: len(part) - len(space)]:
            tokens.append(rest)
    return [*tokens, space] if space else tokens


def _is_separator(char: str) -> bool:
    return char in "\n\t\r" or unicodedata.category(char)[0] == "Z"


# -- the tokenizer ------------------------------------------------------------------------------------------------


@runtime_checkable
class Splitter(Protocol):
    """Splits compounds: `mintage.segment.decompounder.Decompounder`, or anything else with this method."""

    def split_all(self, words: Sequence[str]) -> list[list[str]]:
        """Return the pieces of every word; joined they are the word."""
        ...


class CompoundPieceTokenizer(HFSegmenter):
    """A Unigram model over bytes; with ``normalize=True`` a normalizer stands before it and `lossless` is False."""

    method = "compoundpiece"

    @property
    def lossless(self) -> bool:
        """Whether every text comes back as it was."""
        return self.tokenizer.normalizer is None


@dataclass(frozen=True, kw_only=True)
class CompoundPiece(Trainer):
    """Train a Unigram tokenizer on words split at their constituents."""

    vocab_size: int = option(
        32_768,
        "Entries, the 256 bytes included; fewer where the text has fewer pieces. The paper's is for one language.",
        least=257,
        most=MOST_ENTRIES,
    )
    decompounder: str | object = option(
        "train",
        "train learns to split from the corpus's own hyphens; none never splits (the baseline); else what "
        "Decompounder.save wrote, or an object with split_all.",
    )
    min_count: int = option(
        16, "A token must occur so often, and counts for one per so many; 1 keeps all (small corpora).", least=1
    )
    max_bytes: int = option(32, "Longer tokens are left out.", least=2)
    normalize: bool = option(
        False, "Apply NFKC and make runs of white space one space, as in the paper; then text is lost."
    )
    tagger_steps: int = option(1000, "Of the splitter where it is trained: steps.", least=1)
    tagger_width: int = option(48, "Of the splitter: channels.", least=1)
    tagger_layers: int = option(3, "Of the splitter: blocks.", least=1)
    lexicon_size: int = option(100_000, "Of the splitter: most frequent words that it knows.", least=0)
    processes: int = option(1, "Processes that count words; the outcome does not depend on it.", least=1)
    max_words: int = option(10_000_000, "About how many different words are held while counting.", least=1)
    seed: int = option(0, "Of the splitter's training.", least=0, below=2**63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.decompounder, str | Path | Splitter):
            raise UserError(f"decompounder={self.decompounder!r}; pass 'train', 'none', a saved one, or a splitter")

    @classmethod
    def tiny(cls) -> CompoundPiece:
        """Train a splitter in three steps, which learns next to nothing, and 320 entries."""
        return cls(vocab_size=320, min_count=1, tagger_steps=3, tagger_width=8, tagger_layers=1, lexicon_size=100)

    def train(
        self, texts: Iterable[str], *, work: str | Path | None = None, progress: Progress = silent
    ) -> CompoundPieceTokenizer:
        """Count, split, train; see `Trainer.train`. Counts and the splitter's training are kept in `work`."""
        corpus = as_corpus(texts)
        if work is None:
            with TemporaryDirectory() as folder:
                return self._train(corpus, Path(folder), progress)
        Path(work).mkdir(parents=True, exist_ok=True)
        return self._train(corpus, Path(work), progress)

    def _train(self, corpus: Iterable[str], work: Path, progress: Progress) -> CompoundPieceTokenizer:
        cut = pretokens if self.normalize else lossless_pretokens
        tokens = self._counted(corpus, cut, work, progress)
        if not tokens:
            raise UserError("the corpus is empty; pass texts to learn from")
        weights = {
            token: count // self.min_count
            for token, count in tokens.items()
            if count >= self.min_count and len(as_bytes(token)) < self.max_bytes
        }
        if not weights:
            raise UserError(
                f"no token occurs {self.min_count} times in less than {self.max_bytes} bytes; pass min_count=1"
            )
        pieces = self._split(weights, corpus, work, progress)
        return self._unigram(pieces, progress)

    def _split(self, weights: Mapping[str, int], corpus: Iterable[str], work: Path, progress: Progress) -> Counter[str]:
        """Return the weights of pieces. Tokens of digits, punctuation (hyphens) and white space stay whole."""
        pieces: Counter[str] = Counter()
        splitter = self._splitter(corpus, work, progress)
        if splitter is None:
            pieces.update(weights)
            return pieces
        splittable = []
        for token, weight in weights.items():
            if _WHOLE.fullmatch(token):
                pieces[token] += weight
            else:
                splittable.append(token)
        step = 1 << 16
        for start in range(0, len(splittable), step):
            progress("split", start, len(splittable))
            chunk = splittable[start : start + step]
            words = [token.removeprefix(" ") for token in chunk]
            for token, word, parts in zip(chunk, words, splitter.split_all(words), strict=True):
                if "".join(parts) != word:
                    raise UserError(f"the decompounder split {word!r} into {parts}; joined these are not the word")
                for number, part in enumerate(parts):
                    pieces[token[: len(token) - len(word)] + part if number == 0 else part] += weights[token]
        progress("split", len(splittable), len(splittable))
        return pieces

    def _splitter(self, corpus: Iterable[str], work: Path, progress: Progress) -> Splitter | None:
        if not isinstance(self.decompounder, str | Path):
            return self.decompounder  # pyright: ignore[reportReturnType]
        if str(self.decompounder) == "none":
            return None
        from mintage.segment import Decompounder, TaggerSettings, train_decompounder

        if str(self.decompounder) != "train":
            return Decompounder.load(self.decompounder)
        words = self._counted(corpus, web_words, work, progress)
        pairs = hyphen_pairs(words, seed=self.seed)
        if not pairs:
            raise UserError(
                "no word of the corpus has a hyphen to learn from; pass decompounder='none', or a saved Decompounder"
            )
        settings = TaggerSettings(
            steps=self.tagger_steps,
            width=self.tagger_width,
            layers=self.tagger_layers,
            lexicon=self.lexicon_size,
            seed=self.seed,
        )
        return train_decompounder(pairs, settings, words=words, folder=work / "decompounder", progress=progress)

    def _counted(
        self, corpus: Iterable[str], words: Callable[[str], Iterable[str]], work: Path, progress: Progress
    ) -> Counter[str]:
        return counted(corpus, words, work, progress, processes=self.processes, max_words=self.max_words)

    def _unigram(self, pieces: Mapping[str, int], progress: Progress) -> CompoundPieceTokenizer:
        """Train SentencePiece's Unigram on the pieces in byte characters, and hand it to `tokenizers`."""
        from tokenizers import Regex, models, normalizers

        progress("train the Unigram model", 0, 1)
        entries = _learn_unigram({to_byte_chars(p): w for p, w in pieces.items()}, self.vocab_size, self.max_bytes)
        # entries were learned within words, so that none crosses one: no pre-tokenizer is needed
        tokenizer = byte_level(models.Unigram(entries, None, False))
        if self.normalize:
            spaces = normalizers.Replace(Regex(f"{_SEPARATOR}+"), " ")
            tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces])
        progress("train the Unigram model", 1, 1)
        return CompoundPieceTokenizer(tokenizer)


def _learn_unigram(weights: Mapping[str, int], vocab_size: int, longest: int) -> list[tuple[str, float]]:
    """Learn a Unigram model from weighted strings of byte characters, each a sentence of its own.

    Returns
    -------
    list of (entry, log probability)
        At most `vocab_size`, the 256 bytes among them; bytes that never occurred are a last resort.
    """
    scores = learn_unigram(weights, vocab_size, longest)
    last_resort = min(scores.values()) - 20.0
    longer = sorted((p for p in scores if len(p) > 1), key=lambda p: (-scores[p], p))[: vocab_size - 256]
    # six digits, because the parser of tokenizer.json is exact for short numbers only
    return [(entry, round(scores.get(entry, last_resort), 6)) for entry in (*BYTE_CHARS, *longer)]

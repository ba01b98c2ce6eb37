"""CompoundPiece: split compounds before a Unigram vocabulary is trained, so that its pieces stop at constituents.

Minixhofer, Pfeiffer and Vulić, EMNLP 2023, arXiv 2305.14214. The steps, in the paper's order:

1. `web_words` counts words with their hyphens; `hyphen_pairs` makes the self-supervised training data from them.
2. A splitter learns from the pairs (`mintage.segment.decompounder`; a small tagger stands in for the paper's ByT5).
3. `split_by_constituents` turns predicted or given *normalised* constituents (bride, maid) into pieces of the word
   (brides|maid).
4. `CompoundPiece` counts pre-tokens, splits them, and trains a Unigram model on the pieces. The splitter is not needed
   afterwards: the product is an ordinary tokenizer.

Deviation: the vocabulary is over bytes, so that by default nothing is lost; ``normalize=True`` brings the paper's NFKC
and single spaces back, still over bytes. Not here: the 56 languages of Wiktionary and ByT5.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Literal, Protocol, runtime_checkable

import regex

from mintage.data import as_corpus, count_words
from mintage.errors import UserError
from mintage.files import replace_file
from mintage.segment.contract import Progress, Segmenter, Trainer, as_bytes, silent
from mintage.segment.core.hf import BYTE_CHARS, HFSegmenter, byte_level, to_byte_chars
from mintage.segment.core.unigram import learn_unigram

__all__ = [
    "CompoundPiece",
    "CompoundPieceTokenizer",
    "Splitter",
    "hard_compound_rate",
    "hard_compounds",
    "hyphen_pairs",
    "lossless_pretokens",
    "pretokens",
    "remove_hyphens",
    "split_by_constituents",
    "web_words",
]

RARE = math.exp(-6)  # a hyphenation rarer than this beside its closed form is a slip of the pen
KEEP_CASE = 0.001  # hyphens whose removal leaves the case alone, in training data
LONGEST = 64  # bytes of a word, as the paper's model reads
_LEAST = {
    "vocab_size": 257,  # the bytes and one more
    "min_count": 1,
    "max_bytes": 2,
    "tagger_steps": 1,
    "tagger_width": 1,
    "tagger_layers": 1,
    "lexicon_size": 0,
}
_SEPARATOR = r"[\p{Z}\n\t\r]"
_PARTS = regex.compile(rf"{_SEPARATOR}+|[\p{{S}}\p{{P}}]+|[^\p{{S}}\p{{P}}\p{{Z}}\n\t\r]+")
_EDGES = regex.compile(r"^\p{P}+|\p{P}+$")
_WHOLE = regex.compile(r"[\p{P}\p{S}\p{N}\s]*")


# -- hyphens as supervision (section 3.1) --------------------------------------------------------------------------


def remove_hyphens(word: str, keep_case: Callable[[], bool] = lambda: False) -> str:
    """Write a hyphenated word in one, as if it had always been.

    The first letter after a hyphen takes the case of the one before it, where these differ: ``Haus-Tür`` becomes
    ``Haustür``. A caseless character counts as lower and as upper case.

    Parameters
    ----------
    word
        Hyphens at its ends are dropped.
    keep_case
        Asked at every hyphen; True leaves the case there alone.
    """
    out: list[str] = []
    place = 0
    while place < len(word):
        char = word[place]
        place += 1
        if char != "-":
            out.append(char)
        elif out and place < len(word):
            out.append(word[place] if keep_case() else _in_the_case_of(word[place - 2], word[place]))
            place += 1
    return "".join(out)


def _in_the_case_of(before: str, after: str) -> str:
    if before.lower() == before and after.upper() == after:
        return after.lower()
    if before.upper() == before and after.lower() == after:
        return after.upper()
    return after


def web_words(text: str) -> Iterable[str]:
    """Yield the words of a text that can teach: cut at white space, punctuation at the ends removed, hyphens kept.

    As in the authors' counting, a word with one of ``.@{}/[]`` or ``--`` inside, or longer than 64 bytes, is left out,
    and so is a hyphenated word with inner capitals, numbers after letters, or a part in capitals (``TCP-Port``).
    """
    for word in text.split():
        if word.isalpha():  # most words, and nothing to look at
            if len(word.encode("utf-8", "replace")) <= LONGEST:
                yield word
            continue
        if "--" in word or not set(word).isdisjoint(".@{}/[]") or len(word.encode("utf-8", "replace")) > LONGEST:
            continue
        mapped = word.replace("\u2010", "-")
        cut = _EDGES.sub("", mapped)
        if "-" in mapped:
            steps = pairwise(mapped)
            if any((c.isupper() and p != "-") or (c.isnumeric() and not p.isnumeric()) for p, c in steps):
                continue
            if any(all(c.isupper() or c.isnumeric() for c in part) for part in cut.split("-")):
                continue
        if cut:
            yield cut


def hyphen_pairs(word_counts: Mapping[str, int], *, seed: int | None = None) -> list[tuple[str, str]]:
    """Make training data from words that people write with a hyphen, and as many that they do not.

    Parameters
    ----------
    word_counts
        Words of one language with their counts, e.g. counted with `web_words`.
    seed
        Of the one removed hyphen in a thousand that leaves the case alone; None applies the case rule to all, as for
        validation.

    Returns
    -------
    list of (input, target)
        Positives first: the word written in one, and with its hyphens. Then negatives: the most frequent words without
        a hyphen that are not a positive's closed form, twice the same.
    """
    counts: Counter[str] = Counter()
    closed: dict[str, int] = defaultdict(int)
    for word, count in word_counts.items():
        counts[word.replace("\u2010", "-")] += count
        if "-" not in word:
            closed[word.lower()] += count
    best: dict[str, str] = {}
    for word, count in counts.items():
        if "-" not in word or min(map(len, word.split("-"))) < 2:
            continue
        stripped = word.replace("-", "").lower()
        if count / closed.get(stripped, 1) >= RARE and (stripped not in best or counts[best[stripped]] < count):
            best[stripped] = word
    chance = Random(seed)
    keep_case = (lambda: False) if seed is None else (lambda: chance.random() < KEEP_CASE)
    pairs = [(remove_hyphens(word, keep_case), word) for word in best.values()]
    plain = [word for word, _ in counts.most_common() if word and "-" not in word and word.lower() not in best]
    return pairs + [(word, word) for word in plain[: len(pairs)]]


# -- normalised constituents to pieces of the word (section 3.3) ---------------------------------------------------


def split_by_constituents(
    word: str, constituents: Sequence[str], *, prefer: Literal["last", "first"] = "last"
) -> tuple[list[str], int] | None:
    """Cut `word` where its normalised constituents lie in it.

    Piece i may be longer or shorter than constituent i by at most the constituent's length; the cuts minimise the sum
    of the Levenshtein distances between pieces and constituents, both in lower case. Found by dynamic programming over
    cut positions, in O(len(word) * len(constituents)^2) per constituent.

    Parameters
    ----------
    word
        For example ``bridesmaid``.
    constituents
        For example ``["bride", "maid"]``.
    prefer
        Among minimisers, ordered by the sum of the absolute length differences and then by the differences from left to
        right, take the last (a linking element goes to the constituent before it: ``brides|maid``) or the first.

    Returns
    -------
    (pieces, distance) or None
        None where no cut is possible or the best leaves a piece empty.
    """
    if prefer not in ("last", "first"):
        raise UserError(f"prefer={prefer!r} is not a preference; pass 'last' or 'first'")
    sign = -1 if prefer == "last" else 1
    # best[p]: cost of the constituents from i on over word[p:], as (distance, +-sum of |offset|, (+-offset, ...))
    best: dict[int, tuple[int, int, tuple[int, ...]]] = {len(word): (0, 0, ())}
    for constituent in reversed(constituents):
        size, longer = len(constituent), {}
        for start in range(len(word) + 1):
            ends = [end for end in range(start, min(start + 2 * size, len(word)) + 1) if end in best]
            if not ends:
                continue
            distance = _prefix_distances(constituent, word[start : ends[-1]])
            longer[start] = min(
                (
                    distance[end - start] + best[end][0],
                    sign * abs(end - start - size) + best[end][1],
                    (sign * (end - start - size), *best[end][2]),
                )
                for end in ends
            )
        best = longer
    if 0 not in best:
        return None
    total, _, signed = best[0]
    lengths = [len(c) + sign * offset for c, offset in zip(constituents, signed, strict=True)]
    if not lengths or 0 in lengths:
        return None
    pieces, start = [], 0
    for length in lengths:
        pieces.append(word[start : start + length])
        start += length
    return pieces, total


def _prefix_distances(constituent: str, text: str) -> list[int]:
    """Levenshtein distance of `constituent` to every prefix of `text`, ignoring case."""
    target = constituent.lower()
    column = list(range(len(target) + 1))  # of target's prefixes to the prefix of text so far
    distances = [len(target)]
    for char in text:
        for lowered in char.lower():
            above, column[0] = column[0], column[0] + 1
            for i, wanted in enumerate(target, start=1):
                above, column[i] = column[i], min(column[i] + 1, column[i - 1] + 1, above + (wanted != lowered))
        distances.append(column[-1])
    return distances


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
    """Train a Unigram tokenizer on words split at their constituents.

    Parameters
    ----------
    vocab_size
        Entries, the 256 bytes included; fewer where the text has not so many pieces. The paper's 32,768 is for one
        language.
    decompounder
        ``"train"`` learns to split from the corpus's own hyphens; ``"none"`` never splits (the baseline); else what
        `Decompounder.save` wrote, or an object with `split_all`.
    min_count
        A token must occur so often, and counts for one per so many occurrences; 1 keeps all (small corpora).
    max_bytes
        Longer tokens are left out.
    normalize
        Apply NFKC and make runs of white space one space, as in the paper. Such a tokenizer is not lossless.
    tagger_steps, tagger_width, tagger_layers, lexicon_size
        Of the splitter where it is trained, see `Decompounder.fit`.
    processes
        Processes that count words; the outcome does not depend on it.
    max_words
        About how many different words are held while counting.
    seed
        Of the splitter's training.

    Raises
    ------
    UserError
        A value is out of range.
    """

    vocab_size: int = 32_768
    decompounder: str | object = "train"
    min_count: int = 16
    max_bytes: int = 32
    normalize: bool = False
    tagger_steps: int = 1000
    tagger_width: int = 48
    tagger_layers: int = 3
    lexicon_size: int = 100_000
    processes: int = 1
    max_words: int = 10_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}; pass at least {least}")
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
        tokens = counted(corpus, cut, work, progress, processes=self.processes, max_words=self.max_words)
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
        from mintage.segment.decompounder import Decompounder

        if str(self.decompounder) != "train":
            return Decompounder.load(self.decompounder)
        words = counted(corpus, web_words, work, progress, processes=self.processes, max_words=self.max_words)
        pairs = hyphen_pairs(words, seed=self.seed)
        if not pairs:
            raise UserError(
                "no word of the corpus has a hyphen to learn from; pass decompounder='none', or a saved Decompounder"
            )
        return Decompounder.fit(
            pairs,
            words=words,
            folder=work / "decompounder",
            steps=self.tagger_steps,
            width=self.tagger_width,
            layers=self.tagger_layers,
            lexicon_size=self.lexicon_size,
            seed=self.seed,
            progress=progress,
        )

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


def counted(
    corpus: Iterable[str],
    words: Callable[[str], Iterable[str]],
    work: Path,
    progress: Progress = silent,
    *,
    processes: int = 1,
    max_words: int | None = None,
) -> Counter[str]:
    """Count, or read the count that a call finished in `work` before it was killed.

    Raises
    ------
    UserError
        `work` holds a damaged count, or one of another corpus.
    """
    path = work / f"{words.__name__}.json"
    mark = str(getattr(corpus, "fingerprint", ""))
    if path.exists():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            found, counts = held["mark"], Counter[str](held["counts"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged; delete it to count again") from None
        if found != mark:
            raise UserError(f"{path} counts another corpus; delete it, or pass another folder")
        return counts
    counts = count_words(
        corpus,
        words,
        processes=processes,
        max_words=max_words,
        state=path.with_suffix(".begun"),
        progress=partial(_characters, progress, f"count {words.__name__.replace('_', ' ')}"),
    )
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps({"mark": mark, "counts": counts}, ensure_ascii=False), encoding="utf-8")
    return counts


def _characters(progress: Progress, stage: str, done: int) -> None:
    progress(stage, done, 0)


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


# -- hard compounds (section 2) ------------------------------------------------------------------------------------


def hard_compounds(tokenizer: Segmenter, gold: Mapping[str, Sequence[str]], *, prefix: str = " ") -> list[bool]:
    """Tell of every compound whether a constituent boundary is inside a token, where a model cannot see it.

    Parameters
    ----------
    tokenizer
        A segmenter whose ids mean bytes.
    gold
        Word to its pieces, two or more.
    prefix
        What stands before the word; a space, as inside a text.

    Raises
    ------
    UserError
        `gold` is empty, pieces do not make up their word, or ids have no bytes of their own.
    """
    tokens = tokenizer.tokens()
    if tokens is None:
        raise UserError(f"the ids of {tokenizer.method} do not mean bytes; token boundaries are not defined")
    if not gold:
        raise UserError("no gold compounds; pass a mapping such as {'Haustür': ['Haus', 'tür']}")
    hard = []
    for word, ids in zip(gold, tokenizer.encode_batch([prefix + word for word in gold]), strict=True):
        if "".join(gold[word]) != word or len(gold[word]) < 2:
            raise UserError(f"gold pieces {list(gold[word])} do not make up {word!r}; pass two or more pieces of it")
        wanted = _boundaries([prefix.encode() + gold[word][0].encode(), *(p.encode() for p in gold[word][1:])])
        hard.append(not wanted <= _boundaries([tokens[i] for i in ids]))
    return hard


def hard_compound_rate(tokenizer: Segmenter, gold: Mapping[str, Sequence[str]], *, prefix: str = " ") -> float:
    """Share of hard compounds, see `hard_compounds`."""
    hard = hard_compounds(tokenizer, gold, prefix=prefix)
    return sum(hard) / len(hard)


def _boundaries(pieces: Sequence[bytes]) -> set[int]:
    """Byte offsets between pieces."""
    ends, total = set(), 0
    for piece in pieces[:-1]:
        total += len(piece)
        ends.add(total)
    return ends

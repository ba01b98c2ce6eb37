"""What a tokenizer is worth on a text: length, spread, parity over languages, morphology, speed.

Every metric is a plain function of arrays, so that each can be tested against its definition; `encode_corpus` makes the
arrays once. Not here: what a language model learns from the tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mintage.errors import UserError
from mintage.files import read_jsonl
from mintage.measure import Interval, bootstrap, bootstrap_ratio, paired_time
from mintage.segment.contract import Segmenter

__all__ = [
    "Boundaries",
    "Encoded",
    "Parity",
    "Speed",
    "boundary_scores",
    "continued_share",
    "description_length",
    "encode_corpus",
    "encoding_speed",
    "gini",
    "gold_words",
    "morphology",
    "parity",
    "read_morphology",
    "read_parallel",
    "renyi_efficiency",
    "word_spans",
]

ALPHA = 2.5
"""Order of the Renyi entropy (Zouhar et al., 2023)."""


# -- arrays --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A corpus in tokens, documents end to end.

    Parameters
    ----------
    ids
        All tokens.
    tokens, size
        Tokens and UTF-8 bytes of every document.
    ends
        Where every token ends, in bytes from the beginning of its document; None where ids have no place in the text.
    exact
        Whether the document comes back as it was.
    vocab_size
        Of the tokenizer.
    lengths
        Bytes of every vocabulary entry, or None where an id means nothing by itself.
    """

    ids: Int[np.ndarray, " tokens"]
    tokens: Int[np.ndarray, " documents"]
    size: Int[np.ndarray, " documents"]
    ends: Int[np.ndarray, " tokens"] | None
    exact: Bool[np.ndarray, " documents"]
    vocab_size: int
    lengths: Int[np.ndarray, " vocabulary"] | None

    @property
    def counts(self) -> Int[np.ndarray, " vocabulary"]:
        """How often every id occurs."""
        return np.bincount(self.ids, minlength=self.vocab_size)

    @property
    def bytes_per_token(self) -> Interval:
        """Bytes over tokens, with the interval over documents."""
        return bootstrap_ratio(self.size, self.tokens)

    @property
    def used(self) -> int:
        """Vocabulary entries that occur; the others are dead on this text."""
        return int(np.count_nonzero(self.counts))


def encode_corpus(segmenter: Segmenter, texts: Sequence[str]) -> Encoded:
    """Encode documents, and look where the tokens lie; empty documents are left out.

    Raises
    ------
    UserError
        There is no text.
    """
    kept = [text for text in texts if text]
    if not kept:
        raise UserError("the text is empty; pass some to measure on")
    rows = segmenter.encode_batch(kept)
    exact = np.array([segmenter.decode(row) == text for row, text in zip(rows, kept, strict=True)])
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    if not counts.all():
        lost = kept[int(np.argmin(counts))]
        raise UserError(f"{lost[:40]!r} gives no tokens at all; this tokenizer cannot be measured on it")
    ids = np.fromiter((i for row in rows for i in row), dtype=np.int64, count=int(counts.sum()))
    size = np.array([len(text.encode()) for text in kept], dtype=np.int64)
    vocabulary = segmenter.tokens()
    lengths = None if vocabulary is None else np.array([len(token) for token in vocabulary], dtype=np.int64)
    ends = _ends(segmenter, kept, ids, counts, size, lengths)
    return Encoded(ids, counts, size, ends, exact, segmenter.vocab_size, lengths)


def _ends(
    segmenter: Segmenter,
    texts: Sequence[str],
    ids: Int[np.ndarray, " tokens"],
    counts: Int[np.ndarray, " documents"],
    size: Int[np.ndarray, " documents"],
    lengths: Int[np.ndarray, " vocabulary"] | None,
) -> Int[np.ndarray, " tokens"] | None:
    if lengths is not None:
        running = np.cumsum(lengths[ids])
        last = running[np.cumsum(counts) - 1]
        before = np.concatenate([[0], last[:-1]])
        if np.array_equal(last - before, size):  # else it normalises, and its ids' bytes are not the text's
            return running - np.repeat(before, counts)
    told = [_told_ends(segmenter, text) for text in texts]
    if any(ends is None or len(ends) != n for ends, n in zip(told, counts, strict=True)):
        return None
    return np.array([end for ends in told for end in ends or ()], dtype=np.int64)


def _told_ends(segmenter: Segmenter, text: str) -> list[int] | None:
    tell: Callable[[str], list[int] | None] | None = getattr(segmenter, "ends", None)
    return tell(text) if tell else None


# -- words ---------------------------------------------------------------------------------------------------------


def word_spans(text: str) -> Int[np.ndarray, "words 2"]:
    """Return begin and end, in UTF-8 bytes, of every word: letters with their marks, digits, or one other sign.

    The splitter is the same for all tokenizers. Scripts without spaces have long words under it.
    """
    import regex

    spans = [m.span() for m in regex.finditer(r"[\p{L}\p{M}]+|\p{N}+|[^\s\p{L}\p{M}\p{N}]", text)]
    if not spans:
        return np.zeros((0, 2), dtype=np.int64)
    if text.isascii():
        return np.array(spans, dtype=np.int64)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    width = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    place = np.concatenate([[0], np.cumsum(width)])
    return place[np.array(spans)].astype(np.int64)


def continued_share(
    ends: Int[np.ndarray, " tokens"],
    counts: Int[np.ndarray, " documents"],
    words: Sequence[Int[np.ndarray, "_ 2"]],
) -> float:
    """Share of words with a token boundary strictly inside them."""
    inside = total = 0
    places = np.split(ends, np.cumsum(counts)[:-1])
    for own, spans in zip(places, words, strict=True):
        own = np.sort(own)
        cuts = np.searchsorted(own, spans[:, 1], "left") - np.searchsorted(own, spans[:, 0], "right")
        inside += int(np.count_nonzero(cuts > 0))
        total += len(spans)
    return inside / total if total else 0.0


# -- spread of the vocabulary --------------------------------------------------------------------------------------


def renyi_efficiency(counts: Int[np.ndarray, " vocabulary"], alpha: float | int = ALPHA) -> float:
    """Renyi entropy of the tokens over the logarithm of the vocabulary's size; `alpha` = 1 is Shannon's.

    H_a(p) = log(sum_i p_i^a) / (1 - a), divided by log V (Zouhar et al., 2023).
    """
    if len(counts) < 2:
        return 0.0
    p = counts[counts > 0] / counts.sum()
    entropy = -np.sum(p * np.log(p)) if alpha == 1 else np.log(np.sum(p**alpha)) / (1 - alpha)
    return float(entropy / np.log(len(counts)))


def description_length(
    counts: Int[np.ndarray, " vocabulary"], lengths: Int[np.ndarray, " vocabulary"] | None
) -> float | None:
    """Bits of a two-part code: the entries that occur, written out with an end byte each, and the text in them.

    The text costs -log2 p per token, p its share of the tokens. None where ids mean nothing by themselves.
    """
    if lengths is None:
        return None
    seen = counts > 0
    p = counts[seen] / counts.sum()
    return float(-np.sum(counts[seen] * np.log2(p)) + 8 * np.sum(lengths[seen] + 1))


# -- parity --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parity:
    """How many tokens a language costs for the same content.

    Parameters
    ----------
    premium
        Language to its tokens over those of the reference language on parallel text (Petrov et al., 2023).
    reference
        The language that is 1.
    """

    premium: Mapping[str, float]
    reference: str

    @property
    def mean(self) -> float:
        """Over the languages but the reference."""
        others = [value for name, value in self.premium.items() if name != self.reference]
        return float(np.mean(others)) if others else 1.0

    @property
    def worst(self) -> float:
        """The largest premium."""
        return max(self.premium.values())

    @property
    def gini(self) -> float:
        """Inequality of the premiums: 0 where all languages cost the same."""
        return gini(np.array(list(self.premium.values())))


Parallel = Mapping[str, tuple[Sequence[str], Sequence[str]]]
"""Language to its texts and, in the same order, the same content in the reference language."""


def parity(segmenter: Segmenter, texts: Parallel, reference: str = "en") -> Parity:
    """Count tokens of parallel texts, per language over those of the reference."""
    known: dict[str, int] = {}  # the reference's texts come again with every language
    premium = {reference: 1.0}
    for language, (own, same) in texts.items():
        new = list(dict.fromkeys(text for text in same if text not in known))
        known.update(zip(new, map(len, segmenter.encode_batch(new)), strict=True))
        theirs = sum(known[text] for text in same)
        premium[language] = sum(map(len, segmenter.encode_batch(own))) / theirs
    return Parity(premium, reference)


def gini(values: Float[np.ndarray, " n"]) -> float:
    """Gini coefficient of positive values: mean absolute difference of pairs over twice the mean."""
    ordered = np.sort(values)
    n = len(ordered)
    return float(np.sum((2 * np.arange(1, n + 1) - n - 1) * ordered) / (n * np.sum(ordered)))


def read_parallel(path: str | Path, reference: str = "en") -> dict[str, tuple[list[str], list[str]]]:
    """Read parallel text: JSON lines with a language, a text, and an id that is the same in every language.

    ``lang`` and ``text`` (or ``context``); the id is ``id``, ``par`` or ``i``. Where a row brings its own reference,
    as Tatoeba's ``eng``, no id is needed.

    Raises
    ------
    UserError
        A row lacks a field, or no row of a language has its like in the reference language.
    """
    rows = [(_field(path, row, "lang"), _field(path, row, "text", "context"), row) for row in read_jsonl(path)]
    if not rows:
        raise UserError(f"{path} holds no rows; pass JSON lines with lang, text and id")
    found: dict[str, tuple[list[str], list[str]]] = {}
    if isinstance(rows[0][2].get("eng"), str):
        for language, text, row in rows:
            own, same = found.setdefault(language, ([], []))
            own.append(text)
            same.append(_field(path, row, "eng"))
        return found
    by_language: dict[str, dict[Any, str]] = {}
    for language, text, row in rows:
        by_language.setdefault(language, {})[_field(path, row, "id", "par", "i")] = text
    if reference not in by_language:
        raise UserError(
            f"{path} has no rows of the reference language {reference!r}; it has: {', '.join(sorted(by_language))}"
        )
    base = by_language.pop(reference)
    for language, texts in by_language.items():
        shared = [number for number in texts if number in base]
        if not shared:
            raise UserError(f"{path}: {language} shares no id with {reference}; give parallel rows the same id")
        found[language] = [texts[n] for n in shared], [base[n] for n in shared]
    if not found:
        raise UserError(f"{path} has only {reference}; parity needs a second language")
    return found


def _field(path: str | Path, row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise UserError(f"{path}: a row has no {' or '.join(names)}; it has: {', '.join(row)}")


# -- morphology ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boundaries:
    """Boundaries strictly inside words against gold ones, summed over words.

    Parameters
    ----------
    precision, recall, f1
        Micro averages.
    exact
        Share of words cut exactly as gold.
    words
        How many words.
    f1_interval
        Interval of `f1` over words.
    """

    precision: float
    recall: float
    f1: float
    exact: float
    words: int
    f1_interval: Interval = field(compare=False)


def read_morphology(path: str | Path, languages: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Read gold morphemes from JSON lines, as `gold_words` takes them.

    Raises
    ------
    UserError
        The file cannot be read, or no row can be scored.
    """
    return gold_words(read_jsonl(path), languages, source=str(path))


def gold_words(
    rows: Iterable[Mapping[str, Any]], languages: Sequence[str] | None = None, *, source: str = "the gold"
) -> dict[str, list[str]]:
    """Return words and their morphemes from rows with ``word`` and ``segments``; those that do not join to it go.

    Canonical pieces ("happy" + "ness" for "happiness") name no place in the word, so they cannot be scored. With
    `languages`, only rows whose ``lang`` is one of them are taken.

    Raises
    ------
    UserError
        No row can be scored.
    """
    gold: dict[str, list[str]] = {}
    for row in rows:
        if languages is not None and row.get("lang") not in languages:
            continue
        word, parts = row.get("word"), row.get("segments")
        if not isinstance(word, str) or not isinstance(parts, list):
            raise UserError(f"{source}: a row has no word or segments; it has: {', '.join(row)}")
        if word and all(isinstance(part, str) for part in parts) and "".join(parts) == word:
            gold.setdefault(word, [part for part in parts if part])
    if not gold:
        raise UserError(f"{source} holds no word whose segments join to it; there is nothing to score")
    return gold


def morphology(segmenter: Segmenter, gold: Mapping[str, Sequence[str]]) -> Boundaries | None:
    """Cut every word as after a space in running text, and score the cuts; None where ids have no place in the text."""
    words = list(gold)
    encoded = encode_corpus(segmenter, [" " + word for word in words])
    if encoded.ends is None:
        return None
    places = np.split(encoded.ends - 1, np.cumsum(encoded.tokens)[:-1])
    sizes = encoded.size - 1
    predicted = [set(own[(own > 0) & (own < n)].tolist()) for own, n in zip(places, sizes, strict=True)]
    return boundary_scores(predicted, [set(_inner(gold[word])) for word in words])


def _inner(parts: Sequence[str]) -> Iterator[int]:
    place = 0
    for part in parts[:-1]:
        place += len(part.encode())
        yield place


def boundary_scores(predicted: Sequence[set[int]], gold: Sequence[set[int]]) -> Boundaries:
    """Score sets of boundaries, one per word."""
    hits = np.array([len(p & g) for p, g in zip(predicted, gold, strict=True)])
    said, true = np.array([len(p) for p in predicted]), np.array([len(g) for g in gold])
    precision = hits.sum() / said.sum() if said.sum() else 0.0
    recall = hits.sum() / true.sum() if true.sum() else 0.0
    f1 = 2 * hits.sum() / (said.sum() + true.sum()) if (said + true).sum() else 0.0
    counted = (said + true) > 0  # f1 = 2 hits / (said + true), a ratio of sums over the words that have a boundary
    interval = bootstrap_ratio(2 * hits[counted], (said + true)[counted]) if counted.any() else Interval(0.0, 0.0, 0.0)
    exact = float(np.mean([p == g for p, g in zip(predicted, gold, strict=True)]))
    return Boundaries(float(precision), float(recall), float(f1), exact, len(predicted), interval)


# -- speed ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Megabytes (10^6 bytes of UTF-8) per second on one thread, with caches warm.

    Parameters
    ----------
    encode, decode
        Median over the rounds, with the interval.
    """

    encode: Interval
    decode: Interval


def encoding_speed(segmenters: Mapping[str, Segmenter], texts: Sequence[str], *, repeats: int = 5) -> dict[str, Speed]:
    """Time all tokenizers on the same texts, interleaved, in this process, on one thread.

    Parameters
    ----------
    segmenters
        Name to tokenizer.
    texts
        Documents; encoded as one batch, decoded one after the other.
    repeats
        Rounds, after one that warms up.
    """
    size = sum(len(text.encode()) for text in texts) / 1e6
    with _one_thread():
        encoders = {name: _encoder(s, texts) for name, s in segmenters.items()}
        encoding = paired_time(encoders, repeats=repeats)
        decoders = {name: _decoder(s, encoding.outputs[name]) for name, s in segmenters.items()}
        decoding = paired_time(decoders, repeats=repeats)
    return {
        name: Speed(_rate(size, encoding.seconds[name]), _rate(size, decoding.seconds[name])) for name in segmenters
    }


def _encoder(segmenter: Segmenter, texts: Sequence[str]) -> Callable[[], list[list[int]]]:
    return lambda: segmenter.encode_batch(texts)


def _decoder(segmenter: Segmenter, rows: Iterable[list[int]]) -> Callable[[], list[bytes]]:
    return lambda: [segmenter.decode_bytes(row) for row in rows]


def _rate(size: float, seconds: Float[np.ndarray, " rounds"]) -> Interval:
    return bootstrap(size / seconds, np.median)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep tokenizers, which reads this at every batch, on one thread."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before

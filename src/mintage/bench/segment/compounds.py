"""What CompoundPiece's study measures: gold words, rivals that split compounds, and how tokenizers treat compounds.

Gold: English and Hungarian compounds are annotated; German ones are made by rule from a word list. Half of all gold
words, chosen by a hash, are for development (thresholds of all methods, Morfessor's corpus weight), the other half is
the test. No gold word's hyphenated form is in the training data.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from mintage.data import texts
from mintage.data.corpora import is_held_out_word
from mintage.data.debian import debian_texts, german_words
from mintage.errors import missing_extra
from mintage.measure import Figure, Interval
from mintage.measure.figure import bars
from mintage.measure.study import Run
from mintage.segment import CompoundPiece, Segmenter
from mintage.segment.hard_compounds import hard_compounds
from mintage.segment.hyphens import hyphen_pairs, split_by_constituents, web_words

__all__ = [
    "CORPUS_WEIGHTS",
    "LANGUAGES",
    "CompoundSubject",
    "Language",
    "Split",
    "accuracy_figure",
    "annotated_gold",
    "boundary_f1_of",
    "charsplit",
    "frequency_split",
    "german_gold",
    "gold_halves",
    "hard_figure",
    "macro_mean",
    "morfessor_split",
    "never_split",
    "right_of",
    "rivals",
    "splitting_columns",
    "splitting_note",
    "vocabulary_columns",
]

Gold = dict[str, list[str]]
Split = Callable[[Sequence[str]], list[list[str]]]

LANGUAGES = ("de", "hu", "en")
CORPUS_WEIGHTS = (1.0, 2.0, 5.0)
_HELD_OUT = 20  # every 20th piece of the German text is not trained on
_LIST, _ENTRIES = 1_000_000, 100  # a document of so many characters is a list of entries, cut into so many lines
_NO_TAILS = {"schaft", "schaften"}  # nouns in form, suffixes in nearly all words
_LINKS = {"de": ("", "s", "es", "n", "en", "er", "e"), "hu": ("",), "en": ("", "s")}


# -- gold ----------------------------------------------------------------------------------------------------------


def annotated_gold(language: str) -> Gold:
    """Return compounds of two constituents and words that are none; Hungarian ones lose what inflects them."""
    words = texts("morph-segmentation", "all", domain={"en": "eng", "hu": "hun"}[language]).documents()
    rows = [word.fields for word in words if word.text.isalpha()]
    endings = {e for row in rows if row["cat"] == "100" for e in row["segments"][1:]}
    gold: Gold = {}
    for row in rows:
        word, parts = row["word"], [part.lstrip("*") for part in row["segments"]]
        if row["cat"] in ("000", "100"):
            gold[word] = [word]
        elif row["cat"] == "001" or (row["cat"] == "101" and language == "hu"):
            while row["cat"] == "101" and len(parts) > 2 and parts[-1] in endings:
                parts = [*parts[:-2], parts[-2] + parts[-1]]
            found = split_by_constituents(word, parts) if len(parts) == 2 else None
            if found:
                gold[word] = found[0]
    return gold


def german_gold() -> Gold:
    """Return compounds by rule: one cut alone leaves two nouns of four letters or more, perhaps with a linking element.

    Words that are none: no cut leaves two words of the list, and the word is no noun.
    """
    words = german_words()
    every = {word.lower() for word in words}
    nouns = {word.lower() for word in words if word[0].isupper() and len(word) >= 4}
    gold: Gold = {}
    for word in filter(str.isalpha, words):
        low = word.lower()
        cuts = [
            cut
            for cut in range(4, len(low) - 3)
            if low[cut:] in nouns and low[cut:] not in _NO_TAILS and any(_heads(low[:cut], 4, nouns))
        ]
        if word[0].isupper() and len(cuts) == 1:
            gold[word] = [word[: cuts[0]], word[cuts[0] :]]
        elif word == low and not any(
            low[cut:] in every and any(_heads(low[:cut], 2, every)) for cut in range(2, len(low) - 1)
        ):
            gold[word] = [word]
    return gold


def _heads(text: str, shortest: int, known: set[str]) -> Iterator[str]:
    """Yield what is left of a compound's first part without its linking element, where that is a word."""
    for link in _LINKS["de"]:
        head = text[: len(text) - len(link)]
        if text.endswith(link) and len(head) >= shortest and head in known:
            yield head


def gold_halves(gold: Gold, each: int, seed: int) -> tuple[Gold, Gold]:
    """Return words for development and for the test: as many compounds as others, where there are as many."""
    parts: list[Gold] = []
    for held_out in (False, True):
        mine = sorted(word for word in gold if is_held_out_word(word) == held_out)
        Random(seed).shuffle(mine)
        compounds = [word for word in mine if len(gold[word]) > 1][:each]
        others = [word for word in mine if len(gold[word]) == 1][:each]
        parts.append({word: gold[word] for word in compounds + others})
    return parts[0], parts[1]


# -- words of a language -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Language:
    """Gold words, and what the words of a text teach.

    Parameters
    ----------
    name
        ``"de"``, ``"hu"`` or ``"en"``.
    development, test
        Halves of the gold words, with their constituents.
    counts
        Words of the text with their hyphens.
    pairs
        Self-supervised training data.
    lexicon
        The most frequent words and parts of hyphenated ones, in lower case.
    """

    name: str
    development: Gold
    test: Gold
    counts: Counter[str]
    pairs: list[tuple[str, str]]
    lexicon: Counter[str]


@dataclass(frozen=True)
class CompoundSubject:
    """Texts and words of three languages, read when they are asked for.

    Parameters
    ----------
    words
        Gold compounds, and as many other words, per language and half.
    characters
        Of text read per language; None reads all.
    seed
        Of the choice of gold words.
    """

    words: int
    characters: int | None
    seed: int

    @cache  # noqa: B019  # lives as long as the run
    def language(self, name: str) -> Language:
        """Read a language."""
        gold = german_gold() if name == "de" else annotated_gold(name)
        development, test = gold_halves(gold, self.words, self.seed)
        counts: Counter[str] = Counter()
        for text in debian_texts(name, self.characters):
            counts.update(web_words(text))
        known = {word.lower() for word in (*development, *test)}
        pairs = [pair for pair in hyphen_pairs(counts, seed=self.seed) if pair[0].lower() not in known]
        lexicon: Counter[str] = Counter()
        for word, count in counts.items():
            for part in word.split("-"):
                if part.isalpha():
                    lexicon[part.lower()] += count
        return Language(name, development, test, counts, pairs, Counter(dict(lexicon.most_common(100_000))))

    @cached_property
    def german(self) -> tuple[list[str], list[str]]:
        """German texts to learn from, and every 20th piece, held out."""
        kept: dict[bool, list[str]] = defaultdict(list)
        for number, text in enumerate(_pieces(debian_texts("de", self.characters))):
            kept[number % _HELD_OUT == 0].append(text)
        return kept[False], [text for text in kept[True] if text.strip()]


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    """Cut a list of entries, which is one long document, into many; texts stay whole."""
    for text in documents:
        lines = text.split("\n")
        step = _ENTRIES if len(text) > _LIST else len(lines)
        yield from ("\n".join(lines[start : start + step]) for start in range(0, len(lines), step))


# -- rivals --------------------------------------------------------------------------------------------------------


def never_split(language: Language) -> Split:
    """Leave every word whole."""
    return lambda words: [[word] for word in words]


def _best_threshold(score: Callable[[str], tuple[float, list[str]]], development: Gold) -> Split:
    """Split where the score is at least what serves the development words best."""
    scored = [(*score(word), gold) for word, gold in development.items()]
    candidates = [*sorted({s for s, _, _ in scored})[:: max(1, len(scored) // 50)], math.inf]

    def right(threshold: float) -> int:
        return sum((pieces if s >= threshold else ["".join(gold)]) == gold for s, pieces, gold in scored)

    best = max(candidates, key=right)

    def split(words: Sequence[str]) -> list[list[str]]:
        return [pieces if s >= best else [word] for word in words for s, pieces in [score(word)]]

    return split


def charsplit(language: Language) -> Split:
    """Split once, by how often letter n-grams begin, end and are inside words (after Tuggener's CharSplit)."""
    begin, end, inside = Counter[str](), Counter[str](), Counter[str]()
    for word in language.lexicon:
        for n in range(3, min(len(word), 12) + 1):
            begin[word[:n]] += 1
            end[word[-n:]] += 1
            for start in range(1, len(word) - n):
                inside[word[start : start + n]] += 1

    def share(of: Counter[str], gram: str) -> float:
        total = begin[gram] + end[gram] + inside[gram]
        return of[gram] / total if total else 0.0

    def score(word: str) -> tuple[float, list[str]]:
        low, best, best_cut = word.lower(), -math.inf, 0
        for cut in range(3, len(low) - 2):
            left, right = low[:cut], low[cut:]
            ends = max(share(end, left[-n:]) for n in range(3, min(cut, 12) + 1))
            begins = max(share(begin, right[:n]) for n in range(3, min(len(right), 12) + 1))
            across = [low[s : s + 4] for s in range(max(1, cut - 3), min(cut, len(low) - 4))]
            within = min((share(inside, gram) for gram in across), default=0.0)
            if (value := begins - within + ends) > best:
                best, best_cut = value, cut
        return best, [word[:best_cut], word[best_cut:]] if best_cut else [word]

    return _best_threshold(score, language.development)


def frequency_split(language: Language) -> Split:
    """Cut into known words of four letters or more with the highest geometric mean of counts (Koehn and Knight)."""
    links, lexicon = _LINKS[language.name], language.lexicon

    def known(part: str, last: bool) -> float:
        stems = (part[: len(part) - len(link)] for link in (("",) if last else links) if part.endswith(link))
        return max((math.log(lexicon[stem]) for stem in stems if len(stem) >= 4 and stem in lexicon), default=-1.0)

    def score(word: str) -> tuple[float, list[str]]:
        low = word.lower()
        # best[end][number of parts]: sum of log counts, and the cuts
        best: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}, *({} for _ in low)]
        for stop in range(4, len(low) + 1):
            for start in range(stop - 3):
                value = known(low[start:stop], stop == len(low)) if best[start] else -1.0
                if value < 0 or (start == 0 and stop == len(low)):
                    continue
                for count, (total, cuts) in best[start].items():
                    candidate = (total + value, (*cuts, stop))
                    best[stop][count + 1] = max(best[stop].get(count + 1, (-1.0, ())), candidate)
        whole = math.log(lexicon.get(low, 0.5))
        if not best[-1]:
            return -math.inf, [word]
        mean, cuts = max((total / count, cuts) for count, (total, cuts) in best[-1].items())
        return mean - whole, [word[a:b] for a, b in zip((0, *cuts), cuts, strict=False)]

    return _best_threshold(score, language.development)


def morfessor_split(run: Run, language: Language, words: int) -> Split:
    """Train Morfessor Baseline on so many word types; of `CORPUS_WEIGHTS` the one that serves the development words."""
    asked = sorted({word.lower() for word in (*language.development, *language.test)})
    types = [word for word, _ in language.lexicon.most_common(words)]
    best: tuple[int, dict[str, list[str]]] = (-1, {})
    for weight in CORPUS_WEIGHTS:
        key = f"morfessor {language.name} {weight}"
        said = run.memo(key, lambda weight=weight: _morfessor(types, asked, weight, run.seed))
        right = sum(said[word.lower()] == [p.lower() for p in gold] for word, gold in language.development.items())
        best = max(best, (right, said), key=lambda pair: pair[0])
    return lambda given: [_in_case(word, best[1][word.lower()]) for word in given]


def rivals(morfessor_words: int) -> list[Callable[[Run, Language], Split]]:
    """Return Morfessor, CharSplit, the frequency rule, and never splitting, each made for a language."""
    plain = (charsplit, frequency_split, never_split)
    made = [partial(lambda split, run, language: split(language), split) for split in plain]
    return [partial(morfessor_split, words=morfessor_words), *made]


def _morfessor(types: list[str], asked: list[str], weight: float, seed: int) -> dict[str, list[str]]:
    try:
        import morfessor
    except ModuleNotFoundError:
        raise missing_extra("morfessor", "segment") from None
    random.seed(seed)  # the library shuffles with the global generator
    model: Any = morfessor.BaselineModel(corpusweight=weight)
    model.load_data([(1, word) for word in types])
    model.train_batch()
    return {word: model.viterbi_segment(word)[0] for word in asked}


def _in_case(word: str, pieces: Sequence[str]) -> list[str]:
    ends = np.cumsum([0, *map(len, pieces)])
    return [word[a:b] for a, b in pairwise(ends)]


# -- scores --------------------------------------------------------------------------------------------------------


def macro_mean(differences: Sequence[np.ndarray]) -> Interval:
    """Return the mean over languages of mean differences; words are resampled within their language."""
    value = float(np.mean([d.mean() for d in differences]))
    generator = np.random.default_rng(0)
    draws = [d[generator.integers(len(d), size=(2000, len(d)))].mean(1) for d in differences]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return Interval(float(low), value, float(high))


def boundary_f1_of(tokenizer: Segmenter, gold: Mapping[str, Sequence[str]]) -> float:
    """Return micro F1 of token boundaries strictly inside the words against constituent boundaries."""
    tokens = tokenizer.tokens() or []
    hits = said = true = 0
    for word, ids in zip(gold, tokenizer.encode_batch([f" {word}" for word in gold]), strict=True):
        ends = set(np.cumsum([len(tokens[i]) for i in ids]).tolist()[:-1]) - {1}  # the space alone cuts no word
        wanted = set((1 + np.cumsum([len(piece.encode()) for piece in gold[word]])).tolist()[:-1])
        hits, said, true = hits + len(ends & wanted), said + len(ends), true + len(wanted)
    return 2 * hits / (said + true)


# -- a run's columns and figures -----------------------------------------------------------------------------------


def splitting_columns(language: Language, split: Split) -> dict[str, Any]:
    """Split the test words of a language; the names of the columns begin with the language's."""
    gold = language.test
    right = [pieces == wanted for pieces, wanted in zip(split(list(gold)), gold.values(), strict=True)]
    columns = {"right": right, "compound": [len(pieces) > 1 for pieces in gold.values()], "pairs": len(language.pairs)}
    return {f"{language.name} {name}": column for name, column in columns.items()}


def splitting_note(run: Run, arm: str, morfessor_words: int) -> str:
    """Say what a reader of the accuracies must know."""
    pairs = ", ".join(f"{name} {run.column(arm, f'{name} pairs')[0]:,.0f}" for name in LANGUAGES)
    return (
        "A convolutional tagger with a lexicon of the text stands in for ByT5; German gold is by rule. Morfessor's "
        f"corpus weight (of {', '.join(f'{w:g}' for w in CORPUS_WEIGHTS)}) and the thresholds of all methods were "
        f"chosen on other gold words; Morfessor reads the {morfessor_words:,} most frequent words of the same text. "
        f"Hyphen pairs, negatives included: {pairs}"
    )


def vocabulary_columns(subject: CompoundSubject, trainer: CompoundPiece) -> dict[str, Any]:
    """Train on German and measure on held-out text: hard compounds, tokens per text, boundary F1; bytes and M read."""
    read, held_out = subject.german
    gold = {word: pieces for word, pieces in subject.language("de").test.items() if len(pieces) > 1}
    tokenizer = trainer.train(read)
    return {
        "hard": hard_compounds(tokenizer, gold),
        "tokens": [len(ids) for ids in tokenizer.encode_batch(held_out)],
        "f1": boundary_f1_of(tokenizer, gold),
        "bytes": sum(len(text.encode()) for text in held_out),
        "read": sum(map(len, read)) / 1e6,
    }


def right_of(run: Run, arm: str, language: str, compound: bool | None = None) -> np.ndarray:
    """Return which test words an arm cut exactly right: of all, of compounds, or of other words."""
    right, chosen = run.column(arm, f"{language} right"), run.column(arm, f"{language} compound")
    return right if compound is None else right[chosen == compound]


def accuracy_figure(run: Run, arms: Sequence[str]) -> Figure:
    """Draw the accuracy of splitting by language and kind of word."""
    kinds = [(language, compound) for language in LANGUAGES for compound in (True, False)]
    series = {arm: [100 * float(right_of(run, arm, *kind).mean()) for kind in kinds] for arm in arms}
    categories = [f"{language}, {'compounds' if compound else 'others'}" for language, compound in kinds]
    return run.figure(
        name="compoundpiece-accuracy",
        title="Who splits compounds right, and leaves other words alone",
        caption="Exact-match accuracy on held-out gold words. Only hyphens teach the tagger; the rivals see words.",
        **bars("words cut exactly right (%)", categories, series),
    )


def hard_figure(run: Run, arms: Sequence[str], sizes: Sequence[int]) -> Figure:
    """Draw the shares of hard compounds by size of the vocabulary."""
    shares = {arm: [100 * float(run.column(arm, f"{size} hard").mean()) for size in sizes] for arm in arms}
    return run.figure(
        name="compoundpiece-hard",
        title="Compounds whose constituents a tokenizer hides",
        caption="German gold compounds with a constituent boundary inside a token.",
        **bars("hard compounds (%)", [f"{size:,} entries" for size in sizes], shares),
    )

"""CompoundPiece's claims: hyphens teach to split compounds, and a vocabulary trained on split words respects them.

Text is what Debian packages: manual pages, LibreOffice's help, dictionaries, a thesaurus. Nothing is downloaded here;
get the packages once with::

    mkdir -p .mintage/debian && cd .mintage/debian && apt-get download wngerman manpages-de libreoffice-help-de \\
        trans-de-en mythes-de fortunes-de libreoffice-help-hu mythes-hu dict-freedict-hun-eng libreoffice-help-en-us

or name another folder of .deb files in ``MINTAGE_DEBIAN``. Gold: English and Hungarian compounds of
``morph_segmentation.jsonl.gz`` (annotated); German ones by rule from wngerman. Half of all gold words, chosen by a
hash, are for development (thresholds of all methods, Morfessor's corpus weight), the other half is the test. No gold
word's hyphenated form is in the training data.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import io
import json
import math
import os
import subprocess
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import regex

from mintage.data import data_file
from mintage.errors import UserError, missing_extra
from mintage.files import read_jsonl, replace_file
from mintage.measure import Figure, Interval, Result, bootstrap, bootstrap_ratio
from mintage.measure.environment import environment
from mintage.segment.compoundpiece import (
    CompoundPiece,
    hard_compounds,
    hyphen_pairs,
    split_by_constituents,
    web_words,
)
from mintage.segment.contract import Segmenter

__all__ = ["check"]

Gold = dict[str, list[str]]
Split = Callable[[Sequence[str]], list[list[str]]]

WORK = Path(".mintage") / "compoundpiece"
TAGGER, MORFESSOR = "CompoundPiece (tagger)", "Morfessor 2.0.6"
CHARSPLIT, FREQUENCY, NEVER = "CharSplit-style n-grams", "frequency DP", "never split"
RIVALS = (MORFESSOR, CHARSPLIT, FREQUENCY, NEVER)
_MORFESSOR_WORDS = 30_000
_CORPUS_WEIGHTS = (1.0, 2.0, 5.0)
PLAIN, SPLIT = "Unigram", "CompoundPiece"
_HELD_OUT = 20  # every 20th piece of the German text is not trained on
_LIST, _ENTRIES = 1_000_000, 100  # a document of so many characters is a list of entries, cut into so many lines
_VOCABULARIES = (32_768, 8000)  # the paper's for one language, and a small one
_NO_TAILS = {"schaft", "schaften"}  # nouns in form, suffixes in nearly all words
_LINKS = {"de": ("", "s", "es", "n", "en", "er", "e"), "hu": ("",), "en": ("", "s")}


# -- texts --------------------------------------------------------------------------------------------------------


def _folder() -> Path:
    return Path(os.environ.get("MINTAGE_DEBIAN") or Path(".mintage") / "debian")


def _members(package: str, wanted: str) -> Iterator[bytes]:
    """Yield the files of a Debian package whose path matches, in the order of their paths."""
    found = sorted(_folder().glob(f"{package}_*.deb"))
    if not found:
        raise UserError(
            f"{_folder()} holds no {package}_*.deb; get it with: apt-get download {package}, or set MINTAGE_DEBIAN"
        )
    try:
        archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(found[-1])], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"cannot unpack {found[-1]} ({error}); dpkg-deb is needed") from None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = sorted((m for m in tar if m.isfile() and regex.search(wanted, m.name)), key=lambda m: m.name)
        for member in files:
            file = tar.extractfile(member)
            held = file.read() if file else b""
            yield gzip.decompress(held) if member.name.endswith((".gz", ".dz")) else held


def _manual(page: bytes) -> str:
    """Take the words out of a manual page's macros."""
    lines = []
    for line in page.decode("utf-8", "replace").split("\n"):
        if line.startswith((".", "'")):
            macro, _, line = line[1:].strip().partition(" ")
            if macro not in {"B", "I", "BR", "IR", "RB", "RI", "BI", "IB", "SH", "SS", "TP", "IP", "SM"}:
                continue
            line = line.replace('"', "")
        line = regex.sub(r"\\f(\[\w*\]|\(..|.)|\\[&%/,:c]", "", line).replace(r"\-", "-").replace(r"\ ", " ")
        lines.append(line)
    return "\n".join(lines)


def _page(page: bytes) -> str:
    """Take the text out of HTML."""
    text = regex.sub(r"(?s)<(script|style).*?</\1>", " ", page.decode("utf-8", "replace"))
    return html.unescape(regex.sub(r"<[^>]+>", "", regex.sub(r"<(br|p|td|li|div|h\d)[^>]*>", "\n", text)))


def _thesaurus(data: bytes) -> str:
    encoding = data.split(b"\n", 1)[0].decode("ascii").strip()
    return regex.sub(r"\([^)]*\)", "", data.decode(encoding, "replace")).replace("|", "\n")


def _dictionary(data: bytes, side: int) -> str:
    """Take one language of the German-English word list."""
    rows = (line.split(" :: ") for line in data.decode("utf-8").split("\n") if not line.startswith("#"))
    sides = (row[side] for row in rows if len(row) == 2)
    return "\n".join(regex.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text).replace("|", "\n") for text in sides)


def _plain(data: bytes) -> str:
    return data.decode("utf-8", "replace")


_PAGES = r"/text/.*\.html$"
_SOURCES: dict[str, tuple[tuple[str, str, Callable[[bytes], str]], ...]] = {
    "de": (
        ("manpages-de", r"/man/de/", _manual),
        ("libreoffice-help-de", _PAGES, _page),
        ("fortunes-de", r"/fortunes/de/[^.]*$", _plain),
        ("trans-de-en", r"/trans/de-en$", partial(_dictionary, side=0)),
        ("mythes-de", r"th_de_DE_v2\.dat$", _thesaurus),
    ),
    "hu": (
        ("libreoffice-help-hu", _PAGES, _page),
        ("mythes-hu", r"\.dat$", _thesaurus),
        ("dict-freedict-hun-eng", r"\.dict\.dz$", _plain),
    ),
    "en": (
        ("libreoffice-help-en-us", _PAGES, _page),
        ("trans-de-en", r"/trans/de-en$", partial(_dictionary, side=1)),
    ),
}


def _documents(language: str) -> Iterator[str]:
    for package, wanted, read in _SOURCES[language]:
        for held in _members(package, wanted):
            yield read(held)


# -- gold ---------------------------------------------------------------------------------------------------------


@cache
def _annotated() -> list[dict[str, Any]]:
    return read_jsonl(data_file("morph_segmentation.jsonl.gz"))


def _annotated_gold(language: str) -> Gold:
    """Compounds of two constituents and words that are none; inflected Hungarian ones lose what inflects them."""
    name = {"en": "eng", "hu": "hun"}[language]
    rows = [row for row in _annotated() if row["lang"] == name and row["word"].isalpha()]
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


def _german_gold() -> Gold:
    """Compounds by rule: one cut alone leaves two nouns of four letters or more, with a linking element perhaps.

    Words that are none: no cut leaves two words of the list, and the word is no noun.
    """
    words = next(_members("wngerman", r"/dict/ngerman$")).decode("utf-8").split()
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


def _halves(gold: Gold, each: int, seed: int) -> tuple[Gold, Gold]:
    """Return words for development and for the test: as many compounds as others, where there are as many."""
    halves: list[Gold] = []
    for half in (0, 1):
        mine = sorted(word for word in gold if hashlib.sha256(word.lower().encode()).digest()[0] % 2 == half)
        Random(seed).shuffle(mine)
        compounds = [word for word in mine if len(gold[word]) > 1][:each]
        others = [word for word in mine if len(gold[word]) == 1][:each]
        halves.append({word: gold[word] for word in compounds + others})
    return halves[0], halves[1]


# -- rivals -------------------------------------------------------------------------------------------------------


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


def _charsplit(lexicon: Mapping[str, int], development: Gold) -> Split:
    """Split once, by how often letter n-grams begin, end and are inside words (after Tuggener's CharSplit)."""
    begin, end, inside = Counter[str](), Counter[str](), Counter[str]()
    for word in lexicon:
        for n in range(3, min(len(word), 12) + 1):
            begin[word[:n]] += 1
            end[word[-n:]] += 1
            for start in range(1, len(word) - n):
                inside[word[start : start + n]] += 1

    def share(of: Counter[str], gram: str) -> float:
        total = begin[gram] + end[gram] + inside[gram]
        return of[gram] / total if total else 0.0

    def score(word: str) -> tuple[float, list[str]]:
        low, best, place = word.lower(), -math.inf, 0
        for cut in range(3, len(low) - 2):
            left, right = low[:cut], low[cut:]
            ends = max(share(end, left[-n:]) for n in range(3, min(cut, 12) + 1))
            begins = max(share(begin, right[:n]) for n in range(3, min(len(right), 12) + 1))
            across = [low[s : s + 4] for s in range(max(1, cut - 3), min(cut, len(low) - 4))]
            within = min((share(inside, gram) for gram in across), default=0.0)
            if (value := begins - within + ends) > best:
                best, place = value, cut
        return best, [word[:place], word[place:]] if place else [word]

    return _best_threshold(score, development)


def _frequency(language: str, lexicon: Mapping[str, int], development: Gold) -> Split:
    """Cut into known words of four letters or more with the highest geometric mean of counts (Koehn and Knight)."""
    links = _LINKS[language]

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

    return _best_threshold(score, development)


def _morfessor(lexicon: Mapping[str, int], words: int, development: Gold, test: Gold, seed: int, kept: Path) -> Split:
    """Train Morfessor Baseline on word types; of several corpus weights the one that serves the development words."""
    try:
        import morfessor
    except ModuleNotFoundError:
        raise missing_extra("morfessor", "segment") from None
    asked = sorted({word.lower() for word in (*development, *test)})
    types = [word for word, _ in Counter(lexicon).most_common(words)]
    best: tuple[int, dict[str, list[str]]] = (-1, {})
    for weight in _CORPUS_WEIGHTS:
        key = hashlib.sha256(json.dumps([types, asked, weight, seed]).encode()).hexdigest()[:12]
        path = kept / f"morfessor-{key}.json"
        if not path.exists():
            import random

            random.seed(seed)  # the library shuffles with the global generator
            model: Any = morfessor.BaselineModel(corpusweight=weight)
            model.load_data([(1, word) for word in types])
            model.train_batch()
            with replace_file(path) as temporary:
                temporary.write_text(json.dumps({word: model.viterbi_segment(word)[0] for word in asked}))
        said: dict[str, list[str]] = json.loads(path.read_text())
        right = sum(said[word.lower()] == [p.lower() for p in gold] for word, gold in development.items())
        best = max(best, (right, said), key=lambda pair: pair[0])

    def split(given: Sequence[str]) -> list[list[str]]:
        return [_in_case(word, best[1][word.lower()]) for word in given]

    return split


def _in_case(word: str, pieces: Sequence[str]) -> list[str]:
    ends = np.cumsum([0, *map(len, pieces)])
    return [word[a:b] for a, b in pairwise(ends)]


# -- the check ----------------------------------------------------------------------------------------------------


@dataclass
class _Language:
    """What one language gave."""

    name: str
    words: int
    pairs: int
    gold: Gold
    right: dict[str, np.ndarray] = field(default_factory=dict)
    splitter: Any = None

    @property
    def compounds(self) -> np.ndarray:
        """Which test words are compounds."""
        return np.array([len(pieces) > 1 for pieces in self.gold.values()])

    def accuracy(self, method: str, *, compounds: bool | None = None) -> float:
        """Percent of test words cut exactly right."""
        chosen = slice(None) if compounds is None else self.compounds == compounds
        return 100 * float(self.right[method][chosen].mean())


def _measure(language: str, limit: int | None, seed: int, tell: Callable[[str], None]) -> _Language:
    from mintage.segment.decompounder import Decompounder

    development, test = _halves(_german_gold() if language == "de" else _annotated_gold(language), limit or 1000, seed)
    tell("counting words")
    counts: Counter[str] = Counter()
    for text in _until(_documents(language), limit):
        counts.update(web_words(text))
    gold = {word.lower() for word in (*development, *test)}
    pairs = [pair for pair in hyphen_pairs(counts, seed=seed) if pair[0].lower() not in gold]
    made = _Language(language, len(counts), len(pairs), test)
    tell("training the tagger")
    steps = 1000 if limit is None else 200
    made.splitter = Decompounder.fit(pairs, words=counts, folder=WORK / f"tagger-{language}", steps=steps, seed=seed)
    lexicon: Counter[str] = Counter()
    for word, count in counts.items():
        for part in word.split("-"):
            if part.isalpha():
                lexicon[part.lower()] += count
    lexicon = Counter(dict(lexicon.most_common(100_000)))
    tell("training the rivals")
    words = _MORFESSOR_WORDS if limit is None else min(_MORFESSOR_WORDS, 20 * limit)
    methods: dict[str, Split] = {
        TAGGER: made.splitter.split_all,
        MORFESSOR: _morfessor(lexicon, words, development, test, seed, WORK),
        CHARSPLIT: _charsplit(lexicon, development),
        FREQUENCY: _frequency(language, lexicon, development),
        NEVER: lambda words: [[word] for word in words],
    }
    for name, split in methods.items():
        made.right[name] = np.array([p == g for p, g in zip(split(list(test)), test.values(), strict=True)])
    return made


def _until(documents: Iterable[str], limit: int | None) -> Iterator[str]:
    """Stop a quick look after some text: 20,000 characters per gold word."""
    left = math.inf if limit is None else 20_000 * limit
    for text in documents:
        if left <= 0:
            return
        yield text
        left -= len(text)


def check(
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = lambda done, of, stage: None,
) -> list[Result | Figure]:
    """Re-measure both claims.

    Vocabulary size and text of the second were chosen on the development words: where pieces are small beside words,
    hard compounds are rare with and without splitting.

    Parameters
    ----------
    seed
        Of the choice of gold words and of all training.
    limit
        A quick look: so many gold compounds and other words per language and half (1,000), 20,000 characters of text
        for each, 200 steps of the tagger instead of 1,000.
    command
        What repeats it.
    progress
        Told the stage.

    Raises
    ------
    UserError
        A package or the gold file is absent.
    """
    languages = ("de", "hu", "en")
    of = len(languages) + 1
    measured = [
        _measure(name, limit, seed, lambda stage, d=done, n=name: progress(d, of, f"{n}: {stage}"))
        for done, name in enumerate(languages)
    ]
    common = {"seed": seed, "command": command, "environment": environment()}
    rows: list[Result | Figure] = [*_accuracy_rows(measured, limit, common)]
    rows += _vocabulary_rows(measured[0], limit, seed, common, lambda stage: progress(of - 1, of, f"de: {stage}"))
    progress(of, of, "done")
    return rows


def _accuracy_rows(measured: list[_Language], limit: int | None, common: dict[str, Any]) -> Iterator[Result | Figure]:
    names = ", ".join(f"{m.name} {len(m.gold)}" for m in measured)
    data = f"gold words, half of them compounds: {names}; text of Debian packages"
    settings = {"steps": 1000, "width": 48, "layers": 3, "threshold": 0.25, "limit": limit or "none"}
    note = (
        "A convolutional tagger with a lexicon of the text stands in for ByT5; German gold is by rule. Morfessor's "
        f"corpus weight (of {', '.join(f'{w:g}' for w in _CORPUS_WEIGHTS)}) and the thresholds of all methods were "
        f"chosen on other gold words; Morfessor reads the {_MORFESSOR_WORDS:,} most frequent words of the same text. "
        "Hyphen pairs, negatives included: " + ", ".join(f"{m.name} {m.pairs:,}" for m in measured)
    )
    for kind, chosen in (("all words", None), ("compounds", True), ("other words", False)):
        gain = _macro([_difference(m, MORFESSOR, chosen) for m in measured])
        means = {
            name: float(np.mean([m.accuracy(name, compounds=chosen) for m in measured])) for name in (TAGGER, *RIVALS)
        }
        claimed = "self-supervised splitting is >= 10 points of accuracy above Morfessor, mean of three languages"
        yield Result(
            method="compoundpiece",
            job="segment",
            metric=f"exact-match accuracy of splitting, {kind}, tagger minus Morfessor",
            value=gain.value,
            unit="points",
            higher_is_better=True,
            interval=gain.bounds,
            n=sum(len(_difference(m, MORFESSOR, chosen)) for m in measured),
            claim=claimed if chosen is None else "",
            verdict=("holds" if gain.value >= 10 and gain.low > 0 else "does not hold")
            if chosen is None
            else "measured",
            data=data,
            settings=settings,
            note=note,
            **common,
        )
        yield Result(
            method="compoundpiece",
            job="segment",
            metric=f"exact-match accuracy of splitting, {kind}, mean of languages",
            value=means[TAGGER],
            unit="%",
            higher_is_better=True,
            baseline={MORFESSOR: means[MORFESSOR]},
            peers={name: means[name] for name in RIVALS if name != MORFESSOR},
            n=sum(len(m.gold) for m in measured),
            data=data,
            settings=settings,
            note=note,
            **common,
        )
    categories = [f"{m.name}, {kind}" for m in measured for kind in ("compounds", "others")]
    series = [
        {"name": name, "y": [m.accuracy(name, compounds=c) for m in measured for c in (True, False)]}
        for name in (TAGGER, *RIVALS)
    ]
    yield Figure(
        job="segment",
        method="compoundpiece",
        name="compoundpiece-accuracy",
        title="Who splits compounds right, and leaves other words alone",
        caption="Exact-match accuracy on held-out gold words. Only hyphens teach the tagger; the rivals see words.",
        kind="bars",
        data={"y_label": "words cut exactly right (%)", "categories": categories, "series": series},
        environment=common["environment"],
    )


def _difference(language: _Language, rival: str, compounds: bool | None) -> np.ndarray:
    chosen = slice(None) if compounds is None else language.compounds == compounds
    return 100 * (language.right[TAGGER].astype(float) - language.right[rival])[chosen]


def _macro(differences: list[np.ndarray]) -> Interval:
    """Mean over languages of mean differences; words are resampled within their language."""
    parts = [bootstrap(d, n=2000, seed=i) for i, d in enumerate(differences)]
    value = float(np.mean([p.value for p in parts]))
    generator = np.random.default_rng(0)
    draws = [d[generator.integers(len(d), size=(2000, len(d)))].mean(1) for d in differences]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return Interval(float(low), value, float(high))


def _vocabulary_rows(
    german: _Language, limit: int | None, seed: int, common: dict[str, Any], tell: Callable[[str], None]
) -> Iterator[Result | Figure]:
    kept: dict[bool, list[str]] = defaultdict(list)
    for number, text in enumerate(_pieces(_until(_documents("de"), limit))):
        kept[number % _HELD_OUT == 0].append(text)
    kept[True] = [text for text in kept[True] if text.strip()]
    compounds = {word: pieces for word, pieces in german.gold.items() if len(pieces) > 1}
    read = sum(map(len, kept[False])) / 1e6
    hard: dict[str, list[float]] = {PLAIN: [], SPLIT: []}
    for size in _VOCABULARIES:
        tokenizers = {}
        for name, splitter in ((PLAIN, "none"), (SPLIT, german.splitter)):
            tell(f"{name}, {size} entries")
            trainer = CompoundPiece(vocab_size=size, decompounder=splitter, min_count=1, seed=seed)
            tokenizers[name] = trainer.train(kept[False])
        shared: dict[str, Any] = {
            "method": "compoundpiece",
            "job": "segment",
            "data": f"German texts, dictionary and thesaurus ({read:.1f} M characters), every 20th piece held out",
            "settings": {"vocab_size": size, "min_count": 1, "limit": limit or "none"},
            **common,
        }
        rows, rates = _compared(tokenizers, compounds, kept[True], shared)
        yield from rows
        for name, rate in rates.items():
            hard[name].append(rate)
    yield Figure(
        job="segment",
        method="compoundpiece",
        name="compoundpiece-hard",
        title="Compounds whose constituents a tokenizer hides",
        caption="German gold compounds with a constituent boundary inside a token.",
        kind="bars",
        data={
            "y_label": "hard compounds (%)",
            "categories": [f"{size:,} entries" for size in _VOCABULARIES],
            "series": [{"name": name, "y": rates} for name, rates in hard.items()],
        },
        environment=common["environment"],
    )


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    """Cut a list of entries, which is one long document, into many; texts stay whole."""
    for text in documents:
        lines = text.split("\n")
        step = _ENTRIES if len(text) > _LIST else len(lines)
        yield from ("\n".join(lines[start : start + step]) for start in range(0, len(lines), step))


def _compared(
    tokenizers: Mapping[str, Segmenter], compounds: Gold, texts: Sequence[str], shared: dict[str, Any]
) -> tuple[list[Result], dict[str, float]]:
    """Return the rows of one vocabulary size, and both shares of hard compounds in percent."""
    size = shared["settings"]["vocab_size"]
    where = f"German, {size:,} entries"
    hard = {name: np.array(hard_compounds(t, compounds), dtype=float) for name, t in tokenizers.items()}
    rate = {name: 100 * float(h.mean()) for name, h in hard.items()}
    octets = sum(len(text.encode()) for text in texts)
    tokens = {name: np.array([len(ids) for ids in t.encode_batch(texts)], float) for name, t in tokenizers.items()}
    scores = {name: _boundary_f1(t, compounds) for name, t in tokenizers.items()}
    rows: list[Result] = []
    if hard[PLAIN].any():
        fall = bootstrap_ratio(hard[SPLIT], np.maximum(hard[PLAIN], 1e-9))
        rows.append(
            Result(
                metric=f"fall of the share of hard compounds, {where}",
                value=100 * (1 - fall.value),
                unit="%",
                higher_is_better=True,
                interval=(100 * (1 - fall.high), 100 * (1 - fall.low)),
                n=len(compounds),
                claim=f"splitting before training lowers the share of hard compounds by >= 40 % ({size:,} entries)",
                verdict="holds" if fall.value <= 0.6 else "does not hold",
                note=f"hard: {rate[SPLIT]:.1f} % with splitting, {rate[PLAIN]:.1f} % without",
                **shared,
            )
        )
    length = bootstrap_ratio(tokens[PLAIN], tokens[SPLIT])
    per_token = {name: octets / float(t.sum()) for name, t in tokens.items()}
    rows.append(
        Result(
            metric=f"bytes per token, CompoundPiece over Unigram, {where}",
            value=length.value,
            unit="x",
            higher_is_better=True,
            interval=length.bounds,
            n=len(texts),
            claim=f"bytes per token stay within 3 % of the plain Unigram model's ({size:,} entries)",
            verdict="holds" if length.value >= 0.97 else "does not hold",
            note=f"{per_token[SPLIT]:.3f} with splitting, {per_token[PLAIN]:.3f} without",
            **shared,
        )
    )
    rows.append(
        Result(
            metric=f"boundary F1 on gold compounds, {where}",
            value=scores[SPLIT],
            unit="F1",
            higher_is_better=True,
            baseline={PLAIN: scores[PLAIN]},
            n=len(compounds),
            claim=f"boundary F1 against constituents is higher than the plain Unigram model's ({size:,} entries)",
            verdict="holds" if scores[SPLIT] > scores[PLAIN] else "does not hold",
            **shared,
        )
    )
    return rows, rate


def _boundary_f1(tokenizer: Segmenter, gold: Gold) -> float:
    """Micro F1 of token boundaries strictly inside the words against constituent boundaries."""
    tokens = tokenizer.tokens() or []
    hits = said = true = 0
    for word, ids in zip(gold, tokenizer.encode_batch([f" {word}" for word in gold]), strict=True):
        ends = set(np.cumsum([len(tokens[i]) for i in ids]).tolist()[:-1]) - {1}  # the space alone cuts no word
        wanted = set((1 + np.cumsum([len(piece.encode()) for piece in gold[word]])).tolist()[:-1])
        hits, said, true = hits + len(ends & wanted), said + len(ends), true + len(wanted)
    return 2 * hits / (said + true)

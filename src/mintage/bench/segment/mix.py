"""The texts of segment's joint comparison: one mix of languages to train on, and held-out and parallel text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from mintage.data import texts
from mintage.data.corpora import Split
from mintage.segment.baselines import ByLanguage
from mintage.segment.core.metrics import Parallel, gold_words

__all__ = ["Mix", "open_mix"]

ISO = {
    "ara": "ar",
    "deu": "de",
    "ell": "el",
    "spa": "es",
    "hin": "hi",
    "ron": "ro",
    "rus": "ru",
    "tha": "th",
    "tur": "tr",
    "vie": "vi",
    "cmn": "zh",
}
"""XQuAD's languages in Tatoeba."""


@dataclass(frozen=True)
class Mix:
    """Text to train on and held-out text, in twelve languages.

    Parameters
    ----------
    train
        WikiText-2 valid (English), the first half of XQuAD's paragraphs, half of the Tatoeba sentences of the same
        languages; parallel ``dev`` text is in it.
    held
        The head of WikiText-2 test, and the other half of the paragraphs.
    parallel
        The other half of the paragraphs, and the Tatoeba sentences of languages that were not trained on.
    gold
        Morphemes of English and Spanish words, which were trained on.
    """

    train: ByLanguage
    held: list[str]
    parallel: dict[str, Parallel]
    gold: dict[str, list[str]]
    name: str = "WikiText-2 + XQuAD + Tatoeba, held out"


def open_mix(lines: int | None = None) -> Mix:
    """Read the job's texts.

    Parameters
    ----------
    lines
        Lines of WikiText, and a fraction of the rest in proportion; None reads all.

    Raises
    ------
    UserError
        A file is not there.
    """
    valid, test = (_lines(part, lines) for part in ("train", "held-out"))
    share = 1.0 if lines is None else min(1.0, lines / 3000)
    paragraphs = [paragraph.fields for paragraph in texts("xquad", "all").documents()]
    numbers = sorted({row["par"] for row in paragraphs})
    half = len(numbers) // 2
    seen, unseen = (set(part[: max(4, int(half * share))]) for part in (numbers[:half], numbers[half:]))
    dev_numbers = set(sorted(seen)[:24])
    train: dict[str, list[str]] = {"en": list(valid)}
    dev: dict[str, list[str]] = {}
    new: dict[str, list[str]] = {}
    for row in sorted(paragraphs, key=lambda row: (row["lang"] != "en", row["lang"], row["par"])):
        if row["par"] in seen:
            train.setdefault(row["lang"], []).append(row["context"])
            if row["par"] in dev_numbers:
                dev.setdefault(row["lang"], []).append(row["context"])
        elif row["par"] in unseen:
            new.setdefault(row["lang"], []).append(row["context"])
    foreign: dict[str, tuple[list[str], list[str]]] = {}
    for row in (sentence.fields for sentence in texts("tatoeba", "all").documents()):
        if row["lang"] in ISO:
            if row["i"] % 2 == 0 and row["i"] < 1000 * share:
                train[ISO[row["lang"]]].append(row["text"])
        elif row["i"] < 1000 * share:
            own, same = foreign.setdefault(row["lang"], ([], []))
            own.append(row["text"])
            same.append(row["eng"])
    return Mix(
        train=ByLanguage(train, dev=dev),
        held=test + [text for own in new.values() for text in own],
        parallel={
            "XQuAD": {lang: (own, new["en"]) for lang, own in new.items() if lang != "en"},
            "languages not trained on": foreign,
        },
        gold=gold_words(word.fields for word in texts("morph-segmentation", "all", domain=("eng", "spa")).documents()),
    )


def _lines(split: Split, most: int | None) -> list[str]:
    return list(islice((line for line in texts("wikitext2", split) if line.strip()), most))

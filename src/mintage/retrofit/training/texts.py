"""What composers and hypernetworks learn from where no text is given; no claim check measures any of it."""

from __future__ import annotations

import numpy as np

from mintage.data import texts

__all__ = ["texts_by_kind", "texts_cut_small"]

_GENESIS = ("de", "fi", "fr", "pt", "sv")  # but for English
_SENTENCES = {"deu": "german.txt", "fra": "french.txt", "por": "portuguese.txt", "spa": "spanish", "ita": "italian"}


def texts_cut_small(seed: int = 0) -> list[str]:
    """Return texts that tokenizers made for English cut small: 50 languages, Genesis in five, code; some English, too.

    Raises
    ------
    UserError
        The data folder is not set.
    """
    by_language: dict[str, list[str]] = {}
    for sentence in texts("tatoeba", "train").documents():
        by_language.setdefault(sentence.domain, []).append(sentence.text)
    found = [" ".join(some[i : i + 12]) for some in by_language.values() for i in range(0, len(some), 12)]
    found += [piece for text in texts("genesis", "train", domain=_GENESIS) for piece in _pieces(text)]
    found += [line.strip() for line in texts("wikitext2", "train") if len(line) > 200][:600]
    found += [piece for text in texts("python-library", "train") for piece in _pieces(text[:6000])]
    return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


def texts_by_kind() -> dict[str, list[str]]:
    """Return texts by kind: English, code, and languages that others have more of.

    Raises
    ------
    UserError
        The data folder is not set.
    """
    code = [piece for text in texts("python-library", "train") for piece in _pieces(text[:6000])]
    found: dict[str, list[str]] = {"english": [], "code": code}
    for name in ("speeches", "genesis", "shakespeare"):
        for document in texts(name, "train").documents():
            kind = document.name if name == "genesis" and document.domain != "en" else "english"
            found.setdefault(kind, []).extend(_pieces(document.text))
    for sentence in texts("tatoeba", "train").documents():
        if sentence.domain in _SENTENCES:
            found.setdefault(_SENTENCES[sentence.domain], []).append(sentence.text)
        found["english"].append(sentence.fields["eng"])
    order = np.random.default_rng(0)
    return {kind: [some[i] for i in order.permutation(len(some))] for kind, some in found.items()}


def _pieces(text: str, size: int = 600) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]

"""What the checks of the job share: texts of many kinds, cut alike for all models, and the bits they cost a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mintage.data import Document, texts
from mintage.errors import UserError, did_you_mean
from mintage.measure import Interval, bootstrap_ratio
from mintage.measure.study import Column, Measure, Statistic
from mintage.models import CausalLM

__all__ = [
    "BITS_PER_BYTE",
    "DOMAINS",
    "Bits",
    "bits_of",
    "check_installed",
    "documents",
    "measured_bits",
    "windows",
]

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
DOMAINS = ("code", "humaneval", "prose", *LANGUAGES)
"""Kinds of text: Python's standard library, HumanEval with its solutions, Wikipedia, XQuAD's paragraphs by language."""


# -- texts -------------------------------------------------------------------------------------------------------------


def documents(domain: str, number: int, *, size: int = 1024, seed: int = 0) -> list[Document]:
    """Draw texts of a kind, each cut to at most `size` bytes at the end of a line or word.

    Parameters
    ----------
    domain
        One of `DOMAINS`.
    number
        How many, at most.
    seed
        Of the draw.

    Raises
    ------
    UserError
        Unknown domain, or its data are not there.
    """
    if domain not in DOMAINS:
        raise UserError(f"unknown kind of text {domain!r}; {did_you_mean(domain, DOMAINS)}")
    found = [(name, text) for name, text in _SOURCES.get(domain, _xquad)(domain) if len(text.encode()) >= size // 2]
    order = np.random.default_rng(seed).permutation(len(found))[:number]
    return [Document(found[i][0], domain, next(iter(windows(found[i][1], size)))) for i in sorted(order)]


def _library(_: str) -> Iterable[tuple[str, str]]:
    """Modules of the standard library; what stands before the first definition of a file is mostly licence."""
    for module in texts("python-library", "held-out").documents():
        start = max(module.text.find("\ndef "), module.text.find("\nclass "))
        if start > 0 and "\ufffd" not in module.text:
            yield module.name, module.text[start + 1 :]


def _humaneval(_: str) -> Iterable[tuple[str, str]]:
    return ((task.name, task.text) for task in texts("humaneval", "held-out").documents())


def _wikipedia(_: str) -> Iterable[tuple[str, str]]:
    """Paragraphs of WikiText-2 test without unknown words, its spacing of punctuation undone."""
    for line in texts("wikitext2", "held-out").documents():
        if "<unk>" not in line.text and not line.text.startswith(" ="):
            yield line.name, _unspaced(line.text.strip())


def _unspaced(line: str) -> str:
    for spaced, plain in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), ("( ", "("), (" n't", "n't")):
        line = line.replace(spaced, plain)
    for mark in (",", ".", ";", ":", "!", "?", ")", "'s", "'"):
        line = line.replace(f" {mark}", mark)
    return line


def _xquad(language: str) -> Iterable[tuple[str, str]]:
    return ((paragraph.name, paragraph.text) for paragraph in texts("xquad", "all", domain=language).documents())


_SOURCES: dict[str, Callable[[str], Iterable[tuple[str, str]]]] = {
    "code": _library,
    "humaneval": _humaneval,
    "prose": _wikipedia,
}


def windows(text: str, size: int) -> list[str]:
    """Cut a text into pieces of at most `size` bytes, before white space where there is some; joined they are the text.

    All models see the same pieces, whatever their tokens are.

    Raises
    ------
    UserError
        `size` is below 4, the bytes of the longest character.
    """
    if size < 4:
        raise UserError(f"size={size} is less than a character may take; pass at least 4 bytes, e.g. 1024")
    raw, found, start = text.encode(), [], 0
    while start < len(raw):
        end = min(start + size, len(raw))
        if end < len(raw):
            spaces = [place for mark in (b" ", b"\n") if (place := raw.rfind(mark, start + size // 2, end)) >= 0]
            end = max(spaces, default=end)
            while raw[end] & 0xC0 == 0x80:  # within a character
                end -= 1
        found.append(raw[start:end].decode())
        start = end
    return found


# -- bits --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bits:
    """What a text costs: information, and the positions that a model had to read for it."""

    bits: float
    bytes: int
    tokens: int

    @property
    def per_byte(self) -> float:
        """Bits per byte."""
        return self.bits / self.bytes


@torch.inference_mode()
def bits_of(lm: CausalLM, text: str, *, window: int = 1024, batch: int = 8) -> Bits:
    """Information of a text under a model with any tokenizer, in windows that start anew.

    Parameters
    ----------
    window
        Bytes per window (`windows`), the same for all models; each is read after the model's opening token.
    batch
        Windows per forward.

    Raises
    ------
    UserError
        The text is empty, or the model has no token to start a text with.
    """
    if not text:
        raise UserError("an empty text has no bits per byte; pass some text")
    opening = lm.opening
    if opening is None:
        raise UserError(f"{lm.name} has no token that starts a text, so the first token of a text has no probability")
    tokenizer: Any = lm.tokenizer
    lists = [[opening, *tokenizer(piece, add_special_tokens=False)["input_ids"]] for piece in windows(text, window)]
    nats = 0.0
    for first in range(0, len(lists), batch):
        rows = [torch.tensor(ids) for ids in lists[first : first + batch]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=opening).to(lm.model.device)
        lengths = torch.tensor([len(row) for row in rows], device=ids.device)
        read = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        logits = lm.model(ids, attention_mask=read.long(), use_cache=False).logits[:, :-1]
        logp = logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        nats -= float(logp[read[:, 1:]].double().sum())
    return Bits(float(nats / np.log(2)), len(text.encode()), sum(len(ids) - 1 for ids in lists))


# -- columns and statistics --------------------------------------------------------------------------------------------


def measured_bits(
    kind: str, some: Iterable[Document], of: Callable[[Any], Callable[[str], Bits]], arms: Iterable[str] | None = None
) -> Measure:
    """Make the measure of bits of texts; its columns are ``bits``, ``bytes`` and ``tokens``, each with the kind.

    Parameters
    ----------
    kind
        What is measured.
    some
        The texts.
    of
        From an arm to what gives a text's `Bits`; asked when an arm is first needed.
    arms
        As in `Measure`.
    """

    def measure(_: Any, arm: Any, text: str) -> Mapping[str, float]:
        bits = of(arm)(text)
        return {f"bits, {kind}": bits.bits, f"bytes, {kind}": bits.bytes, f"tokens, {kind}": bits.tokens}

    units = {f"{document.domain} {document.name}": document.text for document in some}
    return Measure(name=kind, units=lambda run: units, of=measure, arms=None if arms is None else tuple(arms))


def _difference(one: Column, other: Column) -> Interval:
    if not np.array_equal(one[1], other[1]):
        raise UserError("the two were measured on different texts; run both on each")
    return bootstrap_ratio(one[0] - other[0], one[1])


BITS_PER_BYTE = Statistic("bits", False, _difference, lambda one: bootstrap_ratio(one[0], one[1]))
"""Of bits and bytes, stacked: bits per byte of one minus those of another on the same texts; texts are resampled."""


# -- packages ----------------------------------------------------------------------------------------------------------


def check_installed(packages: Mapping[str, str]) -> None:
    """Check that modules can be imported, before anything is measured.

    Parameters
    ----------
    packages
        Module to what pip installs for it.

    Raises
    ------
    UserError
        One is missing.
    """
    for module, install in packages.items():
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{module} is not installed; run: pip install {install}")

"""Codes of text side by side: how far each compresses held-out documents, in windows of every size and without."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from mintage.data import texts
from mintage.errors import UserError
from mintage.measure import Figure, Interval, bootstrap_ratio, timed
from mintage.measure.figure import curve
from mintage.measure.study import Finding, Run
from mintage.segment.baselines import BPE
from mintage.segment.codecs import ArithmeticCodec, GzipCodec
from mintage.segment.core.byte_models import ByteNGram
from mintage.segment.equal_info import EqualInfoSegmenter
from mintage.segment.window_coder import total_frequency

__all__ = [
    "ARITHMETIC",
    "CODES",
    "GZIP",
    "LADDER",
    "WINDOWS",
    "Code",
    "CodeCorpus",
    "compressed",
    "ladder_figure",
    "measured_compression",
    "ngram",
    "python_corpus",
    "ratios",
    "wikitext_corpus",
]

SIZES = (16, 24, 32, 64, 128)
WINDOWS = [f"windows of {bits} bits" for bits in SIZES]
ARITHMETIC, GZIP = "arithmetic coding, no windows", "gzip"
LADDER = [*WINDOWS, ARITHMETIC]
"""Names of codes, from the shortest windows to none."""

_IDEAL = 10  # documents whose ideal code length is worked out


@dataclass(frozen=True)
class CodeCorpus:
    """Bytes for the byte model, for the second models, and held out."""

    name: str
    first: bytes
    second: bytes
    held_out: bytes

    def documents(self, count: int, size: int) -> list[bytes]:
        """Return up to `count` held-out documents of `size` bytes."""
        whole = range(0, len(self.held_out) - size + 1, size)
        return [self.held_out[i : i + size] for i in whole][:count]


def python_corpus(size: int) -> CodeCorpus:
    """Read the interpreter's own library, by file: 8, 11 and 1 of 20 parts; each holds a document of `size` bytes."""
    files = list(texts("python-files", "train").documents())
    first, second = (
        b"".join(file.text.encode() for file in files if (file.fields["part"] < 8) == wanted)
        for wanted in (True, False)
    )
    held_out = b"".join(text.encode() for text in texts("python-files", "held-out"))
    if min(len(first), len(second), len(held_out)) < size:
        raise UserError("this Python came without its library's source; use an interpreter that came with it")
    return CodeCorpus(f"Python {platform.python_version()} library source", first, second, held_out)


def wikitext_corpus() -> CodeCorpus:
    """Read WikiText-2: the byte model learns from valid, test is held out, and there is no second model."""
    valid, test = ("".join(texts("wikitext2", split)).encode() for split in ("train", "held-out"))
    return CodeCorpus("WikiText-2 (valid to test)", valid, b"", test)


@lru_cache(maxsize=4)
def _grams(text: bytes, order: int) -> ByteNGram:
    return ByteNGram.train([text], order=order, total=total_frequency(16))


@lru_cache(maxsize=16)
def ngram(corpus: CodeCorpus, order: int, bits: int) -> ByteNGram:
    """Return the n-gram of a corpus's first part, its frequencies those that windows of `bits` bits need."""
    trained = _grams(corpus.first, order)
    return ByteNGram(trained.grams, trained.counts, order, total_frequency(bits))


class _Bytes:
    vocab_size = 256

    def encode(self, text: bytes) -> list[int]:
        return list(text)


@dataclass(frozen=True)
class Code:
    """A kind of tokens.

    Parameters
    ----------
    kind
        Equal-Info windows, arithmetic code without windows, gzip, bytes, or BPE that compresses like windows of 16
        bits.
    bits
        Of a window, or (for plain arithmetic code) those whose frequencies the model has.
    """

    kind: Literal["windows", "plain", "gzip", "bytes", "subwords"]
    bits: int = 16

    def encoder(self, corpus: CodeCorpus, order: int) -> Any:
        """Make what encodes: ``encode(text)`` and ``vocab_size``."""
        if self.kind == "gzip":
            return GzipCodec()
        if self.kind == "bytes":
            return _Bytes()
        if self.kind == "plain":
            return ArithmeticCodec(ngram(corpus, order, self.bits))
        windows = EqualInfoSegmenter(ngram(corpus, order, self.bits), self.bits, 8)
        return windows if self.kind == "windows" else _subwords(corpus, windows)


CODES: Mapping[str, Code] = {
    **{name: Code("windows", bits) for name, bits in zip(WINDOWS, SIZES, strict=True)},
    ARITHMETIC: Code("plain", SIZES[-1]),
    GZIP: Code("gzip"),
}
"""What is compressed with, by name."""


def _subwords(corpus: CodeCorpus, windows: EqualInfoSegmenter) -> Any:
    """Train BPE with the smallest vocabulary that needs no more tokens than the windows, on a sample to learn from."""
    sample = corpus.second[:200_000]
    wanted = len(windows.encode(sample))
    text = corpus.first[:2_000_000].decode("utf-8", errors="replace").splitlines(keepends=True)
    low, high = 256, 4096
    trained = BPE(vocab_size=high).train(text)
    while high - low > 8:
        middle = (low + high) // 2
        candidate = BPE(vocab_size=middle).train(text)
        if len(candidate.encode(sample)) <= wanted:
            high, trained = middle, candidate
        else:
            low = middle
    return trained


def compressed(code: Code, corpus: CodeCorpus, order: int, documents: Sequence[bytes]) -> dict[str, list[float]]:
    """Code documents and decode them again.

    Returns
    -------
    dict
        ``text`` (bytes), ``code`` (bytes of code) and, but for gzip, ``exact`` (whether it came back), one number a
        document; of windows also ``rate`` (MB/s of encoding, one pass) and ``needed`` (share of the bits that the model
        needed).
    """
    encoder, lengths = code.encoder(corpus, order), [float(len(document)) for document in documents]
    if code.kind == "gzip":
        return {"text": lengths, "code": [float(len(encoder.encode(document))) for document in documents]}
    if code.kind == "plain":
        coded = [encoder.encode(document) for document in documents]
        back = encoder.decode_batch(coded, [len(document) for document in documents])
        more: dict[str, list[float]] = {}
    else:
        encoder.encode(documents[0][:100])  # the strings of short windows are worked out at first use
        coded, seconds = timed(lambda: encoder.encode_batch(documents))
        back = [encoder.decode_bytes(ids) for ids in coded]
        rate = sum(map(len, documents)) / 1e6 / seconds
        more = {"rate": [rate], "needed": [_needed(encoder, documents[:_IDEAL])]}
    exact = [float(a == b) for a, b in zip(back, documents, strict=True)]
    return {"text": lengths, "code": [float(len(ids)) for ids in coded], "exact": exact, **more}


def _needed(segmenter: EqualInfoSegmenter, documents: Sequence[bytes]) -> float:
    """Ideal code length with the model reset at every window, over the bits spent."""
    ideal = spent = 0.0
    for document in documents:
        bounds, spans = segmenter.model.bounds(document), segmenter.window_spans(document)
        pairs = np.array([bounds(a, position) for a, b in spans for position in range(a, b)])
        ideal -= float(np.log2((pairs[:, 1] - pairs[:, 0]) / segmenter.model.total).sum())
        spent += segmenter.window_bits * len(spans)
    return ideal / spent


# -- what is only measured -----------------------------------------------------------------------------------------


def ratios(run: Run, key: str) -> dict[str, Interval]:
    """Return bytes of text over bytes of code of every code, on the documents whose columns begin with `key`."""
    lengths = run.column(GZIP, f"{key} text")
    return {name: bootstrap_ratio(lengths, run.column(name, f"{key} code"), seed=run.seed) for name in CODES}


def measured_compression(run: Run, key: str, said: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the rows about windows of 16 bits that claim nothing: compression, bits that were needed, speed."""
    first, *longer = WINDOWS
    found, n = ratios(run, key), len(run.column(GZIP, f"{key} code"))

    def alone(metric: str, unit: str, column: str, n: int, note: str) -> Finding:
        values = {name: float(run.column(name, f"{key} {column}")[0]) for name in WINDOWS}
        return Finding(
            metric=f"{metric}, windows of 16 bits",
            value=values[first],
            unit=unit,
            n=n,
            peers={name: values[name] for name in longer},
            note=note,
            **said,
        )

    yield Finding(
        metric="compression, bytes of text over bytes of code, windows of 16 bits",
        value=found[first],
        unit="x",
        n=n,
        baseline={ARITHMETIC: found[ARITHMETIC].value},
        peers={name: found[name].value for name in [*longer, GZIP]},
        note="The paper, with a Transformer of 3 M weights on C4: 2.66, 3.49, 4.16, 4.61 for 16, 32, 64, 128 "
        "bits, 5.49 without windows, from memory.",
        **said,
    )
    ideal = "Ideal code length with the model reset at every window, over bits spent; the rest is padding."
    yield alone("share of the bits that the model needed", "share", "needed", min(_IDEAL, n), ideal)
    how = "16 bits: longest match over strings worked out before; longer windows: the coder, byte by byte."
    yield alone("encoding, one thread", "MB/s", "rate", n, f"One pass, shared machine. {how}")


def ladder_figure(run: Run, key: str, name: str) -> Figure:
    """Draw compression against the size of a window; without windows and gzip are level lines."""
    found, ends = ratios(run, key), [SIZES[0], SIZES[-1]]
    return run.figure(
        name=f"equal-info-ladder-{key}",
        title=f"Compression by window size, {name}",
        caption="Longer windows waste fewer bits and give the byte model more to look at.",
        **curve(
            "bits per window",
            "bytes of text per byte of code",
            {
                "Equal-Info windows": [(size, found[window]) for size, window in zip(SIZES, WINDOWS, strict=True)],
                **{level: [(end, found[level]) for end in ends] for level in (ARITHMETIC, GZIP)},
            },
        ),
    )

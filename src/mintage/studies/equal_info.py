"""Do longer windows compress better, and can a model learn what they hold but not plain arithmetic code?

*Compression*: held-out documents coded in windows of 16 to 128 bits and without windows, with one n-gram per corpus.

*Learning*: five small decoders of the same shape take the same number of steps on the same text, as Equal-Info windows
of 16 bits in tokens of 8, as plain arithmetic code, as gzip, as bytes, and as BPE whose vocabulary is chosen to
compress like the windows. What a decoder has learned is how far its loss on held-out text is below that of the training
tokens' frequencies alone (for windows: the frequencies at each place in the window).

The first model (n-gram), the second models and the test see different files. Scaled down from the paper: its first
model is a Transformer of 3 M weights, its second models have up to 2 G weights and see 26 G tokens. `Scale` enlarges
this check.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mintage.data import Corpus, data_file
from mintage.errors import UserError
from mintage.measure import Figure, Interval, Result, bootstrap, bootstrap_ratio, timed
from mintage.measure.environment import environment
from mintage.models import tiny_causal_lm
from mintage.segment.baselines import BPE
from mintage.segment.core.byte_models import ByteModel, ByteNGram
from mintage.segment.equal_info import (
    ArithmeticCodec,
    EqualInfoSegmenter,
    GzipCodec,
    bits_per_byte,
    read_tokens,
    total_frequency,
    write_tokens,
)
from mintage.train import Settings, train

__all__ = ["WINDOWS", "Scale", "check"]

WINDOWS = (16, 24, 32, 64, 128)
PLAIN, GZIP = "arithmetic coding, no windows", "gzip"
EQUAL, BYTES, SUBWORDS = "Equal-Info 16 bits, v=256", "bytes", "BPE of equal compression"
ARMS = (EQUAL, PLAIN, BYTES, SUBWORDS, GZIP)

LEARNED, NOT_LEARNED = 0.05, 0.01
"""Shares of the unigram loss: at least this much below it is learned, less than that is not."""

_DOCUMENT = 10_000  # bytes; the paper codes 10,240 at a time


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Size of the check. The defaults take a quarter of an hour on one core."""

    documents: int = 50  # held-out, of 10 kB, per corpus
    order: int = 3  # of the n-gram
    steps: int = 1200
    batch_size: int = 8
    context: int = 256
    hidden_size: int = 128
    layers: int = 2
    lr: float = 2e-3

    def limited(self, documents: int) -> Scale:
        """Return the scale with fewer documents, and steps in proportion."""
        if documents < 1:
            raise UserError(f"limit={documents}; keep at least 1 document")
        documents = min(documents, self.documents)
        return dataclasses.replace(self, documents=documents, steps=max(1, self.steps * documents // self.documents))


def check(
    *,
    seed: int = 0,
    limit: int | None = None,
    command: str = "",
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
    scale: Scale | None = None,
    work: str | Path = ".mintage/equal-info",
) -> list[Result | Figure]:
    """Measure compression and learning.

    Parameters
    ----------
    seed
        Of the second models and their batches.
    limit
        Held-out documents of 10 kB per corpus, and training steps in proportion (24 a document); None for 50.
    command
        Written into the rows.
    progress
        Told the parts that are done, and the name of the one that runs.
    scale
        Size of the check, e.g. larger on a larger machine.
    work
        A folder that keeps the token files and the runs; a killed check goes on from there.

    Raises
    ------
    UserError
        WikiText is not in the data folder, or the interpreter came without its library's source.
    """
    size = scale or Scale()
    size = size if limit is None else size.limited(limit)
    run = _Check(size, seed, Path(work), command, progress)
    rows: list[Result | Figure] = []
    for corpus in (_python(), _wikitext()):
        rows += run.compression(corpus)
    return rows + run.learning(_python())


# -- text ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Corpus:
    name: str
    first: bytes  # what the byte model is trained on
    second: bytes  # what the second models are trained on
    held_out: bytes

    def documents(self, count: int) -> list[bytes]:
        """Return held-out documents of `_DOCUMENT` bytes."""
        found = [self.held_out[i : i + _DOCUMENT] for i in range(0, len(self.held_out), _DOCUMENT)]
        return [document for document in found if len(document) == _DOCUMENT][:count]


def _python() -> _Corpus:
    """The interpreter's own library, without its tests, by file: 8, 11 and 1 of 20 parts."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts: list[list[bytes]] = [[], [], []]
    for path in sorted(folder.rglob("*.py")):
        inside = path.relative_to(folder)
        if {"test", "tests", "site-packages", "dist-packages", "idlelib"} & set(inside.parts):
            continue
        part = zlib.crc32(inside.as_posix().encode()) % 20
        parts[0 if part < 8 else 1 if part < 19 else 2].append(path.read_bytes())
    first, second, held_out = (b"".join(part) for part in parts)
    if min(len(first), len(second), len(held_out)) < _DOCUMENT:
        raise UserError(f"{folder} does not hold the source of Python's library; use an interpreter that came with it")
    return _Corpus(f"Python {platform.python_version()} library source", first, second, held_out)


def _wikitext() -> _Corpus:
    valid, test = ("".join(Corpus(data_file(f"wikitext2_{name}.txt.gz"))).encode() for name in ("valid", "test_head"))
    return _Corpus("WikiText-2 (valid to test)", valid, b"", test)


# -- the check -----------------------------------------------------------------------------------------------------


@dataclass
class _Check:
    scale: Scale
    seed: int
    work: Path
    command: str
    progress: Callable[[int, int, str], None]
    done: int = 0

    @cached_property
    def environment(self) -> dict[str, Any]:
        return environment()

    def _part(self, label: str) -> None:
        self.progress(self.done, 2 * (len(WINDOWS) + 1) + len(ARMS), label)
        self.done += 1

    def _result(self, **values: Any) -> Result:
        settings = {"order": self.scale.order, **values.pop("settings", {})}
        return Result(
            method="equal-info",
            job="segment",
            seed=self.seed,
            command=self.command,
            environment=self.environment,
            settings=settings,
            **values,
        )

    def _models(self, corpus: _Corpus) -> dict[int, ByteModel]:
        trained = ByteNGram.train([corpus.first], order=self.scale.order, total=total_frequency(16))
        return {b: ByteNGram(trained.grams, trained.counts, trained.order, total_frequency(b)) for b in WINDOWS}

    # -- compression

    def compression(self, corpus: _Corpus) -> list[Result | Figure]:
        """Code held-out documents in windows of every size and without, and decode them again."""
        documents = corpus.documents(self.scale.documents)
        models = self._models(corpus)
        sizes: dict[str, list[float]] = {}  # bytes of code, one number a document
        lossless, speeds, used = [], {}, {}
        for bits in WINDOWS:
            self._part(f"windows of {bits} bits")
            segmenter = EqualInfoSegmenter(models[bits], bits, 8)
            segmenter.encode(documents[0][:100])  # the strings of short windows are worked out at first use
            coded, seconds = timed(lambda segmenter=segmenter: segmenter.encode_batch(documents))
            speeds[bits] = sum(map(len, documents)) / 1e6 / seconds
            back = [segmenter.decode_bytes(ids) for ids in coded]
            lossless += [a == b for a, b in zip(back, documents, strict=True)]
            sizes[_windows(bits)] = [float(len(ids)) for ids in coded]
            used[bits] = self._efficiency(segmenter, documents)
        self._part(PLAIN)
        codec = ArithmeticCodec(models[WINDOWS[-1]])
        plain = [codec.encode(document) for document in documents]
        back = codec.decode_batch(plain, [len(document) for document in documents])
        lossless += [a == b for a, b in zip(back, documents, strict=True)]
        sizes[PLAIN] = [float(len(ids)) for ids in plain]
        sizes[GZIP] = [float(len(GzipCodec().encode(document))) for document in documents]
        return self._compression_rows(corpus, documents, sizes, lossless, speeds, used)

    @staticmethod
    def _efficiency(segmenter: EqualInfoSegmenter, documents: Sequence[bytes]) -> float:
        """Ideal code length with the model reset at every window, over the bits spent."""
        ideal = spent = 0.0
        for document in documents[:10]:
            bounds, spans = segmenter.model.bounds(document), segmenter.window_spans(document)
            pairs = np.array([bounds(a, position) for a, b in spans for position in range(a, b)])
            ideal -= float(np.log2((pairs[:, 1] - pairs[:, 0]) / segmenter.model.total).sum())
            spent += segmenter.window_bits * len(spans)
        return ideal / spent

    def _compression_rows(
        self,
        corpus: _Corpus,
        documents: Sequence[bytes],
        sizes: dict[str, list[float]],
        lossless: list[bool],
        speeds: dict[int, float],
        used: dict[int, float],
    ) -> list[Result | Figure]:
        lengths = [float(len(document)) for document in documents]
        ratios = {name: bootstrap_ratio(lengths, size, seed=self.seed) for name, size in sizes.items()}
        ladder = [*map(_windows, WINDOWS), PLAIN]
        gains = [bootstrap_ratio(sizes[a], sizes[b], seed=self.seed) for a, b in pairwise(ladder)]
        least = min(gains, key=lambda gain: gain.value)
        data = f"{corpus.name}, {len(documents)} held-out documents of 10 kB"
        common: dict[str, Any] = {"model": f"byte {self.scale.order}-gram", "data": data, "n": len(documents)}
        best = ratios[_windows(WINDOWS[0])]
        rows: list[Result | Figure] = [
            self._result(
                metric="documents decoded exactly",
                value=sum(lossless) / len(lossless),
                unit="share",
                higher_is_better=True,
                claim="every document comes back exactly, in windows of every size and without windows",
                verdict="holds" if all(lossless) else "does not hold",
                **{**common, "n": len(lossless)},
            ),
            self._result(
                metric="compression gained by the next longer window, least step",
                value=least.value,
                interval=least.bounds,
                unit="x",
                higher_is_better=True,
                claim="compression grows with the window, 16 < 24 < 32 < 64 < 128 bits < no windows (each step > 1)",
                verdict="holds" if all(gain.low > 1 for gain in gains) else "does not hold",
                note="steps: " + ", ".join(f"{gain.value:.3f}" for gain in gains),
                **common,
            ),
            self._result(
                metric="compression, bytes of text over bytes of code, windows of 16 bits",
                value=best.value,
                interval=best.bounds,
                unit="x",
                higher_is_better=True,
                baseline={PLAIN: ratios[PLAIN].value},
                peers={name: ratio.value for name, ratio in ratios.items() if name not in (PLAIN, _windows(16))},
                note="The paper, with a Transformer of 3 M weights on C4: 2.66, 3.49, 4.16, 4.61 for 16, 32, 64, 128 "
                "bits, 5.49 without windows, from memory.",
                **common,
            ),
            self._result(
                metric="share of the bits that the model needed, windows of 16 bits",
                value=used[16],
                unit="share",
                higher_is_better=True,
                peers={_windows(bits): share for bits, share in used.items() if bits != 16},
                note="Ideal code length with the model reset at every window, over bits spent; the rest is padding.",
                **{**common, "n": min(10, len(documents))},
            ),
            self._result(
                metric="encoding, one thread, windows of 16 bits",
                value=speeds[16],
                unit="MB/s",
                higher_is_better=True,
                peers={_windows(bits): speed for bits, speed in speeds.items() if bits != 16},
                note="One pass, shared machine. 16 bits: longest match over strings worked out before; longer windows: "
                "the coder, byte by byte.",
                **common,
            ),
            Figure(
                job="segment",
                name=f"equal-info-ladder-{'python' if 'Python' in corpus.name else 'wikitext'}",
                title=f"Compression by window size, {corpus.name}",
                caption="Longer windows waste fewer bits and give the byte model more to look at.",
                kind="curve",
                method="equal-info",
                environment=self.environment,
                data={
                    "x_label": "bits per window",
                    "y_label": "bytes of text per byte of code",
                    "series": [
                        _series("Equal-Info windows", WINDOWS, [ratios[_windows(b)] for b in WINDOWS]),
                        _series(PLAIN, (WINDOWS[0], WINDOWS[-1]), [ratios[PLAIN]] * 2),
                        _series(GZIP, (WINDOWS[0], WINDOWS[-1]), [ratios[GZIP]] * 2),
                    ],
                },
            ),
        ]
        return rows

    # -- learning

    def learning(self, corpus: _Corpus) -> list[Result | Figure]:
        """Train a second model on each kind of token and compare what it learned."""
        documents = corpus.documents(self.scale.documents)
        model = self._models(corpus)[16]
        windows = EqualInfoSegmenter(model, 16, 8)
        kinds: dict[str, Any] = {
            EQUAL: windows,
            PLAIN: ArithmeticCodec(model),
            BYTES: _Bytes(),
            SUBWORDS: _subwords(corpus, windows),
            GZIP: GzipCodec(),
        }
        place = self._place(corpus, kinds[SUBWORDS].vocab_size)
        outcomes = {name: self._learn(name, kinds[name], corpus, documents, place) for name in ARMS}
        return self._learning_rows(corpus, documents, outcomes, windows)

    def _place(self, corpus: _Corpus, vocabulary: int) -> Path:
        """Name a folder by all that a run depends on, so that another check starts another run."""
        texts = [hashlib.sha256(part).hexdigest() for part in (corpus.first, corpus.second)]
        told = json.dumps([dataclasses.asdict(self.scale), self.seed, vocabulary, texts, 1])
        return self.work / hashlib.sha256(told.encode()).hexdigest()[:12]

    def _learn(self, name: str, kind: Any, corpus: _Corpus, documents: Sequence[bytes], place: Path) -> _Outcome:
        self._part(f"a model over {name}")
        scale, slug = self.scale, f"arm-{ARMS.index(name)}"
        path = place / f"{slug}.safetensors"
        if not path.exists():
            texts = (corpus.second[i : i + _DOCUMENT] for i in range(0, len(corpus.second), _DOCUMENT))
            write_tokens(kind, texts, path)
        ids, _ = read_tokens(path)
        module = _decoder(scale, kind.vocab_size, self.seed)
        stride = 2 if name == EQUAL else 1  # tokens of a window
        recipe = _NextToken(module, ids, scale, stride, self.seed)
        settings = Settings(
            steps=scale.steps, lr=scale.lr, warmup=scale.steps // 20, final_lr=0.1, weight_decay=0.1, seed=self.seed
        )
        trained = train(recipe, place / slug, settings, device="cpu")
        test = np.array([i for document in documents for i in kind.encode(document)], dtype=np.int64)
        loss, unigram = _evaluate(module, ids, test, scale.context, stride, kind.vocab_size)
        return _Outcome(loss, unigram, len(test), sum(map(len, documents)), kind.vocab_size, len(ids), trained.seconds)

    def _learning_rows(
        self, corpus: _Corpus, documents: Sequence[bytes], outcomes: dict[str, _Outcome], windows: EqualInfoSegmenter
    ) -> list[Result | Figure]:
        scale = self.scale
        weights = sum(p.numel() for p in _decoder(scale, 256, self.seed).parameters())
        gains = {name: outcome.gain(self.seed) for name, outcome in outcomes.items()}
        rates = {name: outcome.rate(self.seed) for name, outcome in outcomes.items()}
        common: dict[str, Any] = {
            "model": f"decoder of {scale.layers} layers x {scale.hidden_size}, {weights / 1e6:.2f} M weights (v=256)",
            "data": f"{corpus.name}, {len(corpus.second) / 1e6:.1f} MB to learn from, {len(documents)} held-out "
            "documents of 10 kB",
            "settings": {
                "steps": scale.steps,
                "batch_size": scale.batch_size,
                "context": scale.context,
                "lr": scale.lr,
            },
        }
        told = "; ".join(
            f"{name}: vocabulary {o.vocabulary}, {o.n_bytes / o.n_tokens:.2f} bytes/token, "
            f"{scale.steps * scale.batch_size * scale.context / o.trained_on:.1f} passes over the training tokens"
            for name, o in outcomes.items()
        )

        def gain(name: str, claim: str, holds: bool, note: str) -> Result:
            return self._result(
                metric=f"loss below the unigram loss, {name}",
                value=gains[name].value,
                interval=gains[name].bounds,
                unit="share",
                higher_is_better=True,
                peers={other: value.value for other, value in gains.items() if other != name},
                claim=claim,
                verdict="holds" if holds else "does not hold",
                n=len(outcomes[name].loss),
                note=note,
                **common,
            )

        def order(low: str, high: str) -> Result:
            better = rates[low]
            return self._result(
                metric=f"bits per byte of held-out text, {low} against {high}",
                value=better.value,
                interval=better.bounds,
                unit="bits/byte",
                higher_is_better=False,
                baseline={high: rates[high].value},
                peers={name: rate.value for name, rate in rates.items() if name not in (low, high)},
                claim=f"at equal steps a model over {low} needs no more bits per byte than one over {high}",
                verdict="holds" if better.value <= rates[high].value else "does not hold",
                n=len(outcomes[low].loss),
                note="The paper finds this order at its sizes; equal steps are not equal bytes, and a code brings "
                "what its n-gram knows: plain arithmetic code has few bits per byte with nothing learned. " + told,
                **common,
            )

        steps = {name: 1000 * o.n_tokens / o.n_bytes for name, o in outcomes.items()}
        seconds = ", ".join(f"{name} {o.seconds:.0f} s" for name, o in outcomes.items())
        return [
            gain(
                PLAIN,
                f"a model over plain arithmetic code learns nothing: less than {NOT_LEARNED:.0%} below the unigram "
                "loss, interval included",
                gains[PLAIN].high < NOT_LEARNED,
                told,
            ),
            gain(
                EQUAL,
                f"a model over Equal-Info windows learns: at least {LEARNED:.0%} below the unigram loss of each place "
                "in the window, interval included",
                gains[EQUAL].low >= LEARNED,
                told,
            ),
            order(EQUAL, BYTES),
            order(SUBWORDS, EQUAL),
            self._result(
                metric="generation steps per kB of text, Equal-Info",
                value=steps[EQUAL],
                unit="steps",
                higher_is_better=False,
                baseline={BYTES: steps[BYTES]},
                peers={name: value for name, value in steps.items() if name not in (EQUAL, BYTES)},
                n=len(documents),
                note=f"Training seconds on a shared machine: {seconds}.",
                **common,
            ),
            self._figure(
                "learning",
                "Bits per byte by kind of token",
                f"Held-out text, after {scale.steps} steps of the same small decoder.",
                {
                    "y_label": "bits per byte",
                    "categories": list(ARMS),
                    "series": [
                        _bars("second model", [rates[name] for name in ARMS]),
                        {"name": "unigram", "y": [outcomes[name].unigram_rate for name in ARMS]},
                    ],
                },
                "bars",
            ),
            self._figure(
                "learned",
                "What a model can learn from each kind of token",
                "Share by which the loss is below that of the tokens' frequencies alone.",
                {
                    "y_label": "below the unigram loss",
                    "categories": list(ARMS),
                    "series": [_bars("learned", [gains[name] for name in ARMS])],
                },
                "bars",
            ),
            self._figure(
                "windows",
                "Windows of equal information",
                "Every box is one window of 16 bits; the more predictable the text, the longer (and darker).",
                {"tokens": _token_map(windows, documents[0])},
                "token-map",
            ),
        ]

    def _figure(self, name: str, title: str, caption: str, data: dict[str, Any], kind: Any) -> Figure:
        return Figure(
            job="segment",
            name=f"equal-info-{name}",
            title=title,
            caption=caption,
            kind=kind,
            data=data,
            method="equal-info",
            environment=self.environment,
        )


def _windows(bits: int) -> str:
    return f"windows of {bits} bits"


def _series(name: str, x: Sequence[int], intervals: Sequence[Interval]) -> dict[str, Any]:
    return {"x": list(x), **_bars(name, intervals)}


def _bars(name: str, intervals: Sequence[Interval]) -> dict[str, Any]:
    lows, values, highs = (list(part) for part in zip(*intervals, strict=True))
    return {"name": name, "y": values, "low": lows, "high": highs}


def _token_map(windows: EqualInfoSegmenter, document: bytes) -> list[dict[str, Any]]:
    spans = windows.window_spans(document[:1200])
    longest = max(b - a for a, b in spans)
    texts = [document[a:b].decode("utf-8", errors="replace") for a, b in spans]
    return [
        {"text": text, "value": (b - a) / longest, "group": None} for text, (a, b) in zip(texts, spans, strict=True)
    ]


# -- second models -------------------------------------------------------------------------------------------------


class _Bytes:
    vocab_size = 256

    def encode(self, text: bytes) -> list[int]:
        return list(text)


def _subwords(corpus: _Corpus, windows: EqualInfoSegmenter) -> Any:
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


def _decoder(scale: Scale, vocabulary: int, seed: int) -> Any:
    return tiny_causal_lm(
        seed=seed,
        vocab_size=vocabulary,
        hidden_size=scale.hidden_size,
        intermediate_size=scale.hidden_size * 8 // 3 // 8 * 8,
        num_hidden_layers=scale.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=scale.context,
        initializer_range=0.02,
    )


class _NextToken:
    """The recipe: stretches from anywhere in the tokens, but from the first token of a window."""

    def __init__(self, module: Any, ids: Shaped[np.ndarray, " tokens"], scale: Scale, stride: int, seed: int) -> None:
        if len(ids) <= scale.context:
            raise UserError(f"{len(ids)} training tokens are no more than a context of {scale.context}; take more text")
        self.module, self.ids, self.scale, self.stride, self.seed = module, ids, scale, stride, seed

    def batch(self, index: int) -> Tensor:
        starts = (len(self.ids) - self.scale.context - 1) // self.stride + 1
        drawn = np.random.default_rng([self.seed, index]).integers(starts, size=self.scale.batch_size) * self.stride
        rows = [self.ids[start : start + self.scale.context + 1] for start in drawn]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def loss(self, module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        return _losses(module, batch).mean(), {}


def _losses(module: Any, batch: Int[Tensor, "batch length"]) -> Float[Tensor, "batch predicted"]:
    logits = module(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.transpose(1, 2).float(), batch[:, 1:], reduction="none")


def _stretches(ids: Int[np.ndarray, " tokens"], context: int) -> Iterator[Int[np.ndarray, " stretch"]]:
    """Cut so that every token but the first is predicted once; each stretch begins with the last one's last token."""
    for begin in range(0, len(ids) - 1, context):
        yield ids[begin : begin + context + 1]


@torch.no_grad()
def _evaluate(
    module: Any,
    trained_on: Shaped[np.ndarray, " tokens"],
    test: Int[np.ndarray, " test"],
    context: int,
    stride: int,
    vocabulary: int,
) -> tuple[Float[np.ndarray, " stretches"], Float[np.ndarray, " stretches"]]:
    """Return the model's and the unigram's summed losses, in nats, of each stretch of the test tokens."""
    module.eval()
    tables = []
    for place in range(stride):
        counts = np.bincount(trained_on[place::stride], minlength=vocabulary) + 1.0
        tables.append(-np.log(counts / counts.sum()))
    places = np.arange(len(test)) % stride
    alone = np.stack(tables)[places, test]
    unigram = [float(part[1:].sum()) for part in _stretches_of(alone, context)]
    loss = [
        float(_losses(module, torch.from_numpy(stretch)[None]).double().sum()) for stretch in _stretches(test, context)
    ]
    return np.array(loss), np.array(unigram)


def _stretches_of(values: Float[np.ndarray, " tokens"], context: int) -> Iterator[Float[np.ndarray, " stretch"]]:
    for begin in range(0, len(values) - 1, context):
        yield values[begin : begin + context + 1]


@dataclass(frozen=True)
class _Outcome:
    """What one second model made of the held-out text."""

    loss: Float[np.ndarray, " stretches"]  # nats
    unigram: Float[np.ndarray, " stretches"]
    n_tokens: int
    n_bytes: int
    vocabulary: int
    trained_on: int
    seconds: float

    def gain(self, seed: int) -> Interval:
        """Return the share by which the loss is below the unigram's."""
        low, value, high = bootstrap_ratio(self.loss, self.unigram, seed=seed)
        return Interval(1 - high, 1 - value, 1 - low)

    def rate(self, seed: int) -> Interval:
        """Return bits per byte of text."""
        sums = bootstrap(self.loss, np.sum, seed=seed)
        return Interval(*(bits_per_byte(total / (self.n_tokens - 1), self.n_tokens, self.n_bytes) for total in sums))

    @property
    def unigram_rate(self) -> float:
        """Bits per byte of the unigram."""
        return bits_per_byte(float(self.unigram.sum()) / (self.n_tokens - 1), self.n_tokens, self.n_bytes)

"""What a small decoder learns from the tokens of a code: its loss on held-out text beside that of their frequencies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mintage.bench.segment.codes import ARITHMETIC, GZIP, Code, CodeCorpus, ngram
from mintage.errors import UserError
from mintage.measure import Figure, Interval, bootstrap, bootstrap_ratio
from mintage.measure.figure import bars
from mintage.measure.study import Finding, Run
from mintage.models import tiny_causal_lm
from mintage.options import Options, option
from mintage.segment.core.token_files import bits_per_byte, read_tokens, write_tokens
from mintage.segment.equal_info import EqualInfoSegmenter
from mintage.train import Settings, train

__all__ = [
    "BYTES",
    "EQUAL",
    "LEARNERS",
    "SUBWORDS",
    "DecoderScale",
    "SecondModelOutcome",
    "about_decoders",
    "about_tokens",
    "generation_steps",
    "learned",
    "learning_figures",
    "outcomes",
    "small_decoder",
]

EQUAL, BYTES, SUBWORDS = "Equal-Info 16 bits, v=256", "bytes", "BPE of equal compression"

LEARNERS: Mapping[str, Code] = {
    EQUAL: Code("windows"),
    ARITHMETIC: Code("plain"),
    BYTES: Code("bytes"),
    SUBWORDS: Code("subwords"),
    GZIP: Code("gzip"),
}
"""What second models are trained on, by name."""


@dataclass(frozen=True, kw_only=True)
class DecoderScale(Options):
    """Size of the second models and of their training."""

    steps: int = option(1200, "Steps of every second model.", least=1)
    batch_size: int = option(8, "Stretches per step.", least=1)
    context: int = option(256, "Tokens of a stretch.", least=2)
    hidden_size: int = option(128, "Of the second models.", least=4)
    layers: int = option(2, "Of the second models.", least=1)
    lr: float = option(2e-3, "Peak learning rate of the second models.", above=0)


def small_decoder(scale: DecoderScale, vocabulary: int, seed: int) -> Any:
    """Make a second model."""
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


def learned(
    code: Code,
    corpus: CodeCorpus,
    documents: Sequence[bytes],
    scale: DecoderScale,
    *,
    order: int,
    seed: int,
    folder: Path,
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    """Train a second model on a code of the corpus's second part, from `folder` if it was begun.

    The code's n-gram has `order` bytes of context and the frequencies of windows of 16 bits.

    Returns
    -------
    dict
        ``loss`` and ``unigram``: summed losses in nats of every stretch of the held-out tokens, the model's and those
        of the training tokens' frequencies (for windows: at each place in one). ``tokens`` and ``bytes`` of the
        held-out text, ``vocabulary``, ``trained on`` (tokens) and ``seconds``.
    """
    encoder = Code(code.kind).encoder(corpus, order)
    path, size = folder / "tokens.safetensors", len(documents[0])
    if not path.exists():
        write_tokens(encoder, (corpus.second[i : i + size] for i in range(0, len(corpus.second), size)), path)
    ids, _ = read_tokens(path)
    module = small_decoder(scale, encoder.vocab_size, seed)
    stride = 2 if code.kind == "windows" else 1  # tokens of a window
    settings = Settings(
        steps=scale.steps, lr=scale.lr, warmup=scale.steps // 20, final_lr=0.1, weight_decay=0.1, seed=seed
    )
    recipe = _NextToken(module, ids, scale, stride, seed)
    trained = train(recipe, folder / "model", settings, device="cpu", on_step=on_step)
    test = np.array([i for document in documents for i in encoder.encode(document)], dtype=np.int64)
    alone = _unigram(ids, test, stride, encoder.vocab_size)
    return {
        "loss": _evaluated(module, test, scale.context),
        "unigram": [float(part[1:].sum()) for part in _stretches(alone, scale.context)],
        "tokens": len(test),
        "bytes": sum(map(len, documents)),
        "vocabulary": encoder.vocab_size,
        "trained on": len(ids),
        "seconds": trained.seconds,
    }


class _NextToken:
    """The recipe: stretches from anywhere in the tokens, but from the first token of a window."""

    def __init__(
        self, module: Any, ids: Shaped[np.ndarray, " tokens"], scale: DecoderScale, stride: int, seed: int
    ) -> None:
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


def _stretches(values: Num[np.ndarray, " tokens"], context: int) -> Iterator[Num[np.ndarray, " stretch"]]:
    """Cut so that every token but the first is predicted once; each stretch begins with the last one's last token."""
    for begin in range(0, len(values) - 1, context):
        yield values[begin : begin + context + 1]


@torch.no_grad()
def _evaluated(module: Any, test: Int[np.ndarray, " test"], context: int) -> list[float]:
    module.eval()
    stretches = (torch.from_numpy(stretch)[None] for stretch in _stretches(test, context))
    return [float(_losses(module, stretch).double().sum()) for stretch in stretches]


def _unigram(
    trained_on: Shaped[np.ndarray, " tokens"], test: Int[np.ndarray, " test"], stride: int, vocabulary: int
) -> Float[np.ndarray, " test"]:
    """Return the loss of every token by the frequencies at its place in a window."""
    tables = []
    for place in range(stride):
        counts = np.bincount(trained_on[place::stride], minlength=vocabulary) + 1.0
        tables.append(-np.log(counts / counts.sum()))
    return np.stack(tables)[np.arange(len(test)) % stride, test]


# -- what it says --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SecondModelOutcome:
    """What one second model made of the held-out text.

    Parameters
    ----------
    gain
        Share by which its loss is below the unigram's.
    rate, unigram_rate
        Bits per byte of text, the model's and the unigram's.
    n
        Stretches.
    bytes_per_token, vocabulary, trained_on, seconds
        Of the tokens, and of training.
    """

    gain: Interval
    rate: Interval
    unigram_rate: float
    n: int
    bytes_per_token: float
    vocabulary: int
    trained_on: int
    seconds: float


def outcomes(run: Run) -> dict[str, SecondModelOutcome]:
    """Read the outcomes from a run's columns."""
    return {name: _outcome(run.columns[name], run.seed) for name in LEARNERS}


def _outcome(columns: Mapping[str, Any], seed: int) -> SecondModelOutcome:
    loss, unigram = columns["loss"], columns["unigram"]
    tokens, octets = int(columns["tokens"][0]), int(columns["bytes"][0])

    def rate(total: float) -> float:
        return bits_per_byte(float(total) / (tokens - 1), tokens, octets)

    low, value, high = bootstrap_ratio(loss, unigram, seed=seed)
    return SecondModelOutcome(
        gain=Interval(1 - high, 1 - value, 1 - low),
        rate=Interval(*map(rate, bootstrap(loss, np.sum, seed=seed))),
        unigram_rate=rate(unigram.sum()),
        n=len(loss),
        bytes_per_token=octets / tokens,
        vocabulary=int(columns["vocabulary"][0]),
        trained_on=int(columns["trained on"][0]),
        seconds=float(columns["seconds"][0]),
    )


def about_decoders(scale: DecoderScale, seed: int) -> str:
    """Describe the second models."""
    weights = sum(p.numel() for p in small_decoder(scale, 256, seed).parameters())
    return f"decoder of {scale.layers} layers x {scale.hidden_size}, {weights / 1e6:.2f} M weights (v=256)"


def about_tokens(found: Mapping[str, SecondModelOutcome], scale: DecoderScale) -> str:
    """Describe the tokens of every code, and how often training read them."""
    read = scale.steps * scale.batch_size * scale.context
    return "; ".join(
        f"{name}: vocabulary {o.vocabulary}, {o.bytes_per_token:.2f} bytes/token, "
        f"{read / o.trained_on:.1f} passes over the training tokens"
        for name, o in found.items()
    )


def generation_steps(run: Run, n: int, said: Mapping[str, Any]) -> Finding:
    """Return the row on steps per kB of text, which claims nothing."""
    found = outcomes(run)
    steps = {name: 1000 / o.bytes_per_token for name, o in found.items()}
    seconds = ", ".join(f"{name} {o.seconds:.0f} s" for name, o in found.items())
    return Finding(
        metric="generation steps per kB of text, Equal-Info",
        value=steps[EQUAL],
        unit="steps",
        more_is_better=False,
        n=n,
        baseline={BYTES: steps[BYTES]},
        peers={name: value for name, value in steps.items() if name not in (EQUAL, BYTES)},
        note=f"Training seconds on a shared machine: {seconds}.",
        **said,
    )


def learning_figures(run: Run, corpus: CodeCorpus, document: bytes, *, order: int, steps: int) -> Iterator[Figure]:
    """Draw bits per byte, what was learned, and the windows of a document's beginning."""
    found, names = outcomes(run), list(LEARNERS)
    yield run.figure(
        name="equal-info-learning",
        title="Bits per byte by kind of token",
        caption=f"Held-out text, after {steps} steps of the same small decoder.",
        **bars(
            "bits per byte",
            names,
            {
                "second model": [found[name].rate for name in names],
                "unigram": [found[name].unigram_rate for name in names],
            },
        ),
    )
    yield run.figure(
        name="equal-info-learned",
        title="What a model can learn from each kind of token",
        caption="Share by which the loss is below that of the tokens' frequencies alone.",
        **bars("below the unigram loss", names, {"learned": [found[name].gain for name in names]}),
    )
    spans = EqualInfoSegmenter(ngram(corpus, order, 16), 16, 8).window_spans(document[:1200])
    longest = max(b - a for a, b in spans)
    cut = [(document[a:b].decode("utf-8", errors="replace"), (b - a) / longest) for a, b in spans]
    yield run.figure(
        name="equal-info-windows",
        title="Windows of equal information",
        caption="Every box is one window of 16 bits; the more predictable the text, the longer (and darker).",
        kind="token-map",
        data={"tokens": [{"text": text, "value": value, "group": None} for text, value in cut]},
    )

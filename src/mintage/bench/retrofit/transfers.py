"""A model in other tokenizers: byte-level BPE learnt from texts, embeddings by any method, and training of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional

from mintage import catalog
from mintage.bench.retrofit.measures import Bits, bits_of, documents
from mintage.data import texts
from mintage.errors import UserError, did_you_mean
from mintage.models import CausalLM
from mintage.retrofit.core.embeddings import EmbeddingTransfer
from mintage.retrofit.core.transfer import transfer

__all__ = ["HeldOutTokenizers", "moved", "train_bpe", "tune_embeddings"]

PLAIN = "original"
"""Both the model's own tokenizer and the model as it is."""

METHODS = ("zett", "fvt", "focus", "wechsel", "omp", "lexical", "mean")
TARGETS = {
    "english 4k": ("prose", 4000),
    "english 16k": ("prose", 16_000),
    "german 8k": ("de", 8000),
    "code 8k": ("humaneval", 8000),
}
"""Held-out tokenizers: the kind of text that is measured, and how many tokens."""

FOLLOWED = 4  # texts whose bits are followed while embeddings are trained
ROWS, WINDOW = 4, 64  # sequences per step of that training, and tokens of each
_READ = 300_000  # characters that embeddings are learnt from


def train_bpe(some: Iterable[str], size: int) -> Tokenizer:
    """Train byte-level BPE of the usual kind."""
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(some, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    return made


def moved(lm: CausalLM, tokenizer: Any, method: EmbeddingTransfer, some: Iterable[str] = ()) -> CausalLM:
    """Return the model with another tokenizer, its other weights shared; a method that learns reads `some` texts."""
    made = transfer(
        lm.model, lm.tokenizer, tokenizer, method, texts=_first(some) if method.reads_texts else (), share=True
    )
    return CausalLM(made.model, made.tokenizer, lm.name)


def _first(some: Iterable[str]) -> list[str]:
    found, read = [], 0
    for text in some:
        if read >= _READ:
            break
        found.append(text)
        read += len(text)
    return found


class HeldOutTokenizers:
    """The model in tokenizers that no hypernetwork was trained with, by every method.

    Parameters
    ----------
    lm
        The model.
    targets
        Names of tokenizers, of `TARGETS`.
    number, size, seed
        Of the texts that are measured, see `documents`.

    Raises
    ------
    UserError
        A tokenizer is unknown.
    """

    def __init__(self, lm: CausalLM, targets: Sequence[str], *, number: int, size: int, seed: int) -> None:
        for target in targets:
            if target not in TARGETS:
                raise UserError(f"unknown tokenizer {target!r}; {did_you_mean(target, TARGETS)}")
        self.lm, self.size, self.seed = lm, size, seed
        self.targets = {target: TARGETS[target] for target in targets}
        self.texts = {kind: documents(kind, number, size=size, seed=seed) for kind, _ in self.targets.values()}

    @cache  # noqa: B019 (lives as long as the run)
    def learnt(self, kind: str) -> list[str]:
        """Texts to learn from: none of the measured ones."""
        measured = [document.text[:100] for document in self.texts[kind]]
        return [text for text in _learnt(kind) if not any(text.startswith(start) for start in measured)]

    @cache  # noqa: B019
    def tokenizer(self, target: str) -> Tokenizer:
        """Train the tokenizer of a target."""
        kind, size = self.targets[target]
        return train_bpe(self.learnt(kind), size)

    @cache  # noqa: B019
    def model(self, target: str, method: str) -> CausalLM:
        """Return the model with the tokenizer of a target (or its own), embedded by a method; or as it is."""
        if method == PLAIN:
            return self.lm
        made: EmbeddingTransfer = catalog.build(method, "retrofit")
        if target == PLAIN:
            return moved(self.lm, self.lm.tokenizer, made)
        return moved(self.lm, self.tokenizer(target), made, self.learnt(self.targets[target][0]))

    def fits(self, method: str) -> bool:
        """Whether a method can embed tokens for this model; what is trained may be for another one."""
        try:
            self.model(PLAIN, method)
        except UserError:
            return False
        return True

    def bits(self, target: str) -> Callable[[str], Callable[[str], Bits]]:
        """Return what gives the bits of a text in a target's tokens, by method."""
        return lambda method: lambda text: bits_of(self.model(target, method), text, window=self.size)

    def tuned(self, target: str, method: str, marks: Sequence[int]) -> list[float]:
        """Train the embeddings alone, and return bits per byte of a few texts after these steps."""
        lm, kind = self.model(target, method), self.targets[target][0]

        def measure() -> float:
            found = [bits_of(lm, document.text, window=self.size) for document in self.texts[kind][:FOLLOWED]]
            return sum(bits.bits for bits in found) / sum(bits.bytes for bits in found)

        return tune_embeddings(lm, self.learnt(kind), measure, marks=marks, seed=self.seed)


def _learnt(kind: str) -> list[str]:
    if kind == "prose":
        return [line.strip() for line in texts("wikitext2", "train") if len(line) > 100]
    if kind == "humaneval":
        return [text[:20_000] for text in texts("python-library", "held-out")]
    return list(texts("xquad", "held-out", domain=kind))


def tune_embeddings(
    lm: CausalLM, learnt: Iterable[str], measure: Callable[[], float], *, marks: Sequence[int], seed: int
) -> list[float]:
    """Train a model's embeddings alone, for a while, and leave it as it was.

    Parameters
    ----------
    learnt
        Texts to train on, `ROWS` times `WINDOW` tokens per step.
    measure
        Called after the steps in `marks`, of which the last ends the training.
    seed
        Of the draw.

    Returns
    -------
    list of float
        What was measured.
    """
    tokenizer: Any = lm.tokenizer
    model: Any = lm.model
    flat = [i for text in learnt for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    draw = np.random.default_rng(seed)
    ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    weights = list({id(weight): weight for weight in ends}.values())
    before = [weight.detach().clone() for weight in weights]
    trained = {name: weight.requires_grad for name, weight in model.named_parameters()}
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    found = [measure()] if 0 in marks else []
    for step in range(1, marks[-1] + 1):
        starts = draw.integers(len(flat) - WINDOW, size=ROWS)
        ids = torch.tensor([[lm.opening, *flat[start : start + WINDOW]] for start in starts])
        logits = model(ids[:, :-1], use_cache=False).logits
        functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()
        if step in marks:
            found.append(measure())
    with torch.no_grad():  # what is measured next shall be untuned
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained[name])
    return found

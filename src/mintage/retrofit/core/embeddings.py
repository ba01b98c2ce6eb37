"""Embeddings of new tokens: what they are made from, the contract of what makes them, and the simplest rules.

The parts of a token are the original tokens that its bytes are cut into. A method is an `EmbeddingTransfer`, which
makes rows for tokens given as bytes. The mean of the parts' rows is what a model without training is given (FVT).

Laws (tested over every method): a transfer to the same tokenizer by a method that copies changes no bit; permuting the
tokens permutes their rows; a row depends on its token alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mintage.options import check_fields, option
from mintage.retrofit.core.token_bytes import TokenBytes

__all__ = ["Composed", "EmbeddingTransfer", "Parts", "PartsRule", "PartsTransfer", "Provider", "mean_row", "pad_parts"]

PartsRule = Literal["mean", "sum", "first", "last"]

_SAMPLED = 32  # embeddings that a model is known by


class Composed(NamedTuple):
    """Embeddings of tokens.

    Attributes
    ----------
    input, output
        Embeddings, [tokens, width].
    bias
        Added to the output logits, [tokens]; None is no bias.
    """

    input: Float[Tensor, "tokens width"]
    output: Float[Tensor, "tokens width"]
    bias: Float[Tensor, " tokens"] | None = None


class Parts:
    """A model's embeddings and how its tokenizer cuts bytes: what tokens are composed from.

    Attributes
    ----------
    input, output
        Embeddings, [vocabulary, width]; one tensor where they are tied, and for encoders.
    tied
        Whether they are.
    """

    def __init__(self, model: Any, vocabulary: TokenBytes) -> None:
        head = model.get_output_embeddings()
        self.vocabulary = vocabulary
        self.input: Tensor = model.get_input_embeddings().weight.detach()
        self.output: Tensor = self.input if head is None else head.weight.detach()
        self.tied = self.output.data_ptr() == self.input.data_ptr()

    def of(self, tokens: Sequence[bytes]) -> list[list[int]]:
        """Return the original tokens that each is cut into; none for bytes that the vocabulary lacks."""
        return [self.vocabulary.parts(token) for token in tokens]

    def sample(self) -> dict[str, Tensor]:
        """Return some of the embeddings, to know the model by."""
        places = torch.linspace(0, len(self.input) - 1, _SAMPLED).long().to(self.input.device)
        found = {"input": self.input[places].float()}
        return found if self.tied else found | {"output": self.output[places].float()}


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingTransfer(ABC):
    """Makes embeddings of tokens that a model does not know."""

    copies: ClassVar[bool] = True
    """Whether a token that the model knows gets the model's own row, bit for bit."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def reads_texts(self) -> bool:
        """Whether `fitted` needs texts in the new tokens."""
        return False

    def fitted(self, source: Parts, tokens: Sequence[bytes], texts: Sequence[Sequence[int]]) -> EmbeddingTransfer:
        """Return this method, ready for these tokens.

        Parameters
        ----------
        source
            The model's embeddings and tokens.
        tokens
            The new vocabulary.
        texts
            Texts as places in it; for methods that learn which tokens occur together.
        """
        return self

    @abstractmethod
    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Return the embeddings of tokens, one row each."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> EmbeddingTransfer:
        """Make a small offline instance, for the laws."""


@runtime_checkable
class Provider(Protocol):
    """Anything that makes rows of new tokens, whether it keeps the whole contract or not."""

    def rows(self, source: Any, tokens: Sequence[bytes]) -> Any:
        """Return what has ``input``, ``output`` and ``bias`` (`Composed`), one row per token."""
        ...


@dataclass(frozen=True, kw_only=True)
class PartsTransfer:
    """Embeddings by rule; tokens without parts, of bytes that the vocabulary lacks, get the mean of all embeddings."""

    rule: PartsRule = option("mean", "Which: mean of the parts (FVT), sum, the first part or the last.")

    def __post_init__(self) -> None:
        check_fields(self)

    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens."""
        parts = source.of(tokens)
        if self.rule in ("first", "last"):
            parts = [row[:1] if self.rule == "first" else row[-1:] for row in parts]
        device = source.input.device
        flat = torch.tensor([place for row in parts for place in row], dtype=torch.long, device=device)
        sizes = torch.tensor([len(row) for row in parts], device=device)
        starts, mode = sizes.cumsum(0) - sizes, "sum" if self.rule == "sum" else "mean"

        def pooled(weight: Tensor) -> Tensor:
            made = nn.functional.embedding_bag(flat, weight, starts, mode=mode)
            return torch.where(sizes[:, None] > 0, made, weight.mean(0)) if bool((sizes == 0).any()) else made

        made = pooled(source.input)
        return Composed(made, made if source.tied else pooled(source.output))


def pad_parts(
    parts: Sequence[Sequence[int]], longest: int
) -> tuple[Int[Tensor, "tokens parts"], Bool[Tensor, "tokens parts"]]:
    """Lay the parts of tokens side by side, at most `longest` of each; the mask says what is a part."""
    rows = [torch.tensor(row[:longest]) for row in parts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return ids, mask


def mean_row(weight: Tensor) -> Tensor:
    """What a token gets of which nothing is known."""
    return weight.float().mean(0)

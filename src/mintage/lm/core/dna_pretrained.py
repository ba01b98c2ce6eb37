"""What the models of DNABERT-2 have in common: their output, and how they are loaded and saved."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from mintage.errors import Notice, UserError
from mintage.lm.core.alibi_encoder import DNABERT2Config
from mintage.models import KeptModel

__all__ = ["DNAOutput", "DNAPreTrained", "check_ids"]

_HEADS = ("cls.", "classifier.", "pooler.")


@dataclass
class DNAOutput(ModelOutput):
    """What a model makes of a batch.

    Parameters
    ----------
    loss
        Where labels were given: nats per labelled token, or row.
    logits
        Of tokens, shape (batch, length, vocabulary), or of classes, shape (batch, classes).
    last_hidden_state, pooler_output
        States, shape (batch, length, width), 0 where there is no token; what the classifier reads, (batch, width).
    hidden_states
        The same in front of the first layer and behind each, where asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class DNAPreTrained(KeptModel, PreTrainedModel):
    """What the models have in common: how they are loaded and saved."""

    config_class = DNABERT2Config
    config: DNABERT2Config
    base_model_prefix = "bert"
    told_when_fresh: ClassVar[bool] = True
    """Whether random weights of a head are worth a word."""

    supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["_Layer"]

    @classmethod
    def tiny(cls) -> Any:
        """Make a small model with random weights, the same at every call."""
        sizes: dict[str, Any] = {"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls(DNABERT2Config(**sizes, intermediate_size=32, initializer_range=0.2)).eval()

    @classmethod
    def check_loaded(cls, name: str | Path, model: Any, info: Mapping[str, Any]) -> None:
        """Refuse a BERT with position embeddings; a head may be fresh, and is told."""
        missing = sorted(info["missing_keys"])
        heads = [key for key in missing if key.removeprefix("bert.").startswith(_HEADS)]
        super().check_loaded(name, model, {"missing_keys": [key for key in missing if key not in heads]})
        if heads and cls.told_when_fresh:
            told = f"{name} has no weights for {heads[0].rpartition('.')[0]}: they are random, train them"
            warnings.warn(told, Notice, stacklevel=3)


def check_ids(ids: Any, size: int, what: str) -> None:
    """Refuse ids that a table of `size` rows does not have, by `what` they are called."""
    strange = ids[(ids < 0) | (ids >= size)]
    if strange.numel():
        raise UserError(f"there is no {what} {int(strange[0])}; the model has 0 to {size - 1}")

"""The encoder of MosaicBERT and DNABERT-2: post-norm BERT with ALiBi, a fused projection and GEGLU, without padding.

Modules are called as in the checkpoint that the authors of DNABERT-2 publish, whose weights load by name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from mintage.errors import UserError
from mintage.lm.core.alibi import ScoreBias, alibi_slopes, biased_attention
from mintage.options import Range

__all__ = ["AlibiEncoder", "DNABERT2Config", "DNAEmbeddings", "MaskedLMHead", "Packing", "Pooler"]

_RANGES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"), Range(least=1)),
    **dict.fromkeys(("intermediate_size", "type_vocab_size", "max_position_embeddings"), Range(least=1)),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), Range(least=0, below=1)),
    **dict.fromkeys(("layer_norm_eps", "initializer_range"), Range(above=0)),
}


class DNABERT2Config(PretrainedConfig):
    """Sizes of DNABERT-2, named as BERT's; the defaults are those of the published model (117 M parameters).

    Parameters
    ----------
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, type_vocab_size
        V, d, layers, heads, m (the gated projection has 2 m rows), kinds of segments.
    hidden_dropout_prob, attention_probs_dropout_prob
        Shares that training drops.
    positions
        ``"alibi"``, any length; or ``"learned"``, the rival: an embedding of each of `max_position_embeddings` places.

    Raises
    ------
    UserError
        A size is out of range, or the heads do not divide the width.
    """

    model_type = "dnabert2"

    def __init__(self, **kwargs: Any) -> None:
        own: dict[str, Any] = {
            "vocab_size": 4096, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "type_vocab_size": 2, "max_position_embeddings": 512,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12,
            "initializer_range": 0.02, "positions": "alibi",
        }  # fmt: skip
        own = {name: kwargs.pop(name, value) for name, value in own.items()}
        super().__init__(**{"pad_token_id": 3, "tie_word_embeddings": True, **kwargs})
        for name, value in own.items():
            limits = _RANGES.get(name)
            whole = limits is not None and limits.least == 1
            fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if limits is not None and not (fits and limits.holds(value)):
                kind = "whole number" if whole else "number"
                raise UserError(f"{name}={value!r} is out of range; pass a {kind} {limits}")
            setattr(self, name, value)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}"
            )
        if self.positions not in ("alibi", "learned"):
            raise UserError(f"positions={self.positions!r} is not one of alibi, learned")
        if getattr(self, "hidden_act", "gelu") != "gelu":
            raise UserError(f"hidden_act={self.hidden_act!r}, but these models have gelu")


class Packing(NamedTuple):
    """Where the tokens of a padded batch are.

    Parameters
    ----------
    tokens
        Which places hold tokens, shape (batch, length).
    index
        Of these places in the flattened batch; None: all.
    """

    tokens: Bool[Tensor, "batch length"]
    index: Int[Tensor, " tokens"] | None

    @classmethod
    def of(cls, tokens: Bool[Tensor, "batch length"]) -> Packing:
        """Find the tokens."""
        return cls(tokens, None if bool(tokens.all()) else tokens.flatten().nonzero()[:, 0])

    def pack(self, padded: Float[Tensor, "batch length size"]) -> Float[Tensor, "tokens size"]:
        """Take the tokens out."""
        flat = padded.flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def pad(self, packed: Float[Tensor, "tokens size"]) -> Float[Tensor, "batch length size"]:
        """Put the tokens back; what is none is 0."""
        if self.index is not None:
            flat = packed.new_zeros(self.tokens.numel(), packed.shape[1])
            packed = flat.index_copy(0, self.index, packed)
        return packed.view(*self.tokens.shape, packed.shape[1])


class DNAEmbeddings(nn.Module):
    """Tokens and segments; places only where positions are learnt."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, embedded: Float[Tensor, "batch length width"], segments: Int[Tensor, "batch length"] | None
    ) -> Float[Tensor, "batch length width"]:
        """Add what stands for segments (0 by default) and places, and normalise."""
        length = embedded.shape[1]
        x = embedded + (
            self.token_type_embeddings.weight[0] if segments is None else self.token_type_embeddings(segments)
        )
        places = getattr(self, "position_embeddings", None)
        if places is not None:
            if length > places.num_embeddings:
                raise UserError(
                    f"a row has {length} tokens, learnt positions end at {places.num_embeddings}; cut it, or use alibi"
                )
            x = x + places.weight[:length]
        return self.dropout(self.LayerNorm(x))


class _Fused(nn.Module):
    """q, k and v of all heads by one matrix, in this order."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, x: Tensor, packing: Packing, bias: ScoreBias) -> Tensor:
        padded = packing.pad(self.Wqkv(x))
        query, key, value = padded.unflatten(-1, (3, self.heads, padded.shape[-1] // (3 * self.heads))).permute(
            2, 0, 3, 1, 4
        )
        read = biased_attention(query, key, value, bias, self.dropout if self.training else 0.0)
        return packing.pack(read.transpose(1, 2).flatten(2))


class _AttentionOutput(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, read: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(read)) + x)


class _GatedMLP(nn.Module):
    """GEGLU (Shazeer 2020); the first half of the projection is the gate."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gated_layers(x).chunk(2, -1)
        return self.layernorm(self.wo(self.dropout(F.gelu(gate) * up)) + x)


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _Fused(config), "output": _AttentionOutput(config)})
        self.mlp = _GatedMLP(config)

    def forward(self, x: Tensor, packing: Packing, bias: ScoreBias) -> Tensor:
        return self.mlp(self.attention["output"](self.attention["self"](x, packing, bias), x))


class AlibiEncoder(nn.Module):
    """Layers over the tokens of a batch; only attention sees it padded."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads, self.is_alibi = config.num_attention_heads, config.positions == "alibi"
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, x: Float[Tensor, "batch length width"], tokens: Bool[Tensor, "batch length"], every: bool = False
    ) -> list[Float[Tensor, "batch length width"]]:
        """Return the last states, or with `every` those in front of the first layer and behind each; 0 where there is
        no token.
        """
        packing = Packing.of(tokens)
        slopes = alibi_slopes(self.heads).to(x.device)
        bias = ScoreBias(
            slopes if self.is_alibi else torch.zeros_like(slopes),
            x.shape[1],
            None if packing.index is None else tokens,
        )
        packed = [packing.pack(x)]
        for layer in self.layer:
            packed.append(layer(packed[-1], packing, bias))
            packed = packed if every else packed[-1:]
        return [packing.pad(states) for states in packed]


class Pooler(nn.Module):
    """tanh of a dense layer over a row's first token, [CLS]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, states: Float[Tensor, "batch length width"], tokens: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch width"]:
        """Read the first token, wherever a row is filled."""
        first = tokens.int().argmax(1)
        return self.dense(states[torch.arange(len(states), device=states.device), first]).tanh()


class _Transform(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(states)))


class _Predictions(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.transform = _Transform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.transform(states))


class MaskedLMHead(nn.Module):
    """dense, GELU, LayerNorm, and the transposed embedding with a bias."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.predictions = _Predictions(config)

    def forward(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... vocabulary"]:
        """Return logits."""
        return self.predictions(states)

"""The hypernetwork of ZeTT: from a token's surface form to its embeddings (arXiv 2405.07883, section 3.2).

Not here: the method (`mintage.retrofit.zett`), training (`mintage.retrofit.training.zett`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.options import Options, option
from mintage.retrofit.core.embeddings import Composed, Parts
from mintage.retrofit.core.network import EmbeddingNetwork
from mintage.weights import shipped

__all__ = [
    "Hypernetwork",
    "HypernetworkShape",
    "embeddings_of",
    "load_hypernetwork",
    "scaler",
    "surface_forms",
]


@dataclass(frozen=True, kw_only=True)
class HypernetworkShape(Options):
    """Sizes of a hypernetwork."""

    vocabulary: int = option(help="Rows of the model's embeddings; parts from there on are fallback rows.", least=1)
    width: int = option(help="Of the model's embeddings.", least=1)
    tied: bool = option(True, "Whether input and output embeddings are one.")
    hidden: int = option(192, "Width of the network.", least=1)
    inner: int = option(384, "Width within its MLPs.", least=1)
    layers: int = option(3, "Encoder layers.", least=1)
    heads: int = option(6, "Attention heads.", least=1)
    length: int = option(7, "Parts of a token that are read (section 3).", least=1)
    fallback: int = option(1, "Rows learnt for surface forms beyond the model's vocabulary, e.g. for bytes.", least=1)
    residual: Literal["mean", "none"] = option(
        "mean", "mean predicts what to add to the mean of the parts' embeddings, none the embedding (the paper)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads:
            raise UserError(f"hidden={self.hidden} is not a multiple of heads={self.heads}; pass e.g. heads=8")


_POSITIONS = "model.embeddings.position_embeddings.weight"
_UNREAD = {f"model.embeddings.{name}" for name in ("word_embeddings.weight", "position_ids", "token_type_ids")}
_LAYER = re.compile(r"model\.encoder\.layer\.(\d+)\.")


class _Projector(nn.Module):
    """``LayerNorm(x + gelu(W2 gelu(W1 x)))``, the second activation outside W2, as the authors have it."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.gelu(self.dense1(x), approximate="tanh")
        return self.ln(x + functional.gelu(self.dense2(inner), approximate="tanh"))


class _Affine(nn.Module):
    """Scale and shift of each dimension, set once (`scaler`) and not trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, width), requires_grad=False)
        self.b = nn.Parameter(torch.zeros(1, width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w + self.b


def scaler(x: Float[Tensor, "rows dim"], target: Float[Tensor, "others dim"]) -> tuple[Tensor, Tensor]:
    """Return the factor and offset that give `x` the mean and deviation of `target`, dimension by dimension."""
    factor = target.std(0, correction=0) / (x.std(0, correction=0) + 1e-8)
    return factor, target.mean(0) - (factor * x).mean(0)


class Hypernetwork(EmbeddingNetwork):
    """From surface forms to embeddings: projector, encoder, the first state, a head each."""

    form: ClassVar[str] = "mintage hypernetwork 2"
    again: ClassVar[str] = "mintage train zett"
    shape_kind: ClassVar[type] = HypernetworkShape

    def __init__(self, shape: HypernetworkShape) -> None:
        from transformers import RobertaConfig, RobertaModel

        super().__init__(shape)
        self.pad = shape.vocabulary + shape.fallback
        read = shape.width * (1 if shape.tied else 2)
        config = RobertaConfig(
            vocab_size=1,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.inner,
            max_position_embeddings=shape.length + 2,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        )
        self.model: Any = RobertaModel(config, add_pooling_layer=False)
        self.model.embeddings.word_embeddings = None  # embeddings are given
        self.fallback_embeddings = nn.Embedding(shape.fallback, read)
        nn.init.normal_(self.fallback_embeddings.weight, std=0.02)
        self.input_projection = nn.Sequential(nn.Linear(read, shape.hidden), _Projector(shape.hidden, shape.inner))
        self.output_projection = self._head(shape)
        self.output_projection_out = None if shape.tied else self._head(shape)
        self.bias_projection = nn.Linear(shape.hidden, 1)
        self.in_scaler, self.scaler = _Affine(read), _Affine(shape.width)
        self.out_scaler = None if shape.tied else _Affine(shape.width)
        nn.init.zeros_(self.bias_projection.weight)
        nn.init.zeros_(self.bias_projection.bias)

    @staticmethod
    def _head(shape: HypernetworkShape) -> nn.Sequential:
        head = nn.Sequential(_Projector(shape.hidden, shape.inner), nn.Linear(shape.hidden, shape.width))
        if shape.residual == "mean":
            nn.init.zeros_(head[1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(head[1].bias)  # type: ignore[arg-type]
        return head

    @classmethod
    def from_official(
        cls, state_dict: Mapping[str, Tensor], *, vocabulary: int, heads: int | None = None, length: int = 7
    ) -> Hypernetwork:
        """Take the weights that the authors publish (``ZettHypernet`` of their repository, in PyTorch).

        Parameters
        ----------
        state_dict
            Their weights, by their names.
        vocabulary
            Rows of the model's embeddings; ``original_vocab_size`` in their configuration.
        heads
            Attention heads; ``hn_num_attention_heads``, by default a head for 64 dimensions.
        length
            Parts of a token that are read; ``hn_surface_maxlen``.

        Raises
        ------
        UserError
            Weights are missing, or belong to a kind of network that is not here (several languages, attention between
            tokens, all states concatenated).
        """
        held = {name: value for name, value in state_dict.items() if name not in _UNREAD}
        try:
            width, hidden = (
                held["scaler.w"].shape[1] if "scaler.w" in held else 0,
                held["input_projection.0.bias"].shape[0],
            )
            read = held["input_projection.0.weight"].shape[1]
            inner, fallback = held["input_projection.1.dense1.bias"].shape[0], len(held["fallback_embeddings.weight"])
            out, positions = held["output_projection.1.weight"].shape[0], held[_POSITIONS]
        except (AttributeError, KeyError, IndexError) as error:
            raise UserError(
                f"these are no weights of the authors' hypernetwork ({error}); pass its state_dict"
            ) from None
        separate = "output_projection_out.1.weight" in held or "out_scaler.w" in held
        width = width or (read // 2 if separate else read)
        if separate and out == read:  # one head for both
            head = {n: v for n, v in held.items() if n.startswith("output_projection.")}
            held |= {n.replace("projection.", "projection_out.", 1): v for n, v in head.items()}
            for name in ("weight", "bias"):
                both = held[f"output_projection.1.{name}"]
                held[f"output_projection.1.{name}"], held[f"output_projection_out.1.{name}"] = both.split(width)
        layers = 1 + max((int(m[1]) for name in held if (m := _LAYER.match(name))), default=-1)
        shape = HypernetworkShape(
            vocabulary=vocabulary,
            width=width,
            tied=not separate,
            hidden=hidden,
            inner=inner,
            layers=layers,
            heads=heads or max(1, hidden // 64),
            length=length,
            fallback=fallback,
            residual="none",
        )
        net = cls(shape)
        own = net.state_dict()
        held[_POSITIONS] = positions[: length + 2]
        absent = {name for name in own if name not in held and not re.search("scaler|bias_projection", name)}
        wrong = sorted(absent | (held.keys() - own.keys()))
        wrong += [name for name in own.keys() & held.keys() if own[name].shape != held[name].shape]
        if wrong:
            raise UserError(
                f"weights of another kind of hypernetwork (e.g. {wrong[0]}); here are those of one language that read "
                "each token by itself and its first state"
            )
        net.load_state_dict(own | {name: value.float() for name, value in held.items()})
        return net.eval().requires_grad_(False)

    def forward(
        self,
        surface: Int[Tensor, "tokens length"],
        embeddings: Float[Tensor, "vocabulary read"],
    ) -> Composed:
        """Predict embeddings.

        Parameters
        ----------
        surface
            Parts of every token, `pad` behind the last.
        embeddings
            The model's, input and output side by side where they are not tied.
        """
        count = (surface != self.pad).sum(1)
        order, made = count.argsort(), []
        for parts, tokens in zip(*map(Tensor.tolist, count[order].unique_consecutive(return_counts=True)), strict=True):
            some = order[sum(len(rows.input) for rows in made) :][:tokens]  # as many parts, so that no padding is read
            made.append(self._predict(surface[some, : max(parts, 1)], embeddings))
        first, second, bias = (
            torch.cat([getattr(rows, n) for rows in made])[order.argsort()] for n in Composed._fields
        )
        return Composed(first, first if self.shape.tied else second, bias)

    def _predict(self, surface: Tensor, embeddings: Tensor) -> Composed:
        """Predict embeddings of tokens of as many parts."""
        beyond = surface >= self.shape.vocabulary
        known = embeddings[surface.clamp_max(self.shape.vocabulary - 1)].to(self.bias_projection.weight.dtype)
        read = self.in_scaler(known)
        if bool(beyond.any()):  # learnt at the scale that is read
            extra = self.fallback_embeddings((surface - self.shape.vocabulary).clamp(0, self.shape.fallback - 1))
            read = torch.where(beyond[..., None], extra, read)
        places = torch.arange(surface.shape[1], device=surface.device).expand(surface.shape)
        x = self.input_projection(read)
        states = self.model(inputs_embeds=x, position_ids=places).last_hidden_state[:, 0]
        first = self.scaler(self.output_projection(states))
        second = first
        if self.output_projection_out is not None and self.out_scaler is not None:
            second = self.out_scaler(self.output_projection_out(states))
        if self.shape.residual == "mean":
            inside = (surface != self.pad) & ~beyond
            share = inside / inside.sum(1, keepdim=True).clamp_min(1)
            mean = (share[..., None].to(known.dtype) * known).sum(1)
            first = first + mean[:, : self.shape.width]
            second = first if self.shape.tied else second + mean[:, self.shape.width :]
        return Composed(first, second, self.bias_projection(states)[:, 0])


def surface_forms(parts: Sequence[Sequence[int]], length: int, *, pad: int, empty: int) -> Int[Tensor, "tokens length"]:
    """Write parts as rows of `length` numbers, cut or padded; tokens without parts are the one number `empty`."""
    made = torch.full((len(parts), length), pad)
    for place, row in enumerate(parts):
        kept = list(row[:length]) or [empty]
        made[place, : len(kept)] = torch.tensor(kept)
    return made


def embeddings_of(source: Parts) -> Float[Tensor, "vocabulary read"]:
    """Return what a hypernetwork reads: the model's rows, input and output side by side where they are not tied."""
    return source.input.float() if source.tied else torch.cat([source.input.float(), source.output.float()], -1)


def load_hypernetwork(path: str | Path | None = None, source: Parts | None = None) -> Hypernetwork:
    """Load a hypernetwork, by default the one that ships for the embedded model; see `EmbeddingNetwork.load`."""
    return Hypernetwork.load(shipped("zett", "smollm2") if path is None else path, source)

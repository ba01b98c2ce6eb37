"""ZeTT: a hypernetwork predicts the embeddings of any tokenizer's tokens for a trained model.

*Zero-Shot Tokenizer Transfer*, Minixhofer, Ponti and Vulić, NeurIPS 2024, arXiv 2405.07883. A token of the new
tokenizer is cut into at most seven tokens of the old one (its surface form); a small transformer reads their embeddings
and its first state gives the token's input embedding, output embedding and output bias. The tokens' texts are all that
it sees, so one hypernetwork serves every tokenizer.

A deviation, on by default: what is predicted is added to the mean of the parts' embeddings (``residual="mean"``), so
that minutes of training start from FVT rather than from nothing; ``residual="none"`` is the paper's network.

Not here: training (`mintage.retrofit.training.zett`), language embeddings of the multilingual hypernetworks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.retrofit.core.composer import Composed, Parts, close, sample_rows
from mintage.retrofit.core.transfer import EmbeddingTransfer, mean_row
from mintage.weights import read_weights, write_weights

__all__ = [
    "Hypernetwork",
    "HypernetworkShape",
    "Zett",
    "load_hypernetwork",
    "save_hypernetwork",
    "scaler",
    "shipped_hypernetwork",
    "surface_forms",
]

_FORMAT = "mintage hypernetwork 1"
_AT_ONCE = 4096  # tokens per forward
_WIDTHS = (1, 2, 4)  # tokens of so many parts are read together


@dataclass(frozen=True, kw_only=True)
class HypernetworkShape:
    """Sizes of a hypernetwork.

    Parameters
    ----------
    width, tied
        Of the model's embeddings; whether input and output are one.
    hidden, inner, layers, heads
        Of the network: width, width within its MLPs, encoder layers, attention heads.
    length
        Parts of a token that are read (section 3).
    fallback
        Rows learnt for surface forms beyond the model's vocabulary, e.g. for bytes that it lacks.
    residual
        ``"mean"`` predicts what to add to the mean of the parts' embeddings, ``"none"`` the embedding (the paper).
    """

    width: int
    tied: bool = True
    hidden: int = 192
    inner: int = 384
    layers: int = 3
    heads: int = 6
    length: int = 7
    fallback: int = 1
    residual: Literal["mean", "none"] = "mean"

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise UserError(f"hidden={self.hidden} is not a multiple of heads={self.heads}; pass e.g. heads=8")


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


class Hypernetwork(nn.Module):
    """From surface forms to embeddings (section 3.2): projector, encoder, the first state, a head each.

    Parameters
    ----------
    shape
        Sizes.
    vocabulary
        Rows of the model's embeddings; surface forms from there on are rows of the fallback table.
    """

    def __init__(self, shape: HypernetworkShape, vocabulary: int) -> None:
        from transformers import RobertaConfig, RobertaModel

        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
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

    def forward(
        self,
        surface: Int[Tensor, "tokens length"],
        embeddings: Float[Tensor, "vocabulary read"],
        pad: int,
    ) -> Composed:
        """Predict embeddings.

        Parameters
        ----------
        surface
            Parts of every token, `pad` behind the last.
        embeddings
            The model's, input and output side by side where they are not tied.
        pad
            What is no part.
        """
        count = (surface != pad).sum(1)
        order, made = count.argsort(), []
        for parts, tokens in zip(*map(Tensor.tolist, count[order].unique_consecutive(return_counts=True)), strict=True):
            some = order[sum(len(rows.input) for rows in made) :][:tokens]  # as many parts, so that no padding is read
            made.append(self._predict(surface[some, : max(parts, 1)], embeddings, pad))
        first, second, bias = (
            torch.cat([getattr(rows, n) for rows in made])[order.argsort()] for n in Composed._fields
        )
        return Composed(first, first if self.shape.tied else second, bias)

    def _predict(self, surface: Tensor, embeddings: Tensor, pad: int) -> Composed:
        """Predict embeddings of tokens of as many parts."""
        beyond = surface >= self.vocabulary
        known = embeddings[surface.clamp_max(self.vocabulary - 1)].to(self.bias_projection.weight.dtype)
        read = self.in_scaler(known)
        if bool(beyond.any()):  # learnt at the scale that is read
            extra = self.fallback_embeddings((surface - self.vocabulary).clamp(0, self.shape.fallback - 1))
            read = torch.where(beyond[..., None], extra, read)
        places = torch.arange(surface.shape[1], device=surface.device).expand(surface.shape)
        x = self.input_projection(read)
        states = self.model(inputs_embeds=x, position_ids=places).last_hidden_state[:, 0]
        first = self.scaler(self.output_projection(states))
        second = first
        if self.output_projection_out is not None and self.out_scaler is not None:
            second = self.out_scaler(self.output_projection_out(states))
        if self.shape.residual == "mean":
            inside = (surface != pad) & ~beyond
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


# -- files -------------------------------------------------------------------------------------------------------------


def shipped_hypernetwork() -> Path:
    """Return the file of the hypernetwork that ships with mintage, for the embedded model."""
    return Path(str(files("mintage") / "assets" / "zett-smollm2.safetensors"))


def save_hypernetwork(net: Hypernetwork, source: Parts, path: str | Path, *, notes: Mapping[str, str]) -> None:
    """Write a hypernetwork in float16, with a sample of the embeddings that it was made for.

    Parameters
    ----------
    notes
        How it was made and what it does, e.g. ``{"model": ..., "command": ...}``; kept in the file's metadata.
    """
    tensors = {f"net.{name}": t.half() for name, t in net.state_dict().items()}
    tensors |= {f"sample.{name}": t.half() for name, t in sample_rows(source).items()}
    own = {"shape": json.dumps(asdict(net.shape)), "vocabulary": str(net.vocabulary)}
    write_weights(path, _FORMAT, tensors, {**notes, **own})


def load_hypernetwork(path: str | Path | None = None, source: Parts | None = None) -> Hypernetwork:
    """Load a hypernetwork.

    Parameters
    ----------
    path
        File of `save_hypernetwork`; default the one that ships with mintage.
    source
        The model's embeddings: checked against those that the network was made for.

    Raises
    ------
    UserError
        The file is missing, damaged, no hypernetwork, or was made for another model.
    """
    path = shipped_hypernetwork() if path is None else Path(path)
    again = "make one with mintage train zett"
    tensors, notes = read_weights(path, _FORMAT, again)
    try:
        net = Hypernetwork(HypernetworkShape(**json.loads(notes["shape"])), int(notes["vocabulary"]))
        net.load_state_dict({n.removeprefix("net."): t.float() for n, t in tensors.items() if n.startswith("net.")})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}; {again}") from None
    if source is not None:
        for name, mine in sample_rows(source).items():
            theirs = tensors.get(f"sample.{name}")
            if theirs is None or theirs.shape != mine.shape or not close(theirs, mine):
                model = notes.get("model", "another model")
                raise UserError(f"{path} was made for the embeddings of {model}, these are others; {again}")
    return net.eval().requires_grad_(False)


# -- the method --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Zett(EmbeddingTransfer):
    """Embeddings by a hypernetwork.

    Parameters
    ----------
    weights
        File of `mintage train zett`; none takes the one that ships, for the embedded model.
    net
        A network in memory, in its place.
    """

    copies: ClassVar[bool] = False

    weights: str | None = None
    net: Any = None

    @cached_property
    def _net(self) -> Hypernetwork:
        return self.net or load_hypernetwork(self.weights)

    @property
    def length(self) -> int:
        """Parts of a token that are read."""
        return self._net.shape.length

    def fitted(self, source: Parts, tokens: Sequence[bytes], texts: Sequence[Sequence[int]]) -> EmbeddingTransfer:
        """Check that the network was made for this model."""
        if self.net is None:
            return replace(self, net=load_hypernetwork(self.weights, source))
        if self.net.vocabulary != len(source.input) or self.net.shape.width != source.input.shape[1]:
            raise UserError("the hypernetwork was made for other embeddings; make one with mintage train zett")
        return self

    @torch.no_grad()
    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens, in float32; ones of bytes that the model lacks get the mean row."""
        net = self._net.to(source.input.device)
        parts = source.of(tokens)
        pad = net.vocabulary + net.shape.fallback
        surface = surface_forms(parts, net.shape.length, pad=pad, empty=net.vocabulary).to(source.input.device)
        read = embeddings_of(source)
        made = [net(some, read, pad) for some in surface.split(_AT_ONCE)]
        first, second, bias = (torch.cat([getattr(m, name) for m in made]) for name in Composed._fields)
        empty = torch.tensor([not row for row in parts], device=first.device)
        first[empty], second[empty] = mean_row(source.input), mean_row(source.output)
        return Composed(first, first if source.tied else second, bias)

    @classmethod
    def tiny(cls) -> Zett:
        """Make an untrained one, for models of width 32 over 256 or more tokens; it is FVT, as it starts there."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return cls(
                net=Hypernetwork(HypernetworkShape(width=32, hidden=16, inner=16, layers=1, heads=2), 257).eval()
            )

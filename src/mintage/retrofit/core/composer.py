"""Embeddings of new tokens from those of their parts: by rule (mean, sum, first, last), or by a small trained network.

The parts of a token are the original tokens that its bytes are cut into. The mean of their embeddings is what a model
without training is usually given (FVT); the network, `Composer`, starts there and adds what a few minutes of training
find missing (`mintage.retrofit.training.composer`). Both keep the contract of `mintage.retrofit.core.transfer`, as does
zett's hypernetwork, which is larger, and trained for much longer.

Not here: embeddings without the parts' (random, overlap, nearest words); how the network is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mintage.errors import UserError, did_you_mean
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.weights import read_weights, write_weights

__all__ = [
    "Composed",
    "Composer",
    "ComposerShape",
    "ComposerTransfer",
    "PartsTransfer",
    "Rule",
    "load_composer",
    "make_provider",
    "pad_parts",
    "save_composer",
    "shipped_composer",
]

Rule = Literal["mean", "sum", "first", "last"]

_FORMAT = "mintage composer 1"
_SAMPLED = 32  # embeddings kept with a composer, to know its model by


class Composed(NamedTuple):
    """What a composer says of tokens.

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


@dataclass(frozen=True, kw_only=True)
class ComposerShape:
    """Sizes of a composer.

    Parameters
    ----------
    width
        Of the model's embeddings.
    tied
        Whether the model's input and output embeddings are one.
    hidden, heads, inner, layers
        Of the network: width, attention heads, width within its MLPs, blocks.
    parts
        Parts of a token that are read; longer tokens are cut (7 in zett).
    """

    width: int
    tied: bool = True
    hidden: int = 256
    heads: int = 4
    inner: int = 512
    layers: int = 1
    parts: int = 7


class Composer(nn.Module):
    """A network from the embeddings of a token's parts to the token's.

    Parts carry their place from the front and from the back; attention between them, then their mean and the last one
    decide what is added to the mean of their embeddings. Without training nothing is.

    Parameters
    ----------
    shape
        Sizes.
    scale
        Standard deviation of the model's embeddings, in units of which the network works.
    """

    def __init__(self, shape: ComposerShape, scale: float = 1.0) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.hidden
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.enter = nn.Linear(shape.width * (1 if shape.tied else 2), hidden)
        self.from_front, self.from_back = nn.Embedding(shape.parts, hidden), nn.Embedding(shape.parts, hidden)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, shape.heads, shape.inner, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(shape.layers)
        )
        self.norm, self.mix = nn.LayerNorm(2 * hidden), nn.Linear(2 * hidden, hidden)
        self.input, self.output = nn.Linear(hidden, shape.width), nn.Linear(hidden, shape.width)
        for head in (self.input, self.output):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        input: Float[Tensor, "tokens parts width"],
        output: Float[Tensor, "tokens parts width"],
        mask: Bool[Tensor, "tokens parts"],
    ) -> Composed:
        """Compose tokens from their parts' input and output embeddings."""
        count = mask.sum(1)
        place = torch.arange(mask.shape[1], device=mask.device)
        known = input if self.shape.tied else torch.cat([input, output], -1)
        states = self.enter(known / self.scale) + self.from_front(place)
        states = states + self.from_back((count[:, None] - 1 - place).clamp(min=0))
        for block in self.blocks:
            states = block(states, src_key_padding_mask=~mask)
        last = states[torch.arange(len(states), device=mask.device), count - 1]
        mixed = nn.functional.gelu(self.mix(self.norm(torch.cat([_mean(states, mask), last], -1))))
        return Composed(
            _mean(input, mask) + self.scale * self.input(mixed),
            _mean(output, mask) + self.scale * self.output(mixed),
        )


def _mean(rows: Float[Tensor, "tokens parts width"], mask: Bool[Tensor, "tokens parts"]) -> Tensor:
    return (rows * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def pad_parts(
    parts: Sequence[Sequence[int]], longest: int
) -> tuple[Int[Tensor, "tokens parts"], Bool[Tensor, "tokens parts"]]:
    """Lay the parts of tokens side by side, at most `longest` of each; the mask says what is a part."""
    rows = [torch.tensor(row[:longest]) for row in parts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return ids, mask


# -- the contract ------------------------------------------------------------------------------------------------------


@runtime_checkable
class Provider(Protocol):
    """Makes embeddings of new tokens: `PartsTransfer`, `ComposerTransfer`, zett's, or anybody's."""

    def rows(self, source: Any, tokens: Sequence[bytes]) -> Any:
        """Return what has ``input``, ``output`` and ``bias`` (`Composed`), one row per token."""
        ...


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


@dataclass(frozen=True, kw_only=True)
class PartsTransfer:
    """Embeddings by rule: the mean of the parts' (FVT), their sum, the first part's or the last one's.

    Parameters
    ----------
    rule
        Which. Tokens without parts, i.e. of bytes that the vocabulary lacks, get the mean of all embeddings.
    """

    rule: Rule = "mean"

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise UserError(f"unknown rule {self.rule!r}; {did_you_mean(self.rule, get_args(Rule))}")

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


@dataclass(frozen=True, eq=False)
class ComposerTransfer:
    """Embeddings by a trained `Composer`.

    Parameters
    ----------
    net
        The network.
    """

    net: Composer

    @torch.no_grad()
    def rows(self, source: Parts, tokens: Sequence[bytes]) -> Composed:
        """Make the embeddings of tokens, in float32."""
        found = source.of(tokens)
        ids, mask = pad_parts([row or [0] for row in found], self.net.shape.parts)
        ids, mask = ids.to(source.input.device), mask.to(source.input.device)
        made = self.net(source.input[ids].float(), source.output[ids].float(), mask)
        empty = torch.tensor([not row for row in found], device=ids.device)[:, None]
        if bool(empty.any()):
            made = Composed(
                torch.where(empty, source.input.float().mean(0), made.input),
                torch.where(empty, source.output.float().mean(0), made.output),
            )
        return made


# -- files -------------------------------------------------------------------------------------------------------------


def shipped_composer() -> Path:
    """Return the composer that ships with mintage, for the embedded model."""
    return Path(str(files("mintage") / "assets" / "composer-smollm2.safetensors"))


def save_composer(net: Composer, source: Parts, path: str | Path, *, notes: Mapping[str, str]) -> None:
    """Write a composer in float16, with a few of its model's embeddings, by which that model is known again.

    Parameters
    ----------
    net
        The network.
    source
        What it was trained on.
    path
        Safetensors file to write.
    notes
        How it was made and what it does; kept in the file's metadata.
    """
    tensors = {f"net.{name}": t.half() for name, t in net.state_dict().items()}
    tensors |= {f"sample.{name}": t.half() for name, t in sample_rows(source).items()}
    tensors["net.scale"] = net.scale.float()  # small, and everything is multiplied by it
    shape = {name: str(int(value)) for name, value in asdict(net.shape).items()}
    write_weights(path, _FORMAT, tensors, {**notes, **shape})


def sample_rows(source: Parts) -> dict[str, Tensor]:
    """Return some of a model's embeddings, to know it by."""
    places = torch.linspace(0, len(source.input) - 1, _SAMPLED).long().to(source.input.device)
    found = {"input": source.input[places].float()}
    return found if source.tied else found | {"output": source.output[places].float()}


def load_composer(source: Parts, path: str | Path | None = None) -> ComposerTransfer:
    """Load a composer for a model.

    Parameters
    ----------
    source
        The model's embeddings.
    path
        File of `save_composer`; default: the one that ships with mintage, for the embedded model.

    Raises
    ------
    UserError
        The file is missing, damaged or no composer, or was made for other embeddings.
    """
    path = shipped_composer() if path is None else Path(path)
    again = f"make it with mintage train composer --out {path}"
    tensors, notes = read_weights(path, _FORMAT, again)
    try:
        sizes: dict[str, Any] = {name: int(notes[name]) for name in ComposerShape.__dataclass_fields__}
        shape = ComposerShape(**{**sizes, "tied": bool(sizes["tied"])})
        net = Composer(shape)
        net.load_state_dict({n.removeprefix("net."): t.float() for n, t in tensors.items() if n.startswith("net.")})
    except (KeyError, ValueError, RuntimeError):
        raise UserError(f"{path} lacks parts of a composer; {again}") from None
    for name, mine in sample_rows(source).items():
        theirs = tensors.get(f"sample.{name}")
        if theirs is None or theirs.shape != mine.shape or not close(theirs, mine):
            raise UserError(
                f"{path} was made for the embeddings of {notes.get('model', 'another model')}, these are others; "
                "make one for this model with mintage train composer"
            )
    return ComposerTransfer(net.to(source.input.device).eval().requires_grad_(False))


def close(theirs: Tensor, mine: Tensor) -> bool:
    """Whether rows agree up to the rounding of a 16-bit type."""
    mine = mine.cpu()
    return bool((theirs.float() - mine).norm() <= 0.02 * mine.norm())


# -- by name -----------------------------------------------------------------------------------------------------------


def make_provider(spec: str | Path | Provider, source: Parts) -> Provider:
    """Return what `DynamicTokens.provider` names.

    Parameters
    ----------
    spec
        ``auto``, ``composer``, a composer's ``.safetensors`` file, ``mean``, ``sum``, ``first``, ``last``, ``zett``, or
        an object with ``rows(source, tokens)``.
    source
        The model's embeddings.

    Raises
    ------
    UserError
        The name is unknown, or what it names was made for another model.
    """
    if not isinstance(spec, str | Path):
        return spec
    name = str(spec)
    if name == "auto":
        try:
            return load_composer(source)
        except UserError:  # none is shipped for this model
            return PartsTransfer()
    if name in get_args(Rule):
        return PartsTransfer(rule=name)  # type: ignore[arg-type]
    if name == "composer" or name.endswith(".safetensors"):
        return load_composer(source, None if name == "composer" else name)
    if name == "zett":
        from mintage.retrofit.zett import Zett

        return Zett().fitted(source, [], [])
    raise UserError(f"unknown provider {name!r}; {did_you_mean(name, ('auto', 'composer', *get_args(Rule), 'zett'))}")

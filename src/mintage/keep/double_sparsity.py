"""Double Sparsity: read the few tokens that a few channels of the keys point to; keep everything.

Which channels of a head decide its attention hardly changes with the text, so they are found once, offline
(`calibrate_channels`). A label cache holds only these channels of every key; a decoding step scores all tokens on them
and attends to the best ones exactly. Nothing is dropped, so a later question can still find what this one passed over.

Offloaded, keys and values stay in the host's memory. While a layer computes, the rows that the next one is going to
choose, as far as the hidden state tells already, are on their way; what the guess missed is fetched when it is needed.

Not here: label caches that leave the device.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mintage.errors import UserError
from mintage.files import replace_file
from mintage.keep.baselines import FullCache
from mintage.keep.contract import Geometry, Policy, Step
from mintage.keep.core import kernel
from mintage.keep.core.attention import attend
from mintage.keep.core.kernel import Kernel
from mintage.keep.core.select import Selector, attend_to, gather_rows
from mintage.keep.core.storage import KeptCache, KeptLayer

__all__ = ["ChannelOrder", "DoubleSparsity", "calibrate_channels", "channel_scores", "prefetch_rate", "quantise"]

_FORMAT = "mintage double-sparsity 1"
_SHIPPED = Path(__file__).parents[1] / "assets" / "double-sparsity-smollm2.safetensors"

Rule = Literal["qk", "q", "k"]


# -- offline: which channels -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ChannelOrder:
    """How much each channel of each head matters: the artefact of calibration.

    Parameters
    ----------
    score
        Importance of the channels, one row per query head, or per key-value head with rule ``"k"``: [L, rows, d].
    rule
        How they were scored.
    fingerprint
        The model they belong to (`Geometry.fingerprint`); empty fits every model of that shape.
    tokens
        Number of tokens they were scored on.
    """

    score: Float[Tensor, "layers rows dim"]
    rule: Rule = "qk"
    fingerprint: str = ""
    tokens: int = 0

    @classmethod
    def of_order(cls, order: Int[Tensor, "layers rows dim"]) -> ChannelOrder:
        """Make one from channels sorted by importance."""
        return cls(-order.argsort(dim=-1).float())

    @property
    def order(self) -> Int[Tensor, "layers rows dim"]:
        """Channels of each head, most important first."""
        return self.score.argsort(dim=-1, descending=True, stable=True)

    def labels(self, geometry: Geometry, number: int, per: str) -> Int[Tensor, "layers rows number"]:
        """Return the label channels, per query head, or per key-value head after adding its query heads' scores."""
        rows = geometry.heads if per == "head" else geometry.groups
        score, have = self.score, self.score.shape[1]
        if have > rows:
            score = score.unflatten(1, (rows, have // rows)).sum(2)
        elif have < rows:
            score = score.repeat_interleave(rows // have, 1)
        return score.argsort(dim=-1, descending=True, stable=True)[..., :number]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        held = {"format": _FORMAT, "rule": self.rule, "fingerprint": self.fingerprint, "tokens": self.tokens}
        with replace_file(path) as temporary:
            save_file({"score": self.score.float().contiguous()}, temporary, {"calibration": json.dumps(held)})

    @classmethod
    def load(cls, path: str | Path) -> ChannelOrder:
        """Read what `save` wrote.

        Raises
        ------
        UserError
            The file is missing, damaged, or holds something else.
        """
        again = "make one with: mintage calibrate"
        if not Path(path).is_file():
            raise UserError(f"{path} does not exist; {again}")
        try:
            with safe_open(path, framework="pt") as file:
                held = json.loads((file.metadata() or {}).get("calibration", "{}"))
                score = file.get_tensor("score") if "score" in file.keys() else torch.zeros(0)  # noqa: SIM118
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} is no calibration of double-sparsity ({error}); {again}") from None
        if held.get("format") != _FORMAT or score.ndim != 3 or not score.isfinite().all():
            said = held.get("format", "no format")
            raise UserError(f"{path} is no calibration that this version reads ({said!r}, not {_FORMAT!r}); {again}")
        return cls(score.float(), held["rule"], held["fingerprint"], int(held["tokens"]))


def channel_scores(
    query: Float[Tensor, "batch heads tokens dim"], key: Float[Tensor, "batch groups tokens dim"], rule: Rule = "qk"
) -> Float[Tensor, "rows dim"]:
    """Score the channels of one layer by a text, averaged over its tokens.

    ``"qk"`` takes \\|q k\\| of the same token, both after rotation; ``"q"`` and ``"k"`` take one of them, before
    rotation. The authors' own "qk" mixes the heads by a reshape; this is the definition, per head.
    """
    if rule == "qk":
        return (query * key.repeat_interleave(query.shape[1] // key.shape[1], 1)).abs().mean((0, 2))
    return (query if rule == "q" else key).abs().mean((0, 2))


def calibrate_channels(
    model: Any,
    blocks: Iterable[Int[Tensor, "batch tokens"]],
    rule: Rule = "qk",
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> ChannelOrder:
    """Score every channel of every head on blocks of text, all blocks alike.

    Parameters
    ----------
    model
        A Hugging Face causal LM.
    blocks
        Token ids, e.g. 256 blocks of 512 tokens.
    rule
        See `channel_scores`.
    progress
        Told how many blocks are done.

    Raises
    ------
    UserError
        There is no block, or the model cannot be served.
    """
    calibrator = _Calibrator(rule=rule)
    done, tokens = 0, 0
    with calibrator(model) as session, torch.inference_mode():
        for block in blocks:
            model(block, use_cache=True)
            done, tokens = done + 1, tokens + block.numel()
            progress(done)
    if not done:
        raise UserError("there is no text to calibrate on; pass at least one block of tokens")
    sums = torch.stack([calibrator.sums[layer] for layer in range(session.geometry.layers)])
    return ChannelOrder((sums / done).float().cpu(), rule, session.geometry.fingerprint, tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Calibrator(FullCache):
    """A full cache that adds up the scores of every forward, in float64 so that the order of blocks is no matter."""

    rule: Rule = "qk"
    sums: dict[int, Tensor] = field(default_factory=dict)

    def check(self, geometry: Geometry) -> None:
        if self.rule != "qk" and geometry.rotary is None and "gpt2" not in geometry.fingerprint:
            geometry.need_rotary(f"rule {self.rule!r}")

    def settle(self, layer: KeptLayer, step: Step) -> None:
        query, key = step.query.double(), layer["key"].double()
        if self.rule != "qk" and (rotary := step.geometry.rotary) is not None:
            query, key = rotary.undo(query, step.position_ids), rotary.undo(key, step.position_ids)
        scores = channel_scores(query, key, self.rule)
        self.sums[layer.index] = self.sums.get(layer.index, torch.zeros_like(scores)) + scores


# -- labels ------------------------------------------------------------------------------------------------------------


def quantise(
    labels: Float[Tensor, "*rows channels"], bits: int
) -> tuple[Tensor, Float[Tensor, "*rows 1"], Float[Tensor, "*rows 1"]]:
    """Round each row to ``2 ** bits`` levels between its least and greatest value.

    Returns
    -------
    codes
        Whole numbers from 0 to ``2 ** bits - 1``, as floats.
    step, least
        ``codes * step + least`` is the rounded row.
    """
    least = labels.amin(-1, keepdim=True)
    span = labels.amax(-1, keepdim=True) - least
    levels = 2**bits - 1
    step = torch.where(span == 0, 1.0, span / levels).to(labels.dtype)
    return ((labels - least) / step).round().clamp(0, levels), step, least


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Put ``8 / bits`` codes into each byte."""
    per = 8 // bits
    parts = codes.to(torch.uint8).unflatten(-1, (-1, per))
    return (parts << torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)).sum(-1, dtype=torch.uint8)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)


# -- the method --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class DoubleSparsity(Selector):
    """Post-training sparse attention by label channels (Yang et al. 2024).

    Parameters
    ----------
    top_k
        Tokens that a decoding step reads per head: a number, or a share of the tokens in the cache (paper: 1/16).
    label_channels
        Channels of a key in the label cache. The paper takes 1/16 of a head's dimension of 128; at 64, 16 are needed.
    label_bits
        Of a label: 16 (as the model computes), or 4 (the paper's) or 2, packed with a step and an offset per token; on
        CPU unpacking costs more time than it saves.
    dense_layers
        First layers that read everything: their attention is not sparse.
    per
        Whether each query head has its own label channels and choice of tokens (the paper), or the heads of a key-value
        group share them: fewer labels, fewer rows to fetch.
    channels
        Calibration for the model: a file of ``mintage calibrate``, or a `ChannelOrder`. Empty takes the shipped one for
        SmolLM2-135M.
    offload
        Keep keys and values in the host's memory and fetch the rows that are read; labels stay on the device.
    prefetch
        With `offload`: guess the next layer's choice and fetch its rows while this layer computes (on CUDA in a stream
        of their own). Changes what is moved and when, never the output.
    sparse_prefill
        Let every token of a prompt read `top_k` tokens, too, as the authors' accuracy code does; slow.
    kernel
        What computes a decoding step on a CPU: ``"compiled"`` (`core.kernel`; labels of 16 bits), ``"torch"``
        operations, or ``"auto"``: compiled where there is a compiler.
    """

    top_k: int | float = 0.0625
    label_channels: int = 16
    label_bits: int = 16
    dense_layers: int = 2
    per: Literal["head", "group"] = "head"
    channels: str | ChannelOrder = ""
    offload: bool = False
    prefetch: bool = False
    sparse_prefill: bool = False
    kernel: Kernel = "auto"
    _labels: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        share = isinstance(self.top_k, float)
        if not (0 < self.top_k <= 1 if share else self.top_k >= 1):
            raise UserError(f"top_k={self.top_k} reads nothing; pass a number of tokens, or a share in (0, 1]")
        if self.label_bits not in (2, 4, 16):
            raise UserError(f"label_bits={self.label_bits} is not one of 2, 4, 16")
        if self.label_channels < 1:
            raise UserError(f"label_channels={self.label_channels} leaves no label; pass e.g. 16")
        if self.dense_layers < 0:
            raise UserError(f"dense_layers={self.dense_layers} is below 0; pass e.g. 2")
        if self.prefetch and not self.offload:
            raise UserError("prefetch=true has nothing to fetch; pass offload=true, too")
        if self.kernel == "compiled" and self.label_bits < 16:
            raise UserError(f"kernel='compiled' takes labels of 16 bits, not {self.label_bits}; pass kernel='torch'")

    @property
    def reads_prompts_whole(self) -> bool:
        """Whether prompts are read as by the unmodified model."""
        return not self.sparse_prefill

    @property
    def looks_ahead(self) -> bool:
        """Whether the next layer's queries are guessed."""
        return self.prefetch

    def check(self, geometry: Geometry) -> None:
        """Refuse a calibration of another model, and more label channels than there are."""
        order = self._calibration()
        if order.fingerprint not in ("", geometry.fingerprint):
            told = "the shipped calibration" if self.channels == "" else f"{self.channels}"
            raise UserError(
                f"{told if isinstance(self.channels, str) else 'the calibration'} is of another model "
                f"({order.fingerprint}, not {geometry.fingerprint}); make one with: mintage calibrate --model ..."
            )
        layers, rows, dim = order.score.shape
        if (layers, dim) != (geometry.layers, geometry.dim) or rows not in (geometry.heads, geometry.groups):
            raise UserError(f"the calibration has {layers} layers of {rows} x {dim}, the model {geometry.fingerprint}")
        if self.label_channels > geometry.dim:
            raise UserError(f"label_channels={self.label_channels} is more than the {geometry.dim} of a head")
        if (self.label_channels * self.label_bits) % 8:
            raise UserError(f"{self.label_channels} labels of {self.label_bits} bits do not fill bytes; pass 16")

    def _calibration(self) -> ChannelOrder:
        if isinstance(self.channels, ChannelOrder):
            return self.channels
        return _loaded(str(self.channels or _SHIPPED))

    def at(self, entries: int) -> DoubleSparsity:
        """Read `entries` tokens."""
        return replace(self, top_k=entries)

    def unbounded(self) -> Policy:
        """Read every token."""
        return replace(self, top_k=1.0)

    # -- store: the label cache --

    def store(
        self,
        layer: KeptLayer,
        key: Float[Tensor, "batch groups new dim"],
        value: Float[Tensor, "batch groups new dim"],
    ) -> None:
        """Take in new tokens, and the labels of their keys: one set per group, or one per query head behind another."""
        if layer.index < self.dense_layers:
            layer.append(key=key, value=value)
            return
        label = self._project(layer, key[:, :, None].expand(-1, -1, self._sets(layer), -1, -1))
        fields: dict[str, Tensor] = {}
        if self.label_bits < 16:
            codes, step, least = quantise(label, self.label_bits)
            fields["step"] = torch.cat((step, least), -1).transpose(2, 3).flatten(3)
            label = _pack(codes, self.label_bits)
        fields["label"] = label.transpose(2, 3).flatten(3)
        if self.offload:
            layer.host = ("key", "value")
            key, value = key.cpu(), value.cpu()
        layer.append(key=key, value=value, **fields)

    def _sets(self, layer: KeptLayer) -> int:
        return layer.geometry.heads // layer.geometry.groups if self.per == "head" else 1

    def _channels(self, layer: KeptLayer) -> Int[Tensor, "rows number"]:
        """Label channels of this layer."""
        device = layer.position_ids.device
        key = (layer.geometry, device)
        if key not in self._labels:
            self._labels[key] = self._calibration().labels(layer.geometry, self.label_channels, self.per).to(device)
        return self._labels[key][layer.index]

    def _project(self, layer: KeptLayer, states: Float[Tensor, "batch groups sets new dim"]) -> Tensor:
        """Pick each head's label channels: [B, G, sets, new, r]."""
        index = self._channels(layer).unflatten(0, (states.shape[1], -1))
        index = index[None, :, :, None, :].expand(states.shape[0], -1, states.shape[2], states.shape[3], -1)
        return states.gather(-1, index)

    # -- read: steps 1-5 --

    def _approximate(self, layer: KeptLayer, query: Float[Tensor, "batch heads queries dim"]) -> Tensor:
        """Scores on the labels alone, [B, G, H / G, Q, M]; their scale does not matter."""
        grouped = query.unflatten(1, (layer.geometry.groups, -1))
        label = self._project(layer, grouped)  # [B, G, H / G, Q, r]
        sets = self._sets(layer)
        held = layer["label"].unflatten(3, (sets, -1)).transpose(2, 3)  # [B, G, sets, M, r packed]
        if self.label_bits == 16:
            return label @ held.transpose(-1, -2)
        codes, step, least = quantise(label, self.label_bits)
        label = codes * step + least
        step, least = layer["step"].unflatten(3, (sets, 2)).transpose(2, 3).split(1, -1)
        held = _unpack(held, self.label_bits).to(label.dtype)
        dots = label @ held.transpose(-1, -2)  # q . (codes step + least), without rounding every label back
        return dots * step.transpose(-1, -2) + label.sum(-1, keepdim=True) * least.transpose(-1, -2)

    def _number(self, layer: KeptLayer) -> int:
        number = self.top_k if isinstance(self.top_k, int) else int(self.top_k * layer.entries)
        return min(max(number, 1), layer.entries)

    def select(self, layer: KeptLayer, step: Step) -> Int[Tensor, "batch choosers chosen"] | None:
        """Choose the tokens with the best label scores, per query head, or by the votes of a group's heads."""
        number = self._number(layer)
        if layer.index < self.dense_layers or number >= layer.entries:
            return None
        visible = step.visible(layer)
        if self._compiled(step):
            scale = step.scaling * (step.query.shape[-1] / self.label_channels) ** 0.5
            channels = self._channels(layer)
            return kernel.choose(step.query, layer["label"], channels, number, scale=scale, visible=visible)
        scores = self._approximate(layer, step.query)[..., 0, :]  # [B, G, H / G, M]
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        if self.per == "group":
            scale = step.scaling * (step.query.shape[-1] / self.label_channels) ** 0.5
            return (scores.float() * scale).softmax(-1).sum(2).topk(number, sorted=False).indices
        return scores.topk(number, sorted=False).indices.flatten(1, 2)

    def _compiled(self, step: Step) -> bool:
        return self.label_bits == 16 and kernel.serves(self.kernel, step.query)

    def attend(self, layer: KeptLayer, step: Step) -> Float[Tensor, "batch heads queries dim"]:
        """Attend to the choice; a prompt attends to everything, unless `sparse_prefill`."""
        whole = layer["key"].numel() + layer["value"].numel()
        layer.reads, layer.moved = whole, 0
        sparse = layer.index >= self.dense_layers
        if step.queries > 1 and self.sparse_prefill and sparse:
            return self._attend_sparsely(layer, step)
        chosen = self.select(layer, step) if step.queries == 1 else None
        if chosen is None:
            out = self._attend_to_all(layer, step, whole)
        else:
            rows = 2 * chosen.numel() * layer["key"].shape[3]
            labels = layer["label"].numel() * layer["label"].element_size() / 2  # in units of 16 bits
            layer.reads = rows + int(labels)
            if "ahead" in layer.state:
                out = self._attend_to_fetched(layer, step, chosen)
            else:
                layer.moved = rows * layer["key"].element_size() if layer.host else 0
                out = attend_to(layer, step, chosen, compiled=not layer.host and self._compiled(step))
        if step.queries == 1 and self.prefetch:
            self._fetch_ahead(step)
        return out

    def _attend_to_all(self, layer: KeptLayer, step: Step, whole: int) -> Tensor:
        layer.moved = whole * layer["key"].element_size() if layer.host else 0
        if layer["key"].device == step.query.device:
            return step.dense()
        key, value = layer["key"].to(step.query.device), layer["value"].to(step.query.device)
        return attend(step.query, key, value, scaling=step.scaling, visible=step.visible(layer))

    def _attend_sparsely(self, layer: KeptLayer, step: Step) -> Tensor:
        """Steps 1-5 for every query of a prompt, by a mask; a query that sees fewer tokens reads them all."""
        scores = self._approximate(layer, step.query).flatten(1, 2)  # [B, H, Q, M]
        visible = step.visible(layer)
        scores = scores if visible is None else scores.masked_fill(~visible, -torch.inf)
        best = scores.topk(self._number(layer), -1)
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best.indices, best.values > -torch.inf)
        share = step.query.shape[1] // layer["key"].shape[1]
        key, value = (layer[name].to(step.query.device).repeat_interleave(share, 1) for name in ("key", "value"))
        return attend(step.query, key, value, scaling=step.scaling, visible=chosen)

    # -- offloaded: rows fetched ahead --

    def _fetch_ahead(self, step: Step) -> None:
        """Send for the rows that the next layer would choose by a guess of its query."""
        guess = step.ahead()
        if guess is None or "label" not in guess[0]:
            return
        layer, query = guess
        chosen = self.select(layer, replace(step, query=query))
        if chosen is not None:
            layer.state["ahead"] = chosen = chosen.sort(-1).values
            with _aside(query.device):
                for name in ("key", "value"):
                    layer.state[f"ahead {name}"] = _fetched(layer[name], chosen, query.device)

    def _attend_to_fetched(self, layer: KeptLayer, step: Step, chosen: Int[Tensor, "batch choosers chosen"]) -> Tensor:
        """Attend to `chosen`, of which many rows have come already; the others are fetched now."""
        device = step.query.device
        _meet(device)
        ready, *fetched = (layer.state.pop(name) for name in ("ahead", "ahead key", "ahead value"))
        place = torch.searchsorted(ready, chosen).clamp(max=ready.shape[-1] - 1)
        missing = ready.gather(-1, place) != chosen
        late = _missed(layer, chosen, missing)
        rows = []
        for name, ahead in zip(("key", "value"), fetched, strict=True):
            row = ahead.gather(2, place[..., None].expand(*place.shape, ahead.shape[-1]))
            row[missing] = layer[name][late].to(device)
            rows.append(row)
        counted = layer.state.get("counted", missing.new_zeros(missing.shape[0], 2, dtype=torch.long))
        found = (~missing).sum((1, 2))
        layer.state["counted"] = counted + torch.stack((found, torch.full_like(found, missing[0].numel())), 1)
        size = layer["key"].element_size() * layer["key"].shape[3]
        layer.moved = 2 * size * (ready.numel() + int(missing.sum()))
        return attend_to(layer, step, chosen, rows=(rows[0], rows[1]))

    def cropped(self, layer: KeptLayer) -> None:
        """Forget rows fetched for a layer that a forward did not reach."""
        for name in ("ahead", "ahead key", "ahead value"):
            layer.state.pop(name, None)

    @classmethod
    def tiny(cls) -> DoubleSparsity:
        """Make one for the laws, with channels that fit their models."""
        score = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0))
        return cls(top_k=6, label_channels=4, dense_layers=1, channels=ChannelOrder(score))


def prefetch_rate(kept: KeptCache) -> float:
    """Share of the rows read, over all layers and steps, that had been fetched ahead; nan before the first."""
    counted = [layer.state["counted"].sum(0) for layer in kept.kept_layers if "counted" in layer.state]
    if not counted:
        return float("nan")
    found, needed = torch.stack(counted).sum(0).tolist()
    return found / needed


def _fetched(states: Tensor, index: Int[Tensor, "batch choosers chosen"], device: torch.device) -> Tensor:
    """Bring rows to the device, [B, choosers, chosen, d], from memory that the device can read by itself."""
    rows = gather_rows(states, index.reshape(*states.shape[:2], -1)).view(*index.shape, -1)
    if device.type == "cuda":
        rows = rows.pin_memory()
    return rows.to(device, non_blocking=True)


def _missed(layer: KeptLayer, chosen: Tensor, missing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sequence, group and entry of the rows that are missing, where the rows lie."""
    host = layer["key"].device
    row, chooser, _ = missing.nonzero(as_tuple=True)
    share = chosen.shape[1] // layer["key"].shape[1]
    return row.to(host), (chooser // share).to(host), chosen[missing].to(host)


@cache
def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Run transfers beside what the device computes; on a CPU there is no beside."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(_stream(device)):
        yield


def _meet(device: torch.device) -> None:
    """Wait, on the device, for transfers under way."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_stream(device))


@cache
def _loaded(path: str) -> ChannelOrder:
    return ChannelOrder.load(path)

"""Double Sparsity: read the few tokens that a few channels of the keys point to; keep everything.

Which channels of a head decide its attention hardly changes with the text, so they are found once, offline
(`calibrate_channels`). A label cache holds only these channels of every key; a decoding step scores all tokens on them
and attends to the best ones exactly. Nothing is dropped, so a later question can still find what this one passed over.

Offloaded, keys and values stay in the host's memory. While a layer computes, the rows that the next one is going to
choose, as far as the hidden state tells already, are on their way; what the guess missed is fetched when it is needed.

Not here: label caches that leave the device. Over 200 lines, because one choice serves four ways to read: dense, by
torch operations, compiled, and offloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from mintage.errors import UserError
from mintage.keep.contract import Geometry, Policy, Step
from mintage.keep.core import kernel
from mintage.keep.core.channels import ChannelOrder, calibrate_channels, channel_scores
from mintage.keep.core.kernel import Kernel
from mintage.keep.core.labels import pack, quantise, unpack
from mintage.keep.core.offload import attend_to_fetched, fetch_ahead, forget_fetched, prefetch_rate
from mintage.keep.core.select import Selector, attend_to
from mintage.keep.core.storage import KeptLayer
from mintage.options import option
from mintage.weights import shipped

__all__ = ["ChannelOrder", "DoubleSparsity", "calibrate_channels", "channel_scores", "prefetch_rate", "quantise"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DoubleSparsity(Selector):
    """Post-training sparse attention by label channels (Yang et al. 2024)."""

    top_k: int | float = option(
        0.0625, "Tokens that a step reads per head: a number, or a share of those in the cache (paper: 1/16).", above=0
    )
    label_channels: int = option(
        16,
        "Channels of a key in the label cache; the paper takes 1/16 of a head's dimension of 128, at 64 it needs 16.",
        least=1,
    )
    label_bits: Literal[2, 4, 16] = option(
        16,
        "Of a label: 16 (as the model computes), or 4 (the paper's) or 2, packed with a step and an offset per token; "
        "on CPU unpacking costs more time than it saves.",
    )
    dense_layers: int = option(2, "First layers that read everything: their attention is not sparse.", least=0)
    per: Literal["head", "group"] = option(
        "head",
        "Whether each query head has its own label channels and choice of tokens (the paper), or the heads of a "
        "key-value group share them: fewer labels, fewer rows to fetch.",
    )
    channels: str | ChannelOrder = option(
        "smollm2", "Calibration: a file of mintage calibrate, a `ChannelOrder`, or the shipped one's name."
    )
    offload: bool = option(
        False, "Keep keys and values in the host's memory and fetch the rows that are read; labels stay on the device."
    )
    prefetch: bool = option(
        False,
        "With offload: guess the next layer's choice and fetch its rows while this layer computes (on CUDA in a stream "
        "of their own). Changes what is moved and when, never the output.",
    )
    sparse_prefill: bool = option(
        False, "Let every token of a prompt read top_k tokens, too, as the authors' accuracy code does; slow."
    )
    kernel: Kernel = option(
        "auto",
        "What computes a step on a CPU: compiled (labels of 16 bits), torch operations, or auto: compiled where there "
        "is a compiler.",
    )
    _labels: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.top_k, float) and self.top_k > 1:
            raise UserError(f"top_k={self.top_k} is no share in (0, 1]; pass a whole number for tokens, e.g. 128")
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
        geometry.need_keys("double-sparsity")
        if not (geometry.dim and geometry.heads):
            raise UserError(f"{geometry.model}'s layers differ in their heads, which double-sparsity does not serve")
        order = self._calibration()
        if order.fingerprint not in ("", geometry.fingerprint):
            told = "the shipped calibration" if self.channels == "smollm2" else f"{self.channels}"
            raise UserError(
                f"{told if isinstance(self.channels, str) else 'the calibration'} is of another model "
                f"({order.fingerprint}, not {geometry.fingerprint}); make one with: mintage calibrate --model ..."
            )
        layers, rows, dim = order.score.shape
        if (layers, dim) != (geometry.layers, geometry.dim) or rows not in (geometry.heads, geometry.groups):
            raise UserError(
                f"the calibration has {layers} layers of {rows} x {dim}, {geometry.model} is {geometry.fingerprint}"
            )
        if self.label_channels > geometry.dim:
            raise UserError(f"label_channels={self.label_channels} is more than the {geometry.dim} of a head")
        if (self.label_channels * self.label_bits) % 8:
            raise UserError(f"{self.label_channels} labels of {self.label_bits} bits do not fill bytes; pass 16")

    def _calibration(self) -> ChannelOrder:
        if isinstance(self.channels, ChannelOrder):
            return self.channels
        return _loaded(str(shipped("double-sparsity", self.channels)))

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
        value: Float[Tensor, "batch groups new width"],
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
            label = pack(codes, self.label_bits)
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

    def _approximate(
        self, layer: KeptLayer, query: Float[Tensor, "batch heads queries dim"], rows: slice = slice(None)
    ) -> Tensor:
        """Scores on the labels of some rows alone, [B, G, H / G, Q, M]; their scale does not matter."""
        grouped = query.unflatten(1, (layer.geometry.groups, -1))
        label = self._project(layer, grouped)  # [B, G, H / G, Q, r]
        sets = self._sets(layer)
        held = layer["label"][rows].unflatten(3, (sets, -1)).transpose(2, 3)  # [B, G, sets, M, r packed]
        if self.label_bits == 16:
            return label @ held.transpose(-1, -2)
        codes, step, least = quantise(label, self.label_bits)
        label = codes * step + least
        step, least = layer["step"][rows].unflatten(3, (sets, 2)).transpose(2, 3).split(1, -1)
        held = unpack(held, self.label_bits).to(label.dtype)
        dots = label @ held.transpose(-1, -2)  # q . (codes step + least), without rounding every label back
        return dots * step.transpose(-1, -2) + label.sum(-1, keepdim=True) * least.transpose(-1, -2)

    def _numbers(self, layer: KeptLayer) -> list[int]:
        """Tokens that each head reads, row by row; padding does not count. One number for all rows without any."""
        real = [layer.entries - first for first in ([0] if layer.start is None else layer.start.tolist())]
        share = 0 if isinstance(self.top_k, int) else self.top_k
        return [min(max(int(share * tokens) if share else int(self.top_k), 1), tokens) for tokens in real]

    def select(self, layer: KeptLayer, step: Step) -> Int[Tensor, "batch choosers chosen"] | None:
        """Choose the tokens with the best label scores, per query head, or by the votes of a group's heads."""
        number = max(numbers := self._numbers(layer))
        if layer.index < self.dense_layers or number >= layer.entries:
            return None
        visible = step.visible(layer)
        if min(numbers) < number and visible is not None:  # a row that reads fewer fills up with padding
            chosen = [self._select(layer, step, visible, few, slice(r, r + 1)) for r, few in enumerate(numbers)]
            return torch.cat([functional.pad(c, (number - c.shape[-1], 0)) for c in chosen])
        return self._select(layer, step, visible, number, slice(None))

    def _select(self, layer: KeptLayer, step: Step, visible: Tensor | None, number: int, rows: slice) -> Tensor:
        """Choose `number` tokens in some rows."""
        query, visible = step.query[rows], None if visible is None else visible[rows]
        scale = step.scaling * (query.shape[-1] / self.label_channels) ** 0.5
        if self._compiled(step):
            label, channels = layer["label"][rows], self._channels(layer)
            return kernel.choose(query, label, channels, number, scale=scale, visible=visible)
        scores = self._approximate(layer, query, rows)[..., 0, :]  # [B, G, H / G, M]
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        if self.per == "group":
            return (scores.float() * scale).softmax(-1).sum(2).topk(number, sorted=False).indices
        return scores.topk(number, sorted=False).indices.flatten(1, 2)

    def _compiled(self, step: Step) -> bool:
        return self.label_bits == 16 and kernel.serves(self.kernel, step.query)

    def attend(self, layer: KeptLayer, step: Step) -> Float[Tensor, "batch heads queries width"]:
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
            rows = chosen.numel() * (layer["key"].shape[3] + layer["value"].shape[3])
            labels = layer["label"].numel() * layer["label"].element_size() / 2  # in units of 16 bits
            layer.reads = rows + int(labels)
            if "ahead" in layer.state:
                out = attend_to_fetched(layer, step, chosen)
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
        return step.attend(key, value, layer.positions, visible=step.visible(layer))

    def _attend_sparsely(self, layer: KeptLayer, step: Step) -> Tensor:
        """Steps 1-5 for every query of a prompt, by a mask; a query that sees fewer tokens reads them all."""
        scores = self._approximate(layer, step.query).flatten(1, 2)  # [B, H, Q, M]
        visible = step.visible(layer)
        scores = scores if visible is None else scores.masked_fill(~visible, -torch.inf)
        numbers = self._numbers(layer)
        best = scores.topk(max(numbers), -1)
        ranks = torch.arange(max(numbers), device=scores.device)
        read = (best.values > -torch.inf) & (ranks < torch.tensor(numbers, device=ranks.device)[:, None, None, None])
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best.indices, read)
        share = step.query.shape[1] // layer["key"].shape[1]
        key, value = (layer[name].to(step.query.device).repeat_interleave(share, 1) for name in ("key", "value"))
        tokens = layer.positions.expand(*layer["key"].shape[:2], -1).repeat_interleave(share, 1)
        return step.attend(key, value, tokens, visible=chosen)

    def _fetch_ahead(self, step: Step) -> None:
        """Send for the rows that the next layer would choose by a guess of its query."""
        guess = step.ahead()
        if guess is None or "label" not in guess[0]:
            return
        layer, query = guess
        chosen = self.select(layer, replace(step, query=query))
        if chosen is not None:
            fetch_ahead(layer, chosen, query.device)

    def cropped(self, layer: KeptLayer) -> None:
        """Forget rows fetched for a layer that a forward did not reach."""
        forget_fetched(layer)

    @classmethod
    def tiny(cls) -> DoubleSparsity:
        """Make one for the laws, with channels that fit their models."""
        score = torch.rand(2, 4, 8, generator=torch.Generator().manual_seed(0))
        return cls(top_k=6, label_channels=4, dense_layers=1, channels=ChannelOrder(score))


@cache
def _loaded(path: str) -> ChannelOrder:
    return ChannelOrder.load(path)

"""Which channels of a model's keys decide its attention: scored once on a text, kept in a file (Double Sparsity)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.keep.contract import Geometry, Policy, Step
from mintage.keep.core.storage import KeptLayer
from mintage.options import check_literals
from mintage.weights import Artefact

__all__ = ["ChannelOrder", "ChannelRule", "calibrate_channels", "channel_scores"]

_FORMAT = "mintage double-sparsity 2"
_AGAIN = "mintage calibrate"

ChannelRule = Literal["qk", "q", "k"]


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
    rule: ChannelRule = "qk"
    fingerprint: str = ""
    tokens: int = 0

    @classmethod
    def of_order(cls, order: Int[Tensor, "layers rows dim"]) -> ChannelOrder:
        """Make one from channels sorted by importance.

        Raises
        ------
        UserError
            A row does not name every channel once.
        """
        whole = torch.arange(order.shape[-1], device=order.device) if order.ndim == 3 else None
        if whole is None or not torch.equal(order.sort(-1).values.long(), whole.expand_as(order)):
            raise UserError(
                f"an order of shape {tuple(order.shape)} is no sorting of channels; pass [layers, heads, dim] whole "
                f"numbers, each row 0 to {order.shape[-1] - 1 if order.ndim else 0} once"
            )
        return cls(-order.argsort(dim=-1).float())

    @property
    def order(self) -> Int[Tensor, "layers rows dim"]:
        """Channels of each head, most important first."""
        return self.score.argsort(dim=-1, descending=True, stable=True)

    def labels(
        self, geometry: Geometry, number: int, per: Literal["head", "group"]
    ) -> Int[Tensor, "layers rows number"]:
        """Return the label channels, per query head, or per key-value head after adding its query heads' scores."""
        rows = geometry.heads if per == "head" else geometry.groups
        score, have = self.score, self.score.shape[1]
        if have > rows:
            score = score.unflatten(1, (rows, have // rows)).sum(2)
        elif have < rows:
            score = score.repeat_interleave(rows // have, 1)
        return score.argsort(dim=-1, descending=True, stable=True)[..., :number]

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file, whole or not at all; `notes` say how it was made."""
        sizes = {"rule": self.rule, "fingerprint": self.fingerprint, "tokens": self.tokens}
        Artefact({"score": self.score.float()}, sizes, notes=dict(notes or {})).save(path, _FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> ChannelOrder:
        """Read what `save` wrote.

        Raises
        ------
        UserError
            The file is missing, damaged, or holds something else.
        """
        held = Artefact.load(path, _FORMAT, _AGAIN)
        score, sizes = held.tensors.get("score"), held.sizes
        if score is None or score.ndim != 3 or not {"rule", "fingerprint", "tokens"} <= sizes.keys():
            raise UserError(f"{path} is no calibration of double-sparsity; make one with: {_AGAIN}")
        return cls(score, sizes["rule"], sizes["fingerprint"], int(sizes["tokens"]))


@check_literals
def channel_scores(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch groups tokens dim"],
    rule: ChannelRule = "qk",
) -> Float[Tensor, "rows dim"]:
    """Score the channels of one layer by a text, averaged over its tokens.

    ``"qk"`` takes \\|q k\\| of the same token, both after rotation; ``"q"`` and ``"k"`` take one of them, before
    rotation. The authors' own "qk" mixes the heads by a reshape; this is the definition, per head.
    """
    if rule == "qk":
        return (query * key.repeat_interleave(query.shape[1] // key.shape[1], 1)).abs().mean((0, 2))
    return (query if rule == "q" else key).abs().mean((0, 2))


@check_literals
def calibrate_channels(
    model: Any,
    blocks: Iterable[Int[Tensor, "batch tokens"]],
    rule: ChannelRule = "qk",
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
class _Calibrator(Policy):
    """A full cache that adds up the scores of every forward, in float64 so that the order of blocks is no matter."""

    rule: ChannelRule = "qk"
    sums: dict[int, Tensor] = field(default_factory=dict)

    def check(self, geometry: Geometry) -> None:
        geometry.need_keys("double-sparsity")
        if self.rule != "qk" and geometry.rotary is None and "gpt2" not in geometry.fingerprint:
            geometry.need_rotary(f"rule {self.rule!r}")

    def settle(self, layer: KeptLayer, step: Step) -> None:
        query, key = step.query.double(), layer["key"].double()
        if self.rule != "qk" and (rotary := step.geometry.rotary) is not None:
            query, key = rotary.undo(query, step.position_ids), rotary.undo(key, step.position_ids)
        scores = channel_scores(query, key, self.rule)
        self.sums[layer.index] = self.sums.get(layer.index, torch.zeros_like(scores)) + scores

    @classmethod
    def tiny(cls) -> _Calibrator:
        """Score what is read."""
        return cls()

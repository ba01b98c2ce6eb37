"""Policies that hold every token and read a few of them: each decoding step chooses its entries, then gathers them.

Not here: fewer bytes. The cache stays whole, and what a choice is made with (labels) comes on top; `KeptLayer.reads`
counts what is saved.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from mintage.keep.contract import Policy, Step
from mintage.keep.core import kernel
from mintage.keep.core.storage import KeptLayer, gather_rows

__all__ = ["Selector", "attend_to"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Selector(Policy):
    """A policy that reads a choice of entries in decoding and everything in prefill."""

    @abstractmethod
    def select(self, layer: KeptLayer, step: Step) -> Int[Tensor, "batch choosers chosen"] | None:
        """Choose the entries to read, for each query head, or for each key-value head; None reads them all."""

    def attend(self, layer: KeptLayer, step: Step) -> Float[Tensor, "batch heads queries width"]:
        """Attend to the choice; a prefill attends to everything."""
        layer.reads = layer["key"].numel() + layer["value"].numel()
        chosen = self.select(layer, step) if step.queries == 1 else None
        if chosen is None:
            return step.dense()
        layer.reads = chosen.numel() * (layer["key"].shape[3] + layer["value"].shape[3])
        return attend_to(layer, step, chosen)


def attend_to(
    layer: KeptLayer,
    step: Step,
    chosen: Int[Tensor, "batch choosers chosen"],
    *,
    rows: tuple[Tensor, Tensor] | None = None,
    compiled: bool = False,
) -> Float[Tensor, "batch heads queries width"]:
    """Attend from one query per sequence to the entries `chosen`, per query head or per key-value head.

    Parameters
    ----------
    rows
        Their keys and values where they are at hand, [B, choosers, chosen, d]; default: gathered.
    compiled
        Whether the compiled step reads them in place (`mintage.keep.core.kernel.serves` says if it can).
    """
    visible = step.visible(layer)
    batch, groups, _, dim = layer["key"].shape
    heads = chosen.shape[1]
    if compiled and rows is None and step.plain and not step.changed and layer["value"].shape[3] == dim:
        key, value = layer["key"], layer["value"]
        return kernel.read(step.query, key, value, chosen, scaling=step.scaling, visible=visible)
    if rows is None:  # one choice per query head: heads take the place of groups
        index, device = chosen.reshape(batch, groups, -1), step.query.device
        key, value = (
            gather_rows(states, index).view(batch, heads, -1, states.shape[3]).to(device)
            for states in (layer["key"], layer["value"])
        )
    else:
        key, value = rows
    if visible is not None:
        visible = _columns(visible.expand(batch, groups, -1, -1).repeat_interleave(heads // groups, 1), chosen)
    return step.attend(key, value, chosen, visible=visible)


def _columns(visible: Bool[Tensor, "batch heads one entries"], index: Int[Tensor, "batch heads chosen"]) -> Tensor:
    return visible.gather(3, index[:, :, None])

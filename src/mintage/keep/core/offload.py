"""Rows of keys and values that lie in the host's memory: fetched ahead by a guess, the rest when it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.keep.contract import Step
from mintage.keep.core.select import attend_to
from mintage.keep.core.storage import KeptCache, KeptLayer, gather_rows

__all__ = ["attend_to_fetched", "fetch_ahead", "forget_fetched", "prefetch_rate"]

_AHEAD = ("ahead", "ahead key", "ahead value")


def fetch_ahead(layer: KeptLayer, chosen: Int[Tensor, "batch choosers chosen"], device: torch.device) -> None:
    """Send for the rows `chosen` by a guess, ascending; they wait in the layer's state."""
    layer.state["ahead"] = chosen = chosen.sort(-1).values
    with _aside(device):
        for name in ("key", "value"):
            layer.state[f"ahead {name}"] = _fetched(layer[name], chosen, device)


def attend_to_fetched(
    layer: KeptLayer, step: Step, chosen: Int[Tensor, "batch choosers chosen"]
) -> Float[Tensor, "batch heads queries dim"]:
    """Attend to `chosen`, of which many rows have come already; the others are fetched now."""
    device = step.query.device
    _meet(device)
    ready, *fetched = (layer.state.pop(name) for name in _AHEAD)
    index = torch.searchsorted(ready, chosen).clamp(max=ready.shape[-1] - 1)
    missing = ready.gather(-1, index) != chosen
    late = _missed(layer, chosen, missing)
    rows = []
    for name, ahead in zip(("key", "value"), fetched, strict=True):
        row = ahead.gather(2, index[..., None].expand(*index.shape, ahead.shape[-1]))
        row[missing] = layer[name][late].to(device)
        rows.append(row)
    counted = layer.state.get("counted", missing.new_zeros(missing.shape[0], 2, dtype=torch.long))
    hits = (~missing).sum((1, 2))
    layer.state["counted"] = counted + torch.stack((hits, torch.full_like(hits, missing[0].numel())), 1)
    size = layer["key"].element_size() * (layer["key"].shape[3] + layer["value"].shape[3])
    layer.moved = size * (ready.numel() + int(missing.sum()))
    return attend_to(layer, step, chosen, rows=(rows[0], rows[1]))


def forget_fetched(layer: KeptLayer) -> None:
    """Drop rows that were fetched and not read."""
    for name in _AHEAD:
        layer.state.pop(name, None)


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

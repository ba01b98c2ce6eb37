"""What reducers are measured on: one model, its images and its own outputs, and the measurements that benches share.

Every arm sees the same batches in the same process. Quality is counted against the labels, where there are any, and
against the unmodified model's outputs; cost in multiply-adds, seconds of paired rounds, and bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mintage.errors import UserError
from mintage.measure import count_flops, peak_tensor_bytes, timed
from mintage.reduce.contract import Reducer
from mintage.reduce.core.attach import Attachment
from mintage.reduce.core.schedule import Anatomy

__all__ = ["Quality", "Subject", "decision_seconds", "evenly_spread", "plain_or"]


@dataclass(frozen=True)
class Quality:
    """How one arm did, by image.

    Parameters
    ----------
    correct
        1 where the first class is the label; None without labels.
    agrees
        1 where it is the unmodified model's.
    divergence
        KL of the unmodified model's classes to the arm's, in nats; of a model without classes, 1 minus the cosine of
        the pooled features.
    """

    correct: np.ndarray | None
    agrees: np.ndarray
    divergence: np.ndarray


class Subject:
    """A model in evaluation mode, and images for it.

    Parameters
    ----------
    model
        What a reducer attaches to.
    pixels
        Images as the model takes them.
    labels
        Their classes, as the model numbers them, or None.
    batch
        Images per forward.
    head
        Makes a map of every image from its patches' last rows; None where there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        pixels: Float[Tensor, "images 3 height width"],
        labels: Int[np.ndarray, " images"] | None = None,
        *,
        batch: int = 100,
        head: nn.Module | None = None,
    ) -> None:
        self.head = head
        if not len(pixels):
            raise UserError("no images to measure on; pass at least one")
        self.model, self.pixels, self.labels, self.batch = model.eval(), pixels, labels, batch
        with torch.inference_mode():
            self.classifies = hasattr(model(pixels[:1]), "logits") or isinstance(model(pixels[:1]), Tensor)

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Sizes of the model, with the patches that these images have."""
        with _KeepAll()(self.model) as session:
            self.outputs(self.pixels[:1])
            return replace(session.anatomy, patches=session.tokens[0] - session.anatomy.prefix)

    def outputs(self, pixels: Tensor) -> Float[Tensor, "images outputs"]:
        """Class scores of a batch, or pooled features of a model without classes."""
        with torch.inference_mode():
            out = self.model(pixels)
        if isinstance(out, Tensor):
            return out.float()
        return (out.logits if self.classifies else out.pooler_output).float()

    @cached_property
    def reference(self) -> Float[Tensor, "images outputs"]:
        """What the unmodified model gives."""
        return torch.cat([self.outputs(part) for part in self.pixels.split(self.batch)])

    def maps(self, reducer: Reducer | None) -> Float[Tensor, "images height width"]:
        """Maps that the head makes of the patches: each has the row of the token it went into, zeros if dropped."""
        assert self.head is not None
        found, prefix = [], self.anatomy.prefix
        with plain_or(reducer, self.model, trace=True) as session, torch.inference_mode():
            for part in self.pixels.split(self.batch):
                rows = self.model(part).last_hidden_state
                rows = rows if session is None else session.unmerge(rows)
                found.append(self.head(rows[:, prefix:], part.shape[-1]).float())
        return torch.cat(found)

    @cached_property
    def reference_maps(self) -> Float[Tensor, "images height width"]:
        """Those of the unmodified model."""
        return self.maps(None)

    def likeness(self, reducer: Reducer) -> np.ndarray | None:
        """Correlation of every image's map with the unmodified model's, [images]; None without a head."""
        if self.head is None:
            return None
        one, other = (maps.flatten(1).double() for maps in (self.maps(reducer), self.reference_maps))
        one, other = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
        return functional.cosine_similarity(one, other).numpy()

    def quality(self, reducer: Reducer | None) -> Quality:
        """Run every image under `reducer`."""
        with plain_or(reducer, self.model):
            out = torch.cat([self.outputs(part) for part in self.pixels.split(self.batch)])
        return self.judged(out)

    def judged(self, out: Float[Tensor, "images outputs"]) -> Quality:
        """Compare outputs with the labels and with the unmodified model."""
        own = self.reference
        if not self.classifies:
            distance = 1 - functional.cosine_similarity(out, own)
            return Quality(None, (distance < 0.05).double().numpy(), distance.double().numpy())
        first = out.argmax(1)
        divergence = functional.kl_div(out.log_softmax(1), own.log_softmax(1), log_target=True, reduction="none").sum(1)
        correct = None if self.labels is None else (first.numpy() == self.labels).astype(float)
        return Quality(correct, (first == own.argmax(1)).double().numpy(), divergence.double().numpy())

    # -- cost --

    def macs(self, reducer: Reducer | None) -> float:
        """Multiply-adds for one image, counted while it runs: the decision is in it."""
        with plain_or(reducer, self.model):
            return count_flops(lambda: self.outputs(self.pixels[:1])) / 2

    def peak_bytes(self, reducer: Reducer | None) -> int:
        """Most bytes of activations at one time, for one batch."""
        with plain_or(reducer, self.model):
            return peak_tensor_bytes(lambda: self.outputs(self.pixels[: self.batch]))

    def seconds(self, arms: Mapping[str, Reducer | None], turn: int) -> dict[str, float]:
        """Time one batch under every arm, the first in turn another one each time."""
        names = list(arms)
        first = turn % len(names)
        return {name: self.second(arms[name], turn) for name in names[first:] + names[:first]}

    def second(self, reducer: Reducer | None, turn: int) -> float:
        """Time one batch, in turn another one each time; attaching is not timed."""
        start = (turn * self.batch) % max(len(self) - self.batch + 1, 1)
        pixels = self.pixels[start : start + self.batch]
        with plain_or(reducer, self.model):
            return timed(lambda: self.outputs(pixels))[1]


@contextmanager
def plain_or(reducer: Reducer | None, model: nn.Module, *, trace: bool = False) -> Iterator[Attachment | None]:
    """Attach `reducer`, or nothing."""
    with nullcontext() if reducer is None else reducer(model, trace=trace) as session:
        yield session


@dataclass(frozen=True, kw_only=True, eq=False)
class _KeepAll(Reducer):
    """Attached to see what passes."""

    def kept(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Return all."""
        return (anatomy.patches,) * anatomy.layers

    def reduce(self, state: Any, evidence: Any, keep: int) -> Any:
        """Return what came."""
        return state

    @classmethod
    def tiny(cls) -> _KeepAll:
        """Make one."""
        return cls()


class _Clocked:
    """A reducer whose decisions are timed."""

    def __init__(self, reducer: Reducer) -> None:
        self._reducer, self.spent = reducer, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def reduce(self, *args: Any) -> Any:
        made, seconds = timed(lambda: self._reducer.reduce(*args))
        self.spent += seconds
        return made


def decision_seconds(reducer: Reducer, subject: Subject, *, repeats: int = 5) -> float:
    """Median seconds per batch that go into deciding and moving tokens, over all layers; attention it forces is not."""
    found = []
    with reducer(subject.model) as session:
        clocked: Any = _Clocked(reducer)
        session.reducer = clocked
        for _ in range(repeats + 1):
            clocked.spent = 0.0
            subject.outputs(subject.pixels[: subject.batch])
            found.append(clocked.spent)
    return float(np.median(found[1:]))


def evenly_spread(number: int, of: int) -> list[int]:
    """Places of `number` of `of` things, evenly."""
    number = min(number, of)
    return [i * of // number for i in range(number)]

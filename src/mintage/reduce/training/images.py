"""Labelled images as a classifier takes them: what reducers are trained on.

Not here: augmentation and batches (`mintage.reduce.training.vit`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from mintage.data.images import Images, read_cifar10, read_images
from mintage.errors import UserError
from mintage.reduce.contract import Reducer
from mintage.reduce.training.vit import ViTRecipe, top1
from mintage.vision import ImageClassifier

__all__ = [
    "Report",
    "TrainingImages",
    "accuracy",
    "logits_of",
    "numbered",
    "on_device",
    "read_training_images",
    "silent",
    "test_images",
]

Report = Callable[[str, int, int], None]
"""Progress: ``report(stage, done, of)``."""

_HELD_OUT = 1000
_SEED = 0  # that of ``mintage train vit``: what it held out is held out here


def silent(stage: str, done: int, of: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class TrainingImages:
    """Images to train on, and some that are held out for choices made before test images are looked at.

    Attributes
    ----------
    classifier
        The teacher.
    pixels, labels
        Training images, 0 to 255, of the size that the classifier takes, and their classes as it numbers them.
    held_out
        The others.
    data
        Where they are from.
    """

    classifier: ImageClassifier
    pixels: UInt8[np.ndarray, "images height width 3"]
    labels: Int[np.ndarray, " images"]
    held_out: Images
    data: str

    def batches(self, batch_rows: int, *, cut: int, seed: int) -> Callable[[int], dict[str, Tensor]]:
        """Return what makes the batch of any index: augmented, normalised pixels and labels."""
        made = ViTRecipe(
            self.classifier.model,
            self.pixels,
            self.labels,
            preprocess=self.classifier.preprocess,
            batch_rows=batch_rows,
            cut=cut,
            seed=seed,
        )
        return made.batch


def read_training_images(
    classifier: ImageClassifier, source: str | Path | None = None, *, limit: int | None = None
) -> TrainingImages:
    """Read images for a classifier; a tenth of them, at most 1,000, is held out.

    Parameters
    ----------
    classifier
        Decides the size and names the classes.
    source
        A folder with a sub-folder per class, or an ``.npz``; None takes CIFAR-10's training images.
    limit
        Images at most.

    Raises
    ------
    UserError
        Images are missing or broken, have no labels, or a class that the classifier does not know.
    """
    images = read_cifar10()[0] if source is None else read_images(source)
    if limit is not None and limit < len(images):
        images = images.take(i * len(images) // limit for i in range(limit))
    name = "CIFAR-10, training images" if source is None else Path(source).name
    if images.labels is None or not images.classes:
        raise UserError(f"the images in {name} have no labels; pass a folder with a sub-folder per class")
    images = numbered(images, classifier)
    order = np.random.default_rng(_SEED).permutation(len(images))
    held_out, rows = np.split(order, [min(_HELD_OUT, len(images) // 10)])
    train = images.take(rows.tolist())
    assert train.labels is not None
    return TrainingImages(classifier, _sized(train, classifier), train.labels, images.take(held_out.tolist()), name)


def test_images() -> Images:
    """Return CIFAR-10's test images."""
    return read_cifar10()[1]


def numbered(images: Images, classifier: ImageClassifier) -> Images:
    """Return labelled images with their labels as the classifier numbers its classes.

    Raises
    ------
    UserError
        It does not know one of them.
    """
    known = {label.lower(): place for place, label in enumerate(classifier.labels)}
    foreign = [label for label in images.classes if label.lower() not in known]
    if foreign:
        raise UserError(f"{classifier.name} knows no class {foreign[0]!r}; name the sub-folders as its labels")
    return replace(images, labels=np.array([known[label.lower()] for label in images.classes])[images.labels])


def _sized(images: Images, classifier: ImageClassifier) -> UInt8[np.ndarray, "images height width 3"]:
    prepared = classifier.preprocess
    if {p.shape[:2] for p in images.pixels} == {prepared.size}:
        return images.stacked()
    as_pixels = replace(prepared, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    made = [as_pixels([p]).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1) for p in images.pixels]
    return torch.cat(made).numpy()


def logits_of(out: Any) -> Tensor:
    """Return the class scores of what a classifier's forward returned."""
    return out if isinstance(out, Tensor) else out.logits


def on_device(model: nn.Module, device: str) -> nn.Module:
    """Return the model where it is for ``"cpu"``, else a copy on the device that accelerate finds."""
    if device == "cpu":
        return model
    from accelerate import Accelerator

    return copy.deepcopy(model).to(Accelerator().device)


def accuracy(reducer: Reducer, classifier: ImageClassifier, images: Images, report: Report = silent) -> str:
    """Return top-1 accuracy with and without `reducer`, as JSON: low, value, high of each."""
    with reducer(classifier.model):
        reduced = top1(classifier, images, report=report)
    plain = top1(classifier, images, report=report)
    return json.dumps({"top1": [round(x, 4) for x in reduced], "unmodified": [round(x, 4) for x in plain]})

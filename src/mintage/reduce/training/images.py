"""Labelled images as a classifier takes them, and what all trainings on them share.

Not here: augmentation and batches (`mintage.reduce.training.vit_recipe`).
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
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
from mintage.options import option
from mintage.progress import Progress, silent
from mintage.reduce.contract import Reducer
from mintage.reduce.training.vit_recipe import ViTRecipe, top1
from mintage.train.recipe import Settings
from mintage.train.training import Saved, Training, Work
from mintage.vision import SHIPPED, ImageClassifier, load_image_classifier

__all__ = [
    "ImageTraining",
    "TrainingImages",
    "accuracy",
    "held_out_rows",
    "logits_of",
    "numbered",
    "on_device",
    "read_training_images",
    "test_images",
]

_HELD_OUT = 1000
_SEED = 0  # that of ``mintage train vit``: what it held out is held out here


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

    def described(self, used: str) -> str:
        """Say how many images were `used` (``"trained on"``), for notes."""
        return f"{self.data}: {len(self.labels)} {used}, {len(self.held_out)} held out"


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
    held_out, rows = held_out_rows(len(images), _SEED)
    train = images.take(rows.tolist())
    assert train.labels is not None
    return TrainingImages(classifier, _sized(train, classifier), train.labels, images.take(held_out.tolist()), name)


def held_out_rows(count: int, seed: int) -> tuple[Int[np.ndarray, " held"], Int[np.ndarray, " rest"]]:
    """Draw which images are held out, a tenth or 1,000 of them, and return them and the others."""
    order = np.random.default_rng(seed).permutation(count)
    held_out, rows = np.split(order, [min(_HELD_OUT, count // 10)])
    return held_out, rows


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
    known = {label.lower(): position for position, label in enumerate(classifier.labels)}
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


def accuracy(reducer: Reducer, classifier: ImageClassifier, images: Images, progress: Progress = silent) -> str:
    """Return top-1 accuracy with and without `reducer`, as JSON: low, value, high of each."""
    with reducer(classifier.model):
        reduced = top1(classifier, images, progress=progress)
    plain = top1(classifier, images, progress=progress)
    return json.dumps({"top1": [round(x, 4) for x in reduced], "unmodified": [round(x, 4) for x in plain]})


@dataclass(frozen=True, kw_only=True)
class ImageTraining(Training, ABC):
    """A training for one image classifier."""

    model: str = option(SHIPPED, "The shipped classifier, a file, a folder, a hub id, or timm:name.")
    images: str | None = option(None, "Folder with a sub-folder per class, or .npz; default: CIFAR-10.")
    batch_rows: int = option(64, "Images per step.", least=1)

    def learn(self, work: Work) -> Saved:
        """Load classifier and images, and train; see `teach`."""
        return self.teach(read_training_images(load_image_classifier(self.model), self.images), work)

    @abstractmethod
    def teach(self, images: TrainingImages, work: Work) -> Saved:
        """Train, and return what was made."""

    def settings(self, **given: Any) -> Settings:
        """Make the settings of a stage."""
        return Settings(**{"seed": self.seed, "log_every": 20, **given})

    def tested(self, reducer: Reducer, images: TrainingImages, work: Work) -> dict[str, str]:
        """Return notes: the data, and the accuracy on images held out and, of CIFAR-10, on test images."""
        notes = {"data": images.described("trained on")}
        for name, part in (("held out", images.held_out), ("test", None if self.images else test_images())):
            if part is not None and len(part):
                notes[name] = accuracy(reducer, images.classifier, part, work.progress)
        return notes

    def summary(self, made: Any) -> str:
        """Tell the accuracy on images held out."""
        return f"accuracy on images held out {made.notes.get('held out', 'not measured')}"

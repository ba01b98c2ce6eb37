"""Batches of augmented images and their loss, for a classifier that learns or teaches, and how good it is.

Not here: the training (`mintage.reduce.training.vit`), augmentation (`mintage.reduce.training.augmentation`).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

from mintage.data.images import Images
from mintage.errors import UserError
from mintage.measure.statistics import Interval, bootstrap
from mintage.progress import Progress, silent
from mintage.reduce.training.augmentation import augmented
from mintage.vision import ImageClassifier, Preprocessing

__all__ = ["CIFAR_PREPROCESSING", "ViTRecipe", "top1"]

CIFAR_PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Means and standard deviations of CIFAR-10's training images."""


@dataclass(eq=False)
class ViTRecipe:
    """What the training loop needs: augmented images, and the cross-entropy with smoothed labels.

    Parameters
    ----------
    module
        A classifier.
    pixels, labels
        Training images, 0 to 255, and their classes.
    preprocess
        Normalises them.
    batch_rows
        Images per batch.
    small, small_batches
        The first `small_batches` batches are shrunk to `small` pixels a side; positions are interpolated.
    cut
        See `augmented`.
    smoothing
        Share of a label's weight that is spread over all classes.
    seed
        Of the order and the augmentation.

    Raises
    ------
    UserError
        There are fewer images than a batch has.
    """

    module: Any
    pixels: UInt8[np.ndarray, "images height width 3"]
    labels: Int[np.ndarray, " images"]
    _: KW_ONLY
    preprocess: Preprocessing = CIFAR_PREPROCESSING
    batch_rows: int = 128
    small: int = 24
    small_batches: int = 0
    cut: int = 8
    smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_rows <= len(self.pixels):
            raise UserError(
                f"batch_rows={self.batch_rows} with {len(self.pixels)} training images; pass 1 to {len(self.pixels)}"
            )

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return augmented, normalised pixels and their labels."""
        epoch, position = divmod(index, len(self.pixels) // self.batch_rows)
        rows = self._order(epoch)[position * self.batch_rows : (position + 1) * self.batch_rows].numpy()
        generator = self._generator(index)
        pixels = augmented(torch.from_numpy(self.pixels[rows]), generator, cut=self.cut)
        if index < self.small_batches:
            size = (self.small, self.small)
            pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
        pixels = self.preprocess.normalised(pixels).contiguous(memory_format=torch.channels_last)
        return {"pixels": pixels, "labels": torch.from_numpy(self.labels[rows])}

    def _order(self, epoch: int) -> Tensor:
        if getattr(self, "_shuffled", (-1,))[0] != epoch:
            self._shuffled = (epoch, torch.randperm(len(self.pixels), generator=self._generator(2**31 + epoch)))
        return self._shuffled[1]

    def _generator(self, number: int) -> torch.Generator:
        # a generator of the CPU sees only the low 32 bits
        return torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**32)

    def loss(self, module: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the cross-entropy, and the share of the batch that is classified right."""
        pixels, labels = batch["pixels"], batch["labels"]
        logits = module(pixel_values=pixels, interpolate_pos_encoding=True).logits.float()
        right = (logits.detach().argmax(-1) == labels).float().mean().item()
        return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing), {"right": right}


@torch.inference_mode()
def top1(
    classifier: ImageClassifier, images: Images, *, batch_rows: int = 250, progress: Progress = silent
) -> Interval:
    """Share of images whose likeliest class is their label, with its interval over images.

    Parameters
    ----------
    classifier
        The model and its preprocessing.
    images
        Labelled.
    batch_rows
        Images per forward.
    progress
        ``progress("test", done, of)``.

    Raises
    ------
    UserError
        The images have no labels.
    """
    if images.labels is None:
        raise UserError("the images have no labels; accuracy needs a folder with a sub-folder per class, or an .npz")
    classifier.model.eval()
    right: list[bool] = []
    for first in range(0, len(images), batch_rows):
        pixels = classifier.preprocess(images.pixels[first : first + batch_rows])
        guesses = classifier.logits(pixels).argmax(-1).numpy()
        right += (guesses == images.labels[first : first + batch_rows]).tolist()
        progress("test", len(right), len(images))
    return bootstrap(np.asarray(right, dtype=float))

"""A model and the images that belong to it, or those of a folder: what the joint comparison measures on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mintage.bench.reduce.quality import Subject, evenly_spread
from mintage.data.images import Images, OnError, read_cifar10, read_imagenet_sample, read_images
from mintage.errors import UserError
from mintage.saliency import load_saliency
from mintage.vision import SHIPPED, Preprocessing, load_image_classifier, load_vit_s14

__all__ = ["VIT_S14", "GivenImages", "given_images"]

VIT_S14 = "vit-s14"
"""Name of the backbone in DINOv2's layout that lies in the data folder."""


class GivenImages(Subject):
    """A model and images for it.

    Parameters
    ----------
    model, preprocess
        What images go through.
    images
        Decoded.
    data
        What they are called in rows.
    device
        Of the model.
    **known
        ``labels`` and ``head``, see `Subject`.
    """

    def __init__(
        self, model: Any, preprocess: Preprocessing, images: Images, *, data: str, device: str, **known: Any
    ) -> None:
        self.preprocess, self.images, self.data, self.device = preprocess, images, data, device
        super().__init__(model, preprocess(images.pixels).to(device), **known)

    @property
    def any_size(self) -> bool:
        """Whether the model interpolates its positions by itself."""
        return type(self.model).__name__.startswith("Dinov2")

    def at_size(self, side: int, count: int, batch: int) -> Subject:
        """Return some of the images at another size."""
        prepared = replace(self.preprocess, size=(side, side), shortest=side)
        pixels: Tensor = prepared(self.images.take(range(min(count, len(self.images)))).pixels)
        return Subject(self.model, pixels.to(self.device), batch=batch)


def given_images(model: str, images: str | None, *, limit: int | None, on_error: OnError, device: str) -> GivenImages:
    """Load a model and the images that belong to it, or those of a folder.

    Parameters
    ----------
    model
        What `mintage.vision.load_image_classifier` takes, or ``"vit-s14"``.
    images, on_error, limit
        See `mintage.data.images.read_images`; None takes what belongs to the model.
    device
        Of the model.

    Raises
    ------
    UserError
        No images belong to the model, or something cannot be loaded.
    """
    classes: Sequence[str] = ()
    head = None
    if model == VIT_S14:
        network, preprocess = load_vit_s14()
        network.to(device)
        head = load_saliency().to(device)
    else:
        loaded = load_image_classifier(model, device=device)
        network, preprocess, classes = loaded.model, loaded.preprocess, loaded.labels
    if images is not None:
        found, data = read_images(images, on_error=on_error, limit=limit), Path(images).name
    elif model == SHIPPED:
        test = read_cifar10()[1]
        found, data = test.take(evenly_spread(limit or len(test), len(test))), "CIFAR-10, test images"
    elif model == VIT_S14:
        found, data = read_imagenet_sample(limit or 200), "ImageNet sample"
    else:
        raise UserError(f"no images belong to {model}; pass --images with a folder of them (sub-folders are classes)")
    if found.skipped:
        data += f" ({len(found.skipped)} broken ones skipped)"
    labels = _matched(found, classes)
    return GivenImages(network, preprocess, found, data=data, device=device, labels=labels, head=head)


def _matched(images: Images, classes: Sequence[str]) -> np.ndarray | None:
    """Number the images' labels as the model numbers its classes, by name; None where a name is not among them."""
    if images.labels is None:
        return None
    known = {name.lower(): number for number, name in enumerate(classes)}
    numbered = [known.get(name.lower()) for name in images.classes]
    if None in numbered or not numbered:
        return None
    return np.array(numbered)[images.labels]

"""Train a small vision transformer whose accuracy is worth measuring token reduction on.

On an under-trained transformer dropping tokens at random beats every method; this recipe reaches a well-trained one in
a CPU's hours: a convolution stem (`mintage.vision.SmallViT`), random crops, flips and cut-out (DeVries and Taylor,
arXiv 1708.04552), smoothed labels, smaller images in the first part of the run (progressive learning: Tan and Le,
arXiv 2104.00298), Muon, and an average of the weights. No token is ever left out while training, so that no way of
reducing them has been practised.

Not here: the loop (`mintage.train`), the model (`mintage.vision`), distillation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from mintage.data.images import Images, read_cifar10
from mintage.errors import UserError
from mintage.measure import Interval, bootstrap
from mintage.train import Settings, train
from mintage.vision import ImageClassifier, Preprocessing, SmallViT, load_image_classifier, save_image_classifier

__all__ = ["CIFAR_PREPROCESSING", "Report", "ViTRecipe", "augmented", "top1", "train_vit"]

CIFAR_PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
"""Means and standard deviations of CIFAR-10's training images."""

Report = Callable[[str, int, int], None]

_HELD_OUT = 1000  # training images that are not trained on, for choices made before the test images are looked at
_PADDING = 4
_SAVE_EVERY = 100


def _silent(stage: str, done: int, of: int) -> None:
    pass


# -- the lesson ----------------------------------------------------------------------------------------------------


def augmented(
    pixels: UInt8[Tensor, "batch height width 3"], generator: torch.Generator, *, cut: int = 8
) -> Float[Tensor, "batch 3 height width"]:
    """Shift, flip and cut out, each image its own way, without a loop over images.

    Parameters
    ----------
    pixels
        0 to 255.
    generator
        Of everything random.
    cut
        Side of the square that is replaced by the image's mean; 0 for none.

    Returns
    -------
    Tensor
        0 to 255: a crop of the image mirrored at its edges by 4 pixels, mirrored from left to right half the time.
    """
    batch, height, width, _ = pixels.shape

    def drawn(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), generator=generator)

    rows = _mirrored(drawn(2 * _PADDING + 1) - _PADDING + torch.arange(height), height)
    columns = _mirrored(drawn(2 * _PADDING + 1) - _PADDING + torch.arange(width), width)
    columns = torch.where(drawn(2).bool(), columns.flip(1), columns)
    image = torch.arange(batch)[:, None, None]
    out = pixels[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).float()
    if cut:
        top, left = drawn(height) - cut // 2, drawn(width) - cut // 2
        inside_rows = (torch.arange(height) >= top) & (torch.arange(height) < top + cut)
        inside_columns = (torch.arange(width) >= left) & (torch.arange(width) < left + cut)
        hole = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
        out = torch.where(hole, out.mean((2, 3), keepdim=True), out)
    return out


def _mirrored(places: Int[Tensor, "batch size"], size: int) -> Int[Tensor, "batch size"]:
    """Reflect places outside 0..size-1, the edge itself not repeated."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


class ViTRecipe:
    """What the training loop needs: augmented images, and the cross-entropy with smoothed labels.

    Parameters
    ----------
    model
        Made by `SmallViT.build`.
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

    def __init__(
        self,
        model: Any,
        pixels: UInt8[np.ndarray, "images height width 3"],
        labels: Int[np.ndarray, " images"],
        *,
        preprocess: Preprocessing = CIFAR_PREPROCESSING,
        batch_rows: int = 128,
        small: int = 24,
        small_batches: int = 0,
        cut: int = 8,
        smoothing: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not 1 <= batch_rows <= len(pixels):
            raise UserError(f"batch_rows={batch_rows} with {len(pixels)} training images; pass 1 to {len(pixels)}")
        self.module = model
        self.pixels, self.labels = torch.from_numpy(pixels), torch.from_numpy(labels)
        self.preprocess, self.batch_rows, self.small, self.small_batches = preprocess, batch_rows, small, small_batches
        self.cut, self.smoothing, self.seed = cut, smoothing, seed

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return augmented, normalised pixels and their labels."""
        epoch, place = divmod(index, len(self.pixels) // self.batch_rows)
        rows = self._order(epoch)[place * self.batch_rows : (place + 1) * self.batch_rows]
        generator = self._generator(index)
        pixels = augmented(self.pixels[rows], generator, cut=self.cut)
        if index < self.small_batches:
            size = (self.small, self.small)
            pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
        pixels = self.preprocess.normalised(pixels).contiguous(memory_format=torch.channels_last)
        return {"pixels": pixels, "labels": self.labels[rows]}

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


# -- how good it is ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def top1(classifier: ImageClassifier, images: Images, *, batch_rows: int = 250, report: Report = _silent) -> Interval:
    """Share of images whose likeliest class is their label, with its interval over images.

    Parameters
    ----------
    classifier
        The model and its preprocessing.
    images
        Labelled.
    batch_rows
        Images per forward.
    report
        Progress.

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
        report("test", len(right), len(images))
    return bootstrap(np.asarray(right, dtype=float))


# -- the whole -----------------------------------------------------------------------------------------------------


def train_vit(
    output: str | Path,
    *,
    folder: str | Path,
    data: Callable[[], tuple[Images, Images]] = read_cifar10,
    sizes: SmallViT | None = None,
    epochs: float = 18.0,
    batch_rows: int = 128,
    lr: float = 3e-3,
    optimiser: str = "muon",
    weight_decay: float = 0.05,
    ema: float = 0.998,
    small: int = 24,
    small_share: float = 0.5,
    cut: int = 8,
    bf16: bool = False,
    device: str = "cpu",
    seed: int = 0,
    command: str = "",
    report: Report = _silent,
) -> ImageClassifier:
    """Train on CIFAR-10's training images, test once on its test images, save.

    A killed run goes on from the checkpoint in `folder`. 1,000 training images are held out; accuracy on them, for
    choosing settings, and on the test images goes into the file. Processes started together (``torchrun
    --nproc-per-node 2 -m mintage.cli train vit ...``) share the batch and the work.

    Parameters
    ----------
    output
        Safetensors file to write, see `mintage.vision.save_image_classifier`.
    folder
        Keeps checkpoint and log.
    data
        Returns training and test images.
    sizes
        Of the model; default `SmallViT()` with as many classes as the images have.
    epochs
        Passes over the training images.
    batch_rows
        Images per step, of all processes together.
    lr, optimiser, weight_decay, ema, bf16, seed
        See `mintage.train.Settings`; warm-up over a twentieth of the steps, then cosine.
    small, small_share
        Side of the images in the first `small_share` of the steps; a multiple of the patch's side.
    cut
        See `augmented`.
    device
        ``"cpu"``, or anything else for what accelerate finds.
    command
        Kept in the file: what repeats the training.
    report
        Called as ``report(stage, done, of)``.

    Returns
    -------
    ImageClassifier
        As read from `output`.

    Raises
    ------
    UserError
        Images are missing or of different sizes, a setting is out of range, or `folder` holds another run.
    """
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if not 0 <= small_share <= 1:
        raise UserError(f"small_share={small_share} is outside [0, 1]; pass e.g. 0.5")
    if not epochs > 0:
        raise UserError(f"epochs={epochs} is not positive; pass e.g. 18")
    if batch_rows % processes:
        raise UserError(f"batch_rows={batch_rows} cannot be shared by {processes} processes; pass a multiple")
    training, test = data()
    if training.labels is None:
        raise UserError("the training images have no labels")
    pixels = training.stacked()
    sizes = sizes or SmallViT(image_size=pixels.shape[1], classes=len(training.classes))
    if pixels.shape[1:3] != (sizes.image_size, sizes.image_size):
        raise UserError(f"the images have {pixels.shape[1]}x{pixels.shape[2]} pixels, the model {sizes.image_size}")
    if small_share and (small % sizes.patch_size or not 0 < small <= sizes.image_size):
        raise UserError(f"small={small} is not a multiple of {sizes.patch_size} up to {sizes.image_size}")
    order = np.random.default_rng(seed).permutation(len(training))
    held_out, rows = np.split(order, [min(_HELD_OUT, len(training) // 10)])
    steps = max(round(epochs * (len(rows) // batch_rows)), 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = sizes.build(labels=training.classes)
    preprocess = replace(CIFAR_PREPROCESSING, size=(sizes.image_size, sizes.image_size))
    recipe = ViTRecipe(
        model.to(memory_format=torch.channels_last),
        pixels[rows],
        training.labels[rows],
        preprocess=preprocess,
        batch_rows=batch_rows // processes,
        small=small,
        small_batches=round(small_share * steps) * processes,
        cut=cut,
        seed=seed,
    )
    settings = Settings(
        steps=steps,
        lr=lr,
        warmup=steps // 20,
        optimiser=optimiser,
        weight_decay=weight_decay,
        ema=ema,
        bf16=bf16,
        seed=seed,
        save_every=_SAVE_EVERY,
        log_every=20,
    )
    folder = Path(folder)
    trained = train(
        recipe,
        folder,
        settings,
        device=device,
        on_step=lambda done, of: report("train", done, of) if rank == 0 else None,
    )
    made = ImageClassifier(model.cpu().eval(), preprocess, training.classes, str(output))
    if rank:
        return made
    model.half().float()  # measured as it is saved
    notes = {
        "command": command,
        "data": f"{len(rows)} training images, {len(held_out)} held out, {len(test)} test images",
        "settings": json.dumps(
            {"epochs": epochs, "steps": steps, "batch_rows": batch_rows, "processes": processes, "lr": lr}
            | {"optimiser": optimiser, "weight_decay": weight_decay, "ema": ema, "bf16": bf16, "seed": seed}
            | {"small": small, "small_share": small_share, "cut": cut}
        ),
        "seconds": f"{trained.seconds:.0f}",
        "held out": _as_json(top1(made, training.take(held_out.tolist()), report=report)),
        "test": _as_json(top1(made, test, report=report)),
        "log": _thinned((folder / "log.jsonl").read_text()),
    }
    save_image_classifier(model, sizes, preprocess, training.classes, output, notes=notes)
    return load_image_classifier(str(output))


def _as_json(share: Interval) -> str:
    return json.dumps({"low, top1, high": [round(x, 4) for x in share]})


def _thinned(log: str, rows: int = 100) -> str:
    """Keep some rows of a log, evenly spread, the last among them."""
    lines = log.splitlines()
    kept: Sequence[str] = lines[:: -max(len(lines) // rows, 1)]
    return "".join(line + "\n" for line in reversed(kept))

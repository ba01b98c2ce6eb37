"""Train a small vision transformer whose accuracy is worth measuring token reduction on.

On an under-trained transformer dropping tokens at random beats every method; this recipe reaches a well-trained one in
a CPU's hours: a convolution stem (`mintage.vision.SmallViT`), random crops, flips and cut-out (DeVries and Taylor,
arXiv 1708.04552), smoothed labels, smaller images in the first part of the run (progressive learning: Tan and Le,
arXiv 2104.00298), Muon, and an average of the weights. No token is ever left out while training, so that no way of
reducing them has been practised.

Not here: the loop (`mintage.train`), augmentation and loss (`mintage.reduce.training.vit_recipe`), distillation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from mintage.data.images import Images, read_cifar10
from mintage.errors import UserError
from mintage.measure.statistics import Interval
from mintage.options import option
from mintage.reduce.training.images import held_out_rows
from mintage.reduce.training.vit_recipe import CIFAR_PREPROCESSING, ViTRecipe, top1
from mintage.train.recipe import Settings
from mintage.train.training import Training, Work, is_first, processes
from mintage.vision import ImageClassifier, SmallViT, save_image_classifier

__all__ = ["TrainedViT", "ViTTraining"]


@dataclass(frozen=True)
class TrainedViT:
    """A trained classifier, which writes itself to a file, and the sizes that it was made with."""

    classifier: ImageClassifier
    sizes: SmallViT

    def save(self, path: Path, notes: Mapping[str, str]) -> None:
        """Write what `mintage.vision.load_image_classifier` reads."""
        made = self.classifier
        said = {**made.notes, **notes}
        save_image_classifier(made.model, self.sizes, made.preprocess, made.labels, path, notes=said)


@dataclass(frozen=True, kw_only=True)
class ViTTraining(Training):
    """Train a small vision transformer on CIFAR-10 (from $MINTAGE_DATA, else the hub), and test it once.

    1,000 training images are held out; accuracy on them, for choosing settings, and on the test images goes into the
    file. Processes started together (torchrun) share the batch and the work.
    """

    name: ClassVar[str] = "vit"
    examples: ClassVar[tuple[str, ...]] = (
        "mintage train vit --out vit.safetensors",
        "torchrun --nproc-per-node 2 -m mintage.cli train vit --out vit.safetensors",
    )
    after: ClassVar[str] = "mintage bench pitome --model vit.safetensors"

    epochs: float = option(18.0, "Passes over the training images.", above=0)
    batch_rows: int = option(128, "Images per step, of all processes together.", least=1)
    lr: float = option(3e-3, "Peak learning rate (warm-up over a twentieth of the steps, then cosine).", above=0)
    optimiser: Literal["adamw", "muon"] = option("muon", "Of linear layers; all else takes AdamW's steps.")
    weight_decay: float = option(0.05, "Of weights of two or more dimensions.", least=0)
    ema: float = option(0.998, "Decay of the average of the weights that is kept; 0 keeps none.", least=0, below=1)
    hidden: int = option(128, "Width of the transformer.", least=1)
    layers: int = option(8, "Its blocks.", least=1)
    heads: int = option(4, "Its attention heads.", least=1)
    stem: tuple[int, ...] = option((32, 64, 128), "Channels of the stem; all but the first halve the sides.", least=1)
    stem_blocks: tuple[int, ...] = option((0, 1, 0), "Residual blocks after each of them.", least=0)
    small: int = option(24, "Side of the images in the first part of the run.", least=1)
    small_share: float = option(0.5, "How much of the run that part is.", least=0, most=1)
    cut: int = option(8, "Side of the square that is cut out of an image; 0 for none.", least=0)
    bf16: bool = option(False, "Compute the loss in bfloat16.")

    def learn(self, work: Work) -> TrainedViT:
        """Train on CIFAR-10's training images, and test once on its test images.

        Raises
        ------
        UserError
            Images are missing, have no labels or are not square, or settings do not go with them.
        """
        training, test = read_cifar10()
        if training.labels is None:
            raise UserError("the training images have no labels")
        pixels = training.stacked()
        sizes = self._sizes(pixels, training)
        held_out, rows = held_out_rows(len(training), self.seed)
        steps = max(round(self.epochs * (len(rows) // self.batch_rows)), 1)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = sizes.build(labels=training.classes)
        preprocess = replace(CIFAR_PREPROCESSING, size=(sizes.image_size, sizes.image_size))
        recipe = ViTRecipe(
            model.to(memory_format=torch.channels_last),
            pixels[rows],
            training.labels[rows],
            preprocess=preprocess,
            batch_rows=self.batch_rows // processes(),
            small=self.small,
            small_batches=round(self.small_share * steps) * processes(),
            cut=self.cut,
            seed=self.seed,
        )
        trained = work.stage("train", recipe, self.settings(steps))
        made = ImageClassifier(model.cpu().eval(), preprocess, training.classes, self.name)
        if not is_first():
            return TrainedViT(made, sizes)
        model.half().float()  # measured as it is saved
        notes = {
            "data": f"{len(rows)} training images, {len(held_out)} held out, {len(test)} test images",
            "steps": str(steps),
            "processes": str(processes()),
            "seconds": f"{trained.seconds:.0f}",
            "held out": _as_json(top1(made, training.take(held_out.tolist()), progress=work.progress)),
            "test": _as_json(top1(made, test, progress=work.progress)),
            "log": _thinned((work.folder / "train" / "log.jsonl").read_text()),
        }
        return TrainedViT(replace(made, notes=notes), sizes)

    def _sizes(self, pixels: np.ndarray, images: Images) -> SmallViT:
        _, height, width, _ = pixels.shape
        if height != width:
            raise UserError(f"the images have {height}x{width} pixels; the model takes square ones")
        if self.batch_rows % processes():
            raise UserError(
                f"batch_rows={self.batch_rows} cannot be shared by {processes()} processes; pass a multiple"
            )
        own = {name: getattr(self, name) for name in ("hidden", "layers", "heads", "stem", "stem_blocks")}
        made = SmallViT(image_size=height, classes=len(images.classes), **own)
        if self.small_share and (self.small % made.patch_size or self.small > height):
            raise UserError(f"small={self.small} is not a multiple of {made.patch_size} up to {height}")
        return made

    def settings(self, steps: int) -> Settings:
        """Return how the loop trains."""
        own = {name: getattr(self, name) for name in ("lr", "optimiser", "weight_decay", "ema", "bf16", "seed")}
        return Settings(steps=steps, warmup=steps // 20, log_every=20, **own)

    def summary(self, made: TrainedViT) -> str:
        """Tell the accuracy on test images."""
        return f"test accuracy {made.classifier.notes['test']}"


def _as_json(share: Interval) -> str:
    return json.dumps({"low, top1, high": [round(x, 4) for x in share]})


def _thinned(log: str, rows: int = 100) -> str:
    """Keep some rows of a log, evenly spread, the last among them."""
    lines = log.splitlines()
    kept = lines[:: -max(len(lines) // rows, 1)]
    return "".join(line + "\n" for line in reversed(kept))

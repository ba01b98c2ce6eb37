"""Images: a folder of files, one ``.npz`` of JPEG strings laid end to end, and CIFAR-10.

Not here: resizing and normalising, which belong to a model (`mintage.vision`); augmentation, which belongs to a
training.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from mintage.data.sets import SETS, data_file, find_data
from mintage.errors import UserError, missing_extra

__all__ = ["CIFAR10", "Images", "OnError", "read_cifar10", "read_imagenet_sample", "read_images"]

OnError = str
"""What to do with a broken image: ``"refuse"`` or ``"skip"`` it."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Names of CIFAR-10's classes, in the order of its labels."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
_FILES = ("cifar10_jpeg.npz", "cifar10_train_rest_jpeg.npz")
_HUB = SETS["cifar10"].hub
_IMAGENET = "imagenet_sample_224_jpeg.npz"


@dataclass(frozen=True)
class Images:
    """Decoded images with what is known about them.

    Attributes
    ----------
    pixels
        RGB, one array of shape (height, width, 3) each.
    names
        Where each is from.
    labels
        Class of each, or None.
    classes
        Names of the classes; empty where unknown.
    is_test
        Whether each belongs to the test split, or None.
    skipped
        Images that could not be decoded.
    """

    pixels: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    names: Sequence[str]
    labels: Int[np.ndarray, " images"] | None = None
    classes: tuple[str, ...] = ()
    is_test: Bool[np.ndarray, " images"] | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Iterable[int]) -> Images:
        """Return some of the images, in this order."""
        rows = list(rows)
        return Images(
            pixels=[self.pixels[i] for i in rows],
            names=[self.names[i] for i in rows],
            labels=None if self.labels is None else self.labels[rows],
            classes=self.classes,
            is_test=None if self.is_test is None else self.is_test[rows],
            skipped=self.skipped,
        )

    def stacked(self) -> UInt8[np.ndarray, "images height width 3"]:
        """Return all pixels as one array.

        Raises
        ------
        UserError
            The images are not all of one size.
        """
        sizes = {p.shape[:2] for p in self.pixels}
        if len(sizes) != 1:
            raise UserError(f"the images have {len(sizes)} different sizes; resize them to one")
        return np.stack(self.pixels)


def read_images(source: str | Path, *, on_error: OnError = "refuse", limit: int | None = None) -> Images:
    """Read images.

    Parameters
    ----------
    source
        An image, a folder of images (read in order of their paths; where all of them stand in sub-folders, a
        sub-folder is a class), or an ``.npz`` with ``jpeg`` (bytes end to end) and ``offsets``, and optionally
        ``labels``, ``classes`` (or ``name``, one per label) and ``is_test``.
    on_error
        ``"refuse"`` a broken image with its name, or ``"skip"`` it and list it in `Images.skipped`.
    limit
        Read this many at most, spread evenly over the source.

    Raises
    ------
    UserError
        Pillow is missing, the source does not exist, is damaged or holds no image, an image is broken, or `on_error`
        is unknown.
    """
    if on_error not in ("refuse", "skip"):
        raise UserError(f"on_error={on_error!r}; pass 'refuse' or 'skip'")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit}; pass at least 1")
    path = Path(source)
    if not path.exists():
        raise UserError(f"{path} does not exist; pass an image, a folder of images or an .npz of JPEG strings")
    made = _from_npz(path, on_error, limit) if path.suffix == ".npz" else _from_files(path, on_error, limit)
    if not len(made):
        raise UserError(f"none of the {len(made.skipped)} images in {path} can be decoded")
    return made


def read_cifar10() -> tuple[Images, Images]:
    """Read CIFAR-10: its training images and its test images.

    They come from ``cifar10_jpeg.npz`` (20,000 and 2,500) and ``cifar10_train_rest_jpeg.npz`` (30,000), found as
    `mintage.data.sets` says; where neither is, from the hub (50,000 and 10,000) with the extra ``data``.

    Returns
    -------
    train, test

    Raises
    ------
    UserError
        A file, pillow or the network is missing, or the hub's data set is not what it should be.
    """
    if not any(find_data(name) for name in _FILES):
        return _cifar10_from_hub("train"), _cifar10_from_hub("test")
    paths = [data_file(name) for name in _FILES]
    parts = [read_images(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.labels is None or part.is_test is None or part.classes != CIFAR10:
            raise UserError(f"{path} is not CIFAR-10: it lacks labels, is_test or the ten classes")
    return _joined(parts, test=False), _joined(parts, test=True)


def read_imagenet_sample(limit: int | None = None) -> Images:
    """Read photographs of ImageNet's classes, 224 pixels a side, found as `mintage.data.sets` says.

    Raises
    ------
    UserError
        The file is missing or damaged.
    """
    return read_images(data_file(_IMAGENET), limit=limit)


def _joined(parts: Sequence[Images], *, test: bool) -> Images:
    chosen = [part.take(np.flatnonzero(np.asarray(part.is_test) == test).tolist()) for part in parts]
    return Images(
        pixels=[p for part in chosen for p in part.pixels],
        names=[n for part in chosen for n in part.names],
        labels=np.concatenate([np.asarray(part.labels) for part in chosen]),
        classes=CIFAR10,
        is_test=np.full(sum(map(len, chosen)), test),
    )


def _cifar10_from_hub(split: str) -> Images:
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError(
            "CIFAR-10 is not shipped with mintage; run: pip install 'mintage[data]' (it is taken from the hub), or "
            f"mintage data get cifar10 --from FOLDER that holds {' and '.join(_FILES)}; or pass images of your own, "
            "where the command has --images"
        ) from None
    try:
        rows: Any = datasets.load_dataset(_HUB, split=split)
        pixels = [np.asarray(image.convert("RGB")) for image in rows["img"]]
        labels = np.asarray(rows["label"], dtype=np.int64)
    except Exception as error:  # the library's own errors, and those of the network, are many
        raise UserError(f"cannot read the data set {_HUB}: {str(error).splitlines()[0]}") from None
    names = [f"{_HUB}:{split}#{i}" for i in range(len(pixels))]
    return Images(pixels, names, labels, CIFAR10, np.full(len(pixels), split == "test"))


# -- decoding ------------------------------------------------------------------------------------------------------


def _decode(source: Any, name: str) -> UInt8[np.ndarray, "height width 3"]:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise missing_extra("pillow", "vision") from None
    try:
        with Image.open(source) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # pillow's decoders raise what they like: OSError, SyntaxError, struct.error, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(repr(source), "the file")
        raise _Broken(f"{name} is not a readable image ({reason}); mend or delete it, or skip broken ones") from None


class _Broken(UserError):
    pass


def _decoded(
    sources: Iterable[tuple[Any, str]], on_error: OnError
) -> tuple[list[np.ndarray], list[str], list[int], tuple[str, ...]]:
    """Decode all; return pixels, names, places among the sources, and the names of those skipped."""
    pixels, names, places, skipped = [], [], [], []
    for place, (source, name) in enumerate(sources):
        try:
            pixels.append(_decode(source, name))
        except _Broken:
            if on_error == "refuse":
                raise
            skipped.append(name)
            continue
        names.append(name)
        places.append(place)
    return pixels, names, places, tuple(skipped)


def _spread(count: int, limit: int | None) -> list[int]:
    kept = count if limit is None else min(limit, count)
    return [i * count // kept for i in range(kept)] if kept else []


def _from_files(path: Path, on_error: OnError, limit: int | None) -> Images:
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not found:
        raise UserError(f"{path} holds no images; expected files such as .jpg or .png")
    found = [found[i] for i in _spread(len(found), limit)]
    pixels, names, places, skipped = _decoded(((p, str(p)) for p in found), on_error)
    parents = [p.relative_to(path).parts[0] for p in found if p != path and p.parent != path]
    if len(parents) < len(found):
        return Images(pixels, names, skipped=skipped)
    classes = tuple(sorted(set(parents)))
    labels = np.asarray([classes.index(parents[i]) for i in places], dtype=np.int64)
    return Images(pixels, names, labels, classes, skipped=skipped)


def _from_npz(path: Path, on_error: OnError, limit: int | None) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    if "jpeg" not in held or "offsets" not in held:
        raise UserError(f"{path} holds {', '.join(sorted(held))}; expected jpeg and offsets")
    offsets = held["offsets"].astype(np.int64)
    if offsets.ndim != 1 or (np.diff(offsets) < 0).any() or offsets.size == 0 or offsets[-1] > held["jpeg"].size:
        raise UserError(f"{path}: offsets do not divide its {held['jpeg'].size} bytes; the file is damaged")
    count = len(offsets) - 1
    for name in ("labels", "is_test"):
        if name in held and len(held[name]) != count:
            raise UserError(f"{path}: {len(held[name])} {name} for {count} images; the file is damaged")
    data = held["jpeg"].tobytes()
    rows = _spread(count, limit)
    strings = ((io.BytesIO(data[offsets[i] : offsets[i + 1]]), f"{path.name}#{i}") for i in rows)
    pixels, names, places, skipped = _decoded(strings, on_error)
    kept = [rows[place] for place in places]
    return Images(
        pixels,
        names,
        held["labels"][kept].astype(np.int64) if "labels" in held else None,
        _classes(held, count),
        held["is_test"][kept].astype(bool) if "is_test" in held else None,
        skipped,
    )


def _classes(held: dict[str, np.ndarray], count: int) -> tuple[str, ...]:
    """Names by label: ``classes``, or ``name`` of one image per label (as in the ImageNet sample)."""
    if "classes" in held:
        return tuple(map(str, held["classes"]))
    if "name" in held and "labels" in held and len(held["name"]) == count:
        by_label = dict(zip(held["labels"].tolist(), map(str, held["name"]), strict=True))
        return tuple(by_label.get(label, "") for label in range(max(by_label) + 1))
    return ()

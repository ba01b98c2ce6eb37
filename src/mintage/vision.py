"""Load an image classifier and what its images go through: the one that ships with mintage, or one of the hub.

``"vit-tiny-cifar10"`` is a small vision transformer that ``mintage train vit`` made: a class token and 64 patch tokens
from a convolution stem (Xiao et al., NeurIPS 2021, arXiv 2106.14881), 8 blocks, those of Hugging Face's ViT.

Not here: reading images (`mintage.data.images`), training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from mintage.data.sets import data_file
from mintage.errors import UserError, missing_extra
from mintage.files import parse_json
from mintage.models import check_finite, fetched
from mintage.progress import quiet
from mintage.weights import read_weights, write_weights

__all__ = [
    "SHIPPED",
    "ConvolutionStem",
    "ImageClassifier",
    "Preprocessing",
    "SmallViT",
    "load_image_classifier",
    "load_vit_s14",
    "save_image_classifier",
    "shipped_classifier",
]

SHIPPED = "vit-tiny-cifar10"
"""Name of the classifier that ships with mintage."""

_FORMAT = "mintage image classifier 1"
_VIT_S14 = "vit_s14_dinov2_saliency_fp16.safetensors"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TIMM = "timm:"


# -- what images go through ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, crop the centre, normalise.

    Parameters
    ----------
    size
        Height and width of what the model sees.
    shortest
        Resize the shorter side to this many pixels, then crop `size` from the centre; None resizes to `size` itself.
    mean, std
        Of each channel, on a scale from 0 to 1.
    mode
        ``"bilinear"`` or ``"bicubic"``, both with antialiasing.
    """

    size: tuple[int, int]
    shortest: int | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mode: str = "bicubic"

    def __call__(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[Tensor, "images 3 height width"]:
        """Prepare images of any sizes as one batch."""
        return self.normalised(torch.cat([self._resized(image) for image in images]))

    def normalised(self, pixels: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
        """Normalise RGB pixels from 0 to 255."""
        mean, std = (torch.tensor(x, device=pixels.device).view(3, 1, 1) * 255 for x in (self.mean, self.std))
        return (pixels - mean) / std

    def _resized(self, image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        height, width = image.shape[:2]
        target = self.size
        if self.shortest is not None:
            scale = self.shortest / min(height, width)
            target = (max(round(height * scale), self.size[0]), max(round(width * scale), self.size[1]))
        if (height, width) != target:
            resized = functional.interpolate(pixels, size=target, mode=self.mode, align_corners=False, antialias=True)
            pixels = resized.clamp_(0, 255)
        top, left = ((have - want) // 2 for have, want in zip(target, self.size, strict=True))
        return pixels[..., top : top + self.size[0], left : left + self.size[1]]


@dataclass(frozen=True)
class ImageClassifier:
    """A model, what its images go through, the names of its classes, and what is known about it.

    The model's forward takes ``pixel_values`` (a timm model: its first argument).
    """

    model: nn.Module
    preprocess: Preprocessing
    labels: tuple[str, ...]
    name: str
    notes: Mapping[str, str] = field(default_factory=dict)

    def logits(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images classes"]:
        """Return the class scores of prepared images."""
        out = self.model(pixels)
        return out if isinstance(out, Tensor) else out.logits


# -- the small vision transformer ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SmallViT:
    """Sizes of a small vision transformer with a convolution stem.

    Parameters
    ----------
    image_size
        Pixels of a side.
    stem
        Channels of the stem's 3x3 convolutions; every one but the first halves the sides, so a patch has
        ``2 ** (len(stem) - 1)`` pixels a side.
    stem_blocks
        Residual blocks after each of them.
    hidden, layers, heads, mlp_ratio
        Width, blocks, attention heads and width of the MLP over `hidden`.
    classes
        How many.

    Raises
    ------
    UserError
        A size is not positive, `hidden` is no multiple of `heads`, `stem_blocks` is not one number per convolution, or
        the patches do not divide the image.
    """

    image_size: int = 32
    stem: tuple[int, ...] = (32, 64, 128)
    stem_blocks: tuple[int, ...] = (0, 1, 0)
    hidden: int = 128
    layers: int = 8
    heads: int = 4
    mlp_ratio: float = 2.0
    classes: int = 10

    def __post_init__(self) -> None:
        for name in ("image_size", "hidden", "layers", "heads", "mlp_ratio", "classes"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}={getattr(self, name)} is not positive")
        if self.hidden % self.heads:
            raise UserError(f"hidden={self.hidden} is not a multiple of heads={self.heads}; pass e.g. heads=4")
        if not self.stem or min(self.stem) < 1 or len(self.stem_blocks) != len(self.stem) or min(self.stem_blocks) < 0:
            raise UserError(f"stem={self.stem} and stem_blocks={self.stem_blocks}: pass channels and as many counts")
        if self.image_size % self.patch_size:
            raise UserError(f"image_size={self.image_size} is not a multiple of the patch's {self.patch_size} pixels")

    @property
    def patch_size(self) -> int:
        """Pixels of a patch's side."""
        return 2 ** (len(self.stem) - 1)

    def build(self, *, labels: Sequence[str] = ()) -> Any:
        """Return an untrained `transformers.ViTForImageClassification` whose patch projection is the stem."""
        from transformers import ViTConfig, ViTForImageClassification

        names = dict(enumerate(labels or map(str, range(self.classes))))
        config = ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=int(self.hidden * self.mlp_ratio),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=names,
            label2id={label: i for i, label in names.items()},
        )
        model: Any = ViTForImageClassification(config)
        model.vit.embeddings.patch_embeddings.projection = ConvolutionStem(self.stem, self.stem_blocks, self.hidden)
        return model


class ConvolutionStem(nn.Sequential):
    """3x3 convolutions, each with batch normalisation and ReLU, then a 1x1 convolution to the transformer's width.

    Parameters
    ----------
    channels
        Of each; all but the first halve the sides.
    blocks
        Residual blocks after each.
    hidden
        Width of the transformer.
    """

    def __init__(self, channels: Sequence[int], blocks: Sequence[int], hidden: int) -> None:
        parts: list[nn.Module] = []
        before = 3
        for place, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            parts += [*_convolution(before, width, stride=1 if place == 0 else 2), nn.ReLU()]
            parts += [_Residual(width) for _ in range(count)]
            before = width
        super().__init__(*parts, nn.Conv2d(before, hidden, 1))

    @property
    def weight(self) -> Tensor:
        """The last convolution's, whose dtype transformers' ViT casts its input to."""
        return self[-1].weight  # type: ignore[return-value]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_convolution(width, width), nn.ReLU(), *_convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def _convolution(before: int, after: int, *, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after)


# -- files ---------------------------------------------------------------------------------------------------------


def shipped_classifier() -> Path:
    """Return the file of the classifier that ships with mintage."""
    return Path(str(files("mintage") / "assets" / f"{SHIPPED}.safetensors"))


def save_image_classifier(
    model: nn.Module,
    sizes: SmallViT,
    preprocess: Preprocessing,
    labels: Sequence[str],
    path: str | Path,
    *,
    notes: Mapping[str, str],
) -> None:
    """Write a `SmallViT` in float16, with all that is needed to use it.

    Parameters
    ----------
    model
        Made by `SmallViT.build`, trained since.
    sizes, preprocess, labels
        What it was made with.
    path
        Safetensors file to write.
    notes
        How it was made and what it does; kept in the file's metadata.
    """
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    own = {
        "sizes": json.dumps(asdict(sizes)),
        "preprocess": json.dumps(asdict(preprocess)),
        "labels": json.dumps(list(labels)),
    }
    write_weights(path, _FORMAT, tensors, {**notes, **own})


def _load_own(path: Path, name: str) -> ImageClassifier:
    again = f"make it with mintage train vit --out {path}"
    tensors, notes = read_weights(path, _FORMAT, again)
    try:
        sizes = SmallViT(**_fields(notes.pop("sizes")))
        preprocess = Preprocessing(**_fields(notes.pop("preprocess")))
        labels = tuple(json.loads(notes.pop("labels")))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"cannot read {path}: {reason}; {again}") from None
    model = sizes.build(labels=labels)
    own = model.state_dict()
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise UserError(f"{path} holds other tensors than its sizes say; {again}")
    for key, tensor in tensors.items():
        own[key].copy_(tensor)
    return ImageClassifier(model.eval(), preprocess, labels, name, notes)


def _fields(text: str) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}


# -- loading -------------------------------------------------------------------------------------------------------


def load_image_classifier(name: str = SHIPPED, *, device: str | torch.device = "cpu") -> ImageClassifier:
    """Load an image classifier for inference, float32.

    Parameters
    ----------
    name
        ``"vit-tiny-cifar10"``, a ``.safetensors`` file of `mintage train vit`, a folder or hub id of a transformers
        model (e.g. ``"facebook/deit-small-patch16-224"``), or ``"timm:"`` and the name of a timm model.
    device
        E.g. ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    UserError
        Nothing of that name can be loaded, or a file is damaged.
    """
    if name == SHIPPED:
        made = _load_own(shipped_classifier(), name)
    elif name.endswith(".safetensors"):
        made = _load_own(Path(name), name)
    elif name.startswith(_TIMM):
        made = _load_timm(name)
    else:
        made = _load_transformers(name)
    try:
        made.model.to(device)
    except Exception:  # every backend has its own
        raise UserError(f"device {str(device)!r} is not available on this machine; pass device='cpu'") from None
    return made


def _load_transformers(name: str) -> ImageClassifier:
    from transformers import AutoModelForImageClassification

    model = fetched(AutoModelForImageClassification, name, f"the shipped classifier is called {SHIPPED!r}")
    labels = tuple(str(model.config.id2label[i]) for i in range(model.config.num_labels))
    return ImageClassifier(model.eval(), _preprocessing_of(name, model), labels, name)


def _preprocessing_of(name: str, model: Any) -> Preprocessing:
    """Read ``preprocessor_config.json`` here: transformers' own image processors ask for torchvision."""
    from transformers.utils.hub import cached_file

    with quiet():
        path = cached_file(
            name,
            "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    given: dict[str, Any] = {}
    if path:
        given = parse_json(Path(path).read_text(encoding="utf-8", errors="replace"), str(path), "mend it")
    size = given.get("size") or model.config.image_size
    crop = given.get("crop_size") if given.get("do_center_crop") else None
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size if crop else None
    if shortest is not None and "crop_pct" in given:  # ConvNeXt's way: resize to more than is kept
        crop, shortest = shortest, round(shortest / given["crop_pct"])
    seen = _pair(crop or size, name)
    if not given.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    else:
        mean = tuple(map(float, given.get("image_mean") or (0.5,) * 3))
        std = tuple(map(float, given.get("image_std") or (0.5,) * 3))
    mode = "bicubic" if given.get("resample", 2) == 3 else "bilinear"
    return Preprocessing(size=seen, shortest=shortest, mean=mean, std=std, mode=mode)  # type: ignore[arg-type]


def _pair(size: Any, name: str) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    raise UserError(f"{name}: its image size is given as {size!r}; expected height and width")


def _load_timm(name: str) -> ImageClassifier:
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "timm", "vision") from None
    except RuntimeError as error:  # a torchvision built for another torch
        raise UserError(f"timm cannot be imported: {str(error).splitlines()[0]}; reinstall torchvision") from None
    short = name.removeprefix(_TIMM)
    try:
        model = timm.create_model(short, pretrained=True).eval()
    except Exception as error:  # unknown names, network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"timm cannot make {short!r}: {reason}") from error
    check_finite(model, name)
    given = resolve_model_data_config(model)
    size = tuple(given["input_size"][1:])
    preprocess = Preprocessing(
        size=size,
        shortest=round(min(size) / given.get("crop_pct", 1.0)),
        mean=tuple(given["mean"]),
        std=tuple(given["std"]),
        mode="bicubic" if given.get("interpolation") == "bicubic" else "bilinear",
    )
    labels = tuple(map(str, range(getattr(model, "num_classes", 0))))
    return ImageClassifier(model, preprocess, labels, name)


def load_vit_s14(path: str | Path | None = None) -> tuple[Any, Preprocessing]:
    """Load the ViT-S/14 in DINOv2's layout (12 blocks, 384 wide, 6 heads, layer scale), float32; it has no class head.

    Parameters
    ----------
    path
        Its safetensors file; default that of the data set ``vit-s14`` (`mintage.data.sets`).

    Returns
    -------
    model, preprocess
        A `transformers.Dinov2Model`, and what images go through (224 pixels a side: 256 patches).

    Raises
    ------
    UserError
        The file is missing, damaged or another model's.
    """
    from transformers import Dinov2Config, Dinov2Model

    path = data_file(_VIT_S14) if path is None else Path(path)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    model: Any = Dinov2Model(config)
    own = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    unused = "embeddings.mask_token"  # of pre-training; the file need not hold it
    if {n: t.shape for n, t in own.items() if n != unused} != {n: t.shape for n, t in tensors.items() if n != unused}:
        raise UserError(f"{path} holds other tensors than a ViT-S/14 in DINOv2's layout")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
    check_finite(model, path)
    mean, std = _IMAGENET
    return model.eval(), Preprocessing(size=(224, 224), shortest=224, mean=mean, std=std)

"""The families of vision transformers that are served, as data: where their blocks are, and what a block consists of.

Adding a family is one row. Whether it is right, the matrix of vision classes and reducers tells (``tests/reduce``).

Not here: windowed, convolutional or relative-position attention (Swin, BEiT), rotary positions (EVA, DINOv3), padded
patches (SigLIP 2, NaFlex), blocks that do not ask transformers for their attention function (BLIP).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILIES", "MEAN_OF_TOKENS", "SUPPORTED", "BlockParts", "pools"]

SUPPORTED = (
    "ViT, DeiT, ViT-MAE, ViT-MSN, I-JEPA, Pixio, DINOv2 (with registers too), TIPSv2, AIMv2, and the vision sides of "
    "CLIP, its relatives and SigLIP of transformers; timm's ViT"
)


@dataclass(frozen=True)
class BlockParts:
    """Names within one family's transformer: its blocks, and of a block the parts of both branches in order.

    Parameters
    ----------
    layers
        Where the blocks are.
    norm1, attention, after1, norm2, mlp, after2
        Both branches.
    prefix
        Number of leading tokens that are no patches, of a transformer.
    projection
        What makes tokens of patches.
    dense
        Whether all that comes out must have one row per patch: a backbone, or a head that pools in a way of its own.
    """

    layers: str
    norm1: str
    attention: str
    after1: tuple[str, ...]
    norm2: str
    mlp: str
    after2: tuple[str, ...]
    prefix: Callable[[Any], int]
    projection: str = "embeddings.patch_embeddings.projection"
    dense: bool = False


_VIT = ("layernorm_before", "attention", ("dropout",), "layernorm_after", "mlp", ("dropout",))
_PIXIO = ("layernorm_before", "attention", ("dropout", "drop_path"), "layernorm_after", "mlp", ("dropout", "drop_path"))
_DINO = ("norm1", "attention", ("layer_scale1", "drop_path"), "norm2", "mlp", ("layer_scale2", "drop_path"))
_CLIP = ("layer_norm1", "self_attn", (), "layer_norm2", "mlp", ())
_AIM = ("rms_norm1", "attention", (), "rms_norm2", "ffn", ())
_TIMM = ("norm1", "attn", ("ls1", "drop_path1"), "norm2", "mlp", ("ls2", "drop_path2"))


def _registers(m: Any) -> int:
    return 1 + m.config.num_register_tokens


def _clip(layers: str = "encoder.layers", prefix: int = 1) -> BlockParts:
    return BlockParts(layers, *_CLIP, lambda m: prefix, "embeddings.patch_embedding")


def _dino(prefix: Callable[[Any], int] = lambda m: 1, dense: bool = False) -> BlockParts:
    return BlockParts("encoder.layer", *_DINO, prefix, dense=dense)


_OF_TRANSFORMERS: dict[str, BlockParts] = {  # folder of transformers, and class
    "aimv2:Aimv2VisionModel": BlockParts("encoder.layers", *_AIM, lambda m: 0, "embeddings.patch_embed", True),
    "altclip:AltCLIPVisionModel": _clip(),
    "blip_2:Blip2VisionModel": _clip(),
    "chinese_clip:ChineseCLIPVisionModel": _clip(),
    "clip:CLIPVisionModel": _clip(),
    "clipseg:CLIPSegVisionModel": _clip(),
    "deit:DeiTModel": BlockParts("layers", *_VIT, lambda m: 2),
    "dinov2:Dinov2Backbone": _dino(dense=True),
    "dinov2:Dinov2Model": _dino(),
    "dinov2_with_registers:Dinov2WithRegistersBackbone": _dino(_registers, dense=True),
    "dinov2_with_registers:Dinov2WithRegistersModel": _dino(_registers),
    "git:GitVisionTransformer": _clip(),
    "ijepa:IJepaModel": BlockParts("layers", *_VIT, lambda m: 0),
    "instructblip:InstructBlipVisionModel": _clip(),
    "instructblipvideo:InstructBlipVideoVisionModel": _clip(),
    "janus:JanusVisionModel": _clip(prefix=0),
    "kosmos2:Kosmos2VisionTransformer": _clip(),
    "metaclip_2:MetaClip2VisionModel": _clip(),
    "owlv2:Owlv2VisionTransformer": _clip(),
    "owlvit:OwlViTVisionTransformer": _clip(),
    "pixio:PixioModel": BlockParts("layers", *_PIXIO, lambda m: m.config.n_cls_tokens),
    "siglip:SiglipVisionModel": _clip(prefix=0),
    "tipsv2:Tipsv2VisionBackbone": _dino(_registers, dense=True),
    "tipsv2:Tipsv2VisionModel": _dino(_registers),
    "vit:ViTModel": BlockParts("layers", *_VIT, lambda m: 1),
    "vit_mae:ViTMAEModel": BlockParts("layers", *_VIT, lambda m: 1),
    "vit_msn:ViTMSNModel": BlockParts("layers", *_VIT, lambda m: 1),
}


def _path(name: str) -> str:
    folder, _, kind = name.partition(":")
    return f"transformers.models.{folder}.modeling_{folder}.{kind}"


FAMILIES: dict[str, BlockParts] = {_path(name): parts for name, parts in _OF_TRANSFORMERS.items()} | {
    "timm.models.vision_transformer.VisionTransformer": BlockParts(
        "blocks", *_TIMM, lambda m: m.num_prefix_tokens, "patch_embed"
    ),
}

MEAN_OF_TOKENS = {  # classifiers that average the transformer's output themselves
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "CLIPForImageClassification",
    "IJepaForImageClassification",
    "MetaClip2ForImageClassification",
    "SiglipForImageClassification",
}


def pools(module: Any) -> bool:
    """Whether a module around the transformer reads what it pools, not its patches one by one.

    Of transformers' classes these are classifiers, those that compare images with texts, and mere wrappers. Anything
    else there (decoders, detectors, language models) wants one row per patch. What a user has written reads what it
    likes; it is taken to know of the reducer.
    """
    kind = type(module)
    if not kind.__module__.startswith("transformers."):
        return True
    if hasattr(module, "qformer"):
        return False
    ends = ("ForImageClassification", "WithTeacher", "VisionModel", "VisionModelWithProjection")
    return kind.__name__.endswith(ends) or hasattr(module, "logit_scale")

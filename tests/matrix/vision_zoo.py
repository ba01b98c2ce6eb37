"""Tiny models of the vision classes that can be built, for the matrix of classes and reducers.

``python tests/matrix/vision_zoo.py`` runs every reducer on all of them and rewrites ``docs/vision_models.json``, which
``docs/vision-models.md`` is made from; an argument names the folder that timm is installed in.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.reduce import METHODS
from mintage.testing.reduce import _filled

RECORD = Path(__file__).parents[2] / "docs" / "vision_models.json"
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PAIRED = {"patch_size": 4, "num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "num_channels": 3}
SIZES = PAIRED | {"image_size": 16, "intermediate_size": 32, "num_labels": 5}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10}
TEXT |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
IDS = torch.tensor([[0, 3, 4, 2]] * 2)


@dataclass(frozen=True)
class Entry:
    """A model of the zoo, and what it is called with."""

    model: nn.Module
    inputs: dict[str, Any] = field(default_factory=lambda: {"pixel_values": PIXELS})

    def outputs(self) -> dict[str, Tensor]:
        """Every tensor that the model returns, by name; those in lists are numbered."""
        torch.manual_seed(0)  # ViT-MAE hides patches at random
        with torch.no_grad():
            return dict(_tensors("out", self.model(**self.inputs)))

    def seeing(self, pixels: Tensor) -> Entry:
        """The same with other pixels."""
        name = "x" if "x" in self.inputs else "pixel_values"
        return Entry(self.model, self.inputs | {name: pixels})


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("past_key_values", "attentions"):
                yield from _tensors(key, item)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _tensors(f"{name}.{i}", item)


# -- classes of transformers that take one image ---------------------------------------------------------------------

FOLDERS = (
    "aimv2 altclip beit bit blip blip_2 chinese_clip clip clipseg convnext convnextv2 cvt data2vec deit dinov2 "
    "dinov2_with_registers dinov3_convnext dinov3_vit donut dpt efficientnet flava focalnet git glpn hiera ijepa "
    "instructblip instructblipvideo internvl janus levit metaclip_2 mgp_str mlcd mobilevit owlv2 owlvit pixio "
    "poolformer pvt pvt_v2 qianfan_ocr radio resnet rf_detr sam segformer siglip siglip2 swiftformer swin swinv2 "
    "tipsv2 videomae vit vit_mae vit_msn vitdet vitpose_backbone vivit x_clip yolos"
)


def _classes(folder: str) -> Iterator[tuple[str, Any]]:
    """Yield the classes of one folder of transformers that take pixels and nothing else."""
    root = Path(importlib.import_module("transformers").__file__).parent / "models" / folder
    for file in sorted(root.glob("modeling_*.py")):
        module = importlib.import_module(f"transformers.models.{folder}.{file.stem}")
        for name in module.__all__:
            kind = getattr(module, name)
            if not (inspect.isclass(kind) and getattr(kind, "main_input_name", "") == "pixel_values"):
                continue
            takes_more = ("ConditionalGeneration", "TextRetrieval", "Blip2Model", "InstructBlipModel", "VideoModel")
            if not name.endswith(("PreTrainedModel", "Encoder", "Decoder", *takes_more)):
                yield name, kind


def _of(kind: Any) -> nn.Module:
    """Make it small; if its settings have other names, as large as it is by default."""
    tried: list[dict[str, Any]] = [SIZES, SIZES | {"image_size": [16, 16]}]
    tried += [{"out_indices": [1, 2, 3, 4]}, {"hidden_sizes": [8] * 4}, {}]
    for sizes in tried:
        try:
            return kind(kind.config_class(**sizes))
        except Exception as error:  # each configuration refuses in its own way
            refused = error
    raise refused


def _hf(name: str) -> Any:
    return getattr(importlib.import_module("transformers"), name)


def _dual(name: str, **more: Any) -> Callable[[], Entry]:
    def make() -> Entry:
        config = _hf(f"{name.removesuffix('Model')}Config")(
            vision_config=SIZES, text_config=TEXT | more, projection_dim=8
        )
        return Entry(_filled(_hf(name)(config)), {"input_ids": IDS, "pixel_values": PIXELS})

    return make


def _headed(name: str, config: str) -> Callable[[], Entry]:
    return lambda: Entry(_filled(_hf(name)(_hf(config)(vision_config=SIZES, text_config=TEXT, num_labels=5))))


def _depth(name: str) -> Callable[[], Entry]:
    def make() -> Entry:
        backbone = _hf("Dinov2Config")(
            **SIZES, mlp_ratio=2, out_indices=[1, 2, 3, 4], reshape_hidden_states=name == "DPTForSegmentation"
        )
        config = _hf(name.removesuffix("ForDepthEstimation") + "Config")(
            backbone_config=backbone,
            patch_size=4,
            reassemble_hidden_size=16,
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            head_hidden_size=8,
        )
        return Entry(_filled(_hf(name)(config)))

    return make


def _llava() -> Entry:
    config = _hf("LlavaConfig")(
        vision_config=_hf("CLIPVisionConfig")(**SIZES),
        text_config=_hf("LlamaConfig")(**TEXT | {"vocab_size": 20}, num_key_value_heads=2, head_dim=8),
        image_token_index=19,
        vision_feature_layer=-2,
    )
    ids = torch.tensor([[0, *[19] * 16, 5, 6]] * 2)
    return Entry(_filled(_hf("LlavaForConditionalGeneration")(config)), {"input_ids": ids, "pixel_values": PIXELS})


def _captioner() -> Entry:
    decoder = _hf("BertConfig")(**TEXT, is_decoder=True, add_cross_attention=True)
    config = _hf("VisionEncoderDecoderConfig").from_encoder_decoder_configs(_hf("ViTConfig")(**SIZES), decoder)
    model = _hf("VisionEncoderDecoderModel")(config)
    return Entry(_filled(model), {"pixel_values": PIXELS, "decoder_input_ids": IDS})


def _querying() -> Entry:
    config = _hf("Blip2Config")(
        vision_config=SIZES, qformer_config=TEXT | {"encoder_hidden_size": 16}, num_query_tokens=4
    )
    return Entry(_filled(_hf("Blip2VisionModelWithProjection")(config)), {"pixel_values": PIXELS})


def _two_towers() -> Entry:
    config = _hf("VisionTextDualEncoderConfig").from_vision_text_configs(
        _hf("ViTConfig")(**SIZES), _hf("BertConfig")(**TEXT), projection_dim=8
    )
    return Entry(_filled(_hf("VisionTextDualEncoderModel")(config)), {"input_ids": IDS, "pixel_values": PIXELS})


def _segmenter() -> Entry:
    config = _hf("CLIPSegConfig")(
        vision_config=SIZES,
        text_config=TEXT,
        projection_dim=8,
        reduce_dim=8,
        extract_layers=[1, 2, 3],
        conditional_layer=0,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    return Entry(_filled(_hf("CLIPSegForImageSegmentation")(config)), {"input_ids": IDS, "pixel_values": PIXELS})


def _kosmos() -> Entry:
    text = {"embed_dim": 16, "layers": 1, "attention_heads": 2, "ffn_dim": 16, "vocab_size": 20}
    config = _hf("Kosmos2Config")(vision_config=SIZES, text_config=text | TEXT, latent_query_num=4)
    places = torch.tensor([[0, 1, 1, 1, 1, 0]] * 2)
    ids = {"input_ids": torch.full((2, 6), 3), "image_embeds_position_mask": places}
    return Entry(_filled(_hf("Kosmos2Model")(config)), {"pixel_values": PIXELS, **ids})


def _detector(name: str) -> Callable[[], Entry]:
    def make() -> Entry:
        config = _hf(f"{name}Config")(vision_config=SIZES, text_config=TEXT, projection_dim=16)
        model = _filled(_hf(f"{name}ForObjectDetection")(config))
        return Entry(model, {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": torch.ones_like(IDS)})

    return make


OWN: dict[str, Callable[[], Entry]] = {  # classes whose settings are not those of the others
    "AltCLIPModel": _dual("AltCLIPModel"),
    "ChineseCLIPModel": _dual("ChineseCLIPModel"),
    "Blip2VisionModelWithProjection": _querying,
    "CLIPModel": _dual("CLIPModel"),
    "MetaClip2Model": _dual("MetaClip2Model"),
    "SiglipModel": _dual("SiglipModel"),
    "OwlViTModel": _dual("OwlViTModel"),
    "CLIPForImageClassification": _headed("CLIPForImageClassification", "CLIPConfig"),
    "MetaClip2ForImageClassification": _headed("MetaClip2ForImageClassification", "MetaClip2Config"),
    "SiglipForImageClassification": _headed("SiglipForImageClassification", "SiglipConfig"),
    "CLIPSegForImageSegmentation": _segmenter,
    "DepthAnythingForDepthEstimation": _depth("DepthAnythingForDepthEstimation"),
    "DPTForDepthEstimation": _depth("DPTForDepthEstimation"),
    "Kosmos2Model": _kosmos,
    "LlavaForConditionalGeneration": _llava,
    "OwlViTForObjectDetection": _detector("OwlViT"),
    "Owlv2ForObjectDetection": _detector("Owlv2"),
    "VisionEncoderDecoderModel": _captioner,
    "VisionTextDualEncoderModel": _two_towers,
}


def transformers_zoo() -> dict[str, Callable[[], Entry]]:
    """Every vision class of transformers that is tried, by name."""
    made: dict[str, Callable[[], Entry]] = {}
    for folder in FOLDERS.split():
        for name, kind in _classes(folder):
            made[name] = lambda kind=kind: Entry(_filled(_of(kind)))
    return made | OWN


# -- timm ------------------------------------------------------------------------------------------------------------

TIMM = (  # one architecture of each kind that is a transformer over patches
    "beit_base_patch16_224 cait_xxs24_224 convit_tiny crossvit_9_240 davit_tiny deit_tiny_distilled_patch16_224 "
    "deit3_small_patch16_224 vit_small_patch16_dinov3 eva02_tiny_patch14_224 flexivit_small hiera_tiny_224 levit_128s "
    "mvitv2_tiny naflexvit_base_patch16_gap pit_ti_224 pvt_v2_b0 samvit_base_patch16 swin_tiny_patch4_window7_224 "
    "tnt_s_patch16_224 twins_pcpvt_small vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_small_patch16_18x2_224 "
    "vit_relpos_small_patch16_224 vit_base_patch16_siglip_224 vit_small_patch14_reg4_dinov2 "
    "vit_base_patch32_clip_224 vit_base_patch16_rpn_224 visformer_tiny volo_d1_224 xcit_nano_12_p16_224"
)
SMALL = ({"embed_dim": 16, "depth": 4, "num_heads": 2}, {"depth": 4}, {})


def _timm(name: str) -> Entry:
    """Make it as small as its class allows."""
    create: Any = importlib.import_module("timm").create_model
    for sizes in SMALL:
        try:
            model = create(name, pretrained=False, num_classes=5, **sizes)
        except (TypeError, ValueError):  # there is no such size
            continue
        height, width = model.default_cfg["input_size"][1:]
        pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        return Entry(_filled(model), {"x": pixels})
    raise AssertionError(name)


def timm_zoo() -> dict[str, Callable[[], Entry]]:
    """One architecture of every kind of transformer over patches in timm."""
    return {f"timm:{name}": lambda name=name: _timm(name) for name in TIMM.split()}


# -- the matrix ------------------------------------------------------------------------------------------------------

REDUCERS = {row.name: row.load() for row in METHODS if row.entry}


def judge(entry: Entry, names: Sequence[str] = tuple(REDUCERS)) -> dict[str, Any]:
    """Run reducers on a model: what is refused, with the line that says so, and whether dense output is served.

    Raises
    ------
    AssertionError
        A reducer that keeps everything changes something, or one that reduces returns what is not finite or has
        another shape: of what is not one row per token at all, and of everything where dense output is promised.
    """
    wanted, refused, dense = None, {}, False
    for name in names:
        kind = REDUCERS[name]
        try:
            keeps, reduces = kind.tiny().unreduced()(entry.model), kind.tiny()(entry.model)
            wanted, dense = wanted or entry.outputs(), reduces.dense
            with keeps:
                kept = entry.outputs()
            with reduces:
                got = entry.outputs()
        except UserError as error:
            refused[name] = str(error)
            continue
        assert kept.keys() == got.keys() == wanted.keys(), name
        assert reduces.tokens[-1] < reduces.tokens[0] or reduces.reducer.attends, name
        for key, value in wanted.items():
            torch.testing.assert_close(kept[key], value, atol=1e-5, rtol=1e-5, msg=f"{name}: {key} is off")
            assert torch.isfinite(got[key]).all(), f"{name}: {key}"
            assert got[key].shape == value.shape or (value.ndim == 3 and not dense), f"{name}: {key}"
    assert not any("\n" in line for line in refused.values())
    if len(refused) == len(names) and len(set(refused.values())) == 1:
        return {"refused": next(iter(refused.values())).partition("; supported")[0]}
    return {"dense": dense, "refused": refused} if refused else {"dense": dense}


def main(timm: str | None) -> None:
    """Run all of it and rewrite the record."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    made = {} if timm is None else timm_zoo()
    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for name, make in (transformers_zoo() if timm is None else made).items():
        try:
            entry = make()
        except Exception as error:  # it wants settings of its own: give them in OWN, or leave it out
            print(f"{name} is not built: {type(error).__name__}: {error}")
            continue
        try:
            found[name] = judge(entry)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        print(name, found[name], flush=True)
    RECORD.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.path.insert(0, sys.argv[1])
        library = torch.library.Library("torchvision", "DEF")  # built for one torch; its import asks for these two
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    main(sys.argv[1] if len(sys.argv) > 1 else None)

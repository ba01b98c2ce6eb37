"""Run by test_timm.py: what needs timm on the path."""

import copy
import json
import os
import sys

import pytest
import torch

sys.path.insert(0, os.environ["MINTAGE_TIMM"])
# torchvision is built for one torch; two of its operators are all that its import asks for.
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
import vision_zoo as zoo  # noqa: E402
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer  # noqa: E402

from mintage.errors import UserError  # noqa: E402
from mintage.measure import count_flops  # noqa: E402
from mintage.reduce import ToMe  # noqa: E402
from mintage.testing import parametrize_with_laws  # noqa: E402
from mintage.testing import reduce as suite  # noqa: E402

MODELS = {name: subject for name, subject in suite.law_models().items() if name.startswith("timm-")}


@pytest.fixture(autouse=True)
def only_timm(monkeypatch):
    monkeypatch.setattr(suite, "law_models", lambda: MODELS)


@parametrize_with_laws("reduce")
def test_reduce(method, law):
    law(method.tiny())


@pytest.mark.parametrize("name", MODELS)
def test_merged_twins_change_nothing(name):
    suite.merged_twins_change_nothing(MODELS[name])


def test_blocks_of_another_kind_are_refused():
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, block_fn=ParallelScalingBlock
    )
    with pytest.raises(
        UserError, match=r"this VisionTransformer has ParallelScalingBlock blocks; supported: ViT, DeiT"
    ):
        ToMe()(model)


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "vit_base_patch32_clip_224", "eva02_tiny_patch14_224"]
)
def test_reducers_do_what_the_page_says(name):
    record = json.loads(zoo.RECORD.read_text(encoding="utf-8"))
    assert zoo.judge(zoo.timm_zoo()[f"timm:{name}"](), ("tome", "class-attention")) == record[f"timm:{name}"]


def test_what_merges_are_counted_as_in_every_pooling():
    for pooling in ("avgmax", "max", ""):
        model = suite._filled(VisionTransformer(**SIZES, global_pool=pooling))
        suite.merged_twins_change_nothing(suite.LawModel(model, model))


SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 5}
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
HALVED = ToMe(schedule="r=4")


@torch.no_grad()
def test_intermediate_layers_have_a_row_for_every_patch():
    model = suite._filled(VisionTransformer(**SIZES))
    plain = model.get_intermediate_layers(PIXELS, n=4, reshape=True, norm=True)
    with HALVED(model, trace=True) as session:
        maps = model.get_intermediate_layers(PIXELS, n=4, reshape=True, norm=True)
        last, held = model.forward_intermediates(PIXELS, output_fmt="NLC")
        assert session.tokens == [17, 13, 9, 5]
        tokens = model.forward_features(PIXELS)
        torch.testing.assert_close(session.unmerge(tokens), last)
    assert [m.shape for m in maps] == [m.shape for m in plain]
    assert [m.shape for m in held] == [(2, 16, 16)] * 4
    assert not torch.allclose(maps[-1], plain[-1], atol=1e-3)
    rows = maps[-1].flatten(2).transpose(1, 2)
    assert [len(image.round(decimals=4).unique(dim=0)) for image in rows] == [2, 2]  # of 16, merged into 2
    with HALVED.unreduced()(model):
        got = model.get_intermediate_layers(PIXELS, n=4, reshape=True, norm=True)
    assert all(torch.allclose(mine, wanted, atol=1e-6) for mine, wanted in zip(got, plain, strict=True))


@torch.no_grad()
def test_a_feature_extractor_gets_its_maps():
    model = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, img_size=32, embed_dim=16, depth=4, num_heads=2
    )
    pixels = torch.randn(1, 3, 32, 32)
    plain = model(pixels)
    with ToMe(schedule="r=1")(model):
        assert [m.shape for m in model(pixels)] == [m.shape for m in plain]


@pytest.mark.parametrize(
    "changes",
    [{"in_chans": 1}, {"in_chans": 12}, {"img_size": (16, 24)}, {"patch_size": (4, 2)}, {"patch_size": (2, 8)}],
)
@torch.no_grad()
def test_any_channels_images_and_patches(changes):
    sizes = SIZES | changes
    model = suite._filled(VisionTransformer(**sizes))
    size = sizes["img_size"]
    pixels = torch.randn(2, sizes.get("in_chans", 3), *(size if isinstance(size, tuple) else (size, size)))
    plain = model(pixels)
    with HALVED(model, trace=True) as session:
        assert model(pixels).shape == plain.shape
    rows, columns = model.patch_embed.grid_size
    assert session.anatomy.patches == rows * columns == session.tokens[0] - 1
    assert [len(row) for row in session.groups()[0]] == [columns] * rows
    assert session.anatomy.full == count_flops(lambda: model(pixels[:1])) // 2


@torch.no_grad()
def test_a_causal_mask_is_refused_and_a_copy_is_plain():
    model = suite._filled(VisionTransformer(**SIZES))
    plain = model(PIXELS)
    with HALVED(model):
        with pytest.raises(UserError, match="a mask over patches"):
            model(PIXELS, is_causal=True)
        held = copy.deepcopy(model)
        torch.testing.assert_close(held(PIXELS), plain)
    torch.testing.assert_close(held(PIXELS), plain)
    assert type(held) is VisionTransformer


def test_gradient_checkpointing_is_refused():
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    model.set_grad_checkpointing(True)
    with pytest.raises(UserError, match="switch it off"), ToMe()(model):
        pass

"""Run by test_timm.py: what needs timm on the path."""

import os
import sys

import pytest
import torch

sys.path.insert(0, os.environ["MINTAGE_TIMM"])
# torchvision is built for one torch; two of its operators are all that its import asks for.
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer  # noqa: E402

from mintage.errors import UserError  # noqa: E402
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


def test_gradient_checkpointing_is_refused():
    model = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    model.set_grad_checkpointing(True)
    with pytest.raises(UserError, match="switch it off"), ToMe()(model):
        pass

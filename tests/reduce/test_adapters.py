"""Where things are in each family: what is pooled, what it costs, what is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BeitConfig, BeitModel, DeiTConfig, DeiTForImageClassification

from mintage.errors import UserError
from mintage.measure import count_flops
from mintage.reduce import AveragePool, RandomDrop, ToMe
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.core.families import SUPPORTED
from mintage.testing.reduce import law_models, merged_twins_change_nothing

NAMES = ("vit", "vit-eager", "deit", "dinov2", "dinov2-classifier", "dinov2-registers", "clip", "clip-classifier")
NAMES += ("siglip", "siglip-classifier")


def test_every_family_has_a_model():
    assert set(NAMES) == {name for name in law_models() if not name.startswith("timm-")}


@pytest.mark.parametrize("name", NAMES)
def test_merged_twins_change_nothing(name):
    merged_twins_change_nothing(law_models()[name])


@pytest.mark.parametrize(
    ("name", "prefix"), [("vit", 1), ("deit", 2), ("dinov2-registers", 5), ("clip", 1), ("siglip", 0)]
)
def test_prefix_tokens_are_counted(name, prefix):
    found = adapter_for(law_models()[name].model).anatomy()
    assert (found.prefix, found.patches, found.layers, found.dim, found.heads) == (prefix, 16, 4, 16, 2)


@pytest.mark.parametrize("method", [AveragePool(schedule="ratio=0.7"), RandomDrop(schedule="counts=16x10x10x3")])
@pytest.mark.parametrize("name", ["vit", "deit", "dinov2-classifier", "dinov2-registers"])
@torch.no_grad()
def test_the_formula_is_what_a_forward_costs(name, method):
    """These decide without a matrix product, so every multiply-add that is counted is the model's."""
    model, pixels = law_models()[name].model, torch.randn(1, 3, 16, 16)
    anatomy = adapter_for(model).anatomy()
    assert count_flops(lambda: model(pixels)) / 2 == anatomy.full
    with method(model) as session:
        flops = count_flops(lambda: model(pixels))
    kept = method.kept(session.anatomy)
    assert flops / 2 == anatomy.macs(kept) < anatomy.full


def test_deciding_is_in_what_is_counted():
    model, pixels = law_models()["vit"].model, torch.randn(1, 3, 16, 16)
    with torch.no_grad(), ToMe(schedule="counts=16x12x12x12")(model) as session:
        flops = count_flops(lambda: model(pixels))
    assert flops / 2 == session.anatomy.macs([16, 12, 12, 12]) + 8 * 8 * 8  # one product of 8 by 8 keys


def test_a_published_model_costs_what_its_paper_says():
    small = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 1000}
    with torch.device("meta"):
        model = DeiTForImageClassification(DeiTConfig(**small))
    anatomy = adapter_for(model).anatomy()
    assert replace(anatomy, prefix=1).full / 1e9 == pytest.approx(4.5992, rel=2e-4)


@pytest.mark.parametrize(
    "model",
    [
        lambda: nn.Linear(2, 2),
        lambda: BeitModel(
            BeitConfig(image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
    ],
    ids=["no transformer", "BEiT"],
)
def test_other_models_are_refused_with_the_list_of_those_supported(model):
    with pytest.raises(UserError, match=r"(Linear|BeitModel) has no reduce adapter; supported: ViT, DeiT") as error:
        ToMe()(model())
    assert str(error.value).endswith(SUPPORTED)
    assert "\n" not in str(error.value)

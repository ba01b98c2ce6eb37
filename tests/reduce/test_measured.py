"""Measurements of reducers, on a random model small enough to check by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mintage.bench.reduce.quality import Subject, decision_seconds, evenly_spread, plain_or
from mintage.errors import UserError
from mintage.measure import count_flops
from mintage.reduce import RandomDrop, ToMe
from mintage.reduce.core.scheduled import Scheduled
from mintage.testing import reduce as suite


@dataclass(frozen=True, kw_only=True, eq=False)
class KeepFirst(Scheduled):
    """Keeps the first patches."""

    def reduce(self, state, evidence, keep):
        return state.keep(torch.arange(keep).expand(state.x.shape[0], -1))

    @classmethod
    def tiny(cls):
        return cls()


@pytest.fixture(scope="module")
def classifier():
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        num_labels=5,
        initializer_range=0.3,
    )
    return ViTForImageClassification(config).eval()


@pytest.fixture
def subject(classifier):
    pixels = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = classifier(pixels).logits.argmax(1).numpy()
    labels[0] = (labels[0] + 1) % 5
    return Subject(classifier, pixels, labels, batch=3)


def test_the_unmodified_model_agrees_with_itself_and_is_judged_by_the_labels(subject):
    quality = subject.quality(None)
    assert quality.correct.tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert quality.agrees.all()
    assert np.abs(quality.divergence).max() < 1e-6
    assert subject.quality(KeepFirst(schedule="ratio=1")).divergence == pytest.approx(quality.divergence, abs=1e-6)


def test_divergence_is_that_of_the_unmodified_classes_to_the_arms(subject):
    quality = subject.quality(KeepFirst(schedule="ratio=0.5"))
    with KeepFirst(schedule="ratio=0.5")(subject.model), torch.no_grad():
        arm = subject.model(subject.pixels).logits.softmax(1)
    with torch.no_grad():
        own = subject.model(subject.pixels).logits.softmax(1)
    assert quality.divergence == pytest.approx((own * (own / arm).log()).sum(1).numpy(), abs=1e-5)
    assert quality.agrees.tolist() == (own.argmax(1) == arm.argmax(1)).double().tolist()


def test_costs_fall_with_the_tokens_and_match_the_formula(subject):
    reducer = KeepFirst(schedule="ratio=0.6")
    share = subject.macs(reducer) / subject.macs(None)
    assert subject.macs(None) == count_flops(lambda: subject.outputs(subject.pixels[:1])) / 2
    formula = subject.anatomy.macs(reducer.kept(subject.anatomy)) / subject.anatomy.full
    assert share == pytest.approx(formula, rel=0.03)
    assert subject.peak_bytes(reducer) <= subject.peak_bytes(None)


def test_every_arm_is_timed_in_every_turn(subject):
    seconds = subject.seconds({"unmodified": None, "first": KeepFirst(schedule="ratio=0.5")}, turn=1)
    assert list(seconds) == ["first", "unmodified"]
    assert min(seconds.values()) > 0
    assert 0 < decision_seconds(KeepFirst(schedule="ratio=0.5"), subject, repeats=2) < 1


def test_the_model_is_left_as_it_was(subject):
    kind = type(subject.model.vit.layers[0])
    decision_seconds(KeepFirst(schedule="ratio=0.5"), subject, repeats=1)
    with plain_or(None, subject.model) as session:
        assert session is None
    assert type(subject.model.vit.layers[0]) is kind


def test_a_model_without_classes_is_compared_by_its_features():
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    subject = Subject(Dinov2Model(config), torch.randn(2, 3, 16, 16))
    quality = subject.quality(KeepFirst(schedule="ratio=1"))
    assert quality.correct is None
    assert np.abs(quality.divergence).max() < 1e-6
    assert quality.agrees.all()


def test_other_image_sizes_have_other_patches():
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    assert Subject(Dinov2Model(config), torch.randn(1, 3, 32, 32)).anatomy.patches == 64


def test_no_images_are_refused(classifier):
    with pytest.raises(UserError, match="no images"):
        Subject(classifier, torch.zeros(0, 3, 16, 16))


def test_spread_is_even_and_never_more_than_there_are():
    assert evenly_spread(4, 8) == [0, 2, 4, 6]
    assert evenly_spread(4, 2) == [0, 1]


def test_a_map_is_as_good_as_its_patches():
    """The head sees a row per patch, whatever was merged; zeros where one was dropped."""
    torch.manual_seed(0)
    model = suite.law_models()["dinov2"].model.eval()

    class Norms(torch.nn.Module):
        def forward(self, patches, side):
            return patches.norm(dim=2).unflatten(1, (4, 4))

    subject = Subject(model, torch.randn(6, 3, 16, 16), head=Norms())
    assert subject.likeness(ToMe(schedule="ratio=1")) == pytest.approx(1)
    merged, dropped = ToMe(schedule="ratio=0.7"), RandomDrop(schedule="ratio=0.7")
    assert subject.likeness(merged).shape == (6,)
    assert subject.likeness(merged).mean() < 1 - 1e-6
    assert (subject.maps(dropped) == 0).any()
    assert not (subject.maps(merged) == 0).any()
    assert Subject(model, torch.randn(1, 3, 16, 16)).likeness(merged) is None

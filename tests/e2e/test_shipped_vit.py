"""The classifier that ships with mintage: what it must be, and that it is as good as its file says."""

import json
import os
from pathlib import Path

import pytest

from mintage.data.images import read_cifar10
from mintage.reduce.training.vit import top1
from mintage.vision import SHIPPED, load_image_classifier, shipped_classifier

DATA = Path(os.environ.get("MINTAGE_DATA", "/nowhere"), "cifar10_jpeg.npz")


def test_it_is_small_and_has_a_class_token_64_patches_and_8_blocks():
    assert shipped_classifier().stat().st_size < 12e6
    config = load_image_classifier().model.config
    assert config.num_hidden_layers >= 8
    assert (config.image_size // config.patch_size) ** 2 >= 64


def test_its_file_tells_how_it_was_made():
    notes = load_image_classifier(SHIPPED).notes
    assert "train vit" in notes["command"]
    assert json.loads(notes["log"].splitlines()[-1])["step"] == json.loads(notes["settings"])["steps"]


def test_its_accuracy_is_worth_measuring_reduction_on():
    _, share, _ = json.loads(load_image_classifier().notes["test"])["low, top1, high"]
    assert share >= 0.85


@pytest.mark.e2e
@pytest.mark.skipif(not DATA.exists(), reason="needs CIFAR-10 in MINTAGE_DATA")
def test_its_accuracy_is_what_the_file_says():
    classifier = load_image_classifier()
    _, told, _ = json.loads(classifier.notes["test"])["low, top1, high"]
    test = read_cifar10()[1]
    assert top1(classifier, test.take(range(0, len(test), 5))).value == pytest.approx(told, abs=0.03)

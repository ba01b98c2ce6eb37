"""The trained reducers that ship with mintage: they belong to the shipped classifier, and say how good they are."""

import json

import pytest
import torch

from mintage.reduce import SelfSlimmed, Sparsifiner
from mintage.vision import load_image_classifier


@pytest.fixture(scope="module")
def classifier():
    return load_image_classifier()


@pytest.mark.parametrize("kind", [SelfSlimmed, Sparsifiner])
def test_it_attaches_by_default_and_leaves_the_model_as_it_was(kind, classifier):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = classifier.model(pixels).logits
        with kind()(classifier.model) as session:
            reduced = classifier.model(pixels).logits
        assert torch.equal(classifier.model(pixels).logits, plain)
    assert not torch.allclose(reduced, plain, atol=1e-3)
    assert session.tokens[-1] == (9 if kind is SelfSlimmed else 65)


@pytest.mark.parametrize(
    ("notes", "steps"),
    [(SelfSlimmed().slimming.notes, 4000), (Sparsifiner().connectivity.notes, 1200)],
    ids=["sit", "sparsifiner"],
)
def test_files_tell_how_they_were_trained(notes, steps):
    settings = json.loads(notes["settings"])
    assert settings["steps"] == steps
    assert settings["model"] == "vit-tiny-cifar10"


def test_slimming_keeps_most_of_the_accuracy(classifier):
    notes = SelfSlimmed().slimming.notes
    found = json.loads(notes["test"])
    assert found["top1"][1] >= 0.9 * found["unmodified"][1]
    assert "mintage train sit-slim" in notes["command"]


def test_predicted_masks_keep_the_accuracy(classifier):
    connectivity = Sparsifiner().connectivity
    found = json.loads(connectivity.notes["test"])
    assert found["top1"][1] >= found["unmodified"][1] - 0.02
    assert "mintage train sparsifiner" in connectivity.notes["command"]

"""The claim checks of SiT and Sparsifiner on a toy transformer: every row is there, and says what was measured."""

import json

import numpy as np
import pytest
import torch

from mintage.bench.reduce.quality import Subject
from mintage.data.images import Images
from mintage.measure import Figure
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.core.artefact import Imprint
from mintage.reduce.sit_slim import SelfSlimmed, Slimming
from mintage.reduce.sparsifiner import Connectivity, Sparsifiner
from mintage.studies import sit_slim, sparsifiner
from mintage.vision import ImageClassifier, Preprocessing, SmallViT

CLASSES = ("above", "below")


def toy(count=60, seed=0):
    """Two classes: bright above, or bright below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(0, 120, (count, 16, 16, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, 8 * label : 8 * (label + 1)] += 120
    return Images(list(pixels), [str(i) for i in range(count)], labels, CLASSES)


@pytest.fixture
def classifier(monkeypatch):
    torch.manual_seed(0)
    sizes = SmallViT(image_size=16, stem=(4, 8, 8), stem_blocks=(0, 0, 0), hidden=16, layers=4, heads=2, classes=2)
    model = sizes.build(labels=CLASSES).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.normal_(0, 1)  # else all attention is uniform
    preprocess = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    made = ImageClassifier(model, preprocess, CLASSES, "toy")
    for module in (sit_slim, sparsifiner):
        monkeypatch.setattr(module, "load_image_classifier", lambda name: made)
    monkeypatch.setattr("mintage.reduce.training.images.read_cifar10", lambda: (toy(), toy(20, 1)))
    return made


def test_slimming(classifier, monkeypatch, tmp_path):
    for name, value in (("STEPS", 2), ("BATCH", 6), ("ROUNDS", 2)):
        monkeypatch.setattr(sit_slim, name, value)
    shipped = Slimming(16, (1, 1, 1, 1), (8, 4, 2), imprint=Imprint.of(classifier.model), notes={"command": "made"})
    monkeypatch.setattr(sit_slim, "SelfSlimmed", lambda weights=shipped: SelfSlimmed(weights=weights))
    seen = []
    rows = sit_slim.run(work=tmp_path, limit=10, progress=lambda done, of, label: seen.append(label))
    assert [r.metric.partition(",")[0] for r in rows] == [
        "top-1 of slimming taught by tokens and logits minus that of class attention",
        "top-1 of slimming taught by tokens and logits minus that of slimming",
        "top-1 of slimming taught by tokens and logits minus that of average pooling",
        "top-1 over the teacher's",
        "images per second over the teacher's",
    ]
    assert [r.verdict == "measured" for r in rows] == [False, False, True, False, False]
    assert all(r.n == 10 for r in rows[:4])
    assert set(rows[0].peers) == {"slimming, logits", "class attention", "average pooling"}
    assert rows[4].peers["multiply-adds of the teacher over its own"] > 1
    assert rows[3].settings["tokens"] == "8x4x2"
    assert "class attention: step 2 of 2" in seen
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_killed_check_of_slimming_goes_on(classifier, monkeypatch, tmp_path):
    for name, value in (("STEPS", 2), ("BATCH", 6)):
        monkeypatch.setattr(sit_slim, name, value)

    def kill(done, of, label):
        if label == "class attention":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sit_slim.run(model="mine", work=tmp_path, progress=kill)
    seen = []
    rows = sit_slim.run(model="mine", work=tmp_path, progress=lambda done, of, label: seen.append(label))
    assert len(rows) == 3  # the shipped weights belong to the shipped model
    assert not [label for label in seen if label.startswith("slimming") and "step" in label]


def test_masks(classifier, monkeypatch, tmp_path):
    monkeypatch.setattr(sparsifiner, "LENGTHS", (33, 197))
    monkeypatch.setattr(sparsifiner, "READ", 8)
    monkeypatch.setattr(sparsifiner, "ROUNDS", 2)
    held = Connectivity.new(adapter_for(classifier.model).anatomy())
    held.notes["settings"] = json.dumps({"keep_rate": 0.25})
    rows = sparsifiner.run(work=tmp_path, weights=held, limit=10)
    assert sum(isinstance(row, Figure) for row in rows) == 1
    found = {row.metric: row for row in rows if not isinstance(row, Figure)}
    assert len(found) == 2 * 4 + 2
    for percent in (25, 10):
        mass = found[f"attention kept by predicted masks, {percent}% of the keys"]
        assert mass.peers["oracle"] == max([mass.value, *mass.peers.values()])
        assert mass.peers["random"] == pytest.approx(percent, abs=8)
        lost = found[f"top-1 lost with predicted masks, tuned, {percent}% of the keys"]
        assert {"sparsifiner, not tuned", "oracle, not tuned", "window, not tuned", "random, not tuned"} <= set(
            lost.peers
        )
    assert found["top-1 lost with predicted masks, tuned, 25% of the keys"].verdict != "measured"


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_kept_mass_by_its_definition(classifier, density):
    held = Connectivity.new(adapter_for(classifier.model).anatomy())
    images = toy(6)
    subject = Subject(classifier.model, classifier.preprocess(images.pixels), images.labels, batch=4)
    found = sparsifiner.kept_mass(subject, sparsifiner._arms(held, density), 6)
    wanted = []
    budget = int(np.ceil(density * 17))

    def see(evidence, layer):
        attention = evidence.attention()[:, :, 1:]
        wanted.append(attention.topk(budget).values.sum(-1).mean((1, 2)))

    with sparsifiner.Watch(see=see)(classifier.model), torch.no_grad():
        classifier.model(subject.pixels)
    np.testing.assert_allclose(found["oracle"], torch.stack(wanted).mean(0), rtol=1e-5)
    assert all(len(values) == 6 for values in found.values())


def test_the_window_reads_the_class_token_and_the_nearest_patches(classifier):
    held = Connectivity.new(adapter_for(classifier.model).anatomy())
    guess = sparsifiner._Window(weights=held).guess
    seen = []
    with sparsifiner.Watch(see=lambda e, layer: seen.append(guess(e, layer)))(classifier.model), torch.no_grad():
        classifier.model(torch.randn(2, 3, 16, 16))
    nearest = seen[0][0, 0, 5].topk(6).indices.tolist()  # of a grid of 4x4, the patch in row 1, column 1
    assert set(nearest) == {0, 6, 2, 5, 7, 10}


def test_all_rival_masks_read_as_much(classifier):
    held = Connectivity.new(adapter_for(classifier.model).anatomy())
    rates = {arm.keep_rate for arm in sparsifiner._arms(held, 0.3).values()}
    assert rates == {0.3}
    assert all(isinstance(arm, Sparsifiner) and not arm.fine_tuned for arm in sparsifiner._arms(held, 0.3).values())

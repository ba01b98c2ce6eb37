"""The claim checks of PiToMe, Zero-TPrune and DiffRate, run whole on a random model and a few images."""

import numpy as np
import pytest
import torch

from mintage.bench.reduce import measures as at_equal_macs
from mintage.bench.reduce.quality import Subject
from mintage.data.images import Images
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.reduce.training.images import Lessons
from mintage.studies import diffrate, pitome, zero_tprune
from mintage.vision import ImageClassifier, Preprocessing

CLASSES = tuple("abcde")


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
    grey = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    return ImageClassifier(ViTForImageClassification(config).eval(), grey, CLASSES, "random")


@pytest.fixture(autouse=True)
def small(monkeypatch, classifier):
    """A random classifier and eight images that it classifies right, in the place of all."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = classifier.model(classifier.preprocess(list(pixels))).logits.argmax(1).numpy()
    test = Images([*pixels[:8]], [str(i) for i in range(8)], labels[:8], CLASSES)
    monkeypatch.setattr(at_equal_macs, "load_image_classifier", lambda name: classifier)
    monkeypatch.setattr(at_equal_macs, "test_images", lambda: test)
    monkeypatch.setattr(at_equal_macs, "_ROUNDS", 2)
    monkeypatch.setattr(zero_tprune, "SHARES", (0.8, 0.65))
    monkeypatch.setattr(pitome, "SHARES", (0.5,))
    monkeypatch.setattr(diffrate, "BATCH", 4)
    monkeypatch.setattr(diffrate, "read_lessons", lambda _: Lessons(classifier, pixels, labels, test, "noise"))


def by_metric(rows):
    return {row.metric: row for row in rows if isinstance(row, Result)}


def test_zero_tprune_killed_and_run_again(tmp_path, monkeypatch):
    measured = []
    whole = Subject.quality
    monkeypatch.setattr(Subject, "quality", lambda self, arm: measured.append(arm) or whole(self, arm))

    def stop(done, of, label):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zero_tprune.run(work=tmp_path, progress=stop)
    assert len(measured) == 3
    measured.clear()
    rows = zero_tprune.run(work=tmp_path, command="mintage bench zero-tprune")
    assert len(measured) == 8 - 3 + len(zero_tprune.VARIANTS)
    found = by_metric(rows)
    lost = found["top-1 lost at -35% MACs"]
    assert lost.baseline == {"unmodified": 0.0}
    assert set(lost.peers) == {"class-attention", "random-drop", "tome"}
    assert lost.verdict == ("holds" if lost.value <= 1 else "does not hold")
    for other in ("random-drop", "class-attention"):
        row = found[f"top-1 minus that of {other} at -35% MACs"]
        assert row.verdict == ("holds" if row.interval[0] > 0 else "does not hold")
        ours = row.baseline["unmodified"] - lost.value
        assert row.value == pytest.approx(ours - row.peers[other])
    assert sum("the variant" in metric for metric in found) == len(zero_tprune.VARIANTS)
    assert found["images per second at -35% MACs"].value > 0
    assert any(isinstance(row, Figure) for row in rows)
    assert not tmp_path.exists()


def test_pitome(tmp_path):
    found = by_metric(pitome.run(work=tmp_path))
    claimed = [row for row in found.values() if row.claim]
    assert len(claimed) == 4  # accuracy and distance, whole images and small things
    for row in claimed:
        assert row.verdict == ("holds" if row.interval[0] > 0 else "does not hold")
    row = found["half of what ToMe loses minus what PiToMe loses at -50% MACs"]
    plain, tome = row.baseline["unmodified"], row.peers["tome"]
    ours = found["top-1 minus that of ToMe at -50% MACs"].value + tome
    assert row.value == pytest.approx(0.5 * (plain - tome) - (plain - ours))


def test_small_things_on_plain_ground():
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(5)]
    made = pitome.small_on_plain(images, seed=3)
    for image, canvas in zip(images, made, strict=True):
        assert canvas.shape == image.shape
        assert canvas.dtype == np.uint8
        ground = image.mean((0, 1)).round().astype(np.uint8)
        plain = (canvas == ground).all(-1)
        rows, columns = np.flatnonzero(~plain.all(1)), np.flatnonzero(~plain.all(0))
        assert np.ptp(rows) < 16
        assert np.ptp(columns) < 16
        inside = canvas[rows[0] : rows[0] + 16, columns[0] : columns[0] + 16]
        assert inside[0, 0] == pytest.approx(image[:2, :2].mean((0, 1)), abs=1)
    assert all((a == b).all() for a, b in zip(made, pitome.small_on_plain(images, seed=3), strict=True))


def test_diffrate(tmp_path):
    found = by_metric(diffrate.run(work=tmp_path, steps=4))
    off = found["distance of the searched schedule's multiply-adds from the budget"]
    assert off.verdict == ("holds" if off.value < 2 else "does not hold")
    assert sum(metric.startswith("top-1 minus that of") for metric in found) == 6
    flat = found["greatest minus least share of the patches that a block keeps"]
    assert "patches kept: 16, " in flat.note


def test_a_share_that_the_method_cannot_reach_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(zero_tprune, "CLAIMED", 0.05)
    monkeypatch.setattr(zero_tprune, "SHARES", (0.8, 0.05))
    with pytest.raises(UserError, match="cannot be reached in layers"):
        zero_tprune.run(work=tmp_path)

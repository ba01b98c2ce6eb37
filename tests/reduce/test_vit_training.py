"""Training the small transformer: augmentation, batches, the whole run on toy images."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.data.images import Images
from mintage.errors import UserError
from mintage.progress import silent
from mintage.reduce.training.augmentation import augmented
from mintage.reduce.training.vit import TrainedViT, ViTTraining
from mintage.reduce.training.vit_recipe import CIFAR_PREPROCESSING, ViTRecipe, top1
from mintage.vision import SmallViT, load_image_classifier

SIZES = SmallViT(image_size=16, stem=(4, 8), stem_blocks=(0, 1), hidden=16, layers=2, heads=2, classes=2)


def toy(count, seed):
    """Two classes: bright above, or bright below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(0, 120, (count, 16, 16, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, 8 * label : 8 * label + 8] += 120
    return Images(list(pixels), [str(i) for i in range(count)], labels, ("above", "below"))


def data():
    return toy(80, 0), toy(40, 1)


@pytest.fixture(autouse=True)
def toy_images(monkeypatch):
    monkeypatch.setattr("mintage.reduce.training.vit.read_cifar10", data)


def training(**changed):
    given = {"epochs": 6.0, "batch_rows": 12, "small": 8, "lr": 1e-2, "ema": 0.8, "hidden": 16, "layers": 2, "heads": 2}
    return ViTTraining(**given | {"stem": (4, 8), "stem_blocks": (0, 1)} | changed)


def run(tmp_path, name="run", command="", progress=silent, **changed):
    path = tmp_path / f"{name}.safetensors"
    training(**changed).run(path, tmp_path / name, command=command, progress=progress)
    return load_image_classifier(str(path))


# -- augmentation --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), height=st.integers(6, 12), width=st.integers(6, 12))
def test_every_image_is_a_shifted_perhaps_flipped_view_of_itself(seed, height, width):
    pixels = torch.randint(0, 256, (5, height, width, 3), dtype=torch.uint8)
    out = augmented(pixels, torch.Generator().manual_seed(seed), cut=0)
    assert out.shape == (5, 3, height, width)
    for image, got in zip(pixels.permute(0, 3, 1, 2).float(), out, strict=True):
        mirrored = torch.nn.functional.pad(image[None], (4,) * 4, mode="reflect")[0]
        views = mirrored.unfold(1, height, 1).unfold(2, width, 1).flatten(1, 2).transpose(0, 1)
        views = torch.cat([views, views.flip(-1)])
        assert (views == got).flatten(1).all(1).any()


def test_the_cut_is_one_square_of_the_images_mean():
    pixels = torch.randint(0, 256, (64, 16, 16, 3), dtype=torch.uint8)
    whole = augmented(pixels, torch.Generator().manual_seed(3), cut=0)
    out = augmented(pixels, torch.Generator().manual_seed(3), cut=6)
    changed = (out != whole).any(1)
    assert changed.flatten(1).sum(1).min() >= 9  # a corner of the square at least
    assert changed.flatten(1).sum(1).max() == 36
    for got, before, hole in zip(out, whole, changed, strict=True):
        assert torch.allclose(got[:, hole], before.mean((1, 2))[:, None].expand(3, int(hole.sum())))


# -- batches -------------------------------------------------------------------------------------------------------


def recipe(**changed):
    images = toy(20, 0)
    return ViTRecipe(SIZES.build(), images.stacked(), images.labels, **({"batch_rows": 5} | changed))


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    first, other = recipe(), recipe()
    later = other.batch(9)
    assert all(torch.equal(first.batch(9)[k], later[k]) for k in later)
    assert not torch.equal(first.batch(8)["pixels"], later["pixels"])
    assert not torch.equal(recipe(seed=1).batch(9)["pixels"], later["pixels"])


def test_an_epoch_holds_every_image_once():
    images = toy(20, 0)
    made = ViTRecipe(SIZES.build(), images.stacked(), np.arange(20), batch_rows=5)
    for epoch in range(2):
        labels = torch.cat([made.batch(4 * epoch + i)["labels"] for i in range(4)])
        assert sorted(labels.tolist()) == list(range(20))


def test_the_first_batches_are_small():
    made = recipe(small=8, small_batches=2)
    assert [made.batch(i)["pixels"].shape[-1] for i in range(4)] == [8, 8, 16, 16]
    loss, metrics = made.loss(made.module, made.batch(0))
    assert loss.isfinite()
    assert 0 <= metrics["right"] <= 1


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="batch_rows=21 with 20 training images"):
        recipe(batch_rows=21)


# -- the whole run -------------------------------------------------------------------------------------------------


def test_it_learns_and_tells_how_well(tmp_path):
    made = run(tmp_path, command="mintage train vit --toy")
    assert "test accuracy" in training().summary(TrainedViT(made, SIZES))
    assert json.loads(made.notes["settings"])["epochs"] == 6.0
    low, share, high = json.loads(made.notes["test"])["low, top1, high"]
    assert low <= share <= high
    assert share > 0.9
    assert made.notes["command"] == "mintage train vit --toy"
    assert made.notes["data"] == "72 training images, 8 held out, 40 test images"
    assert json.loads(made.notes["log"].splitlines()[-1])["step"] == 36
    assert top1(made, data()[1]).value == pytest.approx(share, abs=1e-4)
    again = load_image_classifier(str(tmp_path / "run.safetensors"))
    assert again.labels == ("above", "below")


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    often = ViTTraining.settings
    monkeypatch.setattr(ViTTraining, "settings", lambda self, steps: replace(often(self, steps), save_every=5))
    whole = run(tmp_path, "whole", epochs=3.0)

    def stop(stage, done, of):
        if stage == "train" and done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "parts", epochs=3.0, progress=stop)
    assert not (tmp_path / "parts.safetensors").exists()
    steps = []
    parts = run(tmp_path, "parts", epochs=3.0, progress=lambda stage, done, of: steps.append((stage, done)))
    assert steps[0] == ("train", 11)
    # as the function that it replaced, to whose run all weights were equal bit by bit
    assert json.loads(whole.notes["log"].splitlines()[-1])["loss"] == pytest.approx(0.6951656, rel=1e-4)
    for (name, one), (_, other) in zip(whole.model.state_dict().items(), parts.model.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


WORKER = """
import sys
import numpy as np
from mintage.data.images import Images
from mintage.reduce.training import vit

pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
images = Images(list(pixels), list(map(str, range(60))), np.arange(60) % 2, ("even", "odd"))
vit.read_cifar10 = lambda: (images, images)
sizes = {"stem": (4, 8), "stem_blocks": (0, 0), "hidden": 8, "layers": 1, "heads": 1}
out, told = sys.argv[1], []
training = vit.ViTTraining(**sizes, epochs=2.0, batch_rows=6, small=4)
made = training.run(out + "/x.safetensors", out + "/work", progress=lambda *a: told.append(a))
print(bool(made.classifier.notes), bool(told))
"""


def test_two_processes_share_a_batch_and_one_writes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    joint = {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | joint | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    told = [worker.communicate(timeout=240) for worker in workers]
    assert [out.strip() for out, _ in told] == ["True True", "False False"], told
    notes = load_image_classifier(str(tmp_path / "x.safetensors")).notes
    assert notes["processes"] == "2"
    assert json.loads(notes["log"].splitlines()[-1])["step"] == 18  # two epochs of 54 // 6 steps, not of 54 // 12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0.0}, "epochs=0.0 is out of range; pass a number above 0"),
        ({"small_share": 1.5}, r"small_share=1.5 is out of range; pass a number in \[0, 1\]"),
        ({"small": 7}, "not a multiple of 2"),
        ({"stem": (4,) * 6, "stem_blocks": (0,) * 6}, "is not a multiple of the patch's 32 pixels"),
        ({"stem": (4, 8), "stem_blocks": (0,)}, "pass channels and as many counts"),
        ({"batch_rows": 100}, "batch_rows=100 with 72 training images"),
        ({"lr": 0.0}, "lr=0.0 is out of range"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **wrong)


def test_images_without_labels_or_not_square_are_refused(tmp_path, monkeypatch):
    made = run(tmp_path, epochs=0.2)
    blank = Images(toy(4, 0).pixels, list("abcd"))
    flat = toy(20, 0)
    flat = replace(flat, pixels=[pixels[:8] for pixels in flat.pixels])
    for images, said in ((blank, "no labels"), (flat, "have 8x16 pixels; the model takes square ones")):
        monkeypatch.setattr("mintage.reduce.training.vit.read_cifar10", lambda images=images: (images, images))
        with pytest.raises(UserError, match=said):
            run(tmp_path, said)
    with pytest.raises(UserError, match="no labels"):
        top1(made, blank)


def test_the_mean_and_deviation_are_cifars():
    assert CIFAR_PREPROCESSING.size == (32, 32)
    middle = np.full((32, 32, 3), 125, np.uint8)
    assert CIFAR_PREPROCESSING([middle]).abs().max() < 0.25

"""The job's bench, on a random model of the shipped kind and a folder of made-up images."""

import numpy as np
import pytest

from mintage.bench.reduce import joint as bench
from mintage.errors import UserError
from mintage.measure import Figure, Result


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A small classifier as a file, and a folder of images in two classes."""
    image = pytest.importorskip("PIL.Image")
    import torch

    from mintage.vision import Preprocessing, SmallViT, save_image_classifier

    folder = tmp_path_factory.mktemp("reduce")
    sizes = SmallViT(image_size=16, stem=(8, 8, 16), stem_blocks=(0, 0, 0), hidden=16, layers=4, heads=2, classes=2)
    torch.manual_seed(0)
    preprocess = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    save_image_classifier(
        sizes.build(labels=("cat", "dog")), sizes, preprocess, ("cat", "dog"), folder / "m.safetensors", notes={}
    )
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            image.fromarray(pixels).save(folder / "images" / label / f"{number}.png")
    return str(folder / "m.safetensors"), str(folder / "images")


def run(inputs, tmp_path, *methods, **settings):
    model, images = inputs
    return bench.run(methods, model=model, **{"images": images, "budgets": (70,), "work": tmp_path / "work"} | settings)


def test_every_arm_is_measured_beside_the_unmodified_model(inputs, tmp_path):
    seen = []
    rows = run(inputs, tmp_path, "tome", "random-drop", progress=lambda done, of, label: seen.append((done, of)))
    results = [row for row in rows if isinstance(row, Result)]
    assert {row.method for row in results} == {"tome", "random-drop"}
    assert all("unmodified" in row.baseline for row in results)
    by_metric = {row.metric: row for row in results if row.method == "tome"}
    assert by_metric["multiply-adds at -30% MACs"].value == pytest.approx(0.7, abs=0.08)
    assert by_metric["top-1 accuracy at -30% MACs"].n == 8
    assert by_metric["images per second at -30% MACs"].value > 0
    assert seen[-1][0] == seen[-1][1]
    assert not (tmp_path / "work").exists()  # nothing is left of a run that ended


def test_the_figures_show_costs_and_what_becomes_of_the_patches(inputs, tmp_path):
    figures = {row.name: row for row in run(inputs, tmp_path, "tome") if isinstance(row, Figure)}
    patches = next(row for name, row in figures.items() if name.startswith("patches-tome"))
    image = patches.data["images"][0]
    groups = [group for row in image["groups"] for group in row]
    assert len(image["groups"]) == 4
    assert None not in groups  # a merger drops nothing
    assert len(set(groups)) < len(groups)
    assert any(name.startswith("accuracy") for name in figures)


def test_a_killed_run_goes_on_where_it_was(inputs, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def killed(done, of, label):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        run(inputs, tmp_path, "tome", "random-drop", progress=killed)
    monkeypatch.setattr(bench.Subject, "quality", lambda *_: pytest.fail("measured again"))
    assert run(inputs, tmp_path, "tome", "random-drop")


def test_what_cannot_be_reached_is_left_out_by_name(inputs, tmp_path):
    rows = run(inputs, tmp_path, "tome:schedule=ratio=0.9@3", "random-drop", budgets=(70, 97))
    absent = rows[0].settings["left out"]
    assert list(absent) == ["tome:schedule=ratio=0.9@3 at 70%"]
    assert "cannot be reached" in absent["tome:schedule=ratio=0.9@3 at 70%"]


@pytest.mark.parametrize(
    ("methods", "settings", "told"),
    [
        (("tome",), {"budgets": (0,)}, "pass percents"),
        (("tome",), {"budgets": (120,)}, "pass percents"),
        (("nothing",), {}, "unknown method 'nothing'"),
        (("tome",), {"images": None}, "pass --images"),
        (("tome:schedule=ratio=0.9@3",), {"budgets": (20,)}, "cannot be measured"),
    ],
)
def test_wrong_input_is_told(inputs, tmp_path, methods, settings, told):
    with pytest.raises(UserError) as caught:
        run(inputs, tmp_path, *methods, **settings)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_named_or_skipped(inputs, tmp_path):
    import shutil

    model, images = inputs
    broken = shutil.copytree(images, tmp_path / "images")
    (broken / "cat" / "9.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"9\.png is not a readable image"):
        run((model, str(broken)), tmp_path, "tome")
    rows = run((model, str(broken)), tmp_path, "tome", on_error="skip")
    assert "1 broken" in rows[0].data

"""The job's bench, on a random model of the shipped kind and a folder of made-up images."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from as_before import assert_fields

from mintage.bench.reduce.inputs import GivenImages
from mintage.bench.reduce.joint import ReduceBench
from mintage.errors import UserError
from mintage.measure import Figure, Result

GOLDEN = Path(__file__).parent / "golden_bench.json"


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
    model = sizes.build(labels=("cat", "dog"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20)  # else all attention is uniform
    save_image_classifier(model, sizes, preprocess, ("cat", "dog"), folder / "m.safetensors", notes={})
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(4):
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            image.fromarray(pixels).save(folder / "images" / label / f"{number}.png")
    return str(folder / "m.safetensors"), str(folder / "images")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(inputs, *methods, progress=lambda *told: None, **settings):
    model, images = inputs
    return ReduceBench(model=model, **{"images": images, "macs": (70,)} | settings).run(methods, progress=progress)


def plain(row):
    """What is compared: all but the machine, where files lie, and what a clock says."""
    held = json.loads(json.dumps(dataclasses.asdict(row)))
    if isinstance(row, Figure):
        for image in held["data"].get("images", ()):
            image.pop("src")
        if row.title.startswith("Images per second"):
            for line in held["data"]["series"]:
                line.pop("y")
    elif row.metric.startswith(("images per second", "time to decide")):
        held["peers"] = dict.fromkeys(held["peers"])
    return held


def test_rows_are_the_golden_ones(inputs):
    """They were written by the function that this comparison replaced."""
    made = run(inputs, "tome", "pitome:variant=auto", "random-drop", macs=(85, 70))
    made = [row for row in made if not getattr(row, "claim", "")]  # about seconds alone
    golden = [json.loads(line.rstrip(",")) for line in GOLDEN.read_text().splitlines()[1:-1]]
    assert len(made) == len(golden)
    for row, wanted in zip(made, golden, strict=True):
        assert_fields(plain(row), wanted, wanted.get("metric") or wanted["title"])


def test_every_arm_is_measured_beside_the_unmodified_model(inputs, tmp_path):
    seen = []
    rows = run(inputs, "tome", "random-drop", progress=lambda *told: seen.append(told))
    results = [row for row in rows if isinstance(row, Result)]
    assert {row.method for row in results} == {"tome", "random-drop"}
    assert all("unmodified" in row.baseline for row in results)
    by_metric = {row.metric: row for row in results if row.method == "tome"}
    assert by_metric["multiply-adds at -30% MACs"].value == pytest.approx(0.7, abs=0.08)
    assert by_metric["top-1 accuracy at -30% MACs"].n == 8
    assert by_metric["images per second at -30% MACs"].value > 0
    assert seen[-1][1] == seen[-1][2] == 24
    assert {stage for stage, _, _ in seen} == {"quality", "seconds at -30% MACs"}
    assert not list((tmp_path / ".mintage").rglob("*.jsonl"))  # nothing is left of a run that ended


def test_the_figures_show_costs_and_what_becomes_of_the_patches(inputs):
    figures = {row.name: row for row in run(inputs, "tome") if isinstance(row, Figure)}
    patches = next(row for name, row in figures.items() if name.startswith("patches-tome"))
    image = patches.data["images"][0]
    groups = [group for row in image["groups"] for group in row]
    assert len(image["groups"]) == 4
    assert None not in groups  # a merger drops nothing
    assert len(set(groups)) < len(groups)
    assert any(name.startswith("accuracy") for name in figures)


def test_a_killed_run_goes_on_where_it_was(inputs, monkeypatch):
    class Killed(Exception):
        pass

    def killed(stage, done, of):
        if stage != "quality" and done == 2:
            raise Killed

    with pytest.raises(Killed):
        run(inputs, "tome", "random-drop", progress=killed)
    monkeypatch.setattr(GivenImages, "quality", lambda *_: pytest.fail("measured again"))
    assert run(inputs, "tome", "random-drop")


def test_what_cannot_be_reached_is_left_out_by_name(inputs):
    rows = run(inputs, "tome:schedule=ratio=0.9@3", "random-drop", macs=(70, 97))
    absent = rows[0].settings["left out"]
    assert list(absent) == ["tome:schedule=ratio=0.9@3 at 70%"]
    assert "cannot be reached" in absent["tome:schedule=ratio=0.9@3 at 70%"]


@pytest.mark.parametrize(
    ("methods", "settings", "told"),
    [
        (("tome",), {"macs": (0,)}, "macs=0 is out of range; pass a number in (0, 100)"),
        (("tome",), {"macs": (120,)}, "out of range"),
        (("tome",), {"macs": ()}, "pass percents"),
        (("tome:r=3",), {}, "tome has no setting 'r'"),
        (("nothing",), {}, "unknown method 'nothing'"),
        (("tome",), {"images": None}, "pass --images"),
        (("tome:schedule=ratio=0.9@3",), {"macs": (20,)}, "cannot be measured"),
    ],
)
def test_wrong_input_is_told(inputs, methods, settings, told):
    with pytest.raises(UserError) as caught:
        run(inputs, *methods, **settings)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_named_or_skipped(inputs, tmp_path):
    import shutil

    model, images = inputs
    broken = shutil.copytree(images, tmp_path / "images")
    (broken / "cat" / "9.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"9\.png is not a readable image"):
        run((model, str(broken)), "tome")
    rows = run((model, str(broken)), "tome", on_error="skip")
    assert "1 broken" in rows[0].data


def test_a_model_that_takes_any_size_is_timed_at_several(inputs, monkeypatch):
    from transformers import Dinov2Config, Dinov2Model

    from mintage.bench.reduce import inputs as loading
    from mintage.bench.reduce import joint
    from mintage.vision import ImageClassifier, Preprocessing

    config = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=16, patch_size=4)
    grey = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    made = ImageClassifier(Dinov2Model(config).eval(), grey, (), "toy")
    monkeypatch.setattr(loading, "load_image_classifier", lambda name, device: made)
    monkeypatch.setattr(joint, "SIZES", (16, 24))
    rows = run(inputs, "tome")
    sized = next(row for row in rows if isinstance(row, Result) and "pixels" in row.metric)
    assert sized.metric == "images per second at 24 pixels at -30% MACs, tome"
    assert sized.n == 4
    assert sized.note.startswith("pays")
    figure = next(row for row in rows if isinstance(row, Figure) and row.name == "image-size")
    assert figure.data["series"][0]["x"] == [16, 24]
    assert not [row for row in rows if isinstance(row, Result) and row.metric.startswith("top-1")]  # no classes


def test_a_method_trained_for_one_setting_runs_at_that_one(inputs, tmp_path):
    from mintage.reduce.core.adapters import adapter_for
    from mintage.reduce.sit_slim import Slimming
    from mintage.vision import load_image_classifier

    anatomy = adapter_for(load_image_classifier(inputs[0]).model).anatomy()
    Slimming.new(anatomy, (1, 1, 2), counts=(8, 4)).save(tmp_path / "slim.safetensors")
    spec = f"sit-slim:weights={tmp_path / 'slim.safetensors'}"
    rows = run(inputs, spec, macs=(70, 50))
    assert {row.metric for row in rows if isinstance(row, Result) and "multiply-adds" in row.metric} == {
        f"multiply-adds as trained, {spec}"
    }

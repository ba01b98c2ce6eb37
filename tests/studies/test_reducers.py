"""The studies of reducers, whole, on a toy transformer and toy images: their rows, and a killed run.

The golden rows were written by the claim checks that these studies replaced. What a clock says is not in them: numbers
of rows about seconds, and the verdicts that follow from them.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mintage.bench.reduce import measures
from mintage.bench.reduce.quality import Subject
from mintage.bench.reduce.small_things import small_on_plain
from mintage.data.images import Images
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.measure.study import run_study
from mintage.studies.diffrate import DiffRateStudy
from mintage.studies.pitome import PiToMeStudy
from mintage.studies.zero_tprune import VARIANTS, ZeroTPruneStudy
from mintage.vision import ImageClassifier, Preprocessing, SmallViT

GOLDEN = Path(__file__).parent / "golden"
CLASSES = ("above", "below")


def images_of(count, seed):
    """Two classes: bright above, or bright below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(0, 120, (count, 16, 16, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, 8 * label : 8 * (label + 1)] += 120
    return Images(list(pixels), [str(i) for i in range(count)], labels, CLASSES)


@pytest.fixture(autouse=True)
def classifier(monkeypatch):
    """A random transformer whose attention is not uniform, and few images, in the place of the shipped ones."""
    torch.manual_seed(0)
    sizes = SmallViT(image_size=16, stem=(4, 8, 8), stem_blocks=(0, 0, 0), hidden=16, layers=4, heads=2, classes=2)
    model = sizes.build(labels=CLASSES).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20)
    preprocess = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    made = ImageClassifier(model, preprocess, CLASSES, "toy")
    monkeypatch.setattr(measures, "load_image_classifier", lambda name: made)
    monkeypatch.setattr("mintage.reduce.training.images.read_cifar10", lambda: (images_of(60, 0), images_of(20, 1)))
    return made


PITOME = PiToMeStudy(test_images=16, shares=(0.8, 0.5), rounds=2)
ZERO_TPRUNE = ZeroTPruneStudy(test_images=16, shares=(0.8, 0.65), rounds=2)
DIFFRATE = DiffRateStudy(test_images=16, steps=4, batch_rows=6)


def by_name(rows):
    return {row.metric if isinstance(row, Result) else row.name: row for row in rows}


def same(got, wanted, where):
    if isinstance(wanted, dict):
        assert list(got) == list(wanted), where
        for key, value in wanted.items():
            same(got[key], value, f"{where}, {key}")
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), where
        for one, other in zip(got, wanted, strict=True):
            same(one, other, where)
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=1e-5, abs=1e-6), where
    elif wanted is not None:  # nothing stands for seconds
        assert got == wanted, where


@pytest.mark.parametrize("study", [PITOME, ZERO_TPRUNE, DIFFRATE], ids=lambda study: study.method)
def test_rows_are_the_golden_ones(study, tmp_path):
    made = by_name(run_study(study, work=tmp_path / "work"))
    golden = [json.loads(line.rstrip(",")) for line in (GOLDEN / f"{study.method}.json").read_text().splitlines()[1:-1]]
    assert sorted(made) == sorted(row.get("metric") or row["name"] for row in golden)
    for wanted in golden:
        name = wanted.get("metric") or wanted["name"]
        row = json.loads(json.dumps(dataclasses.asdict(made[name])))
        if isinstance(made[name], Figure) and name == "sparse-attention-speed":
            row["data"]["series"] = [{k: v for k, v in line.items() if k != "y"} for line in row["data"]["series"]]
        same({key: row[key] for key in wanted}, wanted, name)
        assert not row.get("claim") or row["rule"] or row["verdict"] != "measured", name
    assert not (tmp_path / "work").exists()  # nothing is left of a run that ended


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    measured = []
    whole = Subject.quality
    monkeypatch.setattr(Subject, "quality", lambda self, arm: measured.append(arm) or whole(self, arm))

    def stop(stage, done, of):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(ZERO_TPRUNE, work=tmp_path, progress=stop)
    assert len(measured) == 3
    measured.clear()
    found = by_name(run_study(ZERO_TPRUNE, work=tmp_path))
    assert len(measured) == 8 - 3 + len(VARIANTS)
    lost = found["top-1 lost at -35% MACs"]
    for other in ("random-drop", "class-attention"):
        row = found[f"top-1 minus that of {other} at -35% MACs"]
        assert row.verdict == ("holds" if row.interval[0] > 0 else "does not hold")
        assert row.value == pytest.approx(row.baseline["unmodified"] - lost.value - row.peers[other])
    assert found["images per second at -35% MACs"].value > 0


def test_what_pitome_loses_adds_up(tmp_path):
    found = by_name(run_study(PITOME, work=tmp_path))
    claimed = [row for row in found.values() if isinstance(row, Result) and row.claim]
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
    made = small_on_plain(images, seed=3)
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
    assert all((a == b).all() for a, b in zip(made, small_on_plain(images, seed=3), strict=True))


def test_the_searched_schedule_is_told(tmp_path):
    found = by_name(run_study(DIFFRATE, work=tmp_path))
    off = found["distance of the searched schedule's multiply-adds from the budget"]
    assert off.verdict == ("holds" if off.value < 2 else "does not hold")
    assert sum(metric.startswith("top-1 minus that of") for metric in found) == 6
    flat = found["greatest minus least share of the patches that a block keeps"]
    assert "patches kept: 16, " in flat.note


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (ZeroTPruneStudy(shares=(0.8, 0.05), claimed=0.05), "cannot be reached in layers"),
        (ZeroTPruneStudy(shares=(0.8,)), "shares lack 0.65"),
        (PiToMeStudy(shares=(0.8, 0.05), claimed=0.05), "cannot be reached by halving"),
    ],
    ids=["unreachable", "absent", "halving"],
)
def test_a_share_that_nothing_can_be_claimed_about_is_told(study, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run_study(study, work=tmp_path)


def test_what_cannot_be_reached_is_left_out_by_name(tmp_path):
    rows = run_study(ZeroTPruneStudy(test_images=4, shares=(0.65, 0.3), rounds=1), work=tmp_path)
    assert set(rows[0].settings["left out"]) >= {"tome at 30%", "random-drop at 30%"}

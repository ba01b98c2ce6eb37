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
from as_before import assert_fields

from mintage.bench.reduce import attention_speed, measures
from mintage.bench.reduce.attention_masks import MASKS, NearestPatches, kept_mass
from mintage.bench.reduce.quality import Subject
from mintage.bench.reduce.small_things import small_on_plain
from mintage.data.images import Images
from mintage.errors import UserError
from mintage.measure import Figure, Result
from mintage.measure.study import run_study
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.sit_slim import Slimming
from mintage.reduce.sparsifiner import Connectivity, Sparsifiner
from mintage.reduce.training.connectivity import Watch
from mintage.studies.diffrate import DiffRateStudy
from mintage.studies.pitome import PiToMeStudy
from mintage.studies.sit_slim import SitSlimStudy
from mintage.studies.sparsifiner import SparsifinerStudy
from mintage.studies.zero_tprune import VARIANTS, ZeroTPruneStudy
from mintage.vision import ImageClassifier, Preprocessing, SmallViT
from mintage.weights import Imprint

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


@pytest.fixture
def slimming(classifier, tmp_path):
    """A file of untrained slimming modules."""
    anatomy = adapter_for(classifier.model).anatomy()
    made = Slimming.new(anatomy, (1, 1, 1, 1), counts=(8, 4, 2), init_std=0.5)
    made.imprint = Imprint.of(classifier.model)
    made.save(tmp_path / "slim.safetensors", {"command": "made"})
    return str(tmp_path / "slim.safetensors")


@pytest.fixture
def connectivity(classifier):
    """Predictors whose weights say something, of a transformer that was tuned a little."""
    made = Connectivity.new(adapter_for(classifier.model).anatomy(), reduce_tokens=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.modules.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    made.backbone = {n: 1.01 * t for n, t in classifier.model.state_dict().items() if t.is_floating_point()}
    made.imprint, made.notes = Imprint.of(classifier.model), {"command": "made"}
    return made


def sit_slim(weights, **given):
    return SitSlimStudy(**{"test_images": 16, "steps": 2, "batch_rows": 6, "rounds": 2, "weights": weights} | given)


def sparsifiner(connectivity, tmp_path, **notes):
    connectivity.save(tmp_path / "sparse.safetensors", notes)
    weights = str(tmp_path / "sparse.safetensors")
    return SparsifinerStudy(test_images=16, lengths=(33, 197), read=8, rounds=2, weights=weights)


PITOME = PiToMeStudy(test_images=16, shares=(0.8, 0.5), rounds=2)
ZERO_TPRUNE = ZeroTPruneStudy(test_images=16, shares=(0.8, 0.65), rounds=2)
DIFFRATE = DiffRateStudy(test_images=16, steps=4, batch_rows=6)


def by_name(rows):
    return {row.metric if isinstance(row, Result) else row.name: row for row in rows}


@pytest.mark.parametrize("method", ["pitome", "zero-tprune", "diffrate", "sit-slim", "sparsifiner"])
def test_rows_are_the_golden_ones(method, slimming, connectivity, tmp_path):
    studies = {study.method: study for study in (PITOME, ZERO_TPRUNE, DIFFRATE, sit_slim(slimming))}
    study = studies.get(method) or sparsifiner(connectivity, tmp_path)
    made = by_name(run_study(study, work=tmp_path / "work"))
    golden = [json.loads(line.rstrip(",")) for line in (GOLDEN / f"{study.method}.json").read_text().splitlines()[1:-1]]
    assert sorted(made) == sorted(row.get("metric") or row["name"] for row in golden)
    for wanted in golden:
        name = wanted.get("metric") or wanted["name"]
        row = json.loads(json.dumps(dataclasses.asdict(made[name])))
        if isinstance(made[name], Figure) and name == "sparse-attention-speed":
            row["data"]["series"] = [{k: v for k, v in line.items() if k != "y"} for line in row["data"]["series"]]
        assert_fields(row, wanted, name)
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


# -- what is trained ---------------------------------------------------------------------------------------------------


def test_students_and_the_shipped_weights(slimming, tmp_path):
    seen = []
    rows = run_study(sit_slim(slimming), work=tmp_path / "work", progress=lambda *told: seen.append(told))
    assert [r.verdict == "measured" for r in rows] == [False, False, True, False, False]
    assert all(r.n == 16 for r in rows[:4])
    assert set(rows[0].peers) == {"slimming, logits", "class attention", "average pooling"}
    assert rows[4].peers["multiply-adds of the teacher over its own"] > 1
    assert rows[3].settings["tokens"] == "8x4x2"
    assert ("train class attention", 2, 2) in seen
    assert not list((tmp_path / "work").rglob("*.safetensors"))


def test_a_killed_study_of_slimming_trains_no_student_again(tmp_path):
    study = sit_slim("", model="mine")

    def kill(stage, done, of):
        if stage == "train class attention":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, work=tmp_path, progress=kill)
    seen = []
    rows = run_study(study, work=tmp_path, progress=lambda stage, done, of: seen.append(stage))
    assert len(rows) == 3  # the shipped weights belong to the shipped model
    assert not [stage for stage in seen if stage.startswith("train slimming")]


def test_masks_are_compared_by_density(connectivity, tmp_path):
    study = sparsifiner(connectivity, tmp_path, settings=json.dumps({"keep_rate": 0.25}))
    found = by_name(run_study(study, work=tmp_path / "work"))
    assert len(found) == 2 * 4 + 2 + 1
    for percent in (25, 10):
        mass = found[f"attention kept by predicted masks, {percent}% of the keys"]
        assert mass.peers["oracle"] == max([mass.value, *mass.peers.values()])
        lost = found[f"top-1 lost with predicted masks, tuned, {percent}% of the keys"]
        assert {f"{name}, not tuned" for name in MASKS} <= set(lost.peers)
        assert "tuned for 25% of the keys" in lost.note
    assert found["top-1 lost with predicted masks, tuned, 25% of the keys"].verdict != "measured"


def test_attention_that_would_not_fit_is_not_timed(monkeypatch):
    monkeypatch.setattr(attention_speed, "paired_time", lambda *_, **__: pytest.fail("timed"))
    assert attention_speed.attention_seconds(8193, 2049, heads=4, dim=32, rounds=1, seed=0) is None


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_kept_mass_by_its_definition(classifier, density):
    held = Connectivity.new(adapter_for(classifier.model).anatomy())
    images = images_of(6, 0)
    subject = Subject(classifier.model, classifier.preprocess(images.pixels), images.labels, batch=4)
    oracle = MASKS["oracle"](keep_rate=density, weights=held, fine_tuned=False)
    found = kept_mass(subject, oracle, 6)
    wanted = []
    budget = int(np.ceil(density * 17))

    def see(evidence, layer):
        attention = evidence.attention()[:, :, 1:]
        wanted.append(attention.topk(budget).values.sum(-1).mean((1, 2)))

    with Watch(see=see)(classifier.model), torch.no_grad():
        classifier.model(subject.pixels)
    np.testing.assert_allclose(found, torch.stack(wanted).mean(0), rtol=1e-5)
    assert len(found) == 6


def test_the_window_reads_the_class_token_and_the_nearest_patches(classifier):
    held = Connectivity.new(adapter_for(classifier.model).anatomy())
    guess = NearestPatches(weights=held).guess
    seen = []
    with Watch(see=lambda e, layer: seen.append(guess(e, layer)))(classifier.model), torch.no_grad():
        classifier.model(torch.randn(2, 3, 16, 16))
    nearest = seen[0][0, 0, 5].topk(6).indices.tolist()  # of a grid of 4x4, the patch in row 1, column 1
    assert set(nearest) == {0, 6, 2, 5, 7, 10}


def test_all_masks_of_a_density_read_as_much(connectivity, tmp_path):
    from mintage.measure.study import Run

    study = sparsifiner(connectivity, tmp_path)
    arms = study.arms(Run(study, work=tmp_path / "work"))
    masks = [arms[f"{name}, 0.1"] for name in MASKS]
    assert {arm.keep_rate for arm in masks} == {0.1}
    assert all(isinstance(arm, Sparsifiner) and not arm.fine_tuned for arm in masks)

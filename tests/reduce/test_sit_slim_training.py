"""Feature recalibration distillation: the loss, who learns, and the whole run on toy images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.data.images import Images
from mintage.errors import UserError
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.sit_slim import SelfSlimmed, Slimming
from mintage.reduce.training.images import read_training_images
from mintage.reduce.training.recalibration import ReverseTokenSlimming, frd_loss
from mintage.reduce.training.sit_slim import SitSlimTraining
from mintage.reduce.training.slimmed_student import Distillation, Student, block_outputs
from mintage.train.training import Work
from mintage.vision import ImageClassifier, Preprocessing, SmallViT

VECTORS = Path(__file__).parents[1] / "vectors" / "sit-slim"
PREPROCESS = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
CLASSES = ("above", "below")


def toy(count=60, seed=0, size=16):
    """Two classes: bright above, or bright below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(0, 120, (count, size, size, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, size // 2 * label : size // 2 * (label + 1)] += 120
    return Images(list(pixels), [str(i) for i in range(count)], labels, CLASSES)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    sizes = SmallViT(image_size=16, stem=(4, 8, 8), stem_blocks=(0, 0, 0), hidden=16, layers=4, heads=2, classes=2)
    return ImageClassifier(sizes.build(labels=CLASSES).eval(), PREPROCESS, CLASSES, "toy")


@pytest.fixture
def lessons(classifier, monkeypatch):
    monkeypatch.setattr("mintage.reduce.training.images.read_cifar10", lambda: (toy(), toy(20, 1)))
    monkeypatch.setattr("mintage.reduce.training.images.load_image_classifier", lambda name: classifier)
    return read_training_images(classifier)


# -- the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["slim_and_recover", "slim_to_one"])
def test_parity_of_the_reverse_module(case):
    held = np.load(VECTORS / f"{case}.npz")
    slim = torch.tensor(held["slim"])
    module = ReverseTokenSlimming(slim.shape[2], int(held["kept"]), int(held["recovered"]), ratio=2.0)
    names = {"norm1": "norm1", "norm2": "norm2", "mlp1.0": "mlp1.fc1", "mlp1.2": "mlp1.fc2"}
    names |= {"mlp2.0": "mlp2.fc1", "mlp2.2": "mlp2.fc2"}
    module.load_state_dict(
        {f"{n}.{p}": torch.tensor(held[f"rtsm.{t}.{p}"]) for n, t in names.items() for p in ("weight", "bias")}
    )
    with torch.no_grad():
        np.testing.assert_allclose(module(slim), held["recovered_tokens"], atol=1e-5)


def test_the_reverse_module_knows_the_order_of_its_tokens():
    module = ReverseTokenSlimming(6, 4, 9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
        x = torch.randn(1, 4, 6)
        assert module(x).shape == (1, 9, 6)
        assert not torch.allclose(module(x), module(x.flip(1)), atol=1e-3)


def test_parity_of_the_loss():
    held = np.load(VECTORS / "distillation_loss.npz")
    student = torch.tensor(held["student_logits"], requires_grad=True)
    tokens, taught = torch.tensor(held["student_tokens"]), torch.tensor(held["teacher_tokens"])
    weights = {name: float(held[name]) for name in ("lambda_token", "lambda_logits", "tau")}
    found = frd_loss(
        tokens, taught, student, torch.tensor(held["teacher_logits"]), torch.tensor(held["labels"]), **weights
    )
    found.loss.backward()
    for got, name in zip(found, ("loss", "loss_cls", "loss_token", "loss_logits"), strict=True):
        np.testing.assert_allclose(got.detach(), held[name], rtol=1e-5)
    np.testing.assert_allclose(student.grad, held["grad_student_logits"], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(tau=st.floats(0.5, 4), token=st.floats(0, 5), logits=st.floats(0, 5), seed=st.integers(0, 99))
def test_the_loss_by_its_formula(tau, token, logits, seed):
    g = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(3, 2, 5, 4, generator=g).double() for _ in range(2))
    a, b = (torch.randn(2, 6, generator=g).double() for _ in range(2))
    labels = torch.tensor([1, 4])
    found = frd_loss(s, t, a, b, labels, lambda_token=token, lambda_logits=logits, tau=tau)
    p, q = (b / tau).softmax(1), (a / tau).softmax(1)
    torch.testing.assert_close(found.logits, logits * tau**2 * (p * (p.log() - q.log())).sum() / 2)
    torch.testing.assert_close(found.token, token * sum(((x - y) ** 2).mean() for x, y in zip(s, t, strict=True)) / 3)
    torch.testing.assert_close(found.classes, -a.log_softmax(1)[[0, 1], labels].mean())
    mixed = torch.nn.functional.one_hot(labels, 6).double()  # probabilities say the same
    torch.testing.assert_close(frd_loss(s, t, a, b, mixed, tau=tau).classes, found.classes)


def test_no_tokens_leave_that_part_out():
    a, labels = torch.randn(2, 6), torch.tensor([1, 4])
    found = frd_loss([], [], a, a, labels)
    assert found.token == 0
    torch.testing.assert_close(found.loss, found.classes)


# -- student and teacher -------------------------------------------------------------------------------------------


def slimming_of(classifier, stages, counts):
    return Slimming.new(adapter_for(classifier.model).anatomy(), stages, counts=counts)


def recipe(classifier, lessons, stages=(1, 2, 1), counts=(8, 3), **given):
    import copy

    slimming = slimming_of(classifier, stages, counts)
    student = Student(copy.deepcopy(classifier.model), SelfSlimmed(weights=slimming), **given)
    return Distillation(student, classifier.model, lessons.batches(8, cut=0, seed=0))


def test_reverse_modules_stand_behind_every_block_with_fewer_tokens(classifier, lessons):
    student = recipe(classifier, lessons).module
    assert {k: (m.mlp1[0].in_features, m.mlp1[2].out_features) for k, m in student.reverse.items()} == {
        "0": (8, 16), "1": (8, 16), "2": (3, 16), "3": (3, 16),
    }  # fmt: skip
    assert set(recipe(classifier, lessons, (2, 2), (5,)).module.reverse) == {"1", "2", "3"}
    logits, tokens = student(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 2)
    assert [tuple(t.shape) for t in tokens] == [(2, 16, 16)] * 4


def test_gradients_reach_everything_but_the_teacher(classifier, lessons):
    made = recipe(classifier, lessons)
    loss, parts = made.loss(made.module, made.batch(0))
    loss.backward()
    for name, parameter in made.module.named_parameters():
        assert parameter.grad is not None, name
        assert "bias" in name or parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in classifier.model.parameters())
    assert loss.item() == pytest.approx(parts["classes"] + parts["token"] + parts["logits"], rel=1e-5)


def test_without_stages_student_and_teacher_are_one(classifier, lessons):
    made = recipe(classifier, lessons, (4,), ())
    made.module.eval()
    _, parts = made.loss(made.module, made.batch(0))
    assert parts["token"] == 0
    assert parts["logits"] == pytest.approx(0, abs=1e-6)
    assert len(made.module.reverse) == 0


def test_tokens_are_paired_with_those_of_the_same_block(classifier, lessons):
    """Before the first slimming the student's tokens are the teacher's."""
    made = recipe(classifier, lessons, (2, 2), (5,))
    made.module.eval()
    pixels = made.batch(0)["pixels"]
    with torch.no_grad(), block_outputs(adapter_for(classifier.model)) as held:
        classifier.model(pixels)
    with torch.no_grad():
        _, tokens = made.module(pixels)
    torch.testing.assert_close(tokens[0], held[0][:, 1:])
    assert len(held) == len(tokens) == 4
    assert all(not layer._forward_hooks for layer in adapter_for(classifier.model).layers)


# -- the whole -----------------------------------------------------------------------------------------------------


def test_a_run_learns_and_its_file_works_without_what_only_training_needs(classifier, lessons, tmp_path):
    training = SitSlimTraining(stages=(1, 1, 2), counts=(4, 2), steps=40, batch_rows=18, lr=5e-3)
    path = tmp_path / "slim.safetensors"
    before = {name: t.clone() for name, t in classifier.model.state_dict().items()}
    made = training.run(path, tmp_path / "run", command="mintage train sit-slim")
    assert made.notes["held out"] in training.summary(made)
    made = Slimming.load(path)
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    log = [json.loads(line) for line in (tmp_path / "run" / "train" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    assert made.notes["command"] == "mintage train sit-slim"
    assert json.loads(made.notes["settings"])["steps"] == 40
    assert {"top1", "unmodified"} == set(json.loads(made.notes["test"])) == set(json.loads(made.notes["held out"]))
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert not [name for name in names if "reverse" in name or "mlp1" in name]
    assert len([name for name in names if name.startswith("modules.")]) == 2 * 7
    again = Slimming.load(path)
    with SelfSlimmed(weights=again)(classifier.model) as session, torch.no_grad():
        classifier.model(torch.randn(2, 3, 16, 16))
    assert session.tokens == [17, 5, 3, 3]


def test_the_saved_student_is_the_trained_one(classifier, lessons, tmp_path):
    slimming = slimming_of(classifier, (1, 3), (4,))
    training = SitSlimTraining(steps=3, batch_rows=9)
    model = training.distil(lessons, SelfSlimmed(weights=slimming), Work(tmp_path / "run"))
    pixels = torch.randn(2, 3, 16, 16)
    slimming.backbone = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    slimming.save(tmp_path / "slim.safetensors")
    bare = Slimming(16, (1, 3), (4,))
    bare.modules.load_state_dict(slimming.modules.state_dict())
    with torch.no_grad():
        with SelfSlimmed(weights=bare)(model):
            wanted = model(pixels).logits
        with SelfSlimmed(weights=str(tmp_path / "slim.safetensors"))(classifier.model):
            got = classifier.model(pixels).logits
    torch.testing.assert_close(got, wanted, atol=5e-3, rtol=5e-3)


def test_a_killed_run_takes_the_steps_it_would_have_taken(classifier, lessons, tmp_path, monkeypatch):
    often = SitSlimTraining.settings
    monkeypatch.setattr(SitSlimTraining, "settings", lambda self, **given: often(self, **given, save_every=2))

    def run(folder, progress):
        slimming = slimming_of(classifier, (1, 3), (4,))
        work = Work(tmp_path / folder, progress=progress)
        SitSlimTraining(steps=5, batch_rows=4).distil(lessons, SelfSlimmed(weights=slimming), work)
        return slimming.modules.state_dict()

    def kill(stage, done, of):
        if done == 3:
            raise KeyboardInterrupt

    def watch(stage, done, of):
        seen.append(done)

    seen = []
    with pytest.raises(KeyboardInterrupt):
        run("killed", kill)
    resumed = run("killed", watch)
    assert seen == [3, 4, 5]
    for name, tensor in run("whole", watch).items():
        torch.testing.assert_close(tensor, resumed[name])


def test_bad_settings(lessons, tmp_path):
    for name, value in (("tau", 0.0), ("lambda_token", -1.0), ("ratio", 1.0), ("steps", 0)):
        with pytest.raises(UserError, match=f"{name}={value} is out of range"):
            SitSlimTraining(**{name: value})
    with pytest.raises(UserError, match=r"batch_rows=500 with 54 training images"):
        SitSlimTraining(stages=(1, 3), batch_rows=500).run(tmp_path / "x.safetensors", tmp_path / "a")
    with pytest.raises(UserError, match="this model has 4"):
        SitSlimTraining(stages=(1, 1)).run(tmp_path / "x.safetensors", tmp_path / "b")


def test_a_trained_slimming_is_the_one_of_before(lessons, tmp_path):
    """Numbers of a run of the function that this training replaced, to which weights were equal bit by bit."""
    made = SitSlimTraining(stages=(1, 1, 2), counts=(4, 2), steps=5, batch_rows=9).run(tmp_path / "x", tmp_path / "run")
    assert json.loads(made.notes["log"])["loss"] == pytest.approx(0.7925410, rel=1e-4)


# -- images --------------------------------------------------------------------------------------------------------


def test_lessons_hold_out_a_tenth(lessons):
    assert len(lessons.labels) == 54
    assert len(lessons.held_out) == 6
    assert lessons.pixels.shape == (54, 16, 16, 3)


def test_lessons_from_a_folder_are_resized_and_numbered_by_the_classifier(classifier, tmp_path):
    from PIL import Image

    images = toy(30, size=20)
    for name, pixels, label in zip(images.names, images.pixels, images.labels, strict=True):
        folder = tmp_path / ("Below" if label else "ABOVE")
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    made = read_training_images(classifier, tmp_path, limit=20)
    assert made.pixels.shape == (18, 16, 16, 3)
    assert made.pixels.dtype == np.uint8
    bright_below = made.pixels[:, 8:].mean((1, 2, 3)) > made.pixels[:, :8].mean((1, 2, 3))
    np.testing.assert_array_equal(bright_below, made.labels)
    (tmp_path / "sideways").mkdir()
    Image.fromarray(images.pixels[0]).save(tmp_path / "sideways" / "0.png")
    with pytest.raises(UserError, match="toy knows no class 'sideways'"):
        read_training_images(classifier, tmp_path)
    Image.fromarray(images.pixels[0]).save(tmp_path / "0.png")
    with pytest.raises(UserError, match="have no labels"):
        read_training_images(classifier, tmp_path)

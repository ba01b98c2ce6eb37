"""Both phases of training predicted connectivity: who learns what, and the whole run on toy images."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.data.images import Images
from mintage.errors import UserError
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.sparsifiner import Connectivity, Sparsifiner
from mintage.reduce.training.connectivity import Predictors, Reconstruction, Watch
from mintage.reduce.training.images import read_training_images
from mintage.reduce.training.sparse_tuning import SparseStudent, Tuning, final_tokens, tuning_loss
from mintage.reduce.training.sparsifiner import SparsifinerTraining
from mintage.vision import ImageClassifier, Preprocessing, SmallViT

PREPROCESS = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
CLASSES = ("above", "below")


def toy(count=60, seed=0):
    """Two classes: bright above, or bright below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(0, 120, (count, 16, 16, 3), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, 8 * label : 8 * (label + 1)] += 120
    return Images(list(pixels), [str(i) for i in range(count)], labels, CLASSES)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    sizes = SmallViT(image_size=16, stem=(4, 8, 8), stem_blocks=(0, 0, 0), hidden=16, layers=2, heads=2, classes=2)
    model = sizes.build(labels=CLASSES).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter.normal_(0, 0.7)  # else all attention is uniform
    return ImageClassifier(model, PREPROCESS, CLASSES, "toy")


@pytest.fixture
def lessons(classifier, monkeypatch):
    monkeypatch.setattr("mintage.reduce.training.images.read_cifar10", lambda: (toy(), toy(20, 1)))
    monkeypatch.setattr("mintage.reduce.training.images.load_image_classifier", lambda name: classifier)
    return read_training_images(classifier)


def connectivity(classifier):
    return Connectivity.new(adapter_for(classifier.model).anatomy(), reduce_tokens=2)


def test_a_watch_sees_every_layer_and_changes_nothing(classifier):
    pixels, seen = torch.randn(2, 3, 16, 16), []
    with torch.no_grad():
        plain = classifier.model(pixels).logits
        with Watch(see=lambda evidence, layer: seen.append((layer, evidence.query.shape)))(classifier.model):
            assert torch.equal(classifier.model(pixels).logits, plain)
    assert seen == [(0, (2, 2, 17, 8)), (1, (2, 2, 17, 8))]


def test_phase_one_is_the_mean_over_layers_of_squared_errors(classifier, lessons):
    held = connectivity(classifier)
    recipe = Reconstruction(Predictors(classifier.model, held), lessons.batches(3, cut=0, seed=0))
    batch = recipe.batch(0)
    loss, parts = recipe.loss(recipe.module, batch)
    wanted = []

    def check(evidence, layer):
        predictor = held.modules[str(layer)]
        coef = predictor.query(evidence.query[:, :, 1:]) @ (
            predictor.key(evidence.key).transpose(2, 3) @ predictor.down
        )
        guess = (coef * predictor.scale).softmax(-1) @ predictor.up.T
        wanted.append((guess - evidence.attention()[:, :, 1:]).square().sum((1, 2, 3)).mean().item())

    with Watch(see=check)(classifier.model), torch.no_grad():
        classifier.model(batch["pixels"])
    assert loss.item() == pytest.approx(0.01 * np.mean(wanted), rel=1e-4)
    assert parts["last layer"] == pytest.approx(wanted[-1], rel=1e-4)


def test_phase_one_trains_predictors_only(classifier, lessons):
    held = connectivity(classifier)
    with torch.no_grad():
        for parameter in held.modules.parameters():
            parameter.normal_()
    recipe = Reconstruction(Predictors(classifier.model, held), lessons.batches(3, cut=0, seed=0))
    assert {id(p) for p in recipe.module.parameters()} == {id(p) for p in held.modules.parameters()}
    recipe.loss(recipe.module, recipe.batch(0))[0].backward()
    for name, parameter in held.modules.named_parameters():
        assert parameter.grad is not None, name
        assert name.endswith("key.bias") or parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in classifier.model.parameters())
    assert not classifier.model.training


@settings(max_examples=20, deadline=None)
@given(logits=st.floats(0, 3), token=st.floats(0, 3), seed=st.integers(0, 99))
def test_the_loss_of_phase_two_by_its_formula(logits, token, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(3, 4, generator=g).double() for _ in range(2))
    s, t = (torch.randn(3, 5, 6, generator=g).double() for _ in range(2))
    labels = torch.tensor([0, 3, 1])
    found = tuning_loss(a, b, labels, s, t, lambda_logits=logits, lambda_token=token)
    p, q = b.softmax(1), a.softmax(1)
    torch.testing.assert_close(found.logits, logits * (p * (p.log() - q.log())).sum() / 3)
    torch.testing.assert_close(found.token, token * ((s - t) ** 2).mean())
    torch.testing.assert_close(found.loss, found.classes + found.logits + found.token)


@pytest.mark.parametrize("prune", [1.0, 0.5])
def test_phase_two_trains_the_transformer_only(classifier, lessons, prune):
    held = connectivity(classifier)
    reducer = Sparsifiner(weights=held, prune=prune, prune_at=(0,))
    student = SparseStudent(copy.deepcopy(classifier.model), reducer)
    recipe = Tuning(student, classifier.model, lessons.batches(3, cut=0, seed=0))
    loss, parts = recipe.loss(student.train(), recipe.batch(0))
    loss.backward()
    assert parts["token"] > 0
    assert all(p.grad is None for p in [*held.modules.parameters(), *classifier.model.parameters()])
    reached = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("q_proj" in n for n in reached)
    assert any("projection" in n for n in reached)


def test_a_dense_student_is_its_teacher(classifier, lessons):
    dense = Sparsifiner(weights=connectivity(classifier), keep_rate=1.0)
    student = SparseStudent(copy.deepcopy(classifier.model), dense)
    recipe = Tuning(student, classifier.model, lessons.batches(3, cut=0, seed=0))
    _, parts = recipe.loss(student.eval(), recipe.batch(0))
    assert parts["logits"] == pytest.approx(0, abs=1e-6)
    assert parts["token"] == pytest.approx(0, abs=1e-10)


def test_last_tokens_are_behind_the_last_norm(classifier):
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), final_tokens(adapter_for(classifier.model)) as held:
        wanted = classifier.model.vit(pixels).last_hidden_state
    assert torch.equal(held[-1], wanted)
    assert held[-1].mean().abs() < 0.1


def test_a_run_learns_the_attention_and_its_file_works(classifier, lessons, tmp_path):
    path = tmp_path / "sparse.safetensors"
    before = {name: t.clone() for name, t in classifier.model.state_dict().items()}
    given = {"steps": 60, "lr": 2e-2, "tuning_steps": 4, "batch_rows": 18, "keep_rate": 0.3, "reduce_tokens": 2}
    SparsifinerTraining(**given).run(path, tmp_path / "run", command="mintage")
    made = Connectivity.load(path)
    for name, tensor in classifier.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    log = [json.loads(line) for line in (tmp_path / "run" / "predictors" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    assert json.loads(made.notes["settings"])["tuning_steps"] == 4
    assert {"top1", "unmodified"} == set(json.loads(made.notes["test"])) == set(json.loads(made.notes["held out"]))
    again = Connectivity.load(path)
    assert again.options == {"reduce_tokens": 2, "reduce_channels": 2, "coef_topk": 8}
    assert again.notes["command"] == "mintage"
    assert set(again.backbone) == {n for n, t in classifier.model.state_dict().items() if t.is_floating_point()}
    assert any(not torch.equal(again.backbone[n], t.half().float()) for n, t in before.items() if n in again.backbone)
    with Sparsifiner(weights=again)(classifier.model), torch.no_grad():
        assert classifier.model(torch.randn(2, 3, 16, 16)).logits.isfinite().all()


def test_without_phase_two_the_transformer_stays(classifier, lessons, tmp_path):
    made = SparsifinerTraining(steps=2, tuning_steps=0, batch_rows=6).run(tmp_path / "a.safetensors", tmp_path / "run")
    assert made.backbone == {}
    with pytest.raises(UserError, match="tuning_steps=-1 is out of range; pass a number at least 0"):
        SparsifinerTraining(tuning_steps=-1)


def test_trained_predictors_are_those_of_before(lessons, tmp_path):
    """Numbers of a run of the function that this training replaced, to which weights were equal bit by bit."""
    training = SparsifinerTraining(steps=5, tuning_steps=4, batch_rows=9, prune=0.5, reduce_tokens=2)
    training.run(tmp_path / "x", tmp_path / "run")
    for stage, wanted in {"predictors": 0.03463711, "backbone": 1.1249308}.items():
        log = (tmp_path / "run" / stage / "log.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["loss"] == pytest.approx(wanted, rel=1e-4), stage

"""Image classifiers: the small transformer, its file, what images go through, and loading others'."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mintage.errors import UserError
from mintage.vision import (
    Preprocessing,
    SmallViT,
    load_image_classifier,
    load_vit_s14,
    save_image_classifier,
)

SIZES = SmallViT(image_size=16, stem=(4, 8), stem_blocks=(0, 1), hidden=16, layers=2, heads=2, classes=3)
PLAIN = Preprocessing(size=(16, 16), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = SIZES.build(labels="abc").eval()
    save_image_classifier(model, SIZES, PLAIN, "abc", tmp_path / "x.safetensors", notes={"command": "by hand"})
    return tmp_path / "x.safetensors", model


# -- the model -----------------------------------------------------------------------------------------------------


def test_it_is_a_transformers_vit_with_a_class_token_and_a_token_per_patch():
    model = SIZES.build().eval()
    out = model(torch.randn(2, 3, 16, 16), output_hidden_states=True)
    assert type(model).__name__ == "ViTForImageClassification"
    assert out.logits.shape == (2, 3)
    assert [h.shape for h in out.hidden_states] == [(2, 1 + 64, 16)] * 3


def test_the_default_has_64_patches_and_8_blocks_and_fits_in_12_megabytes():
    model = SmallViT().build()
    assert model.config.num_hidden_layers == 8
    assert model.vit.embeddings.position_embeddings.shape[1] == 65
    assert sum(p.numel() for p in model.parameters()) * 2 < 12e6


def test_smaller_images_have_fewer_patches():
    model = SIZES.build().eval()
    assert model(torch.randn(1, 3, 8, 8), interpolate_pos_encoding=True).logits.shape == (1, 3)


def test_the_stem_sees_only_a_patchs_neighbourhood():
    stem = SmallViT().build().vit.embeddings.patch_embeddings.projection.eval()
    image = torch.randn(1, 3, 32, 32)
    other = image.clone()
    other[..., 0, 0] += 1
    moved = (stem(image) - stem(other)).abs().amax(1)[0] > 0
    assert moved[0, 0]
    assert not moved[4:].any()
    assert not moved[:, 4:].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden": 30}, "not a multiple of heads=4"),
        ({"layers": 0}, "layers=0 is not positive"),
        ({"image_size": 30}, "not a multiple of the patch's 4 pixels"),
        ({"stem_blocks": (0, 1)}, "as many counts"),
        ({"stem": (), "stem_blocks": ()}, "pass channels"),
        ({"stem_blocks": (0, -1, 0)}, "as many counts"),
    ],
)
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        SmallViT(**wrong)


# -- what images go through ----------------------------------------------------------------------------------------


def test_an_image_of_the_right_size_is_only_normalised():
    image = noise(16, 16)
    got = PLAIN([image])[0]
    want = (image / 255 - np.array(PLAIN.mean)) / np.array(PLAIN.std)
    assert np.allclose(got.permute(1, 2, 0).numpy(), want, atol=1e-5)


def test_images_of_any_size_make_one_batch_of_the_same_size():
    assert PLAIN([noise(16, 16), noise(40, 9), noise(3, 5)]).shape == (3, 3, 16, 16)


def test_the_centre_is_cropped_where_the_shorter_side_is_asked_for():
    crop = Preprocessing(size=(4, 4), shortest=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = np.zeros((4, 12, 3), np.uint8)
    image[:, 4:8] = 255
    assert torch.equal(crop([image]), torch.ones(1, 3, 4, 4))
    assert crop([noise(5, 64)]).shape == (1, 3, 4, 4)


def test_resizing_never_leaves_the_range_of_pixels():
    edges = np.zeros((40, 40, 3), np.uint8)
    edges[:, ::2] = 255
    out = Preprocessing(size=(33, 33), mean=(0.0,) * 3, std=(1.0,) * 3)([edges])
    assert out.min() >= 0
    assert out.max() <= 1


# -- its file ------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(saved):
    path, model = saved
    loaded = load_image_classifier(str(path))
    assert loaded.labels == ("a", "b", "c")
    assert loaded.preprocess == PLAIN
    assert loaded.notes == {"command": "by hand"}
    assert not loaded.model.training
    assert loaded.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    pixels = PLAIN([noise(16, 16)])
    model.half().float()
    assert torch.equal(loaded.logits(pixels), model(pixels).logits)


def test_a_missing_file_and_other_files_are_told(tmp_path):
    with pytest.raises(UserError, match="does not exist; make it with mintage train vit"):
        load_image_classifier(str(tmp_path / "none.safetensors"))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="expected 'mintage image classifier 1'"):
        load_image_classifier(str(tmp_path / "other.safetensors"))
    (tmp_path / "junk.safetensors").write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(UserError, match="cannot read"):
        load_image_classifier(str(tmp_path / "junk.safetensors"))


def test_damaged_files_are_told(saved):
    path, _ = saved
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(tensors | {"classifier.bias": torch.full((3,), float("nan")).half()}, path, metadata=metadata)
    with pytest.raises(UserError, match=r"classifier\.bias is not finite"):
        load_image_classifier(str(path))
    save_file({n: t for n, t in tensors.items() if n != "classifier.bias"}, path, metadata=metadata)
    with pytest.raises(UserError, match="other tensors than its sizes say"):
        load_image_classifier(str(path))
    save_file(tensors, path, metadata=metadata | {"sizes": "{"})
    with pytest.raises(UserError, match="cannot read"):
        load_image_classifier(str(path))


# -- others' models ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_folder(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=2, id2label={0: "no", 1: "yes"},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (
            {"size": {"height": 16, "width": 16}, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 3},
            Preprocessing(size=(16, 16), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), mode="bicubic"),
        ),
        (
            {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}},
            Preprocessing(size=(16, 16), shortest=20, mean=(0.5,) * 3, std=(0.5,) * 3, mode="bilinear"),
        ),
        (
            {"size": 16, "do_normalize": False},
            Preprocessing(size=(16, 16), mean=(0.0,) * 3, std=(1.0,) * 3, mode="bilinear"),
        ),
        (
            {"size": {"shortest_edge": 16}, "crop_pct": 0.8},
            Preprocessing(size=(16, 16), shortest=20, mean=(0.5,) * 3, std=(0.5,) * 3, mode="bilinear"),
        ),
        (None, Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, mode="bilinear")),
    ],
)
def test_a_folder_of_transformers_brings_its_preprocessing(hub_folder, given, want):
    if given is not None:
        (hub_folder / "preprocessor_config.json").write_text(json.dumps(given))
    loaded = load_image_classifier(str(hub_folder))
    assert loaded.preprocess == want
    assert loaded.labels == ("no", "yes")
    assert loaded.logits(loaded.preprocess([noise(30, 20)])).shape == (1, 2)


def test_preprocessing_that_cannot_be_understood_is_told(hub_folder):
    (hub_folder / "preprocessor_config.json").write_text('{"size": {"longest_edge": 3}}')
    with pytest.raises(UserError, match="expected height and width"):
        load_image_classifier(str(hub_folder))
    (hub_folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        load_image_classifier(str(hub_folder))


def test_unknown_names_end_with_what_needs_no_network(monkeypatch):
    monkeypatch.setattr("mintage.models._hub_is_reachable", lambda: False)
    with pytest.raises(UserError, match="the shipped classifier is called 'vit-tiny-cifar10'"):
        load_image_classifier("nobody/nothing-of-this-name")


def test_weights_that_would_be_unpickled_are_refused(hub_folder):
    torch.save(load_file(hub_folder / "model.safetensors"), hub_folder / "pytorch_model.bin")
    (hub_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the model"):
        load_image_classifier(str(hub_folder))


def test_a_classifier_without_its_head_is_refused(hub_folder):
    tensors = load_file(hub_folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    save_file(kept, hub_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of its ViTFor.*: classifier\.bias, classifier\.weight; get"):
        load_image_classifier(str(hub_folder))


def test_weights_that_are_not_finite_are_refused(hub_folder):
    tensors = load_file(hub_folder / "model.safetensors")
    tensors["classifier.bias"][1] = float("nan")
    save_file(tensors, hub_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"classifier\.bias holds NaN or infinity"):
        load_image_classifier(str(hub_folder))


def test_timm_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"mintage\[vision\]"):
        load_image_classifier("timm:vit_tiny_patch16_224")


def test_a_timm_model_brings_its_preprocessing(monkeypatch):
    def create_model(name, pretrained):
        if name != "vit_toy":
            raise RuntimeError(f"Unknown model ({name})")
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
        model.num_classes = 5
        if broken:
            torch.nn.init.constant_(model[1].weight, torch.inf)
        return model

    broken = False

    given = {"input_size": (3, 8, 8), "crop_pct": 0.8, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    config = SimpleNamespace(resolve_model_data_config=lambda model: given | {"interpolation": "bicubic"})
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    monkeypatch.setitem(sys.modules, "timm.data", SimpleNamespace(config=config))
    monkeypatch.setitem(sys.modules, "timm.data.config", config)
    loaded = load_image_classifier("timm:vit_toy")
    assert loaded.preprocess == Preprocessing(size=(8, 8), shortest=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert loaded.logits(loaded.preprocess([noise(20, 30)])).shape == (1, 5)
    assert len(loaded.labels) == 5
    with pytest.raises(UserError, match=r"timm cannot make 'vit_big': Unknown model"):
        load_image_classifier("timm:vit_big")
    broken = True
    with pytest.raises(UserError, match=r"timm:vit_toy: 1\.weight holds NaN or infinity"):
        load_image_classifier("timm:vit_toy")


def test_an_unknown_device_is_told(saved):
    with pytest.raises(UserError, match="device 'nowhere' is not available"):
        load_image_classifier(str(saved[0]), device="nowhere")


# -- the ViT-S/14 --------------------------------------------------------------------------------------------------


def test_another_models_file_is_no_vit_s14(saved, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="other tensors than a ViT-S/14"):
        load_vit_s14(saved[0])
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    with pytest.raises(UserError, match="vit_s14_dinov2_saliency"):
        load_vit_s14()


@pytest.mark.skipif(
    not Path(os.environ.get("MINTAGE_DATA", "/nowhere"), "vit_s14_dinov2_saliency_fp16.safetensors").exists(),
    reason="needs the ViT-S/14 of MINTAGE_DATA",
)
def test_the_vit_s14_tells_a_patch_from_its_surroundings():
    model, preprocess = load_vit_s14()
    image = np.full((224, 224, 3), 110, np.uint8)
    image[84:140, 84:140] = noise(56, 56)
    with torch.no_grad():
        out = model(preprocess([image])).last_hidden_state
    assert out.shape == (1, 257, 384)
    patches = torch.nn.functional.normalize(out[0, 1:], dim=-1).view(16, 16, 384)
    inside, outside = patches[7:9, 7:9].flatten(0, 1), patches[[1, 1, 14, 14], [1, 14, 1, 14]]
    assert (inside @ inside.T).mean() > (inside @ outside.T).mean() + 0.1

"""The file that methods keep trained things in: bound to its model, refused when damaged."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mintage.errors import UserError
from mintage.weights import Artefact, Imprint, fill, shipped

FORM, AGAIN = "mintage test 1", "mintage train test"


def net(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 3))


def test_an_imprint_knows_its_model_in_every_precision():
    imprint = Imprint.of(net())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        imprint.check(net().to(dtype), "modules")


def test_an_imprint_refuses_other_weights_and_other_shapes():
    imprint, other = Imprint.of(net()), net()
    other[2].load_state_dict(net(seed=1)[2].state_dict())
    with pytest.raises(UserError, match=r"modules were trained for other weights .*2 of 8 tensors differ"):
        imprint.check(other, "modules")
    with pytest.raises(UserError, match="another shape"):
        imprint.check(net(width=6), "modules")


def test_an_imprint_sees_a_permutation_and_a_step_of_training():
    imprint, other = Imprint.of(net()), net()
    with torch.no_grad():
        other[0].weight.copy_(other[0].weight.flip(0))
    with pytest.raises(UserError):
        imprint.check(other, "modules")
    trained = net()
    with torch.no_grad():
        trained[0].weight.add_(0.1 * torch.randn(8, 4))
    with pytest.raises(UserError):
        imprint.check(trained, "modules")


def test_round_trip_in_float16(tmp_path):
    model = net()
    tensors = {f"modules.{n}": t for n, t in model[0].state_dict().items()}
    tensors |= {f"backbone.{n}": t for n, t in model.state_dict().items()}
    notes = {"command": "x", "settings": '{"steps": 3}'}
    Artefact(tensors, {"k": [1, 2]}, Imprint.of(model), notes).save(tmp_path / "a.safetensors", FORM, half=True)
    read = Artefact.load(tmp_path / "a.safetensors", FORM, AGAIN)
    assert read.sizes == {"k": [1, 2]}
    assert read.notes == notes
    assert read.imprint is not None
    read.imprint.check(model, "modules")
    assert set(read.under("backbone.")) == set(model.state_dict())
    assert read.tensors["backbone.1.num_batches_tracked"].dtype == torch.int64
    modules = read.under("modules.")
    torch.testing.assert_close(modules["weight"], model[0].weight.detach().half().float())
    fresh = net(seed=3)[0]
    fill(fresh, modules, "a", AGAIN)
    torch.testing.assert_close(fresh.weight.detach(), modules["weight"])
    with pytest.raises(UserError, match="other tensors"):
        fill(net()[2], modules, "a", AGAIN)


def test_bad_files(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="does not exist; make it with: mintage train test"):
        Artefact.load(path, FORM, AGAIN)
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(UserError, match="cannot read"):
        Artefact.load(path, FORM, AGAIN)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="'no format', expected 'mintage test 1'"):
        Artefact.load(path, FORM, AGAIN)
    Artefact({"w": torch.tensor([float("nan")])}).save(path, FORM)
    with pytest.raises(UserError, match=r"w is not finite"):
        Artefact.load(path, FORM, AGAIN)


def test_names_and_paths(tmp_path):
    assert shipped("sit-slim", "vit-x").name == "sit-slim-vit-x.safetensors"
    assert shipped("sit-slim", "vit-x").parent.name == "assets"
    assert str(shipped("sit-slim", "mine.safetensors")) == "mine.safetensors"
    assert shipped("sit-slim", tmp_path / "mine") == tmp_path / "mine"

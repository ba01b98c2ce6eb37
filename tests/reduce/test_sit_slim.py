from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mintage.errors import UserError
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.core.schedule import Anatomy
from mintage.reduce.sit_slim import SelfSlimmed, Slimming, TokenSlimming, stage_counts
from mintage.weights import Imprint

VECTORS = Path(__file__).parents[1] / "vectors" / "sit-slim"
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
    "initializer_range": 0.3,
}


def vit(**other):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZES | other)).eval()


@pytest.fixture(scope="module")
def model():
    return vit()


def trained(seed=0, dim=16, stages=(1, 2, 1), counts=(8, 3), **held):
    """Modules whose weights say something: at their first values every new token is nearly the mean."""
    made = Slimming(dim, stages, counts, **held)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.modules.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return made


def module_of(held):
    x = torch.tensor(held["x"])
    module = TokenSlimming(x.shape[2], int(held["kept"]))
    ours = {"norm": "weight.0", "fc1": "weight.1", "fc2": "weight.3"}
    state = {f"{n}.{p}": torch.tensor(held[f"tsm.{t}.{p}"]) for n, t in ours.items() for p in ("weight", "bias")}
    module.load_state_dict(state | {"scale": torch.tensor(held["tsm.scale"]).reshape(())})
    return module, x


@pytest.mark.parametrize("case", ["slim_and_recover", "slim_to_one"])
def test_parity_with_the_reference(case):
    held = np.load(VECTORS / f"{case}.npz")
    module, x = module_of(held)
    with torch.no_grad():
        np.testing.assert_allclose(module.aggregation(x), held["aggregation"], atol=1e-5)
        np.testing.assert_allclose(module(x), held["slim"], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 12), kept=st.integers(1, 6), size=st.floats(0.01, 50), seed=st.integers(0, 99))
def test_new_tokens_are_convex_combinations_in_any_order(tokens, kept, size, seed):
    torch.manual_seed(seed)
    module = TokenSlimming(6, kept).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
        x = size * torch.randn(2, tokens, 6, dtype=torch.double)
        shares, slim = module.aggregation(x), module(x)
        assert (shares >= 0).all()
        torch.testing.assert_close(shares.sum(2), torch.ones(2, kept))
        assert (slim <= x.amax(1, keepdim=True) + 1e-4 * size).all()
        assert (slim >= x.amin(1, keepdim=True) - 1e-4 * size).all()
        order = torch.randperm(tokens)
        torch.testing.assert_close(module(x[:, order]), slim, atol=1e-4 * size, rtol=1e-4)
        constant = x[:, :1].expand(-1, tokens, -1)
        torch.testing.assert_close(module(constant), constant[:, :1].expand(-1, kept, -1), atol=1e-4 * size, rtol=1e-5)


def test_large_selectors_pick_tokens():
    torch.manual_seed(0)
    module = TokenSlimming(4, 2)
    with torch.no_grad():
        module.scale.fill_(1e4)
        nn.init.eye_(module.fc1.weight)
        nn.init.eye_(module.fc2.weight)
        x = torch.randn(1, 6, 4)
        best = torch.nn.functional.gelu(module.norm(x)[0, :, :2]).argmax(0)
        torch.testing.assert_close(module(x)[0], x[0, best])


def test_first_weights_give_nearly_the_mean():
    x = torch.randn(2, 10, 16)
    shares = TokenSlimming(16, 4).aggregation(x)
    assert (shares - 0.1).abs().max() < 0.01


def test_shares_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        shares = TokenSlimming(16, 4).aggregation(torch.randn(2, 10, 16))
    assert shares.dtype == torch.float32


@pytest.mark.parametrize(
    ("patches", "stages", "ratio", "counts"),
    [(196, 4, 0.5, (98, 49, 24)), (64, 4, 0.5, (32, 16, 8)), (196, 2, 0.125, (24,)), (64, 1, 0.5, ())],
)
def test_counts_of_the_paper(patches, stages, ratio, counts):
    assert stage_counts(patches, stages, ratio) == counts


def test_counts_out_of_range():
    with pytest.raises(UserError, match=r"ratio=1\.5 is outside"):
        stage_counts(64, 3, 1.5)
    with pytest.raises(UserError, match="leaves none of 16 patches"):
        stage_counts(16, 4, 0.3)


def test_tokens_by_block_and_the_class_token_passes_by(model):
    with SelfSlimmed(weights=trained())(model, trace=True) as session, torch.no_grad():
        model(IMAGES)
    assert session.tokens == [17, 9, 9, 4]
    source = session.state.source
    assert source.shape == (3, 4, 17)
    assert (source[:, 0, 1:] == 0).all()
    assert (source[:, 1:, 0] == 0).all()
    torch.testing.assert_close(source.sum(2), torch.ones(3, 4))
    assert not torch.allclose(source[:, 1:].sum(1)[:, 1:], torch.ones(3, 16), atol=0.05)  # columns are free


def test_equals_the_steps_by_hand(model):
    slimming = trained()
    tower = model.vit
    with torch.no_grad():
        x = tower.embeddings(IMAGES)
        for layer, block in enumerate(tower.layers):
            x = block(x)
            if layer in (0, 2):
                module = slimming.modules[str(layer)]
                x = torch.cat([x[:, :1], module.aggregation(x[:, 1:]) @ x[:, 1:]], 1)
        wanted = model.classifier(tower.layernorm(x)[:, 0])
        with SelfSlimmed(weights=slimming)(model):
            got = model(IMAGES).logits
    torch.testing.assert_close(got, wanted)


def test_no_stages_change_nothing(model):
    with torch.no_grad():
        plain = model(IMAGES).logits
        for reducer in (SelfSlimmed(weights=trained(stages=(4,), counts=())), SelfSlimmed.tiny().unreduced()):
            with reducer(model):
                assert torch.equal(model(IMAGES).logits, plain)


def test_the_tuned_backbone_is_in_for_the_length_of_the_with(model):
    tuned = vit()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1.1)
    slimming = trained()
    with SelfSlimmed(weights=slimming)(tuned), torch.no_grad():
        wanted = tuned(IMAGES).logits
    before = {name: t.clone() for name, t in model.state_dict().items()}
    pointers = {name: t.data_ptr() for name, t in model.state_dict().items()}
    held = trained(backbone=tuned.state_dict(), imprint=Imprint.of(model))
    attached = SelfSlimmed(weights=held)(model)

    def fail():
        with attached, torch.no_grad():
            torch.testing.assert_close(model(IMAGES).logits, wanted)
            model.vit.layernorm.weight.zero_()  # what is done inside stays inside
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == pointers
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with attached, torch.no_grad():
        torch.testing.assert_close(model(IMAGES).logits, wanted)


def test_a_backbone_of_another_model_is_refused(model):
    held = trained(backbone={"vit.nothing.weight": torch.zeros(3)})
    before = [type(layer) for layer in model.vit.layers]
    with pytest.raises(UserError, match=r"has no vit\.nothing\.weight"), SelfSlimmed(weights=held)(model):
        pass
    assert [type(layer) for layer in model.vit.layers] == before


def test_file_round_trip(model, tmp_path):
    path = tmp_path / "slim.safetensors"
    held = trained(backbone=model.state_dict(), imprint=Imprint.of(model), notes={"command": "mintage"})
    held.modules.half()
    held.modules.float()
    held.save(path)
    read = Slimming.load(path)
    assert (read.stages, read.counts, read.notes) == ((1, 2, 1), (8, 3), {"command": "mintage"})
    with torch.no_grad():
        with SelfSlimmed(weights=str(path))(model):
            got = model(IMAGES).logits
        with SelfSlimmed(weights=held)(model):
            wanted = model(IMAGES).logits
    torch.testing.assert_close(got, wanted, atol=0.01, rtol=0.01)


def test_refusals(model, tmp_path):
    path = tmp_path / "slim.safetensors"
    trained(imprint=Imprint.of(model)).save(path)
    other = vit(initializer_range=0.2)
    with pytest.raises(UserError, match="slimming modules were trained for other weights"):
        SelfSlimmed(weights=str(path))(other)
    with pytest.raises(UserError, match="width 16, but this ViTForImageClassification is 32 wide"):
        SelfSlimmed(weights=trained())(vit(hidden_size=32))
    with pytest.raises(UserError, match=r"stages 1,2,1 have 4 blocks; this model has 3"):
        SelfSlimmed(weights=trained())(vit(num_hidden_layers=3))
    with pytest.raises(UserError, match="does not exist; make it with: mintage train sit-slim"):
        SelfSlimmed(weights="no-such-model")(model)
    with pytest.raises(UserError, match="cannot be set to a share"):
        SelfSlimmed.tiny().at(0.5, Anatomy(layers=4, dim=16, hidden=32, patches=16, prefix=1))
    for stages, counts in (((0, 4), (3,)), ((2, 2), ()), ((1, 1, 2), (3, 3)), ((2, 2), (0,))):
        with pytest.raises(UserError, match="stage"):
            Slimming(16, stages, counts)


def test_an_image_with_too_few_patches(model):
    reducer = SelfSlimmed(weights=trained())
    small = IMAGES[..., :8, :8]
    message = "needs more than the 4 patches of this image; pass larger"
    with reducer(model), torch.no_grad(), pytest.raises(UserError, match=message):
        model(small, interpolate_pos_encoding=True)


def test_a_larger_image_keeps_as_many_tokens(model):
    large = torch.randn(2, 3, 24, 24)
    with SelfSlimmed(weights=trained())(model) as session, torch.no_grad():
        model(large, interpolate_pos_encoding=True)
    assert session.tokens == [37, 9, 9, 4]


def test_new_modules_for_a_model(model):
    anatomy = adapter_for(model).anatomy()
    assert Slimming.new(anatomy, (1, 1, 2)).counts == (8, 4)
    assert Slimming.new(anatomy, (1, 1, 2), counts=(5, 2)).counts == (5, 2)
    with pytest.raises(UserError, match="this model has 4"):
        Slimming.new(anatomy, (1, 1))
    one, two = Slimming.new(anatomy, (1, 3)), Slimming.new(anatomy, (1, 3))
    for mine, other in zip(one.modules.parameters(), two.modules.parameters(), strict=True):
        assert torch.equal(mine, other)


def official(slimming, depth):
    """The names that the authors' code gives (Sense-X/SiT, models/lvvit.py), reverse modules included."""
    held = {f"blocks.{i}.norm1.weight": torch.ones(slimming.dim) for i in range(depth)}
    held |= {"head.weight": torch.ones(5, slimming.dim), "aux_head.weight": torch.ones(5, slimming.dim)}
    left = None
    for i in range(depth):
        left = slimming.left_behind.get(i, left)
        if left is not None:
            held[f"rtsm.{i}.mlp1.fc1.weight"] = torch.zeros(64, left)
    for i, module in enumerate(slimming.modules.values()):
        own = module.state_dict()
        held[f"tsm.{i}.scale"] = own["scale"].reshape(1, 1, 1)
        for mine, theirs in (("norm", 0), ("fc1", 1), ("fc2", 3)):
            held |= {f"tsm.{i}.weight.{theirs}.{k}": own[f"{mine}.{k}"] for k in ("weight", "bias")}
    return held


@pytest.mark.parametrize("stages", [(1, 2, 1), (2, 1, 1), (1, 1, 1, 1)])
def test_the_authors_weights_are_read_by_their_names(stages, tmp_path):
    made = Slimming(16, stages, (12, 8, 3)[: len(stages) - 1], init_std=0.5)
    torch.save({"model": {f"module.{k}": v for k, v in official(made, 4).items()}, "epoch": 3}, tmp_path / "sit.pth")
    read = Slimming.from_official(torch.load(tmp_path / "sit.pth", weights_only=True))
    assert (read.stages, read.counts, read.hidden_ratio) == (made.stages, made.counts, 0.5)
    x = torch.randn(2, 16, 16)
    for mine, theirs in zip(made.modules.values(), read.modules.values(), strict=True):
        assert torch.equal(mine.aggregation(x), theirs.aggregation(x))
    assert set(read.backbone) == {"head.weight", *(f"blocks.{i}.norm1.weight" for i in range(4))}


@pytest.mark.parametrize("lost", ["tsm.0.scale", "tsm.1.weight.0.bias", "rtsm.3.mlp1.fc1.weight", "all"])
def test_other_weights_than_the_authors_are_refused_in_one_line(lost):
    held = official(Slimming(16, (1, 2, 1), (8, 3)), 4)
    held = {k: v for k, v in held.items() if k != lost} if lost != "all" else {"vit.weight": torch.ones(2)}
    with pytest.raises(UserError, match=r"no weights of Sense-X/SiT .*expected tsm") as error:
        Slimming.from_official(held)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no weights by name"):
        Slimming.from_official({"epoch": 3})

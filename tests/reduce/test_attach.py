"""Attaching: what a model still records and saves, other image sizes, dense output, and what is refused."""

import copy
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import CLIPModel, ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling

from mintage.errors import UserError
from mintage.measure import count_flops
from mintage.reduce import AveragePool, ClassAttention, RandomDrop, ToMe
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.core.families import FAMILIES
from mintage.testing.reduce import law_models

PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
QUARTERS = ToMe(schedule="r=4")


@pytest.fixture
def vit():
    return copy.deepcopy(law_models()["vit"].model)


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2-registers", "siglip", "clip-classifier"])
@torch.no_grad()
def test_hidden_states_shrink_with_the_tokens(name):
    model = law_models()[name].model
    with QUARTERS(model) as session:
        states = model(pixel_values=PIXELS, output_hidden_states=True).hidden_states
    prefix = session.adapter.prefix
    assert session.tokens == [prefix + n for n in (16, 12, 8, 4)]
    assert [s.shape[1] for s in states] == [*session.tokens, prefix + 2]


@pytest.mark.parametrize("method", [QUARTERS, ClassAttention(schedule="ratio=0.75")], ids=["merging", "dropping"])
@torch.no_grad()
def test_attention_probabilities_are_reported_and_sum_to_one(method):
    model = law_models()["vit-eager"].model
    with method(model) as session:
        found = model(pixel_values=PIXELS, output_attentions=True).attentions
    assert [a.shape[2:] for a in found] == [(n, n) for n in session.tokens]
    assert all(torch.allclose(a.sum(-1), torch.ones(())) for a in found)


@torch.no_grad()
def test_attention_counts_a_merged_token_by_its_size():
    model = law_models()["vit-eager"].model
    with AveragePool(schedule="counts=8x8x8x8")(model):
        on = model(pixel_values=PIXELS, output_attentions=True).attentions[1]
    with AveragePool(schedule="counts=8x8x8x8", proportional_attention=False)(model):
        off = model(pixel_values=PIXELS, output_attentions=True).attentions[1]
    weighted = off * torch.tensor([1.0] + [2.0] * 8)
    torch.testing.assert_close(on, weighted / weighted.sum(-1, keepdim=True))


@torch.no_grad()
def test_fused_and_eager_attention_agree(vit):
    with QUARTERS(vit):
        fused = vit(PIXELS).logits
    vit.set_attn_implementation("eager")
    with QUARTERS(vit):
        torch.testing.assert_close(vit(PIXELS).logits, fused, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_images_of_another_size_have_other_counts(vit):
    method = ToMe(schedule="ratio=0.5@1")
    with method(vit) as session:
        vit(PIXELS)
        assert session.tokens == [17, 17, 9, 9]
        large = vit(torch.randn(1, 3, 24, 32), interpolate_pos_encoding=True)
        assert session.tokens == [49, 49, 25, 25]
        vit(PIXELS)
        assert session.tokens == [17, 17, 9, 9]
    assert large.logits.isfinite().all()


@torch.no_grad()
def test_clip_keeps_its_text_side():
    model: CLIPModel = law_models()["clip"].model
    ids = torch.tensor([[0, 3, 4, 2]])
    plain = model(input_ids=ids, pixel_values=PIXELS)
    with QUARTERS(model) as session:
        got = model(input_ids=ids, pixel_values=PIXELS)
    assert session.tokens == [17, 13, 9, 5]
    assert torch.equal(got.text_embeds, plain.text_embeds)
    assert not torch.allclose(got.image_embeds, plain.image_embeds, atol=1e-3)


@torch.no_grad()
def test_unmerged_rows_stand_where_their_tokens_came_from(vit):
    for method in (AveragePool(schedule="counts=8x8x8x8"), RandomDrop(schedule="counts=8x8x8x8")):
        with method(vit, trace=True) as session:
            vit(PIXELS)
            names = torch.arange(9.0).expand(2, 9)[..., None]
            dense = session.unmerge(names + 1)[..., 0]
        assert dense.shape == (2, 17)
        groups = session.groups()
        for image, grid in enumerate(groups):
            flat = [0 if token is None else token + 1 for row in grid for token in row]
            assert dense[image, 1:].tolist() == flat
            assert sorted(set(flat) - {0}) == [*range(2, 10)]
        assert (0 in dense[0].tolist()) == isinstance(method, RandomDrop)


def test_saved_inside_or_pickled_after_it_is_the_plain_model(tmp_path):
    vit = ViTForImageClassification(law_models()["vit"].model.config).eval()
    plain = vit(PIXELS).logits
    with QUARTERS(vit):
        vit.save_pretrained(tmp_path)
    assert "mintage" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
    torch.testing.assert_close(ViTForImageClassification.from_pretrained(tmp_path)(PIXELS).logits, plain)
    torch.testing.assert_close(pickle.loads(pickle.dumps(vit))(PIXELS).logits, plain)


def test_entering_half_way_leaves_nothing_behind(vit, monkeypatch):
    """An error while attaching undoes what was done by then."""

    def fail(*_):
        raise RuntimeError("no pooling")

    before = {name: (type(m), sorted(vars(m))) for name, m in vit.named_modules()}
    monkeypatch.setattr("mintage.reduce.core.adapters.Adapter.attention_pools", fail)
    with pytest.raises(RuntimeError, match="no pooling"), QUARTERS(vit):
        pass
    monkeypatch.undo()
    assert {name: (type(m), sorted(vars(m))) for name, m in vit.named_modules()} == before
    with QUARTERS(vit):
        vit(PIXELS)


def refused(said, call):
    with pytest.raises(UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_cannot_be_served_is_refused_in_one_line(vit):
    with QUARTERS(vit) as session:
        refused("attached to this ViTForImageClassification already", lambda: RandomDrop()(vit).__enter__())
        refused("attach with trace=True", session.groups)
        refused("attach with trace=True", lambda: session.unmerge(torch.zeros(1, 1, 1)))
        hidden = torch.zeros(1, 17, 16)
        vit(PIXELS)
        refused("a mask over patches", lambda: vit.vit.layers[0](hidden, torch.zeros(1, 1, 1, 17)))
        hidden_patches = torch.tensor([[1] * 17, [1] * 10 + [0] * 7])
        refused("a mask over patches", lambda: vit(PIXELS, attention_mask=hidden_patches))
        refused("a mask over patches", lambda: vit.vit(PIXELS, None, None, hidden_patches))
    refused("counts=0x0x0x0: at least one token must stay", lambda: ToMe(schedule="counts=0x0x0x0"))
    refused("counts=8x8 has 2 numbers; this model has 4 layers", lambda: ToMe(schedule="counts=8x8")(vit))
    vit.config._attn_implementation = vit.vit.config._attn_implementation = "flex_attention"
    refused("attn_implementation='flex_attention' has masks of its own", lambda: QUARTERS(vit).__enter__())


def test_unmerging_needs_one_row_per_token_and_a_grid(vit):
    with torch.no_grad(), QUARTERS(vit, trace=True) as session:
        vit(torch.randn(1, 3, 16, 24), interpolate_pos_encoding=True)
        refused("unmerge takes", lambda: session.unmerge(torch.zeros(1, 2, 1)))
        refused(r"24 patches are no grid of 4 x 4; pass grid=\(rows, columns\)", session.groups)
        assert [len(row) for row in session.groups((4, 6))[0]] == [6] * 4


def test_attaching_takes_milliseconds_and_adds_no_parameter(vit):
    names, spent = list(dict(vit.named_parameters())), []
    for _ in range(5):
        start = time.perf_counter()
        with QUARTERS(vit):
            spent.append(time.perf_counter() - start)
            assert list(dict(vit.named_parameters())) == names
    assert min(spent) < 0.5


def test_every_family_is_named_by_a_class_that_exists():
    import importlib

    for path in FAMILIES:
        module, _, name = path.rpartition(".")
        if not module.startswith("timm"):
            assert hasattr(importlib.import_module(module), name)


def test_a_schedule_for_another_anatomy_is_told_when_attaching(vit):
    refused("names layer 9", lambda: replace(QUARTERS, schedule="ratio=0.5@9")(vit))


SIZES = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 32, "num_labels": 5}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_channels": 1},
        {"num_channels": 12},
        {"image_size": (16, 24)},
        {"patch_size": (2, 4)},
        {"patch_size": (8, 2)},
    ],
)
@torch.no_grad()
def test_any_channels_images_and_patches(changes):
    config = ViTConfig(**SIZES | changes)
    model = ViTForImageClassification(config).eval()
    size = config.image_size if isinstance(config.image_size, (tuple, list)) else (config.image_size,) * 2
    patch = config.patch_size if isinstance(config.patch_size, (tuple, list)) else (config.patch_size,) * 2
    pixels = torch.randn(2, config.num_channels, *size)
    plain = model(pixels).logits
    with QUARTERS(model, trace=True) as session:
        assert model(pixels).logits.shape == plain.shape
    rows, columns = (side // step for side, step in zip(size, patch, strict=True))
    assert session.anatomy.patches == rows * columns == session.tokens[0] - 1
    assert [len(row) for row in session.groups()[0]] == [columns] * rows
    assert session.anatomy.full == count_flops(lambda: model(pixels[:1])) // 2
    with QUARTERS.unreduced()(model):
        torch.testing.assert_close(model(pixels).logits, plain)


@torch.no_grad()
def test_images_that_are_reconstructed_have_a_row_for_every_patch():
    model = ViTForMaskedImageModeling(ViTConfig(**SIZES, encoder_stride=4)).eval()
    plain = model(PIXELS).reconstruction
    with QUARTERS(model) as session:
        got = model(PIXELS, output_hidden_states=True)
    assert session.tokens == [17, 13, 9, 5]
    assert got.reconstruction.shape == plain.shape
    assert [h.shape[1] for h in got.hidden_states] == [17] * 5
    patches = got.hidden_states[-1][:, 1:]
    assert [len(image.round(decimals=5).unique(dim=0)) for image in patches] == [2, 2]


@torch.no_grad()
def test_dense_rows_are_those_that_unmerging_gives(vit):
    with QUARTERS(vit, trace=True) as session:
        states = vit(PIXELS, output_hidden_states=True).hidden_states
        wanted = [session.unmerge(rows, layer) for layer, rows in enumerate(states[1:])]
        torch.testing.assert_close(session.unmerge(states[-1]), wanted[-1])
        refused("layer=4 did not run; pass one from 0 to 3", lambda: session.unmerge(states[-1], 4))
        refused("unmerge takes 13 rows per image", lambda: session.unmerge(states[-1], 0))
    with QUARTERS(vit, dense=True):
        got = vit(PIXELS, output_hidden_states=True).hidden_states[1:]
    for mine, unmerged in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, unmerged)


@torch.no_grad()
def test_a_dropped_patch_keeps_the_last_row_that_it_had(vit):
    with RandomDrop(schedule="ratio=0.5@1")(vit, trace=True, dense=True) as session:
        states = vit(PIXELS, output_hidden_states=True).hidden_states
    gone = session.sources[-1].sum(1) == 0
    assert gone.sum(1).tolist() == [8, 8]
    assert torch.equal(states[-1][gone], states[1][gone])
    assert not torch.isclose(states[-1][~gone], states[1][~gone]).all(1).any()


@pytest.mark.parametrize("name", ["dinov2-classifier", "siglip-classifier", "siglip", "clip"])
@torch.no_grad()
def test_what_pools_reads_dense_rows_as_well_as_weighted_ones(name):
    """A merger's rows, repeated, have the mean that sizes give."""
    subject = law_models()[name]
    with QUARTERS(subject.model):
        weighted = subject.outputs(PIXELS)
    with QUARTERS(subject.model, dense=True):
        repeated = subject.outputs(PIXELS)
    pooled = [key for key, value in weighted.items() if value.ndim == 2]
    assert pooled
    for key in pooled:
        torch.testing.assert_close(repeated[key], weighted[key], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_models_that_share_a_configuration_and_copies_are_left_alone():
    vit = ViTForImageClassification(ViTConfig(**SIZES)).eval()  # no hidden states asked for yet: it can be pickled
    other = ViTForImageClassification(vit.config).eval()
    plain, others = vit(PIXELS).logits, other(PIXELS).logits
    with QUARTERS(vit):
        assert torch.equal(other(PIXELS).logits, others)
        copied, pickled = copy.deepcopy(vit), pickle.loads(pickle.dumps(vit))
        reduced = vit(PIXELS).logits
        assert torch.equal(copied(PIXELS).logits, plain)
        with RandomDrop()(other), RandomDrop()(copied):
            assert torch.equal(vit(PIXELS).logits, reduced)
    for model in (vit, copied, pickled):
        assert torch.equal(model(PIXELS).logits, plain)
        assert type(model.vit.layers[0]).__name__ == "ViTLayer"
    assert {type(m) for m in copied.modules()} == {type(m) for m in vit.modules()}


@torch.no_grad()
def test_threads_share_a_session(vit):
    batches = [torch.randn(n, 3, 16, 16) for n in (1, 2, 3, 4)] * 4
    with QUARTERS(vit):
        wanted = [vit(pixels).logits for pixels in batches]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(lambda pixels: run_alone(vit, pixels), batches))
    assert all(torch.equal(mine, alone) for mine, alone in zip(got, wanted, strict=True))


@torch.no_grad()
def run_alone(model, pixels):
    return model(pixels).logits


def test_of_several_transformers_one_has_to_be_named(vit):
    both = torch.nn.ModuleDict({"left": vit, "right": copy.deepcopy(vit)})
    refused(
        "ModuleDict has several vision transformers; attach to one of them: left.vit, right.vit", lambda: ToMe()(both)
    )
    with torch.no_grad(), QUARTERS(both["right"]) as session:
        both["left"](PIXELS)
        assert session.tokens == []


def test_blocks_of_ones_own_are_refused(vit):
    class Louder(type(vit.vit.layers[0])):
        def forward(self, x, *args, **kwargs):
            return 2 * super().forward(x, *args, **kwargs)

    vit.vit.layers[1].__class__ = Louder
    refused("this ViTModel has Louder blocks; supported: ViT", lambda: ToMe()(vit))


def test_a_forward_that_fails_leaves_the_session_usable(vit):
    with torch.no_grad(), QUARTERS(vit) as session:
        wanted = vit(PIXELS).logits
        with pytest.raises(ValueError, match=r"channel|size"):
            vit(torch.zeros(2, 3, 8, 8))
        assert torch.equal(vit(PIXELS).logits, wanted)
        assert session.tokens == [17, 13, 9, 5]


@pytest.mark.parametrize("wrap", [torch.nn.Sequential, torch.nn.DataParallel])
@torch.no_grad()
def test_a_wrapped_classifier_is_pooled_by_size_as_it_is(wrap):
    model = copy.deepcopy(law_models()["dinov2-classifier"].model)
    with QUARTERS(model) as session:
        wanted, tokens = model(PIXELS).logits, session.tokens
    plain = model(PIXELS).logits
    wrapped = wrap(model)
    with QUARTERS(wrapped) as session:
        torch.testing.assert_close(wrapped(PIXELS).logits, wanted)
        assert session.tokens == tokens
    torch.testing.assert_close(wrapped(PIXELS).logits, plain)


@torch.no_grad()
def test_a_quantised_model_costs_what_it_costs(vit):
    quantised = torch.ao.quantization.quantize_dynamic(vit, {torch.nn.Linear})
    with QUARTERS(quantised) as session:
        assert quantised(PIXELS).logits.isfinite().all()
    assert session.tokens == [17, 13, 9, 5]
    assert session.anatomy.hidden == adapter_for(vit).anatomy().hidden == 32


def test_a_forward_that_something_else_wraps_is_refused(vit):
    layer = vit.vit.layers[2]
    layer.forward = layer.forward  # as hooks of device maps do: a class cannot take its place
    refused("the forward of this ViTLayer is wrapped", lambda: ToMe()(vit))

"""Attaching: what a model still records and saves, other image sizes, dense output, and what is refused."""

import copy
import json
import pickle
import time
from dataclasses import replace

import pytest
import torch
from transformers import CLIPModel, ViTForImageClassification

from mintage.errors import UserError
from mintage.reduce import AveragePool, ClassAttention, RandomDrop, ToMe
from mintage.reduce.core.adapters import FAMILIES
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
    monkeypatch.setattr("mintage.reduce.core.adapters.Adapter.pool_by_size", fail)
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
        refused("a mask over patches", lambda: vit.vit.layers[0](hidden, torch.zeros(1, 1, 1, 17)))
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

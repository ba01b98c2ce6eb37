"""PiToMe: equality with the authors' code, energies, groups, and what the spectrum of the merged graph keeps."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mintage import catalog
from mintage.errors import UserError
from mintage.reduce.contract import Anatomy, Evidence, TokenState
from mintage.reduce.pitome import MARGINS, PiToMe, energy, plan

VECTORS = Path(__file__).parents[1] / "vectors" / "pitome"
VARIANTS = ("energy", "matching")


def keys_of(seed, batch=2, patches=16, dim=8):
    return torch.randn(batch, patches, dim, generator=torch.Generator().manual_seed(seed))


def state_of(x, size, prefix, layer=0, layers=4):
    source = torch.eye(x.shape[1]).expand(x.shape[0], -1, -1)
    return TokenState(x=x, size=size, prefix=prefix, layer=layer, layers=layers, source=source)


def evidence_of(key):
    return Evidence(query=key, key=key, value=key, scaling=1.0)


def removed(patches, ratio):
    return math.floor(patches - patches * ratio)


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["energy_split_cls", "bsm_order_cls", "no_cls_sized_edge"])
def test_parity_with_the_authors_code(case):
    held = np.load(VECTORS / f"{case}.npz")
    metric, x, size = (torch.tensor(held[name]) for name in ("metric", "x", "size"))
    prefix, variant = int(held["class_token"]), VARIANTS[int(held["variant"])]
    margin, alpha = float(held["margin"]), float(held["alpha"])
    np.testing.assert_allclose(energy(metric[:, prefix:], margin, alpha).numpy(), held["energy"], atol=1e-5)
    patches = x.shape[1] - prefix
    keep = patches - removed(patches, float(held["ratio"]))
    method = PiToMe(margin_start=margin, margin_slope=0, alpha=alpha, variant=variant)
    made = method.reduce(state_of(x, size, prefix), evidence_of(metric[:, None]), keep)
    np.testing.assert_allclose(made.x.numpy(), held["x_out"], atol=1e-5)
    np.testing.assert_allclose(made.size.numpy(), held["size_out"], atol=1e-5)
    np.testing.assert_array_equal(made.source.numpy(), held["source"])
    slot = plan(metric[:, prefix:], patches - keep, margin=margin, alpha=alpha, variant=variant) + prefix
    np.testing.assert_array_equal(slot.numpy(), held["assign"][:, prefix:])


def test_parity_of_a_whole_block():
    held = {name: torch.tensor(value) for name, value in np.load(VECTORS / "block.npz").items()}
    x, heads = held["x"], int(held["num_heads"])
    dim = x.shape[2]

    def linear(name, y):
        return functional.linear(y, held[f"w.{name}.weight"], held[f"w.{name}.bias"])

    def norm(name, y):
        return functional.layer_norm(y, (dim,), held[f"w.{name}.weight"], held[f"w.{name}.bias"], 1e-6)

    qkv = linear("attn.qkv", norm("norm1", x)).unflatten(2, (3, heads, dim // heads)).permute(2, 0, 3, 1, 4)
    query, key, value = qkv
    attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    state = state_of(x + linear("attn.proj", attended), held["size"], 1)
    method = PiToMe(margin_start=float(held["margin"]), margin_slope=0, variant=VARIANTS[int(held["variant"])])
    patches = x.shape[1] - 1
    made = method.reduce(state, evidence_of(key), patches - removed(patches, float(held["ratio"])))
    y = made.x + linear("mlp.fc2", functional.gelu(linear("mlp.fc1", norm("norm2", made.x))))
    torch.testing.assert_close(y, held["y"], atol=1e-4, rtol=0)
    torch.testing.assert_close(made.size, held["size_out"])
    torch.testing.assert_close(made.source, held["source"])


# -- energy ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.floats(-1, 1), st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_energy_is_bounded(seed, margin, alpha):
    found = energy(keys_of(seed), margin, alpha)
    assert (found >= -alpha - 1e-5).all()
    assert (found <= 1 - margin + 1e-5).all()


def test_energy_of_two_tokens_by_hand():
    keys = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    wanted = (0.4 + math.exp(-0.6) - 1) / 2  # itself, and a token at a right angle
    torch.testing.assert_close(energy(keys, 0.6), torch.full((1, 2), wanted))


def test_repeated_tokens_have_more_energy_than_unique_ones():
    keys = keys_of(0, batch=1, patches=12)
    keys[:, 6:] = keys[:, 6:7]
    found = energy(keys, 0.5)[0]
    assert found[6:].min() > found[:6].max()


def test_decisions_are_made_in_float32_under_autocast():
    keys = keys_of(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert energy(keys, 0.5).dtype == torch.float32
        torch.testing.assert_close(energy(keys, 0.5), energy(keys.clone(), 0.5), atol=0, rtol=0)
        inside = plan(keys, 5, margin=0.5)
    assert torch.equal(inside, plan(keys, 5, margin=0.5))


# -- groups ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(2, 17), st.data(), st.sampled_from(VARIANTS))
@settings(max_examples=60, deadline=None)
def test_merging_is_a_partition_that_conserves_mass(seed, patches, data, variant):
    remove = data.draw(st.integers(0, patches // 2))
    keys = keys_of(seed, patches=patches)
    slot = plan(keys, remove, margin=0.4, variant=variant)
    for row in slot:
        assert sorted(set(row.tolist())) == list(range(patches - remove))
    x = keys_of(seed + 1, patches=patches + 1)
    size = torch.randint(1, 5, (2, patches + 1, 1), generator=torch.Generator().manual_seed(seed)).float()
    made = state_of(x, size, 1).merge(slot, patches - remove)
    torch.testing.assert_close(made.size.sum(1), size.sum(1))
    torch.testing.assert_close((made.size * made.x).sum(1), (size * x).sum(1), atol=1e-4, rtol=1e-4)
    assert torch.equal(made.source.sum(1), torch.ones(2, patches + 1))
    assert torch.equal(made.x[:, 0], x[:, 0])


@pytest.mark.parametrize("variant", VARIANTS)
@given(st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_permuting_the_patches_permutes_the_groups(variant, seed):
    keys = keys_of(seed)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
    plain = plan(keys, 6, margin=0.4, variant=variant)
    assert torch.equal(plan(keys[:, order], 6, margin=0.4, variant=variant), plain[:, order])


def test_what_is_protected_has_the_least_energy_and_is_unchanged():
    keys = keys_of(5)
    slot = plan(keys, 4, margin=0.4)
    found = energy(keys, 0.4)
    x = keys_of(6)
    made = state_of(x, torch.ones(2, 16, 1), 0).merge(slot, 12)
    for image in range(2):
        protected = found[image].argsort(descending=True)[8:]
        assert slot[image, protected].tolist() == list(range(8))
        assert torch.equal(made.x[image, :8], x[image, protected])


def test_every_merged_token_goes_to_the_most_similar_candidate():
    keys = keys_of(7, batch=1)
    order = energy(keys, 0.4)[0].argsort(descending=True).tolist()
    unit = functional.normalize(keys[0], dim=-1)
    sources, targets = order[:12:2], order[1:12:2]
    slot = plan(keys, 6, margin=0.4)[0].tolist()
    for token in sources:
        best = max(targets, key=lambda other: float(unit[token] @ unit[other]))
        assert slot[token] == slot[best]


def test_removing_nothing_and_too_much():
    assert sorted(plan(keys_of(0), 0, margin=0.4)[0].tolist()) == list(range(16))
    with pytest.raises(UserError, match="remove=9 of 16 tokens; pairs can remove 8 at most"):
        plan(keys_of(0), 9, margin=0.4)


def spectral_distance(keys, slot, temperature=0.3):
    """Between the normalised Laplacians of the token graph and of the merged graph, lifted back (section 3.3)."""
    unit = functional.normalize(keys, dim=-1)
    weights = ((unit @ unit.T - 1) / temperature).exp()
    member = functional.one_hot(slot).double()
    mean = member / member.sum(0)
    lifted = member @ (mean.T @ weights @ mean) @ member.T

    def eigenvalues(graph):
        scale = graph.sum(1).rsqrt()
        return torch.linalg.eigvalsh(torch.eye(len(graph)).double() - scale[:, None] * graph * scale)

    return (eigenvalues(weights) - eigenvalues(lifted)).abs().sum().item()


def test_the_spectrum_survives_where_a_fixed_split_does_not():
    """One cluster on the even positions: a split by parity (ToMe) must pair unlike tokens, PiToMe need not."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(48, 16, generator=generator, dtype=torch.double)
    keys[::2] = keys[0] + 0.1 * torch.randn(24, 16, generator=generator, dtype=torch.double)
    ours = plan(keys[None], 12, margin=0.5)[0]
    unit = functional.normalize(keys, dim=-1)
    best = (unit[::2] @ unit[1::2].T).max(1)
    ranked = best.values.argsort(descending=True)
    theirs = torch.empty(48, dtype=torch.long)
    theirs[1::2] = torch.arange(24)
    theirs[::2][ranked[12:]] = 24 + torch.arange(12)
    theirs[::2][ranked[:12]] = best.indices[ranked[:12]]
    assert spectral_distance(keys, ours) < 0.25 * spectral_distance(keys, theirs)


def test_the_spectral_distance_vanishes_as_clusters_tighten():
    def distance(noise):
        generator = torch.Generator().manual_seed(1)
        centres = torch.randn(6, 16, generator=generator, dtype=torch.double)
        keys = centres.repeat(8, 1) + noise * torch.randn(48, 16, generator=generator, dtype=torch.double)
        return spectral_distance(keys, plan(keys[None], 12, margin=0.5)[0])

    assert distance(0.01) < 0.1 * distance(0.1)
    assert distance(0.001) < 1e-3


# -- the method --------------------------------------------------------------------------------------------------------


def test_margins_and_variants_by_layer():
    paper = PiToMe()
    assert [paper.margin(layer, 4) for layer in range(4)] == pytest.approx([0.9, 0.675, 0.45, 0.225])
    deit = PiToMe(**MARGINS["deit"], variant="auto")
    assert deit.margin(6, 12) == pytest.approx(0.375)
    assert [deit.variant_of(layer, 5) for layer in range(5)] == ["matching"] * 3 + ["energy"] * 2
    assert PiToMe(variant="auto-mae").variant_of(0, 5) == "energy"
    for margins in MARGINS.values():
        PiToMe(**margins)


def test_counts_follow_the_ratio_as_floats_and_stop_where_nothing_can_go():
    anatomy = Anatomy(layers=4, dim=16, hidden=32, patches=10, prefix=1)
    assert PiToMe(schedule="ratio=0.9").kept(anatomy) == (9, 9, 9, 9)  # floor(10 - 9.0), then floor(9 - 8.1) = 0
    assert PiToMe(schedule="ratio=0.3").kept(anatomy) == (5, 3, 2, 1)  # half at most
    with pytest.raises(UserError, match="layer 0 merges 10 tokens into 4; pairs can halve them at most"):
        PiToMe(schedule="counts=4x4x4x4").kept(anatomy)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"schedule": "ratio=1.2"}, "outside"),
        ({"margin_start": 1.5}, "margin_start=1.5 is out of range"),
        ({"margin_slope": 2.5}, "cosines"),
        ({"alpha": -1}, "alpha=-1 is out of range; pass a number at least 0"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_mistakes(wrong, said):
    with pytest.raises(UserError, match=said):
        PiToMe(**wrong)


def test_the_front_door_builds_it():
    made = catalog.build("pitome:schedule=ratio=0.8,margin_start=0.75,variant=auto", "reduce")
    assert (made.margin_start, made.variant, str(made.schedule)) == (0.75, "auto", "ratio=0.8")
    with pytest.raises(UserError, match="variant='both' is not one of energy, matching, auto, auto-mae"):
        catalog.build("pitome:variant=both", "reduce")


def test_gradients_pass_through_the_mean_and_not_the_decision():
    x = keys_of(9).requires_grad_()
    key = keys_of(10)[:, None].requires_grad_()
    state = state_of(x, torch.ones(2, 16, 1), 0)
    PiToMe().reduce(state, evidence_of(key), 11).x.pow(2).sum().backward()
    assert x.grad.abs().sum(-1).min() > 0
    assert key.grad is None

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mintage.errors import UserError
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.core.schedule import Anatomy
from mintage.reduce.sparsifiner import (
    Connectivity,
    ConnectivityPredictor,
    Sparsifiner,
    connectivity_mask,
    gather_attention,
    masked_attention,
    mhsa_macs,
    reconstruction_loss,
    sparse_attention,
)
from mintage.weights import Imprint

VECTORS = Path(__file__).parents[1] / "vectors" / "sparsifiner"
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


@pytest.fixture(scope="module")
def anatomy(model):
    return adapter_for(model).anatomy()


def trained(anatomy, seed=0, **held):
    """Predictors whose weights say something."""
    made = Connectivity.new(anatomy, reduce_tokens=3, coef_topk=3)
    for name, value in held.items():
        setattr(made, name, value)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.modules.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


def parts(seed=0, batch=2, heads=3, tokens=11, dim=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, batch, heads, tokens, dim, generator=generator, dtype=torch.double).unbind(0)


def predictor_of(held):
    q = held["q"]
    made = ConnectivityPredictor(
        q.shape[3],
        q.shape[2],
        int(held["num_heads"]),
        reduce_tokens=q.shape[2] // held["down"].shape[1],
        reduce_channels=q.shape[3] // held["wq"].shape[0],
        coef_topk=int(held["coef_topk"]),
        coef_threshold=float(held["coef_threshold"]),
        basis_threshold=float(held["basis_threshold"]),
    )
    names = {"query.weight": "wq", "query.bias": "bq", "key.weight": "wk", "key.bias": "bk", "down": "down", "up": "up"}
    made.load_state_dict({ours: torch.tensor(held[theirs]) for ours, theirs in names.items()})
    return made


@pytest.mark.parametrize("case", ["predictor_topk", "predictor_threshold", "reconstruction_phase"])
def test_parity_with_the_reference(case):
    held = np.load(VECTORS / f"{case}.npz")
    query, key, value = (torch.tensor(held[n]) for n in ("q", "k", "v"))
    scaling = float(held["attention_scale"])
    predictor = predictor_of(held)
    assert predictor.scale == pytest.approx(float(held["predictor_scale"]))
    dense = bool(held["reconstruction_phase"])
    with torch.no_grad():
        coef, approx = predictor.approximate(query, key, dense=dense)
    threshold = None if held["score_topk"] else float(held["score_threshold"])
    mask = connectivity_mask(approx, float(held["keep_rate"]), threshold=threshold)
    np.testing.assert_allclose(coef, held["coef"], atol=1e-5)
    np.testing.assert_allclose(approx, held["approx"], atol=1e-5)
    full = (query @ key.transpose(2, 3) * scaling).softmax(-1)
    np.testing.assert_allclose(full, held["full_attention"], atol=1e-5)
    read = torch.ones_like(mask) if dense else mask
    if not dense:
        np.testing.assert_array_equal(mask.numpy(), held["mask"].astype(bool))
    backends = ["masked"] if threshold is not None else ["masked", "gather"]
    eye = torch.eye(query.shape[2]).expand(*query.shape[:2], -1, -1)
    for backend in backends:
        probabilities = sparse_attention(query, key, eye, read, "masked", scaling)
        np.testing.assert_allclose(probabilities, held["sparse_attention"], atol=1e-5)
        out = sparse_attention(query, key, value, read, backend, scaling).transpose(1, 2).flatten(2)
        out = out @ torch.tensor(held["wo"]).T + torch.tensor(held["bo"])
        np.testing.assert_allclose(out, held["out"], atol=1e-5)


# -- the mask ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(tokens=st.integers(2, 30), prefix=st.integers(0, 5), rate=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_every_patch_reads_exactly_the_budget_and_the_prefix_everything(tokens, prefix, rate, seed):
    prefix = min(prefix, tokens - 1)
    generator = torch.Generator().manual_seed(seed)
    approx = torch.randint(0, 3, (2, 2, tokens - prefix, tokens), generator=generator).float()  # many ties
    mask = connectivity_mask(approx, rate)
    assert mask.shape == (2, 2, tokens, tokens)
    assert mask[:, :, :prefix].all()
    budget = math.ceil(rate * tokens)
    assert (mask[:, :, prefix:].sum(-1) == budget).all()
    read = torch.where(mask[:, :, prefix:], approx, 9).amin(-1)
    left = torch.where(mask[:, :, prefix:], -9, approx).amax(-1)
    assert (left <= read).all()


def test_budgets_of_the_paper():
    assert connectivity_mask(torch.rand(1, 1, 196, 197), 0.25)[0, 0, 5].sum() == 50


def test_a_threshold_reads_many_or_none():
    approx = torch.tensor([[[[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]]]])
    mask = connectivity_mask(approx, threshold=0.1)
    assert mask[0, 0].tolist() == [[True] * 3, [False, True, True], [False] * 3]


def test_the_predictor_keeps_the_largest_coefficients_without_renormalising():
    predictor = ConnectivityPredictor(4, 12, 2, reduce_tokens=2, coef_topk=2, scale=3.0)
    query, key, _ = (x.float() for x in parts(tokens=12))
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.copy_(torch.randn_like(parameter))
        dense, raw = predictor.approximate(query, key, dense=True)
        sparse, approx = predictor.approximate(query, key)
    torch.testing.assert_close(dense.sum(-1), torch.ones(2, 3, 11))
    assert ((sparse > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(sparse, torch.where(dense >= dense.topk(2).values[..., -1:], dense, 0.0))
    torch.testing.assert_close(raw, dense @ predictor.up.T)
    basis = predictor.up.abs()
    torch.testing.assert_close(approx, sparse @ torch.where(basis > 0.02, basis, 0.0).T)


# -- attention -----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(2, 14), prefix=st.integers(0, 5), rate=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_backends_agree_and_equal_dense_probabilities_renormalised(tokens, prefix, rate, seed):
    prefix = min(prefix, tokens - 1)
    query, key, value = parts(seed, tokens=tokens)
    approx = torch.rand(2, 3, tokens - prefix, tokens, generator=torch.Generator().manual_seed(seed))
    mask = connectivity_mask(approx, rate)
    dense = (query @ key.transpose(2, 3) * 0.7).softmax(-1) * mask
    wanted = dense / dense.sum(-1, keepdim=True) @ value
    for backend in ("masked", "gather"):
        torch.testing.assert_close(sparse_attention(query, key, value, mask, backend, 0.7), wanted)
    index = approx.topk(math.ceil(rate * tokens)).indices
    torch.testing.assert_close(gather_attention(query, key, value, index, 0.7), wanted)


def test_backends_have_the_same_gradients():
    mask = connectivity_mask(torch.rand(2, 3, 10, 11), 0.4)
    found = []
    for backend in ("masked", "gather"):
        inputs = [x.clone().requires_grad_() for x in parts()]
        sparse_attention(*inputs, mask, backend).square().sum().backward()
        found.append([x.grad for x in inputs])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_reads_nothing_gets_nothing(dtype):
    query, key, value = (x.to(dtype).requires_grad_() for x in parts())
    mask = torch.rand(2, 3, 11, 11) > 0.5
    mask[:, :, 4] = False
    out = masked_attention(query, key, value, mask, 0.5)
    assert (out[:, :, 4] == 0).all()
    assert out.isfinite().all()
    out.float().square().sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


def test_what_backends_refuse():
    query, key, value = parts()
    uneven = torch.rand(2, 3, 11, 11) > 0.5
    uneven[:, :, 0, 0] = False
    with pytest.raises(UserError, match="as many keys in every row"):
        sparse_attention(query, key, value, uneven, "gather")
    full = torch.ones(2, 3, 11, 11, dtype=torch.bool)
    wanted = functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(sparse_attention(query, key, value, full, "gather"), wanted)


# -- on a model ----------------------------------------------------------------------------------------------------


def by_hand(model, connectivity, keep_rate, prune=1.0, prune_at=()):
    """The paper's steps on a whole transformer; pruned tokens stay, zeroed and hidden, as in the authors' code."""
    tower = model.vit
    x = tower.embeddings(IMAGES)
    batch, tokens, _ = x.shape
    alive, passed = torch.ones(batch, tokens, dtype=torch.bool), 0
    for layer, block in enumerate(tower.layers):
        inner, attention = block.layernorm_before(x), block.attention
        q, k, v = (
            getattr(attention, f"{name}_proj")(inner).view(batch, tokens, 2, 8).transpose(1, 2) for name in "qkv"
        )
        p = connectivity.modules[str(layer)]
        kept = alive[:, None, :, None]
        low_q, low_k = p.query(q)[:, :, 1:] * kept[:, :, 1:], p.key(k) * kept
        coef = (p.scale * low_q @ (low_k.transpose(2, 3) @ p.down)).softmax(-1)
        coef = torch.where(coef >= coef.topk(p.coef_topk).values[..., -1:], coef, 0.0)
        approx = coef @ p.basis().T
        approx = approx.masked_fill(~alive[:, None, None], -torch.inf)
        mask = connectivity_mask(approx, keep_rate) & alive[:, None, None]
        scores = (q @ k.transpose(2, 3) * 8**-0.5).masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1).nan_to_num(0.0)
        out = (weights @ v).transpose(1, 2).flatten(2)
        x = x + attention.o_proj(out)
        if layer in prune_at:
            passed += 1
            score = weights[:, :, 0, 1:].mean(1).masked_fill(~alive[:, 1:], -torch.inf)
            best = score.topk(math.ceil(prune**passed * (tokens - 1))).indices
            alive = functional.pad(
                torch.zeros(batch, tokens - 1, dtype=torch.bool).scatter(1, best, True), (1, 0), value=True
            )
        x = x + block.mlp(block.layernorm_after(x))
    return model.classifier(tower.layernorm(x)[:, 0])


@pytest.mark.parametrize("backend", ["masked", "gather"])
@pytest.mark.parametrize("prune", [1.0, 0.6])
def test_equals_the_steps_by_hand(model, anatomy, backend, prune):
    held = trained(anatomy)
    reducer = Sparsifiner(keep_rate=0.3, backend=backend, weights=held, prune=prune, prune_at=(0, 2))
    with torch.no_grad():
        wanted = by_hand(model, held, 0.3, prune, (0, 2))
        with reducer(model) as session:
            got = model(IMAGES).logits
        plain = model(IMAGES).logits
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-3)
    assert session.tokens == ([17] * 4 if prune == 1 else [17, 11, 11, 7])


def test_reading_everything_is_dense_attention_whatever_is_guessed(model, anatomy):
    with torch.no_grad():
        plain = model(IMAGES).logits
        for reducer in (
            Sparsifiner(keep_rate=1.0, weights=trained(anatomy)),
            Sparsifiner(score_threshold=-1.0, weights=trained(anatomy)),
            Sparsifiner(keep_rate=0.95, weights=trained(anatomy)),  # of 17, rounded up
            Sparsifiner.tiny().unreduced(),
        ):
            with reducer(model):
                torch.testing.assert_close(model(IMAGES).logits, plain, atol=1e-6, rtol=1e-5)


def test_masks_depend_on_the_image_and_not_on_its_batch(model, anatomy):
    masks = {}

    class Watched(Sparsifiner):
        def guess(self, evidence, layer):
            approx = super().guess(evidence, layer)
            masks.setdefault(layer, []).append(connectivity_mask(approx, self.keep_rate))
            return approx

    reducer = Watched(weights=trained(anatomy))
    with reducer(model), torch.no_grad():
        model(IMAGES)
        model(IMAGES[1:2])
    for together, alone in masks.values():
        assert torch.equal(together[1:2], alone)
        assert not torch.equal(together[0], together[1])


def test_no_gradient_from_the_task_reaches_the_predictors(anatomy):
    model = vit()
    held = trained(anatomy)
    with Sparsifiner(weights=held)(model):
        model(IMAGES).logits.square().sum().backward()
    assert all(p.grad is None for p in held.modules.parameters())
    assert model.vit.layers[0].attention.q_proj.weight.grad.abs().sum() > 0


def test_the_reconstruction_reaches_the_predictor_only():
    predictor = ConnectivityPredictor(4, 11, 3, reduce_tokens=3)
    query, key, _ = (x.float().requires_grad_() for x in parts())
    attention = torch.rand(2, 3, 10, 11)
    _, approx = predictor.approximate(query.detach(), key.detach(), dense=True)
    loss = reconstruction_loss(approx, attention)
    torch.testing.assert_close(loss, ((approx - attention) ** 2).sum())
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in predictor.named_parameters() if n != "key.bias")
    assert query.grad is None


def test_the_true_attention_keeps_the_most(model):
    """Oracle: no other mask of the same budget keeps more attention."""
    attention = torch.rand(2, 2, 16, 17).softmax(-1)
    best = (attention * connectivity_mask(attention, 0.25)[:, :, 1:]).sum()
    for seed in range(20):
        other = connectivity_mask(torch.rand(2, 2, 16, 17, generator=torch.Generator().manual_seed(seed)), 0.25)
        assert (attention * other[:, :, 1:]).sum() < best


# -- files, sizes, mistakes ----------------------------------------------------------------------------------------


def test_file_round_trip(model, anatomy, tmp_path):
    path = tmp_path / "sparse.safetensors"
    tuned = {name: 1.05 * t for name, t in model.state_dict().items()}
    held = trained(anatomy, backbone=tuned, imprint=Imprint.of(model), notes={"command": "mintage"})
    held.save(path)
    read = Connectivity.load(path)
    assert [getattr(read, name) for name in read.kept] == [getattr(held, name) for name in held.kept]
    assert read.notes == {"command": "mintage"}
    with torch.no_grad():
        for settings_ in ({}, {"fine_tuned": False}):
            with Sparsifiner(weights=str(path), **settings_)(model):
                got = model(IMAGES).logits
            with Sparsifiner(weights=read, **settings_)(model):
                torch.testing.assert_close(model(IMAGES).logits, got)
        with Sparsifiner(weights=str(path), keep_rate=1.0)(model):
            dense = model(IMAGES).logits
        model_ = vit()
        model_.load_state_dict({name: t.half().float() for name, t in tuned.items()})
        torch.testing.assert_close(dense, model_(IMAGES).logits)


def test_refusals(model, anatomy, tmp_path):
    held = trained(anatomy, imprint=Imprint.of(model))
    held.save(tmp_path / "sparse.safetensors")
    with pytest.raises(UserError, match="connectivity predictors were trained for other weights"):
        Sparsifiner(weights=str(tmp_path / "sparse.safetensors"))(vit(initializer_range=0.2))
    with pytest.raises(UserError, match="predictors for heads=2, but this ViTForImageClassification has 4"):
        Sparsifiner(weights=trained(anatomy))(vit(num_attention_heads=4))
    small = IMAGES[..., :8, :8]
    with (
        Sparsifiner(weights=trained(anatomy))(model),
        torch.no_grad(),
        pytest.raises(UserError, match="predictors for 16 patches, but this image has 4; pass images of the size"),
    ):
        model(small, interpolate_pos_encoding=True)
    for bad in (
        {"keep_rate": 0.0},
        {"keep_rate": 1.5},
        {"prune": 0.0},
        {"backend": "gather", "score_threshold": 0.1},
        {"prune_at": (-1,)},
    ):
        with pytest.raises(UserError):
            Sparsifiner(**bad)
    no_class_token = Anatomy(layers=4, dim=16, hidden=32, patches=16, prefix=0)
    with pytest.raises(UserError, match="prune needs a class token"):
        Sparsifiner(weights=None, prune=0.5).kept(no_class_token)


def test_multiply_adds_by_the_papers_formula(anatomy):
    n, d, h, c, low = 197, 384, 6, 32, 32
    dense = mhsa_macs(tokens=n, dim=d, heads=h, read=n * n)
    assert dense == 4 * n * d * d + 2 * n * n * d
    read = n + (n - 1) * 50
    sparse = mhsa_macs(tokens=n, dim=d, heads=h, read=read, channels=c, low=low, coefficients=8, basis=20.0)
    predictor = 2 * h * n * (d // h) * c + h * c * n * low + h * (n - 1) * c * low + h * (n - 1) * 8 * 20
    assert sparse == 4 * n * d * d + predictor + 2 * read * (d // h) * h
    full, now = Sparsifiner(keep_rate=0.1, weights=Connectivity.new(anatomy)).mhsa_macs(anatomy)
    assert full == 4 * mhsa_macs(tokens=17, dim=16, heads=2, read=17 * 17)
    assert now != full
    assert Sparsifiner(keep_rate=1.0, weights=None).mhsa_macs(anatomy) == (full, full)
    pruned = Sparsifiner(keep_rate=0.1, prune=0.5, prune_at=(0, 2), weights=Connectivity.new(anatomy))
    assert pruned.mhsa_macs(anatomy)[1] < now


def official(made):
    """The names that the authors' code gives (lim142857/Sparsifiner, models/sparsifiner.py)."""
    held = {"cls_token": torch.ones(1, 1, made.heads * made.head_dim)}
    for i, module in made.modules.items():
        at, own = f"blocks.{i}.attn.", module.state_dict()
        held[f"{at}qkv.weight"] = torch.ones(3 * made.heads * made.head_dim, made.heads * made.head_dim)
        held |= {f"{at}mask_predictor.proj_n": own["down"], f"{at}mask_predictor.proj_back_n": own["up"]}
        for mine, theirs in (("query", "proj_c_q"), ("key", "proj_c_k")):
            held |= {f"{at}mask_predictor.{theirs}.{k}": own[f"{mine}.{k}"] for k in ("weight", "bias")}
    return held


def test_the_authors_weights_are_read_by_their_names():
    made = Connectivity(layers=3, heads=2, head_dim=8, patches=196, prefix=1)
    read = Connectivity.from_official({"model": official(made)})
    assert (read.layers, read.heads, read.head_dim, read.patches, read.prefix) == (3, 2, 8, 196, 1)
    query, key = torch.randn(2, 1, 2, 197, 8)
    for mine, theirs in zip(made.modules.values(), read.modules.values(), strict=True):
        for wanted, got in zip(mine.approximate(query, key), theirs.approximate(query, key), strict=True):
            assert torch.equal(got, wanted)
    assert set(read.backbone) == {"cls_token", *(f"blocks.{i}.attn.qkv.weight" for i in range(3))}
    for lost in ("blocks.1.attn.mask_predictor.proj_n", "blocks.0.attn.qkv.weight"):
        with pytest.raises(UserError, match=r"no weights of lim142857/Sparsifiner .*expected blocks") as error:
            Connectivity.from_official({k: v for k, v in official(made).items() if k != lost})
        assert "\n" not in str(error.value)

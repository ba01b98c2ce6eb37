"""The search for DiffRate's schedules: equality with the authors' code, gradients, and the masked model."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.data.images import Images
from mintage.errors import UserError
from mintage.reduce.contract import Anatomy
from mintage.reduce.core.adapters import adapter_for
from mintage.reduce.core.rate_schedule import RateSchedule, read_schedules
from mintage.reduce.diffrate import DiffRate
from mintage.reduce.training.diffrate import DiffRateTraining
from mintage.reduce.training.images import TrainingImages
from mintage.reduce.training.masked import MaskedDiffRate, masked_softmax, reduce_masked
from mintage.reduce.training.rate_search import RateSearch
from mintage.reduce.training.rates import Rate, RateProxy, Rates, expected_macs
from mintage.train.training import Work
from mintage.vision import ImageClassifier, Preprocessing

VECTORS = Path(__file__).parents[1] / "vectors" / "diffrate"
GREY = Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def held_of(name):
    return {key: torch.tensor(value) for key, value in np.load(VECTORS / f"{name}.npz").items()}


def proxy_of(logits, granularity=1, patches=None):
    made = RateProxy(len(logits) if patches is None else patches, granularity)
    made.logits.data.copy_(logits)
    return made


@cache
def vit(labels=5, prefix=1):
    from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": 16, "patch_size": 4, "num_labels": labels, "initializer_range": 0.3,
    }  # fmt: skip
    if prefix == 2:
        return DeiTForImageClassification(DeiTConfig(**sizes)).eval()
    return ViTForImageClassification(ViTConfig(**sizes)).eval()


def pixels_of(seed=1, images=3):
    return torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def fixed_rates(prune, merge, patches=16):
    def rate(kept):
        return Rate(torch.tensor(float(kept)), (torch.arange(patches + 1) < kept).float())

    return [(rate(p), rate(m)) for p, m in zip(prune, merge, strict=True)]


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["rate_proxy", "rate_proxy_granularity4"])
def test_parity_of_the_rate_proxy(case):
    held = held_of(case)
    proxy = proxy_of(held["logits"], int(held["granularity"]), int(held["patch_number"]))
    assert proxy.candidates.tolist() == held["candidates"].tolist()
    assert proxy.kept == int(held["kept"])
    torch.testing.assert_close(proxy.probability(), held["token_probability"], atol=1e-5, rtol=0)

    def gradient(of):
        return torch.autograd.grad(of, proxy.logits)[0]

    torch.testing.assert_close(gradient(proxy().kept), held["grad_kept"], atol=1e-5, rtol=1e-4)
    for previous, mask, wanted in (
        (None, "mask", "grad_mask_dot_w"),
        (int(held["previous_tokens"]), "mask_prev", "grad_mask_prev_dot_w"),
    ):
        got = proxy.mask(previous)
        torch.testing.assert_close(got, held[mask], atol=1e-6, rtol=0)
        torch.testing.assert_close(gradient(got @ held["weights"]), held[wanted], atol=1e-5, rtol=0)


def test_parity_of_the_masked_softmax():
    held = held_of("masked_softmax")
    got = masked_softmax(held["scores"], held["mask"], float(held["eps"]))
    torch.testing.assert_close(got, held["attn"], atol=1e-6, rtol=0)


def test_parity_of_a_training_block():
    held = held_of("train_block")
    prune, merge = proxy_of(held["prune_logits"]), proxy_of(held["merge_logits"])
    assert (prune.kept, merge.kept) == (int(held["prune_kept"]), int(held["merge_kept"]))
    importance = held["attn"].mean(1)[:, 0, 1:]
    x, mask, size = reduce_masked(held["x"], importance, held["mask_in"], held["size"], prune(), merge())
    torch.testing.assert_close(x, held["x_out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(size, held["size_out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(mask, held["mask_out"], atol=1e-6, rtol=0)
    got = torch.autograd.grad(mask[0] @ held["weights"], [prune.logits, merge.logits])
    torch.testing.assert_close(got[0], held["grad_prune_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1], held["grad_merge_logits"], atol=1e-5, rtol=0)


# -- rates -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 31), st.floats(0, 20))
@settings(max_examples=60, deadline=None)
def test_a_rate_is_a_falling_probability_with_the_expected_mass(seed, patches, granularity, sharpness):
    proxy = RateProxy(patches, granularity)
    proxy.logits.data = sharpness * torch.randn(len(proxy.logits), generator=torch.Generator().manual_seed(seed))
    rate = proxy()
    share = proxy.logits.detach().double().softmax(0)
    expected = float(share @ proxy.candidates.double())
    probability = rate.probability.detach().double()
    assert (probability.diff() <= 1e-6).all()
    assert (probability >= 0).all()
    assert (probability <= 1 + 1e-6).all()
    assert probability[0] == pytest.approx(1)
    assert probability.sum().item() == pytest.approx(expected + 1, abs=1e-4)
    assert 2 <= rate.count <= patches + 1
    assert rate.count - 1 == pytest.approx(expected + 0.5, abs=0.5001)
    hard = rate.mask().detach().round()
    assert hard.tolist() == [1.0] * rate.count + [0.0] * (patches + 1 - rate.count)
    gradient = torch.autograd.grad(rate.kept, proxy.logits)[0].double()
    wanted = share * (proxy.candidates.double() - expected)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)


def test_a_single_candidate_keeps_everything():
    assert RateProxy(196, 197).kept == 197
    assert RateProxy(196, 4).candidates.tolist()[::16] == [196, 132, 68, 4]
    rates = Rates(3, 16)
    assert rates.schedule().prune_kept[0] == 17
    assert Rates(3, 16, prunes=False).schedule().prune_kept[1] == 17
    merged_only = Rates(3, 16, prunes=False).schedule()
    assert merged_only.merge_kept[1] < 17


def test_the_cost_is_the_anatomys_and_its_gradient_reaches_every_rate():
    anatomy = Anatomy(layers=3, dim=16, hidden=32, patches=16, prefix=2, fixed=100)
    rates = Rates(3, 16)
    for proxy in (*rates.prune, *rates.merge):
        proxy.logits.data = torch.linspace(2, -2, len(proxy.logits))
    total = expected_macs(rates(), anatomy)
    kept = [left for _, left in rates.schedule().patches_kept(3, 16)]
    assert total.item() == anatomy.macs(kept)
    total.backward()
    for proxy in (*rates.prune[1:], *rates.merge[1:]):
        assert proxy.logits.grad.abs().min() > 0


# -- the masked model --------------------------------------------------------------------------------------------------


def test_the_masked_softmax_is_the_softmax_among_the_rest():
    scores = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1.0, 1, 1, 1, 0, 0]] * 2)
    got = masked_softmax(scores, mask)
    torch.testing.assert_close(got[:, :, :4, :4], scores[:, :, :4, :4].softmax(-1), atol=1e-5, rtol=0)
    alone = torch.full((2, 2), 1.0)
    torch.testing.assert_close(got[:, :, 4, 4] + got[:, :, 4, :4].sum(-1) + got[:, :, 4, 5], alone)
    far = scores.clone()
    far[..., 4] += 50  # a masked token of great score must not take all
    assert torch.isfinite(masked_softmax(far, mask)).all()


@pytest.mark.parametrize("prefix", [1, 2])
@pytest.mark.parametrize(
    ("prune", "merge"),
    [
        ((17, 17, 17, 17), (17, 17, 17, 17)),
        ((17, 14, 10, 6), (17, 14, 10, 6)),  # prunes only
        ((17, 17, 17, 17), (17, 12, 10, 3)),  # merges only
        ((17, 15, 11, 6), (17, 13, 8, 3)),
        ((17, 13, 15, 17), (17, 17, 9, 12)),  # numbers that do nothing
    ],
)
def test_masking_equals_removing(prefix, prune, merge):
    model, pixels = vit(prefix=prefix), pixels_of()
    with torch.no_grad():
        plain = model(pixels).logits
        with MaskedDiffRate(rates=fixed_rates(prune, merge))(model) as session:
            masked = model(pixels).logits
        assert session.tokens == [16 + prefix] * 4
        schedule = RateSchedule(prune_kept=prune, merge_kept=merge, patches=16)
        with DiffRate(schedule=schedule, clamp_sizes=True)(model) as session:
            removed = model(pixels).logits
        assert session.tokens[-1] < 16 + prefix or prune == merge == (17,) * 4
    torch.testing.assert_close(masked, removed, atol=1e-3, rtol=0)
    if min(*prune, *merge) < 17:
        assert (masked - plain).abs().max() > 1e-2
    else:
        torch.testing.assert_close(masked, plain, atol=1e-4, rtol=0)


def test_the_gradient_reaches_every_rate_of_a_frozen_model():
    model = vit()
    before = {name: p.clone() for name, p in model.named_parameters()}
    search = RateSearch(Rates(4, 16), model, lambda _: {}, adapter_for(model).anatomy(), share=0.6)
    for proxy in (*search.module.prune, *search.module.merge):
        proxy.logits.data = torch.linspace(0.5, -0.5, len(proxy.logits))
    for index, merge in enumerate(search.module.merge):  # merges fewer than it prunes, so that both act
        merge.logits.data -= 0.3 * index * torch.linspace(1, -1, len(merge.logits))
    loss, metrics = search.loss(search.module, {"pixels": pixels_of(), "labels": torch.tensor([0, 1, 2])})
    loss.backward()
    for proxy in (*search.module.prune[1:], *search.module.merge[1:]):
        assert proxy.logits.grad.abs().sum() > 0
    assert 0 < metrics["share"] < 1
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_rates_of_another_size_are_refused():
    with pytest.raises(UserError, match="rates for 3 blocks do not fit a model of 4 blocks and 16 patches"):
        MaskedDiffRate(rates=Rates(3, 16)())(vit())
    assert len(MaskedDiffRate.tiny().rates) == 4


# -- the search --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lessons():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    model = vit()
    with torch.no_grad():
        labels = model(GREY(list(pixels))).logits.argmax(1).numpy()
    classifier = ImageClassifier(model, GREY, tuple("abcde"), "random")
    held_out = Images([*pixels[:8]], [str(i) for i in range(8)], labels[:8], tuple("abcde"))
    return TrainingImages(classifier, pixels, labels, held_out, "noise")


def test_a_search_comes_to_its_budget_and_is_kept_as_json(lessons, tmp_path):
    stages = []
    training = DiffRateTraining(shares=(0.7,), steps=20, batch_rows=4, lr=0.3)
    made = training.teach(lessons, Work(tmp_path / "work", progress=lambda *told: stages.append(told)))
    made.save(tmp_path / "found.json", {"command": "mintage train diffrate", "settings": '{"lr": 0.3}'})
    (read,) = read_schedules(tmp_path / "found.json")
    assert replace(read, notes=made[0].notes) == made[0]
    assert read.notes["settings"] == {"lr": 0.3}
    assert read.notes["held out"] in training.summary(made)
    anatomy = adapter_for(lessons.classifier.model).anatomy()
    assert read.share == pytest.approx(read.share_of(anatomy), abs=1e-3)
    assert (read.prune_kept, read.merge_kept) == ((17, 10, 9, 9), (17, 9, 9, 9))  # as the function it replaced found
    assert read.share == pytest.approx(0.7, abs=0.06)  # one token of 16 is worth 0.05
    assert read.prune_kept[0] == 17
    assert read.notes["command"] == "mintage train diffrate"
    assert set(json.loads(read.notes["held out"])) == {"top1", "unmodified"}
    assert ("search for 0.7", 20, 20) in stages
    assert all(p.requires_grad for p in lessons.classifier.model.parameters())
    with DiffRate(schedule=read)(lessons.classifier.model) as session:
        lessons.classifier.logits(pixels_of())
    assert session.state.patches == read.patches_kept(4, 16)[-1][1]


def test_a_killed_search_goes_on(lessons, tmp_path, monkeypatch):
    training = DiffRateTraining(steps=6, batch_rows=4)
    whole = training.search(lessons, 0.7, Work(tmp_path / "whole"))

    def stop(stage, done, of):
        if done == 4:
            raise KeyboardInterrupt

    often = DiffRateTraining.settings
    monkeypatch.setattr(DiffRateTraining, "settings", lambda self, **given: often(self, **given | {"save_every": 2}))
    with pytest.raises(KeyboardInterrupt):
        training.search(lessons, 0.7, Work(tmp_path / "cut", progress=stop))
    seen = []
    cut = training.search(lessons, 0.7, Work(tmp_path / "cut", progress=lambda *told: seen.append(told[1])))
    assert cut == whole
    assert seen == [5, 6]


def test_mistakes(lessons, tmp_path):
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(UserError, match=r"shares=.* is (out of range|not a number)"):
            DiffRateTraining(shares=(0.7, share))
    with pytest.raises(UserError, match="granularity=0 is out of range"):
        DiffRateTraining(granularity=0)
    with pytest.raises(UserError, match="no shares"):
        DiffRateTraining(shares=()).teach(lessons, Work(tmp_path))

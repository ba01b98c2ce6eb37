import math

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import logits_process as hf

from mintage.draft.core.warp import Warp, draw
from mintage.errors import UserError
from mintage.models import TINY_VOCABULARY, tiny_causal_lm

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def pipeline(**settings):
    """Return what transformers itself applies to the logits while generating."""
    config = GenerationConfig(**settings)
    model = tiny_causal_lm()
    model._prepare_special_tokens(config, device="cpu")
    return model._get_logits_processor(config, input_ids_seq_length=IDS.shape[1], encoder_input_ids=IDS, device="cpu")


def logits(rows=1, seed=0, scale=3.0):
    return torch.randn(rows, TINY_VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale


# -- the distribution -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50])
@pytest.mark.parametrize("top_p", [0.2, 0.9, 1.0])
@pytest.mark.parametrize("repetition_penalty", [1.0, 1.5, 0.7])
def test_the_distribution_is_that_of_transformers_own_pipeline(temperature, top_k, top_p, repetition_penalty):
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    processors = pipeline(do_sample=True, **chosen)
    for seed in range(3):
        raw = logits(seed=seed)
        wanted = processors(IDS, raw.clone()).softmax(-1)
        for warp in (Warp(**chosen), Warp.from_processors(processors, do_sample=True)):
            assert torch.equal(warp.probabilities(warp.penalise(IDS, raw)), wanted)


@pytest.mark.parametrize(
    "chosen",
    [
        {"min_p": 0.1},
        {"typical_p": 0.5, "temperature": 0.8},
        {"epsilon_cutoff": 0.05, "eta_cutoff": 0.05},
        {"no_repeat_ngram_size": 2, "top_k": 4},
        {"bad_words_ids": [[1], [2, 3]], "renormalize_logits": True},
        {"suppress_tokens": [0, 1], "min_new_tokens": 3, "eos_token_id": 5},
        {"exponential_decay_length_penalty": (0, 1.1), "eos_token_id": 5, "remove_invalid_values": True},
    ],
)
def test_other_processors_of_transformers_are_taken_over(chosen):
    processors = pipeline(do_sample=True, **chosen)
    assert len(processors)
    warp = Warp.from_processors(processors, do_sample=True)
    for seed in range(3):
        raw = logits(seed=seed)
        wanted = processors(IDS, raw.clone()).softmax(-1)
        assert torch.equal(warp.probabilities(warp.penalise(IDS, raw)), wanted)


def test_the_order_of_a_users_processors_is_kept():
    """Bias after temperature is not temperature after bias; and a warper can take greedy decoding's choice away."""
    mixed = LogitsProcessorList(
        [hf.TemperatureLogitsWarper(0.5), hf.SequenceBiasLogitsProcessor([[[3], 2.0]]), hf.TopKLogitsWarper(4)]
    )
    raw = logits(seed=4)
    warp = Warp.from_processors(mixed, do_sample=True)
    assert torch.equal(warp.probabilities(warp.penalise(IDS, raw)), mixed(IDS, raw.clone()).softmax(-1))
    typical = LogitsProcessorList([hf.TypicalLogitsWarper(mass=0.1)])
    raw = torch.tensor([[2.0, *[1.0] * 11]])  # the likeliest token is not a typical one
    wanted = typical(IDS, raw.clone()).argmax(-1)
    assert wanted != raw.argmax(-1)
    warp = Warp.from_processors(typical, do_sample=False)
    assert warp.greedy
    assert torch.equal(warp.penalise(IDS, raw).argmax(-1), wanted)


def test_penalties_follow_each_rows_own_tokens():
    warp = Warp(temperature=1.0, repetition_penalty=2.0)
    raw = torch.tensor([[1.0, -1.0, 2.0], [1.0, -1.0, 2.0]])
    assert warp.penalise(torch.tensor([[0, 1], [2, 2]]), raw).tolist() == [[0.5, -2.0, 2.0], [1.0, -1.0, 1.0]]
    assert raw.tolist() == [[1.0, -1.0, 2.0]] * 2  # the model's logits are left alone


def test_shapes_and_precision():
    warp = Warp(temperature=0.7, top_k=5, top_p=0.9)
    raw = logits(rows=6)
    flat = warp.probabilities(raw)
    assert torch.equal(warp.probabilities(raw.view(2, 3, -1)), flat.view(2, 3, -1))
    assert torch.equal(warp.probabilities(raw[2]), warp.probabilities(raw[2:3])[0])
    assert warp.probabilities(raw.double()).dtype == torch.float64
    assert warp.probabilities(raw.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(flat.sum(-1), torch.ones(6))


def test_greedy_is_temperature_0_and_plain_sampling_needs_no_warper():
    assert Warp().greedy
    assert not Warp(temperature=1.0).greedy
    assert not Warp(temperature=1.0).warpers
    assert not Warp(temperature=1.0).penalties
    raw = logits()
    assert torch.equal(Warp().probabilities(raw), raw.softmax(-1))


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": 1e-300}, "temperature=1e-300 overflows; pass 0 to be greedy"),
        ({"temperature": -0.5}, "temperature=-0.5 is negative; pass 0 for greedy decoding"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1 is negative; pass 0 to switch it off"),
        ({"top_p": 0.0}, "top_p=0.0 is outside (0, 1]"),
        ({"top_p": 1.5}, "top_p=1.5 is outside (0, 1]"),
        ({"top_p": math.nan}, "top_p=nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is not positive; 1 switches it off"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0 is not positive"),
    ],
)
def test_values_out_of_range_are_named_with_the_rule(wrong, said):
    with pytest.raises(UserError) as caught:
        Warp(**wrong)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


class Clock(LogitsProcessor):
    """Counts its calls, which a tree would falsify."""

    def __call__(self, input_ids, scores):
        return scores


class MyTopK(hf.TopKLogitsWarper):
    """A known one's child may do anything."""


@pytest.mark.parametrize("stranger", [Clock(), MyTopK(3)])
def test_an_unknown_processor_is_refused_by_name(stranger):
    processors = LogitsProcessorList([hf.TopKLogitsWarper(3), stranger])
    with pytest.raises(UserError, match=f"{type(stranger).__name__} cannot be used with a draft tree"):
        Warp.from_processors(processors, do_sample=True)


def test_guidance_is_refused_by_the_name_of_its_option():
    with pytest.raises(UserError, match=r"\(guidance_scale\) cannot be used with a draft tree; remove it"):
        Warp.from_processors(pipeline(do_sample=True, guidance_scale=2.0), do_sample=True)


# -- drawing --------------------------------------------------------------------------------------------------------


def test_draw_is_the_exact_inverse_cdf():
    probs = logits(seed=1).softmax(-1)[0]
    for seed in range(200):
        uniform = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).item()
        mass, wanted = 0.0, 0
        total = sum(probs.double().tolist())
        for wanted, share in enumerate(probs.double().tolist()):  # noqa: B007
            mass += share
            if mass > uniform * total:
                break
        assert draw(probs, torch.Generator().manual_seed(seed)) == wanted


@pytest.mark.parametrize("uniform", [0.0, 2.0**-53, 0.25, 0.5, 1 - 2.0**-53, 1.0])  # 1.0: as if rounded up
@pytest.mark.parametrize(
    "probs",
    [
        [0.0, 0.0, 0.5, 0.0, 0.5, 0.0],
        [0.0, 1.0, 0.0],
        [0.25, 0.0, 0.0, 0.75],
        [0.0, 1e-30, 0.0, 1e-12, 0.0],
        [0.0, 3.0, 0.0, 5.0, 0.0],  # mass need not be 1
    ],
)
def test_a_token_of_probability_0_is_never_drawn(monkeypatch, uniform, probs):
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: torch.tensor(uniform, dtype=torch.float64))
    assert probs[draw(torch.tensor(probs), None)] > 0


def test_draws_follow_the_distribution():
    warp = Warp(temperature=0.8, top_p=0.95)
    probs = warp.probabilities(logits(seed=2, scale=1.0))[0]
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    counts = np.bincount([draw(probs, generator) for _ in range(n)], minlength=len(probs))
    held = probs.numpy() > 0
    assert counts[~held].sum() == 0
    expected = probs.double().numpy()[held]
    assert stats.chisquare(counts[held], expected / expected.sum() * n).pvalue > 1e-3


def test_draw_uses_the_generator_given_or_torchs_own():
    probs = torch.full((50,), 0.02)
    first = [draw(probs, torch.Generator().manual_seed(s)) for s in range(20)]
    assert first == [draw(probs, torch.Generator().manual_seed(s)) for s in range(20)]
    torch.manual_seed(3)
    before = [draw(probs, None) for _ in range(10)]
    torch.manual_seed(3)
    assert before == [draw(probs, None) for _ in range(10)]

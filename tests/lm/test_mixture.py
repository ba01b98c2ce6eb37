"""Mixtures of experts: the authors' and reference numbers, Bayes by hand, and what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mintage.errors import UserError
from mintage.lm.core.mixture import log_posterior, mixed, prior_of, running_prior, top_k_prior, weighted_average

VECTORS = Path(__file__).parents[1] / "vectors" / "btm"


def vectors(name):
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(VECTORS / f"{name}.npz").items()}


@pytest.mark.parametrize("name", ["posterior_uniform_prior", "posterior_given_prior"])
def test_posterior_and_mixture_are_the_references(name):
    held = vectors(name)
    logprobs = held["logits"].double().log_softmax(-1)
    targets = held["targets"].expand(len(logprobs), -1, -1)
    token = logprobs.gather(-1, targets[..., None])[..., 0]
    assert torch.allclose(token, held["token_logprob"], atol=1e-9)
    weights = log_posterior(token, held["prior"])
    assert torch.allclose(weights[..., :-1].exp(), held["posterior"], atol=1e-9)
    assert torch.allclose(weights[..., -1].exp(), held["final_posterior"], atol=1e-9)
    assert torch.allclose(mixed(token, weights[..., :-1]), held["mixture_logprob"], atol=1e-9)
    uniform = torch.full_like(weights[..., :-1], -np.log(len(token)))
    assert torch.allclose(mixed(token, uniform).float(), held["uniform_average_logprob"], atol=1e-5)
    one = log_posterior(token, held["prior"], history=1)[..., :-1].clone()
    one[..., 0] = -np.log(len(token))  # the authors begin a block with equal weights whatever the prior
    assert torch.allclose(mixed(token, one).float(), held["official_previous_token_logprob"], atol=1e-5)
    assert torch.allclose(one[..., -1].exp().float(), held["official_last_posterior"], atol=1e-5)


def test_prior_estimation_top_k_and_average_are_the_references():
    held = vectors("prior_estimation")
    found = running_prior(held["block_posteriors"], float(held["decay"]))
    assert torch.allclose(found, held["running_prior"], atol=1e-12)
    assert torch.allclose(top_k_prior(found[-1], int(held["top_k"])), held["top_k_prior"], atol=1e-12)
    held = vectors("parameter_average")
    states = [{k.partition(".")[2]: v for k, v in held.items() if k.startswith(f"expert{i}.")} for i in range(3)]
    merged = weighted_average(states, held["weights"])
    for name, tensor in merged.items():
        assert torch.allclose(tensor, held[f"merged.{name}"], atol=1e-6)


def test_it_is_bayes_over_whole_texts():
    draw = torch.Generator().manual_seed(0)
    experts, length, symbols = 3, 4, 3
    chains = torch.randn(experts, symbols + 1, symbols, generator=draw).double().log_softmax(-1)  # by what came before
    prior = prior_of([0.2, 0.5, 0.3], experts)
    total = 0.0
    for text in itertools.product(range(symbols), repeat=length):
        before = [symbols, *text[:-1]]
        token = chains[:, before, list(text)][:, None]
        whole = (prior.log() + token.sum((1, 2))).logsumexp(0)
        mixture = mixed(token, log_posterior(token, prior)[..., :-1]).sum()
        assert torch.allclose(mixture, whole, atol=1e-9)
        assert bool(
            (-mixture <= -(token.sum((1, 2)) + prior.log()) + 1e-12).all()
        )  # never worse than one and its prior
        total += float(mixture.exp())
    assert total == pytest.approx(1, abs=1e-9)


def test_documents_start_afresh_and_long_texts_do_not_underflow():
    token = -torch.rand(2, 1, 5000, generator=torch.Generator().manual_seed(1)).double() * 10
    token[0] += 0.1
    starts = torch.zeros(1, 5000, dtype=torch.bool)
    starts[0, [0, 3000]] = True
    prior = prior_of([0.9, 0.1], 2)
    weights = log_posterior(token, prior, starts)
    assert torch.allclose(weights[:, 0, 3000].exp(), prior)
    assert torch.allclose(weights[:, :, 3000:], log_posterior(token[..., 3000:], prior), atol=1e-9)
    assert weights.exp().sum(0).allclose(torch.ones(1, 5001).double())
    assert float(weights[0, 0, 2999].exp()) > 0.99


def test_an_expert_with_prior_0_is_not_there():
    token = -torch.rand(3, 2, 6, generator=torch.Generator().manual_seed(2)).double()
    with_none = log_posterior(token, prior_of([0.5, 0.0, 0.5], 3))
    without = log_posterior(token[[0, 2]], prior_of(None, 2))
    assert torch.allclose(with_none[[0, 2]], without)
    assert bool(with_none[1].isneginf().all())


def test_an_average_of_one_is_that_one_and_counts_stay_whole():
    states = [{"w": torch.full((2,), float(i)).half(), "steps": torch.tensor(i)} for i in range(3)]
    one = weighted_average(states, prior_of([0, 1, 0], 3))
    assert torch.equal(one["w"], states[1]["w"])
    assert one["steps"] == 1
    assert one["w"].dtype == torch.float16
    assert weighted_average(states, prior_of(None, 3))["w"].tolist() == [1, 1]


def test_what_is_no_distribution_is_told():
    for call in (
        lambda: prior_of([1, -1], 2),
        lambda: prior_of([0, 0], 2),
        lambda: prior_of([1], 2),
        lambda: top_k_prior(prior_of(None, 2), 3),
        lambda: running_prior(torch.ones(2, 2), 0.0),
        lambda: log_posterior(torch.zeros(2, 1, 3), prior_of(None, 2), history=0),
        lambda: weighted_average([{"a": torch.ones(2)}, {"a": torch.ones(3)}], prior_of(None, 2)),
    ):
        with pytest.raises(UserError) as told:
            call()
        assert "\n" not in str(told.value)

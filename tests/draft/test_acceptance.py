"""The comparison of rules by enumeration: the paper's claim, with its condition."""

import numpy as np
import pytest
import torch

from mintage.draft.core.acceptance import RULES, acceptance_table, exact_acceptance, random_pairs
from mintage.errors import UserError

REFERENCE = {
    (1.5, 0.0): {"chain": 0.460, "specinfer": 0.605, "kseq": 0.623, "rsd": 0.684},
    (1.5, 0.7): {"chain": 0.691, "specinfer": 0.842, "kseq": 0.870, "rsd": 0.893},
    (0.7, 0.0): {"chain": 0.701, "specinfer": 0.822, "kseq": 0.856, "rsd": 0.859},
    (0.7, 0.7): {"chain": 0.826, "specinfer": 0.919, "kseq": 0.951, "rsd": 0.938},
}
"""An independent reference's means; the chain's are over the 25 pairs of seed 7, the others' pairs are unknown."""


def test_the_chain_is_the_references_to_the_last_digit():
    for row in acceptance_table(rules={"chain": RULES["chain"]}, pairs=25, seed=7):
        assert row.mean["chain"] == pytest.approx(REFERENCE[row.scale, row.correlation]["chain"], abs=5.1e-4)


def test_the_table_is_the_references_within_the_noise_of_25_pairs():
    for row in acceptance_table(pairs=1000):
        for rule, mean in row.mean.items():
            noise = row.error[rule] * (1000 / 25) ** 0.5
            assert abs(mean - REFERENCE[row.scale, row.correlation][rule]) < 2.5 * noise, (row, rule)


def test_rsd_wins_on_peaked_distributions_and_loses_to_kseq_on_flat_close_ones():
    for scale, correlation in REFERENCE:
        p, q = random_pairs(scale, correlation, pairs=1000)
        value = {rule: exact_acceptance(p, q, 3, rule) for rule in RULES}
        assert (value["specinfer"] >= value["chain"] - 1e-12).all()
        assert (value["kseq"] >= value["specinfer"] - 1e-9).all()
        assert value["rsd"].mean() > value["specinfer"].mean()
        lead = value["rsd"] - value["kseq"]
        bound = 4 * lead.std() / 1000**0.5
        assert lead.mean() < -bound if (scale, correlation) == (0.7, 0.7) else lead.mean() > bound


def test_pairs_have_the_scale_and_correlation_asked_for():
    p, q = random_pairs(2.0, 0.7, pairs=4000)
    logits = [probs.log() - probs.log().mean(-1, keepdim=True) for probs in (p, q)]
    assert float(logits[0].std()) == pytest.approx(2 * np.sqrt(5 / 6), rel=0.03)
    assert np.corrcoef(logits[0].flatten(), logits[1].flatten())[0, 1] == pytest.approx(0.7, abs=0.02)


def test_rules_can_be_functions():
    p, q = random_pairs(1.0, 0.5, pairs=3)
    best = exact_acceptance(p, q, 2, lambda p, q, k: torch.ones(len(p), dtype=torch.float64))
    assert best.tolist() == [1, 1, 1]


def test_mistakes_are_told():
    p, q = random_pairs(1.0, 0.5, pairs=3)
    with pytest.raises(UserError, match="unknown rule 'rds'; did you mean 'rsd'"):
        exact_acceptance(p, q, 2, "rds")
    with pytest.raises(UserError, match="k=0"):
        exact_acceptance(p, q, 0, "rsd")


def test_an_enumeration_that_would_fill_the_memory_is_refused():
    p, q = random_pairs(1.0, 0.0, vocabulary=200, pairs=1)
    with pytest.raises(UserError, match=r"k=5 siblings of 200 tokens are 200\^4 ordered draws for each of 1 pairs, ab"):
        exact_acceptance(p, q, 5, "rsd")
    assert 0 < float(exact_acceptance(p, q, 2, "rsd")) < 1
    for rule in ("chain", "specinfer", "kseq"):  # which enumerate nothing
        assert 0 < float(exact_acceptance(p, q, 5, rule)) < 1


def test_more_siblings_than_tokens_are_as_many_as_there_are():
    p, q = random_pairs(1.0, 0.0, vocabulary=3, pairs=5)
    assert torch.equal(exact_acceptance(p, q, 3, "rsd"), exact_acceptance(p, q, 40, "rsd"))

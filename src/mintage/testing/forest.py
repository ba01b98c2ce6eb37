"""Laws of forests: mixtures of language models by who would have written the text."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch

from mintage.lm.btm import ExpertForest
from mintage.testing.refusals import refused
from mintage.testing.settings import without_shape_checks

__all__ = ["LAWS"]

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5]])


def a_mixture_is_bayes(forest: ExpertForest) -> None:
    """A text has the experts' mixture of probabilities: no expert beats it by more than its prior."""
    forest.prior = {name: weight + 1.0 for weight, name in enumerate(forest.experts)}
    nats = forest.nll(IDS)
    alone = torch.stack([ExpertForest({"one": model}).nll(IDS) for model in forest.experts.values()])
    prior = forest.weights.log()[:, None]
    assert torch.allclose(nats, -(prior - alone).logsumexp(0), atol=1e-9)
    assert bool((nats <= alone - prior + 1e-9).all())


def probabilities_and_posteriors_sum_to_one(forest: ExpertForest) -> None:
    """Over the vocabulary, and over the experts, at every token; later tokens change neither."""
    logprobs, weights = forest.logprobs(IDS)
    assert torch.allclose(logprobs.exp().sum(-1), torch.ones(IDS.shape).double())
    assert torch.allclose(weights.exp().sum(0), torch.ones(IDS.shape).double())
    shorter, shares = forest.logprobs(IDS[:, :7])
    assert torch.allclose(shorter, logprobs[:, :7], atol=1e-5)
    assert torch.allclose(shares, weights[:, :, :7], atol=1e-5)


def experts_that_are_alike_are_one(forest: ExpertForest) -> None:
    """The mixture of one model with itself is that model, and the posterior stays the prior."""
    model = next(iter(forest.experts.values()))
    twice = ExpertForest({"a": model, "b": model}, {"a": 0.3, "b": 0.7})
    logprobs, weights = twice.logprobs(IDS)
    assert torch.allclose(logprobs, ExpertForest({"a": model}).logprobs(IDS)[0], atol=1e-9)
    assert torch.allclose(weights.exp()[0], torch.full(IDS.shape, 0.3).double(), atol=1e-9)


def an_expert_without_a_prior_is_not_run(forest: ExpertForest) -> None:
    """It changes nothing, as if it had been removed."""
    first, *others = forest.experts
    forest.prior = {first: 0.0, **dict.fromkeys(others, 1.0)}
    with_none = forest.logprobs(IDS)[0]
    forest.experts[first].forward = None  # calling it would fail
    assert torch.equal(forest.logprobs(IDS)[0], with_none)
    del forest.experts[first].forward
    removed = ExpertForest({name: forest.experts[name] for name in others})
    assert torch.allclose(removed.logprobs(IDS)[0], with_none, atol=1e-9)
    assert forest.top_k(1).prior.keys() <= set(others)


def what_is_written_is_what_would_be_read(forest: ExpertForest) -> None:
    """Writing with caches takes the tokens that reading the whole text at every step would take; a seed repeats it."""
    ids = IDS[:1, :4]
    written = forest.generate(ids, max_new_tokens=6)
    again = ids
    for _ in range(6):
        again = torch.cat([again, forest.logprobs(again)[0][:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(written, again[:, : written.shape[1]])
    drawn = [forest.generate(ids, max_new_tokens=6, do_sample=True, seed=seed) for seed in (1, 1)]
    assert torch.equal(drawn[0], drawn[1])


def adding_and_removing_restores_the_forest(forest: ExpertForest) -> None:
    """Bit for bit, in memory and on the disk; a saved forest reads as it did."""
    before = forest.logprobs(IDS)[0]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "forest"
        forest.save(folder, {"made": "by a law"})
        files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        forest.add("another", copy.deepcopy(next(iter(forest.experts.values()))))
        forest.save(folder)
        forest.remove("another")
        forest.save(folder, {"made": "by a law"})
        assert {path: path.read_bytes() for path in files} == files
        assert torch.equal(forest.logprobs(IDS)[0], before)
        loaded = ExpertForest.load(folder)
        assert loaded.prior == forest.prior
        assert torch.equal(loaded.logprobs(IDS)[0], before)
        (folder / "forest.json").write_text("[]")
        refused(lambda: ExpertForest.load(folder), lambda: ExpertForest.load(place))


def an_average_of_one_is_that_one(forest: ExpertForest) -> None:
    """And of equal models the model."""
    for name, model in forest.experts.items():
        alone = forest.average({other: float(other == name) for other in forest.experts})
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), model.parameters(), strict=True))
    model = next(iter(forest.experts.values()))
    same = ExpertForest({"a": model, "b": copy.deepcopy(model)}).average()
    assert all(torch.allclose(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))


def what_cannot_be_mixed_is_told(forest: ExpertForest) -> None:
    """Other vocabularies, names that are taken or no names, priors of others, and the last expert."""
    from mintage.models import tiny_causal_lm

    name = next(iter(forest.experts))
    with without_shape_checks():
        refused(
            lambda: forest.add("other", tiny_causal_lm(vocab_size=50)),
            lambda: forest.add(name, forest.experts[name]),
            lambda: forest.add("../x", forest.experts[name]),
            lambda: forest.remove("nobody"),
            lambda: ExpertForest({"one": forest.experts[name]}).remove("one"),
            lambda: ExpertForest(forest.experts, {"nobody": 1.0}),
            lambda: ExpertForest({}),
            lambda: forest.top_k(0),
            lambda: forest.estimate_prior([]),
            lambda: forest.generate(IDS, max_new_tokens=1),
        )


LAWS = (
    a_mixture_is_bayes,
    probabilities_and_posteriors_sum_to_one,
    experts_that_are_alike_are_one,
    an_expert_without_a_prior_is_not_run,
    what_is_written_is_what_would_be_read,
    adding_and_removing_restores_the_forest,
    an_average_of_one_is_that_one,
    what_cannot_be_mixed_is_told,
)

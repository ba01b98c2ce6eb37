"""Lexinvariant models: names mean nothing, tables are fresh, the ideal model is exact."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mintage.errors import UserError
from mintage.lm.core.cipher import decipher, ideal_lexinvariant, markov_chain, probe_accuracy, random_chain
from mintage.lm.core.folder import load_byte_lm
from mintage.lm.core.random_embedding import RandomEmbedding
from mintage.lm.core.reading import seeded
from mintage.lm.core.sampling import Sampling
from mintage.lm.core.symbol_tasks import lookup_task, permutation_task
from mintage.lm.lexinvariant import Lexinvariant, LexinvariantConfig
from mintage.lm.training.lexinvariant import LexinvariantTraining, chain_windows
from mintage.testing.settings import without_shape_checks

VECTORS = Path(__file__).parents[1] / "vectors" / "lexinvariant"
SMALL = {"width": 16, "layers": 1, "heads": 2}
TEXT = b"The moon pulls the sea, and the sea follows."


def ids(text):
    return torch.tensor([list(text)])


def make(**settings):
    return seeded(Lexinvariant, LexinvariantConfig(**{**SMALL, **settings}))


def held(name):
    found = np.load(VECTORS / name)
    return {key: torch.from_numpy(found[key]) for key in found.files}


def test_tables_embed_and_read_out_as_recorded():
    want = held("tables.npz")
    for ids_, tables, logits in (("ids", "tables", "logits"), ("ids_permuted", "tables_permuted", "logits_permuted")):
        found = RandomEmbedding.embed(want[ids_], want[tables])
        assert torch.allclose(found, want["embeddings"], rtol=0, atol=1e-12)
        assert torch.allclose(RandomEmbedding.logits(want["hidden"], want[tables]), want[logits], rtol=0, atol=1e-12)
    mixed = RandomEmbedding(9, 6, rate=0.5).double()
    with torch.no_grad():
        mixed.learned.copy_(want["fixed_table"])
    found = mixed.mix(want["tables"], want["random_mask"])
    assert torch.allclose(found, want["mixed_tables"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["bayes_v3.npz", "bayes_v4.npz"])
def test_the_ideal_model_is_the_recorded_one(name):
    want = held(name)
    source = markov_chain(want["initial"], want["transition"])
    found = ideal_lexinvariant(source, len(want["initial"]), want["sequences"])
    assert torch.allclose(found.next, want["lexinvariant_next"], rtol=0, atol=1e-9)
    assert torch.allclose(found.posterior, want["decipher_posterior"], rtol=0, atol=1e-9)


@pytest.fixture
def chain():
    return random_chain(4, seed=1)


def test_the_ideal_model_sums_to_one_and_does_not_see_names(chain):
    texts = torch.randint(4, (5, 10), generator=torch.Generator().manual_seed(0))
    renamed = torch.tensor([2, 0, 3, 1])
    a, b = (ideal_lexinvariant(markov_chain(*chain), 4, t) for t in (texts, renamed[texts]))
    assert torch.allclose(a.next.sum(-1), torch.ones(5, 11).double(), atol=1e-12)
    assert torch.allclose(b.next[..., renamed], a.next, atol=1e-12)
    assert torch.allclose(a.posterior.sum(-1), torch.ones(5, 11, 4).double(), atol=1e-12)
    assert torch.allclose(a.posterior.sum(-2), torch.ones(5, 11, 4).double(), atol=1e-12)


def test_the_ideal_model_of_one_without_names_is_that_model():
    even = torch.full((4,), 0.25).double()
    stays = torch.full((4, 4), 0.1).double() + 0.6 * torch.eye(4).double()
    source = markov_chain(even, stays)
    texts = torch.tensor([[0, 0, 1, 2, 2, 3]])
    assert torch.allclose(ideal_lexinvariant(source, 4, texts).next, source(texts).exp(), atol=1e-12)


def test_walkers_find_what_the_sum_over_all_relabellings_says(chain):
    text = torch.tensor([0, 1, 1, 3, 2, 0, 1])
    exact = ideal_lexinvariant(markov_chain(*chain), 4, text[None])
    found = decipher(markov_chain(*chain), 4, text, walkers=100, steps=2000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(found.next[0, 0], exact.next[0, -1], atol=0.03)
    assert torch.allclose(found.posterior[0, 0], exact.posterior[0, -1], atol=0.03)


def test_walkers_decipher_an_alphabet_too_large_to_sum_over():
    first, then = random_chain(12, seed=3)
    plain = torch.from_numpy(chain_windows(1, 400, 12, 3, seed=1)[0].astype(np.int64)) - ord("a")
    cipher = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    found = decipher(
        markov_chain(first, then), 12, cipher[plain], walkers=32, steps=1000, generator=torch.Generator().manual_seed(1)
    )
    meant = found.posterior[0, 0].argmax(-1)
    assert (meant[cipher[plain]] == plain).double().mean() > 0.9


def test_renaming_symbols_and_rows_renames_what_is_said():
    model = make()
    symbols = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    table = model.embedding.sample(2, torch.Generator().manual_seed(1))
    renamed = torch.randperm(256, generator=torch.Generator().manual_seed(2))
    moved = torch.empty_like(table)
    moved[:, renamed] = table
    before = model.logits(model.states(symbols, table), table)
    after = model.logits(model.states(renamed[symbols], moved), moved)
    assert torch.allclose(after[..., renamed], before, atol=1e-5)
    assert torch.allclose(model(symbols, table=table).nats, model(renamed[symbols], table=moved).nats, atol=1e-5)


def test_a_symbol_is_one_vector_in_a_text_and_another_in_the_next():
    model = make().train()
    tables = model.table(3, torch.Generator().manual_seed(4))
    said = model.embedding.embed(torch.tensor([[7, 3, 7]] * 3), tables)
    assert torch.equal(said[:, 0], said[:, 2])
    cosine = torch.nn.functional.cosine_similarity(tables[0].flatten(), tables[1].flatten(), dim=0)
    assert abs(float(cosine)) < 0.1
    assert torch.equal(tables, model.table(3, torch.Generator().manual_seed(4)))
    assert not torch.equal(model.table(3), model.table(3))


def test_every_step_of_training_has_new_tables_and_reading_has_one():
    model = make().train()
    assert not torch.equal(model(ids(TEXT)).nats, model(ids(TEXT)).nats)
    model.eval()
    assert torch.equal(model(ids(TEXT)).nats, model(ids(TEXT)).nats)
    other = make(table_seed=1)
    other.load_state_dict(model.state_dict())
    assert not torch.equal(other(ids(TEXT)).nats, model(ids(TEXT)).nats)


def test_without_random_rows_it_is_an_ordinary_model():
    model = make(rate=0.0).train()
    assert torch.equal(model.table(2)[0], model.embedding.learned)
    assert torch.equal(model(ids(TEXT)).nats, model(ids(TEXT)).nats)
    torch.autograd.backward(model(ids(TEXT)).loss)
    assert model.embedding.learned.grad.abs().sum() > 0


def test_with_all_rows_random_no_weight_knows_the_alphabet():
    sizes = {len(alphabet): sum(p.numel() for p in make(alphabet=alphabet).parameters()) for alphabet in (b"ab", b"")}
    assert len(set(sizes.values())) == 1
    assert all(256 not in p.shape for p in make().parameters())


def test_a_share_of_the_symbols_or_of_the_texts_is_random():
    learned = make(rate=0.25)
    known = (learned.embedding.sample(200, torch.Generator().manual_seed(0)) == learned.embedding.learned).all(-1)
    assert float(known.float().mean()) == pytest.approx(0.75, abs=0.01)
    texts = make(rate=0.0, whole=0.3)
    known = (texts.embedding.sample(2000, torch.Generator().manual_seed(0)) == texts.embedding.learned).all(-1)
    assert set(known.float().mean(1).tolist()) == {0.0, 1.0}
    assert float(known.float().mean()) == pytest.approx(0.7, abs=0.04)


def test_draws_average_probabilities_and_add_up():
    model = make()
    tables = [model.embedding.sample(1, g) for g in [torch.Generator().manual_seed(8)] for _ in range(3)]
    each = torch.stack([(-model(ids(TEXT), table=t).nats.double()).exp() for t in tables]).detach()
    want = -float(each.mean(0).log2().sum())
    score = lambda text, context=b"": model.score(text, context, 3, torch.Generator().manual_seed(8))  # noqa: E731
    assert score(TEXT) == pytest.approx(want, rel=1e-6)
    assert score(TEXT[:9]) + score(TEXT[9:], TEXT[:9]) == pytest.approx(want, rel=1e-5)
    assert model.score(TEXT, n_draws=0) == model.score(TEXT)
    many = model.score(TEXT[:1], n_draws=400, generator=torch.Generator().manual_seed(0))
    assert many == pytest.approx(8, abs=0.2)  # unseen symbols are alike


def test_a_small_alphabet_is_all_that_is_read_and_written(tmp_path):
    model = make(alphabet=b"abcde")
    assert model.score(b"") == 0
    assert math.isfinite(model.score(b"abacus"[:4]))
    written = model.write(b"ab", Sampling(max_new_tokens=20, do_sample=True, seed=0))
    assert set(written) <= set(b"abcde")
    model.save(tmp_path / "model", {})
    assert load_byte_lm(tmp_path / "model").score(b"abc") == model.score(b"abc")
    filled = torch.tensor([list(b"abc\0\0")])
    assert torch.allclose(
        model(filled, torch.tensor([[1, 1, 1, 0, 0]])).nats[0, :3], model.read([b"abc"]).nats[0], atol=1e-5
    )


def test_lookups_and_permutations_have_one_right_answer():
    texts, asked = lookup_task(50, pairs=4, symbols=26, generator=torch.Generator().manual_seed(0), shown=2)
    assert (texts.shape, asked) == ((50, 18), 1)
    for row in texts.tolist():
        shown = {(row[i], row[i + 1]) for i in range(0, 16, 2)}
        assert len(shown) == 4
        assert (row[16], row[17]) in shown
        assert len({symbol for pair in shown for symbol in pair}) == 8
    texts, asked = permutation_task(50, examples=2, symbols=26, generator=torch.Generator().manual_seed(0))
    assert (texts.shape, asked) == ((50, 18), 3)
    for row in texts.tolist():
        orders = {tuple(row[i : i + 3].index(symbol) for symbol in row[i + 3 : i + 6]) for i in (0, 6, 12)}
        assert len(orders) == 1


def test_a_probe_reads_the_real_symbol_where_the_state_tells_it():
    draw = torch.Generator().manual_seed(0)
    real = torch.randint(3, (60, 4), generator=draw)
    states = torch.nn.functional.one_hot(real).float() + 0.1 * torch.randn(60, 4, 3, generator=draw)
    states[:, 0] = torch.randn(60, 3, generator=draw)  # nothing is known at the beginning
    accuracy = probe_accuracy(states[:40], real[:40], states[40:], real[40:])
    assert accuracy[0] < 0.8
    assert accuracy[1:].min() > 0.95


def test_a_chain_is_read_fresh_and_the_same_for_a_seed():
    first, then = random_chain(5, 2)
    texts = chain_windows(4000, 16, 5, 2, seed=3).astype(np.int64) - ord("a")
    assert np.array_equal(texts + ord("a"), chain_windows(4000, 16, 5, 2, seed=3))
    assert not np.array_equal(texts + ord("a"), chain_windows(4000, 16, 5, 2, seed=4))
    counts = np.zeros((5, 5))
    np.add.at(counts, (texts[:, :-1].ravel(), texts[:, 1:].ravel()), 1)
    often = counts.sum(1) > 2000
    assert np.abs(counts / counts.sum(1, keepdims=True) - then.numpy())[often].max() < 0.03
    assert np.abs(np.bincount(texts[:, 0], minlength=5) / 4000 - first.numpy()).max() < 0.03


def test_it_learns_what_repeats_and_no_names(tmp_path):
    settings = {"task": "chain", "symbols": 3, "window": 24, "rows": 32, "steps": 250, "lr": 1e-2, "optimiser": "adamw"}
    made = LexinvariantTraining(**settings, **{**SMALL, "layers": 2}).run(tmp_path / "model", tmp_path / "work")
    assert made.config.alphabet == list(b"abc")
    texts = torch.from_numpy(chain_windows(400, 24, 3, 0, seed=9).astype(np.int64))
    renamed = torch.tensor([[1, 2, 0]])[0][texts - ord("a")] + ord("a")
    costs = [made(t, generator=torch.Generator().manual_seed(s)).nats for s, t in enumerate((texts, renamed))]
    first, second = (c.detach().mean(1).double() for c in costs)
    error = float((first.var() / len(first) + second.var() / len(second)).sqrt())
    assert abs(float(first.mean() - second.mean())) < 3 * error
    by_place = costs[0].detach().mean(0)
    assert by_place[0] >= math.log(3) - 0.05
    assert by_place[8:].mean() < by_place[0] - 0.03


def test_what_does_not_fit_is_told():
    model = make(alphabet=b"abcde")
    for call in (
        lambda: LexinvariantConfig(rate=1.5),
        lambda: LexinvariantConfig(whole=-0.1),
        lambda: LexinvariantConfig(layers=0),
        lambda: LexinvariantConfig(alphabet=b"aab"),
        lambda: LexinvariantConfig(alphabet=[300, 2]),
        lambda: LexinvariantConfig(alphabet=b"a"),
        lambda: model.score(b"abcx"),
        lambda: model.write(b"xyz"),
        lambda: model.score(b"abc", n_draws=-1),
        lambda: LexinvariantTraining(rate=2.0),
        lambda: LexinvariantTraining(task="music"),
        lambda: ideal_lexinvariant(markov_chain(*random_chain(9)), 9, torch.zeros(1, 3, dtype=torch.long)),
        lambda: ideal_lexinvariant(markov_chain(*random_chain(3)), 3, torch.tensor([[0, 3]])),
        lambda: decipher(markov_chain(*random_chain(3)), 3, torch.tensor([0, 1]), walkers=0),
        lambda: lookup_task(3, pairs=9, symbols=10),
        lambda: lookup_task(3, pairs=0, symbols=10),
        lambda: permutation_task(3, examples=0, symbols=10),
    ):
        with without_shape_checks(), pytest.raises(UserError) as told:
            call()
        assert "\n" not in str(told.value)

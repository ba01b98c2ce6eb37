"""Training of hypernetworks: tokenizers are sampled, the model's own states are the measure, runs resume."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mintage.errors import UserError
from mintage.models import CausalLM, tiny_causal_lm
from mintage.progress import silent
from mintage.retrofit.core.embeddings import Parts
from mintage.retrofit.core.hypernetwork import Hypernetwork, HypernetworkShape, load_hypernetwork
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.training.tokenizer_sampler import TokenizerSampler, ZettSettings, read_in_both
from mintage.retrofit.training.zett import ZettTraining
from mintage.retrofit.training.zett_recipe import ZettRecipe
from mintage.retrofit.zett import Zett
from mintage.testing.settings import without_shape_checks
from mintage.train.training import Work

PAIRS = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("Ġ", "an"), ("Ġan", "d"), ("i", "n")]
TEXTS = {
    "nursery": ["the cat and the hat and the rain in the land", "an ant ran and hid in a den on the hill"] * 6,
    "code": ["def the(and): return and in the", "in the end and then another one is there"] * 6,
}


@pytest.fixture(scope="module")
def lm():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*(letter for letter in letters if letter != "z"), *(a + b for a, b in PAIRS)]
    inner = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, PAIRS))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    model = tiny_causal_lm(vocab_size=len(tokenizer), tie_word_embeddings=True, initializer_range=0.2)
    return CausalLM(model.requires_grad_(False), tokenizer, "tiny")


def _shape(lm):
    size = lm.model.config.vocab_size
    return HypernetworkShape(vocabulary=size, width=32, hidden=16, inner=16, layers=1, heads=2)


def _recipe(lm, texts=TEXTS, **settings):
    torch.manual_seed(0)
    plain = {"rows": 2, "tokens": 24, "size": 300, "spread": 4.0, "lexical": 0.5, "distil": 0.0}
    return ZettRecipe(Hypernetwork(_shape(lm)), lm, texts, ZettSettings(**{**plain, **settings}))


def train(lm, folder, progress=silent, **settings):
    return ZettTraining(**settings).fit(lm, TEXTS, Work(folder, progress=progress))


def test_a_sampled_vocabulary_has_all_bytes_and_frequent_pieces(lm):
    sampler = TokenizerSampler(TokenBytes(lm.tokenizer), TEXTS["nursery"], largest=300, spread=0)
    names, tokenizer = sampler.draw(np.random.default_rng(0), 280)
    assert len(names) == len(set(names)) == 280
    assert set(sampler.letters) <= set(names)
    assert {"Ġthe", "Ġand"} <= set(names)
    assert [piece.value for piece in tokenizer.model.tokenize("Ġthe")] == ["Ġthe"]
    assert "".join(piece.value for piece in tokenizer.model.tokenize("Ġqueue")) == "Ġqueue"


def test_noise_makes_another_tokenizer_each_time(lm):
    sampler = TokenizerSampler(TokenBytes(lm.tokenizer), TEXTS["nursery"], largest=300)
    draw = np.random.default_rng(1)
    assert len({tuple(sorted(sampler.draw(draw, 280)[0])) for _ in range(8)}) > 2


def test_a_batch_repeats_and_is_aligned_where_both_end_at_a_byte(lm):
    recipe = _recipe(lm)
    for index in range(4):
        batch, again = recipe.batch(index), recipe.batch(index)
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        own = lm.tokenizer.convert_ids_to_tokens
        for row, new, old in batch["aligned"].tolist():
            parts = [batch["surface"][i].tolist() for i in batch["ids"][row, :new].tolist()]
            text = "".join(own(part) for surface in parts for part in surface if part < recipe.module.shape.vocabulary)
            assert text == "".join(own(i) for i in batch["original"][row, :old].tolist())
        assert (batch["aligned"][:, 1:] == 0).all(1).sum() == 2  # both begin at the beginning
    assert (recipe.batch(0)["ids"] != recipe.batch(1)["ids"][:, :1]).any()


def test_the_first_loss_is_that_of_the_mean_of_parts(lm):
    recipe = _recipe(lm, distil=1.0)
    batch = recipe.batch(0)
    loss, told = recipe.loss(recipe.module, batch)
    assert told["lexical"] == pytest.approx(0, abs=1e-6)  # known tokens keep their rows
    assert loss.item() == pytest.approx(told["bits"] + told["states"], rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in lm.model.parameters())
    assert recipe.module.output_projection[1].weight.grad.norm() > 0


def test_states_are_the_same_where_the_tokens_are(lm):
    """A tokenizer that cuts as the model's own does has nothing to make up for."""
    recipe = _recipe(lm, distil=1.0)
    batch = recipe.batch(0)
    names = lm.tokenizer.convert_ids_to_tokens(range(recipe.module.shape.vocabulary - 1))
    same = read_in_both(
        ["the", "Ġand", "in"], Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, PAIRS)), recipe._own_model, 24
    )
    assert same.ids == same.original
    assert same.aligned == [(i, i) for i in range(len(same.ids))]
    places = torch.tensor([[0, *pair] for pair in same.aligned])
    ids = torch.tensor([same.ids])
    surface = torch.full((len(names), 7), recipe.module.pad)
    surface[:, 0] = torch.arange(len(names))
    whole = {"surface": surface, "known": torch.arange(len(names)), "ids": ids, "original": ids, "aligned": places}
    _, told = recipe.loss(recipe.module, whole | {"bytes": batch["bytes"]})
    assert told["states"] == pytest.approx(0, abs=1e-6)


def test_training_lowers_the_loss_resumes_and_saves(lm, tmp_path):
    settings = {
        "steps": 30,
        "rows": 2,
        "tokens": 24,
        "size": 300,
        "hidden": 32,
        "layers": 1,
        "lr": 5e-3,
        "distil": 0.0,
        "lexical": 0.0,
    }
    seen = []
    net = train(lm, tmp_path / "a", lambda *step: seen.append(step), **settings)
    net.save(tmp_path / "a.safetensors", {"command": "mintage train zett"})
    unseen = [_recipe(lm).batch(1000 + i) for i in range(6)]
    before, after = (
        sum(made.loss(made.module, batch)[1]["bits"] for batch in unseen)
        for made in (_recipe(lm), ZettRecipe(net, lm, TEXTS, ZettSettings(size=300, spread=4.0)))
    )
    assert after < before - 0.5
    assert seen[-1] == ("train", 30, 30)
    source = Parts(lm.model, TokenBytes(lm.tokenizer))
    held = load_hypernetwork(tmp_path / "a.safetensors", source)
    one, other = (Zett(net=n).rows(source, [b"then", b"z", b"the"]).input for n in (net, held))
    assert (one - other).abs().max() < 5e-3  # rounded to 16 bits
    again = train(lm, tmp_path / "a", **settings)  # nothing left to do
    assert torch.equal(again.bias_projection.weight, net.bias_projection.weight)


def test_training_is_what_it_was(lm, tmp_path):
    """To the numbers of the function that it was before trainings were data."""
    settings = {"steps": 12, "warmup": 3, "rows": 2, "tokens": 24, "size": 300, "hidden": 32, "layers": 1, "lr": 5e-3}
    settings |= {"distil": 0.5, "lexical": 0.2, "spread": 3.0, "seed": 2}
    for residual, total in (("mean", 1028.27411481), ("none", 1276.07004496)):
        net = train(lm, tmp_path / residual, residual=residual, **settings)
        assert sum(float(t.double().abs().sum()) for t in net.state_dict().values()) == pytest.approx(total, rel=1e-5)


def test_training_goes_on_from_a_file(lm, tmp_path):
    settings = {"steps": 1, "rows": 2, "tokens": 24, "size": 300, "lr": 1e-9}
    first = train(lm, tmp_path / "a", hidden=32, layers=1, **settings)
    start = tmp_path / "a.safetensors"
    first.save(start)
    again = train(lm, tmp_path / "b", start=start, **settings)
    assert again.shape == first.shape
    one, other = (Zett(net=n).rows(Parts(lm.model, TokenBytes(lm.tokenizer)), [b"then"]).input for n in (first, again))
    assert (one - other).abs().max() < 5e-3


def test_the_papers_network_learns_its_own_vocabulary_first(lm, tmp_path):
    settings = {"steps": 60, "warmup": 60, "residual": "none", "hidden": 32, "layers": 1, "size": 300, "lr": 3e-3}
    train(lm, tmp_path, **settings)
    rows = [json.loads(line) for line in (tmp_path / "train" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["lexical"] < 0.7 * rows[0]["lexical"]


def test_short_texts_are_joined(lm):
    recipe = _recipe(lm, {"short": ["the", "an ant"]})
    assert (recipe.batch(0)["ids"] >= 0).sum(1).min() > 8


def test_a_text_that_is_one_word_is_cut(lm):
    recipe = _recipe(lm, tokens=24)
    names = ["q", "qq", "qqq"]
    tokenizer = Tokenizer(models.Unigram([(name, -1.0) for name in names]))
    made = read_in_both(["q" * 201], tokenizer, recipe._own_model, 24)
    assert (len(made.ids), made.bytes, len(made.original)) == (24, 72, 201)
    assert made.aligned == [(i, 3 * i) for i in range(24)]


def test_mistakes_are_one_line(lm, tmp_path):
    with pytest.raises(UserError, match="no word of two bytes"):
        TokenizerSampler(TokenBytes(lm.tokenizer), ["a"], largest=300)
    with without_shape_checks(), pytest.raises(UserError, match="residual='fvt' is not one of mean, none"):
        ZettTraining(residual="fvt")
    with pytest.raises(UserError, match="warmup=70"):
        ZettTraining(warmup=70, steps=60)
    sentencepiece = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(UserError, match="byte-level"):
        TokenizerSampler(TokenBytes(sentencepiece), ["aa"], largest=300)

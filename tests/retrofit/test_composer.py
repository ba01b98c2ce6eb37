"""Embeddings from parts: by rule, and by a network that learns to."""

import json
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mintage.errors import UserError
from mintage.models import CausalLM, tiny_causal_lm
from mintage.progress import silent
from mintage.retrofit.core.composer import Composer, ComposerShape, ComposerTransfer, load_composer
from mintage.retrofit.core.embeddings import Parts, PartsTransfer, pad_parts
from mintage.retrofit.core.providers import make_provider
from mintage.retrofit.core.words import composed_rows, word_nll
from mintage.retrofit.training.blocks import first_blocks, pieces_of_texts
from mintage.retrofit.training.composer import ComposerTraining
from mintage.retrofit.training.composer_recipe import ComposerRecipe
from mintage.testing.settings import without_shape_checks
from mintage.train.training import Work

COMPOSER_SUM = 1566.02717580  # of the weights that the former function trained
PAIRS = [("a", "b"), ("c", "d"), ("ab", "cd"), ("e", "f"), ("ef", "g")]


def model_of_words():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = letters + [a + b for a, b in PAIRS]
    inner = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, PAIRS))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    model = tiny_causal_lm(vocab_size=len(tokenizer), tie_word_embeddings=True, initializer_range=0.2)
    return CausalLM(model, tokenizer, "tiny")


@pytest.fixture(scope="module")
def lm():
    return model_of_words()


@pytest.fixture(scope="module")
def source(lm):
    return Parts(lm.model, _vocabulary(lm))


def _vocabulary(lm):
    from mintage.retrofit.core.token_bytes import TokenBytes

    return TokenBytes(lm.tokenizer)


def trained_like(source, seed=0):
    """A composer whose heads are not zero."""
    torch.manual_seed(seed)
    net = Composer(ComposerShape(width=32, hidden=16, heads=2, inner=16, scale=0.2))
    for head in (net.input, net.output):
        torch.nn.init.normal_(head.weight)
    return ComposerTransfer(net.eval())


TOKENS = [b"abcdefg", b"cdab", b"x", b"abcd", b"ab" * 9, "é".encode()]


def test_rules_compute_what_they_say(lm, source):
    weight = lm.model.get_input_embeddings().weight
    ids = [source.vocabulary.parts(token) for token in TOKENS]
    assert [len(row) for row in ids] == [2, 2, 1, 1, 9, 2]
    for rule, pooled in (
        ("mean", lambda rows: rows.mean(0)),
        ("sum", lambda rows: rows.sum(0)),
        ("first", lambda rows: rows[0]),
        ("last", lambda rows: rows[-1]),
    ):
        made = PartsTransfer(rule=rule).rows(source, TOKENS)
        assert torch.allclose(made.input, torch.stack([pooled(weight[row]) for row in ids]), atol=1e-6)
        assert torch.equal(made.output, made.input)


def test_a_token_of_the_vocabulary_keeps_its_row(lm, source):
    weight = lm.model.get_input_embeddings().weight
    tokens = list(source.vocabulary.ids)
    made = PartsTransfer().rows(source, tokens).input
    assert torch.equal(made, weight[[source.vocabulary.ids[token] for token in tokens]])


def test_a_network_without_training_gives_the_mean(source):
    net = Composer(ComposerShape(width=32, hidden=16, heads=2, inner=16, scale=0.2)).eval()
    short = [token for token in TOKENS if len(source.vocabulary.parts(token)) <= 7]
    assert torch.allclose(
        ComposerTransfer(net).rows(source, short).input, PartsTransfer().rows(source, short).input, atol=1e-6
    )


def test_a_row_depends_on_its_own_parts_only(source):
    provider = trained_like(source)
    whole = provider.rows(source, TOKENS)
    for place, token in enumerate(TOKENS):
        alone = provider.rows(source, [token])
        assert torch.allclose(whole.input[place], alone.input[0], atol=1e-5)
        assert torch.allclose(whole.output[place], alone.output[0], atol=1e-5)
    turned = provider.rows(source, TOKENS[::-1])
    assert torch.allclose(whole.input, turned.input.flip(0), atol=1e-5)


def test_the_order_of_parts_matters(source):
    provider = trained_like(source)
    one, other = provider.rows(source, [b"abxcd", b"cdxab"]).input
    assert not torch.allclose(one, other, atol=1e-3)


def test_untied_models_have_two_kinds_of_rows(lm):
    model = tiny_causal_lm(vocab_size=len(lm.tokenizer), tie_word_embeddings=False)
    source = Parts(model, _vocabulary(lm))
    assert not source.tied
    made = PartsTransfer().rows(source, TOKENS)
    assert torch.allclose(made.output[0], model.lm_head.weight[source.vocabulary.parts(TOKENS[0])].mean(0), atol=1e-6)
    net = Composer(ComposerShape(width=32, tied=False, hidden=16, heads=2, inner=16)).eval()
    assert torch.allclose(ComposerTransfer(net).rows(source, TOKENS[:3]).output, made.output[:3], atol=1e-6)


def test_bytes_without_a_token_get_the_mean_of_all(lm):
    vocabulary = _vocabulary(lm)
    vocabulary.parts = lambda token: [] if token == b"?" else [3]
    source = Parts(lm.model, vocabulary)
    weight = lm.model.get_input_embeddings().weight
    for provider in (PartsTransfer(), PartsTransfer(rule="last"), trained_like(source)):
        assert torch.allclose(provider.rows(source, [b"?", b"a"]).input[0], weight.mean(0), atol=1e-6)


def test_parts_beyond_the_longest_are_left_out():
    ids, mask = pad_parts([[1, 2, 3], [4]], 2)
    assert ids.tolist() == [[1, 2], [4, 0]]
    assert mask.tolist() == [[True, True], [True, False]]


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_composer_back_and_belongs_to_its_model(lm, source, tmp_path):
    provider = trained_like(source)
    path = tmp_path / "composer.safetensors"
    provider.net.bind(source, {"model": "tiny"}).save(path)
    again = load_composer(source, path)
    assert torch.allclose(again.rows(source, TOKENS).input, provider.rows(source, TOKENS).input, atol=0.02)
    rounded = Parts(lm.model.bfloat16(), source.vocabulary)
    lm.model.float()
    load_composer(rounded, path)
    other = Parts(tiny_causal_lm(seed=5, vocab_size=len(lm.tokenizer), tie_word_embeddings=True), source.vocabulary)
    with pytest.raises(UserError, match=r"\(for tiny\) were trained for other weights"):
        load_composer(other, path)


def test_files_that_are_no_composers_are_refused(source, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="does not exist"):
        load_composer(source, tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot read"):
        load_composer(source, tmp_path / "torn.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"format": "x"})
    with pytest.raises(UserError, match="expected 'mintage composer 2'"):
        load_composer(source, tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "part.safetensors", metadata={"format": "mintage composer 2"})
    with pytest.raises(UserError, match="cannot read"):
        load_composer(source, tmp_path / "part.safetensors")


def test_unknown_names_are_told_in_a_line(source):
    with pytest.raises(UserError, match="did you mean 'mean'"):
        make_provider("men", source)
    with without_shape_checks(), pytest.raises(UserError, match="rule='median' is not one of mean, sum, first, last"):
        PartsTransfer(rule="median")


def test_where_none_is_shipped_auto_is_the_mean(source):
    assert make_provider("auto", source) == PartsTransfer()
    for name in ("composer", "zett"):
        with pytest.raises(UserError, match=r"of another shape|does not exist"):
            make_provider(name, source)


def test_anybodys_provider_is_taken_as_it_is(source):
    mine = PartsTransfer(rule="last")
    assert make_provider(mine, source) is mine


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts():
    words = ["abcd", "efg", "abefg", "cdab", "x", "abcdefg", "efgefg"]
    draw = torch.Generator().manual_seed(0)
    return [" ".join(words[i] for i in torch.randint(len(words), (14,), generator=draw).tolist()) for _ in range(60)]


def test_the_first_blocks_are_the_models_own(lm):
    cut = first_blocks(lm.model, 1)
    assert cut.layers[0] is lm.model.model.layers[0]
    assert len(lm.model.model.layers) == 2
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        states = lm.model.model(ids, output_hidden_states=True).hidden_states[1]
        assert torch.allclose(cut(ids).last_hidden_state, lm.model.model.norm(states), atol=1e-5)
    with pytest.raises(UserError, match=r"layers=3 is outside 1\.\.2"):
        first_blocks(lm.model, 3)


def test_batches_repeat_and_line_up(lm, texts):
    pieces = pieces_of_texts(lm, texts, 40)
    assert all(piece[0] == lm.opening and len(piece) <= 40 for piece in pieces)
    net = Composer(ComposerShape(width=32, hidden=16, heads=2, inner=16, scale=0.2))
    recipe = ComposerRecipe(net, lm, pieces, warmup=2, rows=3, cut=8, layers=2)
    assert "ids" not in recipe.batch(1)
    batch = recipe.batch(2)
    assert all(torch.equal(t, recipe.batch(2)[name]) for name, t in batch.items())
    tokens = recipe.merger.vocabulary.tokens
    for row in range(3):
        places, ends = batch["places"][row], batch["ends"][row]
        number = int((places >= 0).sum())
        bounds = [-1, *ends[:number].tolist()]
        for place, (start, end) in zip(places[:number].tolist(), pairwise(bounds), strict=True):
            read = batch["ids"][row, start + 1 : end + 1].tolist()
            original = int(batch["unique"][place])
            if original >= 0:
                assert b"".join(tokens[t] for t in read) == tokens[original]
    with pytest.raises(UserError, match="only 0 texts"):
        pieces_of_texts(lm, ["a"], 40)


def test_without_joining_nothing_is_lost_and_a_word_is_scored_by_its_first_part(lm, texts):
    recipe = ComposerRecipe(
        Composer(ComposerShape(width=32, hidden=16, heads=2, inner=16)),
        lm,
        pieces_of_texts(lm, texts, 40),
        warmup=0,
        layers=2,
    )
    ids = pieces_of_texts(lm, texts, 40)[0]
    none = recipe.merger.merge_ids([ids], n_merges=0)
    words = recipe.merger.merge_ids([ids], reduction=1).starts[0][1:]
    embeds = composed_rows(recipe.source, PartsTransfer(), none)[none.tokens[0]]
    plain, same = word_nll(lm, ids, words, range(len(ids))), word_nll(lm, ids, words, none.starts[0], embeds)
    assert plain.nats == pytest.approx(same.nats, rel=1e-4)
    with torch.no_grad():
        logp = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert plain.nats == pytest.approx(-sum(float(logp[w - 1, ids[w]]) for w in words), rel=1e-4)
    assert plain.words == len(words)


def train(lm, texts, folder, progress=silent, **settings):
    net = ComposerTraining(**settings).fit(lm, texts, Work(folder, progress=progress))
    return net, json.loads(net.notes["held_out"])


def test_training_is_what_it_was(texts, tmp_path):
    """To the numbers of the function that it was before trainings were data."""
    settings = {"steps": 12, "warmup": 4, "rows": 4, "tokens": 40, "layers": 2, "hidden": 32, "lr": 1e-2, "seed": 3}
    net, found = train(model_of_words(), texts, tmp_path, **settings)
    before = {"original": 5.4949934, "mean": 6.0404673, "composer": 5.6483657, "recovered": 0.7188273}
    assert found == pytest.approx(before, rel=1e-4)
    assert sum(float(t.double().abs().sum()) for t in net.state_dict().values()) == pytest.approx(
        COMPOSER_SUM, rel=1e-5
    )


def test_training_beats_the_mean_and_goes_on_after_a_kill(lm, texts, tmp_path):
    settings = {"steps": 60, "warmup": 10, "rows": 4, "tokens": 40, "layers": 2, "hidden": 32, "lr": 1e-2}
    _, found = train(lm, texts, tmp_path / "whole", **settings)
    assert found["composer"] < found["mean"]
    assert found["recovered"] > 0
    killed = RuntimeError("killed")

    def kill(stage, done, of):
        if done == 41:
            raise killed

    with pytest.raises(RuntimeError):
        train(lm, texts, tmp_path / "parts", kill, **settings)
    _, again = train(lm, texts, tmp_path / "parts", **settings)
    assert again == pytest.approx(found, rel=1e-5)
    with pytest.raises(UserError, match="warmup=70"):
        ComposerTraining(**{**settings, "warmup": 70})


def test_training_goes_on_from_a_file(lm, source, texts, tmp_path):
    settings = {"rows": 2, "tokens": 40, "warmup": 0}
    first = tmp_path / "first.safetensors"
    net, found = train(lm, texts, tmp_path / "1", steps=8, layers=2, hidden=32, lr=1e-2, **settings)
    net.save(first, {"command": "mintage train composer"})
    again, same = train(lm, texts, tmp_path / "2", steps=1, layers=1, start=first, lr=1e-9, **settings)
    assert same == pytest.approx(found, rel=1e-3)  # it was rounded to 16 bits
    again.save(tmp_path / "second.safetensors")
    held = load_composer(source, tmp_path / "second.safetensors").net
    assert held.shape == net.shape
    assert held.notes["model"] == "tiny"

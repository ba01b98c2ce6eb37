"""Word-pool: the authors' numbers on the authors' weights, and what only it promises."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mintage.errors import UserError
from mintage.lm.core.etok import from_etok
from mintage.lm.core.reading import END, seeded
from mintage.lm.core.words import Words
from mintage.lm.word_pool import WordPool, WordPoolConfig

VECTORS = Path(__file__).parents[1] / "vectors" / "word-pool"
TEXT = b"The moon pulls the sea, and the sea follows."


@pytest.mark.parametrize("name", ["full_words", "ragged_words"])
def test_logits_are_the_authors(name):
    held = {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(VECTORS / f"{name}.npz").items()}
    rows, count, most, vectors, width, heads, *_, units, _ = held["config"].tolist()
    weights = {key.removeprefix("w."): value for key, value in held.items() if key.startswith("w.")}
    model = from_etok(weights, heads=heads, vectors=vectors, most=most)
    lengths = held["lengths"]

    def flat(words):  # of words from the number `words` on
        return torch.cat([held["words"][b, n, : lengths[b, n]] for b in range(rows) for n in range(words, count)])

    all_words = Words.of(lengths.tolist(), vectors)
    with torch.no_grad():
        pooled = model.pool(flat(0), all_words).view(rows, count * vectors, width)
        said = model.context(pooled).view(rows, count, vectors, width)[:, :-1].flatten(0, 1)
        spelt = Words.of(lengths[:, 1:].tolist(), vectors)
        logits = model.spell(said, flat(1), spelt)[:, :units]
    valid = held["valid_slots"].bool()
    before = torch.nonzero(spelt.is_byte)[:, 0] - 1  # the place that predicts each byte
    assert torch.allclose(logits[before], held["logits"][valid], atol=1e-4)
    token = logits[before].log_softmax(-1).gather(1, flat(1)[:, None])[:, 0]
    by_word = torch.zeros(rows * (count - 1)).index_add(0, spelt.word[spelt.is_byte], token)
    assert torch.allclose(by_word.view(rows, -1), held["word_logprob"], atol=1e-4)


def test_weights_that_lack_something_are_told():
    held = np.load(VECTORS / "full_words.npz")
    weights = {key.removeprefix("w."): torch.from_numpy(held[key]) for key in held.files if key.startswith("w.")}
    del weights["ln_f.bias"]
    with pytest.raises(UserError, match=r"lack 'ln_f\.bias'"):
        from_etok(weights, heads=2, vectors=2, most=6)


def test_pooling_sees_its_word_alone_and_the_order_of_its_bytes():
    model = WordPool.tiny()
    flat = torch.tensor(list(b"moonsea"))
    both = model.pool(flat, Words.of([[4, 3]], 2))
    assert both.shape == (2, 2, 16)
    alone = model.pool(flat[:4], Words.of([[4]], 2))
    assert torch.allclose(both[0], alone[0], atol=1e-6)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8)
    turned = [model.pool(torch.tensor(list(word)), Words.of([[4]], 2)) for word in (b"moon", b"noom")]
    assert not torch.allclose(*turned, atol=1e-3)


def test_a_byte_changes_later_ones_of_its_word_and_later_words_only():
    model = WordPool.tiny()
    before = model.read([TEXT]).nats[0]
    place = TEXT.index(b"pulls") + 2
    after = model.read([TEXT[:place] + b"x" + TEXT[place + 1 :]]).nats[0]
    assert torch.allclose(before[:place], after[:place], atol=1e-5)
    assert not torch.allclose(before[place + 1], after[place + 1], atol=1e-6)


@pytest.mark.parametrize("vectors", [1, 3])
def test_one_vector_and_more_give_logits_of_the_same_shape(vectors):
    config = WordPoolConfig(width=16, heads=2, vectors=vectors, pool_layers=1, layers=1, spell_layers=1, most=8)
    model = seeded(WordPool, config)
    assert model.open_text(b"The mo").logits.shape == (257,)
    assert model.read([TEXT]).nats.shape == (1, len(TEXT))


def test_spelling_ends_where_the_longest_word_ends():
    model = WordPool.tiny()
    opened = model.open_text(b"a" * 12)
    assert opened.logits.softmax(-1)[END] == 1
    assert model.open_text(b"a" * 11).logits.softmax(-1)[END] < 1
    assert model.open_text(b"").logits[END] == -torch.inf


def test_more_words_than_positions_and_sizes_that_do_not_fit_are_told():
    config = WordPoolConfig(width=8, heads=2, vectors=1, pool_layers=1, layers=1, spell_layers=1, most_words=4)
    model = seeded(WordPool, config)
    assert model.score(b"a b c d") > 0
    with pytest.raises(UserError, match="more than the 4 words"):
        model.score(b"a b c d e")
    with pytest.raises(UserError, match="multiple of 4 heads"):
        WordPool(WordPoolConfig(width=10, heads=4))
    with pytest.raises(UserError, match="vectors=0"):
        WordPoolConfig(vectors=0)

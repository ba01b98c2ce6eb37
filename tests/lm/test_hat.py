"""HAT: words that see themselves alone, spelling that sums to one, causality inside and between words."""

import itertools

import pytest
import torch

from mintage.errors import UserError
from mintage.lm.core.reading import END, seeded
from mintage.lm.core.words import Words
from mintage.lm.hat import Hat, HatConfig
from mintage.lm.training.hat import HatTraining
from mintage.testing.settings import without_shape_checks

SMALL = {"byte_width": 8, "byte_layers": 1, "byte_heads": 2, "width": 8, "layers": 1, "heads": 2}
TEXT = b"The moon pulls the sea, and the sea follows."


def ids(text):
    return torch.tensor([list(text)])


def test_a_word_is_read_from_its_own_bytes_whatever_stands_beside_it():
    model = Hat.tiny()
    flat = torch.tensor(list(b"moonsea"))
    both = model.pool(flat, Words.of([[4, 3]]))
    turned = model.pool(torch.tensor(list(b"seamoon")), Words.of([[3, 4]]))
    alone = model.pool(flat[:4], Words.of([[4]]))
    assert torch.allclose(both[0], alone[0], atol=1e-6)
    assert torch.allclose(both, turned.flip(0), atol=1e-6)


def test_words_packed_behind_one_another_are_words_apart():
    model = Hat.tiny()
    together = model.read([TEXT, b"tides and tides", b""])
    for row, text in enumerate((TEXT, b"tides and tides")):
        assert torch.allclose(together.nats[row, : len(text)], model.read([text]).nats[0], atol=1e-5)


def test_a_byte_changes_later_ones_of_its_word_and_later_words_only():
    model = Hat.tiny()
    before = model(ids(TEXT)).nats[0]
    place = TEXT.index(b"pulls") + 2
    changed = bytearray(TEXT)
    changed[place] = ord("x")
    after = model(ids(bytes(changed))).nats[0]
    assert torch.allclose(before[:place], after[:place], atol=1e-5)
    assert not torch.allclose(before[place + 1], after[place + 1], atol=1e-6)
    assert not torch.allclose(before[place + 6], after[place + 6], atol=1e-6)


def test_spellings_of_a_word_sum_to_one():
    model = seeded(Hat, HatConfig(**SMALL, most=2))
    with torch.no_grad():
        model.head.weight[3:256] = 0
        model.head.weight[:3] *= 40
    opened = model.open_text(b"")
    total, first = 0.0, opened.logits.log_softmax(-1)
    assert first[END] == -torch.inf
    shares = {}
    for a in range(3):
        opened = model.open_text(bytes([a]))
        second = opened.logits.log_softmax(-1)
        shares[a] = second
        total += float((first[a] + second[END]).exp())
        for b in range(256):
            total += float((first[a] + second[b]).exp())  # two bytes are the longest: the end is certain
    others = 1 - sum(float(first[a].exp()) for a in range(3))
    assert total + others == pytest.approx(1, abs=1e-5)
    ended = model.open_text(bytes([0]))
    ended.push(1)
    assert ended.logits.softmax(-1)[END] == 1


def test_ends_of_longest_words_cost_nothing():
    model = seeded(
        Hat, HatConfig(byte_width=8, byte_layers=1, byte_heads=2, width=8, layers=1, heads=2, cut="stride", most=4)
    )
    reading = model(ids(TEXT[:12]))
    assert model.symbols(TEXT[:12]).count(END) == 2
    opened, nats = model.open_text(b""), []
    for symbol in model.symbols(TEXT[:12]):
        cost = float(-opened.logits.log_softmax(-1)[symbol])
        nats.append((symbol, cost))
        opened.push(symbol)
    assert all(cost == 0 for symbol, cost in nats if symbol == END)
    assert sum(cost for _, cost in nats) == pytest.approx(float(reading.nats.detach().sum()), rel=1e-4)


def test_writing_cuts_what_it_wrote_into_words_and_pools_each_once():
    model = Hat.tiny()
    pooled = []
    pool = model.pool
    model.pool = lambda flat, words: (pooled.append(words.lengths.tolist()), pool(flat, words))[1]
    opened = model.open_text(b"The moon pu")
    assert pooled == [[3, 5]]
    for symbol in (*b"lls", END, *b" it"):
        opened.push(symbol)
    assert pooled == [[3, 5], [6]]


@pytest.mark.parametrize("cut", ["hat", "spaces", "stride"])
def test_rules_of_cutting_make_a_difference_and_are_kept(cut, tmp_path):
    model = seeded(
        Hat, HatConfig(byte_width=8, byte_layers=1, byte_heads=2, width=8, layers=1, heads=2, cut=cut, most=8)
    )
    assert model.cuts(b"two words here") == {"hat": [0, 3, 9], "spaces": [0, 4, 10], "stride": [0, 8]}[cut]
    model.save(tmp_path / "model", {})
    assert Hat.from_pretrained(tmp_path / "model").cuts(b"two words here") == model.cuts(b"two words here")


def test_sizes_that_do_not_fit_are_told(tmp_path):
    for call in (
        lambda: HatConfig(layers=0),
        lambda: HatConfig(most=0),
        lambda: Hat(HatConfig(cut="words")),
        lambda: Hat(HatConfig(byte_width=10, byte_heads=4)),
        lambda: HatTraining(cut="words"),
    ):
        with without_shape_checks(), pytest.raises(UserError) as told:
            call()
        assert "\n" not in str(told.value)


def test_one_enormous_word_is_read_in_parts():
    model = Hat.tiny()
    assert model.score(b"a" * 3000) > 0
    assert len(model.cuts(b"a" * 3000)) == 250


def test_all_ends_are_paid():
    model = Hat.tiny()
    for text in (b"a b", b"a  b", b" a"):
        symbols = model.symbols(text)
        assert bytes(s for s in symbols if s != END) == text
        assert symbols.count(END) == len(model.cuts(text)) - 1
    assert list(itertools.chain(model.symbols(b""))) == []

"""HAT over a stream of bytes: the laws, and characters whose first bytes do not tell what they begin."""

import math

import pytest
import torch

from mintage.errors import UserError
from mintage.lm.core.folder import load_byte_lm
from mintage.lm.core.reading import seeded
from mintage.lm.hat import ConnectorHat, ConnectorHatConfig
from mintage.lm.training.hat import HatTraining
from mintage.testing import parametrize_with_laws
from mintage.testing.settings import without_shape_checks

CHINESE = "a 月亮引起潮汐, e\u0301🌙 1\u20442".encode()
SMALL = {"byte_width": 8, "byte_layers": 1, "byte_heads": 2, "width": 8, "layers": 1, "heads": 2}


@parametrize_with_laws("lm", methods=[ConnectorHat])
def test_the_laws_of_lm(method, law):
    law(method.tiny())


def test_no_byte_of_a_character_is_predicted_from_what_the_rest_of_it_tells():
    model = ConnectorHat.tiny()
    before = model.read([CHINESE]).nats[0]
    others = [CHINESE[:n] + bytes([CHINESE[n] ^ 1]) + CHINESE[n + 1 :] for n in range(len(CHINESE))]
    for place, found in enumerate(model.read(others).nats):
        assert torch.allclose(found[:place], before[:place], atol=1e-5), place
        assert not torch.allclose(found[place], before[place], atol=1e-7), place


def test_bytes_read_one_by_one_are_bytes_read_at_once():
    model = ConnectorHat.tiny()
    opened, nats = model.open_text(b""), model.read([CHINESE]).nats[0]
    for place, byte in enumerate(CHINESE):
        anew = model.open_text(CHINESE[:place])
        assert torch.allclose(opened.logits, anew.logits, atol=1e-5), place
        assert math.isclose(-float(opened.logits.log_softmax(-1)[byte]), float(nats[place]), abs_tol=1e-4)
        opened.push(byte)


def test_first_bytes_of_a_character_that_begins_a_word_are_read_again(monkeypatch):
    model = ConnectorHat.tiny()
    opened, read, decoded = model.open_text(b"a "), [], model._decoded
    monkeypatch.setattr(
        model, "_decoded", lambda states, *rest: (read.append(states.shape[1]), decoded(states, *rest))[1]
    )
    for byte in "月ü".encode():
        opened.push(byte)
    assert read == [1, 1, 1, 1, 2]  # the blank joins the first character, the second one begins a word


def test_a_word_is_pooled_once_and_heard_from_the_byte_behind_it_on(monkeypatch):
    model = ConnectorHat.tiny()
    pooled, pool = [], model.pool.forward

    def seen(states, lengths, *places):
        pooled.append([lengths.tolist(), *(p.tolist() for p in places)])
        return pool(states, lengths, *places)

    monkeypatch.setattr(model.pool, "forward", seen)
    opened = model.open_text(b"The mo")
    for byte in b"on pu":
        opened.push(byte)
    assert pooled == [[[3], [0, 1, 2], [0]], [[5], [3, 4, 5, 6, 7], [1]]]


def test_what_words_say_changes_bytes_behind_them_and_none_before():
    model = ConnectorHat.tiny()
    text = b"The moon pulls the sea."
    before = model.read([text]).nats[0].clone()
    with torch.no_grad():
        model.backbone.norm.weight.copy_(torch.linspace(-1, 1, 24))
        after = model.read([text]).nats[0]
    changed = (before - after).abs() > 1e-6
    assert not changed[:4].any()  # the byte behind the first word tells that it is over
    assert changed[4:].all()


def test_the_last_bytes_of_a_window_are_all_that_a_far_byte_sees_within_a_word():
    model = seeded(ConnectorHat, ConnectorHatConfig(**SMALL, most=200, near=4))
    text = b"abcdefghijklmnopqrstuvwxyz"
    before = model.read([text]).nats[0]
    after = model.read([b"x" + text[1:]]).nats[0]
    changed = (before - after).abs() > 1e-7
    assert changed[:7].all()  # two stacks of one block: three bytes back each
    assert not changed[8:].any()


@pytest.mark.parametrize("cut", ["hat", "spaces", "stride"])
def test_a_saved_model_keeps_its_rule_and_sizes(cut, tmp_path):
    model = seeded(ConnectorHat, ConnectorHatConfig(**SMALL, cut=cut, most=8, near=9, key_heads=1))
    model.save(tmp_path / "model", {})
    again = load_byte_lm(tmp_path / "model")
    assert again.cuts(b"two words here") == {"hat": [0, 3, 9], "spaces": [0, 4, 10], "stride": [0, 8]}[cut]
    assert again.score(CHINESE) == model.score(CHINESE)
    assert (again.config.near, again.config.key_heads) == (9, 1)


def test_operations_are_those_that_run():
    from torch.utils.flop_counter import FlopCounterMode

    model = seeded(ConnectorHat, ConnectorHatConfig(**SMALL, near=1))
    ids = torch.tensor([list(b"The moon pulls the sea, and the sea follows. " * 8)])
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(ids)
    assert model.flops(ids) == pytest.approx(counted.get_total_flops() / ids.numel(), rel=0.05)


def test_settings_that_do_not_fit_are_told():
    for wrong in ({"near": 0}, {"key_heads": 3}, {"byte_heads": 3}, {"cut": "words"}, {"width": 9}):
        with without_shape_checks(), pytest.raises(UserError) as told:
            ConnectorHat(ConnectorHatConfig(**SMALL | wrong))
        assert "\n" not in str(told.value)


def test_connectors_are_trained_by_style(tmp_path):
    (tmp_path / "text.txt").write_text("The moon pulls the sea, and the sea follows the moon. " * 60)
    common = {"texts": (str(tmp_path / "text.txt"),), "steps": 30, "window": 64, "rows": 4, "warmup": 1, "lr": 1e-2}
    training = HatTraining(**common, **SMALL | {"byte_width": 16}, style="connectors", near=16)
    model = training.run(tmp_path / "model", tmp_path / "work")
    assert model.config.held_out_bits_per_byte < 4.5
    again = load_byte_lm(tmp_path / "model")
    assert isinstance(again, ConnectorHat)
    assert again.score(CHINESE) == model.score(CHINESE)


def test_settings_of_connectors_are_not_dropped_in_silence():
    for settings in ({"near": 64}, {"key_heads": 1}, {"head_norm": True}):
        with pytest.raises(UserError, match=next(iter(settings))):
            HatTraining(**settings)

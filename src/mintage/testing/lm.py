"""Laws of the lm contract."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from mintage.lm.contract import ByteLanguageModel, Reading, as_rows
from mintage.lm.core.folder import load_byte_lm
from mintage.lm.core.sampling import Sampling
from mintage.testing import dna_encoder, forest, seq2seq, typed_code
from mintage.testing.refusals import refused
from mintage.testing.settings import without_shape_checks

__all__ = ["LAWS", "TEXTS"]

TEXTS = [
    b"The sea has tides, because the moon pulls the water.",
    "Die Haustür; вода и луна 月亮引起潮汐.".encode(),
    b"def tide(moon):\n    return moon.pull()  # twice\r\n\r\n",
    b" ",
    b"x",
    b"\xff\xfe\x00 caf\xc3 \xed\xa0\x80 \xf0\x9f\x91",
    bytes(range(256)),
    b"a" * 70,
]
"""Whole words, many scripts, code, and bytes that are no UTF-8."""

WRITES = Sampling(max_new_tokens=24, do_sample=True, seed=3)


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-3)


def later_bytes_change_nothing(model: ByteLanguageModel) -> None:
    """What a byte costs is the same whatever comes behind it."""
    text = TEXTS[0]
    whole = model.read([text]).nats[0]
    for place in (1, 5, 18, len(text) - 1):
        other = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        there = model.read([other]).nats[0]
        assert torch.allclose(there[:place], whole[:place], atol=1e-4), place
        assert not torch.allclose(there[place], whole[place], atol=1e-6), place


def rows_do_not_see_each_other(model: ByteLanguageModel) -> None:
    """A text costs in a batch, and with filling behind it, what it costs alone."""
    together = model.read([*TEXTS, b""])
    for row, text in enumerate(TEXTS):
        alone = model.read([text])
        assert torch.allclose(together.nats[row, : len(text)], alone.nats[0], atol=1e-4)
        assert torch.equal(together.right[row, : len(text)], alone.right[0])
        assert not together.nats[row, len(text) :].any()
    ids, mask = as_rows(TEXTS, model.device)
    junk = torch.where(mask.bool(), ids, 65)
    assert torch.allclose(model(junk, mask).nats, together.nats[:-1], atol=1e-4)


def scores_add_up(model: ByteLanguageModel) -> None:
    """score(a + b) is score(a) + score(b | a), wherever between two characters a text is cut."""
    for text in TEXTS[:3]:
        letters = text.decode()
        whole = model.score(text)
        for place in range(0, len(letters), 7):
            first, second = letters[:place], letters[place:]
            assert _near(whole, model.score(first) + model.score(second, first)), first


def probabilities_sum_to_one(model: ByteLanguageModel) -> None:
    """Those of the next symbol, and the symbols of a text multiply to the text's own."""
    for text in TEXTS:
        opened, nats, written = model.open_text(b""), 0.0, b""
        for symbol in model.symbols(text):
            shares = opened.logits.double().log_softmax(-1)
            assert math.isclose(float(shares.exp().sum()), 1, abs_tol=1e-6)
            nats -= float(shares[symbol])
            written += opened.push(symbol)
        assert written == text
        assert _near(nats / math.log(2), model.score(text)), text


def any_bytes_are_read(model: ByteLanguageModel) -> None:
    """The empty text costs nothing, one byte and bytes that are no UTF-8 cost something, and texts are bytes."""
    assert model.score(b"") == 0
    assert model.score("") == 0
    assert model.score("caf\u00e9") == model.score("caf\u00e9".encode())
    for text in TEXTS:
        bits = model.score(text)
        assert math.isfinite(bits)
        assert bits > 0
    assert model.read([b"", b""]).nats.shape == (2, 0)


def a_cache_changes_nothing(model: ByteLanguageModel) -> None:
    """What is written with a cache, from any beginning, is what is written without."""
    for prompt in (b"", b"The sea ha", b"The sea has ", TEXTS[1][:-3], TEXTS[5]):
        written = model.write(prompt, WRITES)
        assert len(written) == WRITES.max_new_tokens
        assert written == model.write(prompt, WRITES, use_cache=False), prompt
    greedy = Sampling(max_new_tokens=12)
    assert model.write(b"The ", greedy) == model.write(b"The ", greedy, use_cache=False)


def a_batch_is_its_rows(model: ByteLanguageModel) -> None:
    """`generate` gives prompts and what is written behind each, filled at either end; a seed repeats it."""
    ids, mask = as_rows([b"The sea", b"moon"], model.device)
    out = model.generate(ids, mask, max_new_tokens=8)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    for row, prompt in enumerate((b"The sea", b"moon")):
        assert bytes(out[row, ids.shape[1] :].tolist()) == model.write(prompt, Sampling(max_new_tokens=8))
    left = model.generate(ids.flip(1), mask.flip(1), max_new_tokens=8)
    assert bytes(left[1, -8:].tolist()) == model.write(b"noom", Sampling(max_new_tokens=8))
    drawn = [model.generate(ids, mask, max_new_tokens=8, do_sample=True, seed=s) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert model.generate(ids, mask, max_new_tokens=0).shape == ids.shape


def a_saved_model_is_the_same(model: ByteLanguageModel) -> None:
    """A saved model, loaded by path or by transformers' Auto class, gives the same numbers and keeps its notes."""
    from transformers import AutoModelForCausalLM

    bits = model.score(TEXTS[1])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model.save(folder, {"command": "made by a law"})
        assert not list(folder.glob("*.bin"))
        by_auto: Any = AutoModelForCausalLM.from_pretrained(folder)
        for loaded in (load_byte_lm(folder), by_auto.eval()):
            assert type(loaded) is type(model)
            assert loaded.score(TEXTS[1]) == bits
            assert loaded.config.notes == {"command": "made by a law"}
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        refused(lambda: load_byte_lm(folder))
        (folder / "config.json").write_text("{}")
        refused(lambda: load_byte_lm(folder), lambda: load_byte_lm(place))


def cuts_are_places_in_the_text(model: ByteLanguageModel) -> None:
    """What a model takes together begins at the text's beginning and never twice at one place."""
    assert model.cuts(b"") == []
    for text in TEXTS:
        cuts = model.cuts(text)
        assert cuts[0] == 0
        assert cuts == sorted(set(cuts))
        assert cuts[-1] < len(text)


def every_weight_learns(model: ByteLanguageModel) -> None:
    """The loss is nats per symbol or more, and moves every weight that asks for a gradient."""
    reading: Reading = model.forward(*as_rows(TEXTS[:3], model.device))
    assert reading.loss.isfinite()
    torch.autograd.backward(reading.loss)
    still = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not still, still


def operations_are_counted(model: ByteLanguageModel) -> None:
    """Per byte, and more of them in longer rows."""
    text = TEXTS[0] + b" "
    ids = torch.tensor([list(text * 8)], device=model.device)
    short, long = model.flops(ids[:, : 2 * len(text)]), model.flops(ids)
    assert 0 < short < long


def what_is_no_text_is_told(model: ByteLanguageModel) -> None:
    """Ids that are no bytes, holes in a mask, unknown settings and texts that are no bytes are one line each."""
    ids = torch.tensor([[65, 66, 67]], device=model.device)
    with without_shape_checks():
        lines = refused(
            lambda: model(ids + 300),
            lambda: model(ids, torch.tensor([[1, 0, 1]], device=model.device)),
            lambda: model.generate(ids, temprature=0.5),
            lambda: model.generate(ids, do_sample=True, temperature=0.0),
            lambda: model.read(["a text"]),  # type: ignore[list-item]
            lambda: model.score(b"a" * 70_000),
            lambda: model.score("\ud800"),
        )
    assert "temperature" in lines[2]


LAWS = (
    later_bytes_change_nothing,
    rows_do_not_see_each_other,
    scores_add_up,
    probabilities_sum_to_one,
    any_bytes_are_read,
    a_cache_changes_nothing,
    a_batch_is_its_rows,
    a_saved_model_is_the_same,
    cuts_are_places_in_the_text,
    every_weight_learns,
    operations_are_counted,
    what_is_no_text_is_told,
    *seq2seq.LAWS,
    *forest.LAWS,
    *typed_code.LAWS,
    *dna_encoder.LAWS,
)

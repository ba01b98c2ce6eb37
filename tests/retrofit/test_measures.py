"""What the studies of the job share: texts, windows, bits, differences."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mintage.bench.retrofit.measures import BITS_PER_BYTE, Bits, bits_of, documents, measured_bits, windows
from mintage.data import Document
from mintage.errors import UserError
from mintage.models import load_causal_lm


@given(st.text(st.sampled_from("ab \nä字😀"), max_size=60), st.integers(4, 20))
def test_windows_are_the_text(text, size):
    pieces = windows(text, size)
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= size for piece in pieces)
    assert len(pieces) <= 2 * len(text.encode()) // (size - 3) + 1


def test_windows_end_at_words():
    assert windows("one two three", 8) == ["one two", " three"]


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_causal_lm(tiny_folder, dtype="float32")


@pytest.fixture
def opened(lm):
    lm.tokenizer.bos_token = "!"
    yield lm
    lm.tokenizer.bos_token = None


def test_bits_are_the_sum_over_windows_however_batched(opened):
    text = "the sea is wide and the boats are few, " * 3
    first = opened.tokenizer.bos_token_id
    nats = 0.0
    for piece in windows(text, 40):
        ids = [first, *opened.tokenizer(piece)["input_ids"]]
        with torch.inference_mode():
            logp = opened.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(logp[i, t]) for i, t in enumerate(ids[1:]))
    for batch in (1, 3):
        made = bits_of(opened, text, window=40, batch=batch)
        assert made.bits == pytest.approx(nats / math.log(2), rel=1e-5)
        assert made.bytes == made.tokens == len(text)
    assert made.per_byte == made.bits / len(text)


def test_what_has_no_bits(lm, opened):
    with pytest.raises(UserError, match="empty"):
        bits_of(lm, "")
    opened.tokenizer.bos_token = None
    with pytest.raises(UserError, match="no token that starts a text"):
        bits_of(lm, "a")
    with pytest.raises(UserError, match="size=2"):
        windows("a", 2)


def test_differences_are_paired():
    noise = np.random.default_rng(0).normal(size=30)
    one = np.stack([800 + 200 * noise, np.full(30, 100.0)])
    other = np.stack([810 + 200 * noise, np.full(30, 100.0)])
    gap = BITS_PER_BYTE.of_two(one, other)
    assert gap.value == pytest.approx(-0.1)
    assert gap.high < 0
    assert BITS_PER_BYTE.of_one(one).value == pytest.approx(one[0].mean() / 100)
    with pytest.raises(UserError, match="different texts"):
        BITS_PER_BYTE.of_two(one, np.stack([other[0], np.full(30, 90.0)]))


def test_texts_of_the_library_need_no_data():
    some = documents("code", 5, size=256)
    assert [d.name for d in some] == [d.name for d in documents("code", 5, size=256)]
    assert len(some) == 5
    assert all(0 < len(d.text.encode()) <= 256 for d in some)
    assert {d.name for d in documents("code", 5, size=256, seed=1)} != {d.name for d in some}
    with pytest.raises(UserError, match="kind of text"):
        documents("cod", 1)


def test_wikipedia_reads_as_it_was_written(tmp_path, monkeypatch):
    import gzip

    with gzip.open(tmp_path / "wikitext2_test_head.txt.gz", "wt") as file:
        file.write(
            " = Title = \n <unk> ran \n In 1 @,@ 000 well @-@ known ( or not ) ships ' holds , it did n't rain . \n"
        )
    monkeypatch.setenv("MINTAGE_DATA", str(tmp_path))
    (only,) = documents("prose", 9, size=80)
    assert only.text == "In 1,000 well-known (or not) ships' holds, it didn't rain."


def test_bits_become_columns():
    run = SimpleNamespace(
        arms={"ours": "arm", "theirs": "other"},
        columns={},
        progress=lambda *step: None,
        memo=lambda key, measure: measure(),
    )
    calls = []

    def reader(arm):
        return lambda text: calls.append((arm, text)) or Bits(3.0, len(text), 1)

    texts = [Document("x", "de", "Meer"), Document("y", "de", "Boote")]
    measured_bits("own", texts, reader, ("ours",)).run(run, "own")
    assert {name: column.tolist() for name, column in run.columns["ours"].items()} == {
        "bits, own": [3.0, 3.0],
        "bytes, own": [4.0, 5.0],
        "tokens, own": [1.0, 1.0],
    }
    assert calls == [("arm", "Meer"), ("arm", "Boote")]
    assert list(run.columns) == ["ours"]

"""The joint bench of lm: noise, whole words, rows beside the byte transformer's."""

import numpy as np
import pytest

from mintage.bench.lm.joint import BYTES, LanguageModelBench
from mintage.bench.lm.measures import HeldOut, bits_after_noise, window_bits
from mintage.bench.lm.noise import NOISES, mistyped
from mintage.errors import UserError
from mintage.lm.baselines import ByteTransformer
from mintage.measure import Figure, Result

TEXT = b"The moon pulls the water of the sea, and the sea follows the moon; twice a day there are tides. " * 40


def test_typing_errors_touch_the_asked_share_of_words_and_repeat():
    words, typed = TEXT.split(b" "), mistyped(TEXT, 0.2, 3)
    assert typed == mistyped(TEXT, 0.2, 3) != mistyped(TEXT, 0.2, 4)
    changed = sum(a != b for a, b in zip(words, typed.split(b" "), strict=True))
    assert 0.12 < changed / len(words) < 0.24
    assert mistyped(TEXT, 0.0, 0) == TEXT
    assert NOISES["ALL CAPS"](b"caf\xc3\xa9 x", 0) == b"CAF\xc3\xa9 X"
    assert NOISES["l33t"](b"seat", 0) == b"5347"


def test_words_are_whole_ones_behind_the_context_and_sorted_by_frequency():
    windows = np.frombuffer(TEXT[:512], np.uint8).reshape(4, 128)
    held = HeldOut.of(windows, {b"moon;": 3, b"the": 11})
    for row, start, stop, common in held.words:
        word = windows[row].tobytes()[start:stop]
        assert start >= 64
        assert b" " not in word
        assert common == {b"moon;": "rare", b"the": "common"}.get(word, "new")
    columns = window_bits(ByteTransformer.tiny(), held)
    assert columns["bits"].shape == (4,)
    assert len(columns["word"]) == len(held.words) == sum(len(columns[f"word, {h}"]) for h in ("new", "rare", "common"))


def test_a_clean_context_costs_what_the_text_costs():
    windows = np.frombuffer(TEXT[:256], np.uint8).reshape(2, 128)
    model = ByteTransformer.tiny()
    columns = bits_after_noise(model, windows, seed=0)
    assert set(columns) == {f"bits, {name}" for name in NOISES}
    for row, window in enumerate(windows):
        text = window.tobytes()
        assert columns["bits, clean"][row] == pytest.approx(model.score(text[64:], text[:64]) / 64, rel=1e-4)


def test_the_bench_trains_measures_and_takes_trained_models_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT)
    bench = LanguageModelBench(text=("text.txt",), steps=2, window=128, measured=4, rounds=2, written=4)
    arms = ["bpe-transformer:vocabulary=260,width=16,layers=1"]
    rows = bench.run(arms)
    results = [row for row in rows if isinstance(row, Result)]
    bits = {row.method: row for row in results if row.metric == "bits per byte"}
    assert set(bits) == {BYTES, "bpe-transformer"}
    assert bits["bpe-transformer"].baseline == {BYTES: bits[BYTES].value}
    assert bits["bpe-transformer"].settings["vocabulary"] == "260"
    figures = [row for row in rows if isinstance(row, Figure)]
    shown = next(f for f in figures if f.name.startswith("text-bpe"))
    assert "".join(token["text"] for token in shown.data["tokens"]) in TEXT.decode()
    rate, cost = (next(f for f in figures if f.name == name).data for name in ("rate", "cost"))
    byte, pair = rate["series"]  # from the left to the right
    assert byte["name"] == BYTES
    assert byte["x"] == [1.0]
    assert 1 < pair["x"][0] < 8
    assert byte["low"][0] <= byte["y"][0] <= byte["high"][0]
    assert byte["y"][0] == pytest.approx(bits[BYTES].value)
    flops = {series["name"]: series["x"][0] for series in cost["series"]}
    times = f"{flops[arms[0]] / flops[BYTES]:.2f} times"
    assert bits["bpe-transformer"].note == f"{times} the operations per byte of {BYTES}"
    assert not bits[BYTES].note
    monkeypatch.setattr("mintage.lm.training.byte_training.ByteTraining.fit", None)  # nothing is trained again
    again = {row.metric: row.value for row in bench.run(arms) if isinstance(row, Result) and row.method == BYTES}
    assert again["bits per byte"] == bits[BYTES].value


def test_a_method_of_another_kind_is_told():
    with pytest.raises(UserError, match="unknown method"):
        LanguageModelBench().run(["hatt"])

"""Metrics against their definitions, written out naively."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.measure import Interval
from mintage.segment.baselines import BPE, ByteLevel, SuperwordBPE
from mintage.segment.core.metrics import (
    Parity,
    boundary_scores,
    continued_share,
    description_length,
    encode_corpus,
    encoding_speed,
    gini,
    morphology,
    parity,
    read_morphology,
    read_parallel,
    renyi_efficiency,
    word_spans,
)
from mintage.testing.segment import CORPUS, TEXTS

texts = st.lists(st.text(alphabet="the moon sea\n é潮2.,", min_size=1, max_size=40), min_size=1, max_size=6)
counts = st.lists(st.integers(0, 50), min_size=2, max_size=30).filter(any).map(lambda x: np.array(x, dtype=np.int64))


@pytest.fixture(scope="module")
def bpe():
    return BPE(vocab_size=330).train(CORPUS)


@pytest.fixture(scope="module")
def superwords():
    return SuperwordBPE(vocab_size=330).train(CORPUS)


class Opaque(type(ByteLevel().train(["x"]))):
    """Ids that mean nothing by themselves."""

    def tokens(self):
        return None


def opaque():
    return Opaque(ByteLevel().train(["x"]).tokenizer)


# -- arrays --------------------------------------------------------------------------------------------------------


@given(texts)
@settings(max_examples=60, deadline=None)
def test_encoded_is_what_the_documents_give_one_by_one(bpe, documents):
    encoded = encode_corpus(bpe, documents)
    alone = [bpe.encode(text) for text in documents]
    assert encoded.ids.tolist() == [i for ids in alone for i in ids]
    assert encoded.tokens.tolist() == [len(ids) for ids in alone]
    assert encoded.size.tolist() == [len(text.encode()) for text in documents]
    assert encoded.exact.all()
    ends = []
    for ids in alone:
        place = 0
        for i in ids:
            place += len(bpe.tokens()[i])
            ends.append(place)
    assert encoded.ends is not None
    assert encoded.ends.tolist() == ends
    tally = Counter(i for ids in alone for i in ids)
    assert encoded.counts.tolist() == [tally[i] for i in range(bpe.vocab_size)]
    assert encoded.used == len(tally)
    assert encoded.bytes_per_token.value == pytest.approx(sum(encoded.size) / sum(encoded.tokens))


def test_empty_documents_are_left_out_and_no_text_is_told(bpe):
    assert len(encode_corpus(bpe, ["", "sea", ""]).size) == 1
    with pytest.raises(UserError, match="the text is empty"):
        encode_corpus(bpe, ["", ""])


def test_ids_without_a_place_in_the_text_have_no_ends():
    encoded = encode_corpus(opaque(), ["sea"])
    assert encoded.ends is None
    assert encoded.lengths is None
    assert description_length(encoded.counts, encoded.lengths) is None
    assert morphology(opaque(), {"seas": ["sea", "s"]}) is None


# -- words ---------------------------------------------------------------------------------------------------------


def naive_words(text):
    """Runs of letters with marks, runs of digits, single other signs that are not white space."""
    import unicodedata

    def kind(char):
        if unicodedata.category(char)[0] in "LM":
            return "L"
        return "N" if unicodedata.category(char)[0] == "N" else "" if char.isspace() else "S"

    spans, place = [], 0
    for char in text:
        width = len(char.encode())
        if kind(char):
            if spans and spans[-1][1] == place and spans[-1][2] == kind(char) != "S":
                spans[-1][1] += width
            else:
                spans.append([place, place + width, kind(char)])
        place += width
    return [[begin, end] for begin, end, _ in spans]


@given(st.text(alphabet="ab é潮\u0301ก็12½.,-'\n\t👩\u200d", max_size=40))
@settings(max_examples=150, deadline=None)
def test_words_are_the_definition(text):
    assert word_spans(text).tolist() == naive_words(text)


def test_words_of_hard_texts():
    for text in TEXTS:
        data = text.encode()
        for begin, end in word_spans(text).tolist():
            assert data[begin:end].decode().strip()


@given(texts)
@settings(max_examples=60, deadline=None)
def test_the_share_of_cut_words_is_the_definition(bpe, superwords, documents):
    for segmenter in (bpe, superwords):
        encoded = encode_corpus(segmenter, documents)
        words = [word_spans(text) for text in documents]
        cut = total = 0
        for text, spans in zip(documents, words, strict=True):
            ends, place = set(), 0
            for i in segmenter.encode(text):
                place += len(segmenter.tokens()[i])
                ends.add(place)
            for begin, end in spans.tolist():
                cut += any(begin < e < end for e in ends)
                total += 1
        found = continued_share(encoded.ends, encoded.tokens, words)
        assert found == pytest.approx(cut / total if total else 0.0)


# -- spread --------------------------------------------------------------------------------------------------------


@given(counts, st.sampled_from([0.5, 1, 2, 2.5, 3]))
def test_renyi_efficiency_is_the_definition(n, alpha):
    p = [x / n.sum() for x in n.tolist() if x]
    if alpha == 1:
        entropy = -sum(x * math.log(x) for x in p)
    else:
        entropy = math.log(sum(x**alpha for x in p)) / (1 - alpha)
    found = renyi_efficiency(n, alpha)
    assert found == pytest.approx(entropy / math.log(len(n)), abs=1e-9)
    assert -1e-9 <= found <= 1 + 1e-9


def test_renyi_efficiency_at_its_ends():
    assert renyi_efficiency(np.array([5, 5, 5, 5])) == pytest.approx(1)
    assert renyi_efficiency(np.array([9, 0, 0, 0])) == pytest.approx(0)
    assert renyi_efficiency(np.array([9])) == 0


@given(counts)
def test_description_length_is_the_definition(n):
    lengths = np.arange(1, len(n) + 1)
    bits = sum(8 * (size + 1) for size, x in zip(lengths.tolist(), n.tolist(), strict=True) if x)
    bits -= sum(x * math.log2(x / n.sum()) for x in n.tolist() if x)
    assert description_length(n, lengths) == pytest.approx(bits)


# -- parity --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=12))
def test_gini_is_half_the_relative_mean_difference(values):
    mean = sum(values) / len(values)
    differences = sum(abs(a - b) for a in values for b in values) / len(values) ** 2
    assert gini(np.array(values)) == pytest.approx(differences / (2 * mean), abs=1e-9)


def test_parity_counts_tokens_over_those_of_the_reference(bpe):
    pairs = {"de": (["Das Wasser", "Haus"], ["the water", "house"]), "zh": (["月亮"], ["the water"])}
    found = parity(bpe, pairs)

    def tokens(*own):
        return sum(len(bpe.encode(text)) for text in own)

    assert found.premium == {
        "en": 1.0,
        "de": tokens("Das Wasser", "Haus") / tokens("the water", "house"),
        "zh": tokens("月亮") / tokens("the water"),
    }
    assert found.mean == pytest.approx((found.premium["de"] + found.premium["zh"]) / 2)
    assert found.worst == max(found.premium.values())
    assert found.gini == pytest.approx(gini(np.array(list(found.premium.values()))))


def test_bytes_cost_what_scripts_cost():
    found = parity(ByteLevel().train(["x"]), {"el": (["το"], ["to"])})
    assert found == Parity({"en": 1.0, "el": 2.0}, "en")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_parallel_text_is_joined_by_id(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"lang": "de", "id": 2, "text": "zwei"},
        {"lang": "en", "id": 1, "text": "one"},
        {"lang": "en", "id": 2, "text": "two"},
        {"lang": "de", "id": 3, "text": "drei"},
    )
    assert read_parallel(path) == {"de": (["zwei"], ["two"])}
    assert read_parallel(path, "de") == {"en": (["two"], ["zwei"])}
    own = write(tmp_path / "own.jsonl", {"lang": "deu", "i": 0, "text": "eins", "eng": "one"})
    assert read_parallel(own) == {"deu": (["eins"], ["one"])}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], "holds no rows"),
        ([{"lang": "en", "text": "x"}], "a row has no id or par or i"),
        ([{"text": "x", "id": 1}], "a row has no lang"),
        ([{"lang": "de", "id": 1, "text": "x"}], "no rows of the reference language 'en'; it has: de"),
        ([{"lang": "en", "id": 1, "text": "x"}], "has only en"),
        ([{"lang": "en", "id": 1, "text": "x"}, {"lang": "de", "id": 2, "text": "y"}], "de shares no id with en"),
    ],
)
def test_parallel_text_that_is_none(tmp_path, rows, line):
    with pytest.raises(UserError, match=line):
        read_parallel(write(tmp_path / "p.jsonl", *rows))


# -- morphology ----------------------------------------------------------------------------------------------------

boundary_sets = st.lists(st.tuples(st.sets(st.integers(1, 6)), st.sets(st.integers(1, 6))), min_size=1, max_size=8)


@given(boundary_sets)
def test_boundary_scores_are_the_definition(pairs):
    predicted, gold = zip(*pairs, strict=True)
    hits = sum(len(p & g) for p, g in pairs)
    said, true = sum(map(len, predicted)), sum(map(len, gold))
    found = boundary_scores(predicted, gold)
    assert found.precision == pytest.approx(hits / said if said else 0)
    assert found.recall == pytest.approx(hits / true if true else 0)
    both = found.precision + found.recall
    assert found.f1 == pytest.approx(2 * found.precision * found.recall / both if both else 0)
    assert found.exact == pytest.approx(sum(p == g for p, g in pairs) / len(pairs))
    assert isinstance(found.f1_interval, Interval)
    assert found.f1_interval.low <= found.f1_interval.value <= found.f1_interval.high
    assert found.f1_interval.value == pytest.approx(found.f1)


def test_words_are_cut_as_after_a_space():
    segmenter = ByteLevel().train(["x"])
    found = morphology(segmenter, {"añs": ["añ", "s"], "ab": ["ab"]})
    # bytes cut everywhere: 3 places inside the 4 bytes of "añs", 1 in "ab"; gold has one
    assert found is not None
    assert (found.precision, found.recall) == (1 / 4, 1.0)
    assert found.words == 2
    assert found.exact == 0


def test_gold_that_does_not_join_is_left_out(tmp_path):
    path = write(
        tmp_path / "m.jsonl",
        {"lang": "en", "word": "happiness", "segments": ["happy", "ness"]},
        {"lang": "en", "word": "walks", "segments": ["walk", "s"]},
        {"lang": "de", "word": "Haustür", "segments": ["Haus", "tür"]},
    )
    assert read_morphology(path) == {"walks": ["walk", "s"], "Haustür": ["Haus", "tür"]}
    assert read_morphology(path, ["en"]) == {"walks": ["walk", "s"]}
    with pytest.raises(UserError, match="no word whose segments join"):
        read_morphology(path, ["fr"])
    with pytest.raises(UserError, match="a row has no word or segments; it has: text"):
        read_morphology(write(tmp_path / "odd.jsonl", {"text": "x"}))


# -- speed ---------------------------------------------------------------------------------------------------------


def test_speed_is_bytes_over_seconds_on_one_thread(bpe, monkeypatch):
    import os

    class Slow(type(bpe)):
        def encode_batch(self, texts):
            import time

            seen.append(os.environ["TOKENIZERS_PARALLELISM"])
            time.sleep(0.02)
            return super().encode_batch(texts)

    seen = []
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    found = encoding_speed({"bpe": bpe, "slow": Slow(bpe.tokenizer)}, ["the moon " * 100], repeats=3)
    assert set(seen) == {"false"}
    assert "TOKENIZERS_PARALLELISM" not in os.environ
    assert 0 < found["slow"].encode.value < 900e-6 / 0.02
    assert found["slow"].encode.value < found["bpe"].encode.value
    assert found["bpe"].decode.value > 0

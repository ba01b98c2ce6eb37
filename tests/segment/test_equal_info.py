import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.segment.codecs import ArithmeticCodec, GzipCodec, ideal_bits
from mintage.segment.contract import load
from mintage.segment.core.byte_models import (
    ByteGRU,
    ByteModel,
    ByteNGram,
    GRUSettings,
    accumulate,
    bits_needed,
    quantise_probabilities,
)
from mintage.segment.core.token_files import bits_per_byte, read_tokens, write_tokens
from mintage.segment.equal_info import EqualInfo, EqualInfoSegmenter
from mintage.segment.training.byte_gru import train_byte_gru
from mintage.segment.window_coder import code_windows, decode_windows, total_frequency, window_strings
from mintage.testing.segment import CORPUS

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "equal-info").glob("*.npz"))
TEXT = "".join(CORPUS)


class Table(ByteModel):
    """Frequencies by the symbol before (order 1), or always the same (order 0)."""

    def __init__(self, frequencies, order):
        self.rows, self.order = frequencies, order
        self.alphabet, self.total = frequencies.shape[1], int(frequencies[0].sum())

    def frequencies(self, context):
        return self.rows[1 + context[-1] if self.order and context else 0]


def uniform(alphabet, window_bits=16):
    return Table(quantise_probabilities(np.full((1, alphabet), 1 / alphabet), total_frequency(window_bits)), 0)


@pytest.fixture(scope="module")
def ngram():
    return {b: ByteNGram.train(CORPUS, order=2, total=total_frequency(b)) for b in (12, 16, 24, 32, 64, 128)}


@pytest.fixture(scope="module")
def gru(tmp_path_factory):
    sizes = {"hidden_size": 24, "embedding_size": 8, "sequence_length": 32, "batch_size": 8}
    trainer = EqualInfo(model="gru", window_bits=32, token_bits=8, steps=60, lr=0.02, **sizes)
    return trainer.train(CORPUS, work=tmp_path_factory.mktemp("gru"))


# -- parity ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=VECTORS, ids=lambda path: path.stem)
def case(request):
    return dict(np.load(request.param))


def test_vectors_are_there():
    assert len(VECTORS) >= 3


def test_frequencies_equal_the_vectors(case):
    frequencies = quantise_probabilities(case["probabilities"], int(case["total_frequency"]))
    assert np.array_equal(frequencies, case["frequencies"])
    assert (frequencies.sum(1) == total_frequency(int(case["window_bits"]))).all()


def test_windows_equal_the_vectors(case):
    symbols, bits = case["symbols"], int(case["window_bits"])
    model = Table(case["frequencies"], int(case["context_order"]))
    data = bytes(symbols.astype(np.uint8))
    codes, ends = code_windows(model.bounds(data), 0, len(data), bits, model.total)
    assert np.array_equal(np.array(codes, dtype=np.uint64), case["codes"])
    assert np.array_equal(np.diff([0, *ends]), case["window_lengths"])
    decoded, lengths = decode_windows(case["codes"], model, bits)
    assert np.array_equal(decoded, symbols)
    assert np.array_equal(lengths, case["window_lengths"])
    assert ideal_bits(model, data) == pytest.approx(float(case["ideal_bits"]), abs=1e-6)
    segmenter = EqualInfoSegmenter(model, bits, 8)
    assert segmenter.encode_windows(data) == case["codes"].tolist()  # up to 16 bits by longest match
    assert segmenter.decode_bytes(segmenter.encode(data)) == data


# -- the windows -----------------------------------------------------------------------------------------------------


def test_longest_match_over_the_strings_is_the_coder(ngram):
    model = ngram[16]
    strings = window_strings(model, 16)
    assert len(set(strings)) == 1 << 16
    assert strings[-1] == b""
    known = set(strings)
    assert all(s[:-1] in known for s in strings)
    data = (TEXT + "Zebra \0 ÿ").encode() + bytes(range(256))
    assert EqualInfoSegmenter(model).encode_windows(data) == code_windows(model.bounds(data), 0, len(data), 16)[0]


@pytest.mark.parametrize("alphabet", [200, 256])
def test_uniform_windows_hold_two_symbols(alphabet):
    # Left out: symbol 0, which gets what rounding leaves over, and the last one, to which the whole interval belongs
    # once it has shrunk to two numbers; windows with them can hold a third symbol.
    symbols = bytes(np.random.default_rng(0).integers(1, alphabet - 1, size=2000).astype(np.uint8))
    segmenter = EqualInfoSegmenter(uniform(alphabet))
    lengths = np.diff([0, *(end for _, end in segmenter.window_spans(symbols))])
    assert lengths.max() <= 2
    if alphabet == 200:
        assert (lengths == 2).all()


@pytest.mark.parametrize("bits", [16, 24, 64])
def test_windows_are_independent_and_prefix_stable(ngram, bits):
    segmenter = EqualInfoSegmenter(ngram[bits], bits, 8)
    size = segmenter.tokens_per_window
    data = TEXT.encode()[:600]
    ids, spans = segmenter.encode(data), segmenter.window_spans(data)
    assert [segmenter.decode_window(ids[i * size :][:size]) for i in range(len(spans))] == [data[a:b] for a, b in spans]
    k = len(spans) // 2
    kept = data[: spans[k - 1][1]]
    assert segmenter.decode_bytes(ids[: k * size]) == kept
    altered = ids[: k * size] + [(i + 3) % 256 for i in ids[k * size :]]
    assert segmenter.decode_bytes(altered).startswith(kept)
    other = kept + b"something else altogether"
    assert segmenter.encode(other)[: k * size] == ids[: k * size]
    assert segmenter.encode(b"") == []


@pytest.mark.parametrize(("bits", "token_bits"), [(12, 12), (12, 4), (16, 8), (24, 8), (32, 16), (64, 16), (128, 8)])
def test_every_byte_string_comes_back(ngram, bits, token_bits):
    segmenter = EqualInfoSegmenter(ngram[bits], bits, token_bits)

    @settings(max_examples=25, deadline=None, database=None)
    @given(st.one_of(st.binary(max_size=60), st.text(alphabet="the moonsawr\né潮", max_size=60).map(str.encode)))
    def check(data):
        ids = segmenter.encode(data)
        assert all(0 <= i < 1 << token_bits for i in ids)
        assert len(ids) % (bits // token_bits) == 0
        assert segmenter.decode_bytes(ids) == data

    check()


@pytest.mark.parametrize("bits", [16, 24, 64])
def test_any_ids_decode(ngram, bits):
    segmenter = EqualInfoSegmenter(ngram[bits], bits, 8)
    size = segmenter.tokens_per_window
    ids = np.random.default_rng(1).integers(256, size=50 * size).tolist()
    alone = [segmenter.decode_window(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert segmenter.decode_bytes(ids) == b"".join(alone)
    assert segmenter.decode_window([255] * size) == b""  # stops before the first byte


def test_longer_windows_compress_better_and_none_beats_the_ideal(ngram):
    data = TEXT.encode()
    used = []
    for bits in (16, 32, 64, 128):
        segmenter = EqualInfoSegmenter(ngram[bits], bits, 8)
        low, high = [], []
        spans = segmenter.window_spans(data)
        bounds = segmenter.model.bounds(data)
        for a, b in spans:
            for position in range(a, b):
                below, above = bounds(a, position)
                low.append(below)
                high.append(above)
        with_resets = bits_needed(np.array(high) - np.array(low), segmenter.model.total)
        used.append(bits * len(spans))
        assert used[-1] >= with_resets
    plain = 8 * len(ArithmeticCodec(ngram[128]).encode(data))
    assert used == sorted(used, reverse=True)
    assert used[-1] > plain >= ideal_bits(ngram[128], data)


def test_batches_are_what_documents_are_alone(ngram):
    texts = ["", *CORPUS[:5], "x", "", TEXT[:999]]
    for bits in (16, 24):
        segmenter = EqualInfoSegmenter(ngram[bits], bits, 8)
        assert segmenter.encode_batch(texts) == [segmenter.encode(t) for t in texts]


def test_a_third_partys_model_needs_frequencies_alone(ngram):
    class Plain(ByteModel):
        total = ngram[24].total

        def frequencies(self, context):
            return ngram[24].frequencies(context)

    data = CORPUS[3].encode()
    theirs, ours = EqualInfoSegmenter(Plain(), 24, 8), EqualInfoSegmenter(ngram[24], 24, 8)
    assert theirs.encode(data) == ours.encode(data)
    assert theirs.decode_bytes(ours.encode(data)) == data
    assert theirs.model.checksum() == ByteModel.checksum(Plain())
    with pytest.raises(UserError, match="cannot be saved"):
        theirs.save("nowhere")


# -- byte models -----------------------------------------------------------------------------------------------------


def test_quantised_frequencies_are_usable():
    rows = np.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]])
    assert quantise_probabilities(rows, 10).tolist() == [[7, 1, 1, 1], [4, 2, 2, 2], [4, 4, 1, 1]]
    for bad in (np.array([[-0.1, 1.1]]), np.array([[np.nan, 1.0]])):
        with pytest.raises(UserError, match="distribution"):
            quantise_probabilities(bad, 100)
    with pytest.raises(UserError, match="cannot give 4"):
        quantise_probabilities(rows, 3)


def test_ngram_counts_are_witten_bells():
    model = ByteNGram.train(["abab"], order=1, total=1 << 15)
    # order 0: a and b twice each of 4, two types; order 1 after a: b twice, one type
    zero = np.full(256, 2 / 256 / 6)
    zero[[97, 98]] += 2 / 6
    after_a = zero / 3
    after_a[98] += 2 / 3
    assert np.array_equal(model.frequencies(b""), quantise_probabilities(zero, 1 << 15))
    assert np.array_equal(model.frequencies(b"xxa"), quantise_probabilities(after_a, 1 << 15))
    assert np.array_equal(model.frequencies(b"z"), model.frequencies(b""))


@pytest.mark.parametrize("order", [0, 1, 3, 6])
def test_ngram_statistics_do_not_depend_on_how_text_arrives(order, monkeypatch):
    import mintage.segment.core.byte_models as module

    whole = ByteNGram.train([TEXT], order=order)
    data = TEXT.encode()
    for length in range(1, order + 2):
        grams = {}
        for i in range(len(data) - length + 1):
            grams[data[i : i + length]] = grams.get(data[i : i + length], 0) + 1
        chosen = (whole.grams >= 1 << 8 * length) & (whole.grams < 1 << 8 * length + 1)
        found = zip(whole.grams[chosen].tolist(), whole.counts[chosen].tolist(), strict=True)
        assert {g.to_bytes(length + 1, "big")[1:]: c for g, c in found} == grams
    original = module.blocks
    monkeypatch.setattr(module, "blocks", lambda texts: original(texts, 7))
    for texts in (CORPUS, iter(CORPUS), list(TEXT)):
        again = ByteNGram.train(texts, order=order)
        assert np.array_equal(again.grams, whole.grams)
        assert np.array_equal(again.counts, whole.counts)


def test_bounded_tables_keep_the_counts_of_shorter_strings(monkeypatch):
    import mintage.segment.core.byte_models as module

    original = module.blocks
    monkeypatch.setattr(module, "blocks", lambda texts: original(texts, 64))
    whole, bounded = ByteNGram.train([TEXT], order=2), ByteNGram.train([TEXT], order=2, max_strings=20)
    long = 1 << 24
    assert (bounded.grams >= long).sum() <= 40 < (whole.grams >= long).sum()
    assert np.array_equal(bounded.grams[bounded.grams < long], whole.grams[whole.grams < long])
    assert np.array_equal(bounded.counts[bounded.grams < long], whole.counts[whole.grams < long])


def test_a_killed_count_goes_on(tmp_path, monkeypatch):
    import mintage.segment.core.byte_models as module

    original = module.blocks
    monkeypatch.setattr(module, "blocks", lambda texts: original(texts, 50))
    monkeypatch.setattr(module, "_SAVE_EVERY", 2)

    def kill(stage, done, of):
        if done > 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ByteNGram.train(CORPUS, order=3, work=tmp_path, progress=kill)
    with pytest.raises(UserError, match="another corpus or order"):
        ByteNGram.train(CORPUS, order=2, work=tmp_path)
    seen = []
    model = ByteNGram.train(CORPUS, order=3, work=tmp_path, progress=lambda stage, done, of: seen.append(done))
    assert seen[0] > 300
    assert model.checksum() == ByteNGram.train(CORPUS, order=3).checksum()
    assert list(tmp_path.iterdir()) == []


def test_memory_of_rows_can_overflow(ngram, monkeypatch):
    fresh = ByteNGram.train(CORPUS, order=2, total=total_frequency(24))
    monkeypatch.setattr(ByteNGram, "_MEMO", 16)
    fresh._forget()
    data = TEXT.encode()[:500]
    segmenter = EqualInfoSegmenter(fresh, 24, 8)
    assert segmenter.encode(data) == EqualInfoSegmenter(ngram[24], 24, 8).encode(data)
    assert segmenter.decode_bytes(segmenter.encode(data)) == data


def test_neural_frequencies_do_not_depend_on_the_batch(gru):
    model, data = gru.model, TEXT.encode()[:300]
    states = np.concatenate(list(model.states(data)))
    together = model.cumulative(states)
    assert np.array_equal(together, np.concatenate([model.cumulative(states[i : i + 1]) for i in range(len(states))]))
    assert np.array_equal(together[5:40], model.cumulative(states[5:40]))
    symbols = np.frombuffer(data, dtype=np.uint8).astype(np.int64)
    after = model.advance(states, symbols)
    assert np.array_equal(after[:-1], states[1:])
    for place in (0, 1, 17, 299):
        model.reset()
        assert np.array_equal(accumulate(model.frequencies(data[:place])[None]), together[place : place + 1])


def test_neural_products_stay_exact(gru):
    model = gru.model
    weights = np.abs(model.recurrent).max() * 2.0**15 * model.hidden_size
    assert weights < 2**53
    assert np.array_equal(model.recurrent, np.rint(model.recurrent))


def test_neural_model_codes_and_learns(gru, tmp_path):
    data = TEXT.encode()[:400]
    ids = gru.encode(data)
    assert gru.decode_bytes(ids) == data
    assert len(ids) < len(data)  # even 60 steps are better than nothing
    small = EqualInfoSegmenter(ByteGRU(gru.model.arrays(), total_frequency(12)), 12, 12)
    bounds = small.model.bounds(data)
    assert small.encode_windows(data) == code_windows(bounds, 0, len(data), 12)[0]
    gru.save(tmp_path / "mine")
    loaded = load(tmp_path / "mine")
    assert loaded.encode(data) == ids


def test_rounding_the_network_costs_next_to_nothing(gru):
    import torch

    torch.manual_seed(1)
    network = torch.nn.ModuleDict(
        {"embedding": torch.nn.Embedding(256, 8), "gru": torch.nn.GRU(8, 24), "output": torch.nn.Linear(24, 256)}
    )
    model = ByteGRU.from_float({n: t.detach().numpy() for n, t in network.state_dict().items()}, 1 << 16)
    data = torch.tensor(list(TEXT.encode()[:200]))
    with torch.no_grad():
        hidden = network["gru"](network["embedding"](data)[:, None])[0][:, 0]
        theirs = network["output"](hidden)[:-1].softmax(-1).double().numpy()
    states = np.concatenate(list(model.states(TEXT.encode()[:200])))[1:]
    ours = np.diff(model.cumulative(states)) / model.total
    best = quantise_probabilities(theirs, model.total) / model.total
    lost = (theirs * (np.log2(best) - np.log2(ours))).sum(1)
    assert np.abs(lost).max() < 1e-3  # bits per byte


def test_another_models_checksum_is_refused(gru, ngram, tmp_path):
    for name, segmenter in (("gru", gru), ("ngram", EqualInfoSegmenter(ngram[16]))):
        folder = tmp_path / name
        segmenter.save(folder)
        path = folder / "segmenter.json"
        held = json.loads(path.read_text())
        held["values"]["checksum"] = "0" * 16
        path.write_text(json.dumps(held))
        with pytest.raises(UserError, match="checksum") as told:
            load(folder)
        assert "\n" not in str(told.value)
    values, arrays = gru.state()
    arrays["recurrent"] = arrays["recurrent"].copy()
    arrays["recurrent"][3, 4] += 1
    with pytest.raises(UserError, match="cannot be decoded here"):
        EqualInfoSegmenter.from_state(values, arrays)


def test_neural_training_goes_on_and_tells_another_corpus(tmp_path):
    small = {"hidden_size": 8, "embedding_size": 4, "steps": 4, "sequence_length": 8, "batch_size": 2}
    first = train_byte_gru(CORPUS, GRUSettings(**small), work=tmp_path)
    steps = []
    told = lambda stage, done, of: steps.append(stage)  # noqa: E731
    again = train_byte_gru(CORPUS, GRUSettings(**small), work=tmp_path, progress=told)
    assert steps == []  # nothing was left to do
    assert again.checksum() == first.checksum()
    with pytest.raises(UserError, match="another folder"):
        train_byte_gru(CORPUS, GRUSettings(**{**small, "hidden_size": 9}), work=tmp_path)
    assert train_byte_gru(["a"], GRUSettings(**{**small, "steps": 1})).frequencies(b"a").sum() == 1 << 15


# -- the artefact, the baselines, the files ----------------------------------------------------------------------------


def test_tokenizer_json_where_a_window_is_a_token(ngram):
    with pytest.raises(UserError, match="an id means nothing by itself"):
        EqualInfoSegmenter(ngram[16], 16, 8).to_hf()
    with pytest.raises(UserError, match="an id means nothing by itself"):
        EqualInfoSegmenter(ngram[32], 32, 16).to_hf()
    for b in (12, 16):
        segmenter = EqualInfoSegmenter(ngram[b], b, b)
        exported = segmenter.to_hf()
        assert len(exported) == segmenter.vocab_size
        text = TEXT + "[]^-\\ |?*+(){}.$ é ÿ\n\t"
        assert exported(text, add_special_tokens=False)["input_ids"] == segmenter.encode(text)
        assert exported.decode([*segmenter.encode(text), segmenter.vocab_size - 1]) == text


def test_a_corpus_of_one_letter_makes_deep_strings():
    segmenter = EqualInfo(order=1).train(["a" * 5000])
    assert max(map(len, segmenter.tokens())) > 300
    text = "a" * 2000 + "b" + "a" * 10
    assert segmenter.decode(segmenter.encode(text)) == text
    try:
        exported = segmenter.to_hf()
    except UserError as error:
        assert "too long" in str(error)  # noqa: PT017
    else:
        assert exported(text, add_special_tokens=False)["input_ids"] == segmenter.encode(text)


@pytest.mark.parametrize("token_bits", [8, 16])
def test_plain_arithmetic_coding(ngram, gru, token_bits):
    for model in (ngram[16], gru.model):
        codec = ArithmeticCodec(model, token_bits)
        texts = [TEXT.encode()[:300], b"", bytes(range(256))]
        batch = [codec.encode(t) for t in texts]
        assert codec.decode_batch(batch, [len(t) for t in texts]) == texts
        assert codec.decode(batch[0], 300) == texts[0]
        bits = len(batch[0]) * token_bits
        assert ideal_bits(model, texts[0]) <= bits <= ideal_bits(model, texts[0]) + 66  # two words to end with
    with pytest.raises(UserError, match="vocabulary"):
        codec.decode([1 << token_bits], 1)
    with pytest.raises(UserError, match="32-bit words"):
        codec.decode([1], 1)
    with pytest.raises(UserError, match="token_bits=5"):
        ArithmeticCodec(ngram[16], 5)


def test_gzip_comes_back():
    codec = GzipCodec()
    ids = codec.encode(TEXT)
    assert codec.decode_bytes(ids) == TEXT.encode()
    with pytest.raises(UserError, match="no compressed text"):
        codec.decode_bytes(ids[:-3])


def test_files_of_tokens(ngram, tmp_path):
    from safetensors.numpy import load_file

    segmenter = EqualInfoSegmenter(ngram[16])
    path = tmp_path / "tokens.safetensors"
    for texts in (CORPUS, CORPUS[:1], ["abc"]):
        assert write_tokens(segmenter, texts, path) == (
            sum(len(segmenter.encode(t)) for t in texts),
            len("".join(texts).encode()),
        )
        ids, told = read_tokens(path)
        starts = load_file(path)["starts"].tolist()
        assert ids.dtype == np.uint16
        pieces = [ids[a:b].tolist() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        assert pieces == [segmenter.encode(t) for t in texts]
        assert told == {"tokens": len(ids), "bytes": len("".join(texts).encode()), "vocab_size": 1 << 16}
    write_tokens(segmenter, CORPUS, path, document_bytes=500)
    assert len(load_file(path)["starts"]) < len(CORPUS)
    assert segmenter.decode_bytes(read_tokens(path)[0].tolist()).decode() == TEXT
    with pytest.raises(UserError, match="empty"):
        write_tokens(segmenter, [""], path)
    assert len(read_tokens(path)[0])  # the old file is still there
    path.write_bytes(b"something")
    with pytest.raises(UserError, match="no file of tokens"):
        read_tokens(path)


def test_bits_per_byte():
    assert bits_per_byte(float(np.log(256)), 10, 10) == pytest.approx(8)
    assert bits_per_byte(float(np.log(2)), 5, 10) == pytest.approx(0.5)
    with pytest.raises(UserError, match="0 bytes"):
        bits_per_byte(1.0, 3, 0)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"window_bits": 8}, "window_bits=8"),
        ({"window_bits": 24, "token_bits": 16}, "token_bits=16"),
        ({"token_bits": 32, "window_bits": 64}, "token_bits=32"),
        ({"order": 7}, "order=7"),
    ],
)
def test_bad_settings_are_told(fields, told):
    with pytest.raises(UserError, match=told):
        EqualInfo(**fields)


def test_bad_use_is_told(ngram):
    segmenter = EqualInfoSegmenter(ngram[32], 32, 8)
    with pytest.raises(UserError, match="multiple of 4"):
        segmenter.decode_bytes([1, 2, 3])
    with pytest.raises(UserError, match="not one window"):
        segmenter.decode_window([1] * 8)
    with pytest.raises(UserError, match="train the model for these windows"):
        EqualInfoSegmenter(ngram[32], 16, 8)

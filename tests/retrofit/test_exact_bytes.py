import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mintage.errors import UserError
from mintage.models import CausalLM, tiny_causal_lm
from mintage.retrofit.byte_ensemble import ByteEnsemble
from mintage.retrofit.contract import END
from mintage.retrofit.core.byte_vocabulary import ByteVocabulary
from mintage.retrofit.core.next_token import ModelDistribution
from mintage.retrofit.exact_bytes import ByteLM
from mintage.testing import laws
from mintage.tokenizer_files import load_tokenizer

VECTORS = Path(__file__).parents[1] / "vectors" / "exact-bytes"


def markov(name):
    """The byte model of a recorded token law, and the record."""
    held = dict(np.load(VECTORS / f"{name}.npz"))
    tokens = [bytes(int(b) for b in row if b >= 0) for row in held["vocab_bytes"]]
    names = [token.decode("latin-1") for token in tokens]
    merges = [(names[a], names[b]) for a, b, _ in held["merges"]]
    tokenizer = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, merges))
    rows = zip(held["ctx_tokens"], held["ctx_next_prob"], strict=True)
    table = {tuple(int(t) for t in row if t >= 0): p for row, p in rows}

    def law(tokens):
        with np.errstate(divide="ignore"):
            return np.log(table.get(tokens, np.zeros(len(names) + 1)))

    vocabulary = ByteVocabulary(tokenizer, tokens, lambda text: text.decode("latin-1"))
    return ByteLM(distribution=law, vocabulary=vocabulary, end=(len(names),), tolerance=0.0), held


@pytest.mark.parametrize("name", ["markov_binary", "markov_ternary"])
def test_bytes_of_a_known_chain(name):
    """Against brute force over all texts: text and byte probabilities, covers, and the state kept up to date."""
    lm, held = markov(name)
    places = [*(int(b) for b in held["alphabet"]), END]
    biased = 0.0
    for number, prompt in enumerate(held["prompts"]):
        text = bytes(int(b) for b in prompt if b >= 0)
        assert math.exp(lm.logprob(text)) == pytest.approx(held["prefix_prob"][number], abs=1e-9)
        wanted = held["next_byte_prob"][number]
        assert np.allclose(np.exp(lm.next_byte_logprobs(text))[places], wanted, atol=1e-9)
        state = lm.start()
        for byte in text:
            state = state.advance(byte)
        assert np.allclose(np.exp(state.logprobs())[places], wanted, atol=1e-9)
        covers = {c.tokens: c.logprob for c in lm.cover_encodings(text)}
        rows = np.flatnonzero(held["cover_prompt"] == number)
        recorded = {tuple(int(t) for t in held["cover_tokens"][r] if t >= 0): held["cover_logprob"][r] for r in rows}
        possible = {tokens: logp for tokens, logp in recorded.items() if logp > -np.inf}
        assert {tokens for tokens, logp in covers.items() if logp > -np.inf} == set(possible)
        assert all(covers[tokens] == pytest.approx(logp, abs=1e-9) for tokens, logp in possible.items())
        biased = max(biased, np.abs(held["naive_next_byte_prob"][number] - wanted).max())
    assert biased > 0.1  # what the plain continuation gets wrong


def test_parity_with_the_authors(tmp_path):
    """Their spaces are the three bytes of U+2581; rows within a character are left out, as the record allows."""
    held = np.load(VECTORS / "official_sentencepiece.npz")
    (tmp_path / "it.model").write_bytes(held["sp_model"].tobytes())
    pytest.importorskip("sentencepiece")
    bigram = held["bigram_A"] @ held["bigram_B"]

    def law(tokens):
        row = bigram[tokens[-1]]
        return row - np.logaddexp.reduce(row)

    vocabulary = ByteVocabulary.of(load_tokenizer(str(tmp_path / "it.model")))
    lm = ByteLM(distribution=law, vocabulary=vocabulary, end=(2,), context=(1,), tolerance=0.0)
    compared = 0
    for row, wanted in zip(held["context_bytes"], held["next_prob"], strict=True):
        raw = bytes(int(b) for b in row if b >= 0)
        try:
            text = raw.decode().replace("\u2581", " ").encode()
        except UnicodeDecodeError:
            continue
        got = np.exp(lm.next_byte_logprobs(text))[:256]
        got[0xE2] += got[0x20]
        got[0x20] = 0
        assert np.abs(got / got.sum() - wanted[:256] / wanted[:256].sum()).max() < 1e-5
        compared += 1
    assert compared >= 10


def byte_level(merges=()):
    """A byte-level tokenizer with these merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    for pair in merges:
        vocabulary["".join(pair)] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def random_law(size, seed=0):
    def law(tokens):
        draw = np.random.default_rng([seed, len(tokens), *tokens[-2:]])
        row = draw.standard_normal(size)
        return row - np.logaddexp.reduce(row)

    return law


def test_over_single_bytes_it_is_the_token_law():
    vocabulary = ByteVocabulary.of(byte_level())
    lm = ByteLM(distribution=random_law(257), vocabulary=vocabulary, end=(256,), tolerance=0.0)
    for text in (b"", b"a", b"of the sea", "Käse".encode()):
        ids = vocabulary.encode(text)
        wanted = np.exp(lm.distribution(ids))
        got = np.exp(lm.next_byte_logprobs(text))
        for byte in (0x20, 0x41, 0x61, 0x7A):
            assert got[byte] / got[0x41] == pytest.approx(wanted[vocabulary.encode(bytes([byte]))[0]] / wanted[
                vocabulary.encode(b"A")[0]
            ])  # fmt: skip
        assert got[END] > 0


MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "t"), ("s", "e"), ("se", "a"), ("Ġ", "sea"), ("Ġ", "Ġ")]


def begins_an_encoding(vocabulary, tokens):
    """By trying: a text that begins with what the tokens spell is encoded so."""
    spelled = b"".join(vocabulary.tokens[t] for t in tokens)
    followers = (b"", b"a", b"h", b"t", b"0", b"(")
    return any((vocabulary.encode(spelled + more) or ())[: len(tokens)] == tokens for more in followers)


@given(st.text("the sa\n", max_size=12), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_covers_are_what_they_are_called(text, seed):
    vocabulary = ByteVocabulary.of(byte_level([*MERGES, ("\u010a", "\u010a")]))
    lm = ByteLM(distribution=random_law(266, seed), vocabulary=vocabulary, end=(265,), tolerance=0.0)
    raw = text.encode()
    covers = lm.cover_encodings(raw)
    lists = [cover.tokens for cover in covers]
    assert len(set(lists)) == len(lists)
    assert vocabulary.encode(raw) in lists
    for tokens in lists:
        spelled = b"".join(vocabulary.tokens[t] for t in tokens)
        assert spelled.startswith(raw)
        if raw:
            before = b"".join(vocabulary.tokens[t] for t in tokens[:-1])
            assert raw.startswith(before)
            assert before != raw
            assert begins_an_encoding(vocabulary, tokens)
    brute = set()  # every valid list of up to two tokens beyond
    for size in range(min(len(raw), 3)):
        for tail in product(range(265), repeat=1) if size == 0 else ():
            left = vocabulary.encode(raw[: len(raw) - 1]) or ()
            tokens = (*left, *tail)
            spelled = b"".join(vocabulary.tokens[t] for t in tokens)
            if spelled.startswith(raw) and begins_an_encoding(vocabulary, tokens):
                brute.add(tokens)
    assert brute <= set(lists)
    state = lm.start()
    for byte in raw:
        state = state.advance(byte)
    assert np.allclose(np.exp(state.logprobs()), np.exp(lm.next_byte_logprobs(raw)), atol=1e-9)


def test_a_law_of_canonical_texts_is_the_same_in_bytes():
    """Chain rule: bytes of a text and its end have the probability of its canonical encoding and the end."""
    lm = ByteLM.tiny()
    for letters in product(b"ab", repeat=4):
        text = bytes(letters)
        tokens = lm.vocabulary.encode(text)
        by_tokens = (
            sum(lm.distribution(tokens[:i])[t] for i, t in enumerate(tokens)) + lm.distribution(tokens)[lm.end[0]]
        )
        by_bytes = lm.continuation_logprob(b"", text) + lm.next_byte_logprobs(text)[END]
        assert by_bytes == pytest.approx(by_tokens, abs=1e-9)


@pytest.mark.parametrize("text", [b"s\n\nthe sea", b"s\n\n\nh", b"s\n  h", b"s   0\n\n(", b"a\n\n  the"])
def test_every_text_can_be_written(text):
    """White space that is cut by what follows it: each byte has the odds of the encodings that go on with it."""
    vocabulary = ByteVocabulary.of(byte_level([*MERGES, ("\u010a", "\u010a")]))
    lm = ByteLM(distribution=random_law(266), vocabulary=vocabulary, end=(265,), tolerance=0.0)
    tokens = vocabulary.encode(text)
    cover = {c.tokens: c.logprob for c in lm.cover_encodings(text)}
    assert cover[tokens] == pytest.approx(sum(lm.distribution(tokens[:i])[t] for i, t in enumerate(tokens)))
    state = lm.start()
    for byte in text:
        assert state.logprobs()[byte] > -np.inf
        state = state.advance(byte)
    np.testing.assert_allclose(np.exp(state.logprobs()), np.exp(lm.next_byte_logprobs(text)), atol=1e-9)


@pytest.fixture(scope="module")
def lm():
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(MERGES), eos_token="Ā")
    return CausalLM(tiny_causal_lm(vocab_size=264), tokenizer, "tiny")


def test_a_model_is_read_once_per_byte(lm):
    made = ByteLM.of(lm, tolerance=0.0)
    assert isinstance(made.distribution, ModelDistribution)
    state = made.start(b"the sea and the se")
    state.logprobs()
    before = made.distribution.forwards
    for byte in b"a of the sea":
        state = state.advance(byte)
        state.logprobs()
    assert made.distribution.forwards - before <= 2 * 12
    anew = ByteLM.of(lm, tolerance=0.0).next_byte_logprobs(b"the sea and the sea of the sea")
    assert np.allclose(np.exp(state.logprobs()), np.exp(anew), atol=1e-6)
    text = b"the sea"
    assert made.logprob(text) < 0
    assert b"".join(bytes([b]) for b in made.stream(text, 5)) == made.generate(text, 5)


def test_little_is_lost_by_tolerance(lm):
    exact, fast = (ByteLM.of(lm, tolerance=t).next_byte_logprobs(b"of the se") for t in (0.0, 1e-4))
    assert np.abs(np.exp(exact) - np.exp(fast)).max() < 3e-4


@pytest.mark.parametrize("rule", ["mean", "product"])
def test_ensembles_are_between_their_models(rule):
    one, two = ByteLM.tiny(), ByteEnsemble.tiny().models[1]
    for text in (b"", b"a", b"abb"):
        both = np.exp(ByteEnsemble([one, two], [1, 3], rule).next_byte_logprobs(text))
        a, b = (np.exp(m.next_byte_logprobs(text)) for m in (one, two))
        wanted = 0.25 * a + 0.75 * b if rule == "mean" else a**0.25 * b**0.75 / (a**0.25 * b**0.75).sum()
        assert np.allclose(both, wanted, atol=1e-9)
    alone = ByteEnsemble([one]).next_byte_logprobs(b"ab")
    assert np.allclose(np.exp(alone), np.exp(one.next_byte_logprobs(b"ab")))


@pytest.mark.parametrize("law", laws("retrofit", ByteEnsemble).values(), ids=lambda law: law.__name__)
def test_an_ensemble_obeys_the_laws(law):
    law(ByteEnsemble.tiny())


def test_texts_that_spell_special_tokens_are_texts():
    tokenizer = byte_level(MERGES)
    tokenizer.add_special_tokens(["<|end|>"])
    vocabulary = ByteVocabulary.of(tokenizer)
    assert len(vocabulary.encode(b"<|end|>")) == 7
    assert vocabulary.tokens[tokenizer.token_to_id("<|end|>")] == b""


def test_a_character_that_is_cut_is_completed():
    vocabulary = ByteVocabulary.of(byte_level([("Ã", "¤")]))
    assert vocabulary.encode("ä".encode()) == (256,)
    assert vocabulary.encode("Kä".encode()[:2]) is not None
    lm = ByteLM(distribution=random_law(258), vocabulary=vocabulary, end=(257,), tolerance=0.0)
    state = lm.start("Kä".encode()[:2])
    assert state.logprobs()[0xA4] > -np.inf
    whole = state.advance(0xA4)
    assert np.allclose(np.exp(whole.logprobs()), np.exp(lm.next_byte_logprobs("Kä".encode())))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ByteVocabulary.of(Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))),
        lambda: ByteVocabulary.of("gpt2"),
        lambda: ByteEnsemble([]),
        lambda: ByteEnsemble([ByteLM.tiny()], [0]),
        lambda: ByteEnsemble([ByteLM.tiny()], [1, 1]),
        lambda: ModelDistribution(tiny_causal_lm())(()),
        lambda: ByteLM.of(CausalLM(tiny_causal_lm(vocab_size=100), _fast(byte_level()), "small")),
    ],
)
def test_what_cannot_be_is_told(wrong):
    with pytest.raises(UserError) as told:
        wrong()
    assert "\n" not in str(told.value)


def test_bytes_that_are_no_text_are_read_as_fixed_tokens():
    """0xFF begins no character, so no text holds it; a prompt that does is gone on from nevertheless."""
    vocabulary = ByteVocabulary.of(byte_level())
    lm = ByteLM(distribution=random_law(257), vocabulary=vocabulary, end=(256,), tolerance=0.0)
    state = lm.start("Kä".encode()[:2])
    assert np.exp(state.logprobs()).sum() == pytest.approx(1)
    assert lm.logprob("Kä".encode()[:2]) < 0
    assert lm.logprob(b"\xff") == -np.inf
    state = lm.start(b"a\xffth")
    fixed = replace(lm, context=(vocabulary.tokens.index(b"a"), vocabulary.tokens.index(b"\xff")))
    np.testing.assert_allclose(state.logprobs(), fixed.start(b"th").logprobs())
    whole = state.advance(ord("e"))
    np.testing.assert_allclose(whole.logprobs(), lm.start(b"a\xffthe").logprobs())


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (b"", []),
        (b"the \xff sea", [4]),
        ("K\u00e4".encode()[:2], []),  # a character that may still be completed
        ("K\u00e4".encode()[2:] + b"th", [0]),
        (b"\xe9t\xe9", [0]),
        ("a\u20acq".encode(), [4]),
    ],
)
def test_bytes_that_no_encoding_has(text, places):
    tokens = [b"" if token == b"q" else token for token in ByteVocabulary.of(byte_level()).tokens]
    vocabulary = ByteVocabulary(byte_level(), tokens)
    assert vocabulary.missing == [ord("q")]
    assert vocabulary.unwritable(text) == places


def test_a_byte_without_a_token_is_read_as_the_replacement_character():
    tokenizer = byte_level([("\u00ef", "\u00bf"), ("\u00ef\u00bf", "\u00bd")])  # the letters of U+FFFD's three bytes
    tokens = ByteVocabulary.of(tokenizer).tokens
    mark = tokens.index("\ufffd".encode())
    vocabulary = ByteVocabulary(tokenizer, [b"" if token == b"\xff" else token for token in tokens])
    assert vocabulary.forced(b"s\xffe") == ((tokens.index(b"s"), mark), b"e")
    assert vocabulary.forced(b"se") == ((), b"se")


def test_an_empty_prompt_is_the_beginning_of_a_text(lm):
    made = ByteLM.of(lm, tolerance=0.0)
    assert np.exp(made.next_byte_logprobs(b"")).sum() == pytest.approx(1)
    assert made.logprob(b"") == 0.0
    assert [c.tokens for c in made.cover_encodings(b"")] == [()]


def test_a_long_text_is_encoded_in_parts(lm):
    """Covers are the same whether the settled part of a text is encoded with the rest or before it."""
    made = ByteLM.of(lm, tolerance=0.0)
    text = b"the sea and the se, " * 8 + b"of the se"
    before, settled = made._settled(text)
    assert settled == sum(len(made.vocabulary.tokens[t]) for t in before) > 0
    for left, tokens in made._lefts(text):
        assert tokens == made.vocabulary.encode(text[: len(text) - left])


def _fast(tokenizer):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

"""Every answer is that of the tokenizer itself, on real tokenizers' kinds of merges and cuts."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mintage.retrofit.core.byte_vocabulary import ByteVocabulary
from mintage.retrofit.core.validity import ASK, Neighbours, Validity

TEXT = (
    "def area(radius):\n    return radius * radius * 3.14159\n\n        # it isn't the ship's 1,234th, we'll  see \n"
    "The sea and the ships; thé café, naïve — «Ça va?» Привет, мир! I'D GO x2 and 2x, they don't sail.  \n\n"
    "One.\n\nTwo.\n\nThree.\n\nFour.\n\n\n"
)
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(kind, size=600):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "digits": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        "qwen": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(__import__("tokenizers").Regex(QWEN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        "none": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    }[kind]
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([TEXT * 3], trainer)
    return made


def sentencepiece():
    """Merges as converted from SentencePiece: every way to make a piece, ordered by the piece; byte fallback."""
    words = [
        "▁the",
        "▁sea",
        "the",
        "se",
        "ea",
        "he",
        "th",
        "▁t",
        "▁s",
        "▁th",
        "▁se",
        "ship",
        "▁ship",
        "sh",
        "ip",
        "hip",
    ]
    words += ["--", "---", "----", "-----", "▁▁", "▁▁▁", "▁▁▁▁", "ships", "ps", "ips", "hips", "▁ships"]
    letters = sorted({c for c in "".join(words) + TEXT.replace(" ", "▁") if c.isascii() or c == "▁"})
    pieces = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), *words, *letters]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [(w[:cut], w[cut:]) for w in words for cut in range(1, len(w)) if w[:cut] in vocab and w[cut:] in vocab]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


MAKERS = {
    "gpt2": lambda: byte_level("gpt2"),
    "digits": lambda: byte_level("digits"),
    "qwen": lambda: byte_level("qwen"),
    "none": lambda: byte_level("none"),
    "sentencepiece": sentencepiece,
}


def asked(vocabulary, left, ids):
    """What the tokenizer says."""
    slow = ByteVocabulary(vocabulary.tokenizer, vocabulary.tokens, prefix=vocabulary.prefix)
    slow.__dict__["_validity"] = None
    return slow.may_follow(left, ids)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_answer_is_the_tokenizers(kind):
    vocabulary = ByteVocabulary.of(MAKERS[kind]())
    told = vocabulary._validity
    assert isinstance(told, Validity)
    ids = np.flatnonzero(vocabulary.length)
    draw, unknown, valid = random.Random(1), 0, 0
    for _ in range(16):
        end = draw.randrange(len(TEXT))
        left = vocabulary.encodings(TEXT[max(0, end - 40) : end].encode())[-1]
        known = vocabulary._after(vocabulary.last_words(left))[ids]
        true = asked(vocabulary, left, ids)
        sure = known != ASK
        assert np.array_equal(known[sure] == 1, true[sure]), TEXT[max(0, end - 40) : end]
        unknown += (~sure).sum()
        valid += true.sum()
        assert np.array_equal(vocabulary.may_follow(left, ids), true)
    assert valid > 500
    if kind != "sentencepiece":  # most of whose tokens here are bytes, which the tokenizer is asked about
        assert unknown < 0.3 * 16 * len(ids)


@pytest.mark.parametrize("kind", MAKERS)
def test_white_space_that_is_cut_by_what_follows(kind):
    """GPT-2's pattern leaves the last line break to what follows; Qwen's keeps line breaks together."""
    vocabulary = ByteVocabulary.of(MAKERS[kind]())
    text = b"The ship.\n\n"
    found = vocabulary.encodings(text)
    assert found[0] == vocabulary.encode(text)
    assert len(found) == (2 if kind in ("gpt2", "digits") else 1)
    ids = np.flatnonzero(vocabulary.length)
    for tokens in found:
        assert b"".join(vocabulary.tokens[t] for t in tokens) == text
        follows = vocabulary.may_follow(tokens, ids)
        assert np.array_equal(follows, asked(vocabulary, tokens, ids))
        true = [vocabulary.encode(text + vocabulary.tokens[t]) == (*tokens, t) for t in ids]
        assert follows[np.array(true)].all()
        assert vocabulary.complete(tokens) == (tokens == found[0])
    if len(found) == 2:  # each letter goes on from one of them
        letters = [t for t in ids if vocabulary.tokens[t].isalpha() and vocabulary.encode(vocabulary.tokens[t]) == (t,)]
        assert vocabulary.may_follow(found[1], np.array(letters)).all()
        assert not vocabulary.may_follow(found[0], np.array(letters)).any()


def test_within_a_character_only_its_other_bytes_follow():
    vocabulary = ByteVocabulary.of(byte_level("gpt2", 256))
    left = vocabulary.encode("é".encode()[:1])
    ids = np.flatnonzero(vocabulary.length)
    assert np.array_equal(vocabulary.may_follow(left, ids), asked(vocabulary, left, ids))


def test_added_texts_are_left_to_the_tokenizer():
    made = byte_level("gpt2")
    made.add_tokens(["<table>"])
    vocabulary = ByteVocabulary.of(made)
    ids = np.flatnonzero(vocabulary.length)
    for text in (b"a <tab", b"a <", b"see <table>"):
        left = vocabulary.encode(text)
        assert np.array_equal(vocabulary.may_follow(left, ids), asked(vocabulary, left, ids)), text


def test_neighbours_of_equal_letters():
    """Merges go from left to right where their ranks are equal."""
    vocab = {"a": 0, "aa": 1, "aaaa": 2, "b": 3, "ab": 4}
    rule = Neighbours(vocab, [("a", "a"), ("aa", "aa"), ("a", "b")])
    made = Tokenizer(models.BPE(vocab, [("a", "a"), ("aa", "aa"), ("a", "b")]))
    names = {i: name for name, i in vocab.items()}
    for one in vocab.values():
        for other in vocab.values():
            wanted = made.encode(names[one] + names[other]).ids == [one, other]
            assert rule.after(one)[other] == wanted, (names[one], names[other])


@pytest.mark.parametrize("other", ["wordlevel", "normalized", "prefixed", "dropout"])
def test_what_it_cannot_tell_is_left_to_the_tokenizer(other):
    made = byte_level("gpt2", 256)
    if other == "wordlevel":
        made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    elif other == "normalized":
        made.normalizer = normalizers.NFC()
    elif other == "prefixed":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        made.model.dropout = 0.5
    assert Validity.of(made, [b"a"], lambda raw: [raw.decode()]) is None

"""Merging against the authors' code and against a loop that counts again."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mintage.errors import UserError
from mintage.retrofit.core.dynamic_tokenizer import DynamicTokenizer
from mintage.retrofit.core.merging import Merging, dynamic_merge, pair_rule
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.tokenizer_files.letters import BYTE_CHARS

VECTORS = Path(__file__).parent.parent / "vectors" / "dynamic-tokens"
LETTERS = {letter: byte for byte, letter in enumerate(BYTE_CHARS)}


def to_bytes(token):
    return bytes(LETTERS[c] for c in token)


def recounting(lists, merges, valid):
    """Count every pair again before each merge, as the paper says it."""
    lists, done = [list(tokens) for tokens in lists], []
    while merges is None or len(done) < merges:
        counts = Counter()
        for tokens in lists:
            counts.update(pair for pair in pairwise(tokens) if valid(*pair))
        if not counts:
            break
        pair = max(counts, key=counts.get)
        for place, tokens in enumerate(lists):
            new, i = [], 0
            while i < len(tokens):
                hit = tuple(tokens[i : i + 2]) == pair
                new.append(tokens[i] + tokens[i + 1] if hit else tokens[i])
                i += 1 + hit
            lists[place] = new
        done.append(pair)
    return lists, done


# -- merging -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pretokens", "word", "sentence"])
def test_the_authors_code_merges_alike(name):
    held = json.loads((VECTORS / f"merge_{name}.json").read_text())
    rule = pair_rule(held["boundary"], pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str)
    base = [[to_bytes(token) for token in tokens] for tokens in held["base"]]
    for merges, wanted in held["results"].items():
        tokens, pairs = dynamic_merge(base, int(merges), rule)
        assert tokens == [[to_bytes(token) for token in row] for row in wanted["tokens"]]
        assert pairs == [(to_bytes(a), to_bytes(b)) for a, b in wanted["merges"]]


batches = st.lists(st.lists(st.sampled_from([b"a", b"b", b"ab", b" a", b" ", b"\n", b"\xc3"]), max_size=14), max_size=5)


@settings(deadline=None, max_examples=200)
@given(batches, st.one_of(st.none(), st.integers(0, 12)), st.sampled_from(["word", "sentence"]))
def test_keeping_count_equals_counting_again(lists, merges, boundary):
    rule = pair_rule(boundary)
    assert dynamic_merge(lists, merges, rule) == recounting(lists, merges, rule)


@settings(deadline=None, max_examples=60)
@given(batches)
def test_no_byte_is_lost_and_every_merge_tells_what_it_saves(lists):
    numbers = {token: place for place, token in enumerate({t for tokens in lists for t in tokens})}
    names = list(numbers)
    known = {}

    def join(a, b):
        if (a, b) not in known:
            names.append(names[a] + names[b])
            known[a, b] = len(names) - 1
        return known[a, b]

    merging = Merging([[numbers[t] for t in tokens] for tokens in lists], join)
    while (pair := merging.best()) is not None:
        saved = merging.merge(pair)
        assert saved == merging.lengths[-2] - merging.lengths[-1] > 0
    for merges in range(len(merging.merges) + 1):
        sequences, starts = merging.at(merges)
        assert sum(map(len, sequences)) == merging.lengths[merges]
        for tokens, sequence, first in zip(lists, sequences, starts, strict=True):
            assert b"".join(names[s] for s in sequence) == b"".join(tokens)
            for symbol, place in zip(sequence, first, strict=True):
                assert names[symbol].startswith(tokens[place])
    assert merging.at(0)[0] == [[numbers[t] for t in tokens] for tokens in lists]


def test_in_a_run_three_of_a_kind_are_two_pairs_and_one_merge():
    everything = pair_rule("sentence")
    assert dynamic_merge([[b"a", b"a", b"a"], [b"b", b"c"]], 1, everything)[1] == [(b"a", b"a")]
    assert dynamic_merge([[b"a", b"a", b"a"]], 1, everything)[0] == [[b"aa", b"a"]]


def test_of_equals_the_first_seen_goes_first():
    everything = pair_rule("sentence")
    assert dynamic_merge([[b"x", b"y"], [b"a", b"b"]], 1, everything)[1] == [(b"x", b"y")]
    assert dynamic_merge([[b"a", b"b"], [b"x", b"y"]], 1, everything)[1] == [(b"a", b"b")]


def test_weights_count_a_sequence_several_times():
    merging = Merging([[0, 1], [2, 3], [2, 3]], lambda a, b: 10 * a + b + 100, weights=[3, 1, 1])
    assert merging.best() == (0, 1)


@pytest.mark.parametrize(
    ("boundary", "left", "right", "valid"),
    [
        ("sentence", b"a", b" b", False),
        ("sentence", b" ", b" ", True),
        ("sentence", b"\n", b"\n", False),
        ("sentence", b"a", b"\t", False),
        ("sentence", b"a", b",", True),
        ("word", b"a", b",", True),
        ("word", b" ", b" ", False),
        ("word", b"x\xc3", b"\xa9", True),
        ("word", b"x", b"\xc3", True),
        ("word", b"a", b"\xc2\xa0b", False),
        ("word_hyphen", b"re", b"-", True),
        ("word_hyphen", b"re", b",", False),
        ("word_hyphen", b",", b",", True),
        ("word_hyphen", b"-", b"re", True),
        ("pretokens", b"re", b"-", False),
        ("pretokens", b" re", b"do", True),
        ("pretokens", b"1", b"2", True),
    ],
)
def test_what_may_be_joined(boundary, left, right, valid):
    pretokens = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    assert pair_rule(boundary, pretokens, {b"-", b","})(left, right) == valid


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: pair_rule("words"), "boundary='words' is not one of pretokens, word"),
        (lambda: pair_rule("pretokens"), "needs the tokenizer's pre-tokenizer"),
        (lambda: pair_rule("word_hyphen"), "needs the tokens of punctuation; pass punctuation, or boundary='word'"),
        (lambda: dynamic_merge([[b"a"]], -1, pair_rule("word")), "n_merges=-1 is negative"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(call, told):
    with pytest.raises(UserError, match=told) as caught:
        call()
    assert "\n" not in str(caught.value)


# -- tokenizers --------------------------------------------------------------------------------------------------------


def byte_level(merges=()):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = letters + [a + b for a, b in merges]
    inner = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, list(merges)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<end>"])
    return inner


def wordpiece():
    names = ["[UNK]", "[CLS]", "[SEP]", "token", "##iz", "##ation", "##s", "re", "-", "a", "##b"]
    inner = Tokenizer(models.WordPiece({name: place for place, name in enumerate(names)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return inner


def sentencepiece(fallback=True):
    names = ["<unk>", "\u2581", "\u2581a", "a", "b", "c", "\u2581ab", "bc"]
    names += [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    inner = Tokenizer(
        models.BPE(
            {name: place for place, name in enumerate(names)},
            [("\u2581", "a"), ("\u2581a", "b"), ("b", "c")],
            unk_token="<unk>",
            byte_fallback=fallback,
            fuse_unk=True,
        )
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    inner.add_special_tokens(["<unk>"])
    return inner


TOKENIZERS = {"byte-level": byte_level, "wordpiece": wordpiece, "sentencepiece": sentencepiece}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_parts_of_a_token_of_the_vocabulary_are_itself_and_parts_join_to_the_whole(make):
    vocabulary = TokenBytes(make())
    for token, place in vocabulary.ids.items():
        assert vocabulary.tokens[place] == token
        assert vocabulary.parts(token) == [place]


def test_parts_of_new_tokens():
    assert [TokenBytes(wordpiece()).tokens[p] for p in TokenBytes(wordpiece()).parts(b" tokenizations")] == [
        b" token",
        b"iz",
        b"ation",
        b"s",
    ]
    assert [TokenBytes(wordpiece()).tokens[p] for p in TokenBytes(wordpiece()).parts(b"izs")] == [b"iz", b"s"]
    pieces = TokenBytes(sentencepiece())
    assert [pieces.tokens[p] for p in pieces.parts(b" abca")] == [b" ab", b"c", b"a"]
    assert [pieces.tokens[p] for p in pieces.parts(b"\xe4\xbd")] == [b"\xe4", b"\xbd"]
    level = TokenBytes(byte_level([("a", "b")]))
    assert [level.tokens[p] for p in level.parts("abé".encode()[:-1])] == [b"ab", b"\xc3"]


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize("reduction", [0, 0.5, 1.0])
def test_a_batch_keeps_its_bytes_and_its_special_tokens(make, reduction):
    merger = DynamicTokenizer(make())
    texts = ["tokenizations abc abca", "a abca", "abc"]
    base = merger.encode_batch(texts, n_merges=0)
    batch = merger.encode_batch(texts, reduction=reduction)
    assert batch.base_length == base.length
    for text in range(3):
        assert b"".join(batch.surfaces(text)) == b"".join(base.surfaces(text))
        special = [t.id for t in (base.unique[p] for p in base.tokens[text]) if not t.surface]
        assert [t.id for t in (batch.unique[p] for p in batch.tokens[text]) if not t.surface] == special
    if reduction == 0:
        assert batch.tokens == base.tokens
        assert not batch.merges
    else:
        assert batch.length < base.length


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_joining_all_there_is_gives_words(make):
    merger = DynamicTokenizer(make())
    surfaces = merger.encode_batch(["abca abc a"], reduction=1, special_tokens=False).surfaces(0)
    assert [s.strip() for s in surfaces] == [b"abca", b"abc", b"a"] or make is wordpiece


def test_the_reduction_is_a_share_of_what_is_possible():
    merger = DynamicTokenizer(byte_level())
    ids = merger.ids(["a longer text with some words, and some words again"])
    curve = merger.curve(ids)
    assert curve == sorted(curve, reverse=True)
    for share in (0.25, 0.5, 0.75):
        got = merger.merge_ids(ids, reduction=share)
        assert curve[0] - got.length >= share * (curve[0] - curve[-1]) - 1e-9
        assert curve[0] - curve[len(got.merges) - 1] < share * (curve[0] - curve[-1])
    assert merger.merge_ids(ids, reduction=1).length == curve[-1]
    assert merger.merge_ids(ids, n_merges=10**6).length == curve[-1]


def test_merges_for_is_the_mean_over_batches():
    merger = DynamicTokenizer(byte_level())
    texts = ["some words again", "other words", "and again some"]
    merges = merger.merges_for(texts, 0.5, batch_size=2)
    curves = [merger.curve(merger.ids(texts[:2])), merger.curve(merger.ids(texts[2:]))]
    at = lambda n: sum(curve[min(n, len(curve) - 1)] for curve in curves)  # noqa: E731
    assert at(0) - at(merges) >= 0.5 * (at(0) - at(10**6)) > at(0) - at(merges - 1)
    with pytest.raises(UserError, match="0 texts"):
        merger.merges_for([], 0.5)


def test_frozen_merges_cut_a_text_alike_in_any_company():
    merger = DynamicTokenizer(byte_level())
    merges = merger.encode_batch(["some words and some other words"], reduction=0.6).merges
    alone = merger.encode_batch(["some words"], merges=merges)
    among = merger.encode_batch(["zzz zzz", "some words", "other"], merges=merges)
    assert alone.surfaces(0) == among.surfaces(1)
    assert merger.encode_batch(["some words and some other words"], merges=merges).surfaces(0) == merger.encode_batch(
        ["some words and some other words"], reduction=0.6
    ).surfaces(0)


def test_equal_texts_are_cut_alike_and_order_changes_ties_only():
    merger = DynamicTokenizer(byte_level())
    texts = ["some words", "words again, words", "some words"]
    batch = merger.encode_batch(texts, n_merges=4)
    assert batch.surfaces(0) == batch.surfaces(2)
    whole = merger.encode_batch(texts, reduction=1)
    turned = merger.encode_batch(texts[::-1], reduction=1)
    assert [whole.surfaces(i) for i in range(3)] == [turned.surfaces(2 - i) for i in range(3)]


def test_no_token_crosses_the_boundary():
    merger = DynamicTokenizer(byte_level())
    batch = merger.encode_batch(["re-tokenization, naïve 你好\n\n  two"], reduction=1)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    assert all(len(cut(surface.decode())) == 1 for surface in batch.surfaces(0))


def test_starts_point_at_the_first_part():
    merger = DynamicTokenizer(byte_level())
    ids = merger.ids(["some words"])
    batch = merger.merge_ids(ids, reduction=1)
    assert batch.starts == [[0, 4]]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: m.encode_batch([], reduction=0.5), "at least one text"),
        (lambda m: m.encode_batch("text", reduction=0.5), "at least one text"),
        (lambda m: m.encode_batch(["a"]), "pass one of"),
        (lambda m: m.encode_batch(["a"], reduction=0.5, n_merges=2), "pass one of"),
        (lambda m: m.encode_batch(["a"], reduction=-1), "outside"),
        (lambda m: m.encode_batch(["a"], n_merges=-1), "negative"),
        (lambda m: m.merges_for(["a"], 2.0), "outside"),
    ],
)
def test_bad_batches_are_told_in_a_line(call, told):
    with pytest.raises(UserError, match=told):
        call(DynamicTokenizer(byte_level()))


def test_tokenizers_that_cannot_be_read_are_refused():
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(UserError, match="cannot be read as bytes"):
        DynamicTokenizer(words)
    with pytest.raises(UserError, match="fast tokenizer"):
        DynamicTokenizer(object())


def test_a_token_that_is_learnt_and_added_is_what_it_was_learnt_as():
    vocabulary = {"a": 0, "\u2581": 1, "\u2581\u2581": 2}
    backend = Tokenizer(models.BPE(vocabulary, [("\u2581", "\u2581")], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens(["\u2581\u2581", "<\u2581>"])
    assert TokenBytes(backend).tokens == [b"a", b" ", b"  ", "<\u2581>".encode()]

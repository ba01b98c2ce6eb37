"""The baselines: what each is known for, beside the laws that all of them pass."""

import gzip
import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from mintage.data import Corpus
from mintage.errors import UserError
from mintage.segment.baselines import (
    BPE,
    ByLanguage,
    ByteLevel,
    Morfessor,
    ParityBPE,
    SuperwordBPE,
    Unigram,
    WordPiece,
    _chunks,
    _own_random,
)
from mintage.segment.core.hf import HFSegmenter, byte_level, from_byte_chars, to_byte_chars
from mintage.tokenizer_files.letters import BYTE_CHARS

ENGLISH = ["the moon pulls the water of the sea and the sea follows the moon\n"] * 30
SIZED = [BPE, SuperwordBPE, WordPiece, ParityBPE, Unigram, Morfessor]


def merges(segmenter):
    return [tuple(pair) for pair in json.loads(segmenter.tokenizer.to_str())["model"]["merges"]]


# -- bytes as characters -------------------------------------------------------------------------------------------


def test_byte_characters_are_those_of_the_library():
    assert sorted(BYTE_CHARS) == sorted(pre_tokenizers.ByteLevel.alphabet())
    text = "aé潮\x00 \n"
    (token, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert to_byte_chars(text) == token
    assert from_byte_chars(token) == text.encode()


def test_bytes_that_are_no_text_keep_the_tokens_of_the_text_around_them():
    segmenter = BPE(vocab_size=300).train(ENGLISH)
    the, odd = segmenter.encode("the moon"), segmenter.encode(b"\xff\xfe")
    assert [segmenter.tokens()[i] for i in odd] == [b"\xff", b"\xfe"]
    assert segmenter.encode(b"the moon\xff\xfethe moon") == [*the, *odd, *the]


def test_a_batch_may_mix_text_and_bytes():
    segmenter = BPE(vocab_size=300).train(ENGLISH)
    assert segmenter.encode_batch(["the sea", b"\xffsea"]) == [
        segmenter.encode("the sea"),
        segmenter.encode(b"\xffsea"),
    ]


@pytest.mark.parametrize(
    ("vocabulary", "line"),
    [
        ({"a": 0}, "the vocabulary lacks byte 0x00"),
        (
            {char: n for n, char in enumerate(BYTE_CHARS)} | {"潮": 256},
            "the vocabulary holds '潮', which is no ByteLevel",
        ),
        ({char: n + 1 for n, char in enumerate(BYTE_CHARS)}, "ids have gaps"),
    ],
)
def test_a_vocabulary_that_would_lose_text_is_refused(vocabulary, line):
    from tokenizers import models

    with pytest.raises(UserError, match=line):
        HFSegmenter(byte_level(models.BPE(vocab=vocabulary, merges=[])))


# -- what each is known for ----------------------------------------------------------------------------------------


def naive_bpe(words, count):
    """Merge the most frequent pair, the smaller ids first among equals, as the library breaks ties."""
    ids = {char: n for n, char in enumerate(sorted(BYTE_CHARS))}
    words = {tuple(word): n for word, n in words.items()}
    found = []
    for _ in range(count):
        pairs = {}
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + n
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]))
        found.append(best)
        ids.setdefault("".join(best), len(ids))
        merged = {}
        for word, n in words.items():
            out, place = [], 0
            while place < len(word):
                if word[place : place + 2] == best:
                    out.append("".join(best))
                    place += 2
                else:
                    out.append(word[place])
                    place += 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        words = merged
    return found


def test_bpe_merges_the_most_frequent_pair():
    texts = ["low lower lowest newer wider", "low low new"]
    words = {}
    for text in texts:
        for word, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text):
            words[word] = words.get(word, 0) + 1
    assert merges(BPE(vocab_size=256 + 12).train(texts)) == naive_bpe(words, 12)


def test_superwords_span_words_and_words_do_not():
    superwords = SuperwordBPE(vocab_size=300).train(ENGLISH)
    words = BPE(vocab_size=300).train(ENGLISH)
    assert any(b" " in token.strip() for token in superwords.tokens())
    assert not any(b" " in token.strip() for token in words.tokens())
    assert len(superwords.encode(ENGLISH[0])) < len(words.encode(ENGLISH[0]))


@given(st.text(alphabet="ab \n", max_size=60), st.integers(2, 12))
@settings(max_examples=80, deadline=None)
def test_chunks_are_the_text_again(text, size):
    chunks = list(_chunks(text, size))
    assert "".join(chunks) == text
    assert all(len(chunk) <= size for chunk in chunks)


def test_superword_training_does_not_explode_on_a_document_without_breaks():
    import time

    text = "".join(random.Random(0).choices("acgt", k=300_000))
    start = time.perf_counter()
    SuperwordBPE(vocab_size=400).train([text])
    assert time.perf_counter() - start < 20  # unsplit, this takes minutes


def test_wordpiece_takes_the_longest_match_and_cuts_very_long_words():
    segmenter = WordPiece(vocab_size=300).train(ENGLISH)
    known = set(segmenter.tokens())
    for word in (b" water", b" moonwater", b" unseen"):
        place, greedy = 0, []
        while place < len(word):
            size = max(n for n in range(1, len(word) - place + 1) if word[place : place + n] in known)
            greedy.append(word[place : place + size])
            place += size
        assert [segmenter.tokens()[i] for i in segmenter.encode(word)] == greedy
    assert segmenter.decode(segmenter.encode("m" * 5000)) == "m" * 5000


def test_bytes_are_bytes():
    segmenter = ByteLevel().train(ENGLISH)
    assert segmenter.vocab_size == 256
    assert segmenter.encode("aé") == list("aé".encode())


def test_unigram_takes_the_most_likely_cut():
    segmenter = Unigram(vocab_size=330).train(ENGLISH)
    model = json.loads(segmenter.tokenizer.to_str())["model"]
    score = {from_byte_chars(piece): value for piece, value in model["vocab"]}

    def best(word):
        costs = [0.0] + [float("-inf")] * len(word)
        for end in range(1, len(word) + 1):
            costs[end] = max(costs[begin] + score[word[begin:end]] for begin in range(end) if word[begin:end] in score)
        return costs[-1]

    for word in (b" moon", b" watersea", b" folly", b" xyzzy"):
        ids = segmenter.encode(word)
        assert sum(score[segmenter.tokens()[i]] for i in ids) == pytest.approx(best(word))


@pytest.mark.parametrize("trainer", [BPE, WordPiece, SuperwordBPE, Unigram], ids=lambda c: c.__name__)
def test_words_of_the_corpus_take_few_tokens(trainer):
    segmenter = trainer(vocab_size=340).train(WORDS)
    assert len(segmenter.encode(WORDS[0])) < len(WORDS[0]) / 2


# -- languages -----------------------------------------------------------------------------------------------------

PARALLEL = {
    "en": ["the moon pulls the sea", "the water follows the moon", "the tide comes twice a day"] * 20,
    "el": ["το φεγγάρι τραβά τη θάλασσα", "το νερό ακολουθεί το φεγγάρι", "η παλίρροια έρχεται δύο φορές τη μέρα"] * 20,
}


def premium(segmenter):
    tokens = {lang: sum(map(len, segmenter.encode_batch(texts[:3]))) for lang, texts in PARALLEL.items()}
    return tokens["el"] / tokens["en"]


def test_parity_brings_a_rare_language_closer_than_bpe():
    corpus = ByLanguage({"en": PARALLEL["en"] * 10, "el": PARALLEL["el"]}, dev=PARALLEL)
    plain, fair = BPE(vocab_size=290).train(corpus), ParityBPE(vocab_size=290).train(corpus)
    assert abs(premium(fair) - 1) < abs(premium(plain) - 1)
    assert premium(plain) > 1.5


def test_unlabelled_text_is_balanced_by_script():
    texts = PARALLEL["en"] * 10 + PARALLEL["el"]
    assert premium(ParityBPE(vocab_size=290).train(texts)) < premium(BPE(vocab_size=290).train(texts))


def test_by_language_is_a_corpus():
    corpus = ByLanguage(PARALLEL)
    assert list(corpus) == PARALLEL["en"] + PARALLEL["el"]
    assert BPE(vocab_size=280).train(corpus).vocab_size == 280
    with pytest.raises(UserError, match="el is in only one of texts and dev"):
        ByLanguage(PARALLEL, dev={"en": ["one"]})
    with pytest.raises(UserError, match="no language given"):
        ByLanguage({})


def test_an_empty_language_does_not_matter():
    assert ParityBPE(vocab_size=270).train(ByLanguage({"en": ENGLISH, "xx": [""]})).vocab_size == 270


# -- Morfessor -----------------------------------------------------------------------------------------------------

STEMS = ["walk", "talk", "jump", "look", "play", "work", "turn", "call", "ask", "help"]
WORDS = [" ".join(stem + ending for ending in ("", "s", "ed", "ing", "er", "ers")) + "\n" for stem in STEMS]


def test_morfessor_cuts_as_the_library_does():
    import morfessor

    trainer = Morfessor(vocab_size=4000, max_epochs=3)
    segmenter = trainer.train(WORDS)
    model = morfessor.BaselineModel(corpusweight=1.0)
    words = {word for line in WORDS for word in line.split()}
    model.load_data([(1, word) for word in sorted(words)])
    cost = model.get_cost()
    for epoch in range(3):
        with _own_random(f"0 {epoch}"):
            _, now = model.train_batch(max_epochs=1)
        if cost - now < 0.005 * len(words):
            break
        cost = now
    for word in sorted(words):
        theirs = [part.encode() for part in model.viterbi_segment(word, addcount=0)[0]]
        ours = [segmenter.tokens()[i] for i in segmenter.encode(word)]
        spaced = [segmenter.tokens()[i] for i in segmenter.encode(" " + word)]
        assert ours == theirs
        assert b"".join(spaced) == b" " + word.encode()
        assert [part for part in spaced if part != b" "][1:] == theirs[1:], "the space changes no cut"


def test_morfessor_finds_endings():
    segmenter = Morfessor(vocab_size=4000).train(WORDS)
    for stem, ending in (("walk", "ing"), ("turn", "ed"), ("call", "s")):
        assert [segmenter.tokens()[i].decode() for i in segmenter.encode(stem + ending)] == [stem, ending]


def test_the_global_random_generator_is_only_lent():
    before = random.getstate()
    with _own_random("0 1"):
        drawn = random.random()
    assert random.getstate() == before
    with _own_random("0 1"):
        assert random.random() == drawn


def test_a_killed_morfessor_goes_on(tmp_path):
    class Killed(Exception):
        pass

    def kill(stage, done, of):
        if "epochs" in stage and done == 1:
            raise Killed

    trainer = Morfessor(vocab_size=4000)
    with pytest.raises(Killed):
        trainer.train(WORDS, work=tmp_path, progress=kill)
    assert (tmp_path / "morfessor.json").exists()
    seen = []
    trainer.train(WORDS, work=tmp_path, progress=lambda stage, done, of: seen.append((stage, done)))
    assert ("epochs of Morfessor", 0) not in seen
    assert not (tmp_path / "morfessor.json").exists()
    with pytest.raises(Killed):
        trainer.train(WORDS, work=tmp_path, progress=kill)
    with pytest.raises(UserError, match="begun on other text or with other settings"):
        Morfessor(seed=1).train(WORDS, work=tmp_path)
    (tmp_path / "morfessor.json").write_text("{")
    with pytest.raises(UserError, match="is damaged; delete it"):
        trainer.train(WORDS, work=tmp_path)


def test_a_corpus_of_white_space_gives_bytes():
    segmenter = Morfessor(vocab_size=300).train([" \n "])
    assert segmenter.vocab_size == 256
    assert segmenter.decode(segmenter.encode("sea")) == "sea"


# -- sizes and mistakes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", SIZED, ids=lambda c: c.__name__)
def test_sizes_are_kept(trainer):
    for size in (256, 280):
        segmenter = trainer(vocab_size=size).train(ENGLISH)
        assert segmenter.vocab_size <= size
        assert segmenter.decode(segmenter.encode("the moon")) == "the moon"


@pytest.mark.parametrize("trainer", SIZED, ids=lambda c: c.__name__)
def test_a_vocabulary_smaller_than_the_alphabet(trainer):
    with pytest.raises(UserError, match=r"vocab_size=255 is out of range; pass a number in \[256, 10000000\]"):
        trainer(vocab_size=255)


@pytest.mark.parametrize("trainer", [*SIZED, ByteLevel], ids=lambda c: c.__name__)
def test_a_corpus_with_a_lone_surrogate(trainer):
    with pytest.raises(UserError, match="lone surrogate"):
        trainer.tiny().train(["fine", "x\ud800"] * 2 if trainer is not ByteLevel else ["x\ud800"])


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: SuperwordBPE(chunk=1), "chunk=1"),
        (lambda: WordPiece(longest=0), "longest=0"),
        (lambda: ParityBPE(vocab_size=300, global_merges=45), "global_merges=45 is outside 0..44"),
        (lambda: Unigram(max_piece_length=0), "max_piece_length=0"),
        (lambda: Morfessor(corpus_weight=0.0), "corpus_weight=0"),
        (lambda: Morfessor(max_epochs=0), "max_epochs=0"),
    ],
)
def test_settings_out_of_range(make, line):
    with pytest.raises(UserError, match=line):
        make()


def test_training_streams_from_files(tmp_path):
    with gzip.open(tmp_path / "text.txt.gz", "wt", encoding="utf-8") as file:
        file.writelines(ENGLISH)
    corpus = Corpus(tmp_path / "text.txt.gz")
    for trainer in (BPE, Unigram):
        ours = trainer.tiny().train(corpus, work=tmp_path / "work")
        assert ours.state() == trainer.tiny().train(ENGLISH).state()


def test_progress_is_told():
    seen = []
    BPE(vocab_size=280).train(ENGLISH, progress=lambda stage, done, of: seen.append((stage, done, of)))
    assert seen[-1] == ("reading characters", sum(map(len, ENGLISH)), 0)

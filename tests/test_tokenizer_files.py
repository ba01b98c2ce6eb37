"""Opening tokenizers from all kinds of files, and the order in which their tokens were made."""

import base64
import builtins
import io
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from mintage.errors import UserError
from mintage.tokenizer_files import PATTERNS, PreTokens, clean_merges, load_tokenizer, merges, recover_merges

REAL = Path(os.environ.get("MINTAGE_TOKENIZERS", "absent"))

TEXTS = [
    "The tide comes in twice a day, and twice a day it goes out again.",
    "Die Flut kommt zweimal am Tag, und zweimal am Tag geht sie wieder.",
    "def tide(hours):\n    return [hour % 12 for hour in range(hours)]\n",
    "潮は一日に二度満ちて、二度引く。 1234567 don't DON'T Tide's",
] * 8


@pytest.fixture(scope="module")
def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=256 + 120, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def letters():
    """Byte of every letter, by the library's own pre-tokenizer."""
    made = {}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for code in range(256):
        text = chr(code)
        encoded = text.encode()
        for letter, byte in zip(byte_level.pre_tokenize_str(text)[0][0], encoded, strict=True):
            made[letter] = byte
    for code in range(0x100, 0x110000, 37):  # leading bytes of longer characters
        if not 0xD800 <= code < 0xE000:
            word = byte_level.pre_tokenize_str(chr(code))[0][0]
            made.update(zip(word, chr(code).encode(), strict=True))
    return made


@pytest.fixture(scope="module")
def ranks(byte_level):
    """The tokenizer's tokens as bytes, ranked: single bytes first, then in the order of the merges."""
    known = letters()
    singles = [bytes([b]) for b in range(256)]
    made = [bytes(known[c] for c in left + right) for left, right in merges(byte_level)]
    return {token: rank for rank, token in enumerate([*singles, *made])}


def rank_file(path, ranks):
    path.write_bytes(b"".join(base64.b64encode(t) + b" " + str(r).encode() + b"\n" for t, r in ranks.items()))
    return path


# -- rank files --------------------------------------------------------------------------------------------------------


def test_a_rank_file_gives_the_merges_back(tmp_path, byte_level, ranks):
    opened = load_tokenizer(rank_file(tmp_path / "gpt2.tiktoken", ranks))
    assert merges(opened) == merges(byte_level)


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base", "qwen"])
def test_ids_are_those_of_tiktoken(tmp_path, ranks, name):
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
    ours = load_tokenizer(rank_file(tmp_path / f"{name}.tiktoken", ranks))
    for text in [
        *TEXTS[:4],
        "",
        "  two  spaces \n\n\n tabs\t\tand\r\nlines  ",
        "it's 'll WE'VE a1b22c333 $%&/ é ß ñ 🙂",
    ]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, disallowed_special=())
        assert ours.decode(theirs.encode(text, disallowed_special=())) == text


def test_patterns_are_those_of_tiktoken():
    public = pytest.importorskip("tiktoken_ext.openai_public")
    regex = pytest.importorskip("regex")
    text = "".join(TEXTS[:4]) + " it's WE'VE  x\r\n\r\n  y12345678 ...!? /// \t z "
    assert regex.findall(PATTERNS["gpt2"], text) == regex.findall(public.r50k_pat_str, text)


def test_a_model_file_with_ranks_needs_a_pattern(tmp_path, ranks):
    path = rank_file(tmp_path / "tokenizer.model", ranks)
    with pytest.raises(UserError, match="pass the pattern"):
        load_tokenizer(path)
    by_name = load_tokenizer(path, pattern="llama3")
    by_regex = load_tokenizer(path, pattern=PATTERNS["llama3"])
    assert by_name.encode(TEXTS[0]).ids == by_regex.encode(TEXTS[0]).ids
    with pytest.raises(UserError, match="no regular expression"):
        load_tokenizer(path, pattern="(")


@pytest.mark.parametrize("content", [b"", b"not base64!\n", b"YQ== 0\nYg==\n", b"YQ== x\n", b"YQ== 0\nYg== 0\n"])
def test_damaged_rank_files(tmp_path, content):
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(content)
    with pytest.raises(UserError) as told:
        load_tokenizer(path)
    assert "\n" not in str(told.value)
    assert "gpt2.tiktoken" in str(told.value)


# -- SentencePiece -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bpe", "unigram", "bpe-bytes", "bpe-spaces"])
def sentencepiece_model(request, tmp_path_factory):
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    kind, _, variant = request.param.partition("-")
    options = {
        "bytes": {"byte_fallback": True, "character_coverage": 0.98, "split_digits": True},
        "spaces": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity", "byte_fallback": True},
        "": {},
    }[variant]
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=out,
        vocab_size=360 if variant else 150,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    path = tmp_path_factory.mktemp("spm") / "it.model"
    path.write_bytes(out.getvalue())
    return path, spm.SentencePieceProcessor(model_file=str(path))


def test_ids_are_those_of_sentencepiece(sentencepiece_model):
    path, theirs = sentencepiece_model
    ours = load_tokenizer(path)
    draw = random.Random(0)
    words = " ".join(TEXTS[:4]).split()
    texts = [*TEXTS[:4], " leading", "two  spaces", *(" ".join(draw.sample(words, 9)) for _ in range(60))]
    for text in texts:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


def test_text_survives(sentencepiece_model):
    path, theirs = sentencepiece_model
    ours = load_tokenizer(path)
    ids = theirs.encode(TEXTS[0])
    assert ours.decode(ids) == theirs.decode(ids) == TEXTS[0]


def test_a_damaged_model_is_one_line(tmp_path, sentencepiece_model):
    whole = sentencepiece_model[0].read_bytes()
    for content in (b"", b"\xff\xff\xff\xff", whole[: len(whole) // 2], b"\x0a\x05hello"):
        path = tmp_path / "broken.model"
        path.write_bytes(content)
        with pytest.raises(UserError) as told:
            load_tokenizer(path)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("missing", ["sentencepiece", "google.protobuf"])
def test_the_missing_extra_is_named(tmp_path, monkeypatch, missing):
    path = tmp_path / "it.model"
    path.write_bytes(b"\x0a\x00")
    real = builtins.__import__

    def without(name, *rest):
        if name == "sentencepiece":
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        UserError, match=r"(sentencepiece|protobuf) is not installed; run: pip install 'mintage\[audit\]'"
    ):
        load_tokenizer(path)


# -- tokenizer.json ----------------------------------------------------------------------------------------------------


def test_files_and_folders(tmp_path, byte_level):
    byte_level.save(str(tmp_path / "tokenizer.json"))
    for source in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert load_tokenizer(source).to_str() == byte_level.to_str()


def test_a_truncated_file_is_one_line(tmp_path, byte_level):
    whole = byte_level.to_str()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "tokenizer.json").write_text(whole[:cut], encoding="utf-8")
        with pytest.raises(UserError, match="damaged") as told:
            load_tokenizer(tmp_path)
        assert "\n" not in str(told.value)


def test_merges_without_their_vocabulary_are_one_line(tmp_path, byte_level):
    held = json.loads(byte_level.to_str())
    del held["model"]["vocab"]["".join(merges(byte_level)[3])]
    (tmp_path / "tokenizer.json").write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(UserError) as told:
        load_tokenizer(tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("source", ["absent.json", "absent.tiktoken", "absent.model", "a/b/c", "nothing"])
def test_what_is_not_there_is_told(source):
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(source)


def test_a_folder_without_tokenizer_is_told(tmp_path):
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)


# -- merges ------------------------------------------------------------------------------------------------------------


def test_merges_are_bpe_only():
    with pytest.raises(UserError, match="WordLevel"):
        merges(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


def test_merges_of_a_model_that_marks_continuations():
    model = models.BPE(vocab={"a": 0, "##b": 1, "ab": 2}, merges=[("a", "##b")], continuing_subword_prefix="##")
    assert merges(Tokenizer(model)) == [("a", "##b")]


def all_ways(pairs):
    """Every way to split every token in two tokens, in the order of the tokens, as converted files hold them."""
    known = {left + right for left, right in pairs} | {c for pair in pairs for c in "".join(pair)}
    return [
        (token[:i], token[i:])
        for token in dict.fromkeys(left + right for left, right in pairs)
        for i in range(1, len(token))
        if token[:i] in known and token[i:] in known
    ]


@given(st.lists(st.text("ab", min_size=2, max_size=12), min_size=3, max_size=12), st.integers(3, 20))
@settings(max_examples=60, deadline=None)
def test_a_list_of_all_ways_is_cleaned_to_what_the_trainer_did(texts, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2 + size, show_progress=False))
    listed = merges(tokenizer)
    ranks = {left + right: rank for rank, (left, right) in enumerate(listed)}
    if len(ranks) < len(listed):
        return  # the trainer itself made a token twice
    if listed and len(set("".join(listed[0]))) > 1:
        assert clean_merges(all_ways(listed)) == listed
    assert recover_merges(ranks) == listed


def test_of_ways_that_no_replay_leaves_the_earliest_parts_stay():
    pairs = [("a", "b"), ("c", "d"), ("ab", "x"), ("x", "y"), ("q", "rs"), ("qr", "s"), ("q", "r"), ("r", "s")]
    cleaned = clean_merges(pairs)
    assert ("qr", "s") in cleaned  # of equals the longer left part: rank of q+r is before that of r+s
    assert ("q", "rs") not in cleaned


def test_a_head_placed_by_hand_is_dropped():
    head = [("nnn", "n"), ("nn", "nn"), ("nn", "n"), ("n", "n")]
    assert clean_merges([*head, ("a", "b"), ("ab", "n")]) == [("a", "b"), ("ab", "n")]
    organic = [("n", "n"), ("nn", "nn"), ("a", "b")]
    assert clean_merges(organic) == organic


# -- pre-tokens --------------------------------------------------------------------------------------------------------


def test_pre_tokens_normalise_and_cut(byte_level):
    assert PreTokens(byte_level)("It's two  words") == ["It", "'s", "Ġtwo", "Ġ", "Ġwords"]


def test_pre_tokens_of_sentencepiece_models_are_words(sentencepiece_model):
    path, _ = sentencepiece_model
    cut = PreTokens(load_tokenizer(path))
    assert [w.lstrip("▁") for w in cut("two words")] == ["two", "words"]
    assert all("▁" not in w[1:] for w in cut("a  b   c"))


# -- real lists --------------------------------------------------------------------------------------------------------


def real(name):
    path = REAL / name / "tokenizer.json"
    if not path.exists():
        pytest.skip(f"$MINTAGE_TOKENIZERS holds no {name}/tokenizer.json (docs/audit.md says how to fetch it)")
    return load_tokenizer(path)


def test_llama3_cleaned_begins_with_the_list_of_gpt35():
    llama3, gpt35 = clean_merges(merges(real("llama3"))), merges(real("gpt35turbo"))
    assert llama3[: len(gpt35)] == gpt35


def test_gemma_loses_its_head():
    cleaned = clean_merges(merges(real("gemma3")))
    assert cleaned[0] == ("▁", "t")
    assert len({left + right for left, right in cleaned}) == len(cleaned)

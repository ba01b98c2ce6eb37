"""Tokenizers of others under the contract: their own library's ids, ends that lie in the text, losses told."""

import base64
import io
import json

import pytest
import sentencepiece
import tiktoken
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from mintage.errors import UserError
from mintage.segment.baselines import BPE
from mintage.segment.core.adapters import (
    PROBES,
    HFTokenizer,
    SentencePiece,
    Tiktoken,
    open_segmenter,
)
from mintage.segment.core.metrics import encode_corpus
from mintage.testing.segment import CORPUS, TEXTS
from mintage.tokenizer_files import PATTERNS


@pytest.fixture(scope="module")
def bpe():
    return BPE(vocab_size=400).train(CORPUS)


@pytest.fixture(scope="module")
def rank_file(bpe, tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "gpt2.tiktoken"
    lines = [base64.b64encode(t) + b" " + str(i).encode() for i, t in enumerate(bpe.tokens())]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture(scope="module")
def piece_file(tmp_path_factory):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, vocab_size=400, hard_vocab_limit=False,
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("pieces") / "mine.model"
    path.write_bytes(model.getvalue())
    return path


def bert_like():
    words = ["[UNK]", "the", "moon", "##s", "sea"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


# -- Hugging Face ----------------------------------------------------------------------------------------------------


def test_a_byte_level_tokenizer_json_is_what_it_was(bpe, tmp_path):
    bpe.to_hf().save_pretrained(tmp_path)
    for spec in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        opened = open_segmenter(spec)
        assert isinstance(opened, HFTokenizer)
        assert opened.tokens() == bpe.tokens()
        assert opened.encode_batch(TEXTS) == bpe.encode_batch(TEXTS)
        assert [opened.decode(opened.encode(text)) for text in TEXTS] == TEXTS
        assert opened.loss == ""


def test_a_mintage_folder_is_loaded_as_what_it_is(bpe, tmp_path):
    bpe.save(tmp_path / "mine")
    for spec in (tmp_path / "mine", tmp_path / "mine" / "segmenter.json"):
        assert type(open_segmenter(spec)) is type(bpe)


def test_a_lossy_tokenizer_says_so():
    opened = HFTokenizer(bert_like())
    assert opened.loss.startswith("'The sea, THE SEA' comes back as ")
    assert opened.tokens() is None


def test_ends_lie_in_the_text_that_was_given():
    opened = HFTokenizer(bert_like())
    text = "The moons  THÉ sea"
    ends = opened.ends(text)
    assert [text.encode()[:end].decode() for end in ends] == ["The", "The moon", "The moons", "The moons  THÉ", text]
    assert encode_corpus(opened, [text]).ends.tolist() == ends


def test_ends_behind_a_letter_that_is_dropped_lie_where_the_tokens_do():
    vocabulary = {"a": 0, "b": 1, "ab": 2, "▁": 3}
    opened = HFTokenizer(Tokenizer(models.BPE(vocabulary, [("a", "b")])))
    assert opened.encode("a?a潮ab b") == [0, 0, 2, 1]
    assert opened.ends("a?a潮ab b") == [1, 3, 8, 10]
    assert opened.ends("abba") == [2, 3, 4]
    assert opened.encode("a?b") == [2]  # the library joins what stands on both sides
    assert opened.ends("a?b") is None


def test_special_tokens_in_a_text_are_text(bpe):
    inner = Tokenizer.from_str(bpe.tokenizer.to_str())
    inner.add_special_tokens(["<|end|>"])
    opened = HFTokenizer(inner)
    assert opened.encode("the<|end|>sea") == bpe.encode("the<|end|>sea")
    assert opened.vocab_size == bpe.vocab_size + 1
    assert opened.tokens()[-1] == b"<|end|>"
    assert opened.decode(opened.encode("a <|end|>")) == "a <|end|>"


def test_padding_and_truncation_of_the_file_do_not_change_the_ids(bpe):
    inner = Tokenizer.from_str(bpe.tokenizer.to_str())
    inner.enable_truncation(3)
    inner.enable_padding(length=50)
    assert HFTokenizer(inner).encode(CORPUS[0]) == bpe.encode(CORPUS[0])


# -- tiktoken --------------------------------------------------------------------------------------------------------


def test_a_rank_file_gives_the_ids_of_the_tokenizer_that_it_came_from(bpe, rank_file):
    opened = open_segmenter(rank_file)
    assert isinstance(opened, Tiktoken)
    assert opened.encode_batch(TEXTS) == bpe.encode_batch(TEXTS)
    assert opened.tokens() == bpe.tokens()
    assert opened.note == "cut as gpt2, after its name"
    assert opened.loss == ""


@pytest.mark.parametrize("pattern", [PATTERNS["gpt2"], PATTERNS["cl100k_base"]])
def test_patterns_lose_nothing(bpe, pattern):
    ranks = {token: i for i, token in enumerate(bpe.tokens())}
    opened = Tiktoken(tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|e|>": 500}))
    for text in [*TEXTS, *CORPUS, "<|e|>"]:
        assert opened.decode(opened.encode(text)) == text
    assert opened.vocab_size == 501
    assert opened.tokens()[450] == b""
    with pytest.raises(UserError, match="id 450 stands for nothing"):
        opened.decode_bytes([450])


def test_the_gpt2_pattern_is_the_one_that_tokenizers_has():
    import regex

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for text in [*TEXTS, *CORPUS, "don't  I'll\n\n  x \t y   "]:
        theirs = [text[begin:end] for _, (begin, end) in byte_level.pre_tokenize_str(text)]
        if text.isascii():  # else the offsets of bytes inside a character repeat it
            assert regex.findall(PATTERNS["gpt2"], text) == theirs


def test_an_unknown_name_of_tiktoken(monkeypatch):
    with pytest.raises(UserError, match=r"tiktoken has no encoding 'cl100k'; did you mean 'cl100k_base'\?"):
        open_segmenter("tiktoken:cl100k")

    def no_network(name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(UserError, match=r"tiktoken cannot get cl100k_base \(ConnectionError\); connect once"):
        open_segmenter("cl100k_base")


# -- sentencepiece ---------------------------------------------------------------------------------------------------


def test_a_sentencepiece_model_gives_its_own_ids_and_says_what_it_loses(piece_file):
    opened = open_segmenter(piece_file)
    assert isinstance(opened, SentencePiece)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(piece_file))
    assert opened.encode("the moon") == processor.encode("the moon")
    assert opened.vocab_size == processor.get_piece_size()
    assert "comes back as" in opened.loss
    assert opened.loss.startswith(repr(PROBES[1]))  # the first probe with something to lose


def test_sentencepiece_ends_lie_in_the_text(piece_file):
    opened = open_segmenter(piece_file)
    text = " The  moon ½ 潮"
    ends = opened.ends(text)
    assert len(ends) == len(opened.encode(text))
    assert ends == sorted(ends)
    assert ends[-1] == len(text.encode())


# -- what all of them refuse -----------------------------------------------------------------------------------------


@pytest.fixture(params=["hf", "tiktoken", "sentencepiece"])
def foreign(request, bpe, rank_file, piece_file):
    if request.param == "hf":
        return HFTokenizer(Tokenizer.from_str(bpe.tokenizer.to_str()))
    return open_segmenter(rank_file if request.param == "tiktoken" else piece_file)


def test_what_is_no_text_is_told(foreign):
    assert foreign.encode(b"the moon") == foreign.encode("the moon")
    with pytest.raises(UserError, match="reads text only, and byte 3 is not UTF-8"):
        foreign.encode(b"the\xff")
    with pytest.raises(UserError, match="lone surrogate"):
        foreign.encode("x\ud800")
    with pytest.raises(UserError, match="is outside this vocabulary"):
        foreign.decode_bytes([foreign.vocab_size])
    with pytest.raises(UserError, match="is not mintage's to save"):
        foreign.state()


def test_what_cannot_be_saved_leaves_no_folder(foreign, tmp_path):
    with pytest.raises(UserError):
        foreign.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("tokenizer.json", b'{"version": "1.0", "mod', "is damaged or no tokenizer.json"),
        ("tokenizer.json", b"\x00\xff\xfe\x01", "is damaged or no tokenizer.json"),
        (
            "tokenizer.json",
            json.dumps({"version": "1.0", "model": {"type": "BPE", "merges": [["a", "b"]], "vocab": {}}}).encode(),
            "is no tokenizer that tokenizers can read",
        ),
        ("x.tiktoken", b"not base64 at all", "line 1: not a base64 token and its rank"),
        ("x.tiktoken", b"\x00\x01\x02", "line 1: not a base64 token and its rank"),
        ("x.tiktoken", b"YQ== 0\n", "lacks byte 0x00"),
        ("x.model", b"junk", "is damaged or no SentencePiece model"),
        ("x.model", b"", "is damaged or no SentencePiece model"),
        ("segmenter.json", b"{", "is no segmenter, or damaged"),
    ],
)
def test_damaged_files(tmp_path, name, content, line):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=line) as caught:
        open_segmenter(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["no-such-thing", "/no/such/folder", "absent.model", "absent.tiktoken", "a.json"])
def test_what_does_not_exist(spec):
    with pytest.raises(UserError, match=r"does not exist|cannot read") as caught:
        open_segmenter(spec)
    assert "\n" not in str(caught.value)

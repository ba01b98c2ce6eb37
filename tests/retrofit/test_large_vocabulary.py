"""Searches against the whole product, and writing in longer tokens against the model as it is."""

from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mintage.errors import UserError
from mintage.models import CausalLM, tiny_causal_lm
from mintage.retrofit.core.embeddings import Composed
from mintage.retrofit.core.large_vocabulary import LargeVocabHead, LargeVocabulary, _completions, extended_vocabulary

faiss = pytest.mark.skipif(find_spec("faiss") is None, reason="faiss is not installed")
WORDS = [b" words", b"some", b" and", "né".encode()]


@pytest.fixture(scope="module")
def lm():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    return CausalLM(tiny_causal_lm(vocab_size=len(tokenizer), eos_token_id=256), tokenizer, "tiny")


# -- searching ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(600, 16, generator=draw) * (1 + torch.rand(600, 1, generator=draw))
    return rows, torch.randn(600, generator=draw), torch.randn(40, 16, generator=draw)


@pytest.mark.parametrize("biased", [False, True])
def test_the_exact_head_is_the_whole_product(space, biased):
    rows, bias, states = space
    head = LargeVocabHead(rows, k=600, bias=bias if biased else None)
    logits, ids = head.topk(states)
    wanted = states @ rows.T + (bias if biased else 0)
    assert torch.allclose(logits, wanted.gather(1, ids), atol=1e-5)
    assert (logits[:, :-1] >= logits[:, 1:]).all()
    assert torch.equal(ids.sort(1).values, torch.arange(600).expand(40, -1))


@faiss
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_a_search_that_looks_everywhere_finds_everything(space, index, biased):
    rows, bias, states = space
    bias = bias if biased else None
    all_of_it = {"clusters": 8, "probes": 8} if index == "ivf" else {"effort": 600}
    some = LargeVocabHead(rows, index, 20, bias=bias, reorder=600, **all_of_it).topk(states)
    whole = LargeVocabHead(rows, "exact", 20, bias=bias).topk(states)
    assert torch.equal(some[1], whole[1])
    assert torch.allclose(some[0], whole[0], atol=1e-5)


@faiss
def test_rows_of_large_norm_are_found(space):
    """As a search by cosine would not: a long row that points elsewhere a little has the largest logit."""
    rows, _, states = space
    rows = torch.cat([rows, 8 * states + 2 * torch.randn(40, 16, generator=torch.Generator().manual_seed(1))])
    found = LargeVocabHead(rows, "ivf", 5, clusters=16, probes=4).topk(states)[1]
    wanted = LargeVocabHead(rows, "exact", 5).topk(states)[1]
    assert (found[:, 0] == wanted[:, 0]).float().mean() > 0.9


@faiss
def test_where_little_is_searched_the_rest_is_missing_not_wrong(space):
    rows, _, states = space
    head = LargeVocabHead(rows[:40], "ivf", 30, clusters=20, probes=1)
    logits, ids = head.topk(states)
    assert (ids < 0).any()
    assert torch.equal(ids < 0, logits == -torch.inf)
    known = ids >= 0
    assert torch.allclose(logits[known], (states @ rows[:40].T).gather(1, ids.clamp(min=0))[known], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"index": "scann"}, "unknown index 'scann'"), ({"k": 0}, "outside 1..600"), ({"k": 601}, "outside 1..600")],
)
def test_bad_settings_are_told_in_a_line(space, settings, told):
    with pytest.raises(UserError, match=told):
        LargeVocabHead(space[0], **settings)


# -- which tokens ------------------------------------------------------------------------------------------------------


def test_frequent_words_become_tokens(lm):
    texts = ["some words and words", "words, words again"]
    assert extended_vocabulary(lm.tokenizer, texts, 2) == [b" words", b"some"]
    assert extended_vocabulary(lm.tokenizer, texts, 100) == [b" words", b"some", b" and", b"words", b" again"]


def test_byte_pair_encoding_goes_on_where_it_stopped(lm):
    texts = ["aab aab aab", "ab"]
    assert extended_vocabulary(lm.tokenizer, texts, 3, how="bpe") == [b"ab", b"aab", b" aab"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"size": 0}, "size=0"), ({"size": 2, "how": "words"}, "how='words' is not one of pretokens, bpe")],
)
def test_bad_requests_are_told_in_a_line(lm, settings, told):
    with pytest.raises(UserError, match=told):
        extended_vocabulary(lm.tokenizer, ["a"], **settings)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_without_new_tokens_it_writes_what_the_model_writes(lm):
    large = LargeVocabulary(lm, [])
    ids = torch.tensor([[256, *lm.tokenizer("some words")["input_ids"]]])
    with torch.no_grad():
        wanted = lm.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    wanted = wanted[: wanted.index(256)] if 256 in wanted else wanted
    written = large.generate("some words", 8)
    assert written.tokens == wanted
    assert written.new == 0
    assert len(large) == 257


def test_prompts_are_cut_into_the_longest_tokens(lm):
    large = LargeVocabulary(lm, WORDS, provider="mean")
    found = large.encode("some words andy né")
    assert [large.bytes([t]) for t in found] == [b"some", b" words", b" and", b"y", b" ", "né".encode()]
    assert large.decode(found) == "some words andy né"


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="some wrdsané你\n", max_size=20))
def test_what_is_cut_joins_to_the_text(text):
    held = test_what_is_cut_joins_to_the_text.__dict__
    if "large" not in held:
        held["large"] = _large()
    assert held["large"].decode(held["large"].encode(text)) == text


def _large():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    lm = CausalLM(tiny_causal_lm(vocab_size=256), PreTrainedTokenizerFast(tokenizer_object=inner), "tiny")
    return LargeVocabulary(lm, WORDS, provider="mean")


class Loud:
    """Makes every new token as likely as wanted."""

    def __init__(self, direction, bias=None):
        self.direction, self.bias = direction, bias

    def rows(self, source, tokens):
        rows = self.direction.expand(len(tokens), -1)
        return Composed(rows, rows, None if self.bias is None else torch.full((len(tokens),), self.bias))


@pytest.mark.parametrize("index", ["exact", pytest.param("ivf", marks=faiss), pytest.param("hnsw", marks=faiss)])
def test_new_tokens_are_written_and_read_back(lm, index):
    with torch.no_grad():
        state = lm.model.base_model(torch.tensor([[256, 5]])).last_hidden_state[0, -1]
    loud = Loud(50 * state / state.norm())
    large = LargeVocabulary(lm, [b" loud"], provider=loud, index=index, k=5)
    prompt = lm.tokenizer.decode([5])
    assert large.generate(prompt, 1) == (" loud", [257], 1)
    assert large.generate(prompt, 4).tokens[0] == 257
    quiet = LargeVocabulary(lm, [b" loud"], provider=Loud(50 * state / state.norm(), -1e4), index=index, k=5)
    assert quiet.generate(prompt, 1).new == 0


def test_the_options_do_what_they_say(lm):
    large = LargeVocabulary(lm, WORDS, provider="mean", k=20)
    plain = large.generate("some", 12)
    assert large.generate("some", 12, eos_bias=1e4).tokens == []
    spaced = large.generate("some", 12, no_repeat_ngram_size=2).tokens
    pairs = list(zip(large.encode("some") + spaced, (large.encode("some") + spaced)[1:], strict=False))
    assert len(set(pairs)) == len(pairs)
    assert len(set(large.generate("some", 12, repetition_penalty=50.0).tokens)) > len(set(plain.tokens)) or len(
        set(plain.tokens)
    ) == len(plain.tokens)
    drawn = [large.generate("some", 6, temperature=1.0, seed=seed).tokens for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(tokens) for tokens in drawn}) > 1
    assert large.generate("some", 6, temperature=1.0, min_p=1.0, seed=1).tokens == large.generate("some", 6).tokens


def test_runs_that_would_come_again():
    assert _completions([1, 2, 3, 1, 2], 3) == [3]
    assert _completions([1, 2, 3], 2) == []
    assert _completions([1, 2], 1) == [1, 2]


@pytest.mark.parametrize(
    ("prompt", "settings", "told"),
    [
        ("", {}, "prompt is empty"),
        ("a", {"temperature": -1.0}, "temperature=-1"),
        ("a", {"min_p": 2.0}, "min_p=2"),
        ("a", {"repetition_penalty": 0.0}, "repetition_penalty=0"),
    ],
)
def test_bad_requests_to_write_are_told_in_a_line(lm, prompt, settings, told):
    with pytest.raises(UserError, match=told):
        LargeVocabulary(lm, [], provider="mean").generate(prompt, 2, **settings)

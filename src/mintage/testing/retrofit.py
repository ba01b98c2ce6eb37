"""Laws of the retrofit contracts: of what samples bytes, of what merges tokens, and of what embeds new ones."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mintage.models import CausalLM, tiny_causal_lm
from mintage.retrofit.contract import END, ByteSampler
from mintage.retrofit.core.embeddings import EmbeddingTransfer, Parts
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.core.transfer import Transferred, transfer
from mintage.retrofit.dynamic_tokens import DynamicTokens
from mintage.testing.refusals import refused
from mintage.testing.settings import a_wrong_setting_is_refused

__all__ = ["LAWS"]

_TEXTS = [bytes(letters) for size in range(5) for letters in product(b"ab", repeat=size)]


def the_next_byte_has_probability_one(method: ByteSampler) -> None:
    """Over 256 bytes and the end, after every text; bytes that the model cannot write have none."""
    for text in _TEXTS:
        p = np.exp(method.next_byte_logprobs(text))
        assert p.shape == (END + 1,)
        assert abs(p.sum() - 1) < 1e-9
        assert p[ord("z")] == 0


def texts_up_to_the_longest_have_probability_one(method: ByteSampler) -> None:
    """By the chain rule: all texts of up to four letters that end, and all longer beginnings, are all there is."""
    total = 0.0
    for text in _TEXTS:
        whole = method.continuation_logprob(b"", text)
        end = method.next_byte_logprobs(text)[END]
        total += np.exp(whole + end) if len(text) < 4 else np.exp(whole)
    assert abs(total - 1) < 1e-9


def a_state_kept_up_to_date_is_the_one_made_anew(method: ByteSampler) -> None:
    """After every byte, for every way to part a text."""
    for text in _TEXTS:
        fresh = method.start(text).logprobs()
        for cut in range(len(text)):
            state = method.start(text[:cut])
            for byte in text[cut:]:
                state = state.advance(byte)
            assert np.allclose(np.exp(state.logprobs()), np.exp(fresh), atol=1e-9)


def a_state_is_not_changed_by_what_follows(method: ByteSampler) -> None:
    """Advancing gives a new state; the old one says what it said."""
    state = method.start(b"a")
    before = state.logprobs().copy()
    state.advance(ord("a")).logprobs()
    state.advance(ord("b")).logprobs()
    assert np.array_equal(state.logprobs(), before)


def samples_repeat_and_greedy_is_greedy(method: ByteSampler) -> None:
    """A seed gives the same bytes; temperature 0 takes the likeliest byte each time."""
    first = method.generate(b"a", 6, temperature=1.0, seed=3)
    assert first == method.generate(b"a", 6, temperature=1.0, seed=3)
    text = b""
    for byte in method.generate(b"", 6):
        assert byte == method.next_byte_logprobs(text).argmax()
        text += bytes([byte])


def what_cannot_be_is_refused(method: ByteSampler) -> None:
    """Bytes without a token, wrong temperatures: one line each."""
    refused(
        lambda: method.start(b"az"),
        lambda: method.start(b"a").advance(ord("z")),
        lambda: method.generate(b"", 2, temperature=-1),
        lambda: method.generate(b"", 2, top_p=0.0),
    )


# -- tokens that grow with the batch -----------------------------------------------------------------------------------

_BATCH = ("some words and some more words, na\u00efve \u4f60\u597d\u4f60\u597d", "words again", "a\n\n  b")


def _reader(**settings: Any) -> CausalLM:
    """Make a small model over bytes."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer([]), pad_token="<pad>")
    return CausalLM(tiny_causal_lm(vocab_size=len(tokenizer), pad_token_id=256, **settings), tokenizer, "tiny")


def _tokenizer(pairs: list[tuple[str, str]]) -> Tokenizer:
    """Make byte-level BPE with a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(one + other for one, other in pairs)]
    inner = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def no_byte_is_lost_and_no_text_grows(method: DynamicTokens) -> None:
    """For every number of merges; none is the original tokenization, and each makes the batch shorter."""
    merger = method(_reader()).merger
    base = merger.encode_batch(_BATCH, n_merges=0)
    last = merger.encode_batch(_BATCH, reduction=1)
    assert b"".join(base.surfaces(0)) == _BATCH[0].encode()
    lengths = []
    for merges in range(len(last.merges) + 2):
        batch = merger.encode_batch(_BATCH, n_merges=merges)
        for text in range(len(_BATCH)):
            assert b"".join(batch.surfaces(text)) == b"".join(base.surfaces(text))
        lengths.append(batch.length)
    assert lengths[0] == base.length
    assert lengths[-1] == lengths[-2] == last.length
    assert all(after < before for before, after in pairwise(lengths[:-1]))


def equal_texts_are_cut_alike_and_a_list_of_merges_repeats(method: DynamicTokens) -> None:
    """Within a batch; and with the merges of another batch, in any company."""
    merger = method(_reader()).merger
    batch = merger.encode_batch([_BATCH[0], _BATCH[1], _BATCH[0]], reduction=0.5)
    assert batch.surfaces(0) == batch.surfaces(2)
    again = merger.encode_batch([_BATCH[2], _BATCH[0]], merges=batch.merges)
    assert again.surfaces(1) == merger.encode_batch([_BATCH[0]], merges=batch.merges).surfaces(0) == batch.surfaces(0)


def without_merges_the_model_is_the_ordinary_one(method: DynamicTokens) -> None:
    """With the original embeddings, which stay where nothing was joined."""
    lm = _reader()
    ids = torch.tensor(lm.tokenizer([_BATCH[1]])["input_ids"])
    with torch.no_grad():
        wanted = lm.model(ids).logits[:, -1]
    got = method(lm).prefill([_BATCH[1]], n_merges=0).logits
    assert torch.allclose(got, wanted, atol=1e-5)


def embeddings_do_not_depend_on_the_order_or_on_what_is_remembered(method: DynamicTokens) -> None:
    """A token has one embedding, made now or kept from before, whatever stands beside it."""
    lm = _reader()
    fresh, used = method(lm), method(lm)
    used.embed(_BATCH[::-1], reduction=1)
    batch = fresh.merger.encode_batch(_BATCH, reduction=1)
    assert torch.allclose(fresh.embed(batch)["inputs_embeds"], used.embed(batch)["inputs_embeds"], atol=1e-6)


# -- embeddings of other tokens ----------------------------------------------------------------------------------------

_PAIRS = [("w", "o"), ("wo", "r"), ("d", "s"), ("wor", "ds"), ("\u0120", "words")]


def _transferred(method: EmbeddingTransfer, lm: CausalLM, target: Any = None) -> Transferred:
    if target is None:
        target = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(_PAIRS), pad_token="[PAD]", eos_token="[END]")
    return transfer(lm.model, lm.tokenizer, target, method, texts=_BATCH)


def the_same_tokenizer_changes_no_bit(method: EmbeddingTransfer) -> None:
    """Every token is known, so every row is copied, input and output, tied or not."""
    for tied in (True, False) if method.copies else (True,):
        lm = _reader(tie_word_embeddings=tied)
        made = _transferred(method, lm, lm.tokenizer)
        for name, weight in lm.model.state_dict().items():
            assert torch.equal(made.model.state_dict()[name], weight), name
        assert made.report["copied"] + made.report["special"] == made.report["tokens"] == len(lm.tokenizer)


def permuting_the_tokens_permutes_their_rows(method: EmbeddingTransfer) -> None:
    """A token's row depends on its bytes, not on its place nor on the tokens beside it."""
    lm = _reader(tie_word_embeddings=True)
    source, vocabulary = Parts(lm.model, TokenBytes(lm.tokenizer)), TokenBytes(_tokenizer(_PAIRS))
    texts = [vocabulary.backend.encode(text).ids for text in _BATCH]
    ready = method.fitted(source, vocabulary.tokens, texts)
    order = torch.randperm(len(vocabulary.tokens), generator=torch.Generator().manual_seed(0))
    plain = ready.rows(source, vocabulary.tokens)
    other = ready.rows(source, [vocabulary.tokens[place] for place in order.tolist()])
    assert torch.isfinite(plain.input).all()
    assert torch.allclose(plain.input[order], other.input, atol=1e-5)
    assert torch.allclose(plain.output[order], other.output, atol=1e-5)
    some = ready.rows(source, vocabulary.tokens[-2:])
    assert torch.allclose(plain.input[-2:], some.input, atol=1e-5)


def the_model_is_an_ordinary_one_of_the_new_size(method: EmbeddingTransfer) -> None:
    """Tied stays tied, ids of special tokens are the new ones, it saves and loads, the old model is as it was."""
    lm = _reader(tie_word_embeddings=True)
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
    made = _transferred(method, lm)
    model, size = made.model, len(made.tokenizer)
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == size == 263
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    for held in (model.config, model.generation_config):
        assert (held.pad_token_id, held.eos_token_id) == (made.tokenizer.pad_token_id, made.tokenizer.eos_token_id)
    pad = before["model.embed_tokens.weight"][lm.tokenizer.pad_token_id]  # type: ignore[index]
    assert torch.equal(model.get_input_embeddings().weight[made.tokenizer.pad_token_id], pad)  # matched by role
    ids = torch.tensor([made.tokenizer(_BATCH[0])["input_ids"]])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        again = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert all(torch.equal(lm.model.state_dict()[name], weight) for name, weight in before.items())


def tokenizers_that_do_not_fit_are_refused(method: EmbeddingTransfer) -> None:
    """Tokens that are no bytes, and a model of fewer tokens than its tokenizer: one line each."""
    lm = _reader(tie_word_embeddings=True)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    larger = replace(lm, tokenizer=PreTrainedTokenizerFast(tokenizer_object=_tokenizer(_PAIRS)))
    refused(lambda: _transferred(method, lm, words), lambda: _transferred(method, larger))


LAWS = (
    the_next_byte_has_probability_one,
    texts_up_to_the_longest_have_probability_one,
    a_state_kept_up_to_date_is_the_one_made_anew,
    a_state_is_not_changed_by_what_follows,
    samples_repeat_and_greedy_is_greedy,
    what_cannot_be_is_refused,
    no_byte_is_lost_and_no_text_grows,
    equal_texts_are_cut_alike_and_a_list_of_merges_repeats,
    without_merges_the_model_is_the_ordinary_one,
    embeddings_do_not_depend_on_the_order_or_on_what_is_remembered,
    the_same_tokenizer_changes_no_bit,
    permuting_the_tokens_permutes_their_rows,
    the_model_is_an_ordinary_one_of_the_new_size,
    tokenizers_that_do_not_fit_are_refused,
    a_wrong_setting_is_refused,
)

"""Another tokenizer for a model: what is reported, what a bare tokenizer is given, untied models, encoders."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from mintage.errors import UserError
from mintage.retrofit.contract import ByteSampler
from mintage.retrofit.core.hypernetwork import Hypernetwork, HypernetworkShape
from mintage.retrofit.core.transfer import transfer
from mintage.retrofit.heuristics import FVT
from mintage.retrofit.zett import Zett
from mintage.testing.retrofit import _PAIRS, _reader, _tokenizer

TEXTS = ["some words and more words", "words again"]


@pytest.fixture(scope="module")
def lm():
    return _reader(tie_word_embeddings=True)


def test_the_report_counts_what_was_done(lm):
    target = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(_PAIRS), pad_token="[PAD]", eos_token="[END]")
    made = transfer(lm.model, lm.tokenizer, target, "fvt")
    assert made.report == {"tokens": 263, "copied": 256, "special": 1, "truncated": 0, "empty": 1}  # [END] is unknown
    net = Hypernetwork(
        HypernetworkShape(vocabulary=257, width=32, hidden=16, inner=16, layers=1, heads=2, length=3)
    ).eval()
    assert transfer(lm.model, lm.tokenizer, target, Zett(net=net)).report["truncated"] == 2  # words, and a space before


def test_rows_are_where_the_tokenizer_puts_them(lm):
    made = transfer(lm.model, lm.tokenizer, _tokenizer(_PAIRS), FVT())
    weight, old = made.model.get_input_embeddings().weight, lm.model.get_input_embeddings().weight
    ids = made.tokenizer("a words", add_special_tokens=False)["input_ids"]
    assert made.tokenizer.convert_ids_to_tokens(ids) == ["a", "Ġwords"]
    parts = lm.tokenizer(" words", add_special_tokens=False)["input_ids"]
    assert torch.allclose(weight[ids[1]], old[parts].mean(0), atol=1e-6)
    assert torch.equal(weight[ids[0]], old[lm.tokenizer.convert_tokens_to_ids("a")])


def test_a_bare_tokenizer_gets_special_tokens_and_chat_template(lm):
    dressed = PreTrainedTokenizerFast(tokenizer_object=lm.tokenizer.backend_tokenizer, pad_token="<pad>")
    dressed.chat_template = "{{ messages }}"
    made = transfer(lm.model, dressed, _tokenizer(_PAIRS), "mean")
    assert made.tokenizer.pad_token == "<pad>"
    assert made.tokenizer.chat_template == "{{ messages }}"
    assert made.model.config.pad_token_id == made.tokenizer.pad_token_id == 261
    assert made.report["special"] == 1


def test_untied_models_get_rows_on_both_sides():
    lm = _reader()
    made = transfer(lm.model, lm.tokenizer, _tokenizer(_PAIRS), "fvt")
    parts = lm.tokenizer("wor", add_special_tokens=False)["input_ids"]
    place = made.tokenizer.convert_tokens_to_ids("wor")
    for side in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(model, side)().weight for model in (lm.model, made.model))
        assert torch.allclose(new[place], old[parts].mean(0), atol=1e-6)
    assert made.model.get_input_embeddings().weight.data_ptr() != made.model.get_output_embeddings().weight.data_ptr()


def test_masked_models_keep_their_head(lm):
    config = BertConfig(
        vocab_size=257, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = BertForMaskedLM(config).eval()
    made = transfer(model, lm.tokenizer, _tokenizer(_PAIRS), "fvt")
    ids = torch.tensor([made.tokenizer("words", add_special_tokens=False)["input_ids"]])
    assert made.model(ids).logits.shape[-1] == len(made.tokenizer)


def test_sharing_keeps_one_transformer(lm):
    made = transfer(lm.model, lm.tokenizer, _tokenizer(_PAIRS), "fvt", share=True)
    mine, theirs = (dict(model.named_parameters()) for model in (lm.model, made.model))
    shared = {name for name in mine if mine[name] is theirs[name]}
    assert set(mine) - shared == {"model.embed_tokens.weight"}
    apart = transfer(lm.model, lm.tokenizer, _tokenizer(_PAIRS), "fvt")
    assert not {id(p) for p in apart.model.parameters()} & {id(p) for p in lm.model.parameters()}


@pytest.mark.parametrize("method", ["focus", "wechsel", "omp"])
def test_learned_methods_ask_for_texts(lm, method):
    with pytest.raises(UserError, match="pass texts of the new kind"):
        transfer(lm.model, lm.tokenizer, _tokenizer(_PAIRS), method)
    made = transfer(lm.model, lm.tokenizer, _tokenizer(_PAIRS), f"{method}:dim=3", texts=TEXTS)
    assert torch.isfinite(made.model.get_input_embeddings().weight).all()


def test_mistakes_are_one_line(lm):
    with pytest.raises(UserError, match=r"makes no embeddings; pass one of: zett, fvt, focus"):
        transfer(lm.model, lm.tokenizer, _tokenizer(_PAIRS), "dynamic-tokens")
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="cannot be read as bytes"):
        transfer(lm.model, lm.tokenizer, words, "fvt")
    other = Hypernetwork(HypernetworkShape(vocabulary=99, width=32))
    with pytest.raises(UserError, match="made for other embeddings"):
        transfer(lm.model, lm.tokenizer, _tokenizer(_PAIRS), Zett(net=other))
    assert not issubclass(FVT, ByteSampler)

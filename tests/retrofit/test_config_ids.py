"""Token ids in configurations when a model changes its tokenizer: none is lost, none means another token."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    WhisperConfig,
)

from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.retrofit.core.config_ids import IdMap
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.core.transfer import transfer
from mintage.testing.retrofit import _PAIRS, _tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def dressed(inner, extra=("<|end|>", "<image>"), **roles):
    return PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=list(extra), **(roles or SPECIAL))


def turned(tokenizer):
    """The same tokens, numbered from behind."""
    held = tokenizer.get_vocab()
    order = {name: number for number, name in enumerate(sorted(held, key=held.__getitem__, reverse=True))}
    inner = Tokenizer(models.BPE(order, []))
    inner.pre_tokenizer, inner.decoder = tokenizer.backend_tokenizer.pre_tokenizer, tokenizer.backend_tokenizer.decoder
    return dressed(inner)


@pytest.fixture(scope="module")
def old():
    return dressed(_tokenizer([]))


def idmap(old, new, rows=None):
    return IdMap(old, new, TokenBytes(old), TokenBytes(new), rows or len(old))


def settings(tokenizer):
    """Every kind of setting that holds ids, by names of tokens."""
    of = tokenizer.convert_tokens_to_ids
    return {
        "eos_token_id": [of("</s>"), of("<|end|>")],
        "pad_token_id": of("<pad>"),
        "bos_token_id": of("<s>"),
        "decoder_start_token_id": of("<s>"),
        "forced_bos_token_id": of("z"),
        "forced_eos_token_id": [of("</s>")],
        "suppress_tokens": [of("a"), of("!")],
        "begin_suppress_tokens": [of("b"), -1],
        "bad_words_ids": [[of("a")], [of("b"), of("c")]],
        "force_words_ids": [[of("b"), of("c")], [[of("a")], [of("d")]]],
        "sequence_bias": [[[of("a"), of("b")], -1.5]],
        "forced_decoder_ids": [[1, of("y")], [2, None]],
        "lang_to_id": {"<|en|>": of("e")},
        "no_timestamps_token_id": of("n"),
    }


def test_the_same_tokenizer_keeps_every_id(old):
    lm = tiny_causal_lm(vocab_size=len(old))
    lm.generation_config = GenerationConfig(**settings(old))
    lm.config.eos_token_id = [2, 0]
    made = transfer(lm, old, old, "fvt")
    assert made.model.config.eos_token_id == [2, 0]
    for name, value in settings(old).items():
        assert getattr(made.model.generation_config, name) == value, name


def test_every_id_of_a_generation_config_is_mapped(old):
    new = turned(old)
    lm = tiny_causal_lm(vocab_size=len(old), eos_token_id=[old.eos_token_id, 1], image_token_index=7)
    lm.generation_config = GenerationConfig(**settings(old))
    made = transfer(lm, old, new, "fvt").model
    for name, value in settings(new).items():
        assert getattr(made.generation_config, name) == value, name
    last = len(old) - 1
    assert made.config.eos_token_id == [new.eos_token_id, last - 1]
    assert made.config.image_token_index == last - 7
    assert lm.generation_config.suppress_tokens == settings(old)["suppress_tokens"]  # the old model is as it was


def test_ids_in_nested_configurations_are_mapped_and_other_vocabularies_left_alone(old):
    new, of = turned(old), old.convert_tokens_to_ids
    text = LlamaConfig(vocab_size=len(old), eos_token_id=[of("</s>"), of("<|end|>")], bos_token_id=of("<s>"))
    config = LlavaConfig(text_config=text, image_token_index=of("<image>"))
    config.codec_config = LlamaConfig(vocab_size=11, pad_token_id=3)
    config.codebook_pad_token_id = 5
    config.task_specific_params = {"chat": {"eos_token_id": of("<|end|>"), "max_length": 3}}
    idmap(old, new).update(config, "config")
    there = new.convert_tokens_to_ids
    assert config.text_config.eos_token_id == [there("</s>"), there("<|end|>")]
    assert config.text_config.bos_token_id == there("<s>")
    assert config.image_token_index == there("<image>")
    assert config.task_specific_params["chat"] == {"eos_token_id": there("<|end|>"), "max_length": 3}
    assert (config.codec_config.pad_token_id, config.codebook_pad_token_id) == (3, 5)
    ids = dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"), 4)
    speech = WhisperConfig(vocab_size=len(old), suppress_tokens=[1, 2], begin_suppress_tokens=[3], **ids)
    idmap(old, new).update(speech, "config")
    last = len(old) - 1
    assert (speech.suppress_tokens, speech.begin_suppress_tokens) == ([last - 1, last - 2], [last - 3])


def test_forbidden_words_are_forbidden_as_the_new_tokenizer_writes_them(old):
    new, of = dressed(_tokenizer(_PAIRS)), old.convert_tokens_to_ids
    held = GenerationConfig(bad_words_ids=[[of(c) for c in "words"]], force_words_ids=[[of(c) for c in "wor"]])
    idmap(old, new).update(held, "generation_config")
    there = new.convert_tokens_to_ids
    assert held.bad_words_ids == [[there(c) for c in "words"], [there("words")]]
    assert held.force_words_ids == [[there("wor")]]


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ({"eos_token_id": [256, 259]}, r"generation_config\.eos_token_id holds 259 \('<\|end\|>'\)"),
        ({"suppress_tokens": [260]}, r"generation_config\.suppress_tokens holds 260 \('<image>'\)"),
        ({"bad_words_ids": [[5], [260, 7]]}, r"generation_config\.bad_words_ids holds 260"),
        ({"forced_decoder_ids": [[1, 260]]}, r"generation_config\.forced_decoder_ids holds 260"),
        ({"sequence_bias": [[[260], 2.0]]}, r"generation_config\.sequence_bias holds 260"),
    ],
)
def test_an_id_without_counterpart_is_refused(old, setting, where):
    assert old.convert_tokens_to_ids(["<|end|>", "<image>"]) == [259, 260]
    lm = tiny_causal_lm(vocab_size=len(old))
    lm.generation_config = GenerationConfig(**setting)
    new = dressed(_tokenizer(_PAIRS), extra=(), eos_token="[END]", bos_token="[BEGIN]")
    with pytest.raises(UserError, match=where + ".*which the new tokenizer lacks; give it that token") as told:
        transfer(lm, old, new, "fvt")
    assert "\n" not in str(told.value)


def test_roles_stand_in_for_names_and_ids_of_nothing_are_dropped(old):
    lm = tiny_causal_lm(vocab_size=len(old))
    lm.generation_config = GenerationConfig(eos_token_id=old.eos_token_id, pad_token_id=50256)
    new = dressed(_tokenizer(_PAIRS), extra=(), eos_token="[END]", bos_token="[BEGIN]")
    made = transfer(lm, old, new, "fvt").model
    assert made.generation_config.eos_token_id == new.eos_token_id
    assert made.generation_config.pad_token_id is None


def test_a_folder_without_special_tokens_is_given_the_models(old):
    lm = tiny_causal_lm(vocab_size=len(old), eos_token_id=[old.eos_token_id, 259])
    made = transfer(lm, old, PreTrainedTokenizerFast(tokenizer_object=_tokenizer(_PAIRS)), "fvt")
    assert made.tokenizer.eos_token == "</s>"
    assert made.model.config.eos_token_id == made.tokenizer.convert_tokens_to_ids(["</s>", "<|end|>"])


def test_generation_ends_at_the_second_end_token(old):
    new = turned(old)
    lm = tiny_causal_lm(vocab_size=len(old))
    ids = torch.tensor([old("some words", add_special_tokens=False)["input_ids"]])
    plain = lm.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0, ids.shape[1] :]
    lm.generation_config = GenerationConfig(eos_token_id=[old.eos_token_id, int(plain[3])], do_sample=False)
    wanted = lm.generate(ids, max_new_tokens=8, pad_token_id=0)[0, ids.shape[1] :]
    made = transfer(lm, old, new, "fvt").model
    written = made.generate(len(old) - 1 - ids, max_new_tokens=8, pad_token_id=0)[0, ids.shape[1] :]
    assert (len(old) - 1 - written).tolist() == wanted.tolist()
    assert len(wanted) <= 4


def test_models_that_count_positions_from_the_pad_id_keep_it(old):
    config = RobertaConfig(
        vocab_size=len(old), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        pad_token_id=old.pad_token_id, max_position_embeddings=300, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    model = RobertaForMaskedLM(config).eval()
    assert transfer(model, old, copy.deepcopy(old), "fvt").model.config.pad_token_id == old.pad_token_id
    with pytest.raises(UserError, match="counts positions from its pad id on"):
        transfer(model, old, turned(old), "fvt")

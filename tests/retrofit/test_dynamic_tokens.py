"""Tables of embeddings and models that read merged tokens, on toys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mintage import catalog
from mintage.errors import UserError
from mintage.models import CausalLM, tiny_causal_lm
from mintage.retrofit.core.embedding_table import EmbeddingTable
from mintage.retrofit.dynamic_tokens import DynamicTokens

TEXTS = ["some words and some more words", "words again", "a"]


@pytest.fixture(scope="module")
def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


@pytest.fixture(scope="module")
def lm(tokenizer):
    return CausalLM(tiny_causal_lm(vocab_size=len(tokenizer), pad_token_id=256), tokenizer, "tiny")


@pytest.fixture(scope="module")
def encoder(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    return BertModel(config).eval()


def plain(tokenizer, texts, side):
    return tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")


# -- models ------------------------------------------------------------------------------------------------------------


def test_without_merges_the_model_is_the_ordinary_one(lm, tokenizer):
    dynamic = DynamicTokens(n_merges=0, provider="mean")(lm)
    inputs = plain(tokenizer, TEXTS, "left")
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        wanted = lm.model(inputs["input_ids"], attention_mask=inputs["attention_mask"], position_ids=positions)
    read = dynamic.prefill(TEXTS)
    assert torch.equal(read.attention_mask, inputs["attention_mask"])
    assert torch.allclose(read.logits, wanted.logits[:, -1], atol=1e-5)
    with torch.no_grad():
        out = lm.model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert dynamic.generate(TEXTS, max_new_tokens=5, do_sample=False) == tokenizer.batch_decode(
        out, skip_special_tokens=True
    )


def test_without_merges_an_encoder_is_the_ordinary_one(encoder, tokenizer):
    dynamic = DynamicTokens(n_merges=0, provider="mean")(encoder, tokenizer)
    inputs = plain(tokenizer, TEXTS, "right")
    with torch.no_grad():
        states = encoder(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    wanted = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert torch.allclose(dynamic.encode(TEXTS), wanted, atol=1e-5)
    merged = DynamicTokens(reduction=1, provider="mean")(encoder, tokenizer)
    assert not torch.allclose(merged.encode(TEXTS), wanted, atol=1e-3)
    assert torch.allclose(merged.encode(TEXTS, n_merges=0), wanted, atol=1e-5)


def test_a_merged_prompt_is_shorter_and_its_texts_do_not_see_each_other(lm):
    dynamic = DynamicTokens(reduction=1, provider="mean")(lm)
    batch = dynamic.merger.encode_batch(TEXTS, reduction=1)
    assert [len(row) for row in batch.tokens] == [6, 2, 1]
    together = dynamic.prefill(TEXTS)
    for place, text in enumerate(TEXTS):  # joined completely, a text alone is cut as it is among others
        assert torch.allclose(dynamic.prefill([text]).logits[0], together.logits[place], atol=1e-5)


def test_what_embed_gives_is_what_the_models_own_generate_takes(lm, tokenizer):
    dynamic = DynamicTokens(reduction=1, provider="mean")(lm)
    out = lm.model.generate(**dynamic.embed(TEXTS), max_new_tokens=4, do_sample=False)
    assert dynamic.generate(TEXTS, max_new_tokens=4, do_sample=False) == tokenizer.batch_decode(
        out, skip_special_tokens=True
    )


def test_embeddings_are_the_providers_and_the_originals(lm, tokenizer):
    weight = lm.model.get_input_embeddings().weight
    for originals in (True, False):
        dynamic = DynamicTokens(reduction=1, provider="sum", originals=originals)(lm)
        rows = dynamic.embed(["ab c"])["inputs_embeds"][0]
        a, b, space, c = tokenizer("ab c")["input_ids"]
        assert torch.allclose(rows, torch.stack([weight[a] + weight[b], weight[space] + weight[c]]))
    dynamic = DynamicTokens(n_merges=0, provider="sum", originals=False)(lm)
    assert dynamic.embed(["ab"])["inputs_embeds"].shape == (1, 2, 32)
    assert b"a" in dynamic.table


def test_special_tokens_keep_their_embeddings(lm, tokenizer):
    dynamic = DynamicTokens(reduction=1, provider="sum", originals=False)(lm)
    end = tokenizer.eos_token_id
    batch = dynamic.merger.merge_ids([[end, *tokenizer("ab")["input_ids"], end]], reduction=1)
    assert [len(row) for row in batch.tokens] == [3]
    rows = dynamic.embed(batch)["inputs_embeds"][0]
    weight = lm.model.get_input_embeddings().weight
    assert torch.equal(rows[0], weight[end])
    assert torch.equal(rows[2], weight[end])


def test_answers_are_scored_in_original_tokens(lm, tokenizer):
    dynamic = DynamicTokens(reduction=1, provider="mean")(lm)
    answers = [" yes", " n", "maybe"]
    found = dynamic.logprobs("some words", answers)
    embeds = dynamic.embed(["some words"])["inputs_embeds"]
    for answer, score in zip(answers, found, strict=True):
        ids = tokenizer(answer, return_tensors="pt")["input_ids"]
        whole = torch.cat([embeds, lm.model.get_input_embeddings()(ids)], 1)
        with torch.no_grad():
            logp = lm.model(inputs_embeds=whole).logits[0, embeds.shape[1] - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(float(logp.gather(-1, ids[0, :, None]).sum()), abs=1e-4)


def test_a_full_cache_changes_nothing(lm):
    roomy = DynamicTokens(reduction=1, provider="mean")(lm)
    narrow = DynamicTokens(reduction=1, provider="mean", cache=7)(lm)
    for texts in (TEXTS, ["other things", "again"], TEXTS):
        assert torch.equal(roomy.embed(texts)["inputs_embeds"], narrow.embed(texts)["inputs_embeds"])
    assert roomy.table.made < narrow.table.made


def test_the_method_can_be_written_as_text():
    made = catalog.build("dynamic-tokens:boundary=word,reduction=0.25,provider=mean", "retrofit")
    assert made == DynamicTokens(boundary="word", reduction=0.25, provider="mean")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda lm, encoder: catalog.build("dynamic-tokens:boundary=words", "retrofit"), "'words' is not one of"),
        (lambda lm, encoder: DynamicTokens(reduction=-0.1), "reduction=-0.1 is out of range"),
        (lambda lm, encoder: DynamicTokens(n_merges=-3), "n_merges=-3 is out of range; pass a number at least 0"),
        (lambda lm, encoder: DynamicTokens(cache=0), "cache=0"),
        (lambda lm, encoder: DynamicTokens(provider="men")(lm), "did you mean 'mean'"),
        (lambda lm, encoder: DynamicTokens()(lm.model), "no tokenizer"),
        (lambda lm, encoder: DynamicTokens(provider="composer")(lm), "were trained for|does not exist"),
        (lambda lm, encoder: DynamicTokens()(lm).prefill([]), "at least one text"),
        (lambda lm, encoder: DynamicTokens()(lm).prefill([""]), "no tokens"),
        (lambda lm, encoder: DynamicTokens()(lm).encode([]), "at least one text"),
        (lambda lm, encoder: DynamicTokens()(lm).encode(["a"], batch_size=0), "batch_size=0"),
        (lambda lm, encoder: DynamicTokens()(lm).logprobs("a", [""]), "answer is empty"),
        (lambda lm, encoder: DynamicTokens()(encoder, lm.tokenizer).generate(["a"]), "is an encoder"),
        (lambda lm, encoder: DynamicTokens()(encoder, lm.tokenizer).prefill(["a"]), "is an encoder"),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(call, told, lm, encoder):
    with pytest.raises(UserError, match=told) as caught:
        call(lm, encoder)
    assert "\n" not in str(caught.value)


# -- the table ---------------------------------------------------------------------------------------------------------


def of_bytes(tokens):
    return torch.tensor([[float(len(t)), float(t[0])] for t in tokens])


def test_a_table_gives_what_is_made_and_makes_it_once():
    asked = []

    def make(tokens):
        asked.extend(tokens)
        return of_bytes(tokens)

    table = EmbeddingTable(make, 2, 3)
    for batch in ([b"a", b"bb", b"a"], [b"bb", b"ccc"], [b"a", b"d"], [b"bb"], [b"ccc", b"a", b"d"]):
        assert torch.equal(table.rows[table.places(batch)], of_bytes(batch))
    assert asked == [b"a", b"bb", b"ccc", b"d", b"bb", b"ccc"]
    assert table.made == len(asked)
    assert b"d" in table
    assert b"bb" not in table


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from([bytes([c]) for c in b"abcdefgh"]), max_size=4), max_size=12))
def test_eviction_never_touches_the_batch_under_way(batches):
    table = EmbeddingTable(of_bytes, 2, 4)
    for batch in batches:
        assert torch.equal(table.rows[table.places(batch)], of_bytes(batch).reshape(-1, 2))


def test_a_table_smaller_than_a_batch_says_so():
    with pytest.raises(UserError, match="cache=2 rows, but this batch has 3"):
        EmbeddingTable(of_bytes, 2, 2).places([b"a", b"b", b"c"])

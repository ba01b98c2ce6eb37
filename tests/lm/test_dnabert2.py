"""DNABERT-2's encoder: equality with the authors' code, their checkpoints, and what a user may get wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from mintage.errors import Notice, UserError
from mintage.lm.core.alibi import ScoreBias, alibi_bias, alibi_slopes, biased_attention
from mintage.lm.dnabert2 import DNABERT2, DNABERT2Config, DNABERT2ForMaskedLM, DNABERT2ForSequenceClassification

VECTORS = Path(__file__).parent.parent / "vectors" / "dnabert2"
NAMES = {
    "attention.self.Wqkv.weight": "qkv_weight",
    "attention.self.Wqkv.bias": "qkv_bias",
    "attention.output.dense.weight": "attn_out_weight",
    "attention.output.dense.bias": "attn_out_bias",
    "attention.output.LayerNorm.weight": "attn_norm_weight",
    "attention.output.LayerNorm.bias": "attn_norm_bias",
    "mlp.gated_layers.weight": "glu_in_weight",
    "mlp.wo.weight": "glu_out_weight",
    "mlp.wo.bias": "glu_out_bias",
    "mlp.layernorm.weight": "mlp_norm_weight",
    "mlp.layernorm.bias": "mlp_norm_bias",
}


def recorded(name):
    return {key: torch.from_numpy(value) for key, value in np.load(VECTORS / name).items()}


def encoder(held):
    layers = sum(key.endswith("_qkv_weight") for key in held)
    (vocabulary, width), inner = held["word_embeddings"].shape, held["layer0_glu_out_weight"].shape[1]
    sizes = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    config = DNABERT2Config(**sizes, num_attention_heads=int(held["num_heads"]))
    model = DNABERT2(config, add_pooling_layer=False).eval()
    weights = {
        f"encoder.layer.{i}.{ours}": held[f"layer{i}_{name}"] for i in range(layers) for ours, name in NAMES.items()
    }
    weights["embeddings.word_embeddings.weight"] = held["word_embeddings"]
    weights["embeddings.token_type_embeddings.weight"] = torch.stack([held["type_embedding_0"], torch.zeros(width)])
    for name in ("weight", "bias"):
        weights[f"embeddings.LayerNorm.{name}"] = held[f"embedding_norm_{name}"]
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("name", sorted(path.name for path in VECTORS.glob("*.npz")))
def test_states_are_those_of_the_authors_code(name):
    held = recorded(name)
    heads, length = held["alibi_bias"].shape[:2]
    assert torch.allclose(alibi_slopes(heads), held["alibi_slopes"])
    assert torch.allclose(alibi_bias(heads, length), held["alibi_bias"])
    model = encoder(held)
    out = model(held["input_ids"], held["attention_mask"], output_hidden_states=True)
    assert torch.allclose(out.last_hidden_state, held["last_hidden_state"], atol=1e-6)
    tokens = held["attention_mask"] == 1
    assert torch.allclose(out.hidden_states[0][tokens], held["embedding_output"][tokens], atol=1e-6)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    trained = model.train()
    for module in trained.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    states = trained(held["input_ids"], held["attention_mask"]).last_hidden_state
    assert torch.allclose(states, held["last_hidden_state"], atol=3e-5)  # the fused kernel


def test_slopes_halve_and_other_numbers_take_every_second_of_the_next_power():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    assert alibi_slopes(3).tolist() == pytest.approx([2**-4, 2**-8, 2**-2])
    assert alibi_slopes(12).tolist() == pytest.approx(
        [2**-i for i in range(1, 9)] + [2 ** -(i + 0.5) for i in range(4)]
    )
    for heads in range(1, 40):
        slopes = alibi_slopes(heads)
        assert len(set(slopes.tolist())) == heads
        assert bool((slopes > 0).all())
        bias = alibi_bias(heads, 5)
        assert torch.equal(bias, bias.transpose(1, 2))
        assert torch.allclose(bias[:, 0, 4], -4 * slopes)
    with pytest.raises(UserError, match="n_heads=0"):
        alibi_slopes(0)


@pytest.mark.parametrize("exact", [True, False])
def test_attention_in_pieces_is_attention_at_once(monkeypatch, exact):
    drawn = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 23, 6, generator=drawn)
    tokens = torch.arange(23) < torch.tensor([[23], [9]])
    whole = biased_attention(query, key, value, ScoreBias(alibi_slopes(4), 23, tokens), exact=exact)
    monkeypatch.setattr("mintage.lm.core.alibi.QUERIES", 5)
    bias = ScoreBias(alibi_slopes(4), 23, tokens)
    assert bias[10:15].shape == (2, 4, 5, 23)
    assert torch.allclose(biased_attention(query, key, value, bias, exact=exact), whole, atol=1e-5)
    scores = query @ key.transpose(-1, -2) / 6**0.5 + alibi_bias(4, 23)
    scores = scores.masked_fill(~tokens[:, None, None], -torch.inf)
    assert torch.allclose(scores.softmax(-1) @ value, whole, atol=1e-5)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    """A folder as the authors publish theirs: a BERT by its configuration, with tensors of MosaicBERT's names."""
    model = DNABERT2ForMaskedLM.tiny()
    config = json.loads(model.config.to_json_string())
    config |= {"model_type": "bert", "position_embedding_type": "absolute", "alibi_starting_size": 512}
    config |= {"architectures": ["BertForMaskedLM"], "hidden_act": "gelu", "classifier_dropout": None}
    config["auto_map"] = {"AutoModelForMaskedLM": "owner/remote--bert_layers.BertForMaskedLM"}
    for name in ("positions", "pad_token_id", "tie_word_embeddings"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_a_pickle_is_not_opened(published):
    (published / "model.safetensors").rename(published / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"a pickle \(.bin\), which is not opened"):
        DNABERT2ForMaskedLM.from_pretrained(published)
    with pytest.raises(UserError, match="use_safetensors=False would open a pickle"):
        DNABERT2ForMaskedLM.from_pretrained(published, use_safetensors=False)


def test_the_published_layout_loads_without_remote_code(published, recwarn):
    ids = torch.arange(5, 25)[None]
    wanted = DNABERT2ForMaskedLM.tiny()
    loaded = DNABERT2ForMaskedLM.from_pretrained(published).eval()
    assert torch.equal(loaded(ids).logits, wanted(ids).logits)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight
    states = DNABERT2.from_pretrained(published).eval()(ids).last_hidden_state
    assert torch.equal(states, wanted.bert(ids).last_hidden_state)
    assert not [warning for warning in recwarn if issubclass(warning.category, Notice)]
    with pytest.warns(Notice, match="no weights for"):
        classifier = DNABERT2ForSequenceClassification.from_pretrained(published, num_labels=3).eval()
    assert classifier(ids).logits.shape == (1, 3)
    assert torch.equal(classifier.bert(ids).last_hidden_state, states)


def test_what_was_loaded_once_is_loaded_by_auto_classes_afterwards(published, tmp_path):
    DNABERT2.from_pretrained(published).save(tmp_path / "mine", {})
    assert isinstance(AutoModel.from_pretrained(tmp_path / "mine"), DNABERT2)
    with pytest.warns(Notice, match="no weights for classifier"):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mine", num_labels=4)
    assert isinstance(model, DNABERT2ForSequenceClassification)
    assert model.classifier.out_features == 4


def test_a_bert_with_position_embeddings_is_refused(tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=40, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks .* weights of DNABERT2, e\.g\. .*Wqkv") as told:
        DNABERT2.from_pretrained(tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=768"),
        ({"hidden_size": 0}, "hidden_size=0 is out of range"),
        ({"vocab_size": 10.5}, "vocab_size=10.5 is out of range; pass a whole number"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0 is out of range"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps='small' is out of range"),
        ({"positions": "rotary"}, "positions='rotary' is not one of alibi, learned"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ],
)
def test_sizes_out_of_range_are_told(settings, line):
    with pytest.raises(UserError, match=line):
        DNABERT2Config(**settings)


def test_the_published_sizes_are_the_defaults():
    with torch.device("meta"):
        model = DNABERT2ForMaskedLM(DNABERT2Config())
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(117e6, rel=0.02)


# -- use ---------------------------------------------------------------------------------------------------------------


def test_a_classifier_reads_the_first_token_wherever_the_row_is_filled():
    model = DNABERT2ForSequenceClassification.tiny()
    ids = torch.arange(5, 15)[None]
    alone = model(ids, labels=torch.tensor([1]))
    filling, mask = torch.full((1, 4), 3), torch.tensor([[0] * 4 + [1] * 10])
    assert torch.allclose(model(torch.cat([filling, ids], 1), mask).logits, alone.logits, atol=1e-5)
    assert torch.allclose(model(torch.cat([ids, filling], 1), mask.flip(1)).logits, alone.logits, atol=1e-5)
    assert torch.allclose(alone.loss, -alone.logits.log_softmax(-1)[0, 1])
    with pytest.raises(UserError, match="no class 2; the model has 0 to 1"):
        model(ids, labels=torch.tensor([2]))


def test_segments_move_the_states():
    model = DNABERT2ForMaskedLM.tiny().bert
    ids = torch.arange(5, 15)[None]
    segments = torch.zeros_like(ids)
    assert torch.equal(model(ids, token_type_ids=segments).last_hidden_state, model(ids).last_hidden_state)
    assert not torch.allclose(model(ids, token_type_ids=1 - segments).last_hidden_state, model(ids).last_hidden_state)


def test_learnt_positions_end_where_alibi_goes_on():
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = DNABERT2Config(**sizes, intermediate_size=16, positions="learned", max_position_embeddings=32)
    model = DNABERT2ForMaskedLM(config).eval()
    ids = torch.randint(5, 20, (1, 32))
    assert not torch.allclose(model(ids.flip(1)).logits.flip(1), model(ids).logits, atol=1e-4)
    with pytest.raises(UserError, match="a row has 33 tokens, learnt positions end at 32"):
        model(torch.zeros(1, 33, dtype=torch.long))


def test_half_precision_keeps_long_rows_finite():
    model = DNABERT2ForMaskedLM.tiny().to(torch.bfloat16)
    ids = torch.randint(5, 40, (2, 700))
    mask = (torch.arange(700) < torch.tensor([[700], [40]])).long()
    assert model(ids, mask).logits.isfinite().all()

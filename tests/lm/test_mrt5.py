"""MrT5: equal to the authors' code, to T5 where nothing is deleted, and hard deletion to soft deletion without end."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, LlamaConfig, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from mintage.errors import Notice, UserError
from mintage.lm.core.deletion import (
    DeleteGate,
    PIController,
    deletion_rate,
    fixed_gate,
    gate_loss,
    hard_delete,
    random_gate,
)
from mintage.lm.core.softmax1 import score_penalty, softmax1
from mintage.lm.mrt5 import MrT5, MrT5Config

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "mrt5").glob("*.npz"))
SIZES = {"vocab_size": 384, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 4}
SIZES |= {"num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0}


def near(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=0, atol=tolerance)


@pytest.fixture(params=VECTORS, ids=lambda path: path.stem)
def held(request):
    found = np.load(request.param)
    return {name: torch.from_numpy(found[name]) for name in found.files}


@pytest.fixture
def model():
    return MrT5.tiny()


@pytest.fixture(scope="module")
def ids():
    """Three rows of bytes with 0, 5 and 14 of padding."""
    drawn = torch.randint(3, 259, (3, 20), generator=torch.Generator().manual_seed(1))
    drawn[1, 15:] = 0
    drawn[2, 6:] = 0
    return drawn


@pytest.fixture(scope="module")
def labels():
    return torch.randint(3, 259, (3, 7), generator=torch.Generator().manual_seed(2))


def make_t5(seed=0, **settings):
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(T5Config(**SIZES | {"decoder_start_token_id": 0} | settings)).eval()


@pytest.fixture(scope="module")
def byt5(tmp_path_factory):
    """A ByT5 as released ones are: what reads bytes is not what writes them."""
    made = make_t5(tie_word_embeddings=False)
    made.lm_head.weight = torch.nn.Parameter(torch.randn_like(made.lm_head.weight))
    folder = tmp_path_factory.mktemp("byt5")
    made.save_pretrained(folder)
    return folder


# -- the authors' code -------------------------------------------------------------------------------------------------


def test_the_gate_and_what_it_deletes_are_the_authors(held):
    padding = held["ids"] == 0
    gate = DeleteGate(held["hidden"].shape[-1], float(held["scale_k"]), float(held["ln_eps"]))
    gate.layer_norm.weight.data = held["ln_weight"]
    gate.feed_forward.weight.data = held["gate_weight"][None]
    gate.feed_forward.bias.data = held["gate_bias"]
    values, logits = gate(held["hidden"], padding)
    assert near(values, held["gate"])
    assert near(logits, held["gate_logit"])
    kept = hard_delete(held["hidden"], held["gate"], float(held["threshold"]), held["pos_bias"])
    assert torch.equal(kept.index, held["kept_index"])
    assert torch.equal(kept.mask, held["kept_mask"])
    assert near(kept.hidden, held["hidden_short"])
    both = (kept.mask[:, None, :, None] & kept.mask[:, None, None, :]).expand_as(kept.bias)
    assert near(kept.bias[both], held["pos_bias_short"][both])
    assert near(gate_loss(values, padding), held["gate_loss"].float())
    assert near(deletion_rate(values, padding, float(held["threshold"])), held["deletion_rate"].float())


def test_softmax1_and_the_penalty_are_the_authors(held):
    assert near(softmax1(held["scores"]), held["attn_softmax1"])
    assert near(softmax1(held["scores"] + held["gate"][:, None, None]), held["attn_softmax1_gated"])
    assert near(score_penalty(3 * held["scores"]), held["score_reg"].float())


def test_the_controller_is_the_authors(held):
    controller = PIController(float(held["target_rate"]), float(held["kp"]), float(held["ki"]))
    found = [controller.step(observed) for observed in held["observed_rate"].tolist()]
    np.testing.assert_allclose(found, held["alpha_trace"].numpy(), rtol=0, atol=1e-12)


# -- softmax1 ----------------------------------------------------------------------------------------------------------


def test_softmax1_is_softmax_beside_a_score_of_nothing():
    scores = 5 * torch.randn(4, 9, dtype=torch.float64)
    assert near(softmax1(scores), torch.cat([torch.zeros(4, 1), scores], 1).softmax(1)[:, 1:], 1e-12)
    assert (softmax1(scores).sum(1) < 1).all()
    with_nothing = torch.cat([scores, torch.full((4, 1), -math.inf)], 1)
    assert near(softmax1(with_nothing)[:, :-1], softmax1(scores), 0)
    for low in (-1e9, -3e38, -math.inf):
        assert not softmax1(torch.full((2, 3), low)).any()
    assert near(softmax1(torch.full((1, 2), 1e4)), torch.full((1, 2), 0.5))
    assert softmax1(torch.zeros(2, 0)).shape == (2, 0)


def test_softmax1_has_the_gradient_of_its_formula():
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax1, scores)


def test_both_kernels_of_softmax1_give_the_same(model, ids, labels):
    with torch.no_grad():
        fused = model(ids, labels=labels)
        assert model.config._attn_implementation == model.decoder.config._attn_implementation == "softmax1_sdpa"
        model.set_attn_implementation("eager")
        plain = model(ids, labels=labels, output_attentions=True)
    assert model.encoder.config._attn_implementation == "softmax1_eager"
    assert near(fused.logits, plain.logits)
    for weights in (*plain.encoder_attentions, *plain.decoder_attentions, *plain.cross_attentions):
        assert (weights.sum(-1) < 1 + 1e-6).all()
    later = plain.decoder_attentions[0].triu(1)
    assert not later.any()


# -- T5 where nothing is deleted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("gate", ["none", "zero"])
def test_without_deletion_and_softmax1_it_is_the_unmodified_t5(byt5, ids, labels, kernel, gate):
    wanted = T5ForConditionalGeneration.from_pretrained(byt5, attn_implementation=kernel).eval()
    settings = {"deletion_type": "none"} if gate == "none" else {"delete_gate_layer": 2}
    mine = MrT5.from_pretrained(byt5, use_softmax1=False, attn_implementation=kernel, **settings)
    if gate == "zero":
        mine.delete_gate.scale = 0.0
    mask = (ids != 0).long()
    with torch.no_grad():
        theirs = wanted(ids, attention_mask=mask, labels=labels)
        for hard in (True, False):
            found = mine(ids, attention_mask=mask, labels=labels, hard=hard)
            assert torch.equal(found.logits, theirs.logits)
            assert torch.equal(found.loss, theirs.loss)
    assert torch.equal(
        mine.generate(ids, max_new_tokens=6), wanted.generate(ids, attention_mask=mask, max_new_tokens=6)
    )


def test_a_byt5_folder_gets_a_gate_that_begins_by_keeping(byt5, ids):
    mine = MrT5.from_pretrained(byt5, delete_gate_layer=2)
    scores = mine.delete_gate.feed_forward
    assert scores.bias.tolist() == [1.0]
    assert 0 < scores.weight.abs().max() <= math.sqrt(6 / (32 + 1))
    assert not torch.equal(mine.lm_head.weight, mine.shared.weight)
    with torch.no_grad():
        found = mine(ids, labels=ids)
    assert found.gate[ids != 0].median() > mine.config.threshold
    wide = MrT5.from_pretrained(byt5, delete_gate_layer=2, gate_bias=5.0)
    assert wide.delete_gate.feed_forward.bias.item() == 5
    assert (found.gate[ids == 0] == mine.config.sigmoid_mask_scale).all()


def test_fresh_weights_are_drawn_as_t5_draws_them():
    theirs = dict(make_t5(d_model=64, d_kv=16).named_parameters())
    torch.manual_seed(1)
    mine = dict(MrT5(MrT5Config(**SIZES | {"d_model": 64, "d_kv": 16})).named_parameters())
    assert theirs.keys() == {name for name in mine if ".delete_gate." not in name}
    for name, wanted in theirs.items():
        if wanted.numel() > 500:
            assert mine[name].std().item() == pytest.approx(wanted.std().item(), rel=0.15), name
    assert mine["encoder.block.3.delete_gate.feed_forward.bias"].item() == 1
    assert mine["encoder.block.3.delete_gate.feed_forward.weight"].abs().max() <= math.sqrt(6 / 65)


# -- hard and soft deletion --------------------------------------------------------------------------------------------


def softly(model, ids, labels, gate):
    """What the model gives under soft deletion by a gate that is given."""
    model.delete_gate.forward = lambda hidden, padding: (gate, gate)
    with torch.no_grad():
        return model(ids, labels=labels, hard=False)


def test_hard_deletion_is_soft_deletion_without_end(model, ids, labels):
    with torch.no_grad():
        hard = model(ids, labels=labels)
    deleted = hard.gate <= model.config.threshold
    soft = softly(model, ids, labels, torch.where(deleted, -1e9, 0.0))
    assert near(hard.logits, soft.logits)
    for row in range(len(ids)):
        stays = (~deleted[row]).nonzero()[:, 0]
        assert len(stays)
        assert near(hard.encoder_last_hidden_state[row, : len(stays)], soft.encoder_last_hidden_state[row, stays])


def test_positions_count_from_where_bytes_stood(model, ids, labels):
    """A bias made anew for the shorter row is another model."""
    with torch.no_grad():
        hard = model(ids[:1], labels=labels[:1])
        kept = hard_delete(torch.zeros(1, 20, 1), hard.gate, -15, torch.arange(400.0).view(1, 1, 20, 20))
    index = hard.kept_index[0]
    assert kept.bias[0, 0].tolist() == [[20 * i + j for j in index.tolist()] for i in index.tolist()]


def test_a_batch_pays_for_its_longest_row(model, ids):
    with torch.no_grad():
        found = model(ids, labels=ids)
    counts = (found.gate > model.config.threshold).sum(1)
    assert found.encoder_last_hidden_state.shape[1] == counts.max() < ids.shape[1]
    for row, count in zip(found.kept_index.tolist(), counts.tolist(), strict=True):
        assert row[:count] == sorted(set(row[:count]))
        assert not any(row[count:])
    real = ids != 0
    assert found.deletion_rate == pytest.approx(1 - counts.sum().item() / real.sum().item())
    assert found.gate_loss == pytest.approx(found.gate[real].mean().item())


@pytest.mark.parametrize("hard", [True, False])
def test_padding_and_other_rows_change_nothing(model, ids, labels, hard):
    with torch.no_grad():
        together = model(ids, labels=labels, hard=hard)
        order = torch.tensor([2, 0, 1])
        turned = model(ids[order], labels=labels[order], hard=hard)
        assert near(turned.logits, together.logits[order])
        for row, length in enumerate((20, 15, 6)):
            alone = model(ids[row : row + 1, :length], labels=labels[row : row + 1], hard=hard)
            assert near(alone.logits[0], together.logits[row])
            assert near(alone.gate[0], together.gate[row, :length])


@pytest.mark.parametrize("softmax1", [True, False])
def test_a_row_that_keeps_nothing_is_the_same_in_every_batch(ids, labels, softmax1):
    torch.manual_seed(0)
    model = MrT5(MrT5Config(**SIZES, delete_gate_layer=1, use_softmax1=softmax1)).eval()
    gate = torch.zeros(3, 20)
    gate[1] = -30
    model.delete_gate.forward = lambda hidden, padding: (gate[: len(hidden)], gate[: len(hidden)])
    with torch.no_grad():
        three, two = model(ids, labels=labels), model(ids[:2], labels=labels[:2])
    assert three.logits.isfinite().all()
    assert near(three.logits[1], two.logits[1])


def test_deleting_all_is_told_in_one_line(model, ids):
    model.delete_gate.feed_forward.bias.data.fill_(-1e4)
    with pytest.raises(UserError, match=r"all 60 bytes of the batch are deleted .* hard=False"):
        model(ids, labels=ids)
    model(ids, labels=ids, hard=False)
    model.encoder.config.hard_delete_train_prob = 1.0
    assert model.train()(ids, labels=ids).loss.isfinite()  # nobody asked for this batch to be hard


@pytest.mark.parametrize("beams", [1, 3])
def test_cached_generation_equals_uncached(model, ids, beams):
    settings = {"max_new_tokens": 10, "num_beams": beams, "do_sample": False}
    written = model.generate(ids, **settings)
    assert torch.equal(written, model.generate(ids, use_cache=False, **settings))
    alone = model.generate(ids[1:2, :15], **settings)
    assert torch.equal(written[1, : alone.shape[1]], alone[0])


def test_states_that_were_encoded_before_can_be_passed(model, ids, labels):
    with torch.no_grad():
        encoded = model.get_encoder()(ids)
        assert near(model(encoder_outputs=encoded, labels=labels).logits, model(ids, labels=labels).logits)
        plain = BaseModelOutput(last_hidden_state=torch.randn(3, 20, 32))
        masked = model(encoder_outputs=plain, attention_mask=(ids != 0).long(), labels=labels)
    assert masked.gate is None
    as_tuple = model(ids, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple)


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_is_soft_but_for_its_share_of_hard_batches(model, ids, labels):
    model.train()
    assert model(ids, labels=labels).encoder_last_hidden_state.shape[1] == 20
    model.encoder.config.hard_delete_train_prob = 0.5
    torch.manual_seed(0)
    lengths = [model(ids, labels=labels).encoder_last_hidden_state.shape[1] for _ in range(40)]
    assert 10 < sum(length < 20 for length in lengths) < 30


def test_the_loss_moves_the_gate_towards_deleting(model, ids, labels):
    model.train()
    found = model(ids, labels=labels, gate_weight=2.0)
    assert found.loss.item() == pytest.approx((found.cross_entropy + 2 * found.gate_loss).item())
    (2 * found.gate_loss).backward()
    bias = model.delete_gate.feed_forward.bias
    assert bias.grad.item() > 0  # a step against it lowers g, and so G
    model.zero_grad()
    model(ids, labels=labels).cross_entropy.backward()
    assert bias.grad.abs().item() > 0


def test_high_scores_cost_only_where_the_gate_counts(ids, labels):
    torch.manual_seed(0)
    model = MrT5(MrT5Config(**SIZES, delete_gate_layer=2, scores_loss_coeff=0.5)).train()

    def loss():
        found = model(ids, labels=labels)
        return (found.loss - found.cross_entropy).item()

    def sharpen(attention):
        attention.q.weight.data *= 60

    plain = loss()
    for block in (model.encoder.block[0], model.decoder.block[0]):
        sharpen(block.layer[0].SelfAttention)
    assert loss() == pytest.approx(plain, abs=0.2)
    sharpen(model.encoder.block[3].layer[0].SelfAttention)
    after = loss()
    assert after > plain + 1
    sharpen(model.decoder.block[1].layer[1].EncDecAttention)
    assert loss() > after + 1
    assert model.eval()(ids, labels=labels).loss == model(ids, labels=labels).cross_entropy


def test_padding_has_no_scores(ids):
    scores = torch.full((1, 4), 9.0)
    assert score_penalty(scores, hidden=torch.tensor([[False, True, True, True]])).item() == 1.0


def test_gumbel_noise_explores_in_training_only():
    gate = DeleteGate(8, gumbel=True)
    hidden = torch.randn(2, 5, 8)
    assert not torch.equal(gate(hidden)[0], gate(hidden)[0])
    gate.eval()
    assert torch.equal(gate(hidden)[0], gate(hidden)[0])


def test_the_controller_lets_go_when_too_much_is_deleted():
    controller = PIController(0.3, kp=0.5, ki=1e-2)
    rising = [controller.step(0.0) for _ in range(20)]
    assert rising == sorted(rising)
    falling = [controller.step(0.9) for _ in range(60)]
    assert falling[-1] == 0
    assert min(falling) == 0
    other = PIController(0.3, kp=0.5, ki=1e-2)
    other.load_state_dict(controller.state_dict())
    assert [other.step(0.0) for _ in range(80)] == [controller.step(0.0) for _ in range(80)]


def test_the_controller_steers_a_gate_to_the_share_that_is_asked_for():
    """A gate over fixed scores, and a task that pays for every byte deleted: only the weight can hold it in between."""
    torch.manual_seed(0)
    scores, bias = torch.randn(1, 4000), torch.ones((), requires_grad=True)
    padding = torch.zeros(1, 4000, dtype=torch.bool)
    controller, optimiser = PIController(0.4, ki=1e-3), torch.optim.SGD([bias], lr=0.2)
    alpha, rates = controller.alpha, []
    for _ in range(400):
        gate = -30 * torch.sigmoid(-(scores + bias))
        task = 0.5 * torch.sigmoid(-(scores + bias)).mean()
        (task + alpha * gate_loss(gate, padding)).backward()
        optimiser.step()
        optimiser.zero_grad()
        rates.append(deletion_rate(gate.detach(), padding, -15.0).item())
        alpha = controller.step(rates[-1])
    assert np.mean(rates[-50:]) == pytest.approx(0.4, abs=0.03)


# -- rivals ------------------------------------------------------------------------------------------------------------


def test_the_random_gate_deletes_a_gaussian_share_of_the_bytes():
    padding = torch.zeros(8, 250, dtype=torch.bool)
    padding[:, 200:] = True
    torch.manual_seed(0)
    gates = [random_gate(padding, 0.4, -30.0) for _ in range(200)]
    shares = torch.stack([deletion_rate(gate, padding, -15) for gate in gates])
    assert shares.mean().item() == pytest.approx(0.4, abs=0.01)
    assert shares.std().item() == pytest.approx(0.05, abs=0.01)
    assert all((gate[padding] == -30).all() and set(gate.unique().tolist()) == {-30.0, 0.0} for gate in gates)
    torch.manual_seed(0)
    assert torch.equal(random_gate(padding, 0.4, -30.0), gates[0])


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.5, ["the ", "quic", "fo"]), (0.3, ["the q", "quick", "fox"]), (0.99, ["t", "q", "f"])],
    ids=["half", "less", "nearly all"],
)
def test_the_fixed_gate_keeps_the_first_of_every_segment(share, kept):
    del kept  # told by the ceiling of each segment's share
    text = b"the quick, fox"
    row = torch.tensor([[byte + 3 for byte in text] + [0, 0]])
    padding = row == 0
    stays = fixed_gate(row, padding, share, -30.0)[0] == 0
    wanted = []
    for segment in ("the ", "quick,", " ", "fox"):
        keep = math.ceil((1 - share) * len(segment) - 1e-9)
        wanted += [True] * keep + [False] * (len(segment) - keep)
    assert stays.tolist() == [*wanted, False, False]
    left = torch.cat([torch.zeros(1, 3, dtype=torch.long), row[:, :-2]], 1)
    assert fixed_gate(left, left == 0, share, -30.0)[0, 3:].tolist() == torch.where(stays[:-2], 0.0, -30.0).tolist()


@pytest.mark.parametrize("kind", ["random", "fixed"])
def test_rivals_delete_their_share_hard(kind, ids, labels):
    torch.manual_seed(0)
    settings = {"deletion_type": kind, f"{kind}_deletion_{'probability' if kind == 'random' else 'amount'}": 0.6}
    model = MrT5(MrT5Config(**SIZES, delete_gate_layer=2, **settings)).eval()
    found = model(ids, labels=labels)
    assert 0.3 < found.deletion_rate < 0.8
    assert found.encoder_last_hidden_state.shape[1] < 20
    assert not [name for name, _ in model.named_parameters() if "delete_gate" in name]
    if kind == "fixed":
        with pytest.raises(UserError, match="pass input_ids"):
            model(inputs_embeds=torch.randn(1, 5, 32), labels=labels[:1])


# -- files -------------------------------------------------------------------------------------------------------------


def test_saving_changes_nothing_and_auto_classes_know_it(model, ids, labels, tmp_path):
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    wanted = model(ids, labels=labels).logits
    for loaded in (MrT5.from_pretrained(tmp_path), AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
        assert type(loaded) is MrT5
        assert torch.equal(loaded.eval()(ids, labels=labels).logits, wanted)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), MrT5Config)
    assert MrT5.from_pretrained(tmp_path, output_loading_info=True)[1]["missing_keys"] == set()


def test_the_authors_checkpoints_have_the_same_names(model):
    names = {name for name, _ in model.named_parameters() if "delete_gate" in name}
    parts = ("layer_norm.weight", "feed_forward.weight", "feed_forward.bias")
    assert names == {f"encoder.block.1.delete_gate.{part}" for part in parts}


def test_a_model_goes_on_from_a_byt5_and_comes_back(byt5, ids, labels, tmp_path):
    mine = MrT5.from_pretrained(byt5, delete_gate_layer=2, sigmoid_mask_scale=-20.0)
    mine.save_pretrained(tmp_path)
    again = MrT5.from_pretrained(tmp_path)
    assert again.config.threshold == -10
    assert torch.equal(again(ids, labels=labels).logits, mine(ids, labels=labels).logits)


def test_a_model_without_a_gate_can_get_one(ids, labels, tmp_path):
    torch.manual_seed(0)
    plain = MrT5(MrT5Config(**SIZES, deletion_type="none")).eval()
    plain.save_pretrained(tmp_path)
    gated = MrT5.from_pretrained(tmp_path, deletion_type="scaled_sigmoid", delete_gate_layer=1)
    assert gated.delete_gate.feed_forward.bias.item() == 1
    gated.delete_gate.scale = 0.0
    assert torch.equal(gated(ids, labels=labels).logits, plain(ids, labels=labels).logits)


def test_another_model_is_refused_in_one_line(byt5, tmp_path):
    LlamaConfig().save_pretrained(tmp_path / "llama")
    (tmp_path / "empty").mkdir()
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_text((byt5 / "config.json").read_text())
    (torn / "model.safetensors").write_bytes((byt5 / "model.safetensors").read_bytes()[:500])
    for name, said in (("llama", "is a llama; pass a T5"), ("empty", "of no kind"), ("torn", "cannot load")):
        with pytest.raises(UserError, match=said) as error:
            MrT5.from_pretrained(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_checkpoint_that_lacks_weights_or_has_others_is_told(byt5, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(byt5 / "model.safetensors")
    (tmp_path / "config.json").write_text((byt5 / "config.json").read_text())
    gone = "encoder.block.3.layer.1.DenseReluDense.wi_0.weight"
    save_file({k: t for k, t in weights.items() if k != gone}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lacks 1 weights of MrT5, e.g. {gone}"):
        MrT5.from_pretrained(tmp_path)
    save_file(weights | {"pooler": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.warns(Notice, match="does not use, e.g. pooler"):
        MrT5.from_pretrained(tmp_path)
    config = json.loads((byt5 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_ff": 24}))
    with pytest.raises(UserError) as error:
        MrT5.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"delete_gate_layer": 4}, "delete_gate_layer=4 .* pass 1 to 3"),
        ({"delete_gate_layer": 0}, "delete_gate_layer=0 .* pass 1 to 3"),
        ({"deletion_type": "learnt"}, "deletion_type='learnt'; known: fixed, none, random, scaled_sigmoid"),
        ({"deletion_type": "fixd"}, "did you mean 'fixed'"),
        ({"random_deletion_probability": 1.0}, r"random_deletion_probability=1.0 .* in \(0, 1\)"),
        ({"fixed_deletion_amount": 0.0}, r"fixed_deletion_amount=0.0 .* in \(0, 1\)"),
        ({"hard_delete_train_prob": 1.5}, r"in \[0, 1\]"),
        ({"sigmoid_mask_scale": 3.0}, "sigmoid_mask_scale=3.0 .* below 0"),
        ({"deletion_threshold": -31.0}, "deletion_threshold=-31.0"),
        ({"scores_loss_coeff": -1.0}, "at least 0"),
        ({"scores_loss_coeff": 0.5, "use_softmax1": False}, "needs use_softmax1=True"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_are_one_line(settings, said):
    with pytest.raises(UserError, match=said):
        MrT5Config(**SIZES | settings)


def test_wrong_calls_are_one_line(model, ids):
    with pytest.raises(UserError, match=r"target=1.0 is outside \(0, 1\)"):
        PIController(1.0)
    with pytest.raises(UserError, match=r"attention_mask has shape \(3, 4\); pass one of \(3, 20\)"):
        model(ids, attention_mask=torch.ones(3, 4, dtype=torch.long), labels=ids)
    with pytest.raises(UserError, match="one of the two"):
        model(labels=ids)
    with pytest.raises(UserError, match="softmax1 has no 'flex_attention'"):
        model.set_attn_implementation("flex_attention")

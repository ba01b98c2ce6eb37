"""MAGNET: equal to the authors' functions, a predictor for every script, segments that no later byte moves."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from mintage.errors import Notice, UserError
from mintage.lm.baselines import EntropyPatches
from mintage.lm.core.boundaries import BoundaryPredictor, binomial_nats, pool, unpool
from mintage.lm.core.folder import load_byte_lm
from mintage.lm.core.reading import seeded
from mintage.lm.core.scripts import running_letters, script_of
from mintage.lm.core.windows import byte_windows, hold_out
from mintage.lm.magnet import ANY, Magnet, MagnetConfig
from mintage.lm.training.magnet import MagnetTraining, words_per_byte
from mintage.lm.training.segment_baselines import DynamicPoolingTraining, EntropyPatchesTraining
from mintage.testing.settings import without_shape_checks

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "magnet").glob("*.npz"))
SMALL = {"width": 16, "byte_layers": 1, "layers": 1, "heads": 2}
ENGLISH = b"The moon pulls the sea, and the sea follows."
RUSSIAN = "Луна тянет море.".encode()


def ids(text):
    return torch.tensor([list(text)])


def make(scripts, **more):
    return seeded(Magnet, MagnetConfig(scripts=scripts, **{**SMALL, **more}))


@pytest.fixture(params=VECTORS, ids=lambda path: path.stem)
def held(request):
    found = np.load(request.param)
    return {name: torch.from_numpy(np.asarray(found[name])) for name in found.files}


@pytest.fixture
def chosen(held):
    """Return states with rows first, the predictor, and what it says."""
    states = held["hidden"].transpose(0, 1)
    predictor = BoundaryPredictor(states.shape[2], len(held["bp_b1"]), float(held["prior"]), float(held["temp"]))
    with torch.no_grad():
        predictor.inner.weight.copy_(held["bp_w1"])
        predictor.inner.bias.copy_(held["bp_b1"])
        predictor.outer.weight.copy_(held["bp_w2"][None])
        predictor.outer.bias.copy_(held["bp_b2"])
    return states, predictor, predictor(states, held["uniform"])


def near(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=0, atol=tolerance)


def test_choices_are_the_authors(held, chosen):
    soft, hard, logit = chosen[2]
    assert near(soft, held["soft"])
    assert torch.equal(hard.detach().round(), held["hard"])
    assert near(logit, held["boundary_logit"])


def test_pooling_there_and_back_is_the_authors_with_its_gradient(held, chosen):
    states, _, (_, hard, logit) = chosen
    pooled = pool(states, hard, held["null_group"])
    theirs = held["shortened"].transpose(0, 1)
    assert pooled.shape == theirs.shape
    for row, count in enumerate(held["hard"].sum(1).long().tolist()):
        assert near(pooled[row, : count + 1], theirs[row, : count + 1])
    back = unpool(pooled, hard)
    assert near(back, held["upsampled"].transpose(0, 1))
    (gradient,) = torch.autograd.grad((back * held["probe"]).sum(), logit)
    assert near(gradient, held["grad_upsampled_dot_wrt_logit"], 1e-4)


def test_the_prior_is_the_authors_with_its_gradient(held, chosen):
    _, predictor, (_, hard, logit) = chosen
    loss = predictor.prior_loss(hard)
    assert near(loss, held["boundary_loss_lm"])
    assert near(predictor.prior_loss(hard, held["attention_mask"].bool()), held["boundary_loss_padded"])
    (gradient,) = torch.autograd.grad(loss, logit)
    assert near(gradient, held["grad_loss_wrt_logit"], 1e-4)


@pytest.mark.parametrize(("name", "value"), [("none", 0.0), ("all", 1.0)])
def test_no_end_and_all_ends(held, chosen, name, value):
    states, hard = chosen[0], torch.full_like(held["hard"], value)
    pooled = pool(states, hard, held["null_group"])
    assert near(pooled.transpose(0, 1), held[f"shortened_{name}"])
    assert near(unpool(pooled, hard).transpose(0, 1), held[f"upsampled_{name}"])


def test_the_prior_is_scipys_and_least_where_the_share_is_asked_for():
    costs = []
    for k in range(41):
        hard = torch.zeros(1, 40)
        hard[0, :k] = 1
        costs.append(float(binomial_nats(hard, 0.2)))
        assert costs[-1] == pytest.approx(-binom.logpmf(k, 40, 0.2), abs=1e-4)
    assert int(np.argmin(costs)) == 8


def test_a_row_that_ends_everywhere_still_has_a_gradient():
    soft = torch.full((1, 6), 0.7, requires_grad=True)
    hard = torch.ones(1, 6) - soft.detach() + soft
    (gradient,) = torch.autograd.grad(binomial_nats(hard, 0.2).sum(), soft)
    assert (gradient > 0.5).all()


def test_a_segment_is_its_mean_and_its_bytes_join_to_the_last_end():
    states = torch.arange(8.0).view(1, 8, 1)
    hard = torch.tensor([[0.0, 1, 1, 0, 0, 1, 0, 0]])
    pooled = pool(states, hard, torch.tensor([-1.0]))
    assert pooled[0, :, 0].tolist() == pytest.approx([-1, 0.5, 2, 4])
    assert unpool(pooled, hard)[0, :, 0].tolist() == pytest.approx([-1, 0.5, 2, 2, 2, 4, 4, 4])


def test_a_letter_has_its_script_and_bytes_that_of_the_last_complete_letter():
    asked = "aéяक月ひกאعªि"
    scripts = ["Latin", "Latin", "Cyrillic", "Devanagari", "Han", "Hiragana", "Thai", "Hebrew", "Arabic"]
    assert [script_of(ord(letter)) for letter in asked] == [*scripts, "Latin", "Devanagari"]
    assert {script_of(ord(letter)) for letter in "1 .—€"} == {""}
    text = "1 aя月 2".encode() + b"\xff\xd1"
    letters = running_letters(np.frombuffer(text, np.uint8)[None])[0].tolist()
    assert letters == [-1, -1, *[ord("a")] * 2, *[ord("я")] * 3, *[ord("月")] * 5]


def test_what_a_letter_is_read_by_does_not_wait_for_it():
    model = make({"Latin": 0.2, "Cyrillic": 0.1})
    text = "моя a.".encode()
    assert model.predictor_of(ids(text)).tolist()[0] == [0, 1, 1, 1, 1, 1, 1, 0, 0]
    memory, piecewise = {}, []
    for byte in text:
        piecewise += model.predictor_of(torch.tensor([[byte]]), memory)[0].tolist()
    assert piecewise == [0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_only_predictors_of_scripts_that_are_there_learn():
    model = make({"Latin": 0.2, "Cyrillic": 0.1, "Thai": 0.1}).train()
    torch.autograd.backward(model(ids(ENGLISH)).loss)
    learns = [any(p.grad is not None for p in predictor.parameters()) for predictor in model.predictors]
    assert learns == [True, False, False]


def test_rows_of_other_scripts_change_nothing():
    model = make({"Latin": 0.2, "Cyrillic": 0.1})
    together = model.read([ENGLISH, RUSSIAN])
    for row, text in enumerate((ENGLISH, RUSSIAN)):
        assert near(together.nats[row, : len(text)], model.read([text]).nats[0])
        ends = model.segment_ends(ids(text))[0]
        assert torch.equal(ends, model.segment_ends(ids(text + b"..."))[0, : len(text)])


def test_a_scripts_own_predictor_cuts_it():
    model = make({"Latin": 0.2, "Cyrillic": 0.1})
    with torch.no_grad():
        model.predictors[0].outer.bias.fill_(9)  # everywhere
        model.predictors[1].outer.bias.fill_(-9)  # nowhere
    assert model.cuts(ENGLISH) == list(range(len(ENGLISH)))
    assert model.cuts(RUSSIAN) == [0, 1]  # before its first letter is complete the first predictor reads


def test_filling_costs_no_prior_and_ends_no_segment():
    model = make({"Latin": 0.2, "Cyrillic": 0.1})
    filled = torch.cat([ids(ENGLISH), torch.full((1, 9), 0x20)], 1)
    mask = torch.cat([torch.ones(1, len(ENGLISH)), torch.zeros(1, 9)], 1).long()
    assert float(model(filled, mask).loss.detach()) == pytest.approx(float(model(ids(ENGLISH)).loss.detach()), rel=1e-5)
    assert not model.segment_ends(filled, mask)[0, len(ENGLISH) :].any()


def test_while_training_ends_are_drawn_and_else_they_are_not():
    model = make({"Latin": 0.2}).train()
    torch.manual_seed(0)
    drawn = [model.segment_ends(ids(ENGLISH)) for _ in range(4)]
    assert any(not torch.equal(a, b) for a, b in itertools.pairwise(drawn))
    model.eval()
    assert torch.equal(model.segment_ends(ids(ENGLISH)), model.segment_ends(ids(ENGLISH)))


def test_a_script_without_predictor_is_told_once_by_name_and_read_by_the_first():
    model = make({"Latin": 0.2})
    text = "луна и море".encode()
    with pytest.warns(Notice, match="no boundary predictor for Cyrillic; read by that for Latin") as told:
        bits = [model.score(text), model.score(text)]
    assert len(told) == 1
    assert bits[0] == bits[1]


def test_one_predictor_for_any_script_is_dynamic_pooling(recwarn):
    model = make({ANY: 0.2})
    assert model.predictor_of(ids(ENGLISH + RUSSIAN)).unique().tolist() == [0]
    assert model.score(RUSSIAN) > 0
    assert not recwarn.list


def test_segments_go_on_while_writing_and_only_then():
    model = make({"Latin": 0.2})
    opened = model.open_text(b"The")
    runs = []
    run = model.blocks.forward
    model.blocks.forward = lambda **k: (runs.append(k["inputs_embeds"].shape[1]), run(**k))[1]
    for byte in b" moon pulls":
        opened.push(byte)
    text = b"The moon pulls"
    assert sum(runs) == int(model.segment_ends(ids(text))[0, 3:].sum())


def test_the_order_of_scripts_is_kept_in_files(tmp_path):
    model = make({"Latin": 0.2, "Cyrillic": 0.1, "Arabic": 0.3})
    model.save(tmp_path / "model", {})
    loaded = load_byte_lm(tmp_path / "model")
    assert loaded.scripts == ["Latin", "Cyrillic", "Arabic"]
    assert loaded.score(RUSSIAN) == model.score(RUSSIAN)


def test_words_are_counted_by_script():
    found = words_per_byte(byte_windows(["one two three four " * 20 + "раз два три " * 30], 100))
    assert [*found] == ["Cyrillic", "Latin"]
    assert 1 / found["Latin"][1] == pytest.approx(4.75, rel=0.1)
    assert 1 / found["Cyrillic"][1] == pytest.approx(7, rel=0.1)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The moon pulls the sea. Луна тянет море. " * 60)
    return str(path)


def test_it_learns_rates_and_segments(text, tmp_path):
    training = MagnetTraining(texts=(text,), steps=80, window=64, rows=4, lr=2e-2, warmup=2, **SMALL)
    made = training.run(tmp_path / "model", tmp_path / "work")
    rates = dict(made.config.scripts)
    assert sorted(rates) == ["Cyrillic", "Latin"]
    assert rates["Latin"] > rates["Cyrillic"]
    assert made.config.held_out_bits_per_byte < 3
    found = made(torch.from_numpy(hold_out(byte_windows([Path(text).read_text()], 64)).held_out.astype(np.int64))).told
    assert found["bytes per segment, Latin"] < 30
    given = MagnetTraining(script=("Cyrillic=0.3", "Latin"), **SMALL).build(training.corpus()).config.scripts
    assert given == [["Cyrillic", 0.3], ["Latin", rates["Latin"]]]


def test_one_rate_is_learnt_for_all_scripts(text, tmp_path):
    training = DynamicPoolingTraining(texts=(text,), steps=2, window=64, rows=4, prior=0.3, **SMALL)
    assert training.run(tmp_path / "model", tmp_path / "work").config.scripts == [[ANY, 0.3]]


def test_patches_end_where_the_small_model_is_unsure_and_as_often_as_asked(text, tmp_path):
    sizes = {"small_width": 16, "small_layers": 1, "small_heads": 2, "small_steps": 60}
    training = EntropyPatchesTraining(
        texts=(text,), steps=4, window=64, rows=4, lr=2e-2, warmup=2, share=0.25, **SMALL, **sizes
    )
    made = training.run(tmp_path / "model", tmp_path / "work")
    held_out = torch.from_numpy(training.corpus().held_out.astype(np.int64))
    assert float(made.segment_ends(held_out).float().mean()) == pytest.approx(0.25, abs=0.1)
    assert torch.equal(made.segment_ends(held_out), made.entropy(held_out) > made.config.threshold)
    assert float(made.small(held_out).loss) < 4  # it was trained
    loaded = load_byte_lm(tmp_path / "model")
    assert torch.equal(loaded.segment_ends(held_out), made.segment_ends(held_out))


def test_a_patch_is_decided_without_later_bytes():
    model = EntropyPatches.tiny()
    memory, piecewise = {}, []
    model.entropy(ids(ENGLISH)[:, :0], memory)
    for byte in ENGLISH:
        piecewise.append(float(model.entropy(torch.tensor([[byte]]), memory)))
    assert torch.allclose(torch.tensor(piecewise), model.entropy(ids(ENGLISH))[0], atol=1e-5)


def test_what_does_not_fit_is_told(text):
    windows = MagnetTraining(texts=(text,), window=64).corpus()
    for call in (
        lambda: MagnetConfig(scripts={}),
        lambda: MagnetConfig(scripts={"Latin": 1.2}),
        lambda: MagnetConfig(scripts={"Latin": 0}),
        lambda: MagnetConfig(scripts=[["Latin", math.nan]]),
        lambda: MagnetConfig(scripts={"Elvish": 0.2}),
        lambda: MagnetConfig(scripts=[["Latin", 0.2], ["Latin", 0.3]]),
        lambda: MagnetConfig(scripts={"Latin": 0.2}, layers=0),
        lambda: Magnet(MagnetConfig(scripts={"Latin": 0.2}, tau=0)),
        lambda: MagnetTraining(script=("Latin=much",)).build(windows),
        lambda: MagnetTraining(script=("Thai",)).build(windows),
        lambda: MagnetTraining(script=("Elvish=0.2",)).build(windows),
        lambda: MagnetTraining(script=("Latin=3",)).build(windows),
        lambda: MagnetTraining().build(hold_out(byte_windows(["1234" * 40], 64))),
    ):
        with without_shape_checks(), pytest.raises(UserError) as told:
            call()
        assert "\n" not in str(told.value)

"""What no model of text can be learnt or loaded from, over every training of the job: one line each."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from mintage import catalog
from mintage.errors import UserError
from mintage.lm.contract import ByteLanguageModel
from mintage.lm.core.folder import load_byte_lm
from mintage.lm.core.sampling import Sampling
from mintage.lm.training.byte_training import ByteTraining, TextTraining
from mintage.lm.training.expert import Branching
from mintage.lm.training.mrt5 import MrT5Training
from mintage.models import tiny_causal_lm

SIZES = {"steps": 1, "rows": 2, "window": 64, "warmup": 0, "width": 16, "byte_width": 16, "layers": 2, "heads": 2}
SIZES |= dict.fromkeys(("byte_layers", "decoder_layers", "pool_layers", "spell_layers", "small_layers"), 1)
SIZES |= {"byte_heads": 2, "small_heads": 2, "small_width": 16, "small_steps": 1, "vectors": 1, "feed_forward": 16}
SIZES |= {"hashes": 10, "vocabulary": 260, "seed_steps": 1, "branch_steps": 1, "workers": 1, "most": 16}
"""What a training may have, as small as it goes."""

ROWS = [row for row in catalog.methods("lm") if row.status == "ready" and row.package == "mintage" and row.installed]
KINDS = {part.name: row.load_training(part.name) for row in ROWS for part in row.trainings}
TRAININGS = {name: kind for name, kind in KINDS.items() if issubclass(kind, ByteTraining | MrT5Training | Branching)}
OF_TEXT = {name: kind for name, kind in TRAININGS.items() if issubclass(kind, TextTraining)}
MODELS = {row.name: row.load() for row in ROWS if issubclass(row.load(), ByteLanguageModel)}
WORD = "".join(chr(ord("a") + number * number % 26) for number in range(5000))


def small(kind, **settings):
    """A training at its smallest; a forest has its text as a domain."""
    names = {field.name for field in dataclasses.fields(kind)}
    if "domain" in names and "texts" in settings:
        settings["domain"] = tuple(f"d{number}={text}" for number, text in enumerate(settings.pop("texts")))
    return kind(**{name: size for name, size in SIZES.items() if name in names} | settings)


@pytest.fixture
def seed_of_an_expert(save_tiny_model, tmp_path):
    return {"model": save_tiny_model(tmp_path / "seed-model")}


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({}, "no text files|no files|holds no text"),
        ({"a.txt": b""}, "0 (bytes|tokens), less than one window"),
        ({"a.txt": b"\0\1\2\xff" * 300}, "not text|not UTF-8"),
    ],
    ids=["an empty folder", "an empty file", "a binary file"],
)
def test_nothing_is_learnt_from_what_holds_no_text(name, held, said, tmp_path, seed_of_an_expert):
    place = tmp_path / "texts"
    place.mkdir()
    for file, data in held.items():
        (place / file).write_bytes(data)
    source = str(place / next(iter(held))) if held else str(place)
    training = small(TRAININGS[name], texts=(source,), **(seed_of_an_expert if name == "expert" else {}))
    with pytest.raises(UserError, match=said) as told:
        training.run(tmp_path / "out", tmp_path / "work")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", OF_TEXT)
def test_one_enormous_word_is_learnt_read_and_written(name, tmp_path):
    (tmp_path / "word.txt").write_text(WORD)
    training = small(OF_TEXT[name], texts=(str(tmp_path / "word.txt"),))
    if name == "magnet":  # which measures its rates on words
        with pytest.raises(UserError, match=r"no words in Latin to measure a rate on; write e\.g\. Latin=0\.2"):
            training.run(tmp_path / "out", tmp_path / "work")
        training = dataclasses.replace(training, script=("Latin=0.2",))
    made = training.run(tmp_path / "out", tmp_path / "work")
    if isinstance(made, ByteLanguageModel):
        assert np.isfinite(made.score(WORD[:200]))
        cuts = made.cuts(WORD[:200].encode())
        assert cuts[0] == 0
        assert len(made.write(WORD[:100], Sampling(max_new_tokens=4))) == 4


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_another_model_are_told(name, tmp_path):
    model = MODELS[name].tiny()
    model.save(tmp_path / "model", {})
    other = "byte-transformer" if name != "byte-transformer" else "hat"
    MODELS[other].tiny().save(tmp_path / "other", {})
    shutil.copy(tmp_path / "other/model.safetensors", tmp_path / "model/model.safetensors")
    with pytest.raises(UserError, match="model") as told:
        load_byte_lm(tmp_path / "model")
    assert "\n" not in str(told.value)


def test_a_checkpoint_of_another_kind_is_told(tmp_path, save_tiny_model):
    tiny_causal_lm(seed=0).save_pretrained(tmp_path / "llama")
    with pytest.raises(UserError, match="holds no byte language model; make one"):
        load_byte_lm(tmp_path / "llama")
    MODELS["hat"].tiny().save(tmp_path / "hat", {})
    said = json.loads((tmp_path / "hat/config.json").read_text())
    (tmp_path / "hat/config.json").write_text(json.dumps({**said, "model_type": "mintage-hta"}))
    with pytest.raises(UserError, match="mintage-hta"):
        load_byte_lm(tmp_path / "hat")


SHARES = [
    (name, field.name)
    for name, kind in TRAININGS.items()
    for field in dataclasses.fields(kind)
    if field.name in {"share", "prior", "deletion", "rate", "whole", "hard"}
]


@pytest.mark.parametrize(("name", "share"), SHARES, ids=lambda value: value)
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_share_that_is_none_is_told_with_the_rule(name, share, value):
    with pytest.raises(UserError, match=rf"{share}={value} is (out of range|outside|not a number)") as told:
        TRAININGS[name](**{share: value})
    assert "\n" not in str(told.value)


def test_every_share_is_tried():
    assert {"entropy-patches", "blt", "dynamic-pooling", "mrt5", "lexinvariant"} <= {name for name, _ in SHARES}


@pytest.mark.parametrize("name", MODELS)
def test_a_script_that_was_never_read_is_read(name, recwarn):
    model, text = MODELS[name].tiny(), "ⵜⴰⵎⴰⵣⵉⵖⵜ ᠮᠣᠩᠭᠣᠯ".encode()
    assert 0 < model.score(text) < float("inf")
    assert torch.equal(model.read([text]).nats, model.read([text]).nats)
    told = [str(warning.message) for warning in recwarn if "no boundary predictor" in str(warning.message)]
    assert len(told) <= 2  # by script, once
    assert all("\n" not in line for line in told)

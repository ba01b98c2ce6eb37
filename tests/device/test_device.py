"""What a device could break, for every ready method of draft, keep and reduce, on the device $MINTAGE_DEVICE names.

The suite runs it on the CPU; ``make gpu`` on a GPU. All in float32, where a device has no excuse for another text.
"""

import copy
import dataclasses
import os

import pytest
import torch

from mintage import catalog
from mintage.draft import generate
from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.testing.reduce import law_models

DEVICE = torch.device(os.environ.get("MINTAGE_DEVICE", "cpu"))
NEW = 24
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def ready(job):
    rows = [row for row in catalog.methods(job) if row.status == "ready"]
    return pytest.mark.parametrize("kind", [pytest.param(row.load(), id=row.name) for row in rows])


@pytest.fixture(scope="module")
def model():
    return tiny_causal_lm().to(DEVICE)


@pytest.fixture(scope="module")
def batch(model):
    """Two prompts of unequal length, the shorter one padded on the left, and what plain decoding makes of them."""
    ids = torch.tensor([[0, 0, 0, 0, 2, 7, 1, 8], [3, 1, 4, 1, 5, 9, 2, 6]], device=DEVICE)
    mask = (ids > 0).long()
    kept = {"attention_mask": mask, "max_new_tokens": NEW}
    return ids, kept, model.generate(ids, do_sample=False, pad_token_id=0, **kept)


def on_device(method):
    """Move the models that a method holds."""
    held = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
    moved = {
        name: copy.deepcopy(value).to(DEVICE) for name, value in held.items() if isinstance(value, torch.nn.Module)
    }
    return dataclasses.replace(method, **moved)


@ready("draft")
def test_drafted_text_is_plain_decodings(kind, model, batch):
    ids, kept, wanted = batch
    drafter = on_device(kind.tiny())
    for _ in range(2):  # the second time with what the first taught
        out = generate(model, ids, drafter, pad_token_id=0, **kept).sequences
        assert out.device.type == DEVICE.type
        assert torch.equal(out, wanted)
    served = model.generate(ids, do_sample=False, pad_token_id=0, custom_generate=on_device(kind.tiny()), **kept)
    assert torch.equal(served, wanted)


@ready("draft")
def test_a_seed_repeats_a_sample(kind, model, batch):
    ids, kept, _ = batch
    first, second = (
        generate(model, ids, on_device(kind.tiny()), pad_token_id=0, temperature=1.0, top_p=0.9, seed=3, **kept)
        for _ in range(2)
    )
    assert torch.equal(first.sequences, second.sequences)


def decoded(model, ids, kept):
    return model.generate(ids, do_sample=False, pad_token_id=0, **kept)


@ready("keep")
def test_room_for_everything_gives_plain_text_and_less_gives_the_same_twice(kind, model, batch):
    ids, kept, wanted = batch
    policy = kind.tiny()
    with policy.unbounded()(model):
        assert torch.equal(decoded(model, ids, kept), wanted)
    with policy(model):
        first = decoded(model, ids, kept)
        assert torch.equal(first, decoded(model, ids, kept))
        logits = model(ids, attention_mask=kept["attention_mask"], use_cache=True).logits
    assert first.shape == wanted.shape
    assert logits.isfinite().all()
    assert torch.equal(decoded(model, ids, kept), wanted)  # nothing is left behind


@ready("reduce")
def test_images_are_reduced_where_the_model_is(kind):
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    reducer, served = on_device(kind.tiny()), 0
    for name, subject in law_models().items():
        moved = dataclasses.replace(subject, model=subject.model.to(DEVICE))
        with torch.no_grad():
            try:
                plain = moved.outputs(pixels)
                with reducer(moved.model):
                    reduced = moved.outputs(pixels)
            except UserError:
                continue
            finally:
                again = moved.outputs(pixels)
        served += 1
        for key, value in plain.items():
            assert reduced[key].device.type == DEVICE.type, name
            assert reduced[key].isfinite().all(), name
            assert torch.allclose(again[key], value, **CLOSE), name
    assert served

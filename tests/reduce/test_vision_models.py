"""The matrix of vision classes and reducers: what the page of served models says is so."""

import json

import pytest
import torch
import transformers
import vision_zoo as zoo
from transformers.utils import logging

from mintage.testing import reduce as suite

RECORD = json.loads(zoo.RECORD.read_text(encoding="utf-8"))
SERVED = [n for n, found in RECORD.items() if "dense" in found and hasattr(transformers, n)]  # older ones lack some
REFUSED = ["BeitModel", "DINOv3ViTModel", "SwinModel", "Siglip2VisionModel", "YolosModel", "BlipVisionModel"]
POSITIONS = ("position", "pos_embed")


@pytest.fixture(scope="module", autouse=True)
def classes():
    logging.set_verbosity_error()
    return zoo.transformers_zoo()


@pytest.mark.parametrize("name", [*SERVED, *REFUSED])
def test_reducers_do_what_the_page_says(name, classes):
    """One that merges, one that drops, one that is made for a number of patches; the page tries all of them."""
    sample = ("tome", "class-attention", "sparsifiner")
    wanted = dict(RECORD[name])
    if isinstance(wanted.get("refused"), dict):
        wanted["refused"] = {k: v for k, v in wanted["refused"].items() if k in sample}
    assert zoo.judge(classes[name](), sample) == wanted


@pytest.mark.parametrize("name", SERVED)
def test_equal_patches_that_merge_change_nothing(name, classes):
    """Pooled output is what it was; of dense output every patch has its row."""
    entry = classes[name]()
    with torch.no_grad():
        for key, parameter in entry.model.named_parameters():
            if any(part in key for part in POSITIONS):
                parameter.zero_()
    twins = suite._pixels(2).unflatten(3, (2, 2, 4))[..., :1, :].expand(-1, -1, -1, -1, 2, -1).flatten(3)
    entry = entry.seeing(twins)
    if name.startswith("ViTMAE"):  # hides patches at random, so neighbours are no twins
        return
    wanted = entry.outputs()
    with suite._Twins()(entry.model) as session:
        got = entry.outputs()
    assert session.tokens[-1] < session.tokens[0]
    compared = {k: v for k, v in wanted.items() if session.dense or v.ndim == 2}
    assert compared or name in ("ViTMSNModel", "IJepaModel", "GitVisionModel")  # these return tokens alone
    suite._same({k: got[k] for k in compared}, compared, 2e-5, name)

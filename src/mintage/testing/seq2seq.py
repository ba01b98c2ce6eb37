"""Laws of encoder-decoder models of bytes that delete some of them on the way."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from mintage.lm.mrt5 import MrT5, MrT5Config
from mintage.testing.refusals import refused

__all__ = ["LAWS"]

LENGTHS = (24, 17, 9)


def _rows() -> tuple[Tensor, Tensor]:
    """Return three rows of bytes, filled at their ends, and what is written for them."""
    drawn = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 259, (3, 24), generator=drawn)
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = 0
    return ids, torch.randint(3, 259, (3, 8), generator=drawn)


@torch.no_grad()
def _read(model: Any, ids: Tensor, labels: Tensor, **settings: Any) -> Any:
    return model(input_ids=ids, labels=labels, **settings)


def what_deletes_nothing_is_t5(model: MrT5) -> None:
    """Without softmax1 and with an open gate, every number is that of the unmodified T5 of the same weights."""
    ids, labels = _rows()
    sizes = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    mine = MrT5(MrT5Config(**{**sizes, "use_softmax1": False, "scores_loss_coeff": 0.0})).eval()
    mine.load_state_dict(model.state_dict())
    gate = mine.delete_gate
    assert gate is not None
    gate.scale = 0.0
    theirs = T5ForConditionalGeneration(T5Config(**sizes)).eval()
    theirs.load_state_dict(mine.state_dict(), strict=False)
    wanted = _read(theirs, ids, labels, attention_mask=(ids != 0).long())
    for hard in (True, False):
        found = _read(mine, ids, labels, hard=hard)
        assert torch.allclose(found.logits, wanted.logits, atol=1e-6)
        assert torch.allclose(found.encoder_last_hidden_state[ids != 0], wanted.encoder_last_hidden_state[ids != 0])


def hard_deletion_is_soft_deletion_without_end(model: MrT5) -> None:
    """Rows without the deleted bytes give what rows give whose deleted bytes nothing attends to."""
    ids, labels = _rows()
    hard = _read(model, ids, labels)
    deleted = hard.gate <= model.config.threshold
    gate = torch.where(deleted, -1e9, 0.0)
    assert model.delete_gate is not None
    model.delete_gate.forward = lambda hidden, padding=None: (gate, gate)
    soft = _read(model, ids, labels, hard=False)
    assert torch.allclose(hard.logits, soft.logits, atol=1e-5)
    for row, gone in enumerate(deleted):
        stays = (~gone).nonzero()[:, 0]
        short = hard.encoder_last_hidden_state[row, : len(stays)]
        assert torch.allclose(short, soft.encoder_last_hidden_state[row, stays], atol=1e-5)


def rows_pay_for_the_longest(model: MrT5) -> None:
    """A batch is as long as the row that keeps most; original positions rise; padding is no byte."""
    ids, labels = _rows()
    found = _read(model, ids, labels)
    kept = ((found.gate > model.config.threshold) & (ids != 0)).sum(1)
    assert 0 < found.deletion_rate < 1
    assert found.encoder_last_hidden_state.shape[1] == kept.max() < ids.shape[1]
    assert abs(found.deletion_rate - (1 - kept.sum() / (ids != 0).sum())) < 1e-6
    for row, count in zip(found.kept_index, kept.tolist(), strict=True):
        assert (row[:count].diff() > 0).all()
    assert (found.gate[ids == 0] == model.config.sigmoid_mask_scale).all()


def filling_and_order_of_rows_change_nothing(model: MrT5) -> None:
    """A row gives alone, and in any order, what it gives in a batch."""
    ids, labels = _rows()
    for hard in (True, False):
        whole = _read(model, ids, labels, hard=hard)
        turned = _read(model, ids.flip(0), labels.flip(0), hard=hard)
        assert torch.allclose(turned.logits.flip(0), whole.logits, atol=1e-5)
        for row, length in enumerate(LENGTHS):
            alone = _read(model, ids[row : row + 1, :length], labels[row : row + 1], hard=hard)
            assert torch.allclose(alone.logits[0], whole.logits[row], atol=1e-5)
            assert torch.allclose(alone.gate[0], whole.gate[row, :length], atol=1e-5)


def generating_with_a_cache_changes_nothing(model: MrT5) -> None:
    """Greedy and by beams, under hard deletion, for rows of several lengths."""
    ids, _ = _rows()
    writer: Any = model
    for beams in (1, 2):
        settings: dict[str, Any] = {"max_new_tokens": 8, "num_beams": beams, "do_sample": False}
        written = writer.generate(ids, **settings)
        assert torch.equal(written, writer.generate(ids, use_cache=False, **settings))


def heads_may_attend_to_nothing(model: MrT5) -> None:
    """Attention sums to at most one in the whole model, and to nothing where every score is low."""
    ids, labels = _rows()
    model.set_attn_implementation("eager")
    blocks: Any = model.encoder.block
    for block in blocks:
        attention = block.layer[0].SelfAttention
        if attention.has_relative_attention_bias:
            attention.relative_attention_bias.weight.data.fill_(-60)
    found = _read(model, ids, labels, output_attentions=True)
    assert all((weights.sum(-1) < 1 + 1e-6).all() for weights in found.cross_attentions)
    assert all(weights.sum(-1).max() < 1e-6 for weights in found.encoder_attentions)


def a_saved_model_writes_the_same(model: MrT5) -> None:
    """By path and through transformers' Auto class; a damaged file is refused in one line."""
    ids, labels = _rows()
    wanted = _read(model, ids, labels).logits
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model.save(folder, {"command": "made by a law"})
        assert not list(folder.glob("*.bin"))
        for loaded in (MrT5.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()):
            assert torch.equal(_read(loaded, ids, labels).logits, wanted)
            assert loaded.config.notes == {"command": "made by a law"}
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        refused(lambda: MrT5.from_pretrained(folder))


LAWS = (
    what_deletes_nothing_is_t5,
    hard_deletion_is_soft_deletion_without_end,
    rows_pay_for_the_longest,
    filling_and_order_of_rows_change_nothing,
    generating_with_a_cache_changes_nothing,
    heads_may_attend_to_nothing,
    a_saved_model_writes_the_same,
)

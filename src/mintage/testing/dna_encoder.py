"""Laws of encoders of DNA that are trained to fill in what is masked."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from mintage.lm.core.alibi import QUERIES
from mintage.lm.dnabert2 import DNABERT2ForMaskedLM
from mintage.testing.refusals import refused
from mintage.testing.settings import without_shape_checks

__all__ = ["LAWS"]

LENGTHS = (19, 12, 1)


def _rows(model: DNABERT2ForMaskedLM, length: int = 19) -> tuple[Tensor, Tensor]:
    """Return three rows of tokens, filled at their ends, and their mask."""
    drawn = torch.Generator().manual_seed(7)
    ids = torch.randint(5, model.config.vocab_size, (3, length), generator=drawn)
    mask = (torch.arange(length) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, mask


@torch.no_grad()
def _states(model: DNABERT2ForMaskedLM, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return model.bert(ids, mask).last_hidden_state


def filling_changes_nothing(model: DNABERT2ForMaskedLM) -> None:
    """A row gives alone, and with more filling at either end, what it gives in a batch; where there is filling, 0."""
    ids, mask = _rows(model)
    whole = _states(model, ids, mask)
    assert not whole[mask == 0].any()
    filling = torch.full((3, 30), model.config.pad_token_id)
    nothing = torch.zeros_like(filling)
    behind = _states(model, torch.cat([ids, filling], 1), torch.cat([mask, nothing], 1))
    before = _states(model, torch.cat([filling, ids], 1), torch.cat([nothing, mask], 1))
    assert torch.allclose(behind[:, :19], whole, atol=1e-5)
    assert torch.allclose(before[:, 30:], whole, atol=1e-5)
    for row, length in enumerate(LENGTHS):
        assert torch.allclose(_states(model, ids[row : row + 1, :length])[0], whole[row, :length], atol=1e-5)


def what_filling_holds_is_not_read(model: DNABERT2ForMaskedLM) -> None:
    """Other ids under a mask of 0 change nothing."""
    ids, mask = _rows(model)
    other = torch.where(mask == 1, ids, (ids + 1) % model.config.vocab_size)
    assert torch.equal(_states(model, ids, mask), _states(model, other, mask))


def a_row_turned_round_gives_its_states_turned_round(model: DNABERT2ForMaskedLM) -> None:
    """Scores depend on distances alone."""
    ids, _ = _rows(model)
    assert torch.allclose(_states(model, ids.flip(1)).flip(1), _states(model, ids), atol=1e-5)
    assert not torch.allclose(_states(model, ids.roll(3, 1)).roll(-3, 1), _states(model, ids), atol=1e-3)


def rows_of_any_length_are_read(model: DNABERT2ForMaskedLM) -> None:
    """None, one, and more tokens than the bias of one piece; the last ones change nothing far in front of them."""
    for length in (0, 1, 600, QUERIES + 300):
        ids = torch.full((2, length), 6)
        states = _states(model, ids)
        assert states.shape == (2, length, model.config.hidden_size)
        assert states.isfinite().all()
    ids = torch.randint(5, model.config.vocab_size, (1, QUERIES + 300), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[:, -7:] = 0
    short = _states(model, ids[:, :-7])
    assert torch.allclose(_states(model, ids, mask)[:, :-7], short, atol=1e-4)


def training_reads_as_use_does(model: DNABERT2ForMaskedLM) -> None:
    """Without dropout the kernel that training takes gives the same loss, over the same places."""
    ids, mask = _rows(model)
    labels = torch.where((torch.arange(ids.shape[1]) % 3 == 0) & (mask == 1), ids, -100)
    used = model(ids, mask, labels=labels)
    alone = model(ids, mask, labels=labels, labelled_only=True)
    assert torch.allclose(used.logits[labels != -100], alone.logits, atol=1e-6)
    assert torch.allclose(used.loss, alone.loss, atol=1e-6)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trained = model.train()(ids, mask, labels=labels)
    assert torch.allclose(trained.loss, used.loss, atol=1e-4)
    torch.autograd.backward(trained.loss)
    still = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not still, still


def a_saved_encoder_is_the_same(model: DNABERT2ForMaskedLM) -> None:
    """By path and through transformers' Auto class; a damaged file is refused in one line."""
    ids, mask = _rows(model)
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        wanted = model(ids, mask).logits
        folder = Path(place) / "model"
        model.save(folder, {"command": "made by a law"})
        assert not list(folder.glob("*.bin"))
        for loaded in (type(model).from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)):
            assert torch.equal(loaded.eval()(ids, mask).logits, wanted)
            assert loaded.config.notes == {"command": "made by a law"}
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        refused(lambda: type(model).from_pretrained(folder), lambda: type(model).from_pretrained(place))


def what_cannot_be_encoded_is_told(model: DNABERT2ForMaskedLM) -> None:
    """Ids that are none, masks that do not fit, attention weights, and labels that are none."""
    ids, mask = _rows(model)
    with without_shape_checks():
        refused(
            lambda: model(ids + 1000),
            lambda: model(-ids),
            lambda: model(ids, mask[:, :5]),
            lambda: model(ids, mask * 2),
            lambda: model(ids, token_type_ids=ids),
            lambda: model(ids, output_attentions=True),
            lambda: model(ids, inputs_embeds=torch.zeros(3, 19, model.config.hidden_size)),
            lambda: model(),
            lambda: model(ids, labels=torch.full_like(ids, -100)),
            lambda: model(ids, labels=ids + 1000),
        )


LAWS = (
    filling_changes_nothing,
    what_filling_holds_is_not_read,
    a_row_turned_round_gives_its_states_turned_round,
    rows_of_any_length_are_read,
    training_reads_as_use_does,
    a_saved_encoder_is_the_same,
    what_cannot_be_encoded_is_told,
)

"""Laws of models of code that learn token types along."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from mintage.lm.pycoder import PyCoder
from mintage.testing.refusals import refused
from mintage.testing.settings import without_shape_checks

__all__ = ["LAWS"]

CODE = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8]])
TYPES = torch.tensor([[0, 1, 1, 6, 7, 0, 1, 0, 6, 8], [0, 0, 2, 2, 6, 0, 13, 1, 0, -1]])


def _as(coder: PyCoder, **changed: Any) -> PyCoder:
    """Return the same model under other settings, with the same rows of types."""
    made = PyCoder(copy.deepcopy(coder.model), coder.tokenizer, **{"names": coder.names, **changed})
    for types in (made.types, *([] if made.twin is None else [made.twin["types"]])):
        types.load_state_dict({name: coder.types.state_dict()[name] for name in types.state_dict()})
    return made


def _gradient(coder: PyCoder, **how: Any) -> dict[str, Tensor]:
    coder.zero_grad()
    coder(CODE, TYPES, **how).loss.backward()
    return {name: torch.zeros(()) if p.grad is None else p.grad.clone() for name, p in coder.named_parameters()}


def with_all_weight_on_code_it_is_training_without_types(coder: PyCoder) -> None:
    """Step for step: the same losses, the same weights afterwards."""
    made = [_as(coder, sharing="hard", weight=1), _as(coder, sharing="none")]
    for one in made:
        optimiser = torch.optim.AdamW(one.parameters(), 1e-2)
        for _ in range(3):
            optimiser.zero_grad()
            one(CODE, TYPES).loss.backward()
            optimiser.step()
    for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(made[0].parameters(), coder.parameters(), strict=True))


def loss_and_slopes_are_linear_in_the_weight(coder: PyCoder) -> None:
    """At 0.3 they are 0.3 of those of code and 0.7 of those of types."""
    for sharing in ("hard", "head"):
        losses, slopes = [], []
        for weight in (0.0, 1.0, 0.3):
            made = _as(coder, sharing=sharing, weight=weight)
            losses.append(made(CODE, TYPES).loss)
            slopes.append(_gradient(made))
        assert torch.allclose(losses[2], 0.7 * losses[0] + 0.3 * losses[1], atol=1e-5)
        for name, slope in slopes[2].items():
            assert torch.allclose(slope, 0.7 * slopes[0][name] + 0.3 * slopes[1][name], atol=1e-5), name


def types_change_no_logits_of_code(coder: PyCoder) -> None:
    """The model is the one that was given, and neither rows of types nor types that were read change what it says."""
    before = coder.model(CODE).logits
    code = coder(CODE, TYPES).code
    assert torch.equal(coder(CODE, TYPES.clamp(min=0) * 0).code, code)
    assert torch.equal(coder.model(CODE).logits, before)
    assert all(not name.startswith("types") for name in coder.model.state_dict())


def what_has_no_type_costs_nothing(coder: PyCoder) -> None:
    """Texts without types (that cannot be parsed) add nothing to the loss of types, and no slope that is not finite."""
    for sharing in ("hard", "soft", "head"):
        made = _as(coder, sharing=sharing)
        none = made(CODE, torch.full_like(TYPES, -1))
        assert float(none.types.detach()) == 0
        assert float(made(CODE, TYPES).types.detach()) > 0
        none.loss.backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in made.parameters())


def networks_that_are_alike_have_no_distance(coder: PyCoder) -> None:
    """Soft sharing begins with a penalty of 0 and a finite slope; apart it is the sum of the tensors' norms."""
    soft = _as(coder, sharing="soft")
    found = soft(CODE, TYPES)
    assert float(found.penalty.detach()) == 0
    assert all(bool(slope.isfinite().all()) for slope in _gradient(soft).values())
    with torch.no_grad():
        for parameter in soft.model.parameters():
            parameter.add_(0.5)
    wanted = sum(0.5 * p.numel() ** 0.5 for p in soft.model.parameters())
    assert abs(float(soft.penalty().detach()) - wanted) < 1e-3 * wanted


def every_weight_is_learnt(coder: PyCoder) -> None:
    """By every way of sharing; of two networks that are apart also what only the other one's task reads."""
    for sharing in ("hard", "soft", "head"):
        made = _as(coder, sharing=sharing)
        with torch.no_grad():
            for parameter in [*made.model.parameters(), *made.types.parameters()]:
                parameter.mul_(1.1)
        still = [name for name, slope in _gradient(made).items() if not slope.any()]
        assert not still, still
    types_first = _gradient(_as(coder, sharing="intermediate"), weight=0)
    assert any(slope.any() for name, slope in types_first.items() if name.startswith("types."))


def what_is_saved_is_an_ordinary_model(coder: PyCoder) -> None:
    """Any tool reads the folder; the types stand beside it, and a damaged file is told."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "coder"
        coder.save(folder, {"made": "by a law"})
        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert torch.equal(plain(CODE).logits, coder.model(CODE).logits)
        assert plain.config.mintage_notes == {"made": "by a law"}
        loaded = PyCoder.load(folder)
        assert (loaded.names, loaded.sharing, loaded.weight) == (coder.names, coder.sharing, coder.weight)
        assert torch.equal(loaded(CODE, TYPES).loss, coder(CODE, TYPES).loss)
        types = folder / "types.safetensors"
        types.write_bytes(types.read_bytes()[:64])
        refused(lambda: PyCoder.load(folder), lambda: PyCoder.load(place))


def what_does_not_fit_is_told(coder: PyCoder) -> None:
    """Another sharing, a weight that is no share, a model that reads no vectors."""
    with without_shape_checks():
        refused(
            lambda: PyCoder(coder.model, sharing="hrad"),  # type: ignore[arg-type]
            lambda: PyCoder(coder.model, weight=1.5),
            lambda: PyCoder(torch.nn.Linear(2, 2)),
        )


LAWS = (
    with_all_weight_on_code_it_is_training_without_types,
    loss_and_slopes_are_linear_in_the_weight,
    types_change_no_logits_of_code,
    what_has_no_type_costs_nothing,
    networks_that_are_alike_have_no_distance,
    every_weight_is_learnt,
    what_is_saved_is_an_ordinary_model,
    what_does_not_fit_is_told,
)

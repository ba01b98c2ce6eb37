"""What all drafters with a draft model share: its side of the request, and what they refuse."""

import pytest
import torch

from mintage.draft import RSD, Chain, DySpec, SpecInfer, SpecTr, generate
from mintage.draft.core.model_drafter import ModelDrafter
from mintage.errors import UserError
from mintage.models import tiny_causal_lm

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
DRAFTERS = [Chain, SpecInfer, RSD, SpecTr, DySpec]


def drafter(kind, model):
    fields = {Chain: {"length": 3}, SpecInfer: {"branching": (2, 2)}, RSD: {"width": 2, "depth": 3}}
    fields |= {SpecTr: {"num_drafts": 2, "draft_len": 3}, DySpec: {"budget": 6}}
    return kind(draft_model=model, **fields[kind])


@pytest.mark.parametrize("kind", DRAFTERS)
def test_all_of_them_have_one_base(kind):
    assert issubclass(kind, ModelDrafter)
    assert kind.observe is ModelDrafter.observe
    assert "draft_model" not in vars(kind).get("__annotations__", {})


@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_draft_model_of_another_dtype_drafts_all_the_same(kind, dtype):
    target = tiny_causal_lm()
    wanted = target.generate(IDS, max_new_tokens=16, do_sample=False, pad_token_id=0)
    made = drafter(kind, tiny_causal_lm().to(dtype))  # the target itself, rounded
    out = generate(target, IDS, made, max_new_tokens=16)
    assert torch.equal(out.sequences, wanted)
    assert out.stats.tokens_per_forward > 2
    assert generate(target, IDS, made, max_new_tokens=16, temperature=0.8, seed=0).stats.tokens_per_forward > 1


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_draft_model_on_another_device_is_refused(kind):
    with pytest.raises(UserError, match="on meta, the target on cpu; move one of them") as error:
        generate(tiny_causal_lm(), IDS, drafter(kind, tiny_causal_lm().to("meta")), max_new_tokens=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda m: SpecTr(draft_model=m, num_drafts=0), "num_drafts=0 is out of range; pass a number at least 1"),
        (lambda m: SpecTr(draft_model=m, draft_len=0), "draft_len=0 is out of range; pass a number at least 1"),
        (lambda m: Chain(draft_model=m, length=0), "length=0 is out of range; pass a number at least 1"),
        (lambda m: RSD(draft_model=m, width=0), "width=0 is out of range; pass a number at least 1"),
        (lambda m: RSD(draft_model=m, branching=(2, 0)), "branching=0 is out of range; pass a number at least 1"),
        (lambda m: SpecInfer(draft_model=m, branching=(0,)), "branching=0 is out of range; pass a number at least 1"),
        (lambda m: DySpec(draft_model=m, budget=0), "budget=0 is out of range; pass a number at least 1"),
        (
            lambda m: DySpec(draft_model=m, draft_temperature=-1.0),
            "draft_temperature=-1.0 is out of range",
        ),
    ],
)
def test_shapes_without_nodes_are_refused_in_one_line(make, line):
    with pytest.raises(UserError) as error:
        make(tiny_causal_lm())
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_negative_temperature_is_refused_in_one_line(kind):
    with pytest.raises(UserError, match=r"temperature=-0\.5 is negative") as error:
        generate(tiny_causal_lm(), IDS, drafter(kind, tiny_causal_lm(seed=1)), max_new_tokens=4, temperature=-0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_the_draft_cache_follows_what_was_accepted(kind):
    """A draft model that is always right reads every token once: the prompt, and each emitted token but the last."""
    made = drafter(kind, tiny_causal_lm())
    stats = generate(tiny_causal_lm(), IDS, made, max_new_tokens=13, temperature=0.0).stats
    assert stats.tokens_per_forward > 2
    again = stats.draft_tokens - IDS.shape[1]
    assert again <= stats.tree_nodes  # nothing that was committed is read a second time

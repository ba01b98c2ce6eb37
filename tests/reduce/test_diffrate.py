"""DiffRate at inference: equality with the authors' code, their published schedules, and schedules as files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage import catalog
from mintage.errors import UserError
from mintage.reduce.contract import Anatomy, Evidence, TokenState
from mintage.reduce.core.rate_schedule import RateSchedule, read_schedules, write_schedules
from mintage.reduce.diffrate import DiffRate, by_importance

VECTORS = Path(__file__).parents[1] / "vectors" / "diffrate"
PUBLISHED = VECTORS / "published_schedules.json"
SMALL = Anatomy(layers=8, dim=128, hidden=256, patches=64, prefix=1, heads=4, fixed=2_000_000)


def evidence_of(attention):
    """Evidence whose attention is known."""
    some = torch.zeros(*attention.shape[:3], 1)
    return Evidence(query=some, key=some, value=some, scaling=1.0, weights=attention)


def state_of(x, size, prefix=1):
    source = torch.eye(x.shape[1]).expand(x.shape[0], -1, -1)
    return TokenState(x=x, size=size, prefix=prefix, layer=0, layers=1, source=source, inputs=x.shape[1])


def attention_of(seed, batch, heads, tokens):
    scores = torch.randn(batch, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    return (2 * scores).softmax(-1)


# -- parity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["infer_prune_merge", "infer_merge_only_sized"])
def test_parity_with_the_authors_code(case):
    held = np.load(VECTORS / f"{case}.npz")
    x, attention, size = (torch.tensor(held[name]) for name in ("x", "attn", "size"))
    numbers = {name: (int(held[name]),) for name in ("prune_kept", "merge_kept")}
    method = DiffRate(schedule=RateSchedule(**numbers, patches=x.shape[1] - 1))
    evidence = evidence_of(attention)
    np.testing.assert_allclose(evidence.row().mean(1)[:, 1:].numpy(), held["importance"], atol=1e-5)
    made = method.reduce(state_of(x, size), evidence, int(held["merge_kept"]) - 1)
    np.testing.assert_allclose(made.x.numpy(), held["x_out"], atol=1e-5)
    np.testing.assert_allclose(made.size.numpy(), held["size_out"], atol=1e-5)
    np.testing.assert_array_equal(made.source.numpy(), held["source"])


def published():
    return json.loads(PUBLISHED.read_text())


@pytest.mark.parametrize("entry", published(), ids=lambda e: f"{e['model']}-{e['target_gmacs']}")
def test_the_published_schedules_are_read_and_cost_what_they_say(entry):
    schedule = RateSchedule.of(entry)
    layers, dim, patches = len(entry["prune_kept"]), entry["embed_dim"], entry["patches"]
    embedding = patches * dim * 3 * entry["patch_size"] ** 2
    fixed = embedding + dim * entry["classes"]
    anatomy = Anatomy(layers=layers, dim=dim, hidden=4 * dim, patches=patches, prefix=1, fixed=fixed)
    kept = DiffRate(schedule=schedule).kept(anatomy)
    assert list(kept) == sorted(kept, reverse=True)
    assert anatomy.macs(kept) / 1e9 == pytest.approx(entry["gmacs"], abs=1e-3)
    assert anatomy.full / 1e9 == pytest.approx(entry["gmacs_unreduced"], abs=1e-3)
    assert schedule.share_of(anatomy) == pytest.approx(schedule.share, abs=1e-3)


# -- a block -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 999), st.integers(0, 2), st.data())
@settings(max_examples=40, deadline=None)
def test_the_least_important_go_and_the_next_merge(seed, prefix, data):
    pruned = data.draw(st.integers(1, 12))
    merged = data.draw(st.integers(1, pruned))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 12 + prefix, 5, generator=generator)
    attention = attention_of(seed, 2, 2, 12 + prefix)
    method = DiffRate(schedule=RateSchedule(prune_kept=(pruned + 1,), merge_kept=(merged + 1,), patches=12))
    state = state_of(x, torch.ones(2, 12 + prefix, 1), prefix)
    made = method.reduce(state, evidence_of(attention), merged)
    assert made.patches == merged
    assert torch.equal(made.x[:, :prefix], x[:, :prefix])
    row = attention[:, :, 0] if prefix else attention.mean(2)
    order = row.mean(1)[:, prefix:].argsort(dim=1, descending=True) + prefix
    assert torch.equal(by_importance(evidence_of(attention), prefix) + prefix, order)
    for image in range(2):
        owner = made.source[image]
        assert (owner.sum(0)[order[image, :pruned]] == 1).all()  # those are somewhere
        assert (owner.sum(0)[order[image, pruned:]] == 0).all()  # those are nowhere
        assert (owner[range(prefix, prefix + merged), order[image, :merged]] == 1).all()  # destinations in order
        mean = owner @ x[image] / owner.sum(1, keepdim=True)
        torch.testing.assert_close(made.x[image], mean)


def test_a_negative_cosine_shrinks_a_size_but_never_to_nothing():
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]])
    attention = torch.tensor([0.1, 0.6, 0.2, 0.1]).expand(1, 1, 4, 4)
    schedule = RateSchedule(prune_kept=(4,), merge_kept=(2,), patches=3)
    made = DiffRate(schedule=schedule).reduce(state_of(x, torch.ones(1, 4, 1)), evidence_of(attention), 1)
    assert 0 < made.size[0, 1, 0] < 0.1  # 1 - 1 - 1 in the authors' code, whose logarithm is no number
    made = DiffRate(schedule=schedule, clamp_sizes=True).reduce(
        state_of(x, torch.ones(1, 4, 1)), evidence_of(attention), 1
    )
    assert made.size[0, 1, 0] == 3


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_numbers_never_grow_and_scale_with_the_image():
    schedule = RateSchedule(prune_kept=(65, 60, 70), merge_kept=(65, 50, 49), patches=64)
    assert schedule.patches_kept(3, 64) == [(64, 64), (59, 49), (49, 48)]
    assert schedule.patches_kept(3, 128) == [(128, 128), (118, 98), (98, 96)]
    assert RateSchedule(prune_kept=(65, 2), merge_kept=(65, 2)).patches_kept(2, 16) == [(16, 16), (1, 1)]
    with pytest.raises(UserError, match="for 3 blocks, the model has 12; find one with mintage train diffrate"):
        schedule.patches_kept(12, 64)


def test_files_come_back_as_they_went(tmp_path):
    one = RateSchedule(prune_kept=(17, 9), merge_kept=(17, 5), patches=16, share=0.6, notes={"command": "x"})
    write_schedules(tmp_path / "one.json", [one])
    assert read_schedules(tmp_path / "one.json") == [one]
    other = RateSchedule(prune_kept=(17, 12), merge_kept=(17, 11))
    write_schedules(tmp_path / "two.json", [one, other])
    assert read_schedules(tmp_path / "two.json") == [one, other]
    made = catalog.build(f"diffrate:schedule={tmp_path / 'two.json'}", "reduce")
    assert made.schedules(2, 16) == (one, other)
    assert len(read_schedules(PUBLISHED)) == len(published())
    assert catalog.build("diffrate:prune_kept=17x9,merge_kept=17x5", "reduce").merge_kept == (17, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "no schedules"),
        ("[1]", "no schedules"),
        ('{"prune_kept": [4]}', "needs merge_kept, a list of whole numbers; found None"),
        ('{"prune_kept": [4], "merge_kept": [4.5]}', "whole numbers"),
        ('{"prune_kept": [4, 3], "merge_kept": [4]}', "one of each for every block"),
        ('{"prune_kept": [4], "merge_kept": [1]}', "keep 2 at least"),
    ],
)
def test_damaged_files(tmp_path, text, said):
    path = tmp_path / "schedule.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        DiffRate(schedule=str(path))
    assert "\n" not in str(error.value)


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="does not exist; make it with: mintage train diffrate"):
        DiffRate(schedule=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="not both"):
        DiffRate(schedule="ratio=0.9", prune_kept=(4,), merge_kept=(4,))
    with pytest.raises(UserError, match=r"pass a share, e\.g\. ratio=0\.9"):
        DiffRate(schedule="ratio=many")
    for ratio in ("0", "1.5", "nan"):
        with pytest.raises(UserError, match="outside"):
            DiffRate(schedule=f"ratio={ratio}")


def test_uniform_prunes_half_and_merges_half():
    numbers = DiffRate(schedule="ratio=0.8").schedules(3, 100)[0].patches_kept(3, 100)
    assert numbers == [(90, 80), (72, 64), (58, 52)]
    assert DiffRate(schedule="ratio=1").kept(SMALL) == (64,) * 8


@pytest.mark.parametrize("share", [0.9, 0.65, 0.5])
def test_at_starts_from_the_schedule_that_is_next(share, tmp_path):
    numbers = {0.8: (65, 64, 60, 56, 50, 44, 38, 3), 0.5: (65, 50, 40, 30, 20, 15, 10, 3)}
    found = [RateSchedule(prune_kept=n, merge_kept=n, patches=64, notes={"aim": a}) for a, n in numbers.items()]
    write_schedules(tmp_path / "many.json", found)
    many = DiffRate(schedule=str(tmp_path / "many.json"))
    made = many.at(share, SMALL)
    assert made.schedules(8, 64)[0].notes["aim"] == (0.8 if share == 0.9 else 0.5)
    assert SMALL.macs(made.kept(SMALL)) / SMALL.full == pytest.approx(share, abs=0.02)
    with pytest.raises(UserError, match=r"cannot be reached by this schedule; the nearest is macs="):
        many.at(0.01, SMALL)
    with pytest.raises(UserError, match="outside"):
        many.at(0.0, SMALL)

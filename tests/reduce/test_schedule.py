"""How many tokens stay: forms of a schedule, what a model costs, and the two together."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.reduce import Anatomy, Schedule

HEAD = 1000


def anatomy(layers, dim, patch, side, prefix=1, heads=6):
    patches = (side // patch) ** 2
    fixed = patches * 3 * patch**2 * dim + dim * HEAD
    return Anatomy(layers=layers, dim=dim, hidden=4 * dim, patches=patches, prefix=prefix, heads=heads, fixed=fixed)


DEIT_S = anatomy(12, 384, 16, 224)


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        (DEIT_S, 4.5992),
        (anatomy(12, 768, 16, 224), 17.5644),
        (anatomy(24, 1024, 16, 224), 61.5555),
        (anatomy(32, 1280, 14, 224), 167.296),
    ],
    ids=["deit-s", "deit-b", "vit-l", "vit-h"],
)
def test_published_models_cost_what_the_formula_says(model, billions):
    assert model.full / 1e9 == pytest.approx(billions, rel=2e-4)


def test_a_layer_by_hand():
    small = Anatomy(layers=1, dim=2, hidden=6, patches=4, prefix=1, fixed=100)
    attention, mlp = 4 * 5 * 2**2 + 2 * 5 * 5 * 2, 2 * 2 * 6  # the second per token
    assert small.macs([2]) == 100 + attention + 3 * mlp
    assert small.macs([2], hook="block") == 100 + attention + 5 * mlp


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("r=4", (12, 8, 4, 2)),  # half of what is left at most
        ("r=0", (16, 16, 16, 16)),
        ("r=3-0", (10, 6, 4, 4)),
        ("ratio=0.75", (12, 9, 7, 6)),
        ("ratio=0.5@1x3", (16, 8, 8, 4)),
        ("ratio=0.1", (8, 4, 2, 1)),
        ("counts=16x9x9x1", (16, 9, 9, 1)),
        ("counts=99x16x9x2", (16, 16, 9, 2)),
        ("macs=1", (16, 16, 16, 16)),
    ],
)
def test_counts_by_hand(text, kept):
    tiny = Anatomy(layers=4, dim=16, hidden=32, patches=16, prefix=1)
    assert Schedule.of(text).kept(tiny) == kept
    assert Schedule.of(str(Schedule.of(text))) == Schedule.of(text)


forms = st.one_of(
    st.floats(0.01, 1).map(lambda v: f"ratio={v:.3f}"),
    st.integers(0, 300).map(lambda v: f"r={v}"),
    st.integers(0, 300).map(lambda v: f"r={v}-0"),
)


@settings(deadline=None)
@given(forms, st.integers(1, 40), st.integers(1, 1025))
def test_tokens_never_grow_never_vanish_and_are_never_more_than_halved(text, layers, patches):
    kept = Schedule.of(text).kept(Anatomy(layers=layers, dim=8, hidden=8, patches=patches, prefix=1))
    assert len(kept) == layers
    for before, after in zip((patches, *kept), kept, strict=False):
        assert 1 <= before - before // 2 <= after <= before


@settings(deadline=None)
@given(st.floats(0.4, 1), st.sampled_from(["attention", "block"]))
def test_a_share_of_the_multiply_adds_is_met(share, hook):
    kept = Schedule.of(f"macs={share}").kept(DEIT_S, hook=hook)
    assert DEIT_S.macs(kept, hook=hook) / DEIT_S.full == pytest.approx(share, abs=0.012)


def test_a_share_in_some_layers_only():
    kept = Schedule.of("macs=0.7@3x6x9").kept(DEIT_S)
    assert DEIT_S.macs(kept) / DEIT_S.full == pytest.approx(0.7, abs=0.01)
    assert [i for i in range(12) if kept[i] < (196, *kept)[i]] == [3, 6, 9]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ratio=1.2", r"ratio=1.2 is outside \(0, 1\]; pass the share to keep, e.g. 0.9"),
        ("ratio=0", r"ratio=0 is outside \(0, 1\]"),
        ("ratio=nan", r"ratio=nan is outside"),
        ("macs=-1", r"macs=-1 is outside"),
        ("r=-3", "r=-3: pass how many tokens each layer removes"),
        ("r=1.5", "r=1.5: pass how many tokens"),
        ("r=inf", "r=inf: pass how many tokens"),
        ("counts=8x0", "counts=8x0: at least one token must stay"),
        ("counts=8x9", "counts=8x9 grow"),
        ("counts=8x4", "counts=8x4 has 2 numbers; this model has 4 layers"),
        ("ratio=0.5@4", "names layer 4; this model has layers 0 to 3"),
        ("ratio=0.5@-1", "@-1: layers are counted from 0"),
        ("macs=0.2@3", "cannot be reached in layers 3 by halving at most; the least is macs="),
        ("keep=3", "schedule 'keep=3': write r=8"),
        ("ratio", "write r=8"),
        ("", "write r=8"),
    ],
)
def test_mistakes_are_named_in_one_line(text, said):
    tiny = Anatomy(layers=4, dim=16, hidden=32, patches=16, prefix=1)
    with pytest.raises(UserError, match=said) as error:
        Schedule.of(text).kept(tiny)
    assert "\n" not in str(error.value)

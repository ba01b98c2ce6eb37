"""Cache policies over every causal LM class of transformers: the unmodified model's logits, or a refusal in one line.

With room for everything they are equal bit by bit. With room for the text, but not for the padding before it, they are
equal by the paths that read some entries only, with whatever a class passes to its attention.
"""

from functools import cache

import pytest
import torch
from served import SERVED, check, main, refusal_of, skip_if_new_and_broken

from mintage import catalog
from mintage.errors import UserError
from mintage.keep import ChannelOrder, DoubleSparsity
from mintage.keep.core.served import check_served
from mintage.keep.core.step import Geometry
from mintage.models import cache_of, with_cache
from mintage.testing.causal_lms import build_tiny, names

PADDED = torch.tensor([[0] * 8 + [3, 1, 4, 15, 9, 2, 6, 5, 13, 8, 7]])
BOTH = torch.cat([PADDED, torch.tensor([[3, 14, 1, 5, 9, 2, 6, 16, 15, 8, 7, 12, 4, 10, 11, 17, 20, 21, 22]])])
ROOM = 16
POLICIES = {row.name: row for row in catalog.methods("keep") if row.package == "mintage" and row.status == "ready"}


@torch.no_grad()
def read(model, ids):
    """Logits of the real tokens of a prompt, and of a token behind it."""
    mask, past, logits = (ids > 0).long(), None, []
    for start, stop in ((0, 18), (18, 19)):
        out = model(ids[:, start:stop], attention_mask=mask[:, :stop], use_cache=True, **with_cache(model, past))
        past = cache_of(out)
        logits.append(out.logits)
    return torch.cat(logits, 1)[ids > 0]


@cache
def built(kind):
    return build_tiny(kind)


@cache
def plain(kind):
    """What the unmodified model says."""
    return read(built(kind), BOTH), read(built(kind), PADDED)


def alike(got, wanted):
    return torch.allclose(got, wanted, rtol=1e-3, atol=1e-3)


def policy_for(name, model):
    if name != "double-sparsity":
        return POLICIES[name].load()()
    check_served(model)
    geometry = Geometry.of(model)
    draw = torch.Generator().manual_seed(0)
    order = ChannelOrder(torch.rand(geometry.layers, max(geometry.heads, 1), max(geometry.dim, 1), generator=draw))
    return DoubleSparsity(channels=order, label_channels=4, dense_layers=0)


def outcome_of(name, kind):
    """Return "served", or the line that the policy refuses this kind with."""
    model = built(kind)
    windows = {"sliding_attention", "chunked_attention"} & set(getattr(model.config, "layer_types", None) or ())
    windows = windows or getattr(model.config.get_text_config(), "sliding_window", None)
    try:
        policy = policy_for(name, model)
        with policy.unbounded()(model):
            pass
        both, padded = plain(kind)
        same = alike if windows else torch.equal  # a window's cache is shorter, which rounds in another way
        with policy.unbounded()(model) as session:
            assert same(read(model, BOTH), both), f"{name}: with room for everything"
            assert session.cache is not None
        with policy.at(ROOM)(model) as session:
            assert alike(read(model, PADDED), padded), f"{name}: without room for padding"
            assert session.cache.get_seq_length() == 19
        return SERVED
    except UserError as error:
        return refusal_of(error, model)


@pytest.mark.parametrize("kind", names())
def test_a_policy_changes_nothing_or_refuses_in_one_line(kind):
    skip_if_new_and_broken(kind)
    for name in POLICIES:
        check(name, kind, outcome_of(name, kind), "tests/matrix/test_keeping.py")
    plain.cache_clear()
    built.cache_clear()


if __name__ == "__main__":
    main({name: lambda kind, name=name: outcome_of(name, kind) for name in POLICIES})

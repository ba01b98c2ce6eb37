"""Sizes at the edge of what a method can do: served as identity, or refused in one line."""

import pytest
import torch

from mintage.errors import UserError
from mintage.keep.core.channels import ChannelOrder
from mintage.keep.core.merge import evict_then_merge
from mintage.keep.core.votes import select_tokens


@pytest.mark.parametrize("order", [[0, 1, 1, 3], [0, 1, 2, 4], [-1, 0, 1, 2]])
def test_an_order_of_channels_that_names_one_twice_or_none_is_refused(order):
    with pytest.raises(UserError) as error:
        ChannelOrder.of_order(torch.tensor([[order]]))
    assert "\n" not in str(error.value)
    right = torch.tensor([[[3, 1, 0, 2]]])
    assert torch.equal(ChannelOrder.of_order(right).order, right)


@pytest.mark.parametrize("pool", [2, 4, -1])
def test_pooling_without_a_centre_is_refused(pool, as_users_call):
    drawn = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 4, 8, generator=drawn), torch.randn(40, 2, 8, generator=drawn)
    sizes = {"n_init": 2, "n_local": 4, "top_k": 8}
    with pytest.raises(UserError, match="pool"):
        select_tokens(query, key, pool=pool, **sizes)
    for right in (0, 1, 5):
        chosen = select_tokens(query, key, pool=right, **sizes)
        assert len(set(chosen.tolist())) == len(chosen)


def test_merging_with_room_for_all_is_identity():
    drawn = torch.Generator().manual_seed(0)
    key, value = (torch.randn(1, 2, 10, 8, generator=drawn) for _ in range(2))
    merged = evict_then_merge(key, value, torch.rand(1, 2, 6, generator=drawn), window=4, budget=12)
    assert torch.equal(merged.key, key)
    assert torch.equal(merged.value, value)

from dataclasses import dataclass

import pytest
import torch

from mintage.errors import UserError
from mintage.keep.baselines import FullCache
from mintage.keep.core.storage import KeptCache, KeptLayer


@dataclass(frozen=True, kw_only=True, eq=False)
class Capped(FullCache):
    most: int = 10

    def ceiling(self, layer):
        return self.most


def filled(tokens=12, policy=None, batch=2):
    layer = KeptLayer(0, policy or FullCache())
    states = torch.arange(batch * 3 * tokens * 4, dtype=torch.float32).reshape(batch, 3, tokens, 4)
    layer.append(key=states, value=-states, score=states[..., 0])
    return layer, states


def test_what_is_appended_is_there_under_one_index():
    layer, states = filled()
    more = torch.full((2, 3, 1, 4), 7.0)
    layer.append(key=more, value=more, score=more[..., 0])
    assert torch.equal(layer["key"], torch.cat((states, more), 2))
    assert torch.equal(layer["score"][..., -1], more[..., 0, 0])
    assert layer.entries == layer.seen == layer.get_seq_length() == 13
    assert layer.complete
    assert layer.positions.tolist() == [[list(range(13))]]


def test_buffers_grow_in_steps_not_token_by_token():
    layer, _ = filled(tokens=1)
    moves = 0
    for _ in range(300):
        before = layer["key"].data_ptr()
        layer.append(**{name: torch.ones_like(layer[name][:, :, :1]) for name in ("key", "value", "score")})
        moves += layer["key"].data_ptr() != before
    assert moves == 3
    assert layer.entries == 301


def test_nothing_is_allocated_above_a_ceiling():
    layer, _ = filled(tokens=6, policy=Capped(most=8))
    layer.append(**{name: torch.ones_like(layer[name][:, :, :1]) for name in ("key", "value", "score")})
    assert layer["key"].untyped_storage().nbytes() == 2 * 3 * 8 * 4 * 4


def test_bytes_are_those_of_the_storage():
    layer, _ = filled()
    layer.state["stats"] = torch.zeros(5)
    keys, scores = 2 * 3 * 12 * 4 * 4, 2 * 3 * 12 * 4
    assert layer.nbytes() == 2 * keys + scores + 20
    layer.keep(torch.tensor([[[0, 5, 11]] * 3] * 2))
    assert layer.nbytes() == (2 * keys + scores) // 4 + 2 * 3 * 3 * 4 + 20  # a quarter, and the positions
    assert layer.entry_bytes == layer.nbytes() // 3 - 20 // 3
    assert layer.fixed_bytes == 20
    layer.append(key=torch.zeros(2, 3, 1, 4), value=torch.zeros(2, 3, 1, 4), score=torch.zeros(2, 3, 1))
    assert layer.nbytes() == sum(t.untyped_storage().nbytes() for t in layer.tensors())  # room not yet used counts


def test_each_head_keeps_its_own_entries_in_every_field():
    layer, states = filled(batch=1)
    layer.keep(torch.tensor([[[0, 3], [1, 2], [10, 11]]]))
    assert not layer.complete
    assert layer.seen == 12
    assert layer.entries == 2
    assert layer.positions.tolist() == [[[0, 3], [1, 2], [10, 11]]]
    assert torch.equal(layer["key"][0, 2], states[0, 2, 10:])
    assert torch.equal(layer["value"][0, 1], -states[0, 1, 1:3])
    assert torch.equal(layer["score"][0, 0], states[0, 0, [0, 3], 0])
    layer.append(key=states[:, :, :1], value=states[:, :, :1], score=states[:, :, :1, 0])
    assert layer.positions[0, 0].tolist() == [0, 3, 12]


def test_masks_cover_all_tokens_read():
    layer, _ = filled()
    layer.keep(torch.tensor([[[0, 11]] * 3] * 2))
    assert layer.get_mask_sizes(4) == (16, 0)


def test_crop_forgets_the_newest():
    layer, states = filled()
    layer.crop(-5)
    assert layer.seen == layer.entries == 7
    assert torch.equal(layer["key"], states[:, :, :7])
    layer.crop(0)
    assert layer.seen == 7


def test_crop_of_kept_entries():
    layer, _ = filled(batch=1)
    layer.keep(torch.tensor([[[0, 9, 10, 11], [3, 9, 10, 11], [8, 9, 10, 11]]]))
    layer.crop(-3)
    assert layer.positions.tolist() == [[[0], [3], [8]]]
    with pytest.raises(UserError, match=r"^the last 2 tokens are no longer all in the cache"):
        layer.crop(-2)


def test_sequences_can_be_reordered_repeated_and_chosen():
    layer, states = filled()
    layer.start = torch.tensor([0, 3])
    layer.keep(torch.tensor([[[0, 11]] * 3, [[4, 11]] * 3]))
    layer.reorder_cache(torch.tensor([1, 0]))
    assert layer.positions[0, 0].tolist() == [4, 11]
    assert layer.start.tolist() == [3, 0]
    layer.batch_repeat_interleave(2)
    assert layer.positions[:, 0, 0].tolist() == [4, 4, 0, 0]
    layer.batch_select_indices(torch.tensor([3]))
    assert torch.equal(layer["key"][0, :, 0], states[0, :, 0])


def test_reset_forgets_everything():
    layer, _ = filled()
    layer.reset()
    assert layer.entries == layer.seen == layer.nbytes() == 0
    assert layer.complete


def test_a_cache_adds_up_its_layers():
    layers = [filled()[0], filled()[0]]
    layers[1].index = 1
    layers[1].keep(torch.tensor([[[0, 11]] * 3, [[4, 11]] * 3]))
    layers[1].reads = 5
    cache = KeptCache(layers)
    assert cache.nbytes() == layers[0].nbytes() + layers[1].nbytes()
    assert cache.kept().tolist() == [12, 2]
    assert cache.reads() == 5
    held = cache.survivors(1)
    assert held[0].shape == (3, 12)
    assert held[1].tolist() == [[4, 11]] * 3

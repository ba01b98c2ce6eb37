import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.draft.core.cache import TreeCache

LAYERS, HEADS, WIDTH = 2, 2, 3


class Mirror:
    """The slow reference: per row and layer a list of committed columns, and those of the tree under verification."""

    def __init__(self, batch, capacity=16, seed=0):
        self.cache = TreeCache(LAYERS, batch, capacity)
        self.committed = [[[] for _ in range(LAYERS)] for _ in range(batch)]
        self.pending = None
        self.batch = batch
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, new):
        """Append `new` columns of random keys and values to every layer, as a model's attention does."""
        states = torch.randn(LAYERS, 2, self.batch, HEADS, new, WIDTH, generator=self.generator)
        for layer in range(LAYERS):
            keys, values = self.cache.update(*states[layer], layer)
            start = keys.shape[2] - new
            assert torch.equal(keys[:, :, start:], states[layer, 0])
            assert torch.equal(values[:, :, start:], states[layer, 1])
        self.pending = states
        return states

    def prefill(self, lengths):
        states = self.forward(max(lengths))
        self.cache.fill(lengths)
        for row, length in enumerate(lengths):
            for layer in range(LAYERS):
                self.committed[row][layer] += [states[layer, :, row, :, c] for c in range(length)]

    def commit(self, nodes, paths):
        states = self.forward(nodes)
        self.cache.commit(paths)
        for row, path in enumerate(paths):
            for layer in range(LAYERS):
                self.committed[row][layer] += [states[layer, :, row, :, c] for c in path]

    def check(self):
        lengths = [len(rows[0]) for rows in self.committed]
        assert self.cache.lengths == lengths
        assert self.cache.width == max(lengths)
        assert self.cache.ragged == (min(lengths) != max(lengths))
        assert self.cache.get_seq_length() == max(lengths)
        for row, length in enumerate(lengths):
            for layer in range(LAYERS):
                for half, buffer in enumerate(self.cache.layers[layer].storage):
                    for column in range(length):
                        assert torch.equal(buffer[row, :, column], self.committed[row][layer][column][half])


@pytest.mark.parametrize("path", [[0], [0, 1, 2], [0, 3], [0, 2, 5, 6], []])
def test_one_row_is_compacted_like_index_select(path):
    mirror = Mirror(1)
    mirror.prefill([4])
    before = [buffer[:, :, :4].clone() for buffer in mirror.cache.layers[1].storage]
    states = mirror.forward(7)
    mirror.cache.commit([path])
    for buffer, old, new in zip(mirror.cache.layers[1].storage, before, states[1], strict=True):
        wanted = torch.cat([old, new.index_select(2, torch.tensor(path, dtype=torch.long))], dim=2)
        assert torch.equal(buffer[:, :, : 4 + len(path)], wanted)
    assert mirror.cache.lengths == [4 + len(path)]


@pytest.mark.parametrize(
    "rounds",
    [
        [(6, [[0, 2, 4], [0, 1, 5]])],  # equal lengths throughout
        [(6, [[0, 1, 2], [0]])],  # becomes ragged by paths that already lie in place
        [(6, [[0, 3], [0, 2, 4, 5]]), (5, [[0, 4], [0, 1]]), (3, [[0, 2], []])],
        [(4, [[0], []]), (4, [[0, 3], []]), (4, [[], []])],  # the second row has ended
        [(4, [[], []])],
    ],
)
def test_batches_keep_every_row_apart(rounds):
    for lengths in ([5, 5], [2, 5], [0, 3]):
        mirror = Mirror(2)
        mirror.prefill(lengths)
        mirror.check()
        for nodes, paths in rounds:
            mirror.commit(nodes, paths)
            mirror.check()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_sequence_of_rounds_leaves_the_committed_columns(data):
    batch = data.draw(st.integers(1, 3))
    mirror = Mirror(batch, capacity=data.draw(st.integers(1, 12)))
    mirror.prefill(data.draw(st.lists(st.integers(1, 5), min_size=batch, max_size=batch)))
    for _ in range(data.draw(st.integers(1, 4))):
        nodes = data.draw(st.integers(1, 6))
        subset = st.sets(st.integers(0, nodes - 1)).map(sorted)
        mirror.commit(nodes, [data.draw(subset) for _ in range(batch)])
        mirror.check()


def test_storage_stays_put_while_it_suffices_and_growth_keeps_its_content():
    mirror = Mirror(2, capacity=8)
    mirror.prefill([2, 3])
    first = mirror.cache.layers[0].storage[0].data_ptr()
    mirror.commit(5, [[0, 2], [0, 1]])
    assert mirror.cache.layers[0].storage[0].data_ptr() == first
    for _ in range(6):
        mirror.commit(5, [[0, 2, 4], [0, 3]])
        mirror.check()
    assert mirror.cache.layers[0].storage[0].shape[2] >= mirror.cache.width > 8


def test_nbytes_is_what_is_allocated():
    cache = TreeCache(LAYERS, 2, 10)
    assert cache.nbytes == 0
    states = torch.zeros(2, HEADS, 3, WIDTH, dtype=torch.bfloat16)
    for layer in range(LAYERS):
        cache.update(states, states, layer)
    assert cache.nbytes == LAYERS * 2 * (2 * HEADS * 10 * WIDTH) * 2
    held = sum(b.untyped_storage().nbytes() for layer in cache.layers for b in layer.storage)
    assert cache.nbytes == held
    for _ in range(3):  # a tree left unverified is overwritten, not kept
        cache.fill([3, 3])
        for layer in range(LAYERS):
            cache.update(states, states, layer)
    assert cache.nbytes == held


def test_masks_are_sized_by_the_committed_columns():
    mirror = Mirror(2)
    mirror.prefill([2, 4])
    assert mirror.cache.get_mask_sizes(3, 0) == (7, 0)

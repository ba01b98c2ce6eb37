"""Key-value storage for trees: pre-allocated, ragged over the batch, compacted to the accepted path in place.

Columns ``0 .. length[b]`` of row b hold its committed tokens. Tree forwards append their nodes from column `width` on,
the longest row's length; between a shorter row's length and `width` lie holes that the mask hides. `commit` moves the
accepted nodes next to the committed ones and drops the rest. The storage is not reallocated while it suffices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

__all__ = ["TreeCache"]


class _TreeLayer(DynamicLayer):
    """One layer's keys and values, written at column `end` of a buffer that is larger than needed."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.end = capacity, 0
        self.storage: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        end = self.end + key_states.shape[-2]
        if not self.storage or end > self.capacity:
            self._grow(end, key_states, value_states)
        views = []
        for buffer, new in zip(self.storage, (key_states, value_states), strict=True):
            buffer[:, :, self.end : end] = new
            views.append(buffer[:, :, :end])
        self.keys, self.values = views
        self.end = end
        return views[0], views[1]

    def _grow(self, end: int, *states: Tensor) -> None:
        old, self.capacity = self.storage, max(self.capacity, end + end // 2)
        self.storage = [s.new_zeros(*s.shape[:2], self.capacity, s.shape[3]) for s in states]
        for before, after in zip(old, self.storage, strict=False):
            after[:, :, : self.end] = before[:, :, : self.end]
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.end + query_length, 0


class TreeCache(Cache):
    """Cache of `layers` layers for `batch` sequences.

    Parameters
    ----------
    layers
        Number of decoder layers.
    batch
        Number of sequences.
    capacity
        Columns to allocate: prompt, new tokens and the largest tree; more is allocated when it does not suffice.
    """

    def __init__(self, layers: int, batch: int, capacity: int) -> None:
        super().__init__(layers=[_TreeLayer(capacity) for _ in range(layers)])
        self.lengths = [0] * batch

    @property
    def width(self) -> int:
        """Column after the committed ones, where the nodes of the next tree begin."""
        return max(self.lengths)

    @property
    def ragged(self) -> bool:
        """Whether some row is shorter than another, so that there are holes."""
        return min(self.lengths) != max(self.lengths)

    def reserve(self, columns: int, like: Tensor) -> int:
        """Allocate at least `columns` columns in every layer, for what shape and dtype `like` has; return how many."""
        for layer in self.layers:
            if not layer.storage or layer.capacity < columns:  # type: ignore[attr-defined]
                layer._grow(columns, like, like)  # type: ignore[attr-defined]
        return self.layers[0].capacity  # type: ignore[attr-defined]

    def advance(self, end: int) -> None:
        """Declare that every layer's columns up to `end` were written, by something else than `update`."""
        for layer in self.layers:
            layer.end = end  # type: ignore[attr-defined]

    def fill(self, lengths: Sequence[int]) -> None:
        """Declare that the last forward was a prefill of right-padded rows of these `lengths`."""
        self._set(list(lengths))

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the rows of the accepted nodes (ascending tree nodes, one list per sequence) and drop the others."""
        start, lengths = self.width, [n + len(p) for n, p in zip(self.lengths, paths, strict=True)]
        if not self.ragged:
            self._commit_together(start, paths)
        else:
            self._move(start, paths)
        self._set(lengths)

    def _commit_together(self, start: int, paths: Sequence[Sequence[int]]) -> None:
        if all(list(path) == list(range(len(path))) for path in paths):
            return  # the accepted nodes already lie where they belong
        if len(paths) > 1:
            self._move(start, paths)
            return
        source = torch.tensor(paths[0]).to(self.layers[0].storage[0].device) + start  # type: ignore[attr-defined]
        for layer in self.layers:
            for buffer in layer.storage:  # type: ignore[attr-defined]
                buffer[:, :, start : start + len(source)] = buffer.index_select(2, source)

    def _move(self, start: int, paths: Sequence[Sequence[int]]) -> None:
        """Gather and scatter with one index per row; what shorter paths lack lands in a hole."""
        longest = max(map(len, paths))
        source = [[start + p for p in path] + [start] * (longest - len(path)) for path in paths]
        first = self.lengths
        device = self.layers[0].storage[0].device  # type: ignore[attr-defined]
        take = torch.tensor(source, device=device)
        put = torch.tensor(first, device=device)[:, None] + torch.arange(longest, device=device)
        for layer in self.layers:
            for buffer in layer.storage:  # type: ignore[attr-defined]
                shape = (*buffer.shape[:2], longest, buffer.shape[3])
                rows = buffer.gather(2, take[:, None, :, None].expand(shape))
                buffer.scatter_(2, put[:, None, :, None].expand(shape), rows)

    def _set(self, lengths: list[int]) -> None:
        self.lengths = lengths
        for layer in self.layers:
            layer.end = self.width  # type: ignore[attr-defined]

    @property
    def nbytes(self) -> int:
        """Bytes of storage actually allocated."""
        return sum(b.numel() * b.element_size() for layer in self.layers for b in layer.storage)  # type: ignore[attr-defined]

"""Where cached entries live: buffers per layer that grow, shrink and are gathered together.

A layer holds M entries for each sequence and key-value head: a key, a value, and whatever fields a policy adds
(scores, labels, counts), all under the same index. While nothing was dropped an entry's index is its token's position;
after that a field ``position`` says which token each entry is. `nbytes` counts the storage of every tensor held.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from mintage.errors import UserError

__all__ = ["KeptCache", "KeptLayer", "gather_rows", "running"]

running: ContextVar[Any] = ContextVar("running", default=None)
"""The forward of a model under a policy that this thread is in, or None (`mintage.keep.core.attach`)."""

_STEP = 128  # entries by which a buffer grows


class KeptLayer(DynamicLayer):
    """The entries of one layer.

    Attributes
    ----------
    index
        Number of the layer.
    seen
        Tokens read so far; the next token's position.
    entries
        Entries held by each head.
    start
        Position of each sequence's first real token ([B], those before are padding), or None without padding.
    position_ids, geometry
        Rotary positions of the tokens of the forward under way ([B or 1, Q]), and the `mintage.keep.core.step.Geometry`
        of the model; set by the attachment.
    state
        Tensors of a policy that are not per entry (recent queries, a cached selection).
    host
        Names of fields that lie in the host's memory, away from the model's device.
    moved
        Bytes that the last forward moved from the host to the device.
    reads
        Elements of keys, values and labels that the last forward read here, over all sequences and heads.
    ragged
        Whether rows hold entries in different numbers: the first of a shorter one are empty, with position -1.
    marks
        `state` after each drafted token of the last forward, by the number of tokens read then: where `crop` returns.
    """

    is_sliding = False

    def __init__(self, index: int, policy: Any) -> None:
        super().__init__()
        self.index, self.policy = index, policy
        self.seen, self.entries, self.reads, self.moved = 0, 0, 0, 0
        self.host: tuple[str, ...] = ()
        self.start: Int[Tensor, " batch"] | None = None
        self.position_ids: Tensor = torch.zeros(1, 0, dtype=torch.long)
        self.geometry: Any = None
        self.state: dict[str, Tensor] = {}
        self.marks: dict[int, dict[str, Tensor]] = {}
        self.ragged = False
        self._buffers: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptLayer:
        """Copy what is held, not whose it is: a copy goes on under the same policy on the same model."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        shared = ("policy", "geometry")
        vars(twin).update({k: v if k in shared else copy.deepcopy(v, memo) for k, v in vars(self).items()})
        return twin

    # -- what a policy reads and writes ---------------------------------------------------------------------------

    def __getitem__(self, field: str) -> Tensor:
        """Return a field's entries [B, G, M] or [B, G, M, width], a view that may be written to."""
        return self._buffers[field][:, :, : self.entries]

    def __contains__(self, field: str) -> bool:
        return field in self._buffers

    @property
    def complete(self) -> bool:
        """Whether every token read is still held, so that index equals position."""
        return "position" not in self._buffers

    @property
    def positions(self) -> Int[Tensor, "#batch #groups entries"]:
        """Position of every entry's token, ascending in each head."""
        if self.complete:
            return torch.arange(self.entries, device=self._buffers["key"].device)[None, None]
        return self["position"]

    def append(self, **fields: Tensor) -> None:
        """Add one entry per token and head; all fields known so far must be given, new ones only to an empty layer."""
        new = fields["key"].shape[2]
        if not self.complete:
            position = torch.arange(self.seen, self.seen + new, device=fields["key"].device, dtype=torch.int32)
            fields["position"] = position.expand(*fields["key"].shape[:2], new)
        end = self.entries + new
        for name, values in fields.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape[2] < end:
                buffer = self._buffers[name] = self._larger(buffer, values, end)
            buffer[:, :, self.entries : end] = values
        self.entries, self.seen = end, self.seen + new
        self.is_initialized = True

    def _larger(self, buffer: Tensor | None, like: Tensor, end: int) -> Tensor:
        capacity = end if buffer is None else end + _STEP - 1
        ceiling = self.policy.ceiling(self)
        if ceiling is not None:
            capacity = max(end, min(capacity, ceiling))
        larger = like.new_empty(*like.shape[:2], capacity, *like.shape[3:])
        if buffer is not None:
            larger[:, :, : self.entries] = buffer[:, :, : self.entries]
        return larger

    def keep(self, indices: Int[Tensor, "batch groups kept"]) -> None:
        """Drop all entries but those at `indices` (ascending in each head), in every field, and free their storage."""
        if self.complete:
            shape = self._buffers["key"].shape[:2]
            self._buffers["position"] = self.positions.to(torch.int32).expand(*shape, self.entries)
        for name in list(self._buffers):
            values = self[name]
            index = indices if values.ndim == 3 else indices[..., None].expand(*indices.shape, values.shape[3])
            self._buffers[name] = values.gather(2, index)
        self.entries = indices.shape[2]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new tokens as the policy does; called by the model before attention.

        Raises
        ------
        UserError
            The model is not under the policy now.
        """
        forward = running.get()
        if forward is None or forward.cache.kept_layers[self.index] is not self:
            name = type(self.policy).__name__
            raise UserError(
                f"this cache is kept by {name}; go on with it inside 'with policy(model)', of the same {name}"
            )
        forward.stored.add(self.index)
        self.policy.store(self, key_states, value_states)
        return self["key"], self["value"]

    @contextmanager
    def up_to(self, later: int) -> Iterator[None]:
        """Hold the newest `later` tokens back for a while, as if they had not come yet."""
        self.entries, self.seen = self.entries - later, self.seen - later
        try:
            yield
        finally:
            self.entries, self.seen = self.entries + later, self.seen + later

    # -- rows by themselves ---------------------------------------------------------------------------------------

    def empty(self) -> Int[Tensor, " batch"]:
        """Count the entries of each sequence that are padding, or empty."""
        first = 0 if self.start is None else self.start[:, None]
        return (self.positions[:, 0].expand(self._buffers["key"].shape[0], -1) < first).sum(-1)

    def row(self, index: int, first: int) -> KeptLayer:
        """Return one sequence's entries from number `first` on as a layer of their own, as if read alone."""
        part = KeptLayer(self.index, self.policy)
        part.seen, part.entries, part.geometry = self.seen, self.entries - first, self.geometry
        part.is_initialized, part.position_ids = True, self.position_ids[-1:]
        own = slice(index, index + 1)
        part.start = None if self.start is None else self.start[own]
        part.state = {name: values[own] for name, values in self.state.items()}
        part._buffers = {name: values[own, :, first : self.entries] for name, values in self._buffers.items()}
        if self.complete:
            positions = self.positions[:, :, first:].to(torch.int32)
            part._buffers["position"] = positions.expand(1, part["key"].shape[1], -1)
        return part

    def join(self, rows: Sequence[KeptLayer]) -> None:
        """Take the entries of all sequences from `rows`; those that hold fewer than others begin with empty ones."""
        self.entries = most = max(row.entries for row in rows)
        self.ragged = any(row.entries < most for row in rows)
        for name, example in rows[0]._buffers.items():
            buffer = example.new_full((len(rows), *example.shape[1:2], most, *example.shape[3:]), -(name == "position"))
            for index, row in enumerate(rows):
                buffer[index, :, most - row.entries :] = row[name][0]
            self._buffers[name] = buffer

    # -- accounting -----------------------------------------------------------------------------------------------

    def nbytes(self) -> int:
        """Bytes of storage allocated, buffers not yet filled and the policy's own state included."""
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors()}
        return sum(held.values())

    def host_bytes(self) -> int:
        """Bytes of the fields that lie in the host's memory; the rest of `nbytes` is on the device."""
        return sum(self._buffers[name].untyped_storage().nbytes() for name in self.host if name in self._buffers)

    def tensors(self) -> list[Tensor]:
        """All tensors held."""
        return [*self._buffers.values(), *self.state.values()]

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry in all sequences and heads, its position included."""
        size = sum(b[:, :, :1].numel() * b.element_size() for name, b in self._buffers.items() if name != "position")
        return size + 4 * self._buffers["key"].shape[0] * self._buffers["key"].shape[1]

    @property
    def fixed_bytes(self) -> int:
        """Bytes held besides the entries."""
        return sum(t.numel() * t.element_size() for t in self.state.values())

    # -- what transformers asks of a layer ------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        """Tokens read, kept or not: the next token's position."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Ask for masks over all tokens read; columns of dropped ones are left out at attention."""
        return self.seen + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens.

        Raises
        ------
        UserError
            Some of them were already dropped or merged, so the cache cannot return to what it was.
        """
        remove = -abs(int(tokens_to_remove))
        if remove == 0 or not self.is_initialized:
            return
        cut = max(self.seen + remove, 0)
        if not self.complete and not ((self["position"] >= cut).sum(-1) == self.seen - cut).all():
            raise UserError(
                f"the last {-remove} tokens are no longer all in the cache, so it cannot be cropped; "
                "keep a larger window, or start again from the prompt"
            )
        self.entries -= self.seen - cut
        self.seen = cut
        self.policy.cropped(self)
        if cut in self.marks:
            self.state = dict(self.marks[cut])

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(self.index, self.policy)

    def _map(self, change: Any) -> None:
        for held in (self._buffers, self.state, *self.marks.values()):
            for name, values in held.items():
                held[name] = change(values)
        if self.start is not None:
            self.start = change(self.start)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the sequences, as beam search does."""
        self._map(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        self._map(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences."""
        self._map(lambda t: t[indices, ...])

    def offload(self) -> None:
        """Refuse: transformers' offloading knows nothing of a policy's fields."""
        raise UserError("cache_implementation='offloaded' does not go with a policy; double-sparsity has offload=True")


class KeptCache(Cache):
    """The layers of a model under one policy."""

    def __init__(self, layers: list[KeptLayer]) -> None:
        super().__init__(layers=layers)  # type: ignore[arg-type]
        self.kept_layers = layers
        self.drafted: int | None = None  # last tokens of the next forward that are guesses, if someone tells

    def nbytes(self) -> int:
        """Bytes of storage that the whole cache holds."""
        return sum(layer.nbytes() for layer in self.kept_layers)

    def host_bytes(self) -> int:
        """Bytes of it that lie in the host's memory, where a policy offloads."""
        return sum(layer.host_bytes() for layer in self.kept_layers)

    def moved(self) -> int:
        """Bytes that the last forward moved from the host to the device."""
        return sum(layer.moved for layer in self.kept_layers)

    def kept(self) -> Int[Tensor, " layers"]:
        """Entries per head, layer by layer."""
        return torch.tensor([layer.entries for layer in self.kept_layers])

    def reads(self) -> int:
        """Elements that the last forward read from the cache."""
        return sum(layer.reads for layer in self.kept_layers)

    def survivors(self, row: int = 0) -> Mapping[int, Int[Tensor, "groups entries"]]:
        """Which positions each layer and head still holds, for sequence `row`: what a heat map shows."""
        held = {}
        for layer in self.kept_layers:
            positions = layer.positions
            groups, first = layer["key"].shape[1], int(layer.empty()[row])
            own = positions[row if positions.shape[0] > 1 else 0].expand(groups, layer.entries)
            held[layer.index] = own[:, first:].cpu()
        return held


def gather_rows(states: Float[Tensor, "batch groups entries dim"], index: Int[Tensor, "batch groups chosen"]) -> Tensor:
    """Gather whole rows as a lookup in one table of rows: on CPU many times faster than `Tensor.gather`."""
    index = index.to(states.device)  # rows may lie in the host's memory
    batch, groups, _, dim = states.shape
    per_batch, per_group, per_entry, last = states.stride()
    if last != 1 or per_entry != dim or per_batch % dim or per_group % dim:
        return states.gather(2, index[..., None].expand(*index.shape, dim))
    rows = states.untyped_storage().nbytes() // states.element_size() - states.storage_offset()
    table = states.as_strided((rows // dim, dim), (dim, 1))
    first = torch.arange(batch, device=states.device)[:, None] * (per_batch // dim)
    first = first + torch.arange(groups, device=states.device) * (per_group // dim)
    return table.index_select(0, (index + first[:, :, None]).flatten()).view(batch, groups, -1, dim)

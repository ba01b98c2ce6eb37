"""Ranks in a ring: how a text is shared out, the post between ranks and what it carries, and rounds of it.

Ring attention, the baseline, moves keys and values all in one direction; `circulate` sends queries one way and results
the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from mintage.errors import UserError
from mintage.keep.core.blocks import merge_partials, partial_attention

__all__ = [
    "Kind",
    "Message",
    "Ring",
    "Traffic",
    "circulate",
    "even_merge",
    "even_split",
    "ring_attention",
    "seen_by",
    "simulate",
    "zigzag_merge",
    "zigzag_split",
]

Kind = Literal["query", "result", "key-value", "decode"]


# -- sharing out -------------------------------------------------------------------------------------------------------


def even_split(x: Tensor, ranks: int, dim: int) -> list[Tensor]:
    """Cut `x` into one contiguous shard per rank.

    Raises
    ------
    UserError
        The length is not a multiple of `ranks`.
    """
    return _chunks(x, ranks, ranks, dim)


def even_merge(shards: Sequence[Tensor], dim: int) -> Tensor:
    """Undo `even_split`."""
    return torch.cat(list(shards), dim)


def zigzag_split(x: Tensor, ranks: int, dim: int) -> list[Tensor]:
    """Give rank r the chunks r and ``2 ranks - 1 - r`` of ``2 ranks``, so that causal attention is equal work for all.

    For whatever goes with the tokens: ids, position ids, labels.

    Raises
    ------
    UserError
        The length is not a multiple of ``2 ranks``.
    """
    chunks = _chunks(x, 2 * ranks, ranks, dim)
    return [torch.cat((chunks[rank], chunks[-1 - rank]), dim) for rank in range(ranks)]


def zigzag_merge(shards: Sequence[Tensor], dim: int) -> Tensor:
    """Undo `zigzag_split`."""
    halves = [shard.chunk(2, dim) for shard in shards]
    return torch.cat([first for first, _ in halves] + [second for _, second in halves[::-1]], dim)


def _chunks(x: Tensor, parts: int, ranks: int, dim: int) -> list[Tensor]:
    length = x.shape[dim]
    if length == 0 or length % parts:
        near = max(length // parts, 1) * parts
        raise UserError(f"{length} tokens do not divide over {ranks} ranks; pass a multiple of {parts}, e.g. {near}")
    return list(x.chunk(parts, dim))


# -- the post ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """One tensor that one rank sent to another."""

    step: int
    source: int
    target: int
    kind: Kind
    elements: int
    bytes: int


@dataclass
class Traffic:
    """What this rank has sent."""

    messages: list[Message] = field(default_factory=list)

    def elements(self, kind: Kind) -> int:
        """Elements of this kind."""
        return sum(m.elements for m in self.messages if m.kind == kind)

    def bytes(self, *kinds: Kind) -> int:
        """Bytes of these kinds."""
        return sum(m.bytes for m in self.messages if m.kind in kinds)

    @property
    def busiest(self) -> int:
        """Bytes in the busier direction: queries, keys and values go one way round, results the other."""
        return max(self.bytes("query", "key-value"), self.bytes("result"))


class Ring:
    """The ranks, and the post between them.

    Parameters
    ----------
    query_group, result_group
        Process groups of `torch.distributed` with the same ranks; two, so that both directions run at once on nccl.
        None is the default group; without one there is a single rank.
    timeout
        Seconds after which a rank that does not answer is given up, where the backend can tell.
    """

    def __init__(self, query_group: Any = None, result_group: Any = None, *, timeout: int | float = 60.0) -> None:
        self.groups = {"query": query_group, "key-value": query_group, "result": result_group, "decode": query_group}
        running = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank(query_group) if running else 0
        self.size = dist.get_world_size(query_group) if running else 1
        self.timeout = timedelta(seconds=timeout)
        self.traffic = Traffic()

    def exchange(
        self, step: int, kind: Kind, sent: Sequence[Tensor], target: int, received: Sequence[Tensor], source: int
    ) -> Callable[[], Sequence[Tensor]]:
        """Start sending to `target` and receiving from `source`; the function returned waits for both."""
        held = self.groups[kind]
        tag = 16 if kind == "result" else 0
        there, here = (dist.get_global_rank(held, rank) if held is not None else rank for rank in (target, source))
        sent = [x.contiguous() for x in sent]  # kept alive until they have gone
        operations = [dist.P2POp(dist.irecv, x, here, held, tag + i) for i, x in enumerate(received)]
        operations += [dist.P2POp(dist.isend, x, there, held, tag + i) for i, x in enumerate(sent)]
        works = self._try(step, lambda: dist.batch_isend_irecv(operations))
        for x in sent:
            size = x.numel() * x.element_size()
            self.traffic.messages.append(Message(step, self.rank, target, kind, x.numel(), size))

        def wait() -> Sequence[Tensor]:
            for work in works:
                self._try(step, lambda w=work: w.wait(self.timeout))
            sent.clear()
            return received

        return wait

    def gather(self, x: Tensor) -> list[Tensor]:
        """Return `x` of every rank."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self._try(0, lambda: dist.all_gather(parts, x.contiguous(), group=self.groups["decode"]))
        sent = (self.size - 1) * x.numel()
        self.traffic.messages.append(Message(0, self.rank, -1, "decode", sent, sent * x.element_size()))
        return parts

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Return the `x` of rank `source` on every rank."""
        held = self.groups["decode"]
        source = dist.get_global_rank(held, source) if held is not None else source
        self._try(0, lambda: dist.broadcast(x, source, group=held))
        return x

    def _try(self, step: int, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except RuntimeError as error:
            said = str(error).strip().splitlines()[0][:120]
            raise UserError(
                f"rank {self.rank} lost another rank at step {step} ({said}); look for the error of that rank, "
                "and start all of them again"
            ) from None


def circulate(
    ring: Ring,
    travellers: Sequence[Tensor],
    visit: Callable[[Sequence[Tensor], int, bool], Sequence[Tensor]],
    like: Callable[[int], Sequence[Tensor]],
    deliver: Callable[[Sequence[Tensor], bool], None],
    causal: bool,
) -> None:
    """Send `travellers` round all ranks, and what each visit makes of them back to their owner.

    Parameters
    ----------
    travellers
        This rank's own, tokens in dimension 2.
    visit
        ``visit(travellers, step, half)`` at this rank's keys; `half` where only their second half sees any.
    like
        ``like(tokens)`` makes buffers for the result of a visit.
    deliver
        ``deliver(result, half)`` at the owner; `half` where it is for the second half of its queries.
    """
    size, rank = ring.size, ring.rank
    tokens = travellers[0].shape[2]
    hand, done = list(travellers), None

    def half(at: int, step: int) -> bool:
        return causal and at + step >= size

    def send_back(step: int) -> Callable[[], Sequence[Tensor]]:
        source = (rank - step) % size
        short = half(source, step)
        received = like(tokens // 2 if short else tokens)
        wait = ring.exchange(step, "result", cast("Sequence[Tensor]", done), (rank + step) % size, received, source)
        return lambda: deliver(wait(), short) or ()

    for step in range(size):
        arriving, returning = None, None
        if step < size - 1:
            target, source = (rank - 1) % size, (rank + 1) % size
            short = half(target, step + 1) and hand[0].shape[2] == tokens
            room = tokens // 2 if half(rank, step + 1) else tokens
            received = [x.new_empty(*x.shape[:2], room, *x.shape[3:]) for x in travellers]
            sent = [x[:, :, tokens // 2 :] for x in hand] if short else hand
            arriving = ring.exchange(step, "query", sent, target, received, source)
        if step > 1:
            returning = send_back(step - 1)
        result = visit(hand, step, half(rank, step))
        if step == 0:
            deliver(result, False)
        if returning is not None:
            returning()
        done = result
        if arriving is not None:
            hand = list(arriving())
    if size > 1:
        send_back(size - 1)()


def seen_by(key: Tensor, value: Tensor, step: int, half: bool, causal: bool) -> tuple[Tensor, Tensor]:
    """Return the keys that visitors of this step see: all, or in causal attention only this rank's first chunk."""
    if causal and step > 0 and not half:
        cut = key.shape[2] // 2
        return key[:, :, :cut], value[:, :, :cut]
    return key, value


def simulate(
    messages: Iterable[Message], *, compute: int | float, bandwidth: int | float, latency: int | float = 0.0
) -> list[float]:
    """Model the seconds of every step on links of a full mesh, each direction of each link on its own.

    Parameters
    ----------
    messages
        Of all ranks (`Traffic.messages`).
    compute
        Seconds that a rank computes per step; sending goes on meanwhile.
    bandwidth, latency
        Bytes per second, and seconds per message, of one direction of a link.
    """
    load: dict[int, dict[tuple[int, int], float]] = {}
    for m in messages:
        step = m.step + 1 if m.kind == "result" else m.step  # a result leaves while the next block is computed
        links = load.setdefault(step, {})
        links[m.source, m.target] = links.get((m.source, m.target), 0.0) + latency + m.bytes / bandwidth
    last = max(load, default=0)
    return [max(compute, *load.get(step, {}).values(), 0.0) for step in range(last + 1)]


# -- the baseline ------------------------------------------------------------------------------------------------------


def ring_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch groups tokens dim"],
    value: Float[Tensor, "batch groups tokens dim"],
    *,
    ring: Ring | None = None,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Attend as `token_ring_attention` does, by moving keys and values: the baseline, without a gradient.

    Raises
    ------
    UserError
        A gradient is asked for; a rank does not answer.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        raise UserError("ring_attention has no gradient here; use token_ring_attention, or torch.no_grad()")
    ring = Ring() if ring is None else ring
    size, rank = ring.size, ring.rank
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    out, lse = partial_attention(query, key, value, scale=scale, causal=causal)
    held: Sequence[Tensor] = (key, value)
    cut = query.shape[2] // 2
    for step in range(1, size):
        received = [torch.empty_like(x) for x in held]
        held = ring.exchange(step, "key-value", held, (rank + 1) % size, received, (rank - 1) % size)()
        rows = slice(cut if causal and step > rank else 0, None)  # later owners: only the second chunk sees them
        seen = seen_by(held[0], held[1], step, step > rank, causal)
        block, block_lse = partial_attention(query[:, :, rows], *seen, scale=scale)
        out[:, :, rows], lse[:, :, rows] = merge_partials(out[:, :, rows], lse[:, :, rows], block, block_lse)
    out = out.to(query.dtype)
    return (out, lse) if return_lse else out

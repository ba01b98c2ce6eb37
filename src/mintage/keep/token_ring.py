"""TokenRing: exact attention over a text that is shared out to ranks, with traffic in both directions of the ring.

Keys and values stay where they are. Queries travel from rank to rank one way; what a rank computed for them goes
straight back to their owner the other way, with its log-sum-exp, while the next block is computed. Ring attention
moves keys and values instead, all in one direction. The gradient travels alike: queries with the gradient of their
outputs one way, gradients of queries back.

Use, on every rank (``torchrun --nproc-per-node 4``), with a text whose length ``2 x ranks`` divides::

    policy = TokenRing()
    with policy(model) as session:
        logits = policy.prefill(model, ids)        # of the last token, on every rank
        cache = session.cache                      # each rank holds its part

``python -m mintage.keep.token_ring --help`` runs it on a model and counts what travels.

Not here: rings of rings over several nodes, packed sequences, padding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.keep.contract import Policy, Step
from mintage.keep.core.attention import group, ungroup
from mintage.keep.core.storage import KeptCache, KeptLayer

__all__ = [
    "Message",
    "Ring",
    "TokenRing",
    "Traffic",
    "even_merge",
    "even_split",
    "merge_partials",
    "partial_attention",
    "ring_attention",
    "simulate",
    "token_ring_attention",
    "zigzag_merge",
    "zigzag_split",
]

_QUERIES = 256
"""Queries whose scores are held at a time."""

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


# -- one block ---------------------------------------------------------------------------------------------------------


def partial_attention(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch groups entries dim"],
    value: Float[Tensor, "batch groups entries dim"],
    *,
    scale: float | None = None,
    causal: bool = False,
) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch heads queries"]]:
    """Attend to one block of keys.

    Parameters
    ----------
    causal
        Query i sees the keys up to ``entries - queries + i``.

    Returns
    -------
    out
        In float32 or better.
    lse
        Natural log-sum-exp of the scaled scores.
    """
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    outs, lses = [], []
    for _, scores in _scores(query, key, factor, causal):
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp_().to(value.dtype)  # [B, G, H / G, q, M]
        outs.append((weights.flatten(2, 3) @ value).unflatten(2, weights.shape[2:4]).flatten(1, 2))
        lses.append(lse.flatten(1, 2))
    return torch.cat(outs, 2).to(_wide(query)), torch.cat(lses, 2)


def _scores(query: Tensor, key: Tensor, scale: float, causal: bool) -> Iterable[tuple[int, Tensor]]:
    """Yield the scores of some queries at a time, [B, G, H / G, q, M], with the number of the first of them."""
    groups, entries, queries = key.shape[1], key.shape[2], query.shape[2]
    for start in range(0, queries, _QUERIES):
        rows = query[:, :, start : start + _QUERIES]
        number = rows.shape[2]
        scores = (group(rows, groups) @ key.transpose(-1, -2)).to(_wide(query)).unflatten(2, (-1, number)) * scale
        if causal:
            own = torch.arange(entries - queries + start, entries - queries + start + number, device=key.device)
            later = torch.arange(entries, device=key.device) > own[:, None]
            scores = scores.masked_fill(later, -torch.inf)
        yield start, scores


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def merge_partials(
    out: Float[Tensor, "batch heads queries dim"],
    lse: Float[Tensor, "batch heads queries"],
    block_out: Float[Tensor, "batch heads queries dim"],
    block_lse: Float[Tensor, "batch heads queries"],
) -> tuple[Tensor, Tensor]:
    """Join the attention to two blocks of keys; a log-sum-exp of -inf is a block that says nothing."""
    total = torch.logaddexp(lse, block_lse)
    one, two = ((part - total).exp().nan_to_num(0.0)[..., None] for part in (lse, block_lse))
    return out * one + block_out * two, total


def _block_gradient(
    travellers: Sequence[Tensor], key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values from one block; `travellers` are q, grad of out, lse, and delta."""
    query, grad, lse, delta = travellers
    groups = key.shape[1]
    d_key, d_value = torch.zeros_like(key, dtype=_wide(key)), torch.zeros_like(value, dtype=_wide(value))
    d_query = []
    for start, scores in _scores(query, key, scale, causal):
        here = slice(start, start + scores.shape[3])
        shape = (scores.shape[2], scores.shape[3])
        weights = (scores - lse[:, :, here].unflatten(1, (groups, -1))[..., None]).exp()
        weights = weights.flatten(2, 3)
        rows, grads = (group(x[:, :, here], groups).to(_wide(x)) for x in (query, grad))
        inner = grads @ value.to(grads.dtype).transpose(-1, -2)
        inner = inner - delta[:, :, here].unflatten(1, (groups, -1)).flatten(2, 3)[..., None]
        d_scores = weights * inner * scale
        d_value += weights.transpose(-1, -2) @ grads
        d_key += d_scores.transpose(-1, -2) @ rows
        d_query.append(ungroup(d_scores @ key.to(rows.dtype), shape[1]))
    return torch.cat(d_query, 2), d_key, d_value


# -- the ring ----------------------------------------------------------------------------------------------------------


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


def _circulate(
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


def _view(key: Tensor, value: Tensor, step: int, half: bool, causal: bool) -> tuple[Tensor, Tensor]:
    """Return the keys that visitors of this step see: all, or in causal attention only this rank's first chunk."""
    if causal and step > 0 and not half:
        cut = key.shape[2] // 2
        return key[:, :, :cut], value[:, :, :cut]
    return key, value


class _TokenRing(torch.autograd.Function):
    """Forward and backward, both by `_circulate`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, ring: Ring, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out = torch.zeros_like(query, dtype=_wide(query))
        lse = out.new_full(out.shape[:3], -torch.inf)

        def visit(travellers: Sequence[Tensor], step: int, half: bool) -> Sequence[Tensor]:
            seen = _view(key, value, step, half, causal)
            block, block_lse = partial_attention(travellers[0], *seen, scale=scale, causal=causal and step == 0)
            return (block.to(query.dtype) if step else block), block_lse

        def like(tokens: int) -> Sequence[Tensor]:
            return query.new_empty(*query.shape[:2], tokens, query.shape[3]), lse.new_empty(*lse.shape[:2], tokens)

        def deliver(result: Sequence[Tensor], half: bool) -> None:
            rows = slice(query.shape[2] // 2 if half else 0, None)
            block, block_lse = result
            out[:, :, rows], lse[:, :, rows] = merge_partials(
                out[:, :, rows], lse[:, :, rows], block.to(out.dtype), block_lse
            )

        _circulate(ring, (query,), visit, like, deliver, causal)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.ring, ctx.causal, ctx.scale = ring, causal, scale
        return out.to(query.dtype), lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad, grad_lse = gradients
        query, key, value, out, lse = ctx.saved_tensors
        delta = (grad.to(out.dtype) * out).sum(-1) - grad_lse
        d_query = torch.zeros_like(query, dtype=out.dtype)
        d_key, d_value = torch.zeros_like(key, dtype=out.dtype), torch.zeros_like(value, dtype=out.dtype)

        def visit(travellers: Sequence[Tensor], step: int, half: bool) -> Sequence[Tensor]:
            seen = _view(key, value, step, half, ctx.causal)
            block, k, v = _block_gradient(travellers, *seen, ctx.scale, ctx.causal and step == 0)
            d_key[:, :, : k.shape[2]] += k
            d_value[:, :, : v.shape[2]] += v
            return (block,)

        def like(tokens: int) -> Sequence[Tensor]:
            return (d_query.new_empty(*query.shape[:2], tokens, query.shape[3]),)

        def deliver(result: Sequence[Tensor], half: bool) -> None:
            d_query[:, :, query.shape[2] // 2 if half else 0 :] += result[0]

        _circulate(ctx.ring, (query, grad.to(query.dtype), lse, delta), visit, like, deliver, ctx.causal)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), None, None, None


def token_ring_attention(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch groups tokens dim"],
    value: Float[Tensor, "batch groups tokens dim"],
    *,
    ring: Ring | None = None,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """Attend from this rank's tokens to those of all ranks; differentiable.

    Parameters
    ----------
    query, key, value
        This rank's shard, as `zigzag_split` gives it where `causal`, else equal shards in any order.
    ring
        The ranks; default: the default process group.
    causal
        No token sees a later one.
    scale
        Of the scores; default ``1 / sqrt(dim)``.
    return_lse
        Return also the log-sum-exp of every query, [B, H, tokens].

    Raises
    ------
    UserError
        An odd number of tokens with `causal`; a rank that does not answer.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    ring = Ring() if ring is None else ring
    if causal and ring.size > 1 and query.shape[2] % 2:
        raise UserError(f"a shard of {query.shape[2]} tokens has no two chunks; share the text out with zigzag_split")
    out, lse = cast("tuple[Tensor, Tensor]", _TokenRing.apply(query, key, value, ring, causal, scale))
    return (out, lse) if return_lse else out


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
        seen = _view(held[0], held[1], step, step > rank, causal)
        block, block_lse = partial_attention(query[:, :, rows], *seen, scale=scale)
        out[:, :, rows], lse[:, :, rows] = merge_partials(out[:, :, rows], lse[:, :, rows], block, block_lse)
    out = out.to(query.dtype)
    return (out, lse) if return_lse else out


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


# -- on a model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRing(Policy):
    """Exact attention over a text shared out to ranks (Wang et al. 2024).

    A prompt is read by all ranks together, each holding the keys and values of its own tokens. Tokens after it are read
    by every rank, held by one in turn, and each rank attends to what it holds. With a single rank nothing changes.

    Parameters
    ----------
    query_group, result_group
        Process groups for the two directions; default: the default group for both.
    timeout
        Seconds after which a rank that does not answer is given up.
    """

    needs_ranks = True

    query_group: Any = None
    result_group: Any = None
    timeout: int | float = 60.0
    _rings: list[Ring] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise UserError(f"timeout={self.timeout} gives no rank time to answer; pass seconds, e.g. 60")

    @classmethod
    def tiny(cls) -> TokenRing:
        """Without a process group there is one rank."""
        return cls()

    @property
    def ring(self) -> Ring:
        """The ranks, and what this one has sent."""
        if not self._rings:
            self._rings.append(Ring(self.query_group, self.result_group, timeout=self.timeout))
        return self._rings[0]

    def shard(self, x: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch part"]:
        """Return this rank's part of what goes with the tokens: ids, labels, position ids."""
        return zigzag_split(x, self.ring.size, 1)[self.ring.rank]

    def prefill(self, model: Any, ids: Int[Tensor, "batch tokens"], **kwargs: Any) -> Tensor:
        """Read a prompt with all ranks, inside ``with policy(model)``; return the logits behind it, [B, V], on each.

        Parameters
        ----------
        ids
            The whole prompt, on every rank.
        **kwargs
            For the model's forward.

        Raises
        ------
        UserError
            The ranks do not divide the prompt; a rank does not answer.
        """
        places = torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids)
        out = model(self.shard(ids), position_ids=self.shard(places), use_cache=True, **kwargs)
        last = out.logits[:, -1].contiguous()  # rank 0 has the last chunk
        return self.ring.broadcast(last, 0) if self.ring.size > 1 else last

    def extend(
        self, model: Any, cache: KeptCache, ids: Int[Tensor, "batch new"], first: int, **kwargs: Any
    ) -> Float[Tensor, "batch vocabulary"]:
        """Read further tokens, the first of them number `first` of the text; return the logits behind them."""
        places = torch.arange(first, first + ids.shape[1], device=ids.device)[None].expand_as(ids)
        return model(ids, position_ids=places, past_key_values=cache, **kwargs).logits[:, -1]

    def store(
        self,
        layer: KeptLayer,
        key: Float[Tensor, "batch groups new dim"],
        value: Float[Tensor, "batch groups new dim"],
    ) -> None:
        """Hold this rank's tokens."""
        if self.ring.size > 1 and layer.is_initialized and self._owner(layer) != self.ring.rank:
            layer.seen += key.shape[2]  # another rank's turn
            return
        layer.append(key=key, value=value)

    def _owner(self, layer: KeptLayer) -> int:
        return int(layer.position_ids[0, 0]) % self.ring.size

    def cropped(self, layer: KeptLayer) -> None:
        """Refuse: the last tokens lie on several ranks."""
        if self.ring.size > 1:
            raise UserError("a cache over several ranks cannot be cropped; start again from the prompt")

    def attend(self, layer: KeptLayer, step: Step) -> Float[Tensor, "batch heads queries dim"]:
        """Attend over all ranks."""
        key, value = layer["key"], layer["value"]
        layer.reads = key.numel() + value.numel()
        if self.ring.size == 1:
            return step.dense()
        if layer.start is not None:
            raise UserError("token-ring over several ranks takes no padding; read sequences of one length together")
        if layer.seen == step.queries:
            return token_ring_attention(step.query, key, value, ring=self.ring, causal=True, scale=step.scaling)
        mine = self._owner(layer) == self.ring.rank and step.queries > 1
        out, lse = partial_attention(step.query, key, value, scale=step.scaling, causal=mine)
        outs, lses = self.ring.gather(out), self.ring.gather(lse)
        out, lse = outs[0], lses[0]
        for block, block_lse in zip(outs[1:], lses[1:], strict=True):
            out, lse = merge_partials(out, lse, block, block_lse)
        return out.to(step.query.dtype)


# -- the command -------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a text with several ranks, go on for some tokens, and say what travelled."""
    parser = argparse.ArgumentParser(
        prog="python -m mintage.keep.token_ring",
        description="Sequence-parallel prefill of a Hugging Face model. Start it with torchrun, or pass --ranks.",
        epilog="torchrun --nproc-per-node 4 -m mintage.keep.token_ring --text long.txt -n 16",
    )
    parser.add_argument("--model", default="smollm2", help="smollm2 (embedded), a folder, or a hub id")
    parser.add_argument("--text", help="file to read; default: bundled prompts, one behind the other")
    parser.add_argument("--tokens", type=int, default=512, help="of the text")
    parser.add_argument("--max-new-tokens", "-n", type=int, default=8, help="to write behind it")
    parser.add_argument("--ranks", type=int, default=0, help="processes to start here, without torchrun")
    parser.add_argument("--backend", default="gloo", help="gloo (CPU) or nccl (one GPU per rank)")
    parser.add_argument("--dtype", default="float32", help="of the model")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds until a silent rank is given up")
    parser.add_argument("--check", action="store_true", help="compare with one process; exit 1 if unequal")
    options = parser.parse_args(arguments)
    try:
        if options.ranks and not dist.is_torchelastic_launched():
            return _start(options)
        return _run(options)
    except UserError as error:
        print(f"mintage: {error}", file=sys.stderr)
        return 2


def _start(options: argparse.Namespace) -> int:
    """Run one process per rank on this machine."""
    import torch.multiprocessing as mp

    if options.ranks < 1:
        raise UserError(f"--ranks {options.ranks} starts nothing; pass e.g. 2")
    context = mp.get_context("spawn")
    port = _free_port()
    processes = [context.Process(target=_ranked, args=(rank, port, options)) for rank in range(options.ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(abs(process.exitcode or 0) for process in processes)


def _free_port() -> int:
    """Return a port that was free a moment ago."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _ranked(rank: int, port: int, options: argparse.Namespace) -> None:
    import os

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": options.ranks, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()})
    torch.set_num_threads(max(torch.get_num_threads() // options.ranks, 1))
    try:
        sys.exit(_run(options))
    except UserError as error:
        print(f"mintage: {error}", file=sys.stderr)
        sys.exit(2)


def _run(options: argparse.Namespace) -> int:
    """Be one rank."""
    import os

    from mintage.models import load_causal_lm

    alone = "RANK" not in os.environ
    if not alone:
        dist.init_process_group(options.backend, timeout=timedelta(seconds=options.timeout))
    device = f"cuda:{os.environ['LOCAL_RANK']}" if options.backend == "nccl" and not alone else "cpu"
    policy = TokenRing(timeout=options.timeout, result_group=None if alone else dist.new_group())
    try:
        lm = load_causal_lm(options.model, dtype=options.dtype, device=device)
        ids = _text(options, lm).to(device)
        with torch.inference_mode():
            started = time.perf_counter()
            with policy(lm.model) as session:
                written = [int(policy.prefill(lm.model, ids).argmax())]
                read = time.perf_counter() - started
                cache = cast("KeptCache", session.cache)
                for place in range(ids.shape[1], ids.shape[1] + options.max_new_tokens - 1):
                    logits = policy.extend(lm.model, cache, torch.tensor([written[-1:]], device=device), place)
                    written.append(int(logits.argmax()))
            same = None
            if options.check:
                number, model = len(written), cast("Any", lm.model)
                wanted = model.generate(ids, max_new_tokens=number, min_new_tokens=number, do_sample=False)
                same = wanted[0, ids.shape[1] :].tolist() == written
        traffic = policy.ring.traffic
        kinds: tuple[Kind, ...] = ("query", "result", "decode")
        sent = ", ".join(f"{kind} {traffic.bytes(kind) / 1e6:.2f} MB" for kind in kinds)
        size = policy.ring.size
        print(f"rank {policy.ring.rank} of {size}: {ids.shape[1]} tokens in {read:.2f} s; sent: {sent}", flush=True)
        if policy.ring.rank == 0:
            print(lm.tokenizer.decode(written), flush=True)
            if same is not None:
                print("the same as one process" if same else "NOT the same as one process", flush=True)
        return 1 if same is False else 0
    finally:
        if not alone:
            dist.destroy_process_group()


def _text(options: argparse.Namespace, lm: Any) -> Tensor:
    """Tokens of the text, the same on every rank."""
    from pathlib import Path

    from mintage.data import read_prompts

    if options.text:
        if not Path(options.text).is_file():
            raise UserError(f"{options.text} does not exist; pass a text file")
        text = Path(options.text).read_text(encoding="utf-8", errors="replace")
    else:
        text = "\n\n".join(turn for prompt in read_prompts() for turn in prompt.turns)
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"][:, : options.tokens]
    if ids.shape[1] < options.tokens:
        raise UserError(f"the text has {ids.shape[1]} tokens, not {options.tokens}; pass a longer --text or --tokens")
    return ids


if __name__ == "__main__":
    sys.exit(main())

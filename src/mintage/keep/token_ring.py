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

``python -m mintage.cli.ring --help`` runs it on a model and counts what travels.

Not here: rings of rings over several nodes, packed sequences, padding. Over 200 lines, because forward and backward of
the attention stand beside the policy that uses them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mintage.errors import UserError
from mintage.keep.contract import Policy, Step
from mintage.keep.core.blocks import block_gradient, merge_partials, partial_attention, wide
from mintage.keep.core.ring import (
    Message,
    Ring,
    Traffic,
    circulate,
    even_merge,
    even_split,
    ring_attention,
    seen_by,
    simulate,
    zigzag_merge,
    zigzag_split,
)
from mintage.keep.core.storage import KeptCache, KeptLayer
from mintage.models import with_cache
from mintage.options import option

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


class _TokenRing(torch.autograd.Function):
    """Forward and backward, both by `circulate`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, ring: Ring, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out = torch.zeros_like(query, dtype=wide(query))
        lse = out.new_full(out.shape[:3], -torch.inf)

        def visit(travellers: Sequence[Tensor], step: int, half: bool) -> Sequence[Tensor]:
            seen = seen_by(key, value, step, half, causal)
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

        circulate(ring, (query,), visit, like, deliver, causal)
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
            seen = seen_by(key, value, step, half, ctx.causal)
            block, k, v = block_gradient(travellers, *seen, ctx.scale, ctx.causal and step == 0)
            d_key[:, :, : k.shape[2]] += k
            d_value[:, :, : v.shape[2]] += v
            return (block,)

        def like(tokens: int) -> Sequence[Tensor]:
            return (d_query.new_empty(*query.shape[:2], tokens, query.shape[3]),)

        def deliver(result: Sequence[Tensor], half: bool) -> None:
            d_query[:, :, query.shape[2] // 2 if half else 0 :] += result[0]

        circulate(ctx.ring, (query, grad.to(query.dtype), lse, delta), visit, like, deliver, ctx.causal)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRing(Policy):
    """Exact attention over a text shared out to ranks (Wang et al. 2024).

    A prompt is read by all ranks together, each holding the keys and values of its own tokens. Tokens after it are read
    by every rank, held by one in turn, and each rank attends to what it holds. With a single rank nothing changes.
    """

    needs_ranks = True

    query_group: Any = option(None, "Process group for queries; default: the default group.")
    result_group: Any = option(None, "Process group for results; default: the default group.")
    timeout: int | float = option(60.0, "Seconds after which a rank that does not answer is given up.", above=0)
    _rings: list[Ring] = field(default_factory=list, init=False, repr=False)

    @classmethod
    def tiny(cls) -> TokenRing:
        """Without a process group there is one rank."""
        return cls()

    @property
    def crops_exactly(self) -> bool:
        """Only where a single rank holds the newest tokens."""
        return self.ring.size == 1

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
        positions = torch.arange(ids.shape[1], device=ids.device)[None].expand_as(ids)
        out = model(self.shard(ids), position_ids=self.shard(positions), use_cache=True, **kwargs)
        last = out.logits[:, -1].contiguous()  # rank 0 has the last chunk
        return self.ring.broadcast(last, 0) if self.ring.size > 1 else last

    def extend(
        self, model: Any, cache: KeptCache, ids: Int[Tensor, "batch new"], first: int, **kwargs: Any
    ) -> Float[Tensor, "batch vocabulary"]:
        """Read further tokens, the first of them number `first` of the text; return the logits behind them."""
        positions = torch.arange(first, first + ids.shape[1], device=ids.device)[None].expand_as(ids)
        return model(ids, position_ids=positions, **with_cache(model, cache), **kwargs).logits[:, -1]

    def store(
        self,
        layer: KeptLayer,
        key: Float[Tensor, "batch groups new dim"],
        value: Float[Tensor, "batch groups new width"],
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

    def attend(self, layer: KeptLayer, step: Step) -> Float[Tensor, "batch heads queries width"]:
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

"""Ring attention and TokenRing over processes of this machine: how exact, and what travels.

Ranks talk over gloo. Two cores say nothing of bandwidth, so times are modelled from the counted messages.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from mintage.errors import UserError
from mintage.keep.token_ring import (
    Message,
    Ring,
    Traffic,
    even_split,
    partial_attention,
    ring_attention,
    simulate,
    token_ring_attention,
    zigzag_split,
)

__all__ = ["ATTENTIONS", "Case", "Counted", "count_ranks"]

ATTENTIONS = {"token-ring": token_ring_attention, "ring": ring_attention}


@dataclass(frozen=True)
class Case:
    """Random tensors that ranks attend to together, causally and not, in float32."""

    tokens: int
    heads: int
    groups: tuple[int, ...]  # numbers of key-value heads
    dim: int

    @property
    def shard_bytes(self) -> float:
        """Bytes of all queries."""
        return self.tokens * self.heads * self.dim * 4


@dataclass(frozen=True)
class Counted:
    """What ranks found.

    Parameters
    ----------
    errors
        Largest difference of each rank from attention in one process (float64).
    messages
        By attention, causality and number of key-value heads: what each rank sent.
    """

    errors: list[float]
    messages: dict[tuple[str, bool, int], list[list[Message]]]

    def busiest(self, attention: str, causal: bool, groups: int) -> int:
        """Bytes of the busiest rank in its busier direction."""
        return max(Traffic(sent).busiest for sent in self.messages[attention, causal, groups])

    def seconds(self, attention: str, groups: int, *, larger: float, bandwidth: float) -> list[float]:
        """Model every step of attention that is not causal, on links, with messages that are so many times `larger`."""
        sent = [m for rank in self.messages[attention, False, groups] for m in rank]
        return simulate((replace(m, bytes=int(m.bytes * larger)) for m in sent), compute=0.0, bandwidth=bandwidth)


def count_ranks(size: int, case: Case) -> Counted:
    """Start so many ranks and return what they found.

    Raises
    ------
    UserError
        One of them failed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    processes = [spawn.Process(target=_rank, args=(rank, size, port, case, results)) for rank in range(size)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise UserError(f"one of {size} ranks failed; its error stands above")
    return Counted([error for error, _ in found], {key: [sent[key] for _, sent in found] for key in found[0][1]})


def _rank(rank: int, size: int, port: int, case: Case, results: Any) -> None:
    """Be one rank."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    worst, sent = 0.0, {}
    for causal in (False, True):
        for groups in case.groups:
            generator = torch.Generator().manual_seed(groups)
            heads = (case.heads, groups, groups)
            whole = [torch.randn(1, n, case.tokens, case.dim, generator=generator) for n in heads]
            wanted, _ = partial_attention(*(x.double() for x in whole), causal=causal)
            split = zigzag_split if causal else even_split
            mine = [split(x, size, 2)[rank].contiguous() for x in whole]
            for name, attention in ATTENTIONS.items():
                ring = Ring()
                out = attention(*mine, ring=ring, causal=causal)
                worst = max(worst, (out - split(wanted, size, 2)[rank]).abs().max().item())
                sent[name, causal, groups] = ring.traffic.messages
    results.put((worst, sent))
    dist.destroy_process_group()

"""Runs as a script: ``ring_worker.py RANKS [dead]`` starts ranks over gloo and prints one JSON line per rank."""

import json
import multiprocessing
import os
import socket
import sys
import time

import torch
import torch.distributed as dist

from mintage.errors import UserError
from mintage.keep.token_ring import (
    Ring,
    TokenRing,
    even_split,
    ring_attention,
    token_ring_attention,
    zigzag_split,
)
from mintage.testing.keep import models

SHAPES = ((2, 4, 2, 8), (1, 1, 1, 5), (1, 3, 3, 16))  # batch, heads, groups, dim


def reference(query, key, value, causal):
    """Attention of one process, in the dtype given."""
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def exactness(rank, size):
    """Largest errors of outputs, log-sum-exps and gradients, and what was sent against the formulas."""
    worst = {"out": 0.0, "lse": 0.0, "grad": 0.0, "ring": 0.0}
    counts = []
    for batch, heads, groups, dim in SHAPES:
        for causal in (False, True):
            tokens = 4 * size
            generator = torch.Generator().manual_seed(heads * 10 + causal)
            whole = [
                torch.randn(batch, n, tokens, dim, generator=generator, dtype=torch.float64)
                for n in (heads, groups, groups, heads)
            ]
            split = zigzag_split if causal else even_split
            leaves = [x.clone().requires_grad_() for x in whole[:3]]
            out, lse = reference(*leaves, causal)
            (out * whole[3]).sum().add(lse.square().sum()).backward()
            mine = [split(x, size, 2)[rank].float().contiguous().requires_grad_() for x in whole[:3]]
            ring = Ring()
            got, got_lse = token_ring_attention(*mine, ring=ring, causal=causal, return_lse=True)
            sent = ring.traffic.elements("query"), ring.traffic.elements("result")
            (got * split(whole[3], size, 2)[rank]).sum().add(got_lse.square().sum()).backward()
            pairs = {"out": (got, out), "lse": (got_lse, lse)}
            for name, (a, b) in pairs.items():
                worst[name] = max(worst[name], (a - split(b, size, 2)[rank]).abs().max().item())
            for leaf, own in zip(leaves, mine, strict=True):
                error = (own.grad - split(leaf.grad, size, 2)[rank]).abs().max().item()
                worst["grad"] = max(worst["grad"], error)
            with torch.no_grad():
                turned = ring_attention(*mine, causal=causal)
            worst["ring"] = max(worst["ring"], (turned - got).abs().max().item())
            if not causal:
                n = tokens // size
                rows = (size - 1) * batch * heads * n
                counts.append(sent == (rows * dim, rows * (dim + 1)))
            assert {m.kind for m in ring.traffic.messages} <= {"query", "result"}
    return worst | {"counts": all(counts)}


def on_a_model(rank, size):
    """Logits of a prompt, of single tokens and of a chunk behind it, and gradients of the weights."""
    worst = {}
    ids = torch.randint(1, 127, (2, 4 * size + 6), generator=torch.Generator().manual_seed(0))
    cut = 4 * size
    for name in ("llama", "gpt2"):
        model = models()[name]
        with torch.no_grad():
            wanted = model(ids).logits
        policy = TokenRing()
        got = []
        with torch.inference_mode(), policy(model) as session:
            got.append(policy.prefill(model, ids[:, :cut]))
            for place in range(cut, cut + 3):
                got.append(policy.extend(model, session.cache, ids[:, place : place + 1], place))
            got.append(policy.extend(model, session.cache, ids[:, cut + 3 :], cut + 3))
        places = [cut - 1, cut, cut + 1, cut + 2, cut + 5]
        worst[name] = max((g - wanted[:, p]).abs().max().item() for g, p in zip(got, places, strict=True))
        held = torch.tensor([layer.entries for layer in session.cache.kept_layers])
        dist.all_reduce(held)
        assert (held == ids.shape[1]).all()
    model = models()["llama"]
    model.zero_grad()
    model(ids[:, :cut]).logits.square().sum().backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    policy = TokenRing()
    with policy(model):
        place = policy.shard(torch.arange(cut)[None].expand(2, -1))
        model(policy.shard(ids[:, :cut]), position_ids=place, use_cache=True).logits.square().sum().backward()
    errors = []
    for n, p in model.named_parameters():
        dist.all_reduce(p.grad)
        errors.append(((p.grad - wanted[n]).norm() / wanted[n].norm()).item())
    return worst | {"weights": max(errors)}


def dying(rank, size):
    """Rank 1 leaves in the middle; the others must hear of it."""
    if rank == 1:
        os._exit(0)
    started = time.monotonic()
    try:
        token_ring_attention(*torch.randn(3, 1, 2, 8, 4), ring=Ring(timeout=20), causal=True)
    except UserError as error:
        return {"told": str(error), "seconds": time.monotonic() - started}
    return {"told": "", "seconds": time.monotonic() - started}


def work(rank, size, port, mode):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo")
    dist.barrier()  # nobody may die while another is still connecting
    found = dying(rank, size) if mode == "dead" else exactness(rank, size) | on_a_model(rank, size)
    # one write per line: `print` writes its newline apart, and ranks share the stream
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    if mode == "dead":
        os._exit(0)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    size, mode = int(sys.argv[1]), (sys.argv[2:] or ["all"])[0]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    fork = multiprocessing.get_context("fork")  # the imports above are done once
    ranks = [fork.Process(target=work, args=(rank, size, port, mode)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    sys.exit(max(abs(process.exitcode or 0) for process in ranks))

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.cli.ring import run_ring
from mintage.errors import UserError
from mintage.keep.token_ring import (
    Message,
    Ring,
    TokenRing,
    Traffic,
    even_merge,
    even_split,
    merge_partials,
    partial_attention,
    ring_attention,
    simulate,
    token_ring_attention,
    zigzag_merge,
    zigzag_split,
)
from mintage.models import cache_of, tiny_causal_lm

VECTORS = Path(__file__).parents[1] / "vectors" / "token-ring"
WORKER = Path(__file__).parent / "ring_worker.py"


def started(*arguments):
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, arguments)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@cache
def over(size):
    return started(size)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_several_ranks_equal_one_process(size):
    found = over(size)
    assert len(found) == size
    for rank in found:
        assert rank["out"] < 1e-5
        assert rank["lse"] < 1e-5
        assert rank["grad"] < 2e-5
        assert rank["ring"] < 1e-5
        assert rank["counts"]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_model_over_several_ranks_equals_one_process(size):
    for rank in over(size):
        assert rank["llama"] < 1e-3
        assert rank["gpt2"] < 1e-3
        assert rank["weights"] < 1e-4


def test_a_rank_that_dies_is_told():
    found = started(3, "dead")
    assert len(found) == 2
    for rank in found:
        assert "lost another rank" in rank["told"]
        assert "\n" not in rank["told"]
        assert rank["seconds"] < 30


class Post:
    """All ranks in one process: each runs in a thread, and messages go through queues."""

    def __init__(self, size):
        import queue
        from collections import defaultdict

        self.size, self.boxes = size, defaultdict(queue.Queue)

    def ring(self, rank):
        post = self

        class Threaded(Ring):
            def __init__(self):
                super().__init__()
                self.rank, self.size = rank, post.size

            def exchange(self, step, kind, sent, target, received, source):
                for x in sent:
                    size = x.numel() * x.element_size()
                    self.traffic.messages.append(Message(step, rank, target, kind, x.numel(), size))
                post.boxes[rank, target, kind].put([x.clone() for x in sent])

                def wait():
                    for mine, came in zip(received, post.boxes[source, rank, kind].get(timeout=20), strict=True):
                        assert mine.shape == came.shape
                        mine.copy_(came)
                    return received

                return wait

        return Threaded()


def on_all_ranks(size, run):
    from concurrent.futures import ThreadPoolExecutor

    post = Post(size)
    rings = [post.ring(rank) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, rings)), rings


@pytest.mark.parametrize("case", ["zigzag_w2", "zigzag_w4"])
def test_parity_with_the_authors(case):
    held = np.load(VECTORS / f"{case}.npz")
    size = int(held["world_size"])
    states = [torch.tensor(held[name]).transpose(1, 2) for name in ("query", "key", "value")]

    def run(ring):
        mine = [zigzag_split(x, size, 2)[ring.rank] for x in states]
        causal = token_ring_attention(*mine, ring=ring, causal=True, return_lse=True)
        sent = ring.traffic.elements("query"), ring.traffic.elements("result")
        mine = [even_split(x, size, 2)[ring.rank] for x in states]
        return causal, sent, token_ring_attention(*mine, ring=ring, return_lse=True)

    found, _ = on_all_ranks(size, run)
    for rank, ((out, lse), sent, _) in enumerate(found):
        torch.testing.assert_close(out.transpose(1, 2), torch.tensor(held["local_output"][rank]), atol=2e-5, rtol=0)
        torch.testing.assert_close(lse, torch.tensor(held["local_lse"][rank]), atol=1e-5, rtol=0)
        assert sent == (held["sent_q_elements"][rank], held["sent_out_lse_elements"][rank])
    out = zigzag_merge([causal[0] for causal, _, _ in found], 2).transpose(1, 2)
    torch.testing.assert_close(out, torch.tensor(held["full_causal_output"]), atol=2e-5, rtol=0)
    lse = zigzag_merge([causal[1] for causal, _, _ in found], 2)
    torch.testing.assert_close(lse, torch.tensor(held["full_causal_lse"]), atol=1e-5, rtol=0)
    out = even_merge([open_[0] for _, _, open_ in found], 2).transpose(1, 2)
    torch.testing.assert_close(out, torch.tensor(held["full_noncausal_output"]), atol=2e-5, rtol=0)
    lse = even_merge([open_[1] for _, _, open_ in found], 2)
    torch.testing.assert_close(lse, torch.tensor(held["full_noncausal_lse"]), atol=1e-5, rtol=0)


@given(st.integers(1, 6), st.booleans(), st.sampled_from([(4, 2), (3, 3), (2, 1)]), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_every_number_of_ranks(size, causal, heads, per):
    generator = torch.Generator().manual_seed(size)
    tokens = 2 * per * size
    query = torch.randn(1, heads[0], tokens, 4, generator=generator)
    key, value = torch.randn(2, 1, heads[1], tokens, 4, generator=generator)
    split, merge = (zigzag_split, zigzag_merge) if causal else (even_split, even_merge)

    def run(ring):
        mine = [split(x, size, 2)[ring.rank] for x in (query, key, value)]
        return token_ring_attention(*mine, ring=ring, causal=causal), ring_attention(*mine, ring=ring, causal=causal)

    found, rings = on_all_ranks(size, run)
    wanted, _ = partial_attention(query, key, value, causal=causal)
    for one in zip(*found, strict=True):
        assert torch.allclose(merge(one, 2), wanted, atol=1e-5)
    if size == 1:
        assert not rings[0].traffic.messages


@given(st.integers(0, 999), st.permutations(range(4)))
@settings(max_examples=40, deadline=None)
def test_blocks_merge_in_any_order(seed, order):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 2, 3, 4, generator=generator)
    key, value = 3 * torch.randn(2, 1, 2, 20, 4, generator=generator)
    blocks = [partial_attention(query, key[:, :, i::4], value[:, :, i::4]) for i in order]
    out, lse = blocks[0]
    for block in blocks[1:]:
        out, lse = merge_partials(out, lse, *block)
    wanted, wanted_lse = partial_attention(query, key, value)
    assert torch.allclose(out, wanted, atol=1e-5)
    assert torch.allclose(lse, wanted_lse, atol=1e-5)
    nothing = torch.full_like(lse, -torch.inf)
    for one, two in (((out, lse), (torch.zeros_like(out), nothing)), ((torch.zeros_like(out), nothing), (out, lse))):
        merged, merged_lse = merge_partials(*one, *two)
        assert torch.equal(merged, out)
        assert torch.equal(merged_lse, lse)
    merged, merged_lse = merge_partials(torch.zeros_like(out), nothing, torch.zeros_like(out), nothing)
    assert not merged.isnan().any()
    assert (merged_lse == -torch.inf).all()


@given(st.integers(1, 6), st.integers(1, 4))
def test_what_is_shared_out_comes_together(size, per):
    x = torch.arange(2 * size * per * 3).view(3, -1)
    assert torch.equal(zigzag_merge(zigzag_split(x, size, 1), 1), x)
    assert torch.equal(even_merge(even_split(x, size, 1), 1), x)
    for shard in zigzag_split(x, size, 1):
        assert (shard.diff(dim=1) > 0).all()


def test_traffic_in_the_busier_direction():
    """Half of ring attention's for as many key-value heads as heads, none saved for a third of them."""
    ratios = {}
    for groups in (6, 2):
        query, key, value = torch.randn(1, 6, 16, 32), *torch.randn(2, 1, groups, 16, 32)

        def run(ring, of=(query, key, value)):
            mine = [even_split(x, 4, 2)[ring.rank] for x in of]
            token_ring_attention(*mine, ring=ring)
            sent, ring.traffic = ring.traffic, Traffic()
            ring_attention(*mine, ring=ring)
            return sent.busiest / ring.traffic.busiest

        found, _ = on_all_ranks(4, run)
        assert len(set(found)) == 1
        ratios[groups] = found[0]
    assert ratios[6] == pytest.approx(33 / 64)
    assert ratios[2] > 1.5


def test_the_simulated_link():
    ring = [Message(step, r, (r + 1) % 4, "key-value", 0, 200) for step in (1, 2, 3) for r in range(4)]
    assert simulate(ring, compute=1.0, bandwidth=100.0) == [1.0, 2.0, 2.0, 2.0]
    assert simulate(ring, compute=3.0, bandwidth=100.0, latency=0.5) == [3.0] * 4
    both = [Message(0, 0, 1, "query", 0, 100), Message(1, 1, 0, "result", 0, 300)]
    assert simulate(both, compute=0.0, bandwidth=100.0) == [1.0, 0.0, 3.0]
    shared = [Message(0, 0, 1, "query", 0, 100), Message(0, 0, 1, "query", 0, 100)]
    assert simulate(shared, compute=0.0, bandwidth=100.0, latency=1.0) == [4.0]
    assert simulate([], compute=1.0, bandwidth=1.0) == [1.0]


def test_wrong_use_is_told():
    with pytest.raises(UserError, match="14 tokens do not divide over 4 ranks; pass a multiple of 8"):
        zigzag_split(torch.zeros(1, 14), 4, 1)
    with pytest.raises(UserError, match="do not divide over 3 ranks"):
        even_split(torch.zeros(1, 2), 3, 1)
    with pytest.raises(UserError, match="no gradient"):
        ring_attention(*torch.randn(3, 1, 1, 4, 4, requires_grad=True))
    with pytest.raises(UserError, match="timeout"):
        TokenRing(timeout=0)
    ring = Post(2).ring(0)
    with pytest.raises(UserError, match="zigzag_split"):
        token_ring_attention(*torch.randn(3, 1, 1, 5, 4), ring=ring, causal=True)
    model, policy = tiny_causal_lm(vocab_size=32), TokenRing()
    policy._rings.append(ring)
    ids = torch.ones(2, 6, dtype=torch.long)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    with policy(model), pytest.raises(UserError, match="no padding"):
        model(ids, attention_mask=mask, use_cache=True)
    policy = TokenRing()
    with policy(model):
        past = cache_of(model(ids, use_cache=True))
        past.crop(-1)
        policy._rings[0].size = 2
        with pytest.raises(UserError, match="cannot be cropped"):
            past.crop(-1)


def test_the_command(capfd, tiny_folder, tmp_path):
    base = ["--model", tiny_folder, "--tokens", "24", "-n", "3", "--check"]
    assert run_ring(base) == 0
    out = capfd.readouterr().out
    assert "rank 0 of 1: 24 tokens" in out
    assert "the same as one process" in out
    assert run_ring([*base, "--ranks", "2"]) == 0
    out = capfd.readouterr().out
    assert "rank 1 of 2" in out
    assert "the same as one process" in out
    for wrong, said in (
        (["--ranks", "2", "--tokens", "25"], "25 tokens do not divide over 2 ranks"),
        (["--ranks", "2", "--text", str(tmp_path / "no.txt")], "does not exist"),
        (["--tokens", "10000000"], "the text has"),
    ):
        assert run_ring([*base, *wrong]) == 2
        told = capfd.readouterr().err
        assert said in told
        assert "Traceback" not in told

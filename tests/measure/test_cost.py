import dataclasses
import gc
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from mintage.measure import cost
from mintage.measure.cost import count_flops, memory_bandwidth, peak_memory, peak_tensor_bytes, tensor_bytes


def attention_flops(batch, heads, queries, keys, dim):
    return 2 * 2 * batch * heads * queries * keys * dim  # QK^T and AV, two per multiply-add


def test_cpu_attention_is_counted():
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    counted = count_flops(lambda: functional.scaled_dot_product_attention(query, key, key))
    assert counted == attention_flops(2, 3, 5, 7, 8)


def test_every_attention_kernel_counts_the_same():
    query, key = torch.randn(1, 6, 9, 8), torch.randn(1, 6, 9, 8)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    expected = attention_flops(1, 6, 9, 9, 8)
    attend = functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(query, key, key, attn_mask=mask)) == expected
    assert count_flops(lambda: attend(query, key, key, is_causal=True)) == expected
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert count_flops(lambda: attend(query, key, key)) == expected


def test_grouped_queries_count_for_every_query_head():
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    counted = count_flops(lambda: functional.scaled_dot_product_attention(query, key, key, enable_gqa=True))
    assert counted == attention_flops(1, 4, 6, 6, 8)


def test_attention_backward_is_counted():
    query = torch.randn(1, 2, 6, 8, requires_grad=True)

    def step():
        functional.scaled_dot_product_attention(query, query, query).sum().backward()

    assert count_flops(step) == pytest.approx(attention_flops(1, 2, 6, 6, 8) * 3.5)


def test_the_fused_encoder_layer_is_counted_and_its_switch_put_back():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(1, 5, 8)
    linear = 2 * 5 * (8 * 24 + 8 * 8 + 2 * 8 * 16)
    with torch.no_grad():
        assert count_flops(lambda: layer(x)) == linear + attention_flops(1, 2, 5, 5, 4)
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        count_flops(lambda: (_ for _ in ()).throw(RuntimeError()))
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_matrix_product_is_two_per_multiply_add():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert count_flops(lambda: a @ b) == 2 * 3 * 4 * 5


def test_peak_memory_is_not_hidden_by_older_garbage():
    held: list = [np.ones(60 * 2**20 // 8)]
    held.append(held)  # a cycle, freed when the collector comes by
    gc.disable()
    try:
        del held
        with peak_memory() as peak:
            gc.collect()
            block = np.ones(40 * 2**20 // 8)
            del block
    finally:
        gc.enable()
    if peak.exact:
        assert 38 * 2**20 <= peak.bytes <= 60 * 2**20


def test_peak_memory_is_not_hidden_by_free_memory_that_the_allocator_holds():
    held = [bytes(100_000) for _ in range(800)]  # below what malloc maps: 80 MB of heap, free but for its end
    last = bytes(100_000)
    del held
    with peak_memory() as peak:
        block = np.ones(40 * 2**20 // 8)
        del block
    assert len(last) == 100_000
    if peak.exact:
        assert 38 * 2**20 <= peak.bytes <= 60 * 2**20


def test_peak_memory_sees_what_the_body_freed():
    with peak_memory() as peak:
        block = np.ones(40 * 2**20 // 8)
        del block
    assert peak.device == "cpu"
    if peak.exact:
        assert 38 * 2**20 <= peak.bytes <= 60 * 2**20
        with peak_memory() as smaller:  # above malloc's largest threshold, so that the pages are fresh ones
            block = np.ones(34 * 2**20 // 8)
            del block
        assert 32 * 2**20 <= smaller.bytes <= 38 * 2**20


def test_peak_memory_says_when_it_is_a_lower_bound(monkeypatch):
    monkeypatch.setattr(cost, "_reset_high_water", lambda: False)
    with peak_memory() as peak:
        pass
    assert not peak.exact
    assert peak.bytes == 0


def test_peak_memory_of_the_gpu_is_above_the_level_on_entering(monkeypatch):
    calls = []
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        synchronize=lambda: calls.append("synchronize"),
        reset_peak_memory_stats=lambda: calls.append("reset"),
        memory_allocated=lambda: 1000,
        max_memory_allocated=lambda: 1700,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with peak_memory() as peak:
        calls.append("body")
    assert (peak.bytes, peak.device) == (700, "cuda")
    assert calls == ["synchronize", "reset", "body", "synchronize"]


@dataclasses.dataclass(slots=True)
class Slotted:
    keys: torch.Tensor


def test_the_peak_of_tensors_is_exact():
    before = torch.ones(1000, 1000)

    def work():
        a = torch.zeros(1000, 1000)  # 4 MB
        b = a + before  # 8 MB
        del a  # 4 MB
        c = b.view(-1)[:10] * 2  # a view is no memory of its own
        d = torch.cat([b, b])  # 12 MB
        del b, d
        return torch.zeros(1000, 1000) + c[0]  # 8 MB

    assert 12_000_000 <= peak_tensor_bytes(work) < 12_001_000
    assert 12_000_000 <= peak_tensor_bytes(work) < 12_001_000
    assert peak_tensor_bytes(lambda: before.t()) == 0  # what existed before is not counted
    before.add_(1)  # and the mode is gone


def test_bytes_of_whatever_holds_tensors():
    x = torch.zeros(10, dtype=torch.float32)
    layer = torch.nn.Linear(4, 3)
    layer.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))
    assert tensor_bytes(x) == 40
    assert tensor_bytes({"a": [x, (torch.zeros(3, dtype=torch.int8),)], "b": None, "c": "text"}) == 43
    assert tensor_bytes(layer) == 4 * (12 + 3) + 4
    assert tensor_bytes(Slotted(x)) == 40
    assert tensor_bytes(SimpleNamespace(layers=[SimpleNamespace(keys=x, values=torch.zeros(2))])) == 48
    assert tensor_bytes(np.zeros(5)) == 40
    assert tensor_bytes(3) == 0


def test_shared_storage_counts_once_and_a_view_counts_whole():
    x = torch.zeros(100)
    assert tensor_bytes([x, x[:10], x.view(10, 10), x.expand(7, 100)]) == 400
    assert tensor_bytes(x[:1]) == 400
    assert tensor_bytes(x[:1].clone()) == 4
    array = np.zeros(8)
    assert tensor_bytes([array, array[2:]]) == 64


def test_sparse_tensors_and_cycles():
    dense = torch.eye(4)
    assert tensor_bytes(dense.to_sparse()) == 4 * 2 * 8 + 4 * 4
    rows = torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2), size=(2, 2))
    assert tensor_bytes(rows) == 3 * 8 + 2 * 8 + 2 * 4
    ring = {"x": dense}
    ring["self"] = ring
    assert tensor_bytes(ring) == 64


def test_a_transformers_cache_counts_its_keys_and_values():
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)
    assert tensor_bytes(cache) == 2 * 4 * 40


def test_bandwidth_is_a_plausible_number():
    assert 1e8 < memory_bandwidth(mebibytes=16, seconds=0.02) < 1e13

"""The embedded file's blocks: its weights to the bit, read from the cache after the first time."""

import pytest
import torch

from mintage import blocks


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "cache_dir", lambda: tmp_path)
    blocks._read.cache_clear()
    yield tmp_path
    blocks._read.cache_clear()


def test_blocks_are_read_once_and_a_damaged_copy_is_read_again(own_cache, monkeypatch):
    first = blocks._read(9, 3)
    (kept,) = (own_cache / "blocks").iterdir()
    read, calls = blocks._read_gguf, []
    monkeypatch.setattr(blocks, "_read_gguf", lambda *a: calls.append(a) or read(*a))
    for damage, wanted in ((lambda: None, 0), (lambda: kept.write_bytes(b"no tensors"), 1)):
        damage()
        blocks._read.cache_clear()
        again = blocks._read(9, 3)
        assert len(calls) == wanted
        assert again.keys() == first.keys()
        for name, block in again.items():
            assert block.kind == first[name].kind
            assert torch.equal(block.data, first[name].data)
            assert torch.equal(block.scales, first[name].scales)

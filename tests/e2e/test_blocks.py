"""The embedded file's blocks: its weights to the bit, read from the cache after the first time."""

import subprocess
import sys
from pathlib import Path

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


_PEAKS = """
import re, torch, transformers.models.llama.modeling_llama

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

from mintage.draft import PromptLookup, generate
from mintage.models import load_causal_lm
before = peak()
lm = load_causal_lm(dtype="float32")
generate(lm.model, lm.encode("Tell me about tides."), PromptLookup(), max_new_tokens=4, engine="native")
weights = {p.data_ptr(): p.numel() * p.element_size() for p in lm.model.parameters()}
print((peak() - before) / sum(weights.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak")
def test_decoding_with_the_native_step_takes_half_as_much_again_as_the_weights():
    """In a process of its own: what a first run unpacks and compiles is not held, but takes memory once."""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True)
        if float(done.stdout) <= 1.5:
            break
    assert 1 <= float(done.stdout) <= 1.5

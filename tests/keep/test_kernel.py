import os
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mintage.errors import UserError
from mintage.keep.core import kernel
from mintage.keep.core.attention import attend
from mintage.keep.double_sparsity import ChannelOrder, DoubleSparsity
from mintage.models import cache_of, tiny_causal_lm, with_cache
from mintage.native import Native

compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler on this machine"
)


def made(seed, heads, groups, entries, dim, dtype=torch.float32, batch=2):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, 1, dim, generator=generator).to(dtype)
    buffer = torch.randn(2, batch, groups, entries + 5, dim, generator=generator).to(dtype)
    return query, buffer[0][:, :, :entries], buffer[1][:, :, :entries]  # views, as caches give them


def scored(query, key, channels):
    """Label scores of each row's heads, in float64."""
    groups, rows = key.shape[1], channels.shape[0]
    heads = query.double().unflatten(1, (rows, -1))[:, :, :, 0]  # [B, rows, voters, d]
    heads = heads.gather(-1, channels[None, :, None].expand(*heads.shape[:3], -1))
    held = key.double().repeat_interleave(rows // groups, 1)
    held = held.gather(-1, channels[None, :, None].expand(*held.shape[:3], -1))
    return heads @ held.transpose(-1, -2)


def labels(key, channels):
    """The label cache of these keys: the rows of a group one behind another."""
    groups = key.shape[1]
    index = channels.unflatten(0, (groups, -1)).flatten(1)[None, :, None]
    return key.gather(-1, index.expand(key.shape[0], -1, key.shape[2], -1))


@compiler
@given(
    st.integers(0, 999),
    st.sampled_from([(4, 2, 4), (4, 2, 2), (3, 3, 3), (8, 1, 1)]),
    st.sampled_from([3, 8, 16]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 60),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_choice_is_that_of_exact_scores(seed, shape, width, dtype, number, padded):
    heads, groups, rows = shape
    query, key, _ = made(seed, heads, groups, 60, 16, dtype)
    channels = torch.rand(rows, 16, generator=torch.Generator().manual_seed(seed)).argsort(-1)[:, :width]
    visible = None
    if padded:
        visible = torch.ones(2, 1, 1, 60, dtype=torch.bool)
        visible[0, ..., :23] = False
    chosen = kernel.choose(query, labels(key, channels), channels, number, scale=0.3, visible=visible)
    assert (chosen.diff(dim=-1) > 0).all()  # each once, in order
    scores = scored(query, key, channels)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    scores = (0.3 * scores).softmax(-1).sum(2) if heads > rows else scores[:, :, 0]
    least = scores.topk(number).values[..., -1:]
    taken = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
    slack = 1e-5 * (1 + least.abs().nan_to_num(0, 0, 0))
    assert (scores.masked_fill(~taken, torch.inf) >= least - slack).all()
    assert (scores.masked_fill(taken, -torch.inf) <= least + slack).all()


@compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [6, 8, 64])
@pytest.mark.parametrize("rows", [2, 4])
def test_reading_equals_attention_to_the_rows_chosen(dtype, dim, rows):
    query, key, value = made(1, 4, 2, 40, dim, dtype)
    chosen = torch.stack([torch.randperm(40)[:9].sort().values for _ in range(2 * rows)]).view(2, rows, 9)
    visible = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    visible[1, ..., :20] = False
    for seen in (None, visible):
        got = kernel.read(query, key, value, chosen, scaling=0.2, visible=seen)
        index = chosen.repeat_interleave(4 // rows, 1)
        gathered = [
            x.double().repeat_interleave(2, 1).gather(2, index[..., None].expand(-1, -1, -1, dim)) for x in (key, value)
        ]
        mask = None if seen is None else seen.expand(2, 4, 1, 40).gather(3, index[:, :, None])
        wanted = attend(query.double(), *gathered, scaling=0.2, visible=mask)
        assert got.dtype == dtype
        assert torch.allclose(got.double(), wanted, atol=1e-5 if dtype == torch.float32 else 2e-2)


@compiler
def test_equal_scores_go_to_the_earlier_entry_and_all_may_be_chosen():
    query, key = torch.ones(1, 1, 1, 8), torch.zeros(1, 1, 30, 8)
    key[0, 0, 7], key[0, 0, 9] = 1, -1
    channels = torch.arange(8)[None]
    assert kernel.choose(query, key, channels, 4).tolist() == [[[0, 1, 2, 7]]]
    assert kernel.choose(query, key, channels, 30).tolist() == [[list(range(30))]]
    assert kernel.choose(query, key, channels, 29)[0, 0].tolist() == [*range(9), *range(10, 30)]


@compiler
@pytest.mark.parametrize("per", ["head", "group"])
def test_a_model_decodes_alike_with_either(per):
    model = tiny_causal_lm(vocab_size=64)
    ids = torch.randperm(63, generator=torch.Generator().manual_seed(0))[:40].view(2, 20) + 1
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :6] = 0
    order = ChannelOrder(torch.rand(2, 4, 8))
    logits = {}
    for which in ("torch", "compiled", "auto"):
        policy = DoubleSparsity(top_k=5, label_channels=8, dense_layers=0, per=per, channels=order, kernel=which)
        with policy(model), torch.inference_mode():
            cache = cache_of(model(ids[:, :16], attention_mask=mask[:, :16], use_cache=True))
            steps = [
                model(ids[:, i : i + 1], attention_mask=mask[:, : i + 1], **with_cache(model, cache)).logits
                for i in range(16, 20)
            ]
        logits[which] = torch.cat(steps, 1)
    assert torch.allclose(logits["torch"], logits["compiled"], atol=1e-4)
    assert torch.equal(logits["auto"], logits["compiled"])


@compiler
def test_loading_it_leaves_small_numbers_alone():
    """Libraries linked with fast mathematics make the whole process flush them to zero."""
    assert kernel._NATIVE.library is not None
    assert (torch.tensor([1e-40]) * 1.0).item() > 0


@compiler
def test_only_what_it_serves(tmp_path):
    with torch.inference_mode():
        assert kernel.serves("auto", torch.zeros(1))
        assert not kernel.serves("torch", torch.zeros(1))
        assert not kernel.serves("auto", torch.zeros(1, dtype=torch.float64))
        with pytest.raises(UserError, match=r"serves bfloat16 and float32 on a CPU, not torch\.float64 on cpu"):
            kernel.serves("compiled", torch.zeros(1, dtype=torch.float64))
    assert not kernel.serves("auto", torch.zeros(1))  # gradients


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """As if nothing had been compiled yet."""
    monkeypatch.setenv("MINTAGE_CACHE", str(tmp_path))
    monkeypatch.setattr(kernel, "_NATIVE", Native(kernel._NATIVE.source, kernel._NATIVE.instead))


def test_without_a_compiler_torch_goes_on_with_one_note(fresh, monkeypatch, recwarn):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with torch.inference_mode():
        assert not kernel.serves("auto", torch.zeros(1))
        assert not kernel.serves("auto", torch.zeros(1))
        (note,) = recwarn
        assert "'no-such-compiler' is not on PATH; set CXX; decoding goes on with torch" in str(note.message)
        with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
            kernel.serves("compiled", torch.zeros(1))

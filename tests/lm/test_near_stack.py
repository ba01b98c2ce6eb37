"""Attention over what is near, block by block, against attention with the whole mask."""

import pytest
import torch
from torch.nn import functional as F

from mintage.lm.core.cuts import cut_rule
from mintage.lm.core.growing import Layout, ends_of_words, grow
from mintage.lm.core.near_stack import Near, NearCache, near_stack, run_near
from mintage.lm.core.stack import over_rows, stack

OVER = ends_of_words(cut_rule("hat", 8))


def made(kind=near_stack):
    torch.manual_seed(0)
    return kind(16, 2, 2).eval()


def dense(blocks, hidden, near):
    """Run the same blocks with one mask over everything."""
    index = torch.arange(hidden.shape[1])
    q, k = near.place[:, :, None], near.place[:, None]
    seen = (index[None] <= index[:, None]) & (q - k < near.window)
    seen = seen & ((near.late[:, None] < 0) | (near.late[:, None] == near.late[:, :, None]))
    turned = blocks.rotary_emb(hidden, position_ids=near.place)

    cos, sin = (x[:, None] for x in turned)
    for layer in blocks.layers:
        x, its = layer.input_layernorm(hidden), layer.self_attn
        q, k, v = (p(x).unflatten(-1, (2, 8)).transpose(1, 2) for p in (its.q_proj, its.k_proj, its.v_proj))
        q, k = (x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin for x in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
        hidden = hidden + its.o_proj(out.transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return blocks.norm(hidden)


@pytest.mark.parametrize("window", [1, 3, 7, 16, 100])
@pytest.mark.parametrize("text", ["The moon pulls the sea, twice.", "月亮引起潮汐 and 月亮", "月" * 12])
def test_blocks_see_what_the_whole_mask_lets_them_see(window, text):
    grown = [grow(OVER, text.encode()), grow(OVER, b"short")]
    layout = Layout.of(grown, len(text.encode()) + 1)
    near, blocks = Near(layout.place, layout.late, window), made()
    hidden = torch.randn(*layout.place.shape, 16)
    with torch.no_grad():
        found, wanted = run_near(blocks, hidden, near), dense(blocks, hidden, near)
    assert torch.allclose(found[0], wanted[0], atol=1e-5)
    assert torch.allclose(found[1, :6], wanted[1, :6], atol=1e-5)  # what fills a row may see anything


def test_a_window_over_everything_is_the_ordinary_stack():
    hidden = torch.randn(2, 9, 16)
    with torch.no_grad():
        found = run_near(made(), hidden, Near.plain(2, 9, 9))
        assert torch.allclose(found, over_rows(made(stack), hidden), atol=1e-5)


def test_a_cache_goes_on_and_takes_back():
    blocks, hidden, window = made(), torch.randn(1, 30, 16), 5
    with torch.no_grad():
        whole = run_near(blocks, hidden, Near.plain(1, 30, window))
        cache, done, found = NearCache(window + 3), 0, []
        for count in (12, 1, 1, 4, 12):
            wrong = torch.randn(1, 3, 16)
            run_near(blocks, wrong, Near.plain(1, 3, window, done), cache)
            cache.take_back(3)
            part = hidden[:, done : done + count]
            found.append(run_near(blocks, part, Near.plain(1, count, window, done), cache))
            done += count
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-5)
    assert cache.held[0][0].shape[2] == window + 3


def test_the_cost_of_a_long_text_does_not_grow_with_its_square():
    near = Near.plain(1, 1 << 14, 32)
    assert near.mask.numel() == (1 << 14) * 64

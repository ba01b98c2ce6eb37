from dataclasses import dataclass

import pytest
import torch

from mintage.keep.core.attach import Attachment
from mintage.keep.core.select import Selector
from mintage.keep.core.storage import gather_rows
from mintage.models import cache_of, tiny_causal_lm, with_cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Newest(Selector):
    """Reads the newest `number` entries, with one choice per query head or per key-value head."""

    number: int = 6
    per_head: bool = False

    def select(self, layer, step):
        if layer.entries <= self.number:
            return None
        heads = step.query.shape[1] if self.per_head else layer["key"].shape[1]
        chosen = torch.arange(layer.entries - self.number, layer.entries)
        return chosen.expand(step.query.shape[0], heads, self.number)

    @classmethod
    def tiny(cls):
        return cls()


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_are_gathered_from_any_layout(batch):
    buffer = torch.randn(batch, 3, 20, 4)
    index = torch.randint(0, 11, (batch, 3, 5))
    wanted = buffer.gather(2, index[..., None].expand(batch, 3, 5, 4))
    assert torch.equal(gather_rows(buffer[:, :, :11], index), wanted)  # a view of a buffer with room to grow
    assert torch.equal(gather_rows(buffer.transpose(0, 1).contiguous().transpose(0, 1)[:, :, :11], index), wanted)
    assert torch.equal(gather_rows(buffer.transpose(2, 3).contiguous().transpose(2, 3), index), wanted)
    wide = torch.randn(batch, 3, 20, 8)
    assert torch.equal(
        gather_rows(wide[..., 4:], index), wide[..., 4:].gather(2, index[..., None].expand(batch, 3, 5, 4))
    )
    offset = torch.cat((torch.zeros(7), buffer.flatten()))[7:].view(batch, 3, 20, 4)
    assert torch.equal(gather_rows(offset, index), wanted)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_reading_the_newest_is_a_band_mask(per_head, padded):
    model = tiny_causal_lm(vocab_size=64)
    ids = torch.randperm(63, generator=torch.Generator().manual_seed(0))[:20].view(2, 10) + 1
    mask = torch.ones(2, 10, dtype=torch.long)
    if padded:
        mask[0, :4] = 0
    positions = mask.cumsum(1).sub(1).clamp_min(0)
    policy = Newest(per_head=per_head)
    with policy(model) as session:
        assert isinstance(session, Attachment)
        read = model(ids[:, :8], attention_mask=mask[:, :8], position_ids=positions[:, :8], use_cache=True)
        cache = cache_of(read)
        out = model(ids[:, 8:9], attention_mask=mask[:, :9], position_ids=positions[:, 8:9], **with_cache(model, cache))
    whole = torch.ones(9, 9, dtype=torch.bool).tril()
    whole[8, : 9 - 6] = False
    band = whole[None, None] & mask[:, None, None, :9].bool() | torch.eye(9, dtype=torch.bool)
    wanted = model(ids[:, :9], attention_mask=band, position_ids=positions[:, :9]).logits[:, 8:]
    assert torch.allclose(out.logits, wanted, atol=1e-4)
    dim, heads = 8, 4 if per_head else 2
    assert cache.reads() == 2 * (2 * 2 * heads * 6 * dim)
    assert cache.kept().tolist() == [9, 9]

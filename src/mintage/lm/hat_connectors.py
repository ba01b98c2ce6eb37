"""HAT in the form of its released checkpoints: a stream of bytes, with connectors to the words and back.

A causal stack with a sliding window reads all bytes; cross-attention pools each word's (`mintage.lm.core.connectors`);
the backbone runs over words; what it says, moved on by a word, is added to the bytes' states in front of every block of
a second stack, which predicts the next byte. Nothing marks the end of a word: it is over when the rule that cuts, run
on the bytes so far, begins another one (`mintage.lm.core.growing`).

Deviations: a word that was cut stays so; first bytes of a character are predicted from what was known when they were
read, and read again when they turn out to begin a word, as the released code does while it writes; the text's first
byte is predicted from a start in front of it; connectors leave out what attention to one key makes idle.

Over 200 lines, since reading at once and writing byte by byte are each the other's proof. Not here: the authors'
weights, which are not free.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from mintage.lm.contract import ByteLanguageModel, OpenText, Reading, register
from mintage.lm.core.backbone import backbone_of, over_words
from mintage.lm.core.connectors import DecoderConnector, EncoderConnector
from mintage.lm.core.cuts import cut_rule
from mintage.lm.core.growing import Grown, Layout, ends_of_words, grow
from mintage.lm.core.hat_config import ConnectorHatConfig
from mintage.lm.core.near_stack import Near, NearCache, near_stack, run_near
from mintage.lm.core.open_row import SINGLE
from mintage.lm.core.reading import byte_reading, lengths_of, seeded
from mintage.lm.core.stack import stack_flops
from mintage.lm.core.words import Words

__all__ = ["ConnectorHat"]

START = 256
"""In front of a text's first byte."""


class ConnectorHat(ByteLanguageModel):
    """A hierarchical autoregressive transformer over a stream of bytes."""

    config_class = ConnectorHatConfig

    def __init__(self, config: ConnectorHatConfig) -> None:
        super().__init__(config)
        narrow, heads = config.byte_width, config.heads
        key_heads = heads if config.key_heads is None else config.key_heads
        self.bytes = nn.Embedding(257, narrow)
        self.encoder = near_stack(narrow, config.byte_layers, config.byte_heads)
        self.pool = EncoderConnector(narrow, config.width, heads, key_heads, config.head_norm)
        self.backbone = backbone_of(config)
        self.first = nn.Parameter(torch.zeros(config.width))  # what is said of the first word
        self.tell = nn.ModuleList(
            DecoderConnector(narrow, config.width, heads, key_heads) for _ in range(config.byte_layers)
        )
        self.decoder = near_stack(narrow, config.byte_layers, config.byte_heads)
        self.head = nn.Linear(narrow, 256, bias=False)
        self.over = ends_of_words(cut_rule(config.cut, config.most))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.normal_(self.first, std=0.02)
        if isinstance(module, EncoderConnector):
            nn.init.normal_(module.latent, std=0.02)

    @classmethod
    def tiny(cls) -> ConnectorHat:
        """See `ByteLanguageModel.tiny`."""
        sizes: dict[str, Any] = {"byte_width": 16, "byte_layers": 2, "byte_heads": 2, "width": 24, "layers": 2}
        return seeded(cls, ConnectorHatConfig(**sizes, heads=2, key_heads=1, head_norm=True, most=12, near=20))

    # -- reading ------------------------------------------------------------------------------------------------------

    def forward(self, input_ids: Int[Tensor, "batch bytes"], attention_mask: Tensor | None = None) -> Reading:
        """See `ByteLanguageModel.forward`."""
        lengths = lengths_of(input_ids, attention_mask)
        texts = self._grown(input_ids, lengths)
        start = input_ids.new_full((len(input_ids), 1), START)
        ids = torch.cat([start, input_ids[:, :-1]], 1)
        plain = Near.plain(len(ids), ids.shape[1], self.config.near, device=ids.device)
        states = run_near(self.encoder, self.bytes(ids), plain)
        said = self._said(states, texts)
        layout = Layout.of(texts, ids.shape[1], ids.device)
        near = Near(layout.place, layout.late, self.config.near)
        row = torch.arange(len(ids), device=ids.device)[:, None]
        word = layout.word + row * said.shape[1]
        heard = self._decoded(states[row, layout.place], said.flatten(0, 1), word, near)
        told = {"bytes per word": float(lengths.sum()) / max(sum(len(text.lengths) + 1 for text in texts), 1)}
        logits = self.head(heard[row, layout.last])[:, : input_ids.shape[1]]
        return byte_reading(logits, input_ids, lengths, **told)

    def _grown(self, ids: Int[Tensor, "batch bytes"], lengths: Int[Tensor, " batch"]) -> list[Grown]:
        """Cut every row; nothing is predicted behind its last byte, which is left out."""
        kept = (lengths - 1).clamp(min=0).tolist()
        return [grow(self.over, bytes(row[:n])) for row, n in zip(ids.tolist(), kept, strict=True)]

    def _said(self, states: Float[Tensor, "batch places narrow"], texts: list[Grown]) -> Tensor:
        """Return what is said of each word, shape (batch, words + 1, width): of the open one, too."""
        words = Words.of([text.lengths for text in texts], 0, states.device)
        sizes = torch.tensor([sum(text.lengths) for text in texts], device=states.device)
        row = torch.arange(len(texts), device=states.device).repeat_interleave(sizes)
        place = torch.arange(len(row), device=states.device) - (sizes.cumsum(0) - sizes)[row]
        pooled = self.pool(states[row, place + 1], words.lengths, place, words.number)
        most = max((len(text.lengths) for text in texts), default=0)
        rows = pooled.new_zeros(len(texts), most, pooled.shape[1]).index_put((words.row, words.number), pooled)
        first = self.first.to(pooled.dtype).expand(len(texts), 1, -1)
        return torch.cat([first, over_words(self.backbone, rows)], 1)

    def _decoded(
        self,
        states: Float[Tensor, "batch places narrow"],
        said: Float[Tensor, "words width"],
        word: Int[Tensor, "batch places"],
        near: Near,
        cache: NearCache | None = None,
    ) -> Float[Tensor, "batch places narrow"]:
        return run_near(self.decoder, states, near, cache, [partial(one, said=said, word=word) for one in self.tell])

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`."""
        length, count, near = input_ids.shape[1], input_ids.numel(), self.config.near
        texts = self._grown(input_ids, torch.full((len(input_ids),), length))
        late = sum(int((text.word != text.known).sum()) for text in texts) / count
        words = sum(len(text.lengths) for text in texts)
        seen = (min(near, length) + 1) / 2 * min(near, length) / length + max(length - near, 0) * near / length
        linear = [one for one in (*self.pool.modules(), *self.tell.modules()) if isinstance(one, nn.Linear)]
        once, by_byte = (self.pool.q,), (self.pool.k, self.pool.v, self.head)
        by_word = [one for one in linear if one not in (*once, *by_byte)]
        return (
            stack_flops(self.encoder, 1.0, seen)
            + stack_flops(self.decoder, 1 + late, seen)
            + stack_flops(self.backbone, words / count, (words / len(texts) + 1) / 2)
            + 2 * sum(one.weight.numel() for one in by_byte)
            + 2 * words / count * sum(one.weight.numel() for one in by_word)
            + 4 * self.config.width  # attention of a word to its bytes
        )

    def symbols(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.symbols`."""
        return list(text)

    def cuts(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.cuts`: where words begin."""
        lengths = grow(self.over, text).lengths
        return [sum(lengths[:number]) for number in range(len(lengths) + bool(text))]

    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """See `ByteLanguageModel.open_text`."""
        return _OpenStream(self, prompt, use_cache)


class _OpenStream(OpenText):
    """Keeps the open word's bytes and states, what is said of it, and the caches."""

    def __init__(self, model: ConnectorHat, prompt: bytes, use_cache: bool) -> None:
        self.model, self.text, self.use_cache = model, prompt, use_cache
        self._begin()

    def _begin(self) -> None:
        config = self.model.config
        kept = config.near + config.most + 3  # what a character's last byte may take back
        self.encoder_cache, self.words_cache, self.decoder_cache = NearCache(kept), DynamicCache(), NearCache(kept)
        self.open, self.words = b"", 0
        self.states = torch.zeros(1, 0, config.byte_width, device=self.model.device)  # of the open word
        self.said = self.model.first[None]  # of the open word
        self._read(self.text, start=True)

    @torch.no_grad()
    def _read(self, new: bytes, start: bool = False) -> None:
        model, near, device = self.model, self.model.config.near, self.model.device
        first = len(self.text) - len(new) + (not start)  # place of the first new one
        ids = torch.tensor([[START] * start + list(new)], device=device)
        plain = Near.plain(1, ids.shape[1], near, first, device)
        states = torch.cat([self.states, run_near(model.encoder, model.bytes(ids), plain, self.encoder_cache)], 1)
        read, self.open = len(self.open), self.open + new
        lengths = self._ended(read)
        said = self._say(states[:, int(start) :], lengths)
        back = max(read - lengths[0], 0) if lengths else 0  # places that turn out to be of a later word
        self.decoder_cache.take_back(back)
        count = back + ids.shape[1]
        over = torch.tensor(lengths, device=device).cumsum(0)
        places = torch.arange(states.shape[1] - count, states.shape[1], device=device) - int(start)  # in the open word
        word = torch.searchsorted(over, places, right=True) if lengths else torch.zeros_like(places)
        again = Near.plain(1, count, near, first - back, device)
        heard = model._decoded(states[:, -count:], said, word[None], again, self.decoder_cache)
        self._logits = model.head(heard[0, -1])
        self.open, self.said = self.open[sum(lengths) :], said[-1:]
        self.states = states[:, int(start) + sum(lengths) :]

    def _ended(self, read: int) -> list[int]:
        """Return the lengths of words that the new bytes end; `read` of the open word's were there before."""
        found, begun = [], 0
        for end in range(read + 1, len(self.open) + 1):
            for length in self.model.over(self.open[begun:end]):
                found.append(length)
                begun += length
        return found

    def _say(self, states: Float[Tensor, "1 bytes narrow"], lengths: list[int]) -> Float[Tensor, "words width"]:
        """Read words that are over; return what is said of the first of them and of those behind."""
        if not lengths:
            return self.said
        device, size = states.device, sum(lengths)
        begun = len(self.text) - len(self.open)
        pooled = self.model.pool(
            states[0, :size],
            torch.tensor(lengths, device=device),
            torch.arange(begun, begun + size, device=device),
            torch.arange(self.words, self.words + len(lengths), device=device),
        )
        self.words += len(lengths)
        return torch.cat([self.said, over_words(self.model.backbone, pooled[None], self.words_cache)[0]])

    @property
    def logits(self) -> Float[Tensor, " symbols"]:
        """See `OpenText.logits`."""
        return self._logits

    def push(self, symbol: int) -> bytes:
        """See `OpenText.push`."""
        self.text += SINGLE[symbol]
        if self.use_cache:
            self._read(SINGLE[symbol])
        else:
            self._begin()
        return SINGLE[symbol]


register(ConnectorHatConfig, ConnectorHat)

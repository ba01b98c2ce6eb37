"""Language models that read words, model words, and spell words: pool, context, spell.

Every word becomes `vectors` vectors from its bytes alone; a causal stack runs over those of all words before; what it
says spells the next word, byte by byte, and its end. All words of a batch are pooled and spelt at once, packed behind
one another. While writing, a word is pooled once, when it is over.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from mintage.lm.contract import ByteLanguageModel, OpenText, Reading
from mintage.lm.core.cuts import Cut, cut_rule
from mintage.lm.core.reading import END, lengths_of, real, word_logits, word_reading
from mintage.lm.core.words import Words

__all__ = ["WordModel"]


class WordModel(ByteLanguageModel):
    """A model of words; its configuration names the rule that cuts them (``cut``) and their longest (``most``)."""

    vectors: int
    """Of each word."""

    def _set_up(self, width: int, vectors: int) -> None:
        self.vectors = vectors
        self.start = nn.Parameter(torch.zeros(vectors, width))  # stands where a word before the first would
        self.cut: Cut = cut_rule(self.config.cut, self.config.most)

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.normal_(self.start, std=0.02)

    @abstractmethod
    def pool(self, flat: Int[Tensor, " bytes"], words: Words) -> Float[Tensor, "words vectors width"]:
        """Return the vectors of every word, from its own bytes."""

    @abstractmethod
    def context(self, rows: Float[Tensor, "batch places width"], cache: Any = None) -> Tensor:
        """Run the causal stack over vectors of words; shape as `rows`."""

    @abstractmethod
    def spell(
        self, said: Float[Tensor, "words vectors width"], flat: Int[Tensor, " bytes"], words: Words
    ) -> Float[Tensor, "places 257"]:
        """Return logits of bytes and `END` at every place, from what the words before say of each."""

    @abstractmethod
    def begin_word(self, said: Float[Tensor, "1 vectors width"], cache: Any) -> Float[Tensor, 257]:
        """Return the logits of a word's first byte, and keep in `cache` what its next ones need."""

    @abstractmethod
    def spell_on(self, spelt: Int[Tensor, " new"], done: int, cache: Any) -> Float[Tensor, 257]:
        """Return the logits behind new bytes of a word of which `done` were spelt."""

    # -- reading ------------------------------------------------------------------------------------------------------

    def words(self, ids: Int[Tensor, "batch bytes"], lengths: Int[Tensor, " batch"]) -> Words:
        """Cut every row."""
        rows = [self.cut(bytes(row[:n])) for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
        return Words.of(rows, self.vectors, ids.device)

    def forward(self, input_ids: Int[Tensor, "batch bytes"], attention_mask: Tensor | None = None) -> Reading:
        """See `ByteLanguageModel.forward`."""
        lengths = lengths_of(input_ids, attention_mask)
        seen = real(lengths, input_ids.shape[1])
        flat, words = input_ids[seen], self.words(input_ids, lengths)
        logits = self.spell(self._said(self.pool(flat, words), words), flat, words)
        told = {"bytes per word": len(flat) / max(len(words.lengths), 1)}
        return word_reading(word_logits(logits, words, self.config.most), flat, words, seen, **told)

    def _said(self, pooled: Float[Tensor, "words vectors width"], words: Words) -> Float[Tensor, "words vectors width"]:
        """Return what the words before each say of it."""
        most = int(words.counts.max()) if len(words.counts) else 0
        rows = pooled.new_zeros(len(words.counts), most, *pooled.shape[1:])
        before = ~words.is_last
        if most:
            rows[:, 0] = self.start.to(pooled.dtype)
        rows = rows.index_put((words.row[before], words.number[before] + 1), pooled[before])
        out = self.context(rows.flatten(1, 2)).view(rows.shape)
        return out[words.row, words.number]

    def cuts(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.cuts`."""
        lengths = self.cut(text)
        return [sum(lengths[:number]) for number in range(len(lengths))]

    def symbols(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.symbols`."""
        found: list[int] = []
        done = 0
        for length in self.cut(text):
            found += [END] * bool(done) + list(text[done : done + length])
            done += length
        return found

    # -- writing ------------------------------------------------------------------------------------------------------

    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """See `ByteLanguageModel.open_text`; a prompt's last word is open."""
        lengths = self.cut(prompt)
        ends = torch.tensor(lengths).cumsum(0).tolist() if lengths else []
        pieces = [prompt[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        return _OpenWords(self, pieces[:-1], pieces[-1] if pieces else b"", use_cache)


class _OpenWords(OpenText):
    """Words that are over, and one that is spelt."""

    def __init__(self, model: WordModel, over: list[bytes], spelt: bytes, use_cache: bool) -> None:
        self.model, self.over, self.spelt, self.use_cache = model, over, spelt, use_cache
        self._read_all()

    @torch.no_grad()
    def _read_all(self) -> None:
        rows = self.model.start[None]
        if self.over:
            rows = torch.cat([rows, self._pooled(self.over)])
        self.words_cache = DynamicCache() if self.use_cache else None
        self._begin(rows)
        if self.spelt:
            self._logits = self.model.spell_on(self._ids(self.spelt), 0, self.word_cache)

    def _ids(self, data: bytes) -> Tensor:
        return torch.tensor(list(data), dtype=torch.long, device=self.model.device)

    def _pooled(self, pieces: list[bytes]) -> Tensor:
        words = Words.of([[len(piece) for piece in pieces]], self.model.vectors, self.model.device)
        return self.model.pool(self._ids(b"".join(pieces)), words)

    def _begin(self, rows: Float[Tensor, "words vectors width"]) -> None:
        """Put words behind those that the context holds, and begin the next one."""
        out = self.model.context(rows.flatten(0, 1)[None], self.words_cache)[:, -self.model.vectors :]
        self.word_cache = DynamicCache()
        self._logits = self.model.begin_word(out, self.word_cache)

    @property
    def logits(self) -> Float[Tensor, " symbols"]:
        """See `OpenText.logits`."""
        logits = self._logits.float().clone()
        if not self.spelt:
            logits[END] = -torch.inf
        elif len(self.spelt) >= self.model.config.most:
            logits[:END] = -torch.inf
            logits[END] = 0
        return logits

    @torch.no_grad()
    def push(self, symbol: int) -> bytes:
        """See `OpenText.push`."""
        if symbol == END:
            self.over.append(self.spelt)
            self.spelt = b""
        else:
            self.spelt += bytes([symbol])
        if not self.use_cache:
            self._read_all()
        elif symbol == END:
            self._begin(self._pooled(self.over[-1:]))
        else:
            self._logits = self.model.spell_on(self._ids(self.spelt[-1:]), len(self.spelt) - 1, self.word_cache)
        return b"" if symbol == END else self.spelt[-1:]

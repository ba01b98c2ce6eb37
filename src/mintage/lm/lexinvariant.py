"""A lexinvariant language model: every text gets fresh random embeddings, so symbols mean what the text makes of them.

A causal transformer without an embedding matrix (arXiv 2305.16349): each symbol of a sequence is a Gaussian vector,
drawn for this sequence and this step, and the same table reads out; logits are divided by the root of the width.
Renaming symbols changes nothing in distribution. `rate` below 1 leaves the other symbols a learnt vector (the paper's
partly invariant, regularised model), and 0 is an ordinary model with tied embeddings. The first symbol is predicted
from a learnt start vector; there is no output bias.

While training every row has a table of its own. Else all texts are read with the one that `table_seed` draws, in any
batch, so that a model is one distribution; `score(..., n_draws=k)` averages the probabilities of k fresh tables.

Where `alphabet` is given, it alone can be read and written; what is invariant is bytes, not characters of many bytes.

Not here: tables (`mintage.lm.core.random_embedding`), the ideal model (`mintage.lm.core.cipher`).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mintage.errors import UserError
from mintage.lm.contract import ByteLanguageModel, LMConfig, OpenText, Reading, register
from mintage.lm.core.open_row import OpenRow
from mintage.lm.core.random_embedding import RandomEmbedding, check_portion
from mintage.lm.core.reading import byte_reading, lengths_of, real, seeded
from mintage.lm.core.stack import over_rows, stack, stack_flops

__all__ = ["Lexinvariant", "LexinvariantConfig"]


class LexinvariantConfig(LMConfig):
    """Sizes of a lexinvariant model.

    Parameters
    ----------
    width, layers, heads
        Of the stack.
    rate, whole
        Share of the symbols that are random in a sequence, and of the sequences in which all are.
    alphabet
        The bytes that are symbols, each once, e.g. ``b"abcde"``; none: all 256.
    table_seed
        Draws the table of a model that is not training.

    Raises
    ------
    UserError
        A size or share is out of range, or the alphabet has a byte twice or only one.
    """

    model_type = "mintage-lexinvariant"
    sizes: ClassVar = {"width": 2, "layers": 1, "heads": 1, "table_seed": 0}
    others: ClassVar = ("rate", "whole", "alphabet")

    width, layers, heads, table_seed = 128, 4, 4, 0
    rate, whole = 1.0, 0.0
    alphabet: Any = b""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alphabet = list(self.alphabet)
        check_portion("rate", self.rate)
        check_portion("whole", self.whole)
        if any(not 0 <= byte < 256 for byte in self.alphabet) or len(set(self.alphabet)) < len(self.alphabet):
            raise UserError(f"alphabet={self.alphabet} has no byte or one twice; pass each once, e.g. b'abcde'")
        if len(self.alphabet) == 1:
            raise UserError(f"alphabet={bytes(self.alphabet)!r} has one symbol; pass at least two")


class Lexinvariant(ByteLanguageModel):
    """A Llama over random vectors."""

    config_class = LexinvariantConfig

    def __init__(self, config: LexinvariantConfig) -> None:
        super().__init__(config)
        self.alphabet = config.alphabet or list(range(256))
        self.embedding = RandomEmbedding(len(self.alphabet), config.width, config.rate, config.whole)
        self.start = nn.Parameter(torch.zeros(config.width))
        self.blocks = stack(config.width, config.layers, config.heads)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if module is self:
            nn.init.normal_(self.start)
        elif module is self.embedding and self.embedding.learned is not None:
            nn.init.normal_(self.embedding.learned)

    @classmethod
    def tiny(cls) -> Lexinvariant:
        """See `ByteLanguageModel.tiny`."""
        return seeded(cls, LexinvariantConfig(width=16, layers=2, heads=2))

    def symbol_ids(self, ids: Int[Tensor, "batch bytes"], lengths: Int[Tensor, " batch"]) -> Int[Tensor, "batch bytes"]:
        """Return the symbols of bytes; filling is the first one.

        Raises
        ------
        UserError
            A byte is not in the alphabet.
        """
        numbers = torch.full((256,), -1, device=ids.device)
        numbers[torch.tensor(self.alphabet, device=ids.device)] = torch.arange(len(self.alphabet), device=ids.device)
        found = numbers[ids]
        strange = ids[(found < 0) & real(lengths, ids.shape[1])]
        if len(strange):
            raise UserError(f"byte {bytes([int(strange[0])])!r} is not in the alphabet {bytes(self.alphabet)!r}")
        return found.clamp(min=0)

    def table(self, rows: int = 1, generator: torch.Generator | None = None) -> Float[Tensor, "rows symbols width"]:
        """Draw tables: one for each row from a generator or while training, else that of ``table_seed`` for all."""
        if self.training or generator is not None:
            return self.embedding.sample(rows, generator, self.device)
        fixed = torch.Generator().manual_seed(self.config.table_seed)
        return self.embedding.sample(1, fixed, self.device).expand(rows, -1, -1)

    def states(
        self, symbols: Int[Tensor, "batch places"], table: Float[Tensor, "batch symbols width"]
    ) -> Float[Tensor, "batch more width"]:
        """Return the stack's states behind the start and behind every symbol."""
        start = self.start.expand(len(symbols), 1, -1)
        return over_rows(self.blocks, torch.cat([start, self.embedding.embed(symbols, table)], 1))

    def logits(
        self, states: Float[Tensor, "batch places width"], table: Float[Tensor, "batch symbols width"]
    ) -> Float[Tensor, "batch places symbols"]:
        """Read symbols out of states."""
        return self.embedding.logits(states, table) / math.sqrt(self.config.width)

    def forward(
        self,
        input_ids: Int[Tensor, "batch bytes"],
        attention_mask: Tensor | None = None,
        table: Float[Tensor, "batch symbols width"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Reading:
        """See `ByteLanguageModel.forward`; `table` is taken as it is, a `generator` draws one for every row."""
        lengths = lengths_of(input_ids, attention_mask)
        symbols = self.symbol_ids(input_ids, lengths)
        table = self.table(len(symbols), generator) if table is None else table
        logits = self.logits(self.states(symbols[:, :-1], table)[:, : symbols.shape[1]], table)
        return byte_reading(logits, symbols, lengths)

    def score(
        self, text: bytes | str, context: bytes | str = b"", n_draws: int = 0, generator: torch.Generator | None = None
    ) -> float:
        """Return the bits that `text` costs behind `context`, see `ByteLanguageModel.score`.

        Parameters
        ----------
        n_draws
            Tables over which every next byte's probability is averaged; 0 takes that of ``table_seed``.
        generator
            Draws them; default torch's own.

        Raises
        ------
        UserError
            `n_draws` is below 0, or a byte is not in the alphabet.
        """
        if n_draws < 0:
            raise UserError(f"n_draws={n_draws} is below 0; pass how many tables to average over")
        if not n_draws:
            return super().score(text, context)
        text, context = (t.encode("utf-8", "surrogateescape") if isinstance(t, str) else t for t in (text, context))
        rows = torch.tensor([list(context + text)], device=self.device)
        with torch.no_grad():
            tables = [self.embedding.sample(1, generator, self.device) for _ in range(n_draws)]
            nats = torch.cat([self(rows, table=table).nats for table in tables]).double()
        return float((math.log(n_draws) - (-nats[:, len(context) :]).logsumexp(0)).sum()) / math.log(2)

    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """See `ByteLanguageModel.flops`."""
        length = input_ids.shape[1]
        return stack_flops(self.blocks, 1.0, (length + 1) / 2) + 2 * len(self.alphabet) * self.config.width

    def symbols(self, text: bytes) -> list[int]:
        """See `ByteLanguageModel.symbols`."""
        ids = torch.tensor([list(text)], dtype=torch.long)
        return self.symbol_ids(ids, torch.tensor([len(text)]))[0].tolist()

    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """See `ByteLanguageModel.open_text`; one table holds for the whole text."""
        table = self.table().detach()
        rows = torch.cat([table[0], self.start.detach()[None]])
        head, written = lambda states: self.logits(states[None, None], table)[0, 0], [bytes([b]) for b in self.alphabet]
        start = len(self.alphabet)
        return OpenRow(
            nn.Embedding.from_pretrained(rows), self.blocks, head, [start, *self.symbols(prompt)], written, use_cache
        )


register(LexinvariantConfig, Lexinvariant)

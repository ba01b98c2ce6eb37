"""The lm contract: a language model reads bytes, whatever it makes of them inside, and is judged by bits per byte.

Laws (run by `mintage.testing` over every model):

- what a byte costs does not change with later bytes, with padding, or with the other rows of a batch;
- ``score(a + b) == score(a) + score(b, context=a)``; the probabilities of all next symbols sum to one;
- any byte string is read, UTF-8 or not, the empty one too;
- writing with a cache equals writing without, a seed repeats it, and a text goes on in the middle of a word;
- saving and loading, by path or through transformers' Auto classes, changes nothing.

A *symbol* is what a model predicts at once: a byte, the end of a word, or a token. Everything that is needed to write a
text again costs bits; only its bytes are counted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from mintage.errors import UserError
from mintage.lm.core.sampling import Sampling
from mintage.models import KeptModel

__all__ = ["ByteLanguageModel", "LMConfig", "OpenText", "Reading", "as_rows", "register"]

MOST_BYTES = 1 << 16
"""Of a text that is read in one piece."""


class LMConfig(PretrainedConfig):
    """Sizes of a byte language model; subclasses have theirs as class attributes. Ids of HF's interface are bytes.

    Raises
    ------
    UserError
        A size is out of range.
    """

    sizes: ClassVar[Mapping[str, int]] = {}
    """Names of whole numbers to the least that they may be."""

    others: ClassVar[tuple[str, ...]] = ()
    """Names of settings that are no whole numbers."""

    def __init__(self, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name, getattr(type(self), name)) for name in (*self.sizes, *self.others)}
        kwargs = {"vocab_size": 256, "tie_word_embeddings": False, **kwargs}
        super().__init__(**kwargs)
        for name, value in own.items():
            least = self.sizes.get(name)
            if least is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UserError(f"{name}={value!r} is out of range; pass a whole number from {least} on")
            setattr(self, name, value)


@dataclass
class Reading(ModelOutput):
    """What a model makes of a batch of texts.

    Parameters
    ----------
    loss
        To be trained on: nats per symbol, with whatever else a method asks for.
    nats
        What each byte costs, shape (batch, bytes), 0 where there is none; a word's end is paid by the byte behind it.
    right
        Whether each byte, and the end of a word before it, was the likeliest one, shape (batch, bytes).
    told
        Metrics worth a log: rates, shares, lengths.
    """

    loss: Tensor = None  # pyright: ignore[reportAssignmentType] # the base class wants a default of all but one
    nats: Tensor = None  # pyright: ignore[reportAssignmentType]
    right: Tensor = None  # pyright: ignore[reportAssignmentType]
    told: dict[str, float] | None = None


class OpenText(ABC):
    """A text that grows, as a model sees it."""

    @property
    @abstractmethod
    def logits(self) -> Float[Tensor, " symbols"]:
        """Of the symbol that comes next; what cannot come has -inf."""

    @abstractmethod
    def push(self, symbol: int) -> bytes:
        """Go on by a symbol, and return the bytes that it writes (none for the end of a word)."""


class ByteLanguageModel(KeptModel, PreTrainedModel, ABC):
    """A language model of bytes."""

    config_class = LMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules: ClassVar[list[str]] = []

    @abstractmethod
    def forward(
        self, input_ids: Int[Tensor, "batch bytes"], attention_mask: Int[Tensor, "batch bytes"] | None = None
    ) -> Reading:
        """Read a batch.

        Parameters
        ----------
        input_ids
            Bytes, 0 to 255.
        attention_mask
            1 for bytes, 0 for what rows are filled with at their ends; default all bytes.
        """

    @abstractmethod
    def flops(self, input_ids: Int[Tensor, "batch bytes"]) -> float:
        """Count the operations (two a multiply-add) of reading full rows forward, per byte; training takes thrice."""

    @abstractmethod
    def symbols(self, text: bytes) -> list[int]:
        """Return the symbols that write a text; behind its last byte no word ends."""

    def cuts(self, text: bytes) -> list[int]:
        """Return where what the model takes together begins: tokens, words, segments; by default every byte alone."""
        return list(range(len(text)))

    @abstractmethod
    def open_text(self, prompt: bytes, *, use_cache: bool = True) -> OpenText:
        """Begin to write behind `prompt`; without a cache everything is read anew at every symbol."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> ByteLanguageModel:
        """Make a small model with random weights, the same at every call, for the laws."""

    # -- reading ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(self, texts: Sequence[bytes]) -> Reading:
        """Read texts of any lengths in one batch.

        Raises
        ------
        UserError
            One is no bytes, or longer than 65,536.
        """
        ids, mask = as_rows(texts, self.device)
        return self(ids, mask)

    def score(self, text: bytes | str, context: bytes | str = b"") -> float:
        """Return the bits that `text` costs behind `context`."""
        text, context = _bytes(text), _bytes(context)
        if not text:
            return 0.0
        return float(self.read([context + text]).nats[0, len(context) :].double().sum()) / math.log(2)

    # -- writing ------------------------------------------------------------------------------------------------------

    def stream(
        self, prompt: bytes | str, sampling: Sampling | None = None, *, use_cache: bool = True
    ) -> Iterator[bytes]:
        """Yield what is written behind `prompt`, a symbol at a time, ``sampling.max_new_tokens`` bytes in all."""
        sampling = sampling or Sampling()
        opened, choose = self.open_text(_bytes(prompt), use_cache=use_cache), sampling.chooser()
        left = sampling.max_new_tokens
        while left > 0:
            written = opened.push(choose(opened.logits))[:left]
            left -= len(written)
            if written:
                yield written

    def write(self, prompt: bytes | str, sampling: Sampling | None = None, *, use_cache: bool = True) -> bytes:
        """Return the bytes written behind `prompt`; they need not be UTF-8."""
        return b"".join(self.stream(prompt, sampling, use_cache=use_cache))

    def generate(
        self,
        input_ids: Int[Tensor, "batch bytes"],
        attention_mask: Int[Tensor, "batch bytes"] | None = None,
        *,
        use_cache: bool = True,
        **sampling: Any,
    ) -> Int[Tensor, "batch longer"]:
        """Write behind rows of bytes, as transformers' ``generate`` does: prompt and new bytes come back.

        Parameters
        ----------
        input_ids, attention_mask
            Prompts; 0 in the mask is filling, at either end of a row.
        use_cache
            Whether what was read is kept.
        **sampling
            Fields of `Sampling`: ``max_new_tokens`` (bytes), ``do_sample``, ``temperature``, ``top_k``, ``top_p``,
            ``seed``.

        Raises
        ------
        UserError
            A setting is unknown or out of range.
        """
        how = Sampling.of(sampling)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = zip(input_ids.tolist(), mask.bool().tolist(), strict=True)
        prompts = [bytes(b for b, real in zip(row, seen, strict=True) if real) for row, seen in rows]
        written = [self.write(prompt, how.of_row(number), use_cache=use_cache) for number, prompt in enumerate(prompts)]
        return torch.cat([input_ids, torch.tensor([list(new) for new in written]).to(input_ids)], 1)


def _bytes(text: bytes | str) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise UserError(f"the text holds half of a surrogate pair (U+{code:04X}); pass bytes") from None


def as_rows(texts: Sequence[bytes], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return bytes and mask, each of shape (texts, longest), filled at the ends.

    Raises
    ------
    UserError
        One is no bytes, or longer than 65,536.
    """
    for text in texts:
        if not isinstance(text, bytes):
            raise UserError(f"a text is {type(text).__name__}, not bytes; pass text.encode()")
        if len(text) > MOST_BYTES:
            raise UserError(f"a text has {len(text)} bytes; read at most {MOST_BYTES} at once, window by window")
    longest = max(map(len, texts), default=0)
    ids = torch.tensor([list(text.ljust(longest, b"\0")) for text in texts], dtype=torch.long, device=device)
    ids = ids.reshape(len(texts), longest)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    return ids, (torch.arange(longest, device=device) < lengths[:, None]).long()


def register(config: type[LMConfig], model: type[ByteLanguageModel]) -> None:
    """Make transformers' Auto classes know a model; nothing is fetched or run from elsewhere."""
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)

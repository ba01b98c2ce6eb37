"""The retrofit contract, as far as it goes today: a model over bytes, whatever its own tokens are.

Laws (run by `mintage.testing` over every method that samples bytes):

- the probabilities of the next byte and of the end add up to one;
- the probability of a text is that of its continuations and of its end together;
- a state kept up to date byte by byte equals one made from the whole text;
- bytes that cannot follow are refused in one line.

A method is a `ByteSampler`, whose `start` gives a `ByteState`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mintage.errors import UserError

__all__ = ["END", "ByteSampler", "ByteState"]

END = 256
"""Place of the end of the text among the 257 outcomes."""


class ByteState(ABC):
    """What is known after some bytes; `advance` gives the state after one more."""

    @abstractmethod
    def logprobs(self) -> NDArray[np.float64]:
        """Return the log-probabilities of the 256 bytes and of the end of the text, [257]."""

    @abstractmethod
    def advance(self, byte: int) -> ByteState:
        """Return the state after `byte`."""


class ByteSampler(ABC):
    """A model over bytes: something that gives states."""

    @abstractmethod
    def start(self, prefix: bytes = b"") -> ByteState:
        """Return the state after a text."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> ByteSampler:
        """Make a small offline instance over the letters ``a`` and ``b``, for the laws."""

    @classmethod
    def of(cls, lm: Any) -> ByteSampler:
        """Make one of a loaded model (`mintage.models.CausalLM`); what is made of several, or of none, refuses.

        Raises
        ------
        UserError
            It cannot be made of this model, or of one alone.
        """
        raise UserError(f"{cls.__name__} is not made of one model; make it in Python and call its logprob")

    def logprob(self, text: bytes) -> float:
        """Return the log-probability that a text begins with these bytes."""
        return self.continuation_logprob(b"", text)

    def next_byte_logprobs(self, prefix: bytes) -> NDArray[np.float64]:
        """Return the log-probabilities of the next byte or the end, [257]."""
        return self.start(prefix).logprobs()

    def continuation_logprob(self, prefix: bytes, continuation: bytes) -> float:
        """Return the log-probability that `prefix` goes on with `continuation`."""
        state, total = self.start(prefix), 0.0
        for place, byte in enumerate(continuation):
            total += float(state.logprobs()[byte])
            if not np.isfinite(total):
                return -np.inf
            if place < len(continuation) - 1:
                state = state.advance(byte)
        return total

    def stream(
        self,
        prefix: bytes = b"",
        max_bytes: int = 64,
        *,
        temperature: float | int = 0.0,
        top_p: float | int = 1.0,
        seed: int | None = None,
    ) -> Iterator[int]:
        """Yield bytes that continue `prefix`, one by one, until the end of the text or `max_bytes`.

        Parameters
        ----------
        temperature
            0 takes the most likely byte; else probabilities are raised to ``1 / temperature``.
        top_p
            The most likely bytes that together have this probability are drawn from.
        seed
            Repeats a sample.

        Raises
        ------
        UserError
            A temperature below 0, or top_p outside (0, 1].
        """
        if temperature < 0 or not 0 < top_p <= 1:
            raise UserError(f"temperature={temperature}, top_p={top_p}: pass at least 0, and a share in (0, 1]")
        draw = np.random.default_rng(seed)
        state = self.start(prefix)
        for place in range(max_bytes):
            logp = state.logprobs()
            byte = int(logp.argmax()) if temperature == 0 else _draw(logp / temperature, top_p, draw)
            if byte == END:
                return
            yield byte
            if place < max_bytes - 1:
                state = state.advance(byte)

    def generate(self, prefix: bytes = b"", max_bytes: int = 64, **settings: Any) -> bytes:
        """Return what `stream` yields."""
        return bytes(self.stream(prefix, max_bytes, **settings))


def _draw(logits: NDArray[np.float64], top_p: float, draw: np.random.Generator) -> int:
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: int(np.searchsorted(p[order].cumsum(), top_p - 1e-12)) + 1]
    return int(draw.choice(kept, p=p[kept] / p[kept].sum()))

"""What is done about prompts that end within a token where bytes are not summed over: nothing, or healing.

Both give the exact distribution of the bytes that their tokens spell, so that they compare with `ByteLM` on any text.
Not here: tokenizers that put a space in front of every text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mintage.errors import UserError
from mintage.models import CausalLM
from mintage.retrofit.contract import ByteSampler, ByteState
from mintage.retrofit.exact_bytes import ByteLM

__all__ = ["PlainContinuation", "TokenHealing"]


@dataclass(frozen=True, kw_only=True)
class PlainContinuation(ByteSampler):
    """The ordinary use of a model: the prompt is encoded, and what follows is new tokens.

    Parameters
    ----------
    exact
        The model over bytes.
    """

    exact: ByteLM

    @classmethod
    def of(cls, lm: CausalLM) -> PlainContinuation:
        """Make one of a loaded model.

        Raises
        ------
        UserError
            As `ByteLM.of`; or the tokenizer puts a space in front of every text.
        """
        return cls(exact=ByteLM.of(lm))

    def __post_init__(self) -> None:
        if self.exact.vocabulary.prefix:
            raise UserError(
                "this tokenizer puts a space in front of every text, so what follows a token cannot be encoded alone; "
                "use ByteLM, which needs no such cut"
            )

    def start(self, prefix: bytes = b"") -> ByteState:
        """Return the state after the tokens of a text."""
        return self._behind(self._encoded(prefix)).start()

    def _encoded(self, prefix: bytes) -> tuple[int, ...]:
        tokens = self.exact.vocabulary.encode(prefix)
        if tokens is None:
            raise UserError(f"{prefix[-8:]!r} ends within a character that has no token for its part; use ByteLM")
        return tokens

    def _behind(self, tokens: tuple[int, ...]) -> ByteLM:
        return replace(self.exact, context=(*self.exact.context, *tokens))

    @classmethod
    def tiny(cls) -> PlainContinuation:
        """Make one over a small random law."""
        return cls(exact=ByteLM.tiny())


@dataclass(frozen=True, kw_only=True)
class TokenHealing(PlainContinuation):
    """Back up by one token, and let the next one be any that begins with its bytes (as guidance and transformers do).

    Wrong where the likely encoding parts from that of the prompt more than one token before its end. Where the token
    stays as it was, what follows is encoded for itself, as in a plain continuation.

    Parameters
    ----------
    exact
        The model over bytes.
    """

    def start(self, prefix: bytes = b"") -> ByteState:
        """Return the state after a text whose last token is open again."""
        tokens = self._encoded(prefix)
        if not tokens:
            return self.exact.start()
        last = tokens[-1]
        behind = self._behind(tokens[:-1])
        raw = behind.vocabulary.tokens[last]
        ids = behind.vocabulary.starting(raw)
        logp = behind.next(())
        ids = ids[ids < len(logp)]
        parts, logw = [self._behind(tokens).start()], [float(logp[last])]
        if np.isfinite(logp[ids]).any():
            parts.append(behind.within_token(raw, ids, np.asarray(logp[ids])))
            logw.append(float(np.logaddexp.reduce(logp[ids])))
        return _Either(tuple(parts), np.array(logw))


@dataclass(frozen=True, eq=False)
class _Either(ByteState):
    """One of several states, of which it is not known which one; logarithms of how likely each is."""

    parts: tuple[ByteState, ...]
    logw: NDArray[np.float64]

    def logprobs(self) -> NDArray[np.float64]:
        """Return the log-probabilities of the 256 bytes and of the end of the text, [257]."""
        logp = np.stack([part.logprobs() for part in self.parts])
        return np.logaddexp.reduce(logp + self.logw[:, None], axis=0) - np.logaddexp.reduce(self.logw)

    def advance(self, byte: int) -> ByteState:
        """Return the state after `byte`; parts that cannot go on so are out."""
        told = [float(w + part.logprobs()[byte]) for part, w in zip(self.parts, self.logw, strict=True)]
        left = [(part, w) for part, w in zip(self.parts, told, strict=True) if w > -np.inf]
        if not left:
            raise UserError(f"the model gives no way to go on with {bytes([byte])!r}")
        if len(left) == 1:
            return left[0][0].advance(byte)
        return _Either(tuple(part.advance(byte) for part, _ in left), np.array([w for _, w in left]))

"""Exact bytes: what a model over tokens says about the next byte, with no change to the model.

*Exact Byte-Level Probabilities from Tokenized Language Models for FIM-Tasks and Model Ensembles*, Phan et al., ICLR
2025, arXiv 2410.09303. A prompt that ends within a token is not what the model was trained to continue. The probability
of a text is the sum over its *cover encodings*: the valid encodings whose last token reaches the end of the text or
beyond, all others ending before it. From their weights follows the distribution of the next byte, exactly; one forward
per byte keeps them up to date.

Use::

    lm = ByteLM.of(load_causal_lm())
    state = lm.start(b"The quick brown fox jum")
    state.logprobs()[ord("p")]
    lm.generate(b"The quick brown fox jum", max_bytes=20)

Bytes that no encoding has (no UTF-8, or without a token) have probability 0, but a prompt may hold them: what comes up
to the last of them is read as fixed tokens, those bytes as their own token or else as U+FFFD.

Over 200 lines: search and state are the two halves of one algorithm. Not here: training; models whose tokenizers keep
neither bytes nor a byte fallback; infilling (`core.infill`) and ensembles (`byte_ensemble`). Inside a character of
several bytes what a valid encoding is depends on bytes to come; there a few completions stand for all, and the state is
made anew when the character is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mintage.errors import UserError
from mintage.models import CausalLM
from mintage.options import check_fields, option
from mintage.retrofit.contract import END, ByteSampler, ByteState
from mintage.retrofit.core.byte_vocabulary import ByteVocabulary, Tokens, ends_a_character
from mintage.retrofit.core.next_token import ModelDistribution, TokenDistribution, enumerated

__all__ = ["ByteLM", "Cover"]

_SLACK = 64  # bytes of a long text that are encoded anew, beside the longest token


@dataclass(frozen=True)
class Cover:
    """One cover encoding of a text and its log-probability."""

    tokens: Tokens
    logprob: float


@dataclass(frozen=True, eq=False)
class _Group:
    """Covers that share all but their last token, which reaches beyond the text."""

    left: Tokens
    ids: NDArray[np.int64]
    logw: NDArray[np.float64]
    used: int  # bytes of the last token that lie within the text


Whole = tuple[Tokens, float]
"""Tokens that end where a text does, and the logarithm of their weight."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ByteLM(ByteSampler):
    """A byte-level model with the text probabilities of a model over tokens."""

    distribution: TokenDistribution = option(help="Of the next token; `ModelDistribution` for a Hugging Face model.")
    vocabulary: ByteVocabulary = option(help="The tokens as bytes.")
    end: Tokens = option((), "Tokens that end a text.")
    context: Tokens = option((), "Tokens before the text that no cover may cross: an end-of-text token, a prompt.")
    tolerance: float | int = option(1e-9, "Probability that the least likely tokens may lose; 0 checks all.", least=0)

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of(cls, lm: CausalLM, *, context: Sequence[int] | None = None, tolerance: float | int = 1e-9) -> ByteLM:
        """Make one of a loaded model, conditioned on its end-of-text token unless a `context` is given.

        Raises
        ------
        UserError
            The tokenizer cannot write every text, or is larger than the model's vocabulary.
        """
        vocabulary = ByteVocabulary.of(lm.tokenizer)
        rows = lm.model.config.get_text_config(decoder=True).vocab_size
        if len(vocabulary.tokens) > rows:
            raise UserError(f"the tokenizer of {lm.name} has {len(vocabulary.tokens)} tokens, the model only {rows}")
        ends: Any = lm.model.generation_config.eos_token_id  # type: ignore[union-attr]
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        opening = [] if lm.opening is None else [lm.opening]
        ends = list(dict.fromkeys([*ends, *opening]))
        if context is None:
            context = opening
        return cls(
            distribution=ModelDistribution(lm.model),
            vocabulary=vocabulary,
            end=tuple(ends),
            context=tuple(context),
            tolerance=tolerance,
        )

    def start(self, prefix: bytes = b"") -> _State:
        """Find the covers of a text; up to the last byte that no encoding has it is fixed, and covers begin behind it.

        Raises
        ------
        UserError
            The model's tokens cannot write the text.
        """
        text = self.vocabulary.prefix + prefix
        wholes, groups, _ = self._search(text)
        if not wholes and not groups:
            fixed, rest = self.vocabulary.forced(prefix)
            if fixed:
                return replace(self, context=(*self.context, *fixed)).start(rest)
            raise UserError(f"the model's tokens cannot write {text[-8:]!r}; shorten the text by a few bytes")
        return _State(self, text, wholes, groups)

    def within_token(self, text: bytes, longer: NDArray[np.int64], logw: NDArray[np.float64]) -> _State:
        """Return the state within one of these tokens, all of which begin with `text`."""
        kept = logw > -np.inf
        return _State(self, text, (), (_Group((), longer[kept], logw[kept], len(text)),))

    def cover_encodings(self, prefix: bytes) -> list[Cover]:
        """List the cover encodings of a text with their log-probabilities given the context, the likeliest first."""
        text = self.vocabulary.prefix + prefix
        wholes, groups, shared = self._search(text)
        found = [Cover(tokens, weight) for tokens, weight in wholes]
        found += [
            Cover((*group.left, int(v)), float(w))
            for group in groups
            for v, w in zip(group.ids, group.logw, strict=True)
        ]
        base = self._score(shared)
        return sorted((Cover(c.tokens, c.logprob + base) for c in found), key=lambda c: -c.logprob)

    def logprob(self, text: bytes) -> float:
        """Return the log-probability that a text begins with these bytes."""
        return float(np.logaddexp.reduce([cover.logprob for cover in self.cover_encodings(text)] or [-np.inf]))

    # -- the search --

    def next(self, tokens: Tokens) -> NDArray[np.float64]:
        """Return the log-probabilities of the next token after the context and these tokens."""
        return self.distribution((*self.context, *tokens))

    def likely(self, logp: NDArray[np.float64]) -> NDArray[np.int64]:
        """Tokens with bytes, but for unlikely ones that have less than `tolerance` together."""
        logp = logp[: len(self.vocabulary.tokens)]
        least = np.log(self.tolerance / len(logp)) if self.tolerance else -np.inf
        return np.flatnonzero((logp > least) & (self.vocabulary.length[: len(logp)] > 0))

    def _lefts(self, text: bytes) -> list[tuple[int, Tokens]]:
        """Every canonical encoding that a cover may begin with, and how many bytes are left for its last token."""
        found = []
        before, settled = self._settled(text)
        for left in range(1, min(len(text), self.vocabulary.longest) + 1):
            if len(self.vocabulary.starting(text[len(text) - left :])):
                for tokens in self.vocabulary.encodings(text[settled : len(text) - left]):
                    found.append((left, (*before, *tokens)))
        return found

    def _settled(self, text: bytes) -> tuple[Tokens, int]:
        """Tokens of a long text that all covers begin with, and how many bytes they are."""
        end = len(text) - self.vocabulary.longest - _SLACK
        while end > 0 and text[end] & 0xC0 == 0x80:
            end -= 1
        tokens = self.vocabulary.encode(text[:end]) if end > 0 else None
        if tokens is None:
            return (), 0
        before = tokens[: len(tokens) - len(self.vocabulary.last_words(tokens))]
        return before, sum(int(self.vocabulary.length[t]) for t in before)

    @staticmethod
    def _shared(lists: list[Tokens]) -> Tokens:
        """Tokens that all covers of a text begin with; weights are given relative to them."""
        if not lists:
            return ()
        least, most = min(lists), max(lists)
        same = next(
            (i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), min(len(least), len(most))
        )
        return least[:same]

    def _search(self, text: bytes) -> tuple[tuple[Whole, ...], tuple[_Group, ...], Tokens]:
        """Return encodings of a text with their weights, its other covers, and what all share, unweighted."""
        if not text:
            return (((), 0.0),), (), ()
        encodings, lefts = self._wholes(text), self._lefts(text)
        shared = self._shared([*encodings, *(tokens for _, tokens in lefts)])
        groups = []
        for left, tokens in lefts:
            ids = self.vocabulary.starting(text[len(text) - left :])
            logp = self.next(tokens)
            ids = ids[(ids < len(logp))]
            ids = ids[logp[ids] > -np.inf]
            ids = ids[self.vocabulary.may_follow(tokens, ids)]
            if len(ids):
                groups.append(_Group(tokens, ids, self._weight(shared, tokens) + logp[ids], left))
        return tuple((tokens, self._weight(shared, tokens)) for tokens in encodings), tuple(groups), shared

    def _wholes(self, text: bytes) -> list[Tokens]:
        before, settled = self._settled(text)
        return [(*before, *tokens) for tokens in self.vocabulary.encodings(text[settled:])]

    def _weight(self, shared: Tokens, tokens: Tokens) -> float:
        """Log-probability of `tokens` after `shared`, with which they begin."""
        return float(sum(self.next(tokens[:i])[tokens[i]] for i in range(len(shared), len(tokens))))

    def _score(self, tokens: Tokens) -> float:
        if isinstance(self.distribution, ModelDistribution):
            return self.distribution.score((*self.context, *tokens), len(self.context))
        return self._weight((), tokens)

    @classmethod
    def tiny(cls, seed: int = 0) -> ByteLM:
        """Make one over texts of up to five letters ``a`` and ``b``, put into words by four merges."""
        words = ByteVocabulary.tiny()
        size = len(words.tokens)
        known = enumerated(lambda text: words.encode(text.encode()) or (), size, seed)
        return cls(distribution=known, vocabulary=words, end=(size,), tolerance=0.0)


@dataclass(frozen=True, eq=False)
class _State(ByteState):
    """Covers of a text: its own encodings, and those whose last token goes on."""

    lm: ByteLM
    text: bytes
    wholes: tuple[Whole, ...]
    groups: tuple[_Group, ...]
    _next: list[Any] = field(default_factory=list, init=False, repr=False)

    def _branches(self) -> list[tuple[Tokens, NDArray[np.int64], NDArray[np.float64], float]]:
        """Encodings with the tokens that may come next, their weights, and the weight of the end; worked out once."""
        if not self._next:
            made = []
            for tokens, weight in self.wholes:
                if weight == -np.inf:
                    continue
                logp = self.lm.next(tokens)
                ids = self.lm.likely(logp)
                ids = ids[self.lm.vocabulary.may_follow(tokens, ids)]
                ends = [logp[e] for e in self.lm.end] if self.lm.vocabulary.complete(tokens) else []
                made.append((tokens, ids, weight + logp[ids], float(weight + np.logaddexp.reduce(ends or [-np.inf]))))
            self._next.append(made)
        return self._next[0]

    def logprobs(self) -> NDArray[np.float64]:
        """Return the log-probabilities of the 256 bytes and of the end of the text, [257]."""
        vocabulary = self.lm.vocabulary
        branches = self._branches()
        firsts = [vocabulary.first[ids] for _, ids, _, _ in branches]
        firsts += [vocabulary.byte_at(g.ids, g.used) for g in self.groups] + [np.full(len(branches), END)]
        weights = [logw for _, _, logw, _ in branches]
        weights += [g.logw for g in self.groups] + [np.array([end for *_, end in branches])]
        where, values = np.concatenate(firsts).astype(np.int64), np.concatenate(weights)
        top = values.max()
        if top == -np.inf:
            raise UserError(f"the model gives no way to go on after {self.text[-20:]!r}")
        total = np.bincount(where, np.exp(values - top), minlength=END + 1)
        with np.errstate(divide="ignore"):
            return np.log(total / total.sum())

    def advance(self, byte: int) -> _State:
        """Return the state after `byte`.

        Raises
        ------
        UserError
            The byte cannot follow.
        """
        vocabulary, text = self.lm.vocabulary, self.text + bytes([byte])
        if byte >= 0x80 and ends_a_character(text):
            return self.lm.start(text[len(vocabulary.prefix) :])
        open_ = []
        for left, ids, logw, _ in self._branches():
            mine = vocabulary.first[ids] == byte
            open_.append((left, ids[mine], logw[mine], 1))
        for group in self.groups:
            mine = vocabulary.byte_at(group.ids, group.used) == byte
            open_.append((group.left, group.ids[mine], group.logw[mine], group.used + 1))
        groups: list[_Group] = []
        wholes: dict[Tokens, float] = {}
        for left, some, weights, used in open_:
            done = vocabulary.length[some] == used
            for token, weight in zip(some[done], weights[done], strict=True):
                tokens = (*left, int(token))
                wholes[tokens] = max(float(weight), wholes.get(tokens, -np.inf))
            if not done.all():
                groups.append(_Group(left, some[~done], weights[~done], used))
        if not wholes and ends_a_character(text):  # its own encoding begins with one that was not valid alone
            return self.lm.start(text[len(vocabulary.prefix) :])
        return _State(self.lm, text, tuple(wholes.items()), tuple(groups))

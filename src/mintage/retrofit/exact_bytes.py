"""Exact bytes: what a model over tokens says about the next byte, with no change to the model.

A prompt that ends within a token is not what the model was trained to continue. The probability of a text is the sum
over its *cover encodings*: the valid encodings whose last token reaches the end of the text or beyond, all others
ending before it. From their weights follows the law of the next byte, exactly; one forward per byte keeps them up to
date.

Use::

    lm = ByteLM.of(load_causal_lm())
    state = lm.start(b"The quick brown fox jum")
    state.logprobs()[ord("p")]
    lm.generate(b"The quick brown fox jum", max_bytes=20)

Bytes that no encoding has (no UTF-8, or without a token) have probability 0, but a prompt may hold them: what comes up
to the last of them is read as fixed tokens, those bytes as their own token or else as U+FFFD.

Not here: training; models whose tokenizers keep neither bytes nor a byte fallback. Inside a character of several bytes
what a valid encoding is depends on bytes to come; there a few completions stand for all, and the state is made anew
when the character is complete.
"""

from __future__ import annotations

import bisect
import codecs
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mintage.errors import UserError
from mintage.models import CausalLM
from mintage.retrofit.contract import END, ByteSampler, ByteState
from mintage.retrofit.core.infill import FimTokens, Order, infill_prompt
from mintage.retrofit.core.token_bytes import TokenBytes
from mintage.retrofit.core.validity import ASK, Validity

__all__ = [
    "ByteEnsemble",
    "ByteLM",
    "ByteVocabulary",
    "Cover",
    "ModelLaw",
    "TokenLaw",
]

Tokens = tuple[int, ...]
TokenLaw = Callable[[Tokens], NDArray[np.float64]]
"""Log-probabilities of the next token, [V], after these tokens."""

_SEPARATORS = 2  # words of context in which an encoding is checked
_KEPT = 512  # laws and masks remembered
_SLACK = 64  # bytes of a long text that are encoded anew, beside the longest token
_AT_ONCE = 6  # laws taken from one forward
_FOLLOWERS = (b"a", b"0", b"(")
"""What may follow white space: a letter, a digit, anything else."""
_NO_CONTEXT = "a model needs one token to start from; pass a context, e.g. its end-of-text token"


# -- tokens as bytes ---------------------------------------------------------------------------------------------------


class ByteVocabulary:
    """The tokens of a tokenizer as bytes, and its canonical encoding of bytes.

    Parameters
    ----------
    tokenizer
        Encodes text; special tokens written in a text are text.
    tokens
        Bytes of every token; empty for one that stands for none.
    decode
        From bytes to the tokenizer's text; raises `UnicodeDecodeError` on bytes that are no text.
    prefix
        Bytes that the tokenizer puts in front of every text (a space, in some SentencePiece models).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tokens: Sequence[bytes],
        decode: Callable[[bytes], str] = bytes.decode,
        prefix: bytes = b"",
    ) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokens, self.decode, self.prefix = list(tokens), decode, prefix
        self.length = np.array([len(token) for token in tokens])
        self.first = np.array([token[0] if token else END for token in tokens])
        self._flat = np.frombuffer(b"".join(tokens), np.uint8)
        self._offset = np.concatenate(([0], self.length.cumsum()[:-1]))
        pairs = sorted((token, i) for i, token in enumerate(tokens) if token)
        self._sorted, self._ids = [token for token, _ in pairs], np.array([i for _, i in pairs])
        self._blank = np.array([token.isspace() for token in tokens])
        self.longest = int(self.length.max())
        self._cuts = None if self.tokenizer.normalizer is not None else self.tokenizer.pre_tokenizer
        self._masks: OrderedDict[Tokens, NDArray[np.int8]] = OrderedDict()

    @cached_property
    def _validity(self) -> Validity | None:
        if self.decode is not bytes.decode:
            return None
        return Validity.of(self.tokenizer, self.tokens, self._completions)

    @classmethod
    def of(cls, tokenizer: Any) -> ByteVocabulary:
        """Read a fast tokenizer of transformers, or one of ``tokenizers``.

        Raises
        ------
        UserError
            It is neither byte-level nor has a byte fallback.
        """
        held = TokenBytes(tokenizer)
        if not held.writes_all:
            raise UserError(
                "this tokenizer is neither byte-level nor has a byte fallback, so it cannot write every text; pass a "
                "byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) or SentencePiece with byte fallback (Llama 2, Gemma)"
            )
        return cls(held.backend, held.tokens, prefix=held.prefix.encode())

    @property
    def missing(self) -> list[int]:
        """Bytes that no token ends or begins with alone: texts that need them have probability 0."""
        return sorted(set(range(256)) - {token[0] for token in self.tokens if len(token) == 1})

    # -- canonical encodings --

    def encode(self, text: bytes) -> Tokens | None:
        """Return the canonical encoding, or None where none ends at the last byte (within a character)."""
        if not text:
            return ()
        found = (self._begin(whole, len(text)) for whole in self._completions(text))
        return next((tokens for tokens in found if tokens is not None), None)

    def encodings(self, text: bytes) -> list[Tokens]:
        """Return what encodings of longer texts begin with that end where this one does, the canonical one first.

        There are others where white space is cut otherwise when something follows: GPT-2's pattern leaves the last of
        several line breaks, and of several spaces, to what comes after them.
        """
        tokens = self.encode(text)
        found = [] if tokens is None else [tokens]
        for follower in _FOLLOWERS if text[-2:].isspace() and len(text) > 1 else ():
            parted = self._parted(text, follower)[0]
            if parted is not None and parted not in found:
                found.append(parted)
        return found

    def _parted(self, text: bytes, follower: bytes) -> tuple[Tokens | None, bool]:
        """Encode a text that goes on so, up to where it ends; and whether a word starts there, or did before."""
        try:
            string = self.decode(text.removeprefix(self.prefix))
        except UnicodeDecodeError:
            return None, False
        if not self._cuts:
            return None, False
        whole = string + follower.decode()
        start = max(at for _, (at, _) in self._cuts.pre_tokenize_str(whole) if at <= len(string))
        rest = string[start:].encode()
        head = self._begin(whole, len(text) - len(rest)) if len(text) > len(rest) else ()
        tail = self.encode(rest)
        return (None if head is None or tail is None else (*head, *tail)), not rest

    def _begin(self, whole: str, size: int) -> Tokens | None:
        ids = self.tokenizer.encode(whole, add_special_tokens=False).ids
        ends = self.length[ids].cumsum() if ids else np.zeros(0, int)
        place = int(np.searchsorted(ends, size))
        return tuple(ids[: place + 1]) if place < len(ends) and ends[place] == size else None

    def _completions(self, text: bytes) -> list[str]:
        """Return the text, or, where its last character is cut, texts that complete it."""
        text = text.removeprefix(self.prefix)  # which the tokenizer puts back
        try:
            return [self.decode(text)]
        except UnicodeDecodeError:
            pass
        found = []
        for back in range(1, 4):
            lead = text[-back] if back <= len(text) else 0
            wanted = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 0
            for byte in (0x80, 0xA9, 0xBF) if wanted > back else ():
                try:
                    found.append(self.decode(text + bytes([byte]) * (wanted - back)))
                except UnicodeDecodeError:
                    continue
        return found

    def unwritable(self, text: bytes) -> list[int]:
        """Places of the bytes that no encoding has: those that are no UTF-8, and those without a token.

        An unfinished character at the end is none of them.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        letters, missing = decoder.decode(text), set(self.missing)
        begun = decoder.getstate()[0]
        found, place = [], 0
        for letter in [*letters, begun]:
            held = letter if isinstance(letter, bytes) else letter.encode("utf-8", "surrogateescape")
            if (isinstance(letter, str) and "\ud800" <= letter <= "\udfff") or not missing.isdisjoint(held):
                found += range(place, place + len(held))
            place += len(held)
        return found

    def forced(self, text: bytes) -> tuple[Tokens, bytes]:
        """Read a text up to the last unwritable byte as fixed tokens, and return them and the rest.

        Such a byte is its own token, or where there is none U+FFFD, as where bytes are decoded with replacement.

        Raises
        ------
        UserError
            There are no tokens for U+FFFD either.
        """
        own = {token[0]: place for place, token in enumerate(self.tokens) if len(token) == 1}
        tokens: Tokens = ()
        begin = 0
        for place in self.unwritable(text):
            before = self.encode(self.prefix + text[begin:place]) if place > begin else ()
            byte = (own[text[place]],) if text[place] in own else self.encode(self.prefix + "\ufffd".encode())
            if before is None or byte is None:
                raise UserError(
                    f"the model's tokens cannot write {text[: place + 1][-8:]!r}, nor U+FFFD in its place; bytes "
                    f"without a token: {', '.join(f'0x{byte:02x}' for byte in self.missing)}"
                )
            tokens, begin = (*tokens, *before, *byte), place + 1
        return tokens, text[begin:]

    def starting(self, prefix: bytes) -> NDArray[np.int64]:
        """Return the tokens that begin with `prefix` and are longer."""
        low = bisect.bisect_right(self._sorted, prefix)
        high = bisect.bisect_left(self._sorted, prefix + b"\xff" * (self.longest + 1))
        return self._ids[low:high]

    def byte_at(self, ids: NDArray[np.int64], place: int) -> NDArray[np.uint8]:
        """Return the byte of each token at `place`."""
        return self._flat[self._offset[ids] + place]

    def follows(self, left: Tokens, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say of each token whether `left` and it together are what an encoding can begin with."""
        tail = self.last_words(left)
        mask = self._masks.get(tail)
        if mask is None:
            mask = self._masks[tail] = self._after(tail)
            if len(self._masks) > _KEPT:
                self._masks.popitem(last=False)
        self._masks.move_to_end(tail)
        unknown = ids[mask[ids] == ASK]
        if len(unknown):
            before = self._text(tail)
            texts: list[str] = []
            owners: list[int] = []
            for token in unknown:
                for text in self._completions(before + self.tokens[token]):
                    texts.append(text)
                    owners.append(int(token))
            mask[unknown] = 0
            number, wanted = len(tail) + 1, list(tail)
            for owner, found in zip(owners, self._batch(texts), strict=True):
                if found[:number] == [*wanted, owner]:
                    mask[owner] = 1
            for token in unknown[self._blank[unknown] & (mask[unknown] == 0)] if before[-1:].isspace() else ():
                text, whole = before + self.tokens[token], (*tail, int(token))
                mask[token] = any(self._parted(text, follower)[0] == whole for follower in _FOLLOWERS)
        return mask[ids] == 1

    def _after(self, tail: Tokens) -> NDArray[np.int8]:
        """Say of every token whether it may follow the last words of an encoding: 1, 0 or ASK, [V]."""
        told, text = np.full(len(self.tokens), ASK, np.int8), self._text(tail)
        if self._validity is None:
            return told
        if text[-2:].isspace() and self.encode(text) != tail:  # only before what does not go on with white space
            parted = [self._parted(text, follower) for follower in _FOLLOWERS]
            return self._validity.after(tail, before=[cut if tokens == tail else None for tokens, cut in parted])
        told = self._validity.after(tail)
        if text[-1:].isspace():
            told[self._blank & (told == 0)] = ASK
        return told

    def _batch(self, texts: list[str]) -> Iterator[list[int]]:
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield encoding.ids

    def complete(self, tokens: Tokens) -> bool:
        """Whether a text may end after an encoding: not where it is one only because of what follows."""
        tail = self.last_words(tokens)
        text = self._text(tail)
        return not text[-2:].isspace() or self.encode(text) == tail

    def last_words(self, left: Tokens) -> Tokens:
        """Return the last words of an encoding: what comes before them does not bear on what follows."""
        words = 0
        for place in range(len(left) - 1, -1, -1):
            token = self.tokens[left[place]]
            if token[:1] == b" " and token[1:2].isalnum():
                words += 1
                if words == _SEPARATORS:
                    return left[place:] if left[place:] in self.encodings(self._text(left[place:])) else left
        return left

    def _text(self, tokens: Tokens) -> bytes:
        return b"".join(self.tokens[t] for t in tokens)


# -- a model as a law over tokens --------------------------------------------------------------------------------------


class ModelLaw:
    """The next-token law of a Hugging Face model, with its key-value cache cut back and reused from call to call."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.forwards = 0
        self._read: list[int] = []
        self._cache: Any = None
        self._known: OrderedDict[Tokens, NDArray[np.float64]] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, tokens: Tokens) -> NDArray[np.float64]:
        """Return the log-probabilities after `tokens`, at least one."""
        if tokens in self._known:
            self._known.move_to_end(tokens)
            return self._known[tokens]
        if not tokens:
            raise UserError(_NO_CONTEXT)
        from transformers import DynamicCache

        same = 0
        for mine, theirs in zip(self._read, tokens[:-1], strict=False):
            if mine != theirs:
                break
            same += 1
        if self._cache is None:
            self._cache = DynamicCache(config=self.model.config)
        if same < len(self._read):
            self._cache.crop(-(len(self._read) - same))
        ids = torch.tensor([tokens[same:]], device=self.model.device)
        kept = min(len(tokens) - same, _AT_ONCE)
        logits = self.model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=kept).logits[0]
        self._read = list(tokens)
        self.forwards += 1
        laws = logits.double().log_softmax(-1).cpu().numpy()
        for back, law in enumerate(laws[::-1]):  # those of shorter encodings come with it, and covers begin with them
            self._known[tokens[: len(tokens) - back]] = law
        while len(self._known) > _KEPT // 8:
            self._known.popitem(last=False)
        self._known.move_to_end(tokens)
        return self._known[tokens]

    @torch.inference_mode()
    def score(self, tokens: Tokens, first: int) -> float:
        """Return the log-probability of the tokens from number `first` on, given those before, in one forward."""
        if first >= len(tokens):
            return 0.0
        if not first:
            raise UserError(_NO_CONTEXT)
        logits = self.model(torch.tensor([tokens], device=self.model.device)).logits[0, first - 1 : -1]
        wanted = torch.tensor(tokens[first:], device=logits.device)
        self.forwards += 1
        return float(logits.double().log_softmax(-1).gather(1, wanted[:, None]).sum())


# -- bytes -------------------------------------------------------------------------------------------------------------


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
    """A byte-level model with the text probabilities of a model over tokens (Phan et al., ICLR 2025).

    Parameters
    ----------
    law
        Next-token law; `ModelLaw` for a Hugging Face model.
    vocabulary
        The tokens as bytes.
    end
        Tokens that end a text.
    context
        Tokens before the text that no cover may cross: an end-of-text token, or a prompt of control tokens.
    tolerance
        Probability that the least likely next tokens may have together for their validity not to be looked into; they
        then count as invalid. 0 looks into all.
    """

    law: TokenLaw
    vocabulary: ByteVocabulary
    end: Tokens = ()
    context: Tokens = ()
    tolerance: float | int = 1e-9

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
        law = ModelLaw(lm.model)
        return cls(law=law, vocabulary=vocabulary, end=tuple(ends), context=tuple(context), tolerance=tolerance)

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

    def infilling(
        self, prefix: bytes, suffix: bytes, *, fim: FimTokens | None = None, order: Order = "psm"
    ) -> tuple[ByteLM, bytes]:
        """Return the model with a fill-in-the-middle prompt before it, and the text that the middle goes on from.

        Parameters
        ----------
        prefix, suffix
            What the middle stands between; the prefix may end within a word.
        fim
            The model's control tokens; default: the usual ones, where its tokenizer has them.
        order
            ``"psm"`` or ``"spm"``, as the model was trained.

        Raises
        ------
        UserError
            The model has no such tokens.
        """
        fim = FimTokens.of(self.vocabulary.tokenizer) if fim is None else fim

        def encode(text: bytes) -> Tokens | None:
            fixed, rest = self.vocabulary.forced(text)
            free = self.vocabulary.encode(rest)
            return None if free is None else (*fixed, *free)

        before, last = infill_prompt(encode, fim, prefix, suffix, order)
        end = (*self.end, *(token for token in fim.end if token not in self.end))
        return replace(self, context=(*self.context, *before), end=end), last

    def infill(
        self,
        prefix: bytes,
        suffix: bytes,
        max_bytes: int = 64,
        *,
        fim: FimTokens | None = None,
        order: Order = "psm",
        **settings: Any,
    ) -> bytes:
        """Write what stands between two texts; `settings` are those of `stream`."""
        model, last = self.infilling(prefix, suffix, fim=fim, order=order)
        return model.generate(last, max_bytes, **settings)

    def opened(self, text: bytes, longer: NDArray[np.int64], logw: NDArray[np.float64]) -> _State:
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
        """Return the law after the context and these tokens."""
        return self.law((*self.context, *tokens))

    def likely(self, law: NDArray[np.float64]) -> NDArray[np.int64]:
        """Tokens with bytes, but for unlikely ones that have less than `tolerance` together."""
        law = law[: len(self.vocabulary.tokens)]
        least = np.log(self.tolerance / len(law)) if self.tolerance else -np.inf
        return np.flatnonzero((law > least) & (self.vocabulary.length[: len(law)] > 0))

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
            law = self.next(tokens)
            ids = ids[(ids < len(law))]
            ids = ids[law[ids] > -np.inf]
            ids = ids[self.vocabulary.follows(tokens, ids)]
            if len(ids):
                groups.append(_Group(tokens, ids, self._weight(shared, tokens) + law[ids], left))
        return tuple((tokens, self._weight(shared, tokens)) for tokens in encodings), tuple(groups), shared

    def _wholes(self, text: bytes) -> list[Tokens]:
        before, settled = self._settled(text)
        return [(*before, *tokens) for tokens in self.vocabulary.encodings(text[settled:])]

    def _weight(self, shared: Tokens, tokens: Tokens) -> float:
        """Log-probability of `tokens` after `shared`, with which they begin."""
        return float(sum(self.next(tokens[:i])[tokens[i]] for i in range(len(shared), len(tokens))))

    def _score(self, tokens: Tokens) -> float:
        if isinstance(self.law, ModelLaw):
            return self.law.score((*self.context, *tokens), len(self.context))
        return self._weight((), tokens)

    @classmethod
    def tiny(cls) -> ByteLM:
        """Make one over a small random law, for the laws of the job."""
        return _tiny()


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
                law = self.lm.next(tokens)
                ids = self.lm.likely(law)
                ids = ids[self.lm.vocabulary.follows(tokens, ids)]
                ends = [law[e] for e in self.lm.end] if self.lm.vocabulary.complete(tokens) else []
                made.append((tokens, ids, weight + law[ids], float(weight + np.logaddexp.reduce(ends or [-np.inf]))))
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
        if byte >= 0x80 and _complete(text):
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
        if not wholes and _complete(text):  # its own encoding begins with one that was not valid alone
            return self.lm.start(text[len(vocabulary.prefix) :])
        return _State(self.lm, text, tuple(wholes.items()), tuple(groups))


def _complete(text: bytes) -> bool:
    """Whether a text does not end within a character."""
    try:
        text[-4:].decode(errors="strict")
        return True
    except UnicodeDecodeError as error:
        return error.end <= len(text[-4:]) and error.reason != "unexpected end of data"


# -- several models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Joint(ByteState):
    parts: tuple[ByteState, ...]
    logw: NDArray[np.float64]
    rule: str

    def logprobs(self) -> NDArray[np.float64]:
        laws = np.stack([part.logprobs() for part in self.parts])
        if self.rule == "mean":
            return np.logaddexp.reduce(laws + self.logw[:, None], axis=0)
        with np.errstate(invalid="ignore"):
            mixed = (laws * np.exp(self.logw)[:, None]).sum(0)
        return mixed - np.logaddexp.reduce(mixed)

    def advance(self, byte: int) -> _Joint:
        return _Joint(tuple(part.advance(byte) for part in self.parts), self.logw, self.rule)


@dataclass(frozen=True, eq=False)
class ByteEnsemble(ByteSampler):
    """Models with any tokenizers, voting byte by byte.

    Parameters
    ----------
    models
        At least one.
    weights
        One per model; default: all alike.
    rule
        ``"mean"`` of the probabilities, or ``"product"``: of their powers, normalised.
    """

    models: Sequence[ByteSampler]
    weights: Sequence[float | int] | None = None
    rule: Literal["mean", "product"] = "mean"

    def __post_init__(self) -> None:
        weights = [1.0] * len(self.models) if self.weights is None else self.weights
        if not self.models or len(weights) != len(self.models) or min(weights) <= 0:
            raise UserError("an ensemble needs at least one model and a weight above 0 for each")
        if self.rule not in ("mean", "product"):
            raise UserError(f"unknown rule {self.rule!r}; pass mean or product")

    def start(self, prefix: bytes = b"") -> ByteState:
        """Return the state of all models after a text."""
        weights = np.array([1.0] * len(self.models) if self.weights is None else self.weights, float)
        parts = tuple(model.start(prefix) for model in self.models)
        return _Joint(parts, np.log(weights / weights.sum()), self.rule)

    @classmethod
    def tiny(cls) -> ByteEnsemble:
        """Make one of two small models."""
        return cls([_tiny(), _tiny(1)], weights=[1, 2])


# -- for the laws ------------------------------------------------------------------------------------------------------


def _tiny(seed: int = 0) -> ByteLM:
    """A law over all texts of up to five bytes ``a`` and ``b``, put into words by four merges; every mass is known."""
    from itertools import product

    from tokenizers import models

    names = ["a", "b", "ab", "ba", "aba", "bb"]
    merges = [("a", "b"), ("b", "a"), ("ab", "a"), ("b", "b")]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    vocabulary = ByteVocabulary(tokenizer, [name.encode() for name in names])
    draw = np.random.default_rng(seed)
    mass: dict[Tokens, NDArray[np.float64]] = {}
    for size in range(6):
        for letters in product("ab", repeat=size):
            tokens = tuple(tokenizer.encode("".join(letters)).ids)
            weight = draw.random() * 0.5**size
            for place in range(len(tokens) + 1):
                row = mass.setdefault(tokens[:place], np.zeros(len(names) + 1))
                row[tokens[place] if place < len(tokens) else len(names)] += weight

    def law(tokens: Tokens) -> NDArray[np.float64]:
        row = mass.get(tokens)
        if row is None:
            return np.full(len(names) + 1, -np.inf)
        with np.errstate(divide="ignore"):
            return np.log(row / row.sum())

    return ByteLM(law=law, vocabulary=vocabulary, end=(len(names),), tolerance=0.0)

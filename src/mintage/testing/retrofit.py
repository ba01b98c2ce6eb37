"""Laws of the retrofit contract."""

from __future__ import annotations

from itertools import product

import numpy as np

from mintage.errors import UserError
from mintage.retrofit.contract import END, ByteSampler

__all__ = ["LAWS"]

_TEXTS = [bytes(letters) for size in range(5) for letters in product(b"ab", repeat=size)]


def the_next_byte_has_probability_one(method: ByteSampler) -> None:
    """Over 256 bytes and the end, after every text; bytes that the model cannot write have none."""
    for text in _TEXTS:
        p = np.exp(method.next_byte_logprobs(text))
        assert p.shape == (END + 1,)
        assert abs(p.sum() - 1) < 1e-9
        assert p[ord("z")] == 0


def texts_up_to_the_longest_have_probability_one(method: ByteSampler) -> None:
    """By the chain rule: all texts of up to four letters that end, and all longer beginnings, are all there is."""
    total = 0.0
    for text in _TEXTS:
        whole = method.continuation_logprob(b"", text)
        end = method.next_byte_logprobs(text)[END]
        total += np.exp(whole + end) if len(text) < 4 else np.exp(whole)
    assert abs(total - 1) < 1e-9


def a_state_kept_up_to_date_is_the_one_made_anew(method: ByteSampler) -> None:
    """After every byte, for every way to part a text."""
    for text in _TEXTS:
        fresh = method.start(text).logprobs()
        for cut in range(len(text)):
            state = method.start(text[:cut])
            for byte in text[cut:]:
                state = state.advance(byte)
            assert np.allclose(np.exp(state.logprobs()), np.exp(fresh), atol=1e-9)


def a_state_is_not_changed_by_what_follows(method: ByteSampler) -> None:
    """Advancing gives a new state; the old one says what it said."""
    state = method.start(b"a")
    before = state.logprobs().copy()
    state.advance(ord("a")).logprobs()
    state.advance(ord("b")).logprobs()
    assert np.array_equal(state.logprobs(), before)


def samples_repeat_and_greedy_is_greedy(method: ByteSampler) -> None:
    """A seed gives the same bytes; temperature 0 takes the likeliest byte each time."""
    first = method.generate(b"a", 6, temperature=1.0, seed=3)
    assert first == method.generate(b"a", 6, temperature=1.0, seed=3)
    text = b""
    for byte in method.generate(b"", 6):
        assert byte == method.next_byte_logprobs(text).argmax()
        text += bytes([byte])


def what_cannot_be_is_refused(method: ByteSampler) -> None:
    """Bytes without a token, wrong temperatures: one line each."""
    for wrong in (
        lambda: method.start(b"az"),
        lambda: method.start(b"a").advance(ord("z")),
        lambda: method.generate(b"", 2, temperature=-1),
        lambda: method.generate(b"", 2, top_p=0.0),
    ):
        try:
            wrong()
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            raise AssertionError("should have been refused")


LAWS = (
    the_next_byte_has_probability_one,
    texts_up_to_the_longest_have_probability_one,
    a_state_kept_up_to_date_is_the_one_made_anew,
    a_state_is_not_changed_by_what_follows,
    samples_repeat_and_greedy_is_greedy,
    what_cannot_be_is_refused,
)

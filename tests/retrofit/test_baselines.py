import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mintage.errors import UserError
from mintage.retrofit.baselines import PlainContinuation, TokenHealing
from mintage.retrofit.contract import END
from mintage.retrofit.core.byte_vocabulary import ByteVocabulary
from mintage.retrofit.exact_bytes import ByteLM

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("s", "e"), ("se", "a"), ("Ġ", "sea"), ("the", "r"), ("Ġ", "Ġ")]


@pytest.fixture(scope="module")
def exact():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    for pair in MERGES:
        vocabulary["".join(pair)] = len(vocabulary)
    made = Tokenizer(models.BPE(vocabulary, MERGES))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    size = len(vocabulary) + 1

    def law(tokens):
        draw = np.random.default_rng([len(tokens), *tokens[-2:]])
        row = 3 * draw.standard_normal(size)
        return row - np.logaddexp.reduce(row)

    return ByteLM(distribution=law, vocabulary=ByteVocabulary.of(made), end=(size - 1,), tolerance=0.0)


def test_plain_goes_on_behind_the_tokens_of_the_prompt(exact):
    """Every token may follow: the law of the first byte sums the token law over tokens that stand alone."""
    tokens = exact.vocabulary.encode(b"of the")
    p = np.exp(exact.distribution(tokens))
    alone = [t for t, raw in enumerate(exact.vocabulary.tokens) if raw and exact.vocabulary.encode(raw) == (t,)]
    got = np.exp(PlainContinuation(exact=exact).next_byte_logprobs(b"of the"))
    for byte in b"rt ":
        wanted = sum(p[t] for t in alone if exact.vocabulary.tokens[t][0] == byte)
        assert got[byte] / got[END] == pytest.approx(wanted / p[-1])


def test_healing_lets_the_last_token_grow(exact):
    """From the definition: tokens that begin with the last token's bytes, given those before it."""
    vocabulary = exact.vocabulary
    tokens = vocabulary.encode(b"of the")
    p = np.exp(exact.distribution(tokens[:-1]))
    last = vocabulary.tokens[tokens[-1]]
    grown = {t: p[t] for t, raw in enumerate(vocabulary.tokens) if raw.startswith(last) and raw != last}
    state = TokenHealing(exact=exact).start(b"of the")
    got = np.exp(state.logprobs())
    longer = sum(w for t, w in grown.items() if vocabulary.tokens[t][len(last)] == ord("r"))
    behind = np.exp(exact.distribution(tokens))
    short = p[tokens[-1]]
    alone = [t for t, raw in enumerate(vocabulary.tokens) if raw and vocabulary.encode(raw) == (t,)]
    through = short * sum(behind[t] for t in alone if vocabulary.tokens[t][0] == ord("r"))
    end = short * behind[-1]
    assert got[ord("r")] / got[END] == pytest.approx((longer + through) / end)
    assert state.advance(ord("r")).logprobs().shape == (END + 1,)


def test_healing_takes_its_odds_from_what_was_seen(exact):
    """The token that stayed as it was, or one that goes on: each byte tells which of them it was."""
    vocabulary = exact.vocabulary
    tokens = vocabulary.encode(b"of the")
    state = TokenHealing(exact=exact).start(b"of the")
    whole = PlainContinuation(exact=exact).continuation_logprob(b"of the", b"se")
    p = np.exp(exact.distribution(tokens[:-1]))
    last = vocabulary.tokens[tokens[-1]]
    longer = [(t, raw[len(last) :]) for t, raw in enumerate(vocabulary.tokens) if raw.startswith(last) and raw != last]
    assert all(not rest.startswith(b"s") for _, rest in longer)  # so only the one that stayed writes "se"
    total = p[tokens[-1]] + sum(p[t] for t, _ in longer)
    got = state.logprobs()[ord("s")] + state.advance(ord("s")).logprobs()[ord("e")]
    assert got == pytest.approx(np.log(p[tokens[-1]] / total) + whole)


def test_healing_of_nothing_is_exact(exact):
    nothing = TokenHealing(exact=exact).next_byte_logprobs(b"")
    assert np.allclose(nothing, exact.next_byte_logprobs(b""))


@pytest.mark.parametrize("kind", [PlainContinuation, TokenHealing])
def test_they_sum_to_one_and_write(exact, kind):
    made = kind(exact=exact)
    for text in (b"", b"of th", b"the  ", b"sea"):
        assert np.exp(made.next_byte_logprobs(text)).sum() == pytest.approx(1)
    assert len(made.generate(b"of th", 5)) <= 5
    assert isinstance(kind.tiny(), kind)


def test_tokenizers_that_prepend_are_refused(exact):
    vocabulary = ByteVocabulary(exact.vocabulary.tokenizer, exact.vocabulary.tokens, prefix=b" ")
    with pytest.raises(UserError, match="space in front"):
        PlainContinuation(exact=ByteLM(distribution=exact.distribution, vocabulary=vocabulary))

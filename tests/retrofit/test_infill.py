import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mintage.errors import UserError
from mintage.retrofit.core.byte_vocabulary import ByteVocabulary
from mintage.retrofit.core.infill import FimTokens, infill, infill_prompt, infilling
from mintage.retrofit.exact_bytes import ByteLM

CONTROLS = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]


def made(controls=CONTROLS):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    for pair in (("r", "e"), ("re", "t"), ("Ġ", "ret")):
        vocabulary["".join(pair)] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, [("r", "e"), ("re", "t"), ("Ġ", "ret")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(controls)
    asked = []

    def law(tokens):
        asked.append(tokens)
        draw = np.random.default_rng([len(tokens), *tokens[-2:]])
        row = draw.standard_normal(tokenizer.get_vocab_size())
        return row - np.logaddexp.reduce(row)

    lm = ByteLM(distribution=law, vocabulary=ByteVocabulary.of(tokenizer), context=(1,), tolerance=0.0)
    return lm, tokenizer, asked


def test_usual_tokens_are_found():
    _, tokenizer, _ = made()
    ids = [tokenizer.token_to_id(name) for name in CONTROLS]
    assert FimTokens.of(tokenizer) == FimTokens(prefix=ids[0], suffix=ids[1], middle=ids[2])
    qwen = made(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"])[1]
    assert FimTokens.of(qwen).end == (qwen.token_to_id("<|fim_pad|>"),)


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_prompts_have_their_parts_in_order(order):
    lm, tokenizer, _ = made()
    fim = FimTokens.of(tokenizer)
    tokens, last = infill_prompt(lm.vocabulary.encode, fim, b"def f(x):\n    ret", b"\n\nprint(f(1))", order)
    spelled = [lm.vocabulary.tokens[t] or tokenizer.id_to_token(t).encode() for t in tokens]
    after = b"<fim_suffix>\n\nprint(f(1))<fim_middle>"
    if order == "psm":
        assert (b"".join(spelled), last) == (b"<fim_prefix>def f(x):" + after, b"\n    ret")
    else:
        assert (b"".join(spelled), last) == (b"<fim_prefix>" + after, b"def f(x):\n    ret")


@pytest.mark.parametrize("order", ["psm", "spm"])
def test_no_cover_crosses_a_control_token(order):
    """What the model is asked always begins with the same tokens, up to the last control token."""
    lm, tokenizer, asked = made()
    model, last = infilling(lm, b"x = 1 ret", b" x", order=order)
    assert model.context[0] == 1
    assert model.context[-1] == tokenizer.token_to_id("<fim_middle>")
    asked.clear()
    written = infill(lm, b"x = 1 ret", b" x", 6, order=order)
    assert written == model.generate(last, 6)
    assert all(tokens[: len(model.context)] == model.context for tokens in asked)
    p = np.exp(model.next_byte_logprobs(last))
    assert p.sum() == pytest.approx(1)


def test_the_models_own_tokens_may_be_given():
    lm, _, _ = made([])
    fim = FimTokens(prefix=3, suffix=4, middle=5, end=(6,))
    model, _ = infilling(lm, b"a", b"b", fim=fim)
    assert model.context[:2] == (1, 3)
    assert model.end == (6,)


def test_what_cannot_be_filled_in_is_told():
    lm, _, _ = made([])
    fim = FimTokens(prefix=3, suffix=4, middle=5)
    with pytest.raises(UserError, match="no tokens to fill in the middle with") as told:
        infill(lm, b"a", b"b")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="ends within a character"):
        infill_prompt(lambda text: None, fim, b"a x", b"b", "psm")


def test_bytes_that_are_no_text_may_stand_around_the_middle():
    lm, _, _ = made()
    own = {token: place for place, token in enumerate(lm.vocabulary.tokens)}
    model, last = infilling(lm, b"\xff x", b"b\xff")
    assert (own[b"\xff"] in model.context, last) == (True, b" x")
    assert model.context.count(own[b"\xff"]) == 2

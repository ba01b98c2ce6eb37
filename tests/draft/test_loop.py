"""The one loop: streaming, stopping, refusals, penalties, and the distribution of its whole output."""

import copy
import inspect
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextStreamer,
)
from transformers.generation import logits_process as hf
from transformers.generation.streamers import BaseStreamer

from mintage.draft import Chain, Plain, PromptLookup, Stats, TokenRecycling, Union, generate
from mintage.draft.core.loop import _Row, _Run
from mintage.draft.core.request import Request
from mintage.draft.core.target import Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.draft.core.warp import Warp
from mintage.errors import UserError
from mintage.models import TINY_VOCABULARY, tiny_causal_lm
from mintage.testing.toys import TableLM

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
LETTERS = "abcdefghijkl"
PLAIN = {"do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model():
    return tiny_causal_lm()


@pytest.fixture(scope="module")
def tokenizer():
    letters = Tokenizer(BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters)


def greedy(model, ids, new, **changes):
    return model.generate(ids, max_new_tokens=new, **PLAIN, **changes)


def hot(model, ids=IDS):
    """Return a drafter that has seen `model` before, so that rounds emit several tokens."""
    drafter = TokenRecycling()
    generate(model, ids, drafter, max_new_tokens=40)
    return drafter


def refusal(call):
    """Return the one line that `call` is refused with."""
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    assert line
    return line


# -- streaming ------------------------------------------------------------------------------------------------------


class Recorder(BaseStreamer):
    def __init__(self):
        self.puts, self.ended = [], 0

    def put(self, value):
        assert not self.ended
        self.puts.append(value.tolist())

    def end(self):
        self.ended += 1


def as_transformers_calls(drafter, model, ids, new, streamer):
    """Call a drafter as ``model.generate`` does, but with the streamer, which transformers 5.23 forgets to hand on."""
    config = copy.deepcopy(model.generation_config)
    config.update(max_length=ids.shape[1] + new, do_sample=False, num_beams=1, pad_token_id=0)
    streamer.put(ids)
    return drafter(model, ids, LogitsProcessorList(), StoppingCriteriaList(), config, streamer=streamer)


@pytest.mark.parametrize("inside", [False, True], ids=["generate", "model.generate"])
def test_a_streamer_gets_the_prompt_then_every_token_once_then_the_end(model, inside):
    recorder, drafter = Recorder(), hot(model)
    if inside:
        out = as_transformers_calls(drafter, model, IDS, 30, recorder)
    else:
        out = generate(model, IDS, drafter, max_new_tokens=30, streamer=recorder).sequences
    assert torch.equal(out, greedy(model, IDS, 30))
    assert recorder.puts[0] == IDS.tolist()
    assert list(chain(*recorder.puts[1:])) == out[0, 8:].tolist()
    assert max(map(len, recorder.puts[1:])) > 1
    assert recorder.ended == 1


def test_a_text_streamer_prints_what_transformers_prints(model, tokenizer, capsys):
    for skip in (False, True):
        greedy(model, IDS, 20, streamer=TextStreamer(tokenizer, skip_prompt=skip))
        wanted = capsys.readouterr().out
        assert len(wanted.strip()) == 20 + 8 * (not skip)
        generate(model, IDS, PromptLookup(), max_new_tokens=20, streamer=TextStreamer(tokenizer, skip_prompt=skip))
        assert capsys.readouterr().out == wanted
        as_transformers_calls(hot(model), model, IDS, 20, TextStreamer(tokenizer, skip_prompt=skip))
        assert capsys.readouterr().out == wanted


def test_an_end_token_inside_an_accepted_path_ends_the_stream(model):
    free = greedy(model, IDS, 30)[0, 8:].tolist()
    drafter, recorder = TokenRecycling(), Recorder()
    generate(model, IDS, drafter, max_new_tokens=30)
    end = free[20]
    generate(model, IDS, drafter, max_new_tokens=30, eos_token_id=end, streamer=recorder)
    assert list(chain(*recorder.puts[1:])) == free[: free.index(end) + 1]


def test_a_streamer_follows_one_sequence_only(model, tokenizer):
    two = IDS.repeat(2, 1)
    for streamer in (Recorder(), TextStreamer(tokenizer)):
        said = refusal(lambda streamer=streamer: generate(model, two, Plain(), max_new_tokens=2, streamer=streamer))
        assert said == "a streamer follows one sequence; the batch has 2"
    assert "one sequence" in refusal(lambda: as_transformers_calls(Plain(), model, two, 2, Recorder()))


def test_nothing_is_streamed_before_bad_input_is_refused(model):
    recorder = Recorder()
    refusal(lambda: generate(model, IDS, Plain(), max_new_tokens=10_000, streamer=recorder))
    assert recorder.puts == []


def test_no_new_tokens_stream_the_prompt_alone(model):
    recorder = Recorder()
    out = generate(model, IDS, Plain(), max_new_tokens=0, streamer=recorder)
    assert torch.equal(out.sequences, IDS)
    assert (recorder.puts, recorder.ended) == ([IDS.tolist()], 1)
    assert out.stats.target_forwards == out.stats.new_tokens == 0
    assert out.stats.tokens_per_forward == 0


# -- stopping -------------------------------------------------------------------------------------------------------


class AfterPair(StoppingCriteria):
    """Stops after two equal tokens; answers with a tensor, as transformers' own do."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] == input_ids[:, -2]


class AtLength(StoppingCriteria):
    """Answers with a plain truth value, which transformers accepts too."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= 17


@pytest.mark.parametrize("criterion", [AfterPair(), AtLength(), MaxLengthCriteria(max_length=15)])
def test_stopping_criteria_stop_where_they_stop_transformers(model, criterion):
    wanted = greedy(model, IDS, 40, stopping_criteria=StoppingCriteriaList([criterion]))
    got = greedy(model, IDS, 40, stopping_criteria=StoppingCriteriaList([criterion]), custom_generate=hot(model))
    assert torch.equal(got, wanted)
    assert got.shape[1] < 48


def test_stop_strings_stop_where_they_stop_transformers(model, tokenizer):
    free = greedy(model, IDS, 40)[0].tolist()
    word = "".join(LETTERS[t] for t in free[20:22])
    wanted = greedy(model, IDS, 40, stop_strings=[word], tokenizer=tokenizer)
    assert 8 < wanted.shape[1] <= 22
    stop = StoppingCriteriaList([StopStringCriteria(tokenizer, [word])])
    assert torch.equal(greedy(model, IDS, 40, custom_generate=hot(model), stopping_criteria=stop), wanted)


def test_rows_of_a_batch_stop_each_for_itself(model):
    ids = torch.tensor([[3, 1, 4, 1], [2, 7, 1, 8], [1, 1, 2, 3]])
    pair = StoppingCriteriaList([AfterPair()])  # transformers pads ended rows only where there is an end token
    for ends in ({"stopping_criteria": pair, "eos_token_id": 11}, {"eos_token_id": [5, 7]}):
        wanted = greedy(model, ids, 25, **ends)
        assert torch.equal(greedy(model, ids, 25, custom_generate=hot(model), **ends), wanted)


def test_several_end_tokens_and_the_model_s_own(model):
    free = greedy(model, IDS, 40)[0, 8:].tolist()
    ends = [free[9], free[14]]
    first = min(free.index(end) for end in ends)
    got = generate(model, IDS, hot(model), max_new_tokens=40, eos_token_id=ends).sequences[0, 8:]
    assert got.tolist() == free[: first + 1]
    own = tiny_causal_lm()
    own.generation_config.eos_token_id = ends
    assert generate(own, IDS, hot(model), max_new_tokens=40).sequences[0, 8:].tolist() == free[: first + 1]


def test_shorter_rows_end_in_padding(model):
    ids = torch.tensor([[3, 1, 4, 1], [2, 7, 1, 8]])
    alone = [greedy(model, row[None], 12)[0, 4:].tolist() for row in ids]
    end = alone[0][3]
    lengths = [row.index(end) + 1 if end in row else 12 for row in alone]
    out = generate(model, ids, hot(model), max_new_tokens=12, eos_token_id=end, pad_token_id=11).sequences
    for row, new, length in zip(out, alone, lengths, strict=True):
        assert row[4 : 4 + length].tolist() == new[:length]
        assert (row[4 + length :] == 11).all()


# -- inside transformers --------------------------------------------------------------------------------------------


def test_a_dictionary_carries_the_stats(model):
    out = greedy(model, IDS, 20, custom_generate=hot(model), return_dict_in_generate=True)
    assert torch.equal(out.sequences, greedy(model, IDS, 20))
    assert isinstance(out.stats, Stats)
    assert out.stats.new_tokens == 20
    assert out.stats.target_forwards < 20


def test_several_sequences_are_drawn_per_prompt(model):
    out = model.generate(
        IDS, custom_generate=hot(model), max_new_tokens=12, do_sample=True, num_return_sequences=4, pad_token_id=0
    )
    assert out.shape == (4, 20)
    assert torch.equal(out[:, :8], IDS.repeat(4, 1))
    assert len({tuple(row) for row in out.tolist()}) > 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_beams": 2}, "num_beams=2 cannot be drafted; use num_beams=1"),
        ({"output_scores": True}, "output_scores=True cannot be used with a drafter"),
        ({"output_logits": True}, "output_logits=True cannot be used with a drafter"),
        ({"output_attentions": True}, "output_attentions=True cannot be used with a drafter"),
        ({"output_hidden_states": True}, "output_hidden_states=True cannot be used with a drafter"),
        ({"guidance_scale": 2.0}, "cannot be used with a draft tree"),
    ],
)
def test_what_a_tree_cannot_give_is_refused(settings, said):
    model = tiny_causal_lm(attn_implementation="eager")  # sdpa has no attentions to ask for
    line = refusal(lambda: greedy(model, IDS, 4, custom_generate=Plain(), return_dict_in_generate=True, **settings))
    assert said in line


def test_a_filled_cache_is_refused_and_an_empty_one_is_not(model):
    filled = DynamicCache(config=model.config)
    model(IDS[:, :4], past_key_values=filled)
    line = refusal(lambda: greedy(model, IDS, 4, custom_generate=Plain(), past_key_values=filled))
    assert " holds tokens already" in line
    empty = DynamicCache(config=model.config)
    got = greedy(model, IDS, 4, custom_generate=Plain(), past_key_values=empty)
    assert torch.equal(got, greedy(model, IDS, 4))


# -- bad input ------------------------------------------------------------------------------------------------------


def ones(*rows):
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("ids", "settings", "said"),
    [
        (IDS[:, :0], {}, "the prompt is empty; pass at least one token"),
        (IDS[:0], {}, "the prompt is empty"),
        (IDS, {"attention_mask": torch.zeros_like(IDS)}, "the prompt is empty"),
        (IDS, {"max_new_tokens": -1}, "max_new_tokens=-1 is negative; pass 0 or more"),
        (
            IDS,
            {"max_new_tokens": 249},
            "exceeds the model's context of 256; shorten the prompt or pass max_new_tokens=248",
        ),
        (IDS.repeat(1, 40), {"max_new_tokens": 1}, "prompt of 320 tokens plus max_new_tokens=1 exceeds"),
        (IDS + 4, {}, "ids outside the model's vocabulary of 12"),
        (IDS - 2, {}, "ids outside the model's vocabulary of 12"),
        (IDS, {"temperature": -1.0}, "temperature=-1.0 is negative"),
        (IDS, {"top_k": -1}, "top_k=-1 is negative"),
        (IDS, {"top_p": 0.0}, "top_p=0.0 is outside (0, 1]"),
        (IDS, {"top_p": 1.1}, "top_p=1.1 is outside (0, 1]"),
        (IDS, {"repetition_penalty": 0.0}, "repetition_penalty=0.0 is not positive"),
    ],
)
def test_bad_input_is_answered_in_one_line(model, ids, settings, said):
    assert said in refusal(lambda: generate(model, ids, TokenRecycling(), **settings))


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        (IDS[0], None, "input_ids has shape (8,); expected (batch, length)"),
        (IDS[None], None, "input_ids has shape (1, 1, 8); expected (batch, length)"),
        (IDS.float(), None, "input_ids holds torch.float32; expected token ids"),
        (IDS.bool(), None, "input_ids holds torch.bool; expected token ids"),
        (IDS, ones([1, 1, 1]), "attention_mask has shape (1, 3), input_ids (1, 8)"),
    ],
)
def test_wrong_shapes_and_types_are_answered_in_one_line(model, ids, mask, said):
    unchecked = inspect.unwrap(generate)  # without the shape checks that these tests run under
    assert said in refusal(lambda: unchecked(model, ids, Plain(), max_new_tokens=2, attention_mask=mask))


def test_the_largest_request_that_fits_is_served(model):
    assert generate(model, IDS, PromptLookup(), max_new_tokens=248).sequences.shape == (1, 256)


def test_32_bit_ids_are_served(model):
    out = generate(model, IDS.int(), TokenRecycling(), max_new_tokens=10)
    assert torch.equal(out.sequences, greedy(model, IDS, 10))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_nan_logits_are_named(temperature, penalty):
    broken = tiny_causal_lm()
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    for drafter in (Plain(), TokenRecycling()):
        settings = {"temperature": temperature, "repetition_penalty": penalty, "max_new_tokens": 4}
        line = refusal(lambda drafter=drafter, settings=settings: generate(broken, IDS, drafter, **settings))
        assert "NaN logits after 8 tokens; check its weights" in line


def test_a_drafter_of_another_vocabulary_is_refused(model):
    drafter = hot(model)
    other = tiny_causal_lm(vocab_size=20)
    assert "12 rows, the model 20 tokens" in refusal(lambda: generate(other, IDS, drafter, max_new_tokens=4))
    chain = Chain(draft_model=other)
    assert "20 tokens, the target 12" in refusal(lambda: generate(model, IDS, chain, max_new_tokens=4))


# -- prompts --------------------------------------------------------------------------------------------------------

RAGGED = ([3], [2, 7, 1, 8, 2, 8], [1, 4])


def padded(rows, left):
    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    ids = [[*pad, *row] if left else [*row, *pad] for row, pad in zip(rows, pads, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [[*pad, *one] if left else [*one, *pad] for one, pad in zip(ones, pads, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("drafter", [Plain(), TokenRecycling(), PromptLookup(), TokenRecycling(recycle_prompt=True)])
def test_prompts_of_one_token_and_of_any_lengths(drafter, attention):
    model = tiny_causal_lm(attn_implementation=attention)
    alone = [greedy(model, torch.tensor([row]), 20)[0, len(row) :].tolist() for row in RAGGED]
    for row, wanted in zip(RAGGED, alone, strict=True):
        assert generate(model, torch.tensor([row]), drafter, max_new_tokens=20).sequences[0].tolist() == row + wanted
    for left in (True, False):
        ids, mask = padded(RAGGED, left)
        out = generate(model, ids, drafter, max_new_tokens=20, attention_mask=mask).sequences
        assert out[:, ids.shape[1] :].tolist() == alone
    equal = torch.tensor([[3], [2], [1]])
    assert generate(model, equal, drafter, max_new_tokens=5).sequences.tolist() == greedy(model, equal, 5).tolist()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, TINY_VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 12),
)
def test_any_batch_is_its_rows_alone(rows, left, new):
    model = TableLM.random(seed=1)
    ids, mask = padded(rows, left)
    out = generate(model, ids, Union.tiny(), max_new_tokens=new, attention_mask=mask).sequences
    for row, got in zip(rows, out, strict=True):
        alone = generate(model, torch.tensor([row]), Plain(), max_new_tokens=new).sequences[0, len(row) :]
        assert torch.equal(got[ids.shape[1] :], alone)


class Witness(TokenRecycling):
    """Writes down what it is shown, and with which logits."""

    def observe(self, context, tree, logits, path):
        shown.append((context.ids.clone(), tree.tokens.tolist(), logits.clone(), list(path)))
        super().observe(context, tree, logits, path)


shown = []


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("united", [False, True])
def test_a_drafter_that_reads_the_prompt_sees_its_real_tokens_only(model, left, united):
    """Right padding is the loop's own; what stands in it must never be recycled."""
    shown.clear()
    witness = Witness(recycle_prompt=True)
    drafter = Union(drafters=(witness, PromptLookup()), budget=10) if united else witness
    assert drafter.reads_prompt
    ids, mask = padded(RAGGED, left)
    generate(model, ids, drafter, max_new_tokens=1, attention_mask=mask)
    readings = shown[:-3]  # one token each: a round per row
    assert [tokens for _, tokens, _, _ in readings] == [row[:-1] for row in RAGGED if len(row) > 1]
    for prompt, tokens, logits, path in readings:
        assert path == list(range(len(tokens)))
        wanted = model(prompt[None, : len(tokens)]).logits[0]
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    told = {token for _, tokens, _, _ in shown for token in tokens}
    assert told == {token for row in RAGGED for token in row}
    assert (witness.matrix.sum(1) > 0).nonzero().flatten().tolist() == sorted(told)


def test_a_long_prompt_is_shown_in_parts_that_join():
    shown.clear()
    model = TableLM.random(order=1)
    prompt = torch.randint(0, TINY_VOCABULARY, (1, 1100), generator=torch.Generator().manual_seed(0))
    generate(model, prompt, Witness(recycle_prompt=True), max_new_tokens=1)
    parts = [tokens for _, tokens, _, _ in shown][:-1]
    assert len(parts) == 3
    assert list(chain(*parts)) == prompt[0, :-1].tolist()


# -- penalties and the distribution of the output -------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_penalties_follow_the_path_to_each_node(data):
    size = data.draw(st.integers(1, 10))
    parent = [-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, size))]
    past = torch.tensor(data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=6)))
    tokens = torch.tensor([int(past[-1]), *(data.draw(st.integers(0, 11)) for _ in range(1, size))])
    tree = TokenTree(tokens=tokens, topology=Topology(parent))
    logits = torch.randn(size, 12, generator=torch.Generator().manual_seed(0))
    processors = LogitsProcessorList([hf.RepetitionPenaltyLogitsProcessor(1.7), hf.NoRepeatNGramLogitsProcessor(2)])
    warp = Warp.from_processors(processors, do_sample=False)
    request = Request(model=None, ids=past[None], kept=torch.ones(1, len(past)).bool(), warp=warp, new=8)
    row = _Row(past, past, 8, warp, None)
    judged = _Run(Target(tiny_causal_lm()), Plain(), request)._penalise(row, 0, 1, tree, logits)
    for node in range(size):
        ids = torch.cat([past[:-1], tokens[tree.topology.path(node)]])[None]
        assert torch.equal(judged[node], processors(ids, logits[node : node + 1].clone())[0])


@pytest.mark.parametrize("penalty", [0.8, 1.3, 2.0])
def test_repetition_penalties_equal_transformers(model, penalty):
    wanted = greedy(model, IDS, 40, repetition_penalty=penalty)
    for drafter in (hot(model), PromptLookup(), Union.tiny()):
        out = generate(model, IDS, drafter, max_new_tokens=40, repetition_penalty=penalty)
        assert torch.equal(out.sequences, wanted)
        assert torch.equal(greedy(model, IDS, 40, repetition_penalty=penalty, custom_generate=drafter), wanted)


def joint(table, warp, past):
    """Return the exact distribution of the next two tokens, from the definition."""
    before, root = past[-2:]
    first = warp.probabilities(warp.penalise(torch.tensor([past]), table[before, root][None]))[0]
    second = [
        warp.probabilities(warp.penalise(torch.tensor([[*past, a]]), table[root, a][None]))[0]
        for a in range(len(first))
    ]
    return (first[:, None] * torch.stack(second)).numpy()


def assert_follows(pairs, probs):
    counts = np.zeros_like(probs)
    np.add.at(counts, tuple(np.asarray(pairs).T), 1)
    held = probs > 1e-12
    assert counts[~held].sum() == 0
    expected = probs[held] / probs[held].sum() * len(pairs)
    assert stats.chisquare(counts[held], expected).pvalue > 1e-3


SIZE, PAST = 5, (3, 1, 2, 1, 2, 1)
SAMPLING = {"temperature": 0.8, "top_k": 4, "top_p": 0.95, "repetition_penalty": 1.2}


@pytest.mark.parametrize(
    "drafter",
    [TokenRecycling(), Union(drafters=(TokenRecycling(), PromptLookup()), budget=6)],
    ids=lambda d: type(d).__name__,
)
def test_two_sampled_tokens_follow_the_target_through_the_whole_loop(drafter):
    model = TableLM.random(size=SIZE, scale=1.0, seed=3)
    ids = torch.tensor([PAST]).repeat(40, 1)
    pairs, accepted = [], 0
    for seed in range(25):
        out = generate(model, ids, drafter, max_new_tokens=2, seed=seed, **SAMPLING)
        pairs += out.sequences[:, len(PAST) :].tolist()
        accepted += sum(out.stats.accepted)
    assert accepted > len(pairs) / 4  # or this would test nothing
    assert_follows(pairs, joint(model.table, Warp(**SAMPLING), PAST))


def test_two_sampled_tokens_follow_the_target_inside_transformers():
    model = TableLM.random(size=SIZE, scale=1.0, seed=4)
    torch.manual_seed(0)
    drafter = hot(model, torch.tensor([PAST]))
    out = model.generate(
        torch.tensor([PAST]),
        custom_generate=drafter,
        do_sample=True,
        max_new_tokens=2,
        num_return_sequences=1000,
        pad_token_id=0,
        **SAMPLING,
    )
    assert_follows(out[:, len(PAST) :].tolist(), joint(model.table, Warp(**SAMPLING), PAST))


def test_a_seed_reproduces_and_torchs_own_generator_is_left_alone(model):
    def sample(seed=None):
        return generate(model, IDS, TokenRecycling(), max_new_tokens=30, temperature=1.0, seed=seed).sequences.tolist()

    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert sample(1) == sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), state)
    first = sample()
    assert first != sample()
    torch.manual_seed(5)
    assert sample() == first


# -- stats ----------------------------------------------------------------------------------------------------------


def test_stats_account_for_every_round(model):
    ids, mask = padded(RAGGED, left=True)
    out = generate(model, ids, hot(model), max_new_tokens=20, attention_mask=mask)
    stats_ = out.stats
    assert stats_.prompt_tokens == sum(map(len, RAGGED))
    assert stats_.new_tokens == 60
    assert stats_.rounds <= 3 * stats_.target_forwards
    assert stats_.tokens_per_forward == stats_.new_tokens / stats_.rounds
    assert all(0 <= share <= 1 for share in stats_.acceptance_by_depth)
    parts = sum(seconds for phase, seconds in stats_.seconds.items() if phase != "total")
    assert 0 < parts <= stats_.seconds["total"]
    assert stats_.tokens_per_second > 0
    assert stats_.overhead >= 0


def test_a_tree_never_reaches_beyond_the_tokens_still_wanted(model):
    """The last round's tree is cut: drafting deeper than what is wanted would be wasted."""
    stats_ = generate(model, IDS, TokenRecycling(), max_new_tokens=1).stats
    assert (stats_.tree_nodes, stats_.offered) == (1, [])
    stats_ = generate(model, IDS, TokenRecycling(), max_new_tokens=3).stats
    assert len(stats_.offered) <= 2

"""What people pass: served as plain decoding serves it, or refused by name in one line."""

import functools
import threading

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from torch import nn
from transformers import (
    BatchEncoding,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
    WatermarkingConfig,
)

from mintage.draft import Plain, PromptLookup, TokenRecycling, generate
from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.testing.causal_lms import build_tiny

SIZE = 64
IDS = torch.randint(1, SIZE, (2, 12), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[0, :6] = 0
IDS[0, :6] = 0
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


@pytest.fixture
def lm():
    return tiny_causal_lm(vocab_size=SIZE, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    letters = Tokenizer(BPE({chr(48 + i): i for i in range(SIZE)}, []))
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=letters)


def hot(lm):
    drafter = TokenRecycling()
    generate(lm, IDS, drafter, attention_mask=MASK, max_new_tokens=30)
    return drafter


def refusal(call):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def both(lm, drafter, ids, **settings):
    """Decode inside transformers and by mintage's own call; they have to agree."""
    inside = lm.generate(ids, custom_generate=drafter, **settings)
    own = generate(lm, ids, drafter, **{k: v for k, v in settings.items() if k != "do_sample"}).sequences
    assert torch.equal(inside, own)
    return own


# -- processors and criteria see what plain decoding shows them --------------------------------------------------------

PROCESSED = {
    "repetition": {"repetition_penalty": 1.3},
    "no repeated 2-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[5], [7, 8]]},
    "suppressed": {"suppress_tokens": [3, 9]},
    "suppressed at first": {"begin_suppress_tokens": list(range(1, 40))},
    "least length": {"min_new_tokens": 9, "eos_token_id": list(range(20, 50))},
    "least total length": {"min_length": 20, "eos_token_id": list(range(20, 50))},
    "forced end": {"forced_eos_token_id": 11, "eos_token_id": 11},
    "growing wish to end": {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 11},
    "bias": {"sequence_bias": [[[4], 8.0], [[4, 6], 9.0]]},
    "prompt's own words": {"encoder_repetition_penalty": 1.4},
    "prompt's n-grams": {"encoder_no_repeat_ngram_size": 2},
    "by rows": {"prefix_allowed_tokens_fn": lambda row, ids: [i for i in range(SIZE) if (i + row + len(ids)) % 3]},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=4.0)},
}


@pytest.mark.parametrize("name", PROCESSED)
@pytest.mark.parametrize("rows", [slice(0, 2), slice(0, 1), slice(1, 2)], ids=["batch", "padded row", "row"])
def test_processors_see_what_plain_decoding_shows_them(lm, name, rows):
    settings = GREEDY | PROCESSED[name] | {"attention_mask": MASK[rows]}
    wanted = lm.generate(IDS[rows], **settings)
    for drafter in (hot(lm), PromptLookup()):
        assert torch.equal(both(lm, drafter, IDS[rows], **settings), wanted)


class Ends(StoppingCriteria):
    """Stops as told, and writes down what it was shown."""

    def __init__(self, rule):
        self.rule, self.shown = rule, []

    def __call__(self, input_ids, scores, **kwargs):
        self.shown.append(input_ids.tolist())
        return self.rule(input_ids)


RULES = {
    "by length": lambda ids: torch.full((len(ids),), ids.shape[1] >= 17),
    "by a token": lambda ids: (ids[:, 12:] == 44).any(1),
    "one row at a time": lambda ids: torch.tensor([ids.shape[1] >= 14 + 3 * row for row in range(len(ids))]),
    "all when one has": lambda ids: torch.full((len(ids),), bool((ids[:, 12:] % 7 == 0).any())),
    "never": lambda ids: torch.zeros(len(ids), dtype=torch.bool),
    "with a bool": lambda ids: ids.shape[1] >= 15,
}


@pytest.mark.parametrize("ends", [None, list(range(40, 50))], ids=["no end token", "end tokens"])
@pytest.mark.parametrize("rule", RULES)
def test_stopping_criteria_are_asked_what_plain_decoding_asks_them(lm, rule, ends):
    settings = GREEDY | {"attention_mask": MASK, "eos_token_id": ends}
    asked = Ends(RULES[rule])
    wanted = lm.generate(IDS, stopping_criteria=StoppingCriteriaList([asked]), **settings)
    for drafter in (hot(lm), PromptLookup()):
        mine = Ends(RULES[rule])
        out = lm.generate(IDS, custom_generate=drafter, stopping_criteria=StoppingCriteriaList([mine]), **settings)
        assert torch.equal(out, wanted)
        assert mine.shown == asked.shown
        own = generate(lm, IDS, drafter, stopping_criteria=StoppingCriteriaList([Ends(RULES[rule])]), **settings)
        assert torch.equal(own.sequences, wanted)


def test_a_processor_of_ones_own_is_refused_by_name(lm):
    class Mine(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores

    for run in (
        lambda: lm.generate(IDS, custom_generate=Plain(), logits_processor=LogitsProcessorList([Mine()]), **GREEDY),
        lambda: generate(lm, IDS, Plain(), logits_processor=LogitsProcessorList([Mine()])),
    ):
        assert "Mine cannot be used with a draft tree" in refusal(run)


def test_a_mask_with_holes_is_served_as_plain_decoding_does(lm):
    mask = torch.ones_like(IDS)
    mask[0, [2, 3, 7]] = 0
    mask[1, :4] = mask[1, 9] = 0
    wanted = lm.generate(IDS, attention_mask=mask, **GREEDY)
    assert torch.equal(both(lm, hot(lm), IDS, attention_mask=mask, **GREEDY), wanted)


# -- the model's own generation config ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in PROCESSED if n != "by rows"])
def test_the_models_own_generation_config_applies(lm, name):
    lm.generation_config.update(**PROCESSED[name], max_new_tokens=10, pad_token_id=0)
    wanted = lm.generate(IDS, attention_mask=MASK)
    assert torch.equal(generate(lm, IDS, hot(lm), attention_mask=MASK).sequences, wanted)


def test_the_models_own_lengths_apply(lm):
    assert generate(lm, IDS, Plain()).sequences.shape[1] == 12 + 128
    for settings in ({"max_length": 19}, {"max_new_tokens": 7}):
        lm.generation_config = GenerationConfig(**settings)
        assert generate(lm, IDS, hot(lm)).sequences.shape[1] == 19
        assert generate(lm, IDS, hot(lm), max_new_tokens=5).sequences.shape[1] == 17


def test_the_models_own_sampling_applies(lm):
    lm.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_k=2, max_new_tokens=1)
    allowed = lm(IDS[1:]).logits[0, -1].topk(2).indices.tolist()
    drawn = {int(generate(lm, IDS[1:], Plain(), seed=seed).sequences[0, -1]) for seed in range(30)}
    assert drawn == set(allowed)
    assert {int(generate(lm, IDS[1:], Plain(), temperature=0.0).sequences[0, -1]) for _ in range(5)} == {allowed[0]}
    hotter = {int(generate(lm, IDS[1:], Plain(), seed=seed, temperature=50.0).sequences[0, -1]) for seed in range(30)}
    assert hotter == set(allowed)
    hotter = {
        int(generate(lm, IDS[1:], Plain(), seed=s, temperature=50.0, top_k=0).sequences[0, -1]) for s in range(30)
    }
    assert len(hotter) > 5


def test_settings_that_contradict_each_other_are_refused(lm):
    for settings in ({"do_sample": False, "temperature": 0.7}, {"do_sample": True, "temperature": 0.0}):
        assert "contradict each other; pass one of them" in refusal(lambda s=settings: generate(lm, IDS, Plain(), **s))


def test_several_sequences_of_a_prompt(lm):
    lm.generation_config = GenerationConfig(do_sample=True, num_return_sequences=3, max_new_tokens=4, pad_token_id=0)
    out = generate(lm, IDS, hot(lm), attention_mask=MASK, seed=1).sequences
    assert torch.equal(out[:, :12], IDS.repeat_interleave(3, 0))


REFUSED = {
    "num_beams": (2, "num_beams=2 cannot be drafted"),
    "guidance_scale": (2.0, "(guidance_scale) cannot be used with a draft tree"),
    "prompt_lookup_num_tokens": (3, "prompt_lookup_num_tokens=3 is another way to decode"),
    "penalty_alpha": (0.5, "penalty_alpha=0.5 is another way"),
    "dola_layers": ("low", "dola_layers='low' is another way"),
    "token_healing": (True, "token_healing=True cannot be drafted; heal first"),
    "stop_strings": (["x"], "stop_strings=['x'] needs the tokenizer; pass tokenizer="),
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_cannot_be_drafted_is_refused_by_name_wherever_it_is_set(lm, option):
    value, said = REFUSED[option]
    assert said in refusal(lambda: generate(lm, IDS, Plain(), **{option: value}))
    setattr(lm.generation_config, option, value)
    assert said in refusal(lambda: generate(lm, IDS, Plain()))


def test_arguments_that_nobody_takes_are_refused(lm):
    assert "not used by the model: ['max_tokens']" in refusal(lambda: generate(lm, IDS, Plain(), max_tokens=3))
    assert "assistant_model= does not go with a drafter" in refusal(
        lambda: generate(lm, IDS, Plain(), assistant_model=tiny_causal_lm())
    )


# -- inputs beside ids -------------------------------------------------------------------------------------------------


def embedded(lm, ids):
    """Embeddings that no token has."""
    noise = torch.randn(*ids.shape, 32, generator=torch.Generator().manual_seed(0))
    return lm.get_input_embeddings()(ids).detach() + noise


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside ids"])
@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.5}], ids=["plain", "penalty"])
def test_embeddings_in_the_place_of_ids_are_read(lm, beside, settings):
    ids = IDS if beside else None
    given = GREEDY | settings | {"inputs_embeds": embedded(lm, IDS), "attention_mask": MASK}
    wanted = lm.generate(ids, **given)
    for drafter in (hot(lm), PromptLookup(), TokenRecycling(recycle_prompt=True)):
        assert torch.equal(lm.generate(ids, custom_generate=drafter, **given), wanted)
        if beside:
            assert torch.equal(generate(lm, ids, drafter, **given).sequences, wanted)
        one = {**given, "inputs_embeds": given["inputs_embeds"][1:], "attention_mask": None}
        assert torch.equal(generate(lm, None, drafter, **one).sequences, lm.generate(**one))


def tiny_llava():
    torch.manual_seed(0)
    text = tiny_causal_lm(vocab_size=SIZE).config
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=60, vision_feature_layer=-1)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    return model


def test_pictures_are_seen():
    model = tiny_llava()
    ids = torch.tensor([[0, 0, 3, 60, 60, 60, 60, 9], [4, 5, 60, 60, 60, 60, 8, 2]])  # four patches each
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = GREEDY | {"attention_mask": mask, "pixel_values": pixels}
    wanted = model.generate(ids, **given)
    assert not torch.equal(model.generate(ids, **given | {"pixel_values": -pixels}), wanted)
    for drafter in (TokenRecycling(), PromptLookup()):
        assert torch.equal(both(model, drafter, ids, **given), wanted)
        processed = BatchEncoding({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
        assert torch.equal(generate(model, processed, drafter, max_new_tokens=12, pad_token_id=0).sequences, wanted)
    text = torch.tensor([[4, 5, 8, 2]])
    assert torch.equal(
        generate(model, text, Plain(), max_new_tokens=9).sequences, model.generate(text, max_new_tokens=9)
    )
    assert "reads token ids only" in refusal(lambda: generate(model, ids, Plain(), engine="native", **given))


def test_what_every_forward_would_need_is_refused_by_name(lm):
    gpt2 = build_tiny("gpt2")
    types = torch.ones(1, 4, dtype=torch.long)
    ids = torch.tensor([[3, 1, 4, 1]])
    for run in (
        lambda: generate(gpt2, ids, Plain(), token_type_ids=types),
        lambda: gpt2.generate(ids, custom_generate=Plain(), token_type_ids=types, max_new_tokens=3),
    ):
        assert "token_type_ids= cannot be drafted: every forward of GPT2LMHeadModel" in refusal(run)
    shifted = torch.arange(12)[None] + 3
    said = refusal(lambda: lm.generate(IDS[1:], custom_generate=Plain(), position_ids=shifted, **GREEDY))
    assert said.startswith("position_ids other than those of text")


# -- rotation that changes with the length -----------------------------------------------------------------------------

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [2.0, 3.0, 4.0, 6.0]}
LONGROPE |= {"factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 20}
LONG = {
    "phi3": {"original_max_position_embeddings": 20},
    "llama": {},
    "phimoe": {"rope_parameters": {**LONGROPE, "short_mscale": 1.5, "long_mscale": 0.5}},
    "mistral": {},
}


@pytest.mark.parametrize("prompt", [15, 19, 20, 21, 25])
@pytest.mark.parametrize("kind", LONG)
def test_longrope_models_cross_their_original_length_as_plain_decoding_does(kind, prompt):
    given = {"rope_parameters": LONGROPE, "sliding_window": None, "max_position_embeddings": 80} | LONG[kind]
    model = build_tiny(kind, **given)
    ids = torch.randint(1, 24, (1, prompt), generator=torch.Generator().manual_seed(prompt))
    wanted = model.generate(ids, max_new_tokens=14, do_sample=False, pad_token_id=0)
    for drafter in (TokenRecycling(), PromptLookup()):
        for _ in range(2):  # the second time with a filled table
            assert torch.equal(generate(model, ids, drafter, max_new_tokens=14).sequences, wanted)
    two = ids.repeat(2, 1)
    if prompt <= 20:
        said = refusal(lambda: generate(model, two, Plain(), max_new_tokens=14))
        assert "rotates otherwise beyond 20 tokens (longrope)" in said
    else:
        assert torch.equal(generate(model, two, Plain(), max_new_tokens=14).sequences, wanted.repeat(2, 1))


# -- wrapped models ----------------------------------------------------------------------------------------------------


class HandsOn(type(tiny_causal_lm())):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Holds(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, **kwargs):
        return self.inner(**kwargs)


def handing_on(lm):
    lm.__class__ = HandsOn
    return lm


SERVED = {
    "compiled": lambda lm: torch.compile(lm, backend="eager"),
    "data parallel": nn.DataParallel,
    "a class that hands on its arguments": handing_on,
    "in training mode": lambda lm: lm.train(),
}


@pytest.mark.parametrize("how", SERVED)
def test_wrapped_models_are_served(lm, how):
    wanted = lm.generate(IDS, attention_mask=MASK, **GREEDY)
    wrapped = SERVED[how](lm)
    assert torch.equal(generate(wrapped, IDS, hot(wrapped), attention_mask=MASK, max_new_tokens=12).sequences, wanted)


def checkpointing(lm):
    lm.gradient_checkpointing_enable()
    return lm.train()


def dropping(lm):
    lm.config.attention_dropout = 0.1
    return lm.train()


NOT_SERVED = {
    "a module around it": (
        Holds,
        "Holds is no transformers model that generates; pass the model inside it, e.g. its .inn",
    ),
    "gradient checkpointing": (checkpointing, "LlamaForCausalLM is in training mode, with gradient checkpointing"),
    "dropout": (
        dropping,
        "is in training mode, with attention_dropout, so that two forwards differ; call model.eval()",
    ),
    "dynamic quantisation": (
        lambda lm: torch.ao.quantization.quantize_dynamic(lm, {nn.Linear}),
        "LlamaForCausalLM has dynamically quantised layers",
    ),
}


@pytest.mark.parametrize("how", NOT_SERVED)
def test_wrapped_models_that_cannot_be_served_are_refused_in_one_line(lm, how):
    wrap, said = NOT_SERVED[how]
    wrapped = wrap(lm)
    assert said in refusal(lambda: generate(wrapped, IDS, Plain(), max_new_tokens=4))
    if how != "a module around it":
        assert said in refusal(lambda: wrapped.generate(IDS, custom_generate=Plain(), **GREEDY))


def test_gradient_checkpointing_in_evaluation_is_served(lm):
    wanted = lm.generate(IDS, attention_mask=MASK, **GREEDY)
    lm.gradient_checkpointing_enable()
    assert torch.equal(generate(lm, IDS, hot(lm), attention_mask=MASK, max_new_tokens=12).sequences, wanted)


def test_adapters_of_peft_are_served_and_learned_prompts_refused(lm):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(lm, peft.LoraConfig(target_modules=["v_proj", "lm_head"], init_lora_weights=False))
    wanted = adapted.eval().generate(input_ids=IDS, attention_mask=MASK, **GREEDY)
    assert torch.equal(generate(adapted, IDS, hot(adapted), attention_mask=MASK, max_new_tokens=12).sequences, wanted)
    prompted = peft.get_peft_model(
        tiny_causal_lm(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    assert "puts learned prompts before its model" in refusal(lambda: generate(prompted.eval(), IDS % 12, Plain()))


# -- ids and ends as people hold them ----------------------------------------------------------------------------------

OTHER = 2  # which greedy decoding does not come to


@pytest.mark.parametrize(
    "make",
    [
        lambda ids: ids.tolist(),
        lambda ids: ids.numpy(),
        lambda ids: BatchEncoding({"input_ids": ids}),
        lambda ids: {"input_ids": ids.tolist(), "attention_mask": MASK[1:].numpy()},
        lambda ids: ids.to(torch.int16),
    ],
    ids=["list", "array", "encoding", "dictionary", "int16"],
)
def test_ids_are_taken_as_people_hold_them(lm, make, as_users_call):
    wanted = lm.generate(IDS[1:], **GREEDY)
    assert torch.equal(generate(lm, make(IDS[1:]), hot(lm), max_new_tokens=12).sequences, wanted)


def test_ids_that_are_none_are_refused_in_one_line(lm, as_users_call):
    assert "no rows of numbers of one length" in refusal(lambda: generate(lm, [[1, 2], [3]], Plain()))
    assert "input_ids has shape (3,)" in refusal(lambda: generate(lm, [1, 2, 3], Plain()))
    assert "no rows of numbers" in refusal(lambda: generate(lm, "the text", Plain()))


@pytest.mark.parametrize(
    "make",
    [
        lambda e: e,
        lambda e: [e, OTHER],
        np.int64,
        torch.tensor,
        lambda e: torch.tensor([e, OTHER]),
        lambda e: np.array([e, OTHER]),
        lambda e: (np.int32(e),),
    ],
    ids=["int", "list", "numpy", "tensor", "tensors", "array", "tuple"],
)
def test_end_tokens_are_taken_as_people_hold_them(lm, make, as_users_call):
    free = lm.generate(IDS[1:], **GREEDY)[0, 12:].tolist()
    end = free[5]
    assert OTHER not in free
    wanted = lm.generate(IDS[1:], **GREEDY | {"eos_token_id": [end]})
    assert torch.equal(generate(lm, IDS[1:], hot(lm), max_new_tokens=12, eos_token_id=make(end)).sequences, wanted)
    assert torch.equal(
        generate(lm, IDS[1:], Plain(), max_new_tokens=2, pad_token_id=np.int64(0)).sequences, wanted[:, :14]
    )
    assert "is no token id" in refusal(lambda: generate(lm, IDS, Plain(), eos_token_id=1.5))


# -- streaming and stop strings ----------------------------------------------------------------------------------------


def read(tokenizer, run):
    """Read a stream from another thread, as a server does."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=20)
    thread = threading.Thread(target=run, args=(streamer,))
    thread.start()
    text = "".join(streamer)
    thread.join()
    return text


def test_a_text_iterator_streamer_is_served_in_every_way(lm, tokenizer):
    drafter, one = hot(lm), IDS[1:]
    wanted = read(tokenizer, lambda streamer: lm.generate(one, streamer=streamer, **GREEDY))
    ways = {
        "own": lambda streamer: generate(lm, one, drafter, max_new_tokens=12, streamer=streamer),
        "inside": lambda streamer: lm.generate(one, custom_generate=drafter, streamer=streamer, **GREEDY),
        "a part": lambda streamer: lm.generate(
            one, custom_generate=functools.partial(drafter, streamer=streamer), **GREEDY
        ),
    }
    for way in ways.values():
        assert read(tokenizer, way).strip() == wanted.strip()


def test_stop_strings_end_where_plain_decoding_does(lm, tokenizer):
    free = lm.generate(IDS, **GREEDY)[:, 12:]
    strings = [tokenizer.decode(free[0, 3:5]).replace(" ", ""), tokenizer.decode(free[1, 6:7])]
    wanted = lm.generate(IDS, stop_strings=strings, tokenizer=tokenizer, **GREEDY)
    assert wanted.shape[1] < 24
    drafter = hot(lm)
    out = generate(lm, IDS, drafter, max_new_tokens=12, stop_strings=strings, tokenizer=tokenizer, pad_token_id=0)
    assert torch.equal(out.sequences, wanted)
    criteria = StoppingCriteriaList([StopStringCriteria(tokenizer, strings)])
    assert torch.equal(lm.generate(IDS, custom_generate=drafter, stopping_criteria=criteria, **GREEDY), wanted)
    lm.generation_config.stop_strings = strings
    again = generate(lm, IDS, drafter, max_new_tokens=12, tokenizer=tokenizer, pad_token_id=0)
    assert torch.equal(again.sequences, wanted)


def test_a_stopped_stream_ends_with_the_token_that_stopped_it(lm, tokenizer):
    free = lm.generate(IDS[1:], **GREEDY)[0, 12:]
    string = tokenizer.decode(free[4:5])
    shown = read(
        tokenizer,
        lambda s: generate(
            lm, IDS[1:], hot(lm), max_new_tokens=12, streamer=s, stop_strings=[string], tokenizer=tokenizer
        ),
    )
    stopped = lm.generate(IDS[1:], stop_strings=[string], tokenizer=tokenizer, **GREEDY)[0, 12:]
    assert shown.strip() == tokenizer.decode(stopped).strip()

"""Tree forwards of real architectures, tiny and random, against the forwards of every path alone."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, LlamaConfig, LlamaForCausalLM

from mintage.draft import TokenRecycling, generate
from mintage.draft.core.target import TESTED, Target
from mintage.draft.core.tree import TokenTree, Topology
from mintage.errors import UserError
from mintage.models import tiny_causal_lm
from mintage.testing.toys import TableLM

WINDOW = 4  # smaller than every prompt below
PLAIN = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ENDLESS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
OLD = {"vocab_size": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.5}
HYBRID = ["sliding_attention", "full_attention"]
NO_GROUPS = {k: v for k, v in PLAIN.items() if k != "num_key_value_heads"}

TRUSTED = {
    "llama": PLAIN,
    "qwen2": PLAIN,
    "qwen3": PLAIN | {"head_dim": 8},
    "mistral": PLAIN | {"sliding_window": WINDOW},
    "gemma2": PLAIN | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": HYBRID},
    "gpt2": OLD | ENDLESS,
    "gpt_neox": NO_GROUPS,
    "opt": {
        "vocab_size": 24,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "init_std": 0.5,
        **ENDLESS,
    },
    "phi": PLAIN,
}
"""One configuration of every architecture in `TESTED`."""

CHECKED = {
    "phi3": PLAIN | {"sliding_window": WINDOW},
    "stablelm": PLAIN,
    "gemma3_text": PLAIN | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW, "layer_types": HYBRID},
    "gpt_oss": PLAIN | {"head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4, "layer_types": HYBRID},
    "mixtral": PLAIN | {"num_local_experts": 4},
    "olmo2": PLAIN,
    "gptj": OLD | ENDLESS | {"rotary_dim": 4},
    "granite": PLAIN,
}
"""Others, which must pass the automatic check."""

EAGER_ONLY = {"gemma2", "gpt_oss", "gptj"}  # transformers builds these without sdpa
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7, 1, 8, 2])
TREE = TokenTree(tokens=torch.tensor([7, 1, 2, 3, 1, 4, 5, 6]), topology=Topology((-1, 0, 0, 1, 1, 2, 3, 6)))
OTHER = TokenTree(tokens=torch.tensor([9, 2, 2, 8, 3]), topology=Topology((-1, 0, 1, 0, 3)))


def build(kind, attention="sdpa", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **({**TRUSTED, **CHECKED}[kind] | changes))
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


CASES = [
    pytest.param(kind, attention, id=f"{kind}-{attention}")
    for kind in (*TRUSTED, *CHECKED)
    for attention in ("sdpa", "eager")
    if attention == "eager" or kind not in EAGER_ONLY
]


def test_every_architecture_that_is_trusted_unchecked_is_tested_here():
    assert TRUSTED.keys() == TESTED


@torch.no_grad()
@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_tree_logits_are_those_of_every_path_alone(kind, attention):
    model = build(kind, attention)
    target = Target(model)
    for prompts in (PROMPTS[:1], PROMPTS):
        lengths = [len(p) for p in prompts]
        cache = target.new_cache(len(prompts), 20)  # too small on purpose: it has to grow
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True)
        target.prefill(ids, lengths, cache)
        pasts = [list(p) for p in prompts]
        for trees, paths in (
            ([TREE, OTHER], [[0, 1, 3, 6], [0, 3]]),
            ([OTHER, TREE], [[0], [0, 2, 5]]),
            ([TREE, TREE], None),
        ):
            trees = trees[: len(prompts)]
            scores = target.score(trees, cache)
            for past, tree, rows in zip(pasts, trees, scores, strict=True):
                assert len(rows) == len(tree)
                for node, got in enumerate(rows):
                    path = tree.tokens[tree.topology.path(node)].tolist()
                    wanted = model(input_ids=torch.tensor([past + path])).logits[0, -1]
                    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
            if paths:
                cache.commit(paths[: len(prompts)])
                for past, tree, path in zip(pasts, trees, paths, strict=False):
                    past += tree.tokens[path].tolist()


@pytest.mark.parametrize(("kind", "attention"), CASES)
def test_greedy_decoding_with_a_drafter_is_greedy_decoding(kind, attention):
    model = build(kind, attention)
    drafter = TokenRecycling()
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        wanted = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert torch.equal(generate(model, ids, drafter, max_new_tokens=24, pad_token_id=0).sequences, wanted)
        got = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0, custom_generate=drafter)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "opt", "gpt2"])
def test_a_left_padded_batch_is_what_transformers_makes_of_it(kind):
    model = build(kind, "eager")
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    settings = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(ids, custom_generate=TokenRecycling(), **settings), model.generate(ids, **settings)
    )


def test_trees_work_in_bfloat16_with_either_attention():
    for attention in ("sdpa", "eager"):
        model = build("mistral", attention).bfloat16()
        out = generate(model, torch.tensor([PROMPTS[0]]), TokenRecycling(), max_new_tokens=12)
        assert out.stats.new_tokens == 12


@torch.no_grad()
def test_probes_are_read_through_their_embeddings():
    model = build("llama")
    target = Target(model)
    table = model.get_input_embeddings().weight
    tokens = TREE.tokens.clone()
    tokens[[3, 4]] = -1
    probed = TokenTree(tokens=tokens, topology=TREE.topology, embeddings=table[[3, 1]])
    scores = []
    for tree in (TREE, probed):
        cache = target.new_cache(1, 32)
        target.prefill(torch.tensor(PROMPTS[:1]), [11], cache)
        scores.append(target.score([tree], cache)[0])
    torch.testing.assert_close(*scores)


def test_what_the_loop_asks_of_a_target():
    target = Target(build("gemma2", "eager"))
    assert target.vocabulary == 24
    assert target.positions == 128
    assert target.dtype == torch.float32
    assert target.device == torch.device("cpu")
    assert target.kinds == {"full_attention", "sliding_attention"}
    assert Target(TableLM.random()).vocabulary == 12


# -- refusals -------------------------------------------------------------------------------------------------------

MAMBA = {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
NEO = {
    "vocab_size": 24,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": 128,
    "window_size": 100,
}
REFUSED = {
    "mamba": (MAMBA, "MambaForCausalLM cannot branch: it has linear_attention layers"),
    "mamba2": (MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1}, "Mamba2ForCausalLM cannot branch"),
    "rwkv": (
        {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
        "RwkvForCausalLM cannot branch: it has recurrent layers",
    ),
    "qwen3_next": (
        PLAIN
        | EXPERTS
        | {"head_dim": 8, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 4}
        | {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        | {"layer_types": ["linear_attention", "full_attention"]},
        "Qwen3NextForCausalLM cannot branch: it has linear_attention layers",
    ),
    "lfm2": (PLAIN | {"layer_types": ["conv", "full_attention"]}, "Lfm2ForCausalLM cannot branch: it has conv layers"),
    "llama4_text": (
        PLAIN | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
        "Llama4ForCausalLM cannot branch: it has chunked_attention layers",
    ),
    "bloom": (
        {"vocab_size": 24, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "BloomForCausalLM takes no explicit positions (ALiBi?)",
    ),
    "mpt": (
        {"vocab_size": 24, "d_model": 32, "n_layers": 2, "n_heads": 4},
        "MptForCausalLM takes no explicit positions",
    ),
    "falcon": (
        {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
        "FalconForCausalLM cannot score trees",
    ),
    "gpt_neo": (
        NEO | {"attention_types": [[["global", "local"], 1]]},
        "GPTNeoForCausalLM cannot branch: it has local layers",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_branch_is_refused_by_name_in_one_line(kind):
    settings, said = REFUSED[kind]
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with pytest.raises(UserError) as caught:
        generate(model, torch.tensor([[1, 2, 3]]), TokenRecycling(), max_new_tokens=4)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encoder_decoder_is_refused():
    config = AutoConfig.for_model("t5", vocab_size=24, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(UserError, match="T5ForConditionalGeneration is an encoder-decoder; drafting needs a decoder"):
        generate(model, torch.tensor([[1, 2, 3]]), TokenRecycling(), max_new_tokens=4)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flex_attention"])
def test_attention_without_tree_masks_is_refused(attention):
    model = tiny_causal_lm()
    model.config._attn_implementation = attention  # as it would be where that package is installed
    with pytest.raises(UserError, match=f"'{attention}' takes no tree mask; load LlamaForCausalLM with one of: sdpa"):
        Target(model)


def test_gpt_neo_without_local_layers_is_served():
    config = AutoConfig.for_model("gpt_neo", **NEO, attention_types=[[["global"], 2]])
    Target(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())


class BrokenConfig(LlamaConfig):
    model_type = "broken-llama"


class IgnoresTreeMasks(LlamaForCausalLM):
    config_class = BrokenConfig

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = None
        return super().forward(input_ids, attention_mask, position_ids, past_key_values, **kwargs)


class IgnoresPositions(LlamaForCausalLM):
    config_class = BrokenConfig

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        return super().forward(input_ids, attention_mask, None, past_key_values, **kwargs)


class Verbose(LlamaForCausalLM):
    config_class = BrokenConfig

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        raise RuntimeError("no such kernel\nand a stack of reasons")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (IgnoresTreeMasks, "IgnoresTreeMasks scores trees wrongly"),
        (IgnoresPositions, "IgnoresPositions scores trees wrongly"),
        (Verbose, "Verbose cannot score trees: no such kernel"),
    ],
)
def test_the_automatic_check_refuses_a_model_that_answers_wrongly(broken, said, attention):
    torch.manual_seed(0)
    config = BrokenConfig(**PLAIN)
    config._attn_implementation = attention
    model = broken(config).eval()
    for _ in range(2):  # a refusal is not remembered as a pass
        with pytest.raises(UserError) as caught:
            Target(model)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_automatic_check_runs_once_per_model(monkeypatch):
    calls = []
    monkeypatch.setattr(Target, "_compare_with_paths", lambda self: calls.append(self.model))
    unknown = build("stablelm")
    Target(unknown)
    Target(unknown)
    Target(build("llama"))
    assert calls == [unknown]

"""What is passed to a call, and where a call's state lives: options of attention, threads, copies, drafted tokens."""

import copy
import pickle
import threading

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GptOssConfig,
    OPTConfig,
)

from mintage.errors import UserError
from mintage.keep import (
    EMS,
    H2O,
    TOVA,
    ChannelOrder,
    DoubleSparsity,
    FullCache,
    Knorm,
    RandomEviction,
    SnapKV,
    StreamingLLM,
    TokenSelect,
    double_sparsity,
)
from mintage.keep.core.attention import attention_weights
from mintage.keep.core.extras import KNOWN, Extras
from mintage.keep.core.select import attend_to
from mintage.models import cache_of, tiny_causal_lm, with_cache

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
EVICTORS = (StreamingLLM, SnapKV, H2O, TOVA, Knorm, RandomEviction, EMS)


def made(config, attention="eager"):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(weight, 1.0)
    return model


def gpt_oss():
    return made(GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=64))


def gemma2():
    return made(Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=2.0, sliding_window=64))


def deepseek(attention="sdpa"):
    sizes = {**SMALL, "num_key_value_heads": 4}
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
    experts = {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 1,
        "first_k_dense_replace": 2,
    }
    return made(DeepseekV3Config(**sizes, **latent, **experts), attention)


def ids(length=24, seed=0, rows=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(63, generator=generator)[:length] + 1 for _ in range(rows)])


@torch.inference_mode()
def read(model, tokens, first, **settings):
    """Logits after a prompt of `first` tokens and each token behind it."""
    out = model(tokens[:, :first], use_cache=True, **settings)
    logits, past = [out.logits[:, -1]], cache_of(out)
    for i in range(first, tokens.shape[1]):
        logits.append(model(tokens[:, i : i + 1], **with_cache(model, past), use_cache=True, **settings).logits[:, -1])
    return torch.stack(logits, 1), past


def generated(model, tokens, new=10, **settings):
    settings = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens), **settings}
    return model.generate(tokens, max_new_tokens=new, **settings)


# -- what models pass to attention


@pytest.mark.parametrize("make", [gpt_oss, gemma2, deepseek], ids=["sinks", "softcap", "key and value widths"])
@pytest.mark.parametrize("policy", EVICTORS, ids=lambda p: p.__name__)
def test_a_window_under_any_policy_is_attention_to_that_window(make, policy, monkeypatch):
    """Made to keep the newest, each evictor is the unmodified model under a band mask, with all it does to scores."""
    if make is deepseek and policy in (Knorm, EMS):
        return
    model, tokens, size = make(), ids(), 8
    settings = {"tau": 2.0} if policy is EMS else {"sinks": 0} if policy is StreamingLLM else {}
    if policy is H2O:
        settings["recent_share"] = 0.0
    chosen = policy(budget=size, window=7, every=1, **settings)
    row = torch.arange(tokens.shape[1])
    band = (row[:, None] >= row) & (row[:, None] - row < size)
    mask = torch.zeros(band.shape).masked_fill(~band, torch.finfo(torch.float32).min)
    mask = mask if model.config._attn_implementation == "eager" else band
    with torch.inference_mode():
        wanted = model(tokens, attention_mask=mask[None, None]).logits
    with chosen(model) as session:
        got, _ = read(model, tokens, 1)
        assert session.cache.kept().max() == size
    assert torch.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("make", [gpt_oss, gemma2], ids=["sinks", "softcap"])
@pytest.mark.parametrize("per", ["head", "group"])
def test_choosing_everything_is_reading_everything(make, per, monkeypatch):
    """By the path that gathers rows: all entries are chosen but one, which is padding."""
    model, tokens, gathered = make(), ids(), []
    mask = torch.ones_like(tokens)
    mask[0, 0] = 0

    @torch.inference_mode()
    def last():
        past = cache_of(model(tokens[:, :23], attention_mask=mask[:, :23], use_cache=True))
        return model(tokens[:, 23:], attention_mask=mask, **with_cache(model, past), use_cache=True).logits

    monkeypatch.setattr(
        double_sparsity, "attend_to", lambda *args, **kwargs: gathered.append(1) or attend_to(*args, **kwargs)
    )
    order = ChannelOrder(torch.rand(2, 4, 8))
    for kernel in ("torch", "auto"):
        policy = DoubleSparsity(top_k=23, label_channels=4, dense_layers=0, per=per, channels=order, kernel=kernel)
        with policy(model):
            got = last()
        assert torch.allclose(got, last(), atol=1e-4)
    assert len(gathered) == 4


@pytest.mark.parametrize("policy", [Knorm.tiny(), EMS.tiny(), DoubleSparsity.tiny()], ids=lambda p: type(p).__name__)
def test_what_looks_at_keys_is_refused_where_latents_are_cached(policy):
    with pytest.raises(UserError, match="looks at cached keys, and DeepseekV3ForCausalLM caches latents"):
        policy(deepseek())


@pytest.mark.parametrize("make", [gpt_oss, gemma2], ids=["sinks", "softcap"])
def test_scores_are_the_weights_that_the_model_itself_gives(make):
    model, tokens = make(), ids()
    shown = model(tokens, output_attentions=True).attentions[0]
    with H2O(budget=1.0)(model) as session:
        model(tokens, use_cache=True)
    received = shown.sum(2).unflatten(1, (2, 2)).mean(2)
    assert torch.allclose(session.cache.kept_layers[0]["score"], received, atol=1e-4)
    if make is gpt_oss:
        assert (shown.sum(-1) < 0.999).any(), "the sinks take nothing, so nothing was tested"


def test_sinks_and_caps_enter_weights_as_transformers_has_them():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 4, 3, 8, generator=generator), torch.randn(1, 2, 5, 8, generator=generator)
    sinks = torch.tensor([0.0, 1.0, 2.0, -1.0])
    scores = 2 * ((query @ key.repeat_interleave(2, 1).mT) * 0.5 / 2).tanh()
    wanted = torch.cat((scores, sinks.view(1, 4, 1, 1).expand(1, 4, 3, 1)), -1).softmax(-1)[..., :-1]
    got = attention_weights(query, key, scaling=0.5, softcap=2.0, sinks=sinks)
    assert torch.allclose(got.flatten(1, 2), wanted, atol=1e-6)


class _Module(torch.nn.Module):
    num_key_value_groups = 2


def test_a_position_bias_is_read_at_the_entries_chosen():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, n, t, 8, generator=generator) for n, t in ((4, 1), (2, 9), (2, 9)))
    bias = torch.randn(1, 4, 1, 9, generator=generator)
    passed = {"scaling": 0.3, "dropout": 0.0, "position_bias": bias}
    extras = Extras(sdpa_attention_forward, _Module(), False, passed)
    assert not extras.plain
    tokens = torch.tensor([[[0, 3, 8], [1, 2, 7]]])
    rows = [x.gather(2, tokens[..., None].expand(-1, -1, -1, 8)) for x in (key, value)]
    got, _ = extras.over(query, *rows, torch.ones(1, 1, 1, 3, dtype=torch.bool), tokens)
    hidden = torch.zeros(1, 2, 1, 9, dtype=torch.bool).scatter(3, tokens[:, :, None], True).repeat_interleave(2, 1)
    wanted, _ = sdpa_attention_forward(_Module(), query, key, value, hidden, **passed)
    assert torch.allclose(got, wanted, atol=1e-6)
    with pytest.raises(UserError, match=r"^_Module passes 'position_bias' to its attention.*looks at attention"):
        extras.check(looks=True)


@pytest.mark.parametrize("name", ["indices", "block_indices", "something_new"])
def test_tensors_that_choose_or_are_unknown_are_refused_by_name(name):
    extras = Extras(None, _Module(), True, {"scaling": 1.0, name: torch.zeros(1, 1, 4, dtype=torch.int32)})
    with pytest.raises(UserError, match=f"passes '{name}' to its attention"):
        extras.check()


def test_every_argument_that_transformers_decoders_pass_is_known():
    """By their source: a later version that passes something new is noticed here."""
    import ast
    from pathlib import Path

    import transformers

    found = set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        text = path.read_text(encoding="utf-8")
        if "attention_interface(" not in text or "ForCausalLM" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "attention_interface":
                found |= {keyword.arg for keyword in node.keywords if keyword.arg}
    assert {"scaling", "dropout", "s_aux", "softcap"} <= found
    plain = {"query", "key", "value", "attention_mask", "deterministic"}
    assert found - plain <= KNOWN.keys()


@pytest.mark.parametrize("policy", [FullCache(), SnapKV.tiny(), DoubleSparsity.tiny(), TokenSelect.tiny(), EMS.tiny()])
def test_attention_weights_are_shown_over_all_tokens_read(policy):
    model, tokens = tiny_causal_lm(vocab_size=64, attn_implementation="eager"), ids(rows=2)
    wanted = model(tokens, output_attentions=True).attentions
    with policy(model), torch.inference_mode():
        out = model(tokens[:, :20], output_attentions=True, use_cache=True)
        if policy.reads_prompts_whole:
            assert all(torch.equal(a, b[:, :, :20, :20]) for a, b in zip(out.attentions, wanted, strict=True))
        past = cache_of(out)
        for i in range(20, 24):
            out = model(tokens[:, i : i + 1], **with_cache(model, past), output_attentions=True, use_cache=True)
            for layer, shown in zip(past.kept_layers, out.attentions, strict=True):
                assert shown.shape == (2, 4, 1, i + 1)
                assert torch.allclose(shown.sum(-1), torch.ones(2, 4, 1), atol=1e-5)
                if not layer.complete:
                    assert int((shown[0, 0] > 0).sum()) <= layer.entries
    if isinstance(policy, FullCache):
        assert torch.allclose(out.attentions[1][:, :, 0], wanted[1][:, :, 23], atol=1e-5)


def test_attention_weights_that_do_not_exist_are_refused():
    model = tiny_causal_lm(vocab_size=64)
    told = (
        r"^output_attentions: sdpa attention has no weights to give; load the model with attn_implementation='eager'$"
    )
    with SnapKV.tiny()(model):
        with pytest.raises(UserError, match=told):
            model(ids(), output_attentions=True, use_cache=True)
        with pytest.raises(UserError, match=told):
            generated(model, ids(), output_attentions=True, return_dict_in_generate=True)
        generated(model, ids())  # the failed call left nothing behind


# -- whose state it is


def test_four_threads_in_one_with():
    model = tiny_causal_lm(vocab_size=64)
    policy = SnapKV.tiny()
    prompts = [ids(14 + 3 * n, seed=n) for n in range(4)]
    with policy(model):
        alone = [generated(model, prompt, 16) for prompt in prompts]
    for _ in range(3):
        said, caches, barrier = [None] * 4, [None] * 4, threading.Barrier(4)
        with policy(model) as session:

            def work(n, session=session, said=said, caches=caches, barrier=barrier):
                barrier.wait()
                said[n] = generated(model, prompts[n], 16)
                caches[n] = session.cache

            workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
            [worker.start() for worker in workers]
            [worker.join() for worker in workers]
            assert session.cache in caches
        assert all(torch.equal(a, b) for a, b in zip(said, alone, strict=True))
        assert [cache.get_seq_length() for cache in caches] == [14 + 3 * n + 15 for n in range(4)]


def test_threads_enter_and_leave_policies_of_their_own():
    lms = [tiny_causal_lm(vocab_size=64, seed=n) for n in range(4)]
    policies = [SnapKV.tiny(), FullCache(), StreamingLLM.tiny(), DoubleSparsity.tiny()]
    wanted = []
    for lm, policy in zip(lms, policies, strict=True):
        with policy(lm):
            wanted.append(generated(lm, ids()))
    got = [None] * 4

    def work(n):
        for _ in range(3):
            with policies[n](lms[n]):
                got[n] = generated(lms[n], ids())

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_another_model_of_the_same_configuration_is_as_it_was():
    model = tiny_causal_lm(vocab_size=64)
    other = type(model)(model.config).eval()
    assert other.config is model.config
    wanted = other(ids()).logits
    with StreamingLLM(budget=8, window=2)(model) as session:
        assert model.config._attn_implementation == "sdpa"
        out = other(ids(), use_cache=True)
        assert torch.equal(out.logits, wanted)
        assert type(cache_of(out)).__name__ == "DynamicCache"
        model(ids(), use_cache=True)
        assert session.cache.kept().tolist() == [8, 8]


def test_a_cache_is_copied_for_every_continuation_of_a_prefix():
    """As transformers' guide to prefix reuse does."""
    model, prefix = tiny_causal_lm(vocab_size=64), ids(20)
    for policy in (SnapKV.tiny(), DoubleSparsity.tiny(), TokenSelect.tiny(), FullCache(), EMS.tiny()):
        with policy(model), torch.inference_mode():
            held = cache_of(model(prefix, use_cache=True))
            before = held.nbytes()
            for seed in (1, 2):
                whole = torch.cat((prefix, ids(4, seed=seed)), 1)
                fresh = cache_of(model(prefix, use_cache=True))
                wanted = generated(model, whole, **with_cache(model, fresh))
                got = generated(model, whole, **with_cache(model, copy.deepcopy(held)))
                assert torch.equal(got, wanted)
            assert held.nbytes() == before
            assert held.get_seq_length() == 20


def test_a_copy_of_the_model_is_a_plain_model():
    model = tiny_causal_lm(vocab_size=64)
    wanted = generated(model, ids())
    with StreamingLLM(budget=8, window=2)(model) as session:
        twin = copy.deepcopy(model)
        other = pickle.loads(pickle.dumps(model))
        assert torch.equal(generated(twin, ids()), wanted)
        assert session.cache is None
        twin_policy = SnapKV.tiny()
        with twin_policy(twin) as inner:
            generated(twin, ids())
        assert inner.cache.kept().max() <= 12
        assert not torch.equal(generated(model, ids()), wanted)
    for plain in (model, twin, other):
        assert torch.equal(generated(plain, ids()), wanted)
        assert plain.config._attn_implementation == "sdpa"


def test_a_cache_after_the_with_is_refused_and_goes_on_inside_again():
    model, policy = tiny_causal_lm(vocab_size=64), SnapKV.tiny()
    with policy(model), torch.inference_mode():
        wanted, _ = read(model, ids(), 20)
    with policy(model), torch.inference_mode():
        past = cache_of(model(ids()[:, :20], use_cache=True))
    with pytest.raises(UserError, match=r"^this cache is kept by SnapKV; go on with it inside 'with policy\(model\)'"):
        model(ids()[:, 20:21], **with_cache(model, past), use_cache=True)
    with policy(model), torch.inference_mode():
        logits = [model(ids()[:, i : i + 1], **with_cache(model, past), use_cache=True).logits for i in range(20, 24)]
    assert torch.equal(torch.cat(logits, 1), wanted[:, 1:])


def test_a_cache_of_another_model_is_refused():
    policy, small = SnapKV.tiny(), tiny_causal_lm(vocab_size=64)
    large = tiny_causal_lm(vocab_size=64, num_hidden_layers=3)
    with policy(small) as session:
        small(ids(), use_cache=True)
    with policy(large), pytest.raises(UserError, match=r"^the cache given is of another model \(llama, 2 layers"):
        large(ids(1), **with_cache(large, session.cache), use_cache=True)


def test_opt_is_served():
    config = OPTConfig(
        vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, init_std=0.5,
        word_embed_proj_dim=32, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = made(config, "sdpa")
    plain = generated(model, ids())
    with FullCache()(model) as session:
        assert torch.equal(generated(model, ids()), plain)
        assert session.cache.get_seq_length() == 33
    with SnapKV.tiny()(model) as session:
        generated(model, ids())
        assert session.cache.kept().max() <= 12


class _Apart(torch.nn.Module):
    """An attention of its own, in the place of one layer's."""

    def __init__(self, attention):
        super().__init__()
        self.inner, self.layer_idx = attention, attention.layer_idx

    def forward(self, hidden_states, past_key_values=None, cache=None, **kwargs):
        heads = hidden_states.unflatten(-1, (2, -1))[..., :8].transpose(1, 2)
        held = past_key_values if cache is None else cache
        key, _ = held.update(heads, heads, self.layer_idx)
        return hidden_states + key.mean(), None


def test_attention_that_does_not_reach_the_policy_is_refused():
    model = tiny_causal_lm(vocab_size=64)
    model.model.layers[1].self_attn = _Apart(model.model.layers[1].self_attn)
    with SnapKV.tiny()(model), pytest.raises(UserError, match=r"^LlamaForCausalLM computes attention by itself"):
        model(ids(), use_cache=True)


def test_wrapped_models_are_served():
    class Tuned(torch.nn.Module):  # as peft has it
        def __init__(self, model):
            super().__init__()
            self.inner = model

        def get_base_model(self):
            return self.inner

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    model = tiny_causal_lm(vocab_size=64)
    tuned = Tuned(model)
    with SnapKV.tiny()(tuned) as session:
        tuned(ids(), use_cache=True)
        assert session.cache.kept().tolist() == [12, 12]
        with pytest.raises(UserError, match="attached to this LlamaForCausalLM already"):
            SnapKV.tiny()(model).__enter__()
    compiled = torch.compile(model, backend="eager")
    with FullCache()(compiled) as session:
        generated(model, ids())
        assert session.cache is not None


# -- drafted tokens, by transformers' own drafters

DROPS_NOTHING = {
    "full-cache": FullCache(),
    "double-sparsity": DoubleSparsity(
        top_k=0.4, label_channels=4, dense_layers=0, channels=ChannelOrder(torch.rand(2, 4, 8))
    ),
    "token-select": TokenSelect(n_init=2, n_local=5, top_k=6, chunk=1),
    "token-select, often": TokenSelect(n_init=2, n_local=5, top_k=6, chunk=1, theta=2.0),
    "snapkv, all": SnapKV(budget=1.0),
}


@pytest.mark.parametrize("name", DROPS_NOTHING)
@pytest.mark.parametrize("drafter", ["prompt lookup", "assistant", "the model itself"])
def test_drafting_under_a_policy_that_drops_nothing_says_what_the_policy_says(name, drafter):
    model = tiny_causal_lm(vocab_size=64, seed=3)
    tokens = ids(30)
    by = {
        "prompt lookup": {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1},
        "assistant": {"assistant_model": tiny_causal_lm(vocab_size=64, seed=4)},
        "the model itself": {"assistant_model": tiny_causal_lm(vocab_size=64, seed=3)},
    }[drafter]
    new = 13  # later on the text repeats tokens, whose votes are equal but for rounding
    with DROPS_NOTHING[name](model):
        wanted = generated(model, tokens, new)
        got = generated(model, tokens, new, **by)
    assert torch.equal(got, wanted)
    if drafter == "prompt lookup":
        plain = generated(model, tokens, new)
        assert torch.equal(wanted, plain) == (name in ("full-cache", "snapkv, all")), (
            "reads everything, so tests nothing"
        )


@pytest.mark.parametrize("policy", EVICTORS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("drafter", ["prompt lookup", "assistant"])
def test_drafting_under_a_policy_that_drops_is_refused_by_name(policy, drafter):
    model = tiny_causal_lm(vocab_size=64)
    other = tiny_causal_lm(vocab_size=64, seed=1)
    by = {"prompt_lookup_num_tokens": 3} if drafter == "prompt lookup" else {"assistant_model": other}
    with policy.tiny()(model):
        with pytest.raises(UserError, match=f"^{policy.__name__} does not go with drafted tokens") as told:
            generated(model, ids(), **by)
        assert "\n" not in str(told.value)
        generated(model, ids())


def test_the_assistant_may_have_a_policy_of_its_own():
    """Its own decoding is no drafting: only the text of the target counts."""
    model, assistant = tiny_causal_lm(vocab_size=64), tiny_causal_lm(vocab_size=64, seed=1)
    plain = generated(model, ids())
    with DoubleSparsity.tiny()(assistant) as session:
        assert torch.equal(generated(model, ids(), assistant_model=assistant), plain)
        assert session.cache.get_seq_length() > 24


# -- shares behind padding


@pytest.mark.parametrize("policy", EVICTORS, ids=lambda p: p.__name__)
def test_a_share_is_of_the_tokens_not_of_the_padding(policy):
    model = tiny_causal_lm(vocab_size=64)
    chosen = policy(budget=0.5, window=2, **({"sinks": 1} if policy is StreamingLLM else {}))
    prompt = ids(18)
    padded = torch.cat((torch.zeros(1, 8, dtype=torch.long), prompt), 1)
    mask = (padded > 0).long()
    with chosen(model) as session:
        model(prompt, use_cache=True)
        assert session.cache.kept().tolist() == [9, 9]
        alone = session.cache.survivors()
        model(padded, attention_mask=mask, use_cache=True)
        assert session.cache.kept().tolist() == [9, 9]
        for layer, positions in session.cache.survivors().items():
            assert torch.equal(positions - 8, alone[layer])
        both = torch.cat((ids(26, seed=1), padded))
        model(both, attention_mask=torch.cat((torch.ones_like(mask), mask)), use_cache=True)
        assert session.cache.kept().tolist() == [13, 13]
        for layer, positions in session.cache.survivors(1).items():
            assert torch.equal(positions - 8, alone[layer])


def test_a_share_that_is_read_is_of_the_tokens_not_of_the_padding():
    model = tiny_causal_lm(vocab_size=64)
    order = ChannelOrder(torch.rand(2, 4, 8))
    rows = [ids(26, seed=1)[0], ids(18)[0], ids(7, seed=2)[0]]
    padded = torch.stack([torch.cat((torch.zeros(26 - len(row), dtype=torch.long), row)) for row in rows])
    for settings in ({}, {"per": "group"}, {"kernel": "torch"}, {"label_bits": 4}, {"sparse_prefill": True}):
        policy = DoubleSparsity(top_k=0.3, label_channels=8, dense_layers=0, channels=order, **settings)
        with policy(model):
            together = generated(model, padded, 12, attention_mask=(padded > 0).long())
            for row, said in zip(rows, together, strict=True):
                assert torch.equal(generated(model, row[None], 12)[0, len(row) :], said[26:])

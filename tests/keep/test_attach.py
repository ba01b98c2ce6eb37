import pytest
import torch
from transformers import AutoModelForCausalLM

from mintage.errors import UserError
from mintage.keep import FullCache, SnapKV, StreamingLLM
from mintage.keep.core.storage import KeptCache, running
from mintage.models import cache_of, tiny_causal_lm, with_cache
from mintage.testing.keep import models


@pytest.fixture
def model():
    return tiny_causal_lm(vocab_size=64)


def ids(length=24, seed=0):
    return torch.randperm(63, generator=torch.Generator().manual_seed(seed))[None, :length] + 1


def logits(model, tokens, **settings):
    with torch.inference_mode():
        return model(tokens, **settings).logits


def test_without_a_cache_nothing_changes(model):
    wanted = logits(model, ids(), use_cache=False)
    with StreamingLLM(budget=8, window=2)(model) as session:
        assert torch.equal(logits(model, ids(), use_cache=False), wanted)
        assert session.cache is None


def test_the_decoder_alone_and_embeddings_are_served(model):
    with SnapKV.tiny()(model) as session:
        inner = model.model(inputs_embeds=model.get_input_embeddings()(ids()), use_cache=True)
    assert cache_of(inner) is session.cache
    assert session.cache.kept().tolist() == [12, 12]


def test_a_cache_made_by_hand_goes_through(model):
    with SnapKV.tiny()(model) as session:
        cache = session.new_cache()
        model.generate(ids(), max_new_tokens=5, do_sample=False, pad_token_id=0, **with_cache(model, cache))
        assert session.cache is cache
        assert cache.get_seq_length() == 28
        model(ids(3, seed=1), **with_cache(model, cache), use_cache=True)  # the conversation goes on
        assert cache.get_seq_length() == 31


def test_an_empty_dynamic_cache_is_replaced(model):
    from transformers import DynamicCache

    with SnapKV.tiny()(model):
        out = model(ids(), **with_cache(model, DynamicCache(config=model.config)), use_cache=True)
    assert isinstance(cache_of(out), KeptCache)


def test_a_cache_of_another_policy_is_refused(model):
    with SnapKV.tiny()(model):
        cache = cache_of(model(ids(), use_cache=True))
    with SnapKV.tiny()(model), pytest.raises(UserError, match=r"^the cache given belongs to another policy"):
        model(ids(1), **with_cache(model, cache), use_cache=True)


def test_a_static_cache_is_refused(model):
    with SnapKV.tiny()(model), pytest.raises(UserError, match="brings its own cache"):
        model.generate(ids(), max_new_tokens=2, cache_implementation="static", pad_token_id=0)


def test_no_other_cache_is_dropped_in_silence(model):
    from transformers import DynamicCache

    class Mine(DynamicCache):
        pass

    with SnapKV.tiny()(model):
        with pytest.raises(UserError, match=r"^a cache that is offloaded does not go with a policy"):
            model.generate(ids(), max_new_tokens=2, cache_implementation="offloaded", pad_token_id=0)
        with pytest.raises(UserError, match=r"^a Mine does not go with a policy"):
            model(ids(), **with_cache(model, Mine()), use_cache=True)


def test_training_with_checkpoints_caches_nothing_as_without_a_policy(model):
    model.train().gradient_checkpointing_enable()
    model(ids(), labels=ids()).loss.backward()
    wanted = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
    model.zero_grad()
    with SnapKV.tiny()(model):
        model(ids(), labels=ids()).loss.backward()
    assert torch.equal(model.model.layers[0].self_attn.k_proj.weight.grad, wanted)


def test_an_interrupted_forward_leaves_nothing_behind(model):
    def interrupt(*args):
        raise KeyboardInterrupt

    hook = model.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), SnapKV.tiny()(model):
        model(ids(), use_cache=True)
    hook.remove()
    assert running.get() is None
    assert logits(model, ids()).isfinite().all()


def test_a_mask_of_four_dimensions_is_obeyed(model):
    length = 24
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    hidden = causal.clone()
    hidden[:, 3] = False
    hidden[3, 3] = True
    wanted = logits(model, ids(), attention_mask=hidden[None, None])
    with FullCache()(model):
        assert torch.equal(logits(model, ids(), attention_mask=hidden[None, None], use_cache=True), wanted)
    with SnapKV.tiny()(model):
        cache = cache_of(model(ids(), use_cache=True))
        wide = torch.ones(1, 1, 1, length + 1, dtype=torch.bool)
        model(ids(1), attention_mask=wide, **with_cache(model, cache), use_cache=True)
        with pytest.raises(UserError, match="has 12 columns, but 26 tokens were read"):
            model(ids(1), attention_mask=wide[..., :12], **with_cache(model, cache), use_cache=True)


def test_a_mask_hides_kept_entries(model):
    """A token that the 4-D mask hides has no influence, although its entry is held at another index."""
    with StreamingLLM(budget=8, window=2, sinks=4)(model):
        outs = []
        for first in (5, 9):
            tokens = ids()
            tokens[0, 1] = first
            cache = cache_of(model.model(tokens, use_cache=True))
            assert (cache.survivors()[0] == 1).any()
            mask = torch.ones(1, 1, 1, 25, dtype=torch.bool)
            mask[..., 1] = False
            layer = cache.kept_layers[0]
            outs.append((layer, model.model.layers[0], mask, cache))
        # entries other than token 1 are equal in the first layer, so its attention must be
        results = []
        for _, _, mask, cache in outs:
            grabbed = {}
            attention = model.model.layers[0].self_attn
            hook = attention.register_forward_hook(lambda m, i, o, g=grabbed: g.update(out=o[0]))
            model(ids(1, seed=3), attention_mask=mask, **with_cache(model, cache), use_cache=True)
            hook.remove()
            results.append(grabbed["out"])
    assert torch.allclose(results[0], results[1], atol=1e-6)


def test_sliding_windows_hold_under_a_policy():
    from transformers import MistralConfig

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.5,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    plain = model.generate(ids(), max_new_tokens=12, do_sample=False, pad_token_id=0)
    with FullCache()(model):
        assert torch.equal(model.generate(ids(), max_new_tokens=12, do_sample=False, pad_token_id=0), plain)
    with StreamingLLM(budget=10, window=6, sinks=1)(model):  # it keeps all that the window lets a token see
        assert torch.equal(model.generate(ids(), max_new_tokens=12, do_sample=False, pad_token_id=0), plain)


def test_a_window_of_eight_is_a_model_that_sees_eight(model):
    """Against a plain forward with a band mask: the same attention, true positions included."""
    tokens, size = ids(), 8
    with StreamingLLM(budget=size, window=7, sinks=0, every=1)(model):
        cache, got = None, []
        for place in range(tokens.shape[1]):
            out = model(tokens[:, place : place + 1], **with_cache(model, cache), use_cache=True)
            cache = cache_of(out)
            got.append(out.logits)
    row = torch.arange(tokens.shape[1])
    band = (row[:, None] >= row) & (row[:, None] - row < size)
    wanted = logits(model, tokens, attention_mask=band[None, None])
    assert torch.allclose(torch.cat(got, 1), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["mamba", "flash"])
def test_models_that_cannot_be_served_are_named(kind, model):
    if kind == "mamba":
        from transformers import MambaConfig

        config = MambaConfig(vocab_size=9, hidden_size=8, state_size=2, num_hidden_layers=1)
        with pytest.raises(UserError, match=r"^MambaForCausalLM has .* layers"):
            SnapKV()(AutoModelForCausalLM.from_config(config))
    else:
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(UserError, match="load LlamaForCausalLM with one of: sdpa, eager"):
            SnapKV()(model)


def test_two_models_can_have_policies_at_once(model):
    other = models()["qwen2"]
    with SnapKV.tiny()(model) as first, StreamingLLM.tiny()(other) as second:
        model.generate(ids(), max_new_tokens=2, do_sample=False, pad_token_id=0)
        other.generate(ids(), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert first.cache.kept_layers[0].policy is not second.cache.kept_layers[0].policy
    assert model.config._attn_implementation == other.config._attn_implementation == "sdpa"

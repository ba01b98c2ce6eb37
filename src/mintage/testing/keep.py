"""Laws of the keep contract. Each takes a policy made by ``tiny()`` and fails by an assertion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch

from mintage.errors import UserError
from mintage.keep.contract import Policy
from mintage.keep.core.evict import Budget
from mintage.keep.core.storage import KeptCache, KeptLayer
from mintage.models import cache_of, tiny_causal_lm, with_cache
from mintage.testing.refusals import refused, served
from mintage.testing.settings import a_wrong_setting_is_refused

__all__ = ["LAWS", "models"]

_LENGTH, _NEW, _VOCABULARY = 32, 8, 128


@cache
def models() -> dict[str, Any]:
    """Small random decoders: grouped heads, both attention functions, biases, learned positions, a sliding window."""
    from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, Qwen2Config

    small: dict[str, Any] = {
        "vocab_size": _VOCABULARY,
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
    gpt2 = {
        "vocab_size": _VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    made = {"llama": tiny_causal_lm(vocab_size=_VOCABULARY)}
    made["llama-eager"] = tiny_causal_lm(vocab_size=_VOCABULARY, attn_implementation="eager")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, config in (
            ("qwen2", Qwen2Config(**small)),
            ("mistral", MistralConfig(**small, sliding_window=None)),
            ("gpt2", GPT2Config(**gpt2)),
        ):
            made[name] = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return made


def _ids(rows: int = 1, seed: int = 0, length: int = _LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(_VOCABULARY - 1, generator=generator)[:length] + 1 for _ in range(rows)]
    return torch.stack(drawn)  # no token twice: equal tokens have equal keys, up to rounding, and so no order


def _served(policy: Policy, among: tuple[str, ...] = ("llama", "gpt2")) -> Iterator[tuple[str, Any]]:
    """Yield the models that the policy serves; at least one."""
    return served(policy, ((name, models()[name]) for name in among))


@torch.inference_mode()
def _read(model: Any, ids: torch.Tensor, chunks: tuple[int, ...], past: Any = None) -> tuple[torch.Tensor, Any]:
    """Logits of all tokens, read `chunks` at a time and the rest one by one, and the cache at the end."""
    logits, start = [], 0
    for size in [*chunks, *[1] * (ids.shape[1] - sum(chunks))]:
        out = model(ids[:, start : start + size], **with_cache(model, past), use_cache=True)
        past = cache_of(out)
        logits.append(out.logits)
        start += size
    return torch.cat(logits, 1), past


def room_for_everything_changes_nothing(policy: Policy) -> None:
    """With room for all tokens every logit equals the unmodified model's, bit for bit, however the text is read."""
    roomy = policy.unbounded()
    for _name, model in _served(roomy, tuple(models())):
        for rows, chunks in ((1, (_LENGTH - 4,)), (2, (_LENGTH - 4,)), (1, (16, 16)), (1, ())):
            ids = _ids(rows)
            wanted, _ = _read(model, ids, chunks)
            with roomy(model):
                got, _ = _read(model, ids, chunks)
            assert torch.equal(got, wanted)
        wanted = model.generate(_ids(), max_new_tokens=_NEW, do_sample=False, pad_token_id=0, num_beams=3)
        with roomy(model):
            got = model.generate(_ids(), max_new_tokens=_NEW, do_sample=False, pad_token_id=0, num_beams=3)
        assert torch.equal(got, wanted)


def no_token_sees_a_later_one(policy: Policy) -> None:
    """Logits of a text do not change with what follows it in the same chunk."""
    for _name, model in _served(policy):
        ids, other = _ids(), _ids(seed=1)
        for chunks in ((_LENGTH,), (12, 12, 8), (27, 5)):
            cut = _LENGTH - 5
            mixed = torch.cat((ids[:, :cut], other[:, cut:]), 1)
            with policy(model):
                first, _ = _read(model, ids, chunks)
                second, _ = _read(model, mixed, chunks)
            assert torch.allclose(first[:, :cut], second[:, :cut], atol=1e-5)
            assert not torch.allclose(first[:, cut:], second[:, cut:], atol=1e-3)


def padding_changes_nothing(policy: Policy) -> None:
    """Rows of a batch padded on the left say what the same prompts say alone; padding on the right is refused.

    Whatever the padding, and where the budget is a share, too: of the tokens, not of the padding.
    """
    shares = [replace(policy, budget=0.6)] if _has_budget(policy) else []  # type: ignore[call-arg]
    for tried in (policy, *shares):
        _check_padding(tried)


def _has_budget(policy: Policy) -> bool:
    return "budget" in {f.name for f in fields(policy)}


def _check_padding(policy: Policy) -> None:
    for _name, model in _served(policy):
        rows = [_ids(seed=3)[0], _ids(seed=4, length=_LENGTH - 7)[0], _ids(seed=5, length=_LENGTH - 20)[0]]
        rows.append(_ids(seed=6, length=_LENGTH - 1)[0])
        ids = torch.stack([torch.cat((torch.zeros(_LENGTH - len(r), dtype=torch.long), r)) for r in rows])
        mask = torch.stack([torch.arange(_LENGTH) >= _LENGTH - len(r) for r in rows]).long()
        settings: dict[str, Any] = {"max_new_tokens": _NEW, "do_sample": False, "pad_token_id": 0}
        with policy(model):
            together = model.generate(ids, attention_mask=mask, **settings)
            for i, row in enumerate(rows):
                alone = model.generate(row[None], attention_mask=torch.ones_like(row)[None], **settings)
                assert torch.equal(together[i, _LENGTH:], alone[0, len(row) :])
            try:
                model(ids, attention_mask=mask.flip(1), use_cache=True)
            except UserError as error:
                assert "left" in str(error)  # noqa: PT017
            else:
                raise AssertionError("padding on the right should have been refused")


def the_budget_holds_at_every_step(policy: Policy) -> None:
    """Entries never exceed the budget after a forward, nor do the bytes of storage where the budget is in bytes."""
    ids = _ids(2, length=_LENGTH + 12)
    for _name, model in _served(policy):
        if not _has_budget(policy):  # then it promises to hold everything
            with policy(model):
                _, past = _read(model, ids, (_LENGTH,))
            assert (past.kept() == ids.shape[1]).all()
            held = 2 * 2 * ids.shape[1] * 4 * sum(layer["key"].shape[1] * 8 for layer in past.kept_layers)
            assert held <= past.nbytes()
            continue
        with policy(model):
            _, past = _read(model, ids, (ids.shape[1],))
        first = past.kept_layers[0]
        most = 2 * 14 * first.entry_bytes + 2 * first.fixed_bytes
        for budget in (policy.budget, 0.5, f"{most}B"):  # type: ignore[attr-defined]
            for chunks in ((_LENGTH,), (12, 12, 8)):
                _check_budget(replace(policy, budget=budget), model, ids, chunks)  # type: ignore[call-arg]


@torch.inference_mode()
def _check_budget(policy: Policy, model: Any, ids: torch.Tensor, chunks: tuple[int, ...]) -> None:
    budget = Budget.parse(policy.budget)  # type: ignore[attr-defined]
    with policy(model) as session:
        start, past = 0, None
        for size in [*chunks, *[1] * (ids.shape[1] - sum(chunks))]:
            past = cache_of(model(ids[:, start : start + size], **with_cache(model, past), use_cache=True))
            start += size
            assert isinstance(session.cache, KeptCache)
            assert past is session.cache
            assert past.get_seq_length() == start
            kept = session.cache.kept()
            assert (kept >= 1).all()
            if budget.unit == "tokens":
                assert (kept <= budget.amount).all()
            elif budget.unit == "share":
                assert (kept <= max(budget.amount * start, min(policy.smallest, start))).all()  # type: ignore[attr-defined]
            else:
                assert past.nbytes() <= budget.amount
        assert session.cache is not None
        assert (session.cache.kept() < start).all(), "nothing was dropped, so nothing was tested"


def what_was_dropped_is_not_read(policy: Policy) -> None:
    """Storage that is dropped, cut off or not yet written may hold anything: filled with NaN, no logit changes."""
    ids = _ids(2, length=_LENGTH + _NEW)
    padded = torch.ones_like(ids)
    padded[0, :5] = 0
    for _name, model in _served(policy):
        for mask in (torch.ones_like(ids), padded):
            wanted, got = [], []
            for said, spoilt in ((wanted, False), (got, True)):
                with policy(model), torch.inference_mode(), _spoiling() if spoilt else nullcontext():
                    past = None
                    for start, stop in pairwise([0, _LENGTH - 8, *range(_LENGTH, _LENGTH + _NEW + 1)]):
                        seen = {"attention_mask": mask[:, :stop]}
                        out = model(ids[:, start:stop], **seen, **with_cache(model, past), use_cache=True)
                        past = cache_of(out)
                        said.append(out.logits)
                        assert past is not None
            real = mask.bool()[:, : _LENGTH + _NEW]
            assert torch.equal(torch.cat(got, 1)[real], torch.cat(wanted, 1)[real])


@contextmanager
def _spoiling() -> Iterator[None]:
    """Fill with NaN whatever storage of a layer is left behind, and what is allocated ahead."""

    def spoil(tensor: torch.Tensor) -> None:
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)

    def leaving(change: Any) -> Any:
        def changed(layer: KeptLayer, *args: Any, **kwargs: Any) -> Any:
            before = dict(layer._buffers)
            made = change(layer, *args, **kwargs)
            left = {id(t.untyped_storage()): t for n, t in before.items() if layer._buffers.get(n) is not t}
            held = {t.untyped_storage().data_ptr() for t in layer.tensors()}
            for tensor in left.values():
                if tensor.untyped_storage().data_ptr() not in held:
                    spoil(tensor)
            for name in layer._buffers:
                spoil(layer._buffers[name][:, :, layer.entries :])
            return made

        return changed

    names = ("append", "keep", "join", "crop")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(KeptLayer, name, leaving(getattr(KeptLayer, name))))
        yield


def entries_are_distinct_tokens_in_order(policy: Policy) -> None:
    """Every head holds tokens that were read, each once, in ascending order; the newest one among them."""
    for _name, model in _served(policy):
        with policy(model):
            _, past = _read(model, _ids(2), (24,))
        for row in range(2):
            for positions in past.survivors(row).values():
                assert (positions.diff(dim=-1) > 0).all()
                assert (positions >= 0).all()
                assert (positions[:, -1] == _LENGTH - 1).all()


def the_same_twice(policy: Policy) -> None:
    """Two requests give the same text: nothing is left over from the first."""
    for _name, model in _served(policy):
        with policy(model):
            first = model.generate(_ids(), max_new_tokens=_NEW, do_sample=False, pad_token_id=0)
            model.generate(_ids(seed=8), max_new_tokens=_NEW, do_sample=False, pad_token_id=0)
            second = model.generate(_ids(), max_new_tokens=_NEW, do_sample=False, pad_token_id=0)
        assert torch.equal(first, second)


def leaving_restores_the_model(policy: Policy) -> None:
    """After the context, also after an exception, the model, its modules and transformers' registries are as before."""
    for _name, model in _served(policy):
        wanted, _ = _read(model, _ids(), (28,))
        before = _trace(model)
        registries = _registries()
        for fail in (False, True):
            try:
                with policy(model):
                    _read(model, _ids(), (28,))
                    if fail:
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                pass
            assert _trace(model) == before
            assert _registries() == registries
        got, _ = _read(model, _ids(), (28,))
        assert torch.equal(got, wanted)


def _registries() -> Any:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    mappings = [dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_MASK_ATTENTION_FUNCTIONS)]
    return *mappings, AttentionInterface.get_interface, sorted(vars(ALL_ATTENTION_FUNCTIONS))


def _trace(model: Any) -> Any:
    modules = {
        name: (type(m), sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
        for name, m in model.named_modules()
    }
    return modules, model.config._attn_implementation


def cropping_goes_back_or_is_refused(policy: Policy) -> None:
    """After ``crop(-n)`` the last n tokens can be read again with the same logits, or one line says why not."""
    for _name, model in _served(policy):
        for tried in (policy.unbounded(), policy):
            with tried(model):
                wanted, past = _read(model, _ids(), (_LENGTH - 3,))
                try:
                    past.crop(-3)
                except UserError as error:
                    assert "\n" not in str(error)  # noqa: PT017
                    assert tried is policy
                    continue
                assert past.get_seq_length() == _LENGTH - 3
                got, _ = _read(model, _ids()[:, _LENGTH - 3 :], (), past)
                if tried is not policy:
                    assert torch.allclose(got, wanted[:, _LENGTH - 3 :], atol=1e-5)


def what_cannot_be_served_is_refused(policy: Policy) -> None:
    """A second policy, a foreign cache, an encoder-decoder: one line each, and the model is left as it was."""
    from transformers import T5Config, T5ForConditionalGeneration

    model = next(model for _, model in _served(policy))
    foreign = cache_of(model(_ids(), use_cache=True))
    small: dict[str, Any] = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    small["decoder_start_token_id"] = 0
    encoder = T5ForConditionalGeneration(T5Config(**small))
    with policy(model) as session:
        refused(
            lambda: policy(model).__enter__(),
            lambda: model(_ids(), **with_cache(model, foreign), use_cache=True),
            lambda: policy(encoder),
            lambda: policy("not a model"),
        )
        assert session.cache is None
        model.generate(_ids(), max_new_tokens=2, do_sample=False, pad_token_id=0)
        assert session.cache is not None
        assert session.cache.get_seq_length() == _LENGTH + 1


LAWS = (
    room_for_everything_changes_nothing,
    no_token_sees_a_later_one,
    padding_changes_nothing,
    the_budget_holds_at_every_step,
    what_was_dropped_is_not_read,
    entries_are_distinct_tokens_in_order,
    the_same_twice,
    leaving_restores_the_model,
    cropping_goes_back_or_is_refused,
    what_cannot_be_served_is_refused,
    a_wrong_setting_is_refused,
)

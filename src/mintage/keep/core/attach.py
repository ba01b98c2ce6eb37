"""Attach a policy to a Hugging Face causal LM for the length of a ``with``, and take it off without a trace.

An attention function and its mask function are registered under a name of this attachment, the model is switched to
it, and a hook on the decoder puts the policy's cache in the place of an empty one. While a layer holds every token, the
model's own attention function runs on its own mask, so that nothing at all changes.

Not here: flash-attn and flex kernels (their masks are not tensors), static caches, recurrent layers.
"""

from __future__ import annotations

import inspect
from itertools import count
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mintage.errors import UserError
from mintage.keep.contract import Policy
from mintage.keep.core.prefetch import Ahead
from mintage.keep.core.step import Geometry, Step
from mintage.keep.core.storage import KeptCache, KeptLayer
from mintage.models import cache_argument, cache_of

__all__ = ["Attachment"]

_SERVED = ("sdpa", "eager")
_attached: WeakSet[Any] = WeakSet()
_numbers = count()


class Attachment:
    """A policy on a model; ``with`` switches it on and off.

    Attributes
    ----------
    cache
        The cache of the latest request, or None before the first.
    geometry
        The model's heads and rotation.

    Raises
    ------
    UserError
        On entering: the model has no plain key-value cache or another attention function than sdpa or eager, or a
        policy is attached already. In a forward: a foreign cache that holds tokens, right padding.
    """

    def __init__(self, policy: Policy, model: Any) -> None:
        self.policy, self.model = policy, model
        self.geometry = _served(model)
        policy.check(self.geometry)
        self._ahead = Ahead(model, self.geometry) if policy.looks_ahead else None
        self.cache: KeptCache | None = None
        self._running: KeptCache | None = None  # the cache of the forward under way, if it has one
        self._start: Tensor | None = None
        self._position_ids: Tensor | None = None

    def new_cache(self) -> KeptCache:
        """Make an empty cache to pass on (`mintage.models.with_cache`); without it every request gets its own."""
        return KeptCache([KeptLayer(index, self.policy) for index in range(self.geometry.layers)])

    def __enter__(self) -> Attachment:
        if self.model in _attached:
            raise UserError(f"a policy is attached to this {self.geometry.model} already; leave its 'with' first")
        self._before = self.model.config._attn_implementation
        self._name = f"mintage-{type(self.policy).__name__.lower()}-{next(_numbers)}"
        self._attention, self._mask = _functions(self.model, self._before)
        AttentionInterface.register(self._name, self._attend)
        AttentionMaskInterface.register(self._name, self._make_mask)
        self._decoder = self.model.base_model
        self._hooks = [self._decoder.register_forward_pre_hook(self._before_forward, with_kwargs=True)]
        if self._ahead is not None:
            self._hooks += self._ahead.watch()
        self.model.set_attn_implementation(self._name)
        _attached.add(self.model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.model.set_attn_implementation(self._before)
        for hook in self._hooks:
            hook.remove()
        AttentionInterface._global_mapping.pop(self._name, None)
        AttentionMaskInterface._global_mapping.pop(self._name, None)
        _attached.discard(self.model)
        self._running = self._start = self._position_ids = None

    # -- called by the model --------------------------------------------------------------------------------------

    def _before_forward(self, decoder: Any, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
        """Put the policy's cache where transformers would put its own, and note the positions."""
        given = inspect.signature(decoder.forward).bind_partial(*args, **kwargs).arguments
        extra = given.pop("kwargs", {})
        given = {**given, **extra}
        cache, name = cache_of(given), cache_argument(decoder)
        for either in ("cache", "past_key_values"):
            given.pop(either, None)
        given[name] = cache
        wanted = given.get("use_cache")
        if wanted is None:
            wanted = cache is not None or decoder.config.use_cache
        if cache is None and not wanted:
            self._running = None
            return (), given
        if not isinstance(cache, KeptCache):
            if cache is not None and not isinstance(cache, DynamicCache):
                raise UserError(
                    f"a {type(cache).__name__} does not go with a policy, which brings its own cache; "
                    f"pass no {name} and no cache_implementation"
                )
            if cache is not None and cache.get_seq_length() > 0:
                raise UserError(
                    "the cache given was filled without the policy; start again from the prompt inside the 'with'"
                )
            cache = given[name] = self.new_cache()
        elif cache.kept_layers[0].policy is not self.policy:
            raise UserError("the cache given belongs to another policy; start again from the prompt")
        self.cache = self._running = cache
        tokens = given.get("input_ids")
        tokens = tokens if tokens is not None else given["inputs_embeds"]
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None] + cache.get_seq_length()
        self._position_ids = positions
        self._start = _padding(given.get("attention_mask"), cache.get_seq_length() + tokens.shape[1])
        for layer in cache.kept_layers:
            layer.start, layer.position_ids, layer.geometry = self._start, positions, self.geometry
        return (), given

    def _make_mask(self, **arguments: Any) -> Tensor | None:
        return self._mask(**{**arguments, "allow_is_causal_skip": arguments.get("allow_is_causal_skip", True)})

    def _attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        def dense() -> Tensor:
            out = self._attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
            return out[0].transpose(1, 2)

        if self._running is None:
            return dense().transpose(1, 2).contiguous(), None
        layers, index = self._running.kept_layers, module.layer_idx
        layer = layers[index]

        def ahead() -> tuple[KeptLayer, Tensor] | None:
            guess = None if self._ahead is None else self._ahead.query(index, layer.position_ids)
            return None if guess is None else (layers[index + 1], guess)

        if attention_mask is not None and attention_mask.shape[-1] != layer.seen:
            raise UserError(
                f"the attention mask has {attention_mask.shape[-1]} columns, but {layer.seen} tokens were read; "
                "under a policy a mask covers all tokens read, kept or not"
            )
        step = Step(
            query=query,
            mask=attention_mask,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            position_ids=self._position_ids,  # type: ignore[arg-type]
            geometry=self.geometry,
            dense=dense,
            ahead=ahead,
        )
        out = self.policy.attend(layer, step)
        with torch.no_grad():  # evidence is counted, not learnt from
            self.policy.settle(layer, step)
        return out.transpose(1, 2).contiguous(), None


def _functions(model: Any, name: str) -> tuple[Any, Any]:
    """Return the attention and mask functions that the model uses now."""
    if name == "eager":
        attention = getattr(inspect.getmodule(type(model)), "eager_attention_forward", None)
    else:
        attention = ALL_ATTENTION_FUNCTIONS[name]
    if attention is None:
        raise UserError(
            f"{type(model).__name__} has no eager attention to call; load it with attn_implementation='sdpa'"
        )
    return attention, ALL_MASK_ATTENTION_FUNCTIONS[name]


def _served(model: Any) -> Geometry:
    name = type(model).__name__
    if not hasattr(model, "config") or not hasattr(model, "set_attn_implementation"):
        raise UserError(f"{name} is no Hugging Face model; a policy attaches to a causal LM such as Llama")
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise UserError(f"{name} is an encoder-decoder; a policy needs a decoder-only model such as Llama")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(model, "_is_stateful", False):
        listed = ", ".join(sorted(kinds)) or "recurrent"
        raise UserError(f"{name} has {listed} layers, which keep no keys and values; a policy needs full attention")
    if getattr(config, "attn_logit_softcapping", None):
        raise UserError(f"{name} caps its attention scores, which policies do not do; use a model without soft-capping")
    if not getattr(type(model), "_supports_attention_backend", False):
        raise UserError(
            f"{name} does not take attention functions from outside; known to work: Llama, Qwen2, Mistral, GPT-2"
        )
    if config._attn_implementation not in _SERVED and not str(config._attn_implementation).startswith("mintage-"):
        raise UserError(
            f"attn_implementation={config._attn_implementation!r} has masks of its own; "
            f"load {name} with one of: {', '.join(_SERVED)}"
        )
    return Geometry.of(model)


def _padding(mask: Tensor | None, length: int) -> Tensor | None:
    """Return the number of padding tokens before each sequence, or None where there are none."""
    if mask is None or mask.ndim != 2:
        return None
    mask = mask[:, :length].bool()
    if mask.all():
        return None
    if (mask[:, 1:] < mask[:, :-1]).any():
        raise UserError("the batch is padded on the right; pad on the left (tokenizer.padding_side = 'left')")
    return (~mask).sum(1)

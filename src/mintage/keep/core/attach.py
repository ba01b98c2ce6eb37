"""Attach a policy to a Hugging Face causal LM for the length of a ``with``, and take it off without a trace.

A hook on the decoder puts the policy's cache in the place of an empty one. What a forward under way needs stands in a
context variable: threads do not meet, and neither the model, its configuration nor transformers' registries are
written to, so that a second model of the same configuration, or a copy of this one, is as it was. Attention functions
are handed out by `AttentionInterface.get_interface`; while a policy is attached somewhere, that is asked for the
policy's in the forwards that are its. While a layer holds every token, the model's own attention function runs on its
own mask, so that nothing at all changes; after that it runs on the entries that are held.

Not here: flash-attn and flex kernels (their masks are not tensors), static caches, recurrent layers.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, GenerationMixin
from transformers.cache_utils import DynamicCache

from mintage.errors import UserError
from mintage.keep.contract import Policy
from mintage.keep.core.extras import Extras
from mintage.keep.core.prefetch import Ahead
from mintage.keep.core.served import check_served, check_window, decoder_of, unwrapped, windows_of
from mintage.keep.core.step import Geometry, Step, own_way
from mintage.keep.core.storage import KeptCache, KeptLayer, running
from mintage.models import cache_argument, cache_of
from mintage.sessions import sessions

__all__ = ["Attachment"]

_get_interface = AttentionInterface.get_interface
_lock = threading.Lock()


class Attachment:
    """A policy on a model; ``with`` switches it on and off.

    Attributes
    ----------
    geometry
        The model's heads and rotation.

    Raises
    ------
    UserError
        On entering: the model has no plain key-value cache or another attention function than sdpa or eager, or a
        policy is attached already. In a forward: a foreign cache that holds tokens, right padding, attention weights
        of an attention function that has none, drafted tokens under a policy that cannot take them back.
    """

    def __init__(self, policy: Policy, model: Any) -> None:
        self.policy, self.model = policy, unwrapped(model)
        check_served(self.model)
        self.geometry = Geometry.of(self.model)
        policy.check(self.geometry)
        self._ahead = Ahead(self.model, self.geometry) if policy.looks_ahead else None
        self._decoder = decoder_of(self.model)
        self.windows = windows_of(self.model)
        self._latest: KeptCache | None = None
        self._own = threading.local()

    @property
    def cache(self) -> KeptCache | None:
        """The cache of this thread's latest request, or of any thread's; None before the first."""
        return getattr(self._own, "cache", self._latest)

    def new_cache(self) -> KeptCache:
        """Make an empty cache to pass on (`mintage.models.with_cache`); without it every request gets its own."""
        return KeptCache([KeptLayer(index, self.policy) for index in range(self.geometry.layers)])

    def __enter__(self) -> Attachment:
        with _lock:
            if self.model in sessions:
                raise UserError(f"a policy is attached to this {self.geometry.model} already; leave its 'with' first")
            sessions[self.model] = self
            AttentionInterface.get_interface = _interface  # type: ignore[method-assign]
        self.modules = frozenset(self._decoder.modules())
        begin, end, look = _Hook(self._begin), _Hook(self._end), _Hook(self._look)
        self._hooks = [
            self._decoder.register_forward_pre_hook(begin, with_kwargs=True),
            self._decoder.register_forward_hook(end, always_call=True),
            self.model.register_forward_hook(look),
        ]
        if self._ahead is not None:
            self._hooks += self._ahead.watch(_Hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        if (forward := running.get()) is not None and forward.session is self:  # it was interrupted from outside
            running.set(None)
        with _lock:
            sessions.pop(self.model, None)
            if not sessions:
                AttentionInterface.get_interface = _get_interface  # type: ignore[method-assign]

    # -- called by the model --------------------------------------------------------------------------------------

    def _begin(self, decoder: Any, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
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
            return (), given
        cache = given[name] = self._cache(cache, name)
        tokens = given.get("input_ids")
        tokens = tokens if tokens is not None else given["inputs_embeds"]
        positions = given.get("position_ids")
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None] + cache.get_seq_length()
        start = _padding(given.get("attention_mask"), cache.get_seq_length() + tokens.shape[1])
        eager = decoder.config._attn_implementation == "eager"
        shown = given.get("output_attentions")
        shown = getattr(decoder.config, "output_attentions", False) if shown is None else shown
        if shown and not eager:
            raise UserError(
                f"output_attentions: {decoder.config._attn_implementation} attention has no weights to give; "
                "load the model with attn_implementation='eager'"
            )
        drafted = self._drafted(cache, tokens.shape[1])
        self._latest = self._own.cache = cache
        for layer in cache.kept_layers:
            layer.start, layer.position_ids, layer.geometry = start, positions, self.geometry
            layer.marks.clear()
        forward = _Forward(self, cache, positions, bool(shown), eager, drafted)
        forward.token = running.set(forward)
        return (), given

    def _cache(self, cache: Any, name: str) -> KeptCache:
        """Return the cache given if it is this policy's, a new one for an empty one."""
        if isinstance(cache, KeptCache):
            first = cache.kept_layers[0]
            if first.policy is not self.policy:
                raise UserError("the cache given belongs to another policy; start again from the prompt")
            if first.geometry is not None and first.geometry.fingerprint != self.geometry.fingerprint:
                raise UserError(
                    f"the cache given is of another model ({first.geometry.fingerprint}, not "
                    f"{self.geometry.fingerprint}); start again from the prompt"
                )
            return cache
        if cache is not None and (type(cache) is not DynamicCache or cache.offloading):
            kind = "cache that is offloaded" if type(cache) is DynamicCache else type(cache).__name__
            raise UserError(
                f"a {kind} does not go with a policy, which brings its own cache; "
                f"pass no {name} and no cache_implementation"
            )
        if cache is not None and cache.get_seq_length() > 0:
            raise UserError(
                "the cache given was filled without the policy; start again from the prompt inside the 'with'"
            )
        return self.new_cache()

    def _drafted(self, cache: KeptCache, queries: int) -> int:
        """Count the last tokens of a forward that are guesses of transformers' assisted decoding.

        Nothing that a model is passed tells, so the loop that called it is asked: the innermost one of `generate`.
        """
        if cache.drafted is not None:  # mintage's own loop tells
            return cache.drafted
        frame = sys._getframe(1)
        while frame is not None and frame.f_code not in _LOOPS:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None or frame.f_code is not _ASSISTED:
            return 0
        if not self.policy.crops_exactly:
            raise UserError(
                f"{type(self.policy).__name__} does not go with drafted tokens (assistant_model, "
                "prompt_lookup_num_tokens): those rejected would already have driven others out of the cache; "
                "generate without, or under a policy that drops nothing, e.g. DoubleSparsity"
            )
        held = frame.f_locals
        return int(held["candidate_length"]) if held["is_first_iteration"] else queries

    def _end(self, decoder: Any, args: Any, output: Any) -> None:
        """Take the forward off, after an exception, too; refuse what went past the policy."""
        forward = running.get()
        if forward is None or forward.session is not self:
            return
        running.reset(forward.token)
        if output is not None and forward.cache.get_seq_length() and forward.met != forward.stored:
            raise UserError(
                f"{self.geometry.model} computes attention by itself, not by transformers' attention functions, so "
                "that a policy does not reach it; use another model, e.g. Llama"
            )

    def _look(self, model: Any, args: Any, output: Any) -> None:
        """Refuse a model whose forward went past its decoder."""
        cache = cache_of(output) if hasattr(output, "get") else None
        if cache is not None and not isinstance(cache, KeptCache):
            raise UserError(f"{self.geometry.model} goes past its own decoder, where a policy does not reach it")


class _Hook:
    """A hook of a module that copies and pickles of the module do not have."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def __call__(self, *arguments: Any) -> Any:
        return self.act(*arguments)

    def __deepcopy__(self, memo: Any) -> Any:
        return _nothing

    def __reduce__(self) -> Any:
        return _unhooked, ()


def _nothing(*arguments: Any) -> None:
    """Stand where a hook stood."""


def _unhooked() -> Any:
    return _nothing


def _interface(self: AttentionInterface, name: str, default: Any) -> Any:
    """Hand out an attention function: in a policy's forward the policy's, which calls the one asked for."""
    own, forward = _get_interface(self, name, default), running.get()
    return own if forward is None else partial(forward.attend, own)


_generation: Any = GenerationMixin
_ASSISTED, *_OTHERS = (
    inspect.unwrap(getattr(_generation, name)).__code__ for name in ("_assisted_decoding", "_sample", "_beam_search")
)
_LOOPS = {_ASSISTED, *_OTHERS}


@dataclass(eq=False)
class _Forward:
    """One call of the decoder under a policy."""

    session: Attachment
    cache: KeptCache
    position_ids: Tensor
    shown: bool  # whether attention weights are to be returned
    eager: bool
    drafted: int  # last queries that are decoding steps of their own
    token: Any = None
    stored: set[int] = field(default_factory=set)  # layers whose keys came
    met: set[int] = field(default_factory=set)  # layers that the policy attended in
    hidden: dict[int, Tensor] = field(default_factory=dict)  # what the latest layer was given

    def attend(
        self,
        own: Any,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Stand in the place of `own`, the model's attention function."""
        if module not in self.session.modules or getattr(module, "layer_idx", None) not in self.stored:
            return own(module, query, key, value, attention_mask, **kwargs)  # it caches nothing now
        layer = self.cache.kept_layers[module.layer_idx]
        if window := self.session.windows[layer.index]:
            check_window(self.session.geometry.model, window, layer.seen, attention_mask)
        changed = "" if self._own_entries(layer, key, value) else "changes cached keys or values before it reads them"
        if attention_mask is not None and attention_mask.shape[1] > 1:
            changed = "masks every head in its own way"
        if changed and not self.session.policy.crops_exactly:
            raise own_way(self.session.geometry.model, changed)
        self.met.add(layer.index)
        if attention_mask is not None and attention_mask.shape[-1] != layer.seen:
            raise UserError(
                f"the attention mask has {attention_mask.shape[-1]} columns, but {layer.seen} tokens were read; "
                "under a policy a mask covers all tokens read, kept or not"
            )
        queries = query.shape[2]
        cuts = [*range(queries - self.drafted, queries + 1)]
        cuts = [0, *(cut for cut in cuts if cut)] if self.drafted else [0, queries]
        parts = []
        for begin, end in pairwise(cuts):
            with layer.up_to(queries - end):
                rows = slice(begin, end)
                mask = None if attention_mask is None else attention_mask[:, :, rows, : layer.seen]
                states = query[:, :, rows], key[:, :, : layer.entries], value[:, :, : layer.entries]
                extras = Extras(own, module, self.eager, kwargs)
                parts.append(self._piece(extras, layer, rows, states, mask, changed))
                if self.drafted:
                    layer.marks[layer.seen] = dict(layer.state)
        if len(parts) == 1:
            return parts[0]
        outs, weights = zip(*parts, strict=True)
        shown = [torch.nn.functional.pad(w, (0, layer.seen - w.shape[-1])) for w in weights if w is not None]
        return torch.cat(outs, 1), torch.cat(shown, 2) if shown else None

    def _own_entries(self, layer: KeptLayer, key: Tensor, value: Tensor) -> bool:
        """Whether these are the layer's keys and values, or made, once in a forward, of latents that heads share."""
        if layer.index in self.met:
            return False
        if layer["key"].shape[1] == 1 < key.shape[1]:
            return True
        return layer["key"].data_ptr() == key.data_ptr() and layer["value"].data_ptr() == value.data_ptr()

    def _piece(
        self,
        extras: Extras,
        layer: KeptLayer,
        rows: slice,
        states: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        changed: str,
    ) -> tuple[Tensor, Tensor | None]:
        """Let the policy attend from some of the queries, to the layer as it stood at the last of them."""
        query, key, value = states
        policy, ahead = self.session.policy, self.session._ahead

        def next_layer() -> tuple[KeptLayer, Tensor] | None:
            guess = None if ahead is None else ahead.query(layer.index, self.position_ids, self.hidden)
            return None if guess is None else (self.cache.kept_layers[layer.index + 1], guess[:, :, rows])

        weights: list[Tensor] = []

        def dense() -> Tensor:
            out, own = extras.call(query, key, value, mask)
            weights[:] = [own] if own is not None and self.shown else []
            return out.transpose(1, 2)

        def show(some: Tensor, tokens: Tensor) -> None:
            wide = some.new_zeros(*some.shape[:3], layer.seen)
            index = tokens.clamp(min=0).long().expand(some.shape[0], -1, -1)
            index = index.repeat_interleave(some.shape[1] // index.shape[1], 1)
            weights.append(wide.scatter_add(3, index[:, :, None].expand(some.shape), some))

        step = Step(
            query=query,
            mask=mask,
            scaling=extras.scaling(query),
            position_ids=self.position_ids[..., rows],
            geometry=self.session.geometry,
            dense=dense,
            ahead=next_layer,
            key=key,
            value=value,
            changed=changed,
            extras=extras,
            show=show if self.shown else None,
        )
        out = policy.attend(layer, step)
        with torch.no_grad():  # evidence is counted, not learnt from
            policy.settle(layer, step)
        return out.transpose(1, 2).contiguous(), torch.cat(weights, 2) if weights else None


def _padding(mask: Tensor | Mapping[str, Tensor] | None, length: int) -> Tensor | None:
    """Return the number of padding tokens before each sequence, or None where there are none."""
    if isinstance(mask, Mapping):  # masks by kind of layer, made by a model around the decoder
        mask = mask.get("full_attention")
        if mask is None or mask.ndim != 4:
            return None
        seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        mask = seen.any(2)[:, 0]
    if mask is None or mask.ndim != 2:
        return None
    mask = mask[:, :length].bool()
    if mask.all():
        return None
    if (mask[:, 1:] < mask[:, :-1]).any():
        raise UserError("the batch is padded on the right; pad on the left (tokenizer.padding_side = 'left')")
    return (~mask).sum(1)
